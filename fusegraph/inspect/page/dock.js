"use strict";
// The lower panel: time a kernel, the memory arena over the kernels, refused fusions, passes.
FG.DOCK = [
  ["time", "Time", "Time of each kernel"],
  ["memory", "Memory", "Buffers in the arena"],
  ["refused", "Not fused", "Refused fusions, dearest first"],
  ["passes", "Passes", "Passes and rewrites"],
];
FG.showDock = () => {
  const choose = (key) => {
    FG.state.dock = key;
    FG.showDock();
  };
  const program = FG.program();
  const items = FG.DOCK.map(([key, label, title]) => [
    key,
    key === "refused" ? `${label} (${program.refusals.length})` : label,
    title,
  ]);
  FG.tabs(FG.byId("dock-tabs"), items, FG.state.dock, choose);
  const [content, note] = {
    time: FG.timePanel,
    memory: FG.memoryPanel,
    refused: FG.refusedPanel,
    passes: FG.passesPanel,
  }[FG.state.dock]();
  FG.byId("dock").replaceChildren(content);
  FG.byId("dock-note").textContent = note;
  FG.markDock();
};

FG.timePanel = () => {
  const { kernels } = FG.program();
  const timed = FG.timed();
  const measured = timed === "measured";
  const most = Math.max(
    Number.MIN_VALUE,
    ...kernels.map((kernel) => Math.max(FG.weight(kernel), timed ? (kernel.floor_ns ?? 0) : 0)),
  );
  const total = kernels.reduce((sum, kernel) => sum + FG.weight(kernel), 0);
  const what = measured ? "measured (mark: estimate)" : timed ? "estimate" : "bytes moved (no time is known)";
  const heads = [
    "k",
    "kernel",
    what,
    "time",
    "share",
    "moved",
    "arithmetic",
    ...(measured ? ["GB/s", "GFLOP/s", "of roofline"] : []),
  ];
  const rows = kernels.map((kernel) => FG.timeRow(kernel, most, total, measured));
  const table = FG.el(
    "table",
    { class: "list" },
    FG.el(
      "thead",
      {},
      FG.el(
        "tr",
        {},
        heads.map((text, i) => FG.el("th", { scope: "col", class: i > 2 ? "num" : null }, text)),
      ),
    ),
    FG.el("tbody", {}, rows),
  );
  const notes = {
    measured: `${FG.time(total)} in all kernels, measured`,
    estimate: `at least ${FG.time(total)} by the cost model; profile() measures`,
  };
  return [table, notes[timed] || "profile() measures the time of each kernel"];
};
FG.timeRow = (kernel, most, total, measured) => {
  const meter = FG.el(
    "div",
    { class: "meter", style: { "--k": FG.kernelColour(kernel.id) } },
    FG.el("i", { style: { width: `${(100 * FG.weight(kernel)) / most}%` } }),
    measured && kernel.floor_ns !== null
      ? FG.el("em", {
          title: "estimate, at least",
          style: { left: `${Math.min(99.5, (100 * kernel.floor_ns) / most)}%` },
        })
      : null,
  );
  const rates = [kernel.gb_s, kernel.gflop_s].map((value) => (value === null ? "" : value.toFixed(1)));
  const cells = [
    FG.kernelTime(kernel) === null ? "" : FG.time(FG.kernelTime(kernel)),
    total ? `${((100 * FG.weight(kernel)) / total).toFixed(1)} %` : "",
    FG.bytes(kernel.bytes_read + kernel.bytes_written),
    FG.flops(kernel.flops),
    ...(measured
      ? [...rates, kernel.share_of_roofline === null ? "" : `${(100 * kernel.share_of_roofline).toFixed(0)} %`]
      : []),
  ];
  return FG.pressable(
    FG.el(
      "tr",
      { tabindex: 0, "data-kernel": kernel.id },
      FG.el("td", {}, FG.badge(kernel.id)),
      FG.el("td", { class: "label" }, FG.cut(FG.kernelTitle(kernel), 34)),
      FG.el("td", { style: { width: "34%" } }, meter),
      cells.map((text) => FG.el("td", { class: "num" }, text)),
    ),
    () => FG.select({ kind: "kernel", id: kernel.id }),
  );
};

FG.refusedPanel = () => {
  const { refusals } = FG.program();
  const form = FG.el(
    "button",
    {
      class: "tool",
      onclick: () => {
        FG.state.asked = [null, null];
        FG.select({ kind: "why" });
      },
    },
    "Why were two not merged?",
  );
  return [
    FG.el(
      "div",
      {},
      FG.el("div", { class: "ask" }, form),
      refusals.length ? FG.refusalTable(refusals) : FG.el("p", {}, "No fusion was refused."),
    ),
    "dearest first; dashed in the graphs",
  ];
};

