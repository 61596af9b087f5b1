"use strict";
// The two drawings: operations on the left (traced, or after the passes), kernels on the right.
FG.trees = new Map();
FG.tree = () => {
  const key = `${FG.state.program}/${FG.state.graph}/${FG.state.scalars ? 1 : 0}`;
  if (!FG.trees.has(key)) FG.trees.set(key, FG.groupTree(FG.program(), FG.state.graph, FG.state.scalars));
  return FG.trees.get(key);
};

FG.refusedPairs = (program) => {
  if (!program.refusedPairs) {
    program.refusedPairs = new Map();
    for (const refusal of program.refusals)
      for (const from of refusal.from)
        for (const to of refusal.to) if (from !== to) FG.addTo(program.refusedPairs, `${from}>${to}`, refusal);
  }
  return program.refusedPairs;
};

// The dearest refusals stand out: nearly every edge between two kernels is a fusion that was refused.
FG.dear = (refused) => (refused.some((refusal) => refusal.number < 6) ? " dear" : "");

FG.drawOps = (fit = true) => {
  const canvas = FG.opCanvas;
  const tree = FG.tree();
  const drawing = FG.layoutTree(tree);
  FG.opDrawing = drawing;
  drawing.solid = drawing.items.filter((item) => !item.group || !item.open);
  const boxes = [];
  const elements = drawing.items.map((item) => {
    const element = item.group ? FG.groupElement(item) : FG.leafElement(item);
    boxes.push({ ...FG.boxOf(item), element, item });
    return element;
  });
  const frames = elements.filter((_, i) => drawing.items[i].group && drawing.items[i].open);
  const rest = elements.filter((element) => !frames.includes(element));
  const edges = drawing.edges.map((edge) => FG.opEdge(edge, canvas));
  canvas.show([...frames, ...edges.flat(), ...rest], boxes, drawing.width, drawing.height);
  if (fit) canvas.fit();
  FG.markOps();
};

FG.boxOf = (item) => ({ x: item.x, y: item.y, w: item.w, h: item.h });

FG.leafElement = (leaf) => {
  const { node } = leaf;
  const pill = node.op === "input" || FG.isScalarLeaf(leaf);
  const kernels = node.kernels.map((id) => `k${id}`).join(", ");
  const title = pill ? FG.leafText(leaf) : FG.nodeName(node);
  const fill = `var(--${FG.kind(node.op)})`;
  const element = FG.svg(
    "g",
    {
      class: `node${pill ? " pill" : ""}`,
      role: "button",
      transform: `translate(${leaf.x} ${leaf.y})`,
      "data-node": node.id,
      "aria-label": [
        FG.nodeName(node),
        FG.shape(node.shape),
        node.module,
        FG.place(node),
        kernels && `kernel ${kernels}`,
      ]
        .filter(Boolean)
        .join(", "),
    },
    FG.svg("rect", { class: "box", width: leaf.w, height: leaf.h, rx: pill ? leaf.h / 2 : 6, fill, style: { fill } }),
    node.kernels.slice(0, 3).map((id, i) =>
      FG.svg("rect", {
        x: 2 + 4 * i,
        y: 6,
        width: 3,
        height: leaf.h - 12,
        rx: 1.5,
        style: { fill: FG.kernelColour(id), stroke: "none" },
      }),
    ),
    FG.svg("text", { class: "name", x: leaf.w / 2, y: pill ? 13 : 14.5, "text-anchor": "middle" }, title),
    pill ? null : FG.svg("text", { class: "sub", x: leaf.w / 2, y: 27, "text-anchor": "middle" }, FG.shape(node.shape)),
  );
  FG.withTip(
    element,
    [
      FG.nodeName(node),
      `${node.dtype} ${FG.shape(node.shape)}`,
      node.module,
      FG.place(node),
      FG.sourceLine(node.file, node.line),
      kernels ? `kernel ${kernels}` : "",
    ]
      .filter(Boolean)
      .join("\n"),
  );
  return FG.pressable(element, (event) =>
    event.shiftKey
      ? FG.ask({ kind: "op", id: node.id, graph: FG.state.graph })
      : FG.select({ kind: "op", id: node.id, graph: FG.state.graph }),
  );
};

