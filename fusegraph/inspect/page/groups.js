"use strict";
// The op graph as a tree of modules. Groups open and close; inputs and scalars stand beside each group that reads them, so that
// no line crosses the whole drawing. A very large group without modules is divided into its separate parts.
const VISIBLE_AT_FIRST = 64; // boxes that are drawn before anyone opens a group
const LARGE_GROUP = 36;

FG.smallNodes = (graph) => {
  const small = new Set();
  for (const node of graph.nodes) {
    const size = node.shape.reduce((product, extent) => product * extent, 1);
    const fromSmall = node.inputs.length > 0 && node.inputs.every((id) => small.has(id));
    const scalar = size === 1 && (node.op === "input" || node.inputs.length === 0 || fromSmall);
    if (["constant", "iota", "full"].includes(node.op) || scalar || (fromSmall && FG.kind(node.op) === "view"))
      small.add(node.id);
  }
  return small;
};

FG.ancestors = (graph, ids) => {
  const found = new Set();
  const stack = [...ids];
  while (stack.length) {
    const id = stack.pop();
    if (found.has(id)) continue;
    found.add(id);
    stack.push(...graph.byId.get(id).inputs);
  }
  return found;
};

// The kernels of the forward part: those that are the first to compute something that the outputs need (others may compute it
// again for a gradient). In a program that is no whole step there is nothing to tell apart.
FG.forwardKernels = (program) => {
  if (!program.forwardKernels) {
    const { optimised } = program;
    const whole = program.phase === "step" && optimised.updates.length > 0;
    const needed = whole ? FG.ancestors(optimised, optimised.outputs) : optimised.byId.keys();
    const small = FG.smallNodes(optimised);
    const first = [...needed].filter((id) => !small.has(id)).map((id) => Math.min(...optimised.byId.get(id).kernels));
    program.forwardKernels = new Set(whole ? first : program.kernels.map((kernel) => kernel.id));
  }
  return program.forwardKernels;
};

FG.groupTree = (program, name, showScalars) => {
  const graph = program[name];
  const small = FG.smallNodes(graph);
  const forward = program.phase === "step" && graph.updates.length ? FG.ancestors(graph, graph.outputs) : null;
  const root = FG.newGroup("", null, "");
  const home = new Map(); // node id -> its leaf
  for (const node of graph.nodes) {
    if (node.op === "input" || small.has(node.id)) continue;
    let at = root;
    for (const part of FG.groupPath(node, forward)) at = FG.childGroup(at, part);
    home.set(node.id, FG.newLeaf(node, at, String(node.id)));
  }
  FG.tidyGroup(root, graph);
  FG.divideLarge(root, graph, home, small);
  const edges = FG.groupEdges(graph, home, small, showScalars);
  FG.openSome(root);
  return { root, home, edges, small };
};

FG.groupPath = (node, forward) => {
  const phase = forward ? [forward.has(node.id) ? "forward" : "backward"] : [];
  if (node.module) return [...phase, ...node.module.split(".")];
  if (!node.file) return phase;
  const line = `\u0000${FG.lineKey(node.file, node.line)}`; // cannot clash with a module's name
  return forward && !forward.has(node.id) ? [line] : [...phase, line];
};

FG.newGroup = (key, parent, part) => ({
  group: true,
  key,
  parent,
  part,
  label: FG.groupLabel(part),
  children: [],
  map: new Map(),
  open: false,
});
FG.newLeaf = (node, parent, key) => {
  const leaf = { group: false, key, node, parent };
  parent.children.push(leaf);
  return leaf;
};
FG.groupLabel = (part) => {
  if (!part.startsWith("\u0000")) return part;
  const [, file, line] = part.slice(1).match(/^(.*):(\d+)$/s);
  const text = FG.sourceLine(file, line);
  return text ? FG.cut(text, 34) : `${FG.base(file)}:${line}`;
};
FG.childGroup = (group, part) => {
  if (!group.map.has(part)) {
    const child = FG.newGroup(`${group.key}/${part}`, group, part);
    group.map.set(part, child);
    group.children.push(child);
  }
  return group.map.get(part);
};

