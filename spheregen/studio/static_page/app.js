// The page: what is asked for, what is shown. The method is in sphere.js, the networks behind networks.js.

import { Networks } from "./networks.js";
import { source } from "./random.js";
import * as sphere from "./sphere.js";

const $ = (id) => document.getElementById(id);
const EVERY = "every"; // classes in turn
const ENLARGED = 128; // pixels that an image has at least in the file to download

let model, networks;
let running = null; // what is being generated: a new object each time, so that an older one notices

/**
 * Images as float pixels in [0, 1], Float32Array [B, C, H, W]; also for programs, as spheregen.generate.
 *
 * labels: a class an image, null_label for none; count takes its place in an unconditional model. What is not given is
 * the model's default. noise and perturbations take the place of the seed's numbers: the Gaussian prior [B, N, D], and
 * the noise of each further drawing, the last of which is kept. onStep is told {number, pixels}; false stops.
 */
async function generate({ labels = null, count, seed = 0, noise, perturbations, onStep, ...settings }) {
  const { defaults } = model;
  const { steps, guidance, position, sampler } = settings;
  const size = model.latent_shape.reduce((a, b) => a * b);
  if (model.null_label === null) labels = null;
  else labels ??= Array(count).fill(model.null_label);
  count = labels ? labels.length : count;
  let draw = source(seed, count, size);
  if (noise) {
    const given = [noise, ...perturbations ?? []].map((numbers) => Float32Array.from(numbers));
    draw = () => (given.length > 1 ? given.shift() : given[0]);
  }
  const run = sphere.generate(networks, {
    labels,
    count,
    steps: steps ?? defaults.steps,
    sampler: sphere.sampler({ ...defaults.sampler, use: sampler ?? defaults.sampler.use }, draw),
    conditioner: sphere.conditioner(position ?? defaults.position, guidance ?? defaults.guidance, model.null_label),
    sigmaMax: sphere.angleToSigma(model.angle),
  });
  let pixels;
  for await (const { number, images } of run) {
    pixels = sphere.toPixels(images);
    if (onStep?.({ number, pixels }) === false) break;
  }
  return pixels;
}

// -- the page's parts ------------------------------------------------------------------------------------------------

function tell(text, share = null) {
  $("status").textContent = text;
  $("status").classList.remove("error");
  $("running").hidden = share === null;
  if (share !== null) $("progress").value = share;
}

function fail(error) {
  tell(error.message);
  $("status").classList.add("error");
}

function fill() {
  const { name, description, version, class_names: names, defaults } = model;
  document.title = name;
  $("name").textContent = name;
  $("description").textContent = description;
  $("version").textContent = version;
  for (const [fact, value] of model.facts) {
    const [term, definition] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = fact;
    definition.textContent = value;
    $("facts").append(term, definition);
  }
  if (model.null_label === null) {
    $("class-field").hidden = $("guidance-field").hidden = true;
  } else {
    $("class").append(new Option("every class in turn", EVERY));
    names.forEach((name, label) => $("class").append(new Option(name, label)));
    $("class").append(new Option("no class", model.null_label));
  }
  $("steps").value = defaults.steps;
  $("steps").max = Math.max(8, defaults.steps);
  $("scale").value = defaults.guidance;
  $("position").value = defaults.position;
  $("sampler").value = defaults.sampler.use;
}

/** What the form asks for. */
function asked() {
  const count = Number($("count").value);
  const chosen = $("class").value;
  const label = (i) => (chosen === EVERY ? i % model.class_names.length : Number(chosen));
  return {
    labels: model.null_label === null ? null : Array.from({ length: count }, (_, i) => label(i)),
    count,
    seed: Number($("seed").value),
    steps: Number($("steps").value),
    guidance: Number($("scale").value),
    position: $("position").value,
    sampler: $("sampler").value,
  };
}

function newGrid({ labels, count }) {
  const [, height, width] = model.image_shape;
  $("grid").replaceChildren();
  $("grid").className = `grid of-${count}`;
  $("grid").classList.toggle("pixels", width < ENLARGED);
  for (let i = 0; i < count; i++) {
    const figure = document.createElement("figure");
    const canvas = document.createElement("canvas");
    canvas.height = height;
    canvas.width = width;
    canvas.className = "picture";
    canvas.setAttribute("role", "img");
    const name = labels ? model.class_names[labels[i]] ?? "no class" : "";
    canvas.setAttribute("aria-label", `image ${i + 1}${name && `: ${name}`}`);
    figure.append(canvas);
    if (labels) figure.append(Object.assign(document.createElement("figcaption"), { textContent: name }));
    $("grid").append(figure);
  }
}