FG.groupElement = (group) => {
  const leaves = FG.leaves(group).filter((leaf) => !FG.isScalarLeaf(leaf));
  const kernels = FG.unique(leaves.flatMap((leaf) => leaf.node.kernels));
  const label = group.open ? group.label : FG.fitText(group.label, "name", 225);
  const head = group.open
    ? [
        FG.svg("rect", { class: "lid", width: group.w, height: HEAD - 2, rx: 6 }),
        FG.svg("text", { class: "name", x: 10, y: 14 }, `− ${label}`),
      ]
    : [
        FG.svg("text", { class: "name", x: group.w / 2, y: 15.5, "text-anchor": "middle" }, `+ ${label}`),
        FG.svg(
          "text",
          { class: "sub", x: group.w / 2, y: 29, "text-anchor": "middle" },
          `${leaves.length} ops, ${kernels.length} kernel${kernels.length === 1 ? "" : "s"}`,
        ),
      ];
  const element = FG.svg(
    "g",
    {
      class: `node group${group.open ? " open" : ""}`,
      role: "button",
      transform: `translate(${group.x} ${group.y})`,
      "aria-expanded": String(group.open),
      "data-group": group.key,
      "aria-label": `module ${group.label}, ${leaves.length} operations`,
    },
    FG.svg("rect", {
      class: "box",
      width: group.w,
      height: group.h,
      rx: 8,
      style: { fill: group.open ? "none" : "var(--panel)" },
    }),
    head,
  );
  if (!group.open)
    FG.withTip(element, `${group.label}\n${leaves.length} operations in ${kernels.length} kernels; click to open`);
  return FG.pressable(element, () => {
    group.open = !group.open;
    FG.drawOps(false);
    FG.opCanvas.boxes.find((box) => box.item === group)?.element.focus();
  });
};

FG.opEdge = (edge, canvas) => {
  const program = FG.program();
  const inside = edge.pairs.every(([from, to]) => from.kernels.some((id) => to.kernels.includes(id)));
  const refused = inside
    ? []
    : FG.unique(
        edge.pairs.flatMap(([from, to]) =>
          from.kernels.flatMap((a) => to.kernels.flatMap((b) => FG.refusedPairs(program).get(`${a}>${b}`) || [])),
        ),
      );
  const path = FG.svg("path", {
    class: `edge${FG.far(edge) ? " far" : ""}${inside ? " inside" : ""}${refused.length ? ` refused${FG.dear(refused)}` : ""}`,
    d: FG.route(edge, FG.opDrawing.solid),
    "marker-end": canvas.arrow,
  });
  edge.element = path;
  return refused.length
    ? [path, FG.refusedTarget(path, refused, () => FG.select({ kind: "why", refusal: refused[0].number }))]
    : [path];
};

FG.refusedTarget = (path, refused, action, only = false) => {
  const target = FG.svg("path", { class: `edge-hit${only ? " only" : ""}`, d: path.getAttribute("d") });
  FG.withTip(
    target,
    refused
      .slice(0, 3)
      .map((r) => `Not fused: ${r.rule}\n${r.producer} → ${r.consumer} (${FG.bytes(r.bytes)})`)
      .join("\n"),
  );
  target.addEventListener("click", action);
  return target;
};

