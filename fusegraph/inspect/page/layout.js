"use strict";
// Positions by dagre: each open group is laid out by itself, then takes part as one box in the layout of the group around it.
// Many small layouts are much faster than one large one, and modules stay together.
const HEAD = 20;
const PAD = 9;

const LONG_WAY = 320; // an edge that leaves its group, and is longer, goes round the boxes between
const LONG_SPAN = 3; // layers; an edge over more (an activation kept for the backward part) is drawn as a bow beside the others

FG.dagre = (boxes, edges, options) => {
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ nodesep: 14, ranksep: 24, edgesep: 8, marginx: PAD, marginy: PAD, ...options });
  graph.setDefaultEdgeLabel(() => ({}));
  for (const box of boxes) graph.setNode(box.key, { width: box.w, height: box.h });
  const kept = FG.shortEdges(boxes, edges);
  for (const [from, to] of kept) graph.setEdge(from, to);
  dagre.layout(graph);
  for (const box of boxes) {
    const at = graph.node(box.key);
    box.x = at.x - box.w / 2;
    box.y = at.y - box.h / 2;
  }
  const routes = new Map(kept.map(([from, to]) => [`${from}>${to}`, graph.edge(from, to).points]));
  return { width: Math.max(0, graph.graph().width || 0), height: Math.max(0, graph.graph().height || 0), routes };
};

// The edges that make the layout: all but the long ones, and of a box that has only long ones the shortest. Boxes come in
// topological order of the program, except for cycles between groups, which dagre resolves.
FG.shortEdges = (boxes, edges) => {
  const rank = new Map(boxes.map((box) => [box.key, 0]));
  const into = new Map();
  for (const edge of edges) FG.addTo(into, edge[1], edge);
  for (const box of FG.inOrder(boxes, edges))
    for (const [from] of into.get(box) || []) rank.set(box, Math.max(rank.get(box), rank.get(from) + 1));
  const span = ([from, to]) => Math.abs(rank.get(to) - rank.get(from));
  const kept = new Set(edges.filter((edge) => span(edge) <= LONG_SPAN));
  const touched = new Set([...kept].flat());
  for (const edge of edges.filter((e) => !kept.has(e)).sort((a, b) => span(a) - span(b)))
    if (!touched.has(edge[0]) || !touched.has(edge[1])) {
      kept.add(edge);
      edge.forEach((key) => touched.add(key));
    }
  return edges.filter((edge) => kept.has(edge));
};
FG.inOrder = (boxes, edges) => {
  const missing = new Map(boxes.map((box) => [box.key, 0]));
  const next = new Map();
  for (const [from, to] of edges) {
    missing.set(to, missing.get(to) + 1);
    FG.addTo(next, from, to);
  }
  const ready = boxes.map((box) => box.key).filter((key) => missing.get(key) === 0);
  for (let i = 0; i < ready.length; i += 1)
    for (const to of next.get(ready[i]) || []) {
      missing.set(to, missing.get(to) - 1);
      if (missing.get(to) === 0) ready.push(to);
    }
  return ready; // without what stands on a cycle
};

// From right side to right side, bowed out so far that it passes the boxes that stand between.
FG.bow = (from, to, boxes) => {
  if (Math.abs(from.y - to.y) < from.h) return FG.dip(from, to);
  const [x1, y1, x2, y2] = [from.x + from.w, from.y + from.h / 2, to.x + to.w, to.y + to.h / 2];
  const [top, bottom] = [Math.min(y1, y2), Math.max(y1, y2)];
  const between = boxes.filter((box) => box !== from && box !== to && box.y + box.h > top && box.y < bottom);
  const clear = Math.max(x1, x2, ...between.map((box) => box.x + box.w)) + 10 + Math.min(70, 0.03 * (bottom - top));
  const out = Math.max(clear, (8 * clear - x1 - x2) / 6); // where the handles of the curve are, for its middle to be at `clear`
  return `M${x1.toFixed(1)} ${y1.toFixed(1)}C${out.toFixed(1)} ${y1.toFixed(1)} ${out.toFixed(1)} ${y2.toFixed(1)} ${(x2 + 1).toFixed(1)} ${y2.toFixed(1)}`;
};

// Between two boxes of one row: below them.
FG.dip = (from, to) => {
  const [x1, x2, y] = [from.x + from.w / 2, to.x + to.w / 2, Math.max(from.y + from.h, to.y + to.h)];
  const handle = (y + 22).toFixed(1);
  return `M${x1.toFixed(1)} ${y.toFixed(1)}C${x1.toFixed(1)} ${handle} ${x2.toFixed(1)} ${handle} ${x2.toFixed(1)} ${(y + 1).toFixed(1)}`;
};

