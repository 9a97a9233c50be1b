// The networks, in onnxruntime-web, apart from the page so that it stays alive while they run.

import * as ort from "./runtime/ort.wasm.min.js";

const here = (path) => new URL(path, import.meta.url).href;
const sessions = {};

/** A file's bytes, told to the page as they arrive. size: what its bytes must add up to. */
async function fetchFile(path, size) {
  let response;
  try {
    response = await fetch(here(path), { cache: "no-cache" }); // kept, but asked for again: a newer build may be there
  } catch {
    throw new Error(`${path} cannot be fetched: no answer from the server`);
  }
  if (!response.ok) throw new Error(`${path} cannot be fetched: the server answers ${response.status}`);
  const bytes = new Uint8Array(size);
  let loaded = 0;
  for await (const chunk of chunks(response.body.getReader())) {
    if (loaded + chunk.length <= size) bytes.set(chunk, loaded);
    loaded += chunk.length;
    postMessage({ kind: "progress", path, loaded: Math.min(loaded, size) });
  }
  if (loaded !== size) throw new Error(`${path} has ${loaded} bytes instead of ${size}: not whole, or another file`);
  return bytes;
}

async function* chunks(reader) {
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

/** files: runtime, decoder and encoder, each {path, size}. */
async function load(files) {
  const [runtime, ...networks] = await Promise.all(
    [files.runtime, files.decoder, files.encoder].map(({ path, size }) => fetchFile(path, size)),
  );
  ort.env.wasm.numThreads = 1; // more need cross-origin isolation, which a plain server does not give
  ort.env.wasm.wasmPaths = { mjs: here("./runtime/ort-wasm-simd-threaded.js"), wasm: here(files.runtime.path) };
  ort.env.wasm.wasmBinary = runtime.buffer;
  for (const [i, name] of ["decoder", "encoder"].entries()) {
    sessions[name] = await ort.InferenceSession.create(networks[i], { executionProviders: ["wasm"] });
  }
}

/** One pass of a network. x: rows of `shape`; labels: one a row, or null. */
async function run({ network, x, shape, labels }) {
  const session = sessions[network];
  const input = session.inputNames.find((name) => name !== "label");
  const feeds = { [input]: new ort.Tensor("float32", x, [x.length / shape.reduce((a, b) => a * b), ...shape]) };
  if (labels) feeds.label = new ort.Tensor("int64", BigInt64Array.from(labels, BigInt), [labels.length]);
  const results = await session.run(feeds);
  return results[session.outputNames[0]].data;
}

let queue = Promise.resolve(); // a session runs one pass at a time
addEventListener("message", ({ data }) => {
  queue = queue.then(async () => {
    try {
      const answer = data.kind === "load" ? await load(data.files) : await run(data);
      postMessage({ kind: "answer", id: data.id, answer });
    } catch (error) {
      postMessage({ kind: "error", id: data.id, message: error?.message ?? String(error) });
    }
  });
});