FG.markOps = () => {
  const related = FG.related(FG.state.selection);
  const nodes = related[FG.state.graph];
  const chosen = FG.state.selection?.kind === "op" ? FG.state.selection.id : null;
  FG.opCanvas.svg.classList.toggle("focusing", nodes.size > 0);
  const hits = [];
  for (const box of FG.opCanvas.boxes) {
    const { item } = box;
    const hit = item.group
      ? !item.open && FG.leaves(item).some((leaf) => nodes.has(leaf.node.id))
      : nodes.has(item.node.id);
    box.element.classList.toggle("hit", hit);
    box.element.classList.toggle("chosen", !item.group && item.node.id === chosen);
    if (hit) hits.push(box);
  }
  for (const edge of FG.opDrawing.edges)
    edge.element.classList.toggle(
      "hit",
      edge.pairs.some(([a, b]) => nodes.has(a.id) && nodes.has(b.id)),
    );
  return hits;
};

FG.drawKernels = () => {
  const program = FG.program();
  const boxes = program.kernels.map((kernel) => ({ key: String(kernel.id), kernel, w: 188, h: 50 }));
  const flows = new Map();
  for (const edge of program.edges) FG.addTo(flows, `${edge.from}>${edge.to}`, edge);
  const { width, height, routes } = FG.dagre(
    boxes,
    [...flows.keys()].map((key) => key.split(">")),
    { nodesep: 14, ranksep: 30, edgesep: 8 },
  );
  const byKey = new Map(boxes.map((box) => [box.key, box]));
  const most = Math.max(Number.MIN_VALUE, ...program.kernels.map(FG.weight));
  FG.kernelEdges = [];
  const ends = (key) => key.split(">").map((id) => byKey.get(id));
  const paths = [...flows].flatMap(([key, edges]) =>
    FG.kernelEdge(
      key,
      edges,
      routes.has(key) ? FG.curve(routes.get(key)) : FG.bow(...ends(key), boxes),
      !routes.has(key),
    ),
  );
  const extra = [...FG.refusedPairs(program)]
    .filter(([key]) => !flows.has(key))
    .flatMap(([key, refused]) => {
      const [from, to] = ends(key);
      return from && to ? FG.kernelEdge(key, [], FG.bow(from, to, boxes), true) : [];
    });
  for (const box of boxes) box.element = FG.kernelElement(box, most);
  FG.kernelCanvas.show(
    [...extra, ...paths, ...boxes.map((box) => box.element)],
    boxes,
    width + (routes.size < flows.size ? 120 : 0),
    height,
  );
  FG.kernelCanvas.fit();
  FG.byId("fused-count").textContent =
    `${program.kernels.length} kernel${program.kernels.length === 1 ? "" : "s"}, ${FG.bytes(program.edges.reduce((sum, edge) => sum + edge.bytes, 0))} between them`;
  FG.markKernels();
};

// How much a kernel weighs in bars and orders: its time, else its estimate, else (without either) the bytes that it moves.
FG.weight = (kernel) => kernel.time_ns ?? kernel.floor_ns ?? kernel.bytes_read + kernel.bytes_written;
FG.timed = (program = FG.program()) =>
  program.kernels.some((kernel) => kernel.time_ns !== null)
    ? "measured"
    : program.kernels.some((kernel) => kernel.floor_ns !== null)
      ? "estimate"
      : null;
FG.kernelTime = (kernel) => kernel.time_ns ?? kernel.floor_ns;
FG.kernelEdge = (key, edges, d, far) => {
  const [from, to] = key.split(">").map(Number);
  const refused = FG.refusedPairs(FG.program()).get(key) || [];
  const bytes = edges.reduce((sum, edge) => sum + edge.bytes, 0);
  const only = edges.length ? "" : " only";
  const width = edges.length ? 0.9 + Math.log10(1 + bytes / 1000) * 0.7 : 1;
  const path = FG.svg("path", {
    class: `edge${far ? " far" : ""}${refused.length ? ` refused${FG.dear(refused)}` : ""}${only}`,
    d,
    "marker-end": FG.kernelCanvas.arrow,
    style: { "stroke-width": `${width.toFixed(2)}px` },
  });
  FG.kernelEdges.push({ from, to, element: path });
  const hit = FG.svg("path", { class: `edge-hit${only}`, d });
  const moved = edges.map((edge) => `${edge.buffer}: ${FG.bytes(edge.bytes)}`);
  FG.withTip(
    hit,
    [
      `k${from} → k${to}`,
      ...moved,
      ...refused.slice(0, 3).map((r) => `Not fused: ${r.rule} (${FG.bytes(r.bytes)})`),
    ].join("\n"),
  );
  hit.addEventListener("click", () => FG.askBoth({ kind: "kernel", id: from }, { kind: "kernel", id: to }));
  return [path, hit];
};

