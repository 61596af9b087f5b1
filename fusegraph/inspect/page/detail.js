"use strict";
// The right-hand pane: all that is known of the selected kernel, operation, line or buffer.
FG.showDetail = () => {
  const { selection } = FG.state;
  const body = FG.el("div", { class: "scroll" });
  const parts = {
    kernel: FG.kernelDetail,
    op: FG.opDetail,
    line: FG.lineDetail,
    buffer: FG.bufferDetail,
    why: FG.whyDetail,
  };
  body.append(...(selection ? parts[selection.kind](selection) : FG.overview()).filter(Boolean));
  FG.byId("detail").replaceChildren(body);
};

FG.kernelChip = (id) => {
  const kernel = FG.program().kernelById.get(id);
  return FG.el(
    "button",
    { class: "chip kernel", style: { "--k": FG.kernelColour(id) }, onclick: () => FG.select({ kind: "kernel", id }) },
    `k${id} ${FG.cut(FG.kernelTitle(kernel), 30)}`,
  );
};
FG.opChip = (id, graph = "optimised") => {
  const node = FG.program()[graph].byId.get(id);
  return FG.el(
    "button",
    {
      class: "chip",
      title: [node.module, FG.place(node)].join(" "),
      onclick: () => FG.select({ kind: "op", id, graph }),
    },
    FG.nodeName(node),
    " ",
    FG.el("span", { class: "muted" }, FG.shape(node.shape)),
  );
};
FG.lineChip = (key) => {
  const entry = FG.program().lines.get(key);
  return FG.el(
    "button",
    { class: "chip", onclick: () => FG.select({ kind: "line", id: key }) },
    `${FG.base(entry.file)}:${entry.line}`,
  );
};
FG.bufferChip = (name, bytes) =>
  FG.el(
    "button",
    { class: "chip", onclick: () => FG.select({ kind: "buffer", id: name }) },
    name,
    " ",
    FG.el("span", { class: "muted" }, FG.bytes(bytes)),
  );
FG.chips = (items) => FG.el("div", { class: "chips" }, items);
FG.metric = (value, label, title) =>
  FG.el("div", { class: "metric", title }, FG.el("b", {}, value), FG.el("span", {}, label));
FG.section = (title, ...content) =>
  content.flat().filter(Boolean).length ? [FG.el("h3", {}, title), ...content.flat().filter(Boolean)] : [];
FG.facts = (rows) =>
  FG.el(
    "table",
    { class: "facts" },
    FG.el(
      "tbody",
      {},
      rows
        .filter((row) => row[1] !== "" && row[1] !== null)
        .map(([name, value]) => FG.el("tr", {}, FG.el("td", {}, name), FG.el("td", {}, value))),
    ),
  );

FG.overview = () => {
  const program = FG.program();
  const inputs = program.signature.map((item) => [item.name, `${item.dtype} ${FG.shape(item.shape)}`]);
  return [
    FG.el("div", { class: "eyebrow" }, `${program.phase}, ${program.backend}`),
    FG.el("h2", {}, program.name),
    FG.el(
      "p",
      {},
      "Click a kernel or an operation; click a line under “Your code”; or press / and type. Shift-click a second one to ask why the two were not merged.",
    ),
    ...FG.section(
      "Where to begin",
      FG.chips(
        [...program.kernels]
          .sort((a, b) => FG.weight(b) - FG.weight(a))
          .slice(0, 5)
          .map((kernel) => FG.kernelChip(kernel.id)),
      ),
    ),
    ...FG.section("Signature", FG.facts(inputs)),
    ...FG.section(
      "Written in place",
      program.in_place.length ? FG.el("div", { class: "mono" }, program.in_place.join(", ")) : null,
    ),
    ...FG.section(
      "Compile time",
      FG.facts(Object.entries(program.seconds).map(([name, value]) => [name, `${(1000 * value).toFixed(1)} ms`])),
      program.from_cache ? FG.el("p", { class: "muted" }, "The code came from the disk cache.") : null,
    ),
  ];
};

