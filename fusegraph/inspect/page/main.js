"use strict";
// What the page does: selection, views, keys, theme.
FG.select = (selection, focus = true) => {
  if (selection && !["why"].includes(selection.kind)) FG.state.asked = [null, null];
  FG.state.selection = selection;
  FG.showDetail();
  const kernels = FG.markKernels();
  if (FG.state.left === "source") FG.markSource();
  else FG.revealOps(selection);
  const hits = FG.markOps();
  FG.markDock();
  if (focus && selection) {
    FG.kernelCanvas.reveal(kernels);
    if (FG.state.left === "ops") FG.opCanvas.reveal(hits);
  }
  const hash = !selection
    ? ""
    : selection.kind === "op"
      ? `op-${selection.graph}-${selection.id}`
      : selection.kind === "why"
        ? ""
        : `${selection.kind}-${selection.id}`;
  history.replaceState(null, "", hash ? `#${encodeURIComponent(hash)}` : location.pathname + location.search);
};

// A selected operation may be inside of closed groups, or in the other op graph.
FG.revealOps = (selection) => {
  if (selection?.kind !== "op") return;
  if (selection.graph !== FG.state.graph) {
    FG.state.graph = selection.graph;
    FG.showLeft();
  }
  const leaf = FG.tree().home.get(selection.id);
  if (leaf && FG.reveal(leaf)) FG.drawOps(false);
};

FG.showLeft = () => {
  const items = [
    ["optimised", "After passes", "The graph that was fused (1)"],
    ["graph", "As traced", "The graph of your program (2)"],
    ["source", "Your code", "Lines and the kernels they became (3)"],
  ];
  const current = FG.state.left === "source" ? "source" : FG.state.graph;
  FG.tabs(FG.byId("left-tabs"), items, current, FG.chooseLeft);
  const source = current === "source";
  FG.byId("source-view").hidden = !source;
  FG.byId("op-canvas").hidden = source;
  FG.byId("op-canvas").style.display = source ? "none" : "";
  FG.byId("left-tools").style.visibility = source ? "hidden" : "";
  if (source) FG.showSource();
  else FG.drawOps();
};
FG.chooseLeft = (key) => {
  FG.state.left = key === "source" ? "source" : "ops";
  if (key !== "source") FG.state.graph = key;
  FG.showLeft();
};

FG.setOpen = (open) => {
  const visit = (group) =>
    group.children.forEach((child) => {
      if (child.group) {
        child.open = open;
        visit(child);
      }
    });
  visit(FG.tree().root);
  FG.drawOps();
};

FG.setUpTools = () => {
  const tool = (label, title, action, pressed) =>
    FG.el("button", { class: "tool", title, "aria-label": title, "aria-pressed": pressed, onclick: action }, label);
  const zoomers = (canvas) => [
    tool("−", "Zoom out (-)", () => canvas.zoom(0.8)),
    tool("+", "Zoom in (+)", () => canvas.zoom(1.25)),
    tool("Fit", "Show everything (0)", () => canvas.fit(true)),
  ];
  FG.byId("left-tools").append(
    tool("⊞", "Open all modules", () => FG.setOpen(true)),
    tool("⊟", "Close all modules", () => FG.setOpen(false)),
    tool(
      "Scalars",
      "Show constants and scalars",
      (event) => {
        FG.state.scalars = !FG.state.scalars;
        event.target.setAttribute("aria-pressed", FG.state.scalars);
        FG.drawOps();
      },
      "false",
    ),
  );
  for (const canvas of [FG.opCanvas, FG.kernelCanvas])
    canvas.holder.append(FG.el("div", { class: "zoom tools" }, zoomers(canvas)));
  FG.byId("right-tools").append(
    tool(
      "Refused",
      "Show refused fusions, dashed",
      (event) => {
        FG.state.refused = !FG.state.refused;
        event.target.setAttribute("aria-pressed", FG.state.refused);
        for (const canvas of [FG.opCanvas, FG.kernelCanvas])
          canvas.svg.classList.toggle("hide-refused", !FG.state.refused);
      },
      "true",
    ),
  );
  const legend = (kinds) =>
    FG.el(
      "div",
      { class: "legend", "aria-hidden": "true" },
      kinds.map(([name, label]) => FG.el("span", {}, FG.el("i", { style: { background: `var(--${name})` } }), label)),
    );
  FG.byId("op-canvas").append(
    legend([
      ["input", "input"],
      ["map", "map"],
      ["reduce", "reduce"],
      ["contract", "contraction"],
      ["gather", "gather"],
      ["view", "view"],
    ]),
  );
};

