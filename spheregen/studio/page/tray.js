// The kept images, and which of them are A and B. They outlive a reload of the page.

import { $, download, el, png } from "./parts.js";

const STORE = "spheregen-studio";
let kept = [];
let chosen = []; // keys of A and B
let changed = () => {};
let run = "";

export function open(name, onChange) {
  run = name;
  changed = onChange;
  try {
    const stored = JSON.parse(sessionStorage.getItem(STORE));
    if (stored?.run === run) ({ kept, chosen } = stored);
  } catch { /* nothing was stored, or it may not be read */ }
  draw();
}

/** A and, where there is one, B. */
export const ends = () => chosen.map((key) => kept.find((item) => item.key === key));
export const has = (key) => kept.some((item) => item.key === key);

export function add(item) {
  kept.push(item);
  if (chosen.length < 2) chosen.push(item.key);
  draw();
}

export function remove(key) {
  kept = kept.filter((item) => item.key !== key);
  chosen = chosen.filter((other) => other !== key);
  draw();
}

export const toggle = (item) => (has(item.key) ? remove(item.key) : add(item));

/** A choice more or less; of three the oldest gives way. */
function choose(key) {
  chosen = chosen.includes(key) ? chosen.filter((other) => other !== key) : [...chosen, key].slice(-2);
  draw();
}

function draw() {
  const focused = document.activeElement?.dataset.key;
  $("tray").replaceChildren(...kept.map((item, i) => {
    const place = "AB"[chosen.indexOf(item.key)] ?? "";
    const name = `kept image ${i + 1}, ${item.title || item.file}`;
    const button = el("button", { type: "button", className: "picture", title: item.file, "data-key": item.key,
      "aria-pressed": String(Boolean(place)), "aria-label": `${name}${place ? `: is ${place}` : ""}`,
      onclick: () => choose(item.key) }, el("img", { alt: "", src: png(item.png) }));
    if (place) button.append(el("span", { className: "badge", textContent: place, "aria-hidden": "true" }));
    const away = el("button", { type: "button", className: "icon", textContent: "×", title: "Remove",
      "aria-label": `Remove ${name}`, onclick: () => {
        const next = kept[i + 1] ?? kept[i - 1];
        remove(item.key);
        (next ? $("tray").querySelector(`[data-key="${CSS.escape(next.key)}"]`) : $("kept")).focus();
      } });
    return el("li", { className: "tile" }, button, el("figcaption", {}, download(item.png, item.file, name), away));
  }));
  if (focused) $("tray").querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  $("kept-count").textContent = kept.length;
  mark();
  try {
    sessionStorage.setItem(STORE, JSON.stringify({ run, kept, chosen }));
  } catch { /* more than the browser stores: they live as long as the page */ }
  changed(kept.length);
}

/** Show which of the results are kept. */
export function mark() {
  for (const button of document.querySelectorAll("button[data-file]")) {
    button.setAttribute("aria-pressed", String(has(button.dataset.file)));
  }
}