FG.kernelDetail = ({ id }) => {
  const program = FG.program();
  const kernel = program.kernelById.get(id);
  const moved = kernel.bytes_read + kernel.bytes_written;
  const saved =
    kernel.unfused_bytes > moved
      ? `moved, ${(100 * (1 - moved / kernel.unfused_bytes)).toFixed(0)} % saved`
      : "moved, as unfused";
  const share = kernel.share_of_roofline === null ? null : `${(100 * kernel.share_of_roofline).toFixed(0)} %`;
  const lines = FG.linesOfNodes(kernel.nodes);
  const refusals = program.refusals.filter((r) => r.from.includes(id) !== r.to.includes(id));
  const { body, head } = FG.codeTabs(id);
  return [
    FG.el(
      "div",
      { class: "eyebrow" },
      FG.el("i", { class: "badge", style: { "--k": FG.kernelColour(id) } }, `k${id}`),
      `${kernel.schedule} kernel over ${FG.shape(kernel.space)}${kernel.threads === 1 ? ", one thread" : ""}`,
    ),
    FG.el("h2", {}, FG.kernelTitle(kernel)),
    FG.el("div", { class: "mono muted" }, kernel.name),
    FG.el(
      "div",
      { class: "grid" },
      FG.metric(FG.time(kernel.time_ns), "measured"),
      kernel.floor_ns !== null &&
        FG.metric(
          FG.time(kernel.floor_ns),
          "estimate, at least",
          "The larger of bytes by bandwidth and operations by peak, for this machine",
        ),
      share && FG.metric(share, "of the roofline"),
      kernel.gb_s !== null && FG.metric(kernel.gb_s.toFixed(1), "GB/s"),
      kernel.gflop_s !== null && FG.metric(kernel.gflop_s.toFixed(1), "GFLOP/s"),
      FG.metric(FG.flops(kernel.flops), "arithmetic"),
      FG.metric(FG.bytes(moved), saved, `Its operations one at a time would move ${FG.bytes(kernel.unfused_bytes)}`),
    ),
    ...FG.section(
      `${kernel.nodes.length} operation${kernel.nodes.length === 1 ? "" : "s"}`,
      FG.chips(kernel.nodes.map((node) => FG.opChip(node))),
    ),
    ...FG.section(
      "Computed again here",
      kernel.recomputed?.length ? FG.chips(kernel.recomputed.map((node) => FG.opChip(node))) : null,
    ),
    ...FG.section(
      "Your code",
      lines.map((key) => FG.snippet(key)),
    ),
    ...FG.section("Generated code", head, body),
    ...FG.section("Reads", FG.chips(kernel.reads.map((part) => FG.bufferChip(part.buffer, part.bytes)))),
    ...FG.section("Writes", FG.chips(kernel.writes.map((part) => FG.bufferChip(part.buffer, part.bytes)))),
    ...FG.section(
      `Not fused with (${refusals.length})`,
      refusals.length ? FG.refusalCards(refusals.slice(0, 12)) : null,
    ),
  ];
};

FG.linesOfNodes = (ids) =>
  FG.unique(
    ids
      .map((id) => FG.program().optimised.byId.get(id))
      .filter((node) => node.file)
      .map((node) => FG.lineKey(node.file, node.line)),
  );

// The user's line with two lines around it.
FG.snippet = (key, around = 2) => {
  const { file, line, modules } = FG.program().lines.get(key);
  const text = FG.sources[file];
  const head = FG.el(
    "div",
    { class: "code-head" },
    FG.lineChip(key),
    FG.el("span", { class: "muted mono" }, [...modules].slice(0, 3).join(", ") + (modules.size > 3 ? ", …" : "")),
  );
  if (!text) return FG.el("div", {}, head);
  const rows = [];
  for (let number = line - around; number <= line + around; number += 1)
    if (text[number] !== undefined)
      rows.push(
        FG.el(
          "span",
          { class: number === line ? "ln mark" : "ln", "data-n": number },
          FG.highlight(text[number], "python"),
        ),
      );
  return FG.el(
    "div",
    {},
    head,
    FG.el("div", { class: "code", tabindex: 0, "aria-label": "Source lines" }, FG.el("pre", {}, rows)),
  );
};