FG.kernelElement = (box, most) => {
  const { kernel } = box;
  const title = FG.kernelTitle(kernel);
  const colour = FG.kernelColour(kernel.id);
  const share = FG.weight(kernel) / most;
  const element = FG.svg(
    "g",
    {
      class: "node",
      role: "button",
      transform: `translate(${box.x} ${box.y})`,
      "data-kernel": kernel.id,
      "aria-label": `kernel ${kernel.id}, ${title}, ${FG.shape(kernel.space)}, ${kernel.schedule}`,
    },
    FG.svg("rect", { class: "box", width: box.w, height: box.h, rx: 8, style: { fill: "var(--panel)" } }),
    FG.svg("rect", { x: 3, y: 6, width: 5, height: box.h - 12, rx: 2.5, style: { fill: colour, stroke: "none" } }),
    FG.svg("text", { class: "name", x: 15, y: 17 }, FG.fitText(title, "name", box.w - 22)),
    FG.svg(
      "text",
      { class: "sub", x: 15, y: 31 },
      FG.fitText(
        `k${kernel.id} · ${FG.shape(kernel.space)} · ${FG.bytes(kernel.bytes_read + kernel.bytes_written)}`,
        "sub",
        box.w - 22,
      ),
    ),
    FG.svg("rect", {
      x: 15,
      y: 38,
      width: box.w - 25,
      height: 4,
      rx: 2,
      style: { fill: "var(--line)", stroke: "none" },
    }),
    FG.svg("rect", {
      x: 15,
      y: 38,
      width: Math.max(1.5, (box.w - 25) * share),
      height: 4,
      rx: 2,
      style: { fill: colour, stroke: "none" },
    }),
  );
  const time =
    kernel.time_ns !== null
      ? FG.time(kernel.time_ns)
      : kernel.floor_ns !== null
        ? `at least ${FG.time(kernel.floor_ns)}`
        : FG.bytes(kernel.bytes_read + kernel.bytes_written);
  FG.withTip(
    element,
    [
      `k${kernel.id} ${kernel.name} (${kernel.schedule})`,
      FG.unique(kernel.operations).join(", "),
      `${time}, ${FG.flops(kernel.flops)}`,
      ...kernel.lines.slice(0, 5),
    ].join("\n"),
  );
  return FG.pressable(element, (event) =>
    event.shiftKey ? FG.ask({ kind: "kernel", id: kernel.id }) : FG.select({ kind: "kernel", id: kernel.id }),
  );
};

FG.markKernels = () => {
  const asked = FG.related(FG.state.selection).kernels;
  FG.kernelCanvas.svg.classList.toggle("focusing", asked.size > 0);
  const hits = FG.kernelCanvas.boxes.filter((box) => {
    const hit = asked.has(box.kernel.id);
    box.element.classList.toggle("hit", hit);
    box.element.classList.toggle(
      "chosen",
      FG.state.selection?.kind === "kernel" && FG.state.selection.id === box.kernel.id,
    );
    return hit;
  });
  const touches =
    FG.state.selection?.kind === "why"
      ? (edge) => asked.has(edge.from) && asked.has(edge.to)
      : (edge) => asked.has(edge.from) || asked.has(edge.to);
  for (const edge of FG.kernelEdges) edge.element.classList.toggle("hit", asked.size > 0 && touches(edge));
  return hits;
};
