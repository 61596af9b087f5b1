"use strict";
// Small tools that every part of the page uses: elements, figures as text, colours, the tooltip.
const FG = {
  state: { program: 0, graph: "optimised", selection: null, refused: true, dock: "time", asked: [null, null] },
};

FG.byId = (id) => document.getElementById(id);

// An HTML element; attributes that start with "on" are listeners, children are elements or texts (never markup).
FG.el = (tag, attributes = {}, ...children) => FG.fill(document.createElement(tag), attributes, children);
FG.svg = (tag, attributes = {}, ...children) =>
  FG.fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
FG.fill = (element, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, part] of Object.entries(value)) element.style.setProperty(key, part);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
};

FG.bytes = (count) => {
  if (count === null || count === undefined) return "unknown";
  for (const unit of ["B", "kB", "MB"]) {
    if (count < 1000) return unit === "B" ? `${count} B` : `${count.toFixed(1)} ${unit}`;
    count /= 1000;
  }
  return `${count.toFixed(2)} GB`;
};
FG.time = (ns) => {
  if (ns === null || ns === undefined) return "not measured";
  if (ns < 1000) return `${ns.toFixed(ns < 10 ? 1 : 0)} ns`;
  return ns < 1e6 ? `${(ns / 1e3).toFixed(1)} µs` : `${(ns / 1e6).toFixed(2)} ms`;
};
FG.flops = (count) =>
  count < 1e4
    ? `${count} flop`
    : count < 1e6
      ? `${(count / 1e3).toFixed(1)} kflop`
      : count < 1e9
        ? `${(count / 1e6).toFixed(2)} Mflop`
        : `${(count / 1e9).toFixed(2)} Gflop`;
FG.shape = (shape) => (shape.length ? shape.join("×") : "scalar");
FG.base = (file) => file.split(/[\\/]/).pop();
FG.cut = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);
FG.unique = (values) => [...new Set(values)];

// Widths as this browser's fonts have them, so that labels fit their boxes.
const FONTS = { name: "600 11.5px", sub: "9.5px", pill: "10px" };
FG.textWidth = (text, kind) => {
  if (!FG.measure) {
    FG.measure = document.createElement("canvas").getContext("2d");
    const style = getComputedStyle(document.documentElement);
    FG.families = {
      name: style.getPropertyValue("--sans"),
      sub: style.getPropertyValue("--mono"),
      pill: style.getPropertyValue("--mono"),
    };
  }
  FG.measure.font = `${FONTS[kind]} ${FG.families[kind]}`;
  return FG.measure.measureText(text).width;
};
FG.fitText = (text, kind, width) => {
  let shown = text;
  while (shown.length > 2 && FG.textWidth(shown, kind) > width)
    shown = `${shown.slice(0, shown.endsWith("…") ? -2 : -1)}…`;
  return shown;
};

// Each kernel has one colour, wherever it is shown; neighbours in the order of kernels differ most.
FG.kernelColour = (id) => `oklch(var(--kernel-l) var(--kernel-c) ${(id * 137.508 + 25) % 360})`;

const KINDS = {
  map: "relu exp log neg sqrt rsqrt tanh erf sigmoid cast abs sin cos not floor ceil sign isnan add sub mul div pow max2 maximum minimum where eq ne lt le gt ge and or xor mod shift_left shift_right square reciprocal",
  reduce: "sum max min prod argmax argmin any all mean fold cumsum",
  contract: "matmul conv conv1d conv2d conv_input_grad conv_weight_grad einsum dot",
  view: "reshape permute expand slice pad flip concat window transpose squeeze copy diagonal as_strided",
  gather: "gather take take_along scatter scatter_add index_add check_index embedding one_hot",
  source: "constant iota random_bits random full",
};
const KIND_OF = new Map(Object.entries(KINDS).flatMap(([kind, names]) => names.split(" ").map((name) => [name, kind])));
FG.kind = (op) => (op === "input" ? "input" : KIND_OF.get(op) || "map");

FG.tip = (text, event) => {
  const tip = FG.byId("tip");
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 10);
  const y =
    event.clientY + 16 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 16;
  tip.style.left = `${Math.max(4, x)}px`;
  tip.style.top = `${y}px`;
};
FG.withTip = (element, text) => {
  element.addEventListener("pointermove", (event) => FG.tip(text, event));
  element.addEventListener("pointerleave", () => FG.tip(""));
  return element;
};

// Enter and space press what is not a button by nature; arrows go to neighbours in the same list.
FG.pressable = (element, action) => {
  element.addEventListener("click", action);
  element.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      event.stopPropagation();
      action(event);
    }
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const next = step && element.tagName === "TR" && element[step];
    if (next && next.hasAttribute("tabindex")) {
      event.preventDefault();
      next.focus();
    }
  });
  return element;
};

// Tabs: a row of buttons of which one is chosen; arrows move along it.
FG.tabs = (holder, items, chosen, choose) => {
  holder.replaceChildren(
    ...items.map(([key, label, title]) =>
      FG.el(
        "button",
        {
          role: "tab",
          "aria-selected": String(key === chosen),
          tabindex: key === chosen ? 0 : -1,
          title,
          "data-key": key,
          onclick: () => choose(key),
          onkeydown: (event) => {
            const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
            if (!step) return;
            event.preventDefault();
            event.stopPropagation();
            const keys = items.map((item) => item[0]);
            const next = keys[(keys.indexOf(key) + step + keys.length) % keys.length];
            choose(next);
            holder.querySelector(`[data-key="${next}"]`).focus();
          },
        },
        label,
      ),
    ),
  );
};
