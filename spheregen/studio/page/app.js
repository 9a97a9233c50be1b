// The studio's page: forms that become requests, and results as they come.

import * as api from "./api.js";
import { $, classPicker, el, png, randomSeed, resultCard, samplerFields } from "./parts.js";
import * as tray from "./tray.js";

const OLDER = 10; // results that stay under "Earlier"
const running = new Set();
let facts, sampleClasses, restyleClasses, samplerOptions;
let uploads = 0;

// -- requests and results -----------------------------------------------------------------------------------------------

function fail(message) {
  $("error").replaceChildren(...(message ? [el("p", { className: "error", textContent: message })] : []));
}

function busy(controller, yes) {
  if (yes) running.add(controller);
  else running.delete(controller);
  $("told").classList.toggle("running", running.size > 0);
}

function place(card, show) {
  const earlier = [...$("newest").children];
  if (earlier.includes(card.element)) return;
  $("older").prepend(...earlier);
  $("newest").replaceChildren(card.element);
  if (show) {
    const { top, bottom } = card.element.getBoundingClientRect();
    if (top < 0 || Math.min(bottom, top + 200) > innerHeight) card.element.scrollIntoView();
  }
  [...$("older").children].slice(OLDER).forEach((old) => old.remove());
  $("earlier-count").textContent = $("older").children.length;
  $("earlier").hidden = !$("older").children.length;
}

/** Ask for images and show them step by step, in a card of their own or in one that is there already. */
async function make({ name, body, title, count, sources = [], into = null, show = true, onDone = () => {} }) {
  const controller = new AbortController();
  const keep = (item) => tray.toggle({ ...item, key: item.file });
  const card = into ?? resultCard(title, count, keep);
  const status = (text) => { $("status").textContent = `${title}: ${text}`; };
  fail("");
  busy(controller, true);
  $("progress").removeAttribute("value");
  try {
    for await (const event of api.make(name, body, controller.signal)) {
      if (event.waiting) {
        status(`waiting for ${event.waiting} before it`);
      } else if (event.command) {
        const before = sources.flatMap((source) => source.commands);
        card.finish(event, [...new Set([...before, event.command])]);
        place(card, show);
        tray.mark();
        onDone(event);
        status(event.images.length === 1 ? "1 image" : `${event.images.length} images`);
      } else if (event.step) {
        card.show(event.images);
        card.tell(`step ${event.step} of ${event.steps}`);
        place(card, show);
        $("progress").value = event.step / event.steps;
        status(`step ${event.step} of ${event.steps}`);
      }
    }
    return card;
  } catch (error) {
    card.tell("stopped");
    if (error.name === "AbortError") status("stopped");
    else fail(error.message);
    return null;
  } finally {
    busy(controller, false);
  }
}

/** A form's submit, never twice at once. The button keeps the focus, which a disabled one would lose. */
function onSubmit(form, button, action) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.getAttribute("aria-disabled") === "true") return;
    button.setAttribute("aria-disabled", "true");
    try {
      await action();
    } finally {
      button.removeAttribute("aria-disabled");
    }
  });
}

// -- sampling -----------------------------------------------------------------------------------------------------------

function prepareSampling() {
  const { classes, defaults, limits, positions, samplers } = facts;
  $("class-field").hidden = $("guidance-field").hidden = !classes.length;
  if (classes.length) {
    const first = classes.length <= 12 ? classes.map((_, label) => label) : [0, 1, 2, 3];
    sampleClasses = classPicker($("classes"), classes, first);
  } else {
    $("count-label").textContent = "Images";
    $("count").value = 16;
  }
  $("count").max = limits.images;
  $("steps").max = limits.steps;
  $("steps").value = defaults.steps;
  $("position").append(...positions.map((name) => el("option", { value: name, textContent: name })));
  $("position").value = defaults.position;
  $("guidance").value = defaults.guidance;
  const guided = () => { $("guidance").disabled = $("position").value === "none"; };
  $("position").addEventListener("change", guided);
  guided();
  $("new-seed").onclick = () => { $("seed").value = randomSeed(); };
  $("sampler").append(...samplers.map(({ name }) => el("option", { value: name, textContent: name })));
  $("sampler").value = defaults.sampler;
  const sampled = () => {
    const sampler = samplers.find(({ name }) => name === $("sampler").value);
    $("sampler-name").textContent = sampler.name;
    $("sampler-help").textContent = sampler.summary;
    $("sampler-options").replaceChildren();
    samplerOptions = samplerFields($("sampler-options"), sampler.options);
  };
  $("sampler").addEventListener("change", sampled);
  sampled();
  onSubmit($("sample-form"), $("sample-button"), sample);
}