// A group of one leaf is that leaf; a group whose only child is a group is named after both.
FG.tidyGroup = (group) => {
  group.children.filter((child) => child.group).forEach((child) => FG.tidyGroup(child));
  group.children = group.children.map((child) => {
    if (!child.group || child.children.length !== 1) return child;
    const [only] = child.children;
    if (only.group) only.label = `${child.label}.${only.label}`;
    only.parent = group;
    return only;
  });
};

FG.leaves = (group) => group.children.flatMap((child) => (child.group ? FG.leaves(child) : [child]));

FG.divideLarge = (group, graph, home, small) => {
  group.children.filter((child) => child.group).forEach((child) => FG.divideLarge(child, graph, home, small));
  const loose = group.children.filter((child) => !child.group);
  if (loose.length <= LARGE_GROUP) return;
  const inside = new Map(loose.map((leaf) => [leaf.node.id, leaf]));
  const updated = new Map(graph.updates.map(([input, value]) => [value, FG.nodeName(graph.byId.get(input))]));
  let parts = FG.components(inside, graph);
  if (parts.length === 1) parts = FG.segments(parts[0]);
  const parents = new Map();
  parts.forEach((part, number) => {
    if (part.length < 2) return;
    const names = part
      .map((leaf) => updated.get(leaf.node.id))
      .filter(Boolean)
      .sort((a, b) => a.length - b.length);
    const child = FG.newGroup(`${group.key}/#${number}`, group, names[0] || `part ${number + 1} of ${parts.length}`);
    for (const leaf of part) {
      leaf.parent = child;
      child.children.push(leaf);
      parents.set(leaf, child);
    }
  });
  group.children = FG.unique(group.children.map((child) => parents.get(child) || child));
};

FG.components = (inside, graph) => {
  const part = new Map();
  const parts = [];
  for (const leaf of inside.values()) {
    if (part.has(leaf)) continue;
    const stack = [leaf];
    const found = [];
    while (stack.length) {
      const at = stack.pop();
      if (part.has(at)) continue;
      part.set(at, parts.length);
      found.push(at);
      for (const id of [...at.node.inputs, ...graph.users.get(at.node.id)])
        if (inside.has(id)) stack.push(inside.get(id));
    }
    parts.push(found.sort((a, b) => a.node.id - b.node.id));
  }
  return parts;
};
FG.segments = (leaves) => {
  const count = Math.ceil(leaves.length / LARGE_GROUP);
  const size = Math.ceil(leaves.length / count);
  return Array.from({ length: count }, (_, i) => leaves.slice(i * size, (i + 1) * size));
};

// Edges between leaves; an input (and, if wanted, a scalar) gets a leaf in each group that reads it.
FG.groupEdges = (graph, home, small, showScalars) => {
  const copies = new Map();
  const edges = [];
  const leafFor = (id, parent) => {
    if (home.has(id)) return home.get(id);
    const node = graph.byId.get(id);
    if (small.has(id) && !showScalars) return null;
    const key = `${id}@${parent.key}`;
    if (!copies.has(key)) {
      const leaf = FG.newLeaf(node, parent, key);
      copies.set(key, leaf);
      for (const input of FG.unique(node.inputs)) {
        const from = leafFor(input, parent);
        if (from) edges.push([from, leaf]);
      }
    }
    return copies.get(key);
  };
  for (const [id, leaf] of [...home])
    for (const input of FG.unique(graph.byId.get(id).inputs)) {
      const from = leafFor(input, leaf.parent);
      if (from) edges.push([from, leaf]);
    }
  return edges;
};

// Groups open from the outside in, the forward part first, as long as the drawing stays small.
FG.openSome = (root) => {
  root.open = true;
  let shown = root.children.length;
  for (const start of root.children.filter((child) => child.group)) {
    const queue = [start];
    while (queue.length) {
      const group = queue.shift();
      if (shown + group.children.length > VISIBLE_AT_FIRST) continue;
      group.open = true;
      shown += group.children.length;
      queue.push(...group.children.filter((child) => child.group));
    }
  }
};

// What stands for a leaf in the drawing: itself, or the outermost closed group around it.
FG.shownAs = (leaf) => {
  let shown = leaf;
  for (let at = leaf.parent; at; at = at.parent) if (!at.open) shown = at;
  return shown;
};
FG.reveal = (leaf) => {
  let changed = false;
  for (let at = leaf.parent; at; at = at.parent) {
    changed ||= !at.open;
    at.open = true;
  }
  return changed;
};
