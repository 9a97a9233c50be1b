// The page's side of worker.js: the networks as functions that promise.

export class Networks {
  /** model: studio.json. */
  constructor(model) {
    this.model = model;
    this.pending = new Map();
    this.worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.worker.addEventListener("message", ({ data }) => this.receive(data));
    this.worker.addEventListener("error", (event) => {
      event.preventDefault();
      this.fail(new Error(`worker.js cannot run: ${event.message || "a file of runtime/ is missing or damaged"}`));
    });
  }

  /** Fetch and start everything; onProgress is told the share that has arrived, 0 to 1. */
  load(onProgress) {
    const { networks } = this.model;
    const total = Object.values(networks).reduce((sum, { size }) => sum + size, 0);
    const loaded = {};
    this.onProgress = ({ path, loaded: bytes }) => {
      loaded[path] = bytes;
      onProgress(Object.values(loaded).reduce((a, b) => a + b, 0) / total);
    };
    return this.ask({ kind: "load", files: networks }).finally(() => {
      this.onProgress = () => {}; // a file that fails does not end the others
    });
  }

  /** D(v, y): latents on the sphere, and a label a row or null -> images in [-1, 1]. */
  decode = (x, labels) => this.ask({ network: "decoder", x, shape: this.model.latent_shape, labels });

  /** E(x, y), regularized: images in [-1, 1] -> latents that are not on the sphere yet. */
  encode = (x, labels) => this.ask({ network: "encoder", x, shape: this.model.image_shape, labels });

  ask(message) {
    if (this.fault) return Promise.reject(this.fault);
    return new Promise((resolve, reject) => {
      const id = (this.last = (this.last ?? 0) + 1);
      this.pending.set(id, { resolve, reject });
      this.worker.postMessage({ id, ...message });
    });
  }

  receive(data) {
    if (data.kind === "progress") return this.onProgress(data);
    const { resolve, reject } = this.pending.get(data.id);
    this.pending.delete(data.id);
    if (data.kind === "answer") resolve(data.answer);
    else reject(new Error(data.message));
  }

  fail(error) {
    this.fault = error;
    for (const { reject } of this.pending.values()) reject(error);
    this.pending.clear();
  }
}