async function sample() {
  const count = $("count").valueAsNumber;
  const body = { count, steps: $("steps").valueAsNumber, seed: $("seed").valueAsNumber, sampler: $("sampler").value,
    sampler_options: samplerOptions() };
  let total = count;
  if (facts.classes.length) {
    body.classes = sampleClasses();
    body.position = $("position").value;
    if (!$("guidance").disabled) body.guidance = $("guidance").valueAsNumber;
    total = count * body.classes.length;
  }
  await make({ name: "sample", body, title: `Sample, seed ${body.seed}`, count: total });
}

// -- kept images --------------------------------------------------------------------------------------------------------

const ACTIONS = {
  reconstruct: { help: "A through the encoder and back.", button: "Re-encode", ends: 1 },
  vary: { help: "A's latent, turned by an angle in random directions.", button: "Vary", ends: 1, steps: 1 },
  restyle: { help: "A as other classes, step by step.", button: "Restyle", ends: 1, steps: 4, strength: 1, gamma: 0 },
  interpolate: { help: "Move the slider, or show the whole way.", button: "Show the whole way", ends: 2 },
  crossover: { help: "A and B stitched, and made one.", button: "Cross", ends: 2, steps: 10, strength: 0.25, gamma: 1 },
};
const action = () => document.querySelector("input[name=action]:checked").value;
const short = (item) => item.title || item.file;
const source = ({ png, file }) => ({ png, file });

function prepareEditing() {
  const { classes, limits, seams } = facts;
  for (const [id, limit] of [["edit-count", limits.images], ["edit-steps", limits.steps]]) $(id).max = limit;
  $("edit-class").append(el("option", { value: "", textContent: "none" }),
    ...classes.map((name, label) => el("option", { value: label, textContent: name })));
  $("seams").append(...seams.map((seam) => el("label", {},
    el("input", { type: "checkbox", value: seam, checked: true }), el("span", {}, seam))));
  if (classes.length) restyleClasses = classPicker($("restyle-classes"), classes, classes.length <= 12 ? classes.map((_, i) => i) : [0]);
  else document.querySelector("input[value=restyle]").parentElement.hidden = true;
  for (const input of document.querySelectorAll("input[name=action]")) {
    input.addEventListener("change", () => {
      const { steps, strength, gamma } = ACTIONS[action()];
      for (const [id, value] of [["edit-steps", steps], ["strength", strength], ["gamma", gamma]]) {
        if (value !== undefined) $(id).value = value;
      }
      classOfA();
      showAction();
    });
  }
  const turned = () => { $("degrees-shown").textContent = `${$("degrees").value}°`; };
  $("degrees").oninput = turned;
  // Training's noise turns latents by up to that angle; far less hardly changes an image.
  $("degrees").value = Math.round(facts.angle * 0.75);
  turned();
  $("place").oninput = slide;
  for (const input of document.querySelectorAll("input[name=path]")) input.addEventListener("change", slide);
  onSubmit($("edit-form"), $("edit-button"), edit);
}

let lastA, lastEnds;
function showTray(count) {
  const [a, b] = tray.ends();
  if (lastEnds !== `${a?.key} ${b?.key}`) $("preview").hidden = true;
  lastEnds = `${a?.key} ${b?.key}`;
  $("tray-hint").textContent = count ? "The first you click is A, the second B." : "Nothing yet. Click images to keep them, or bring your own.";
  $("edit-form").hidden = !a;
  $("and-b").hidden = !b;
  if (a && a.key !== lastA) {
    lastA = a.key;
    classOfA();
  }
  for (const input of document.querySelectorAll("input[name=action]")) {
    input.disabled = ACTIONS[input.value].ends === 2 && !b;
    if (input.disabled && input.checked) document.querySelector("input[value=reconstruct]").checked = true;
  }
  showAction();
}

/** The class to begin with: A's for variations of it; none for crossovers, as in the paper. */
function classOfA() {
  $("edit-class").value = (action() === "vary" && tray.ends()[0]?.label) ?? "";
}

function showAction() {
  const name = action();
  const both = tray.ends().length === 2;
  $("action-help").textContent = ACTIONS[name].help + (both ? "" : " Choose a second image for Between and Cross.");
  $("edit-button").textContent = ACTIONS[name].button;
  for (const part of document.querySelectorAll("[data-for]")) part.hidden = !part.dataset.for.split(" ").includes(name);
  if (!facts.classes.length) $("edit-class-field").hidden = true;
  if (!facts.positions.length || facts.defaults.position === "none") $("edit-guidance-field").hidden = true;
}