/** pixels: [B, C, H, W] in [0, 1], one or three channels. */
function draw(pixels) {
  const [channels, height, width] = model.image_shape;
  const plane = height * width;
  $("grid").querySelectorAll("canvas").forEach((canvas, row) => {
    const data = new ImageData(width, height);
    for (let i = 0; i < plane; i++) {
      for (let c = 0; c < 3; c++) {
        data.data[4 * i + c] = Math.round(255 * pixels[(row * channels + Math.min(c, channels - 1)) * plane + i]);
      }
      data.data[4 * i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(data, 0, 0);
  });
}

/** Offer the images as one picture; small ones enlarged by a whole factor, every pixel a square. */
async function offer({ seed, steps }) {
  const canvases = [...$("grid").querySelectorAll("canvas")];
  const across = Math.sqrt(canvases.length);
  const [, height, width] = model.image_shape;
  const factor = Math.max(1, Math.ceil(ENLARGED / width));
  const picture = new OffscreenCanvas(across * width * factor, across * height * factor);
  const context = picture.getContext("2d");
  context.imageSmoothingEnabled = false;
  canvases.forEach((canvas, i) => {
    const [x, y] = [(i % across) * width * factor, Math.floor(i / across) * height * factor];
    context.drawImage(canvas, x, y, width * factor, height * factor);
  });
  const blob = await picture.convertToBlob();
  const link = $("download");
  URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(blob);
  link.download = `${model.name}-seed-${seed}-steps-${steps}.png`;
  link.hidden = false;
}

async function show() {
  const mine = (running = {});
  const settings = asked();
  const images = settings.count === 1 ? "1 image" : `${settings.count} images`;
  newGrid(settings);
  $("download").hidden = true;
  $("stop").hidden = false;
  tell(`Step 1 of ${settings.steps} …`, 0);
  let made = 0;
  try {
    await generate({
      ...settings,
      onStep({ number, pixels }) {
        if (running !== mine) return false;
        draw(pixels);
        made = number;
        if (number < settings.steps) tell(`Step ${number + 1} of ${settings.steps} …`, number / settings.steps);
      },
    });
    if (running !== mine) return;
    await offer({ ...settings, steps: made });
    tell(`${images}, ${made === 1 ? "1 step" : `${made} steps`}.`);
  } catch (error) {
    if (running === mine) fail(error);
  }
  if (running === mine) $("stop").hidden = true;
}

function listen() {
  $("settings").addEventListener("submit", (event) => {
    event.preventDefault();
    show();
  });
  $("new-seed").addEventListener("click", () => {
    $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
    if ($("settings").reportValidity()) show();
  });
  $("stop").addEventListener("click", () => {
    running = null;
    $("stop").hidden = true;
    $("generate").focus();
    tell("Stopped.");
  });
}

// -- start -----------------------------------------------------------------------------------------------------------

async function start() {
  tell("Loading …", 0);
  if (typeof WebAssembly !== "object") {
    throw new Error("This browser has no WebAssembly, or it is switched off: the model cannot run here.");
  }
  const answer = await fetch("studio.json", { cache: "no-cache" }).catch(() => null);
  if (!answer?.ok) throw new Error("studio.json cannot be fetched: the page's folder is not whole.");
  model = await answer.json();
  fill();
  networks = new Networks(model);
  const megabytes = (share) => (share * Object.values(model.networks).reduce((sum, { size }) => sum + size, 0)) / 1e6;
  await networks.load((share) => {
    const text = `Loading the model: ${megabytes(share).toFixed(1)} of ${megabytes(1).toFixed(1)} MB …`;
    tell(share < 1 ? text : "Starting the model …", share);
  });
  listen();
  $("fields").disabled = false;
}

const ready = start();
ready.then(show, fail);

window.spheregen = { ready, generate: (options) => ready.then(() => generate(options)) };