FG.setShade = () => {
  const root = document.documentElement;
  const dark =
    root.dataset.theme === "auto" ? matchMedia("(prefers-color-scheme: dark)").matches : root.dataset.theme === "dark";
  root.dataset.shade = dark ? "dark" : "light";
  FG.byId("theme").textContent = dark ? "☀" : "☾";
  FG.byId("theme").setAttribute("aria-pressed", String(dark));
};
FG.toggleShade = () => {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.shade === "dark" ? "light" : "dark";
  try {
    localStorage.setItem("fusegraph-theme", root.dataset.theme);
  } catch {
    /* a page from a file may have no storage */
  }
  FG.setShade();
};

FG.setUpSplits = () => {
  const root = document.documentElement.style;
  const set = (name, value) => root.setProperty(`--${name}`, `${Math.round(value)}px`);
  const size = (name) =>
    ({
      left: FG.byId("left").offsetWidth,
      detail: FG.byId("detail").offsetWidth,
      dock: document.querySelector(".dock").offsetHeight,
    })[name];
  const limit = (name, value) =>
    Math.min(name === "dock" ? innerHeight - 320 : innerWidth * 0.6, Math.max(name === "dock" ? 70 : 200, value));
  for (const split of document.querySelectorAll(".split")) {
    const name = split.dataset.split;
    const tell = () => {
      const most = name === "dock" ? innerHeight - 320 : innerWidth * 0.6;
      for (const [key, value] of [
        ["now", size(name)],
        ["min", name === "dock" ? 70 : 200],
        ["max", most],
      ])
        split.setAttribute(`aria-value${key}`, String(Math.round(value)));
    };
    tell();
    const change = (delta) => {
      set(name, limit(name, size(name) + (name === "left" ? delta : -delta)));
      if (name === "dock" && FG.state.dock === "memory") FG.showDock();
      tell();
    };
    split.addEventListener("pointerdown", (event) => {
      split.setPointerCapture(event.pointerId);
      const start = { at: name === "dock" ? event.clientY : event.clientX, size: size(name) };
      const move = (e) => {
        const delta = (name === "dock" ? e.clientY : e.clientX) - start.at;
        set(name, limit(name, start.size + (name === "left" ? delta : -delta)));
      };
      split.addEventListener("pointermove", move);
      split.addEventListener(
        "pointerup",
        () => {
          split.removeEventListener("pointermove", move);
          change(0);
        },
        { once: true },
      );
    });
    split.addEventListener("keydown", (event) => {
      const delta = { ArrowLeft: -24, ArrowRight: 24, ArrowUp: -24, ArrowDown: 24 }[event.key];
      if (delta) {
        event.preventDefault();
        change(delta);
      }
    });
  }
};

