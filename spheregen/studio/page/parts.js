// Elements of the page, and the fields that a model decides about.

export const $ = (id) => document.getElementById(id);

/** An element: its tag, its properties (aria-… and data-… as attributes), and what is in it. */
export function el(tag, properties = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-")) element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...inside);
  return element;
}

export const png = (base64) => `data:image/png;base64,${base64}`;
export const randomSeed = () => Math.floor(Math.random() * 1_000_000);

const FEW = 24;

/** A chooser of classes in `place`; returns a function that tells which are chosen. */
export function classPicker(place, names, chosen) {
  const list = el("div", { className: "chips" });
  const id = `${place.id}-list`;
  const chip = (label, checked) => {
    const box = el("input", { type: "checkbox", value: label, checked });
    list.append(el("label", {}, box, el("span", {}, names[label])));
    return box;
  };
  const boxes = () => [...list.querySelectorAll("input")];
  const all = (checked) => boxes().forEach((box) => { box.checked = checked; });
  const button = (text, onclick) => el("button", { type: "button", className: "plain", textContent: text, onclick });
  place.classList.add("picker");
  if (names.length <= FEW) {
    names.forEach((_, label) => chip(label, chosen.includes(label)));
    place.append(list, el("div", { className: "row" }, button("All", () => all(true)), button("None", () => all(false))));
  } else {
    chosen.forEach((label) => chip(label, true));
    const field = el("input", { type: "text", autocomplete: "off", placeholder: `one of ${names.length}`,
      "aria-label": "Add a class by name or number" });
    field.setAttribute("list", id);
    const add = () => {
      const text = field.value.trim().toLowerCase();
      let label = names.findIndex((name) => name.toLowerCase() === text);
      if (label < 0 && /^\d+$/.test(text) && Number(text) < names.length) label = Number(text);
      if (label < 0 && text) label = names.findIndex((name) => name.toLowerCase().includes(text));
      if (!text || label < 0) {
        field.setCustomValidity(text ? "No class of this name" : "");
        field.reportValidity();
        return;
      }
      const there = boxes().find((box) => Number(box.value) === label);
      if (there) there.checked = true;
      else chip(label, true);
      field.value = "";
    };
    field.addEventListener("input", () => field.setCustomValidity(""));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && field.value.trim()) {
        event.preventDefault();
        add();
      }
    });
    place.append(
      el("div", { className: "with-button" }, field, el("button", { type: "button", textContent: "Add", onclick: add })),
      el("datalist", { id }, ...names.map((name) => el("option", { value: name }))), list,
    );
  }
  return () => boxes().filter((box) => box.checked).map((box) => Number(box.value));
}

/** Fields for a sampler's options in `place`; returns a function that tells those that were changed. */
export function samplerFields(place, options) {
  const readers = options.map((option) => {
    const title = option.name.replace("_", " ");
    let field;
    if (option.type === "choice") {
      field = el("select", {}, ...option.choices.map((choice) => el("option", { value: choice, textContent: choice })));
      field.value = option.value;
    } else if (option.type === "boolean") {
      field = el("input", { type: "checkbox", checked: option.value });
    } else if (option.type === "string") {
      field = el("input", { type: "text", value: option.value ?? "" });
    } else {
      field = el("input", { type: "number", step: option.type === "integer" ? 1 : "any", value: option.value ?? "" });
      if (option.min !== null) field.min = option.min;
      if (option.max !== null) field.max = option.max;
      if (option.value === null) field.placeholder = "unset";
      else field.required = true;
    }
    const tick = option.type === "boolean";
    field.id = `option-${option.name}`;
    field.setAttribute("aria-describedby", `${field.id}-help`);
    const label = el("label", { className: tick ? "tick" : "" }, ...(tick ? [field, title] : [title, field]));
    place.append(el("div", { className: "option" }, label, el("small", { id: `${field.id}-help`, textContent: option.help })));
    return () => {
      if (tick) return field.checked;
      if (option.type === "choice" || option.type === "string") return field.value;
      return field.value === "" ? null : field.valueAsNumber;
    };
  });
  return () => {
    const found = {};
    options.forEach((option, i) => {
      const value = readers[i]();
      if (value !== null && value !== (option.value ?? "")) found[option.name] = value;
    });
    return found;
  };
}

/** What a run makes: tiles of images that can be kept and downloaded, and the commands that make them again. */
export function resultCard(title, count, onKeep) {
  const state = el("span", { className: "quiet" });
  const grid = el("div", { className: count > 3 ? "grid" : "grid large" });
  const how = el("div", { className: "how" });
  const element = el("article", { className: "panel card", "aria-label": title },
    el("div", { className: "row apart" }, el("h3", { textContent: title }), state), grid, how);
  const tiles = Array.from({ length: count }, () => {
    const image = el("img", { alt: "" });
    const button = el("button", { type: "button", className: "picture", disabled: true }, image);
    const caption = el("figcaption");
    grid.append(el("figure", { className: "tile", hidden: true }, button, caption));
    return { image, button, caption };
  });

  const show = (images) => images.forEach((data, i) => {
    tiles[i].image.src = png(data);
    tiles[i].button.parentElement.hidden = false;
  });

  return {
    element,
    tell: (text) => { state.textContent = text; },
    show,
    finish({ images, files, titles, labels }, commands) {
      show(images);
      state.textContent = "";
      tiles.forEach(({ button, caption }, i) => {
        const name = `image ${i + 1}${titles[i] ? `, ${titles[i]}` : ""}`;
        button.disabled = false;
        button.dataset.file = files[i];
        button.setAttribute("aria-label", `Keep ${name}`);
        button.title = "Keep";
        button.onclick = () => onKeep({ png: images[i], file: files[i], title: titles[i], label: labels[i], commands });
        caption.replaceChildren(el("span", { textContent: titles[i] }), download(images[i], files[i], name));
      });
      const code = el("pre", { className: "command", tabIndex: 0, "aria-label": "Commands that make this again" },
        ...commands.map(commandLine));
      how.replaceChildren(code, copier(commands.join("\n")));
    },
  };
}

/** A command line that is broken between options only, not at their hyphens. */
function commandLine(command) {
  const parts = command.split(/ (?=--)/).flatMap((part) => [" ", el("span", { textContent: part })]);
  return el("code", {}, ...parts.slice(1));
}

export function download(data, file, name) {
  return el("a", { className: "button icon", href: png(data), download: file.split("/").slice(-2).join("-"),
    title: "Download PNG", textContent: "↓", "aria-label": `Download ${name} as PNG` });
}

function copier(text) {
  const button = el("button", { type: "button", textContent: "Copy", "aria-label": "Copy the commands" });
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch { // only secure pages may write to the clipboard
      getSelection().selectAllChildren(button.previousElementSibling);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  };
  return button;
}
