"use strict";
// "Why were these two not merged?": the answer for any two operations or kernels, in words.
FG.why = (first, second, program = FG.program()) => {
  const [a, b] = [first, second].map((item) => FG.kernelsOf(item, program));
  const name = (item) => FG.itemName(item, program);
  const missing = [first, second].filter((item, i) => ![a, b][i].length);
  if (missing.length) {
    const reason = missing.map((item) => `${name(item)}: ${FG.noKernel(item, program)}`).join(" ");
    return { good: false, words: [`There is no kernel to compare. ${reason}`], refusals: [] };
  }
  const shared = a.filter((kernel) => b.includes(kernel));
  if (shared.length) {
    const words = [
      `They were merged: both run in kernel ${shared.map((id) => `k${id} (${program.kernelById.get(id).name})`).join(" and ")}.`,
    ];
    if (a.length > 1 || b.length > 1)
      words.push(
        "One of them is computed in more than one kernel: computing it again is cheaper than moving it through memory.",
      );
    return { good: true, words, refusals: [], kernels: shared };
  }
  const direct = FG.refusalsBetween(a, b, program);
  if (direct.length) {
    const words = direct
      .slice(0, 4)
      .map(
        (r) => `${FG.sentence(r.rule)} (${r.producer} → ${r.consumer}; merging would have saved ${FG.bytes(r.bytes)}).`,
      );
    return { good: false, words, refusals: direct, kernels: [...a, ...b] };
  }
  return FG.whyFar(a, b, program);
};

FG.kernelsOf = (item, program) => (item.kind === "kernel" ? [item.id] : program[item.graph].byId.get(item.id).kernels);
FG.itemName = (item, program) => {
  if (item.kind === "kernel") return `k${item.id} ${FG.kernelTitle(program.kernelById.get(item.id))}`;
  const node = program[item.graph].byId.get(item.id);
  return `${FG.nodeName(node)}${node.op === "input" ? "" : ` #${node.id}`}`;
};
FG.noKernel = (item, program) => {
  const node = program[item.graph].byId.get(item.id);
  if (node.op === "input") return "an input is memory that kernels read; nothing computes it.";
  if (["constant", "full"].includes(node.op)) return "a constant is written into the code.";
  if (FG.kind(node.op) === "view") return "a view costs nothing: it became part of its readers' indices.";
  return item.graph === "graph"
    ? "a pass replaced or removed it; look for it in the graph after the passes."
    : "its value was folded into its readers.";
};
FG.sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

FG.refusalsBetween = (a, b, program) =>
  program.refusals.filter((refusal) => {
    const crosses = (from, to) =>
      refusal.from.some((id) => from.includes(id)) && refusal.to.some((id) => to.includes(id));
    return crosses(a, b) || crosses(b, a);
  });

// No refusal for the pair itself: is there a way from one to the other, and where along it was merging refused?
FG.whyFar = (a, b, program) => {
  const way = FG.kernelPath(a, b, program) || FG.kernelPath(b, a, program);
  const fused = program.kernels.some((kernel) => FG.unique(kernel.operations).length > 1);
  if (!fused)
    return {
      good: false,
      words: ["This program was compiled without fusion: every value has a kernel of its own."],
      refusals: [],
    };
  if (!way) {
    return {
      good: false,
      refusals: [],
      kernels: [...a, ...b],
      words: [
        "Neither needs the other's result: no value goes from one to the other, so merging them would save no memory traffic of its own.",
        "Independent kernels are put side by side only when they run over spaces of equal extents and share what they read.",
      ],
    };
  }
  const steps = way.slice(1).map((to, i) => FG.refusalsBetween([way[i]], [to], program)[0]);
  const found = steps.filter(Boolean);
  const words = [];
  if (way.length === 2)
    words.push(
      "One reads what the other writes, but no refusal is recorded for this pair: the search merged other kernels first, and what they became was not tried again.",
    );
  else
    words.push(
      `They are not neighbours: the value goes through ${way.map((id) => `k${id}`).join(" → ")}. Kernels merge only when nothing stands between them.`,
    );
  for (const refusal of found)
    words.push(
      `Along this way: ${refusal.producer} → ${refusal.consumer}: ${refusal.rule} (${FG.bytes(refusal.bytes)}).`,
    );
  return { good: false, words, refusals: found, kernels: way };
};

FG.kernelPath = (starts, goals, program) => {
  const next = new Map();
  for (const edge of program.edges) FG.addTo(next, edge.from, edge.to);
  const came = new Map(starts.map((id) => [id, null]));
  const queue = [...starts];
  while (queue.length) {
    const id = queue.shift();
    if (goals.includes(id)) {
      const way = [];
      for (let at = id; at !== null; at = came.get(at)) way.unshift(at);
      return way;
    }
    for (const to of next.get(id) || [])
      if (!came.has(to)) {
        came.set(to, id);
        queue.push(to);
      }
  }
  return null;
};
