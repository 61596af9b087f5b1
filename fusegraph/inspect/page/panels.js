"use strict";
// The view of the user's source lines, the search field, the cards of the summary.
FG.showSource = () => {
  const view = FG.byId("source-view");
  const program = FG.program();
  const files = FG.unique([...program.lines.values()].map((entry) => entry.file));
  const parts = files.map((file) => [FG.el("h2", { title: file }, FG.base(file)), FG.sourceRows(file, program)]);
  view.replaceChildren(
    ...(files.length ? parts.flat(2) : [FG.el("p", { class: "muted" }, "The operations carry no source lines.")]),
  );
  FG.markSource();
};
FG.sourceRows = (file, program) => {
  const text = FG.sources[file] || {};
  const live = [...program.lines.values()].filter((entry) => entry.file === file);
  const numbers = FG.unique([...Object.keys(text).map(Number), ...live.map((entry) => entry.line)]).sort(
    (a, b) => a - b,
  );
  const rows = [];
  numbers.forEach((number, i) => {
    if (i && number > numbers[i - 1] + 1) rows.push(FG.el("div", { class: "gap" }, "⋯"));
    rows.push(FG.sourceRow(file, number, text[number] ?? "", program.lines.get(FG.lineKey(file, number))));
  });
  return rows;
};
FG.sourceRow = (file, number, text, entry) => {
  const forward = FG.forwardKernels(FG.program());
  const order = (id) => (forward.has(id) ? id : 1e6 + id);
  const kernels = entry ? [...entry.kernels].sort((a, b) => order(a) - order(b)) : [];
  const key = FG.lineKey(file, number);
  const badges = kernels.slice(0, 5).map((id) => {
    const badge = FG.badge(id);
    badge.classList.toggle("back", !forward.has(id));
    FG.withTip(
      badge,
      `k${id} ${FG.kernelTitle(FG.program().kernelById.get(id))}${forward.has(id) ? "" : "\ngradient or update"}`,
    );
    badge.addEventListener("click", (event) => {
      event.stopPropagation();
      FG.select({ kind: "kernel", id });
    });
    return badge;
  });
  if (kernels.length > 5) badges.push(FG.el("span", { class: "muted" }, `+${kernels.length - 5}`));
  const row = FG.el(
    "div",
    {
      class: `src${entry ? " live" : ""}`,
      ...(entry
        ? {
            tabindex: 0,
            role: "button",
            "data-line": key,
            "aria-label": `line ${number}: ${text.trim()}, kernels ${kernels.join(", ") || "none"}`,
          }
        : {}),
    },
    FG.el("span", { class: "no" }, String(number)),
    FG.el("span", { class: "tx" }, FG.highlight(text, "python")),
    FG.el("span", { class: "ks" }, badges),
  );
  return entry ? FG.pressable(row, () => FG.select({ kind: "line", id: key })) : row;
};
FG.markSource = () => {
  const { lines } = FG.related(FG.state.selection);
  let first = null;
  for (const row of FG.byId("source-view").querySelectorAll("[data-line]")) {
    const hit = lines.has(row.dataset.line);
    row.classList.toggle("hit", hit);
    if (hit && !first) first = row;
  }
  if (first && FG.state.left === "source") first.scrollIntoView({ block: "nearest" });
};

// All words must occur; what begins with the first word comes first.
FG.matches = (query) => {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return [];
  const program = FG.program();
  const graph = FG.state.graph;
  const found = [];
  const add = (kind, label, where, hay, selection) => {
    const text = hay.toLowerCase();
    if (!words.every((word) => text.includes(word))) return;
    found.push({
      kind,
      label,
      where,
      selection,
      rank:
        2 * ["line", "kernel", "op", "input", "buffer"].indexOf(kind) +
        (label.toLowerCase().startsWith(words[0]) ? 0 : 1),
    });
  };
  for (const kernel of program.kernels)
    add(
      "kernel",
      `k${kernel.id} ${FG.kernelTitle(kernel)}`,
      FG.shape(kernel.space),
      `k${kernel.id} ${kernel.name} ${kernel.operations.join(" ")}`,
      { kind: "kernel", id: kernel.id },
    );
  for (const [key, entry] of program.lines) {
    const text = FG.sourceLine(entry.file, entry.line);
    add(
      "line",
      text || `${FG.base(entry.file)}:${entry.line}`,
      `${FG.base(entry.file)}:${entry.line}`,
      `${text} ${FG.base(entry.file)}:${entry.line}`,
      { kind: "line", id: key },
    );
  }
  for (const node of program[graph].nodes)
    add(
      node.op === "input" ? "input" : "op",
      `${FG.nodeName(node)} #${node.id}`,
      [node.module, FG.shape(node.shape)].filter(Boolean).join("  "),
      `${FG.nodeName(node)} #${node.id} ${node.module} ${FG.place(node)}`,
      { kind: "op", id: node.id, graph },
    );
  for (const buffer of program.memory.buffers)
    add("buffer", buffer.name, FG.bytes(buffer.bytes), buffer.name, { kind: "buffer", id: buffer.name });
  return found.sort((a, b) => a.rank - b.rank);
};