FG.CODES = [
  ["loop", "Loop program"],
  ["python", "Python"],
  ["cuda", "CUDA"],
  ["llvm", "LLVM IR"],
  ["asm", "Assembly"],
  ["ptx", "PTX"],
];
FG.codeTabs = (id) => {
  const head = FG.el("div", { class: "code-head" });
  const body = FG.el(
    "div",
    { class: "code", tabindex: 0, "aria-label": "Generated code" },
    FG.el("pre", { class: "muted" }, "…"),
  );
  FG.texts()
    .then((texts) => {
      const found = (texts[FG.state.program] || {})[id] || {};
      const items = FG.CODES.filter(([key]) => found[key]);
      if (!items.length) {
        body.replaceChildren(FG.el("pre", { class: "muted" }, "No texts in this page."));
        return;
      }
      const holder = FG.el("div", { class: "segments", role: "tablist", "aria-label": "Generated code" });
      const choose = (key) => {
        FG.state.code = key;
        FG.tabs(holder, items, key, choose);
        body.replaceChildren(FG.codeBlock(found[key], key));
      };
      head.append(
        holder,
        FG.el("span", { class: "spacer" }),
        FG.el("button", { class: "tool", onclick: (event) => FG.copy(found[FG.state.code], event.target) }, "Copy"),
      );
      choose(items.some(([key]) => key === FG.state.code) ? FG.state.code : items[Math.min(1, items.length - 1)][0]);
    })
    .catch((error) => body.replaceChildren(FG.el("pre", {}, error.message)));
  return { head, body };
};
FG.copy = async (text, button) => {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select and copy by hand";
  }
  setTimeout(() => {
    button.textContent = "Copy";
  }, 1200);
};
FG.codeBlock = (text, language) =>
  FG.el(
    "pre",
    {},
    text.length > 200000
      ? text
      : text
          .replace(/\n$/, "")
          .split("\n")
          .map((line, i) => FG.el("span", { class: "ln", "data-n": i + 1 }, FG.highlight(line, language))),
  );