FG.sizeOf = (item) => {
  if (item.group) return { w: Math.max(110, Math.min(250, FG.textWidth(`+ ${item.label}`, "name") + 22)), h: 38 };
  const name = FG.nodeName(item.node);
  if (item.node.op === "input" || FG.isScalarLeaf(item))
    return { w: FG.textWidth(FG.leafText(item), "pill") + 18, h: 19 };
  return {
    w: Math.max(64, Math.max(FG.textWidth(name, "name"), FG.textWidth(FG.shape(item.node.shape), "sub")) + 24),
    h: 34,
  };
};
FG.isScalarLeaf = (item) => item.key.includes("@");
FG.leafText = (item) =>
  FG.cut(item.node.op === "constant" ? String(item.node.attributes.value ?? "constant") : FG.nodeName(item.node), 30);

// Gives every visible item x, y, w, h (relative to the drawing), and the routes of the edges of each open group.
FG.layoutTree = (tree) => {
  const byGroup = new Map(); // open group -> set of "from>to" keys of its children
  const drawn = new Map();
  for (const [from, to] of tree.edges) {
    const [a, b] = [FG.shownAs(from), FG.shownAs(to)];
    if (a === b) continue;
    const [mine, theirs, group] = FG.meet(a, b);
    if (!byGroup.has(group)) byGroup.set(group, new Set());
    byGroup.get(group).add(`${mine.key}>${theirs.key}`);
    const key = `${a.key}>${b.key}`;
    if (!drawn.has(key)) drawn.set(key, { key, a, b, group, step: `${mine.key}>${theirs.key}`, pairs: [] });
    drawn.get(key).pairs.push([from.node, to.node]);
  }
  FG.layoutGroup(tree.root, byGroup);
  FG.placeGroup(tree.root, 0, 0);
  return { items: FG.visible(tree.root), edges: [...drawn.values()], width: tree.root.w, height: tree.root.h };
};

FG.meet = (a, b) => {
  const chain = new Map();
  for (let at = a; at.parent; at = at.parent) chain.set(at.parent, at);
  for (let at = b; at.parent; at = at.parent) if (chain.has(at.parent)) return [chain.get(at.parent), at, at.parent];
  throw new Error("two items without a common group");
};

FG.layoutGroup = (group, byGroup) => {
  const links = [...(byGroup.get(group) || [])].map((text) => text.split(">"));
  const read = new Set(links.flat());
  group.shown = group.children.filter((child) => child.group || !FG.isScalarLeaf(child) || read.has(child.key));
  for (const child of group.shown) {
    if (child.group && child.open) FG.layoutGroup(child, byGroup);
    else Object.assign(child, FG.sizeOf(child));
  }
  const { width, height, routes } = FG.dagre(group.shown, links);
  group.routes = routes;
  group.w = Math.max(width, group.parent ? FG.textWidth(group.label, "name") + 40 : 0);
  group.h = height + (group.parent ? HEAD : 0);
};

FG.placeGroup = (group, x, y) => {
  group.ox = x;
  group.oy = y + (group.parent ? HEAD : 0);
  for (const child of group.shown) {
    child.x += group.ox;
    child.y += group.oy;
    if (child.group && child.open) FG.placeGroup(child, child.x, child.y);
  }
};

FG.visible = (group) =>
  group.shown.flatMap((child) => (child.group && child.open ? [child, ...FG.visible(child)] : [child]));

// Leaves its group: such edges are drawn faintly, they cross what is around.
FG.far = (edge) => edge.a.parent !== edge.group || edge.b.parent !== edge.group || !edge.group.routes.has(edge.step);

FG.route = (edge, boxes) => {
  const route = edge.group.routes.get(edge.step);
  if (!route || (FG.far(edge) && edge.b.y - edge.a.y > LONG_WAY)) return FG.bow(edge.a, edge.b, boxes);
  const points = route.map((p) => ({ x: p.x + edge.group.ox, y: p.y + edge.group.oy }));
  const start = { x: edge.a.x + edge.a.w / 2, y: edge.a.y + edge.a.h };
  const end = { x: edge.b.x + edge.b.w / 2, y: edge.b.y };
  const nested = (item) => item.parent !== edge.group;
  if (nested(edge.a)) points.splice(0, 1, start, ...(points[0].y > start.y ? [points[0]] : []));
  if (nested(edge.b)) points.splice(-1, 1, ...(points.at(-1).y < end.y ? [points.at(-1)] : []), end);
  return FG.curve(points);
};

// A smooth line: straight ends, quadratic bends at the points between.
FG.curve = (points) => {
  const text = (p) => `${p.x.toFixed(1)} ${p.y.toFixed(1)}`;
  let path = `M${text(points[0])}`;
  for (let i = 1; i < points.length - 1; i += 1) {
    const [p, q] = [points[i], points[i + 1]];
    const end = i === points.length - 2 ? q : { x: (p.x + q.x) / 2, y: (p.y + q.y) / 2 };
    path += `Q${text(p)} ${text(end)}`;
  }
  if (points.length === 2) {
    const [p, q] = points;
    const middle = (p.y + q.y) / 2;
    path += `C${text({ x: p.x, y: middle })} ${text({ x: q.x, y: middle })} ${text(q)}`;
  }
  return path;
};