FG.setUpSearch = () => {
  const [input, list] = [FG.byId("search"), FG.byId("results")];
  let hits = [];
  let at = 0;
  const mark = () =>
    [...list.children].forEach((item, i) => {
      item.setAttribute("aria-selected", String(i === at));
      if (i === at) {
        input.setAttribute("aria-activedescendant", item.id);
        item.scrollIntoView({ block: "nearest" });
      }
    });
  const close = () => {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
  };
  const choose = (i, asks) => {
    const canBeAsked = ({ selection }) => ["op", "kernel"].includes(selection.kind);
    const hit = asks ? hits.slice(i).find(canBeAsked) : hits[i];
    if (!hit) return;
    close();
    input.blur();
    if (asks) FG.ask(hit.selection);
    else FG.select(hit.selection);
  };
  const show = () => {
    hits = FG.matches(input.value).slice(0, 60);
    at = 0;
    list.hidden = !input.value.trim();
    input.setAttribute("aria-expanded", String(!list.hidden));
    list.replaceChildren(
      ...(hits.length
        ? hits.map((hit, i) =>
            FG.el(
              "li",
              {
                id: `hit-${i}`,
                role: "option",
                onpointerdown: (event) => {
                  event.preventDefault();
                  choose(i, event.shiftKey);
                },
              },
              FG.el("span", { class: "kind" }, hit.kind),
              FG.el("span", {}, FG.cut(hit.label, 52)),
              FG.el("span", { class: "where" }, hit.where),
            ),
          )
        : [FG.el("li", { class: "none", role: "option", "aria-disabled": "true" }, "Nothing found")]),
    );
    mark();
  };
  input.addEventListener("input", show);
  input.addEventListener("focus", () => {
    input.select();
    show();
  });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && hits.length) {
      event.preventDefault();
      at = (at + step + hits.length) % hits.length;
      mark();
    }
    if (event.key === "Enter") choose(at, event.shiftKey);
    if (event.key === "Escape") {
      event.stopPropagation();
      input.value = "";
      close();
      input.blur();
    }
  });
};

FG.showSummary = () => {
  const { totals, memory, seconds, from_cache: cached, kernels } = FG.program();
  const moved = totals.bytes_read + totals.bytes_written;
  const compiled = Object.values(seconds).reduce((sum, value) => sum + value, 0);
  const timed = FG.timed();
  const time = kernels.reduce((sum, kernel) => sum + FG.kernelTime(kernel), 0);
  const card = (label, value, small, ratio, title) =>
    FG.el(
      "div",
      { class: "card", title },
      FG.el("div", { class: "label" }, label),
      FG.el("div", { class: "value" }, value, FG.el("small", {}, small)),
      ratio === null
        ? null
        : FG.el(
            "div",
            { class: "ratio" },
            FG.el("i", { style: { width: `${Math.min(100, 100 * ratio).toFixed(1)}%` } }),
          ),
    );
  const peak = memory.unfused_peak_bytes || memory.unshared_bytes;
  FG.byId("summary").replaceChildren(
    ...[
      card(
        "operations → kernels",
        `${totals.operations} → ${totals.kernels}`,
        "",
        totals.kernels / Math.max(1, totals.operations),
        "One native call runs them all",
      ),
      card(
        "memory traffic",
        FG.bytes(moved),
        ` vs ${FG.bytes(totals.unfused_bytes)} unfused`,
        moved / Math.max(1, totals.unfused_bytes),
        "Against the same operations one at a time",
      ),
      card(
        "arena",
        FG.bytes(memory.arena_bytes),
        ` vs ${FG.bytes(peak)} ${memory.unfused_peak_bytes ? "unfused" : "unshared"}`,
        memory.arena_bytes / Math.max(1, peak),
        memory.unfused_peak_bytes ? "Against the unfused program's peak" : "Against buffers that share nothing",
      ),
      card("arithmetic", FG.flops(totals.flops), "", null),
      timed &&
        card(
          timed === "measured" ? "measured" : "estimate, at least",
          FG.time(time),
          timed === "measured" ? " in kernels" : "",
          null,
          timed === "measured" ? "Sum over the kernels" : "By the cost model; profile() measures",
        ),
      card("compiled in", `${(1000 * compiled).toFixed(0)} ms`, cached ? " from the cache" : "", null),
    ].filter(Boolean),
  );
};