const WORDS = {
  python:
    /(#.*$)|("""|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|\b(def|for|in|range|if|else|elif|return|import|from|class|while|with|as|and|or|not|None|True|False|self|lambda|prange|pass)\b|\b(\d[\w.]*)\b/g,
  loop: /((?:#|\/\/).*$)|("[^"]*")|\b(loop|for|in|stage|reduce|store|load|parallel|add|max|where|let|read|write|buffers?|space|local)\b|\b(\d[\w.]*)\b/g,
  llvm: /(;.*$)|("[^"]*")|\b(define|declare|call|br|ret|load|store|phi|getelementptr|select|icmp|fcmp|fadd|fsub|fmul|fdiv|add|sub|mul|label|void|double|float|ptr|i1|i8|i16|i32|i64)\b|\b(\d[\w.]*)\b/g,
  asm: /([#;].*$)|("[^"]*")|(^\s+[a-z][a-z0-9]*)|(\$?-?\b\d[\w.]*\b)/g,
  ptx: /(\/\/.*$)|("[^"]*")|(\.[a-z]\w*|^\s*@?\w[\w.]*(?=\s))|\b(\d[\w.]*)\b/g,
};
FG.highlight = (line, language) => {
  const parts = [];
  let last = 0;
  for (const match of line.matchAll(WORDS[language] || WORDS.loop)) {
    const kind = match[1] ? "c" : match[2] ? "s" : match[3] ? "k" : "n";
    parts.push(line.slice(last, match.index), FG.el("span", { class: `tk-${kind}` }, match[0]));
    last = match.index + match[0].length;
  }
  return [...parts, line.slice(last) || (parts.length ? "" : " ")];
};

FG.opDetail = ({ id, graph }) => {
  const program = FG.program();
  const node = program[graph].byId.get(id);
  const updates = program[graph].updates.filter((pair) => pair.includes(id));
  const role = program[graph].outputs.includes(id)
    ? "output"
    : updates.some(([, value]) => value === id)
      ? "new value of a state"
      : "";
  return [
    FG.el(
      "div",
      { class: "eyebrow" },
      `operation #${id}, ${graph === "graph" ? "as traced" : "after the passes"}${role ? `, ${role}` : ""}`,
    ),
    FG.el("h2", {}, FG.nodeName(node)),
    FG.facts([
      ["type", `${node.dtype} ${FG.shape(node.shape)}`],
      ["module", node.module],
      ["line", FG.place(node)],
      ...Object.entries(node.attributes),
    ]),
    ...FG.section(
      "Runs in",
      node.kernels.length
        ? FG.chips(node.kernels.map(FG.kernelChip))
        : FG.el("p", {}, FG.sentence(FG.noKernel({ kind: "op", id, graph }, program))),
    ),
    node.kernels.length > 1
      ? FG.el("p", { class: "muted" }, "Computed in each of these: that is cheaper than keeping the value in memory.")
      : null,
    ...FG.section(
      "Why not merged with another?",
      FG.el(
        "button",
        { class: "tool", onclick: () => FG.ask({ kind: "op", id, graph }) },
        "Ask: choose the second one",
      ),
    ),
    ...FG.section("Your code", node.file ? FG.snippet(FG.lineKey(node.file, node.line), 4) : null),
    ...FG.section("Reads", FG.chips(FG.unique(node.inputs).map((input) => FG.opChip(input, graph)))),
    ...FG.section("Read by", FG.chips(program[graph].users.get(id).map((user) => FG.opChip(user, graph)))),
  ];
};

FG.lineDetail = ({ id }) => {
  const entry = FG.program().lines.get(id);
  return [
    FG.el("div", { class: "eyebrow" }, "source line"),
    FG.el("h2", {}, `${FG.base(entry.file)}:${entry.line}`),
    FG.snippet(id, 4),
    ...FG.runsIn(entry.kernels),
    ...[...entry.modules].sort().flatMap((module) => FG.moduleOps(module, entry.optimised)),
    ...(entry.modules.size ? [] : FG.section("Operations", FG.chips(entry.optimised.map((node) => FG.opChip(node))))),
  ];
};
// The forward part first: what the line itself computes. The others are its gradients, and what they compute again.
FG.runsIn = (kernels) => {
  const forward = FG.forwardKernels(FG.program());
  const ordered = [...kernels].sort((a, b) => a - b);
  const [mine, others] = [ordered.filter((id) => forward.has(id)), ordered.filter((id) => !forward.has(id))];
  const chips = (ids) => (ids.length ? FG.chips(ids.map(FG.kernelChip)) : null);
  const title = FG.program().phase === "step" ? "Forward: runs in" : "Runs in";
  return [
    ...FG.section(title, chips(mine)),
    ...FG.section(mine.length ? "Backward and update" : "Runs in", chips(others)),
  ];
};
FG.moduleOps = (module, ids) => {
  const nodes = ids.map((id) => FG.program().optimised.byId.get(id)).filter((node) => node.module === module);
  const kernels = FG.unique(nodes.flatMap((node) => node.kernels)).sort((a, b) => a - b);
  return nodes.length
    ? [
        FG.el("h3", {}, module),
        FG.chips(kernels.map(FG.kernelChip)),
        FG.el("div", { style: { height: "4px" } }),
        FG.chips(nodes.map((node) => FG.opChip(node.id))),
      ]
    : [];
};

FG.bufferDetail = ({ id }) => {
  const program = FG.program();
  const buffer = program.memory.buffers.find((item) => item.name === id) || {};
  return [
    FG.el("div", { class: "eyebrow" }, "buffer"),
    FG.el("h2", {}, id),
    FG.facts([
      ["role", buffer.role || ""],
      ["size", FG.bytes(buffer.bytes)],
      ["offset in the arena", buffer.offset === null || buffer.offset === undefined ? "" : String(buffer.offset)],
    ]),
    ...FG.section("Written by", FG.chips((program.writers.get(id) || []).map(FG.kernelChip))),
    ...FG.section("Read by", FG.chips((program.readers.get(id) || []).map(FG.kernelChip))),
  ];
};