FG.HELP = [
  ["/", "search; arrows and Enter choose, Shift + Enter asks why it was not merged with the selected one"],
  ["Esc", "close, or take the selection away"],
  ["arrows", "from node to node in a graph"],
  ["Enter", "select; on a module: open or close"],
  ["Shift + Enter", "or Shift + click: ask why two were not merged, the selected one and this one"],
  ["1  2  3", "after the passes, as traced, your code"],
  ["m  n  p  w", "memory, not fused, passes, time"],
  ["+  −  0", "zoom, show everything"],
  ["t", "dark or light"],
  ["wheel, drag", "zoom, pan (Shift + wheel: sideways)"],
];
FG.showHelp = () => {
  const box = FG.byId("help-box");
  box.replaceChildren(
    FG.el("h2", {}, "Keys and mouse"),
    FG.el(
      "table",
      {},
      FG.el(
        "tbody",
        {},
        FG.HELP.map(([keys, text]) => FG.el("tr", {}, FG.el("td", {}, FG.el("kbd", {}, keys)), FG.el("td", {}, text))),
      ),
    ),
    FG.el(
      "p",
      { class: "muted" },
      "A colour is a kernel: the same in both graphs, in the bars, in the memory and beside your lines. Dashed: a fusion that was refused; click for the rule. Graph layout: dagre 3.1.3 (MIT).",
    ),
    FG.el("button", { class: "tool", onclick: () => box.close() }, "Close"),
  );
  box.showModal();
};

FG.setUpKeys = () =>
  document.addEventListener("keydown", (event) => {
    if (
      event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      event.target.matches("input, select, textarea") ||
      FG.byId("help-box").open
    )
      return;
    const dock = { m: "memory", n: "refused", p: "passes", w: "time" }[event.key];
    const left = { 1: "optimised", 2: "graph", 3: "source" }[event.key];
    if (event.key === "/") {
      event.preventDefault();
      FG.byId("search").focus();
    } else if (event.key === "Escape") {
      FG.tip("");
      FG.select(null);
    } else if (event.key === "?") FG.showHelp();
    else if (event.key === "t") FG.toggleShade();
    else if (dock) {
      FG.state.dock = dock;
      FG.showDock();
    } else if (left) FG.chooseLeft(left);
  });

FG.showProgram = (number) => {
  FG.state.program = number;
  FG.state.selection = null;
  FG.state.asked = [null, null];
  const items = FG.report.programs.map((program, i) => [i, program.phase === "step" ? program.name : program.phase]);
  if (items.length > 1) FG.tabs(FG.byId("programs"), items, number, FG.showProgram);
  FG.showSummary();
  FG.drawKernels();
  FG.showLeft();
  FG.showDock();
  FG.showDetail();
};

FG.fromHash = () => {
  const match = decodeURIComponent(location.hash.slice(1)).match(/^(kernel|line|buffer|op-(graph|optimised))-(.*)$/);
  if (!match) return;
  const kind = match[2] ? "op" : match[1];
  const id = kind === "kernel" || kind === "op" ? Number(match[3]) : match[3];
  const known = {
    kernel: FG.program().kernelById,
    line: FG.program().lines,
    op: match[2] && FG.program()[match[2]].byId,
  }[kind];
  if (kind === "buffer" || known.has(id)) FG.select({ kind, id, ...(match[2] ? { graph: match[2] } : {}) });
};

FG.start = () => {
  try {
    document.documentElement.dataset.theme = localStorage.getItem("fusegraph-theme") || "auto";
  } catch {
    /* no storage */
  }
  FG.setShade();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", FG.setShade);
  FG.byId("theme").addEventListener("click", FG.toggleShade);
  FG.byId("help").addEventListener("click", FG.showHelp);
  FG.byId("title").append(
    FG.report.name,
    FG.el("span", {}, `  ${FG.report.backend} · fusegraph ${FG.report.fusegraph}`),
  );
  FG.state.left = "ops";
  FG.opCanvas = new FG.Canvas(FG.byId("op-canvas"), "Operations");
  FG.kernelCanvas = new FG.Canvas(FG.byId("fused-canvas"), "Kernels");
  FG.setUpTools();
  FG.setUpSplits();
  FG.setUpKeys();
  FG.setUpSearch();
  FG.showProgram(0);
  FG.fromHash();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
};
FG.start();