async function edit() {
  const [a, b] = tray.ends();
  const name = action();
  const sources = ACTIONS[name].ends === 2 ? [a, b] : [a];
  const label = $("edit-class").value === "" ? null : Number($("edit-class").value);
  const settings = { steps: $("edit-steps").valueAsNumber, seed: $("edit-seed").valueAsNumber };
  if (!$("edit-guidance-field").hidden && $("edit-guidance").valueAsNumber !== 1) settings.guidance = $("edit-guidance").valueAsNumber;
  const noise = { strength: $("strength").valueAsNumber, gamma: $("gamma").valueAsNumber };
  const seams = [...$("seams").querySelectorAll(":checked")].map((box) => box.value);
  const requests = {
    reconstruct: () => ({ title: `${short(a)}, re-encoded`, count: 1, body: { image: source(a) } }),
    vary: () => ({ title: `Around ${short(a)}, ${$("degrees").value}°`, count: $("edit-count").valueAsNumber,
      body: { image: source(a), degrees: $("degrees").valueAsNumber, count: $("edit-count").valueAsNumber, label, ...settings } }),
    restyle: () => ({ title: `${short(a)}, restyled`, count: restyleClasses().length,
      body: { image: source(a), classes: restyleClasses(), ...settings, ...noise } }),
    interpolate: () => between([0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1]),
    crossover: () => ({ title: `${short(a)} crossed with ${short(b)}`, count: seams.length,
      body: { images: sources.map(source), seams, label, ...settings, ...noise } }),
  };
  await make({ name, sources, ...requests[name]() });
}

function between(at) {
  const [a, b] = tray.ends();
  const labels = [a.label, b.label];
  const body = { images: [source(a), source(b)], at, path: document.querySelector("input[name=path]:checked").value };
  if (labels.every((label) => label !== null)) body.labels = labels;
  return { title: `From ${short(a)} to ${short(b)}`, count: at.length, body };
}

// The slider asks for one image at a time, and then for the newest place.
let sliding = false;
let next = false;
let slider = { card: null, between: "" };
async function slide() {
  $("place-shown").textContent = `${$("place").value}%`;
  if (tray.ends().length < 2 || action() !== "interpolate") return;
  next = true;
  if (sliding) return;
  sliding = true;
  while (next) {
    next = false;
    const sources = tray.ends();
    if (sources.length < 2) break;
    const ends = sources.map((item) => item.key).join("\n");
    const into = slider.between === ends && $("newest").contains(slider.card?.element) ? slider.card : null;
    const onDone = ({ images }) => {
      $("preview").src = png(images[0]);
      $("preview").hidden = false;
    };
    const at = $("place").valueAsNumber / 100;
    const card = await make({ name: "interpolate", sources, into, show: false, onDone, ...between([at]) });
    slider = { card, between: ends };
    if (!card) break;
  }
  sliding = false;
}

// -- images from elsewhere ----------------------------------------------------------------------------------------------

async function addFiles(files) {
  fail("");
  for (const file of files) {
    if (file.size > facts.limits.megabytes * 1e6) {
      fail(`${file.name}: too large: expected at most ${facts.limits.megabytes} MB`);
      continue;
    }
    $("status").textContent = `${file.name}: being read`;
    try {
      const read = await api.upload(file);
      tray.add({ ...read, key: `upload-${Date.now()}-${uploads++}`, title: "", label: null, commands: [] });
      $("status").textContent = `${file.name}: added to the kept images`;
    } catch (error) {
      $("status").textContent = "";
      fail(error.message);
    }
  }
}

function prepareFiles() {
  $("file").addEventListener("change", async () => {
    await addFiles([...$("file").files]);
    $("file").value = "";
  });
  const dropping = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!dropping(event)) return;
    event.preventDefault();
    $("drop").hidden = false;
  });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
  addEventListener("drop", (event) => {
    $("drop").hidden = true;
    if (!dropping(event)) return;
    event.preventDefault();
    addFiles([...event.dataTransfer.files]);
  });
}

// -- the beginning ------------------------------------------------------------------------------------------------------

function prepareViewing() {
  const pixels = () => document.body.classList.toggle("pixels", $("pixels").checked);
  $("pixels").addEventListener("change", pixels);
  pixels();
  $("stop").onclick = () => running.forEach((controller) => controller.abort());
}

try {
  facts = await api.about();
  const kinds = facts.classes.length ? `${facts.classes.length} classes` : "no classes";
  $("about").textContent = `${facts.run} · ${facts.size} × ${facts.size} ${facts.channels === 1 ? "grey" : "colour"} · ${kinds}`;
  document.title = `${facts.name} · spheregen studio`;
  prepareViewing();
  prepareSampling();
  prepareEditing();
  prepareFiles();
  tray.open(facts.run, showTray);
  document.body.dataset.ready = "yes";
} catch (error) {
  fail(error.message);
}