FG.passesPanel = () => {
  const program = FG.program();
  const most = Math.max(1, ...program.passes.map((pass) => Math.max(pass.nodes_before, pass.nodes_after)));
  const rows = program.passes.map((pass) =>
    FG.el(
      "tr",
      {},
      FG.el("td", {}, pass.name),
      FG.el("td", { class: "num" }, String(pass.nodes_before)),
      FG.el("td", { class: "num" }, String(pass.nodes_after)),
      FG.el(
        "td",
        { class: "num" },
        pass.nodes_after === pass.nodes_before
          ? pass.changed
            ? "changed"
            : "–"
          : `${pass.nodes_after > pass.nodes_before ? "+" : "−"}${Math.abs(pass.nodes_after - pass.nodes_before)}`,
      ),
      FG.el(
        "td",
        { style: { width: "40%" } },
        FG.el("div", { class: "meter" }, FG.el("i", { style: { width: `${(100 * pass.nodes_after) / most}%` } })),
      ),
      FG.el("td", { class: "num" }, `${(1000 * pass.seconds).toFixed(1)} ms`),
    ),
  );
  const table = FG.el(
    "table",
    { class: "list" },
    FG.el(
      "thead",
      {},
      FG.el(
        "tr",
        {},
        ["pass", "nodes before", "after", "change", "", "time"].map((text) => FG.el("th", { scope: "col" }, text)),
      ),
    ),
    FG.el("tbody", {}, rows),
  );
  const rewrites = FG.rewriteChips(program.rewrites);
  return [
    FG.el("div", {}, table, rewrites.length ? FG.section("Rewrites that fired", FG.chips(rewrites)) : null),
    `${program.graph.nodes.length} nodes as traced, ${program.optimised.nodes.length} after the passes`,
  ];
};
// Recorded as {rule, count, text}; a plain list of names or a mapping to counts will do as well.
FG.rewriteChips = (rewrites) =>
  (Array.isArray(rewrites) ? rewrites : Object.entries(rewrites || {})).map((item) => {
    const [name, count, text] = Array.isArray(item)
      ? item
      : typeof item === "string"
        ? [item, ""]
        : [item.rule ?? item.name, item.count, item.text];
    return FG.el(
      "span",
      { class: "chip", title: text },
      name,
      " ",
      FG.el("span", { class: "muted" }, count === "" ? "" : `×${count}`),
    );
  });

FG.memoryPanel = () => {
  const { memory, kernels } = FG.program();
  const order = new Map(kernels.map((kernel, i) => [kernel.id, i]));
  const buffers = memory.buffers.filter(
    (buffer) => buffer.offset !== null && buffer.offset !== undefined && buffer.bytes > 0,
  );
  const note = `arena ${FG.bytes(memory.arena_bytes)}; without sharing ${FG.bytes(memory.unshared_bytes)}${memory.unfused_peak_bytes ? `; unfused peak ${FG.bytes(memory.unfused_peak_bytes)}` : ""}`;
  if (!buffers.length)
    return [FG.el("p", {}, "No temporary memory: every kernel writes only outputs and states."), note];
  const [width, height, left, foot] = [
    Math.max(640, FG.byId("dock").clientWidth - 26),
    Math.max(130, FG.byId("dock").clientHeight - 26),
    70,
    18,
  ];
  const column = (width - left) / Math.max(1, kernels.length);
  const scale = (height - foot) / Math.max(1, memory.arena_bytes);
  const shapes = buffers.map((buffer) => FG.bufferShape(buffer, order, { left, column, scale }));
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => {
    const y = part * (height - foot);
    return [
      FG.svg("line", { class: "axis", x1: left, x2: width, y1: y, y2: y }),
      FG.svg(
        "text",
        { x: left - 6, y: Math.min(height - foot, Math.max(9, y + 3)), "text-anchor": "end" },
        FG.bytes(Math.round(part * memory.arena_bytes)),
      ),
    ];
  });
  const labels = kernels.map((kernel, i) =>
    column >= 22 || i % Math.ceil(22 / column) === 0
      ? FG.svg("text", { x: left + (i + 0.5) * column, y: height - 4, "text-anchor": "middle" }, `k${kernel.id}`)
      : null,
  );
  const svg = FG.svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": "Memory arena: offset by kernel" },
    ticks.flat(),
    labels,
    shapes,
  );
  return [FG.el("div", { class: "memory" }, svg), note];
};
FG.bufferShape = (buffer, order, { left, column, scale }) => {
  const [first, last] = [order.get(buffer.first) ?? 0, order.get(buffer.last) ?? order.size - 1];
  const box = {
    x: left + first * column,
    y: buffer.offset * scale,
    width: Math.max(2, (last - first + 1) * column),
    height: Math.max(1.5, buffer.bytes * scale),
  };
  const writer = (FG.program().writers.get(buffer.name) || [buffer.first])[0];
  const rect = FG.svg("rect", {
    ...box,
    rx: 2,
    tabindex: 0,
    role: "button",
    "data-buffer": buffer.name,
    "aria-label": `${buffer.name}, ${FG.bytes(buffer.bytes)}, kernels ${buffer.first} to ${buffer.last}`,
    style: { fill: FG.kernelColour(writer) },
  });
  FG.withTip(
    rect,
    `${buffer.name}: ${FG.bytes(buffer.bytes)} at offset ${buffer.offset}\nfrom k${buffer.first} to k${buffer.last}`,
  );
  FG.pressable(rect, () => FG.select({ kind: "buffer", id: buffer.name }));
  const fits = box.height > 13 && box.width > buffer.name.length * 6.4 + 8;
  return [rect, fits ? FG.svg("text", { class: "on", x: box.x + 5, y: box.y + 12 }, buffer.name) : null];
};

FG.markDock = () => {
  const related = FG.related(FG.state.selection);
  for (const row of FG.byId("dock").querySelectorAll("tr[data-kernel]"))
    row.classList.toggle("hit", related.kernels.has(Number(row.dataset.kernel)));
  for (const row of FG.byId("dock").querySelectorAll("tr[data-refusal]"))
    row.classList.toggle("hit", FG.state.selection?.refusal === Number(row.dataset.refusal));
  for (const rect of FG.byId("dock").querySelectorAll("rect[data-buffer]")) {
    rect.classList.toggle("hit", related.buffers.has(rect.dataset.buffer));
    rect.classList.toggle("dim", related.buffers.size > 0 && !related.buffers.has(rect.dataset.buffer));
  }
};
