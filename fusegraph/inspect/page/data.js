"use strict";
// The report, with indexes: which kernels a node, a line, a buffer belongs to, and what is related to a selection.
FG.report = JSON.parse(FG.byId("report").textContent);
FG.sources = FG.report.sources;
FG.program = () => FG.report.programs[FG.state.program];

FG.lineKey = (file, line) => `${file}:${line}`;

FG.prepare = (program) => {
  const lines = new Map();
  for (const name of ["graph", "optimised"]) {
    const graph = program[name];
    graph.byId = new Map(graph.nodes.map((node) => [node.id, node]));
    graph.users = new Map(graph.nodes.map((node) => [node.id, []]));
    for (const node of graph.nodes) for (const id of FG.unique(node.inputs)) graph.users.get(id)?.push(node.id);
    for (const node of graph.nodes) {
      if (!node.file) continue;
      const key = FG.lineKey(node.file, node.line);
      if (!lines.has(key))
        lines.set(key, {
          file: node.file,
          line: node.line,
          modules: new Set(),
          kernels: new Set(),
          graph: [],
          optimised: [],
        });
      const entry = lines.get(key);
      entry[name].push(node.id);
      if (node.module) entry.modules.add(node.module);
      node.kernels.forEach((id) => entry.kernels.add(id));
    }
  }
  program.lines = lines;
  program.kernelById = new Map(program.kernels.map((kernel) => [kernel.id, kernel]));
  program.readers = new Map();
  program.writers = new Map();
  for (const kernel of program.kernels) {
    for (const part of kernel.reads) FG.addTo(program.readers, part.buffer, kernel.id);
    for (const part of kernel.writes) FG.addTo(program.writers, part.buffer, kernel.id);
  }
  program.refusals.forEach((refusal, number) => {
    refusal.number = number;
    refusal.from = FG.kernelsOfRefused(program, refusal, "producer");
    refusal.to = FG.kernelsOfRefused(program, refusal, "consumer");
  });
  return program;
};

FG.addTo = (map, key, value) => (map.has(key) ? map.get(key).push(value) : map.set(key, [value]));

FG.kernelsOfRefused = (program, refusal, side) => {
  const kernel = refusal[`${side}_kernel`];
  if (kernel !== null && kernel !== undefined) return [kernel];
  const node = program.optimised.byId.get(refusal[`${side}_node`]);
  return node ? node.kernels : [];
};

FG.report.programs.forEach(FG.prepare);

FG.nodeName = (node) => (node.op === "input" ? node.name || node.attributes.name || `input ${node.id}` : node.op);
FG.kernelTitle = (kernel) => {
  const order = { contract: 0, gather: 1, reduce: 1 };
  const names = FG.unique(kernel.operations)
    .filter((name) => !["reshape", "expand", "permute", "constant", "cast", "window"].includes(name))
    .sort((a, b) => (order[FG.kind(a)] ?? 2) - (order[FG.kind(b)] ?? 2));
  return names.length ? names.join(" + ") : FG.unique(kernel.operations).join(" + ") || "copy";
};
FG.place = (node) => (node.file ? `${FG.base(node.file)}:${node.line}` : "");
FG.sourceLine = (file, line) => (FG.sources[file] || {})[line]?.trim() || "";

// What belongs to a selection: kernels, nodes of either graph, lines, buffers. Everything that highlights asks here.
FG.related = (selection, program = FG.program()) => {
  const found = { kernels: new Set(), graph: new Set(), optimised: new Set(), lines: new Set(), buffers: new Set() };
  if (!selection) return found;
  const { kind, id } = selection;
  const addKernelNodes = () => {
    for (const name of ["graph", "optimised"])
      for (const node of program[name].nodes)
        if (node.kernels.some((kernel) => found.kernels.has(kernel))) found[name].add(node.id);
  };
  if (kind === "kernel") {
    found.kernels.add(id);
    addKernelNodes();
  } else if (kind === "op") {
    const node = program[selection.graph].byId.get(id);
    found[selection.graph].add(id);
    node.kernels.forEach((kernel) => found.kernels.add(kernel));
    const other = selection.graph === "graph" ? "optimised" : "graph";
    for (const twin of program[other].nodes)
      if (
        twin.op === node.op &&
        twin.file === node.file &&
        twin.line === node.line &&
        twin.module === node.module &&
        FG.nodeName(twin) === FG.nodeName(node) &&
        String(twin.shape) === String(node.shape)
      )
        found[other].add(twin.id);
    if (node.file) found.lines.add(FG.lineKey(node.file, node.line));
  } else if (kind === "line") {
    const entry = program.lines.get(id);
    found.lines.add(id);
    entry?.kernels.forEach((kernel) => found.kernels.add(kernel));
    for (const name of ["graph", "optimised"]) entry?.[name].forEach((node) => found[name].add(node));
  } else if (kind === "why") {
    (FG.state.whyKernels || []).forEach((kernel) => found.kernels.add(kernel));
    for (const item of FG.state.asked) {
      if (item?.kind === "op") {
        found[item.graph].add(item.id);
        const { file, line } = program[item.graph].byId.get(item.id);
        if (file) found.lines.add(FG.lineKey(file, line));
      }
    }
    if (!found.graph.size && !found.optimised.size) addKernelNodes();
  } else if (kind === "buffer") {
    found.buffers.add(id);
    for (const map of [program.readers, program.writers])
      (map.get(id) || []).forEach((kernel) => found.kernels.add(kernel));
  }
  if (kind === "kernel") {
    for (const node of found.optimised) {
      const { file, line } = program.optimised.byId.get(node);
      if (file) found.lines.add(FG.lineKey(file, line));
    }
    const kernel = program.kernelById.get(id);
    [...kernel.reads, ...kernel.writes].forEach((part) => found.buffers.add(part.buffer));
  }
  return found;
};

// The texts of all kernels; a large page holds them compressed, and unpacks them when the first one is wanted.
FG.texts = async () => {
  if (!FG.loadedTexts) FG.loadedTexts = FG.readTexts(FG.byId("texts"));
  return FG.loadedTexts;
};
FG.readTexts = async (holder) => {
  if (holder.type === "application/json") return JSON.parse(holder.textContent);
  if (typeof DecompressionStream === "undefined")
    throw new Error("This browser is too old to unpack the texts; they are in the files beside this page.");
  const packed = Uint8Array.from(atob(holder.textContent.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
};
