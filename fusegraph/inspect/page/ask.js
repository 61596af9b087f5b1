"use strict";
// The question "why were these two not merged?", and the refusals of fusion.
FG.ask = (item) => {
  const [first, second] = FG.state.asked;
  const selected = FG.state.selection;
  const same = (a, b) => a && b && a.kind === b.kind && a.id === b.id && a.graph === b.graph;
  if (!first && selected && ["op", "kernel"].includes(selected.kind) && !same(selected, item))
    FG.state.asked = [selected, item];
  else if (!first || second) FG.state.asked = [item, null];
  else if (!same(first, item)) FG.state.asked = [first, item];
  FG.select({ kind: "why" });
};
FG.askBoth = (first, second) => {
  FG.state.asked = [first, second];
  FG.select({ kind: "why" });
};

FG.whyDetail = (selection) => {
  const program = FG.program();
  if (selection.refusal !== undefined) {
    const refusal = program.refusals[selection.refusal];
    FG.state.asked = [refusal.producer_node, refusal.consumer_node].map((id) =>
      program.optimised.byId.has(id) ? { kind: "op", id, graph: "optimised" } : null,
    );
    if (!FG.state.asked[0] || !FG.state.asked[1]) FG.state.asked = [null, null];
    FG.state.whyKernels = [...refusal.from, ...refusal.to];
    return [
      FG.el("div", { class: "eyebrow" }, "not fused"),
      FG.el("h2", {}, `${refusal.producer} → ${refusal.consumer}`),
      FG.el(
        "div",
        { class: "answer", role: "status" },
        FG.el("p", {}, `${FG.sentence(refusal.rule)}.`),
        FG.hint(refusal.rule) && FG.el("p", { class: "hint" }, FG.hint(refusal.rule)),
        FG.el("p", { class: "muted" }, `Merging would have saved ${FG.bytes(refusal.bytes)} of memory traffic.`),
      ),
      ...FG.section("Producer", FG.chips(refusal.from.map(FG.kernelChip))),
      ...FG.section("Consumer", FG.chips(refusal.to.map(FG.kernelChip))),
      ...FG.askedCode(),
      ...FG.askForm(),
    ];
  }
  const [first, second] = FG.state.asked;
  const answer = first && second ? FG.why(first, second) : null;
  FG.state.whyKernels = answer?.kernels || (first ? FG.kernelsOf(first, program) : []);
  return [
    FG.el("div", { class: "eyebrow" }, "why were these two not merged?"),
    FG.el(
      "h2",
      {},
      first ? FG.itemName(first, program) : "Choose the first",
      second ? ` and ${FG.itemName(second, program)}` : "",
    ),
    answer
      ? FG.el(
          "div",
          { class: `answer${answer.good ? " good" : ""}`, role: "status" },
          answer.words.map((word) => FG.el("p", {}, word)),
          FG.unique(answer.refusals.map((refusal) => FG.hint(refusal.rule)))
            .filter(Boolean)
            .map((hint) => FG.el("p", { class: "hint" }, hint)),
        )
      : FG.el(
          "p",
          {},
          first
            ? "Now shift-click the second operation or kernel in either graph, or name it below."
            : "Shift-click two operations or kernels in either graph, or name them below.",
        ),
    ...(answer ? FG.section("Kernels", FG.chips(FG.unique(FG.state.whyKernels).map(FG.kernelChip))) : []),
    ...FG.askedCode(),
    ...FG.askForm(),
  ];
};

// The lines that the asked operations come from.
FG.askedCode = () => {
  const lines = FG.state.asked
    .filter((item) => item?.kind === "op")
    .map((item) => FG.program()[item.graph].byId.get(item.id))
    .filter((node) => node.file)
    .map((node) => FG.lineKey(node.file, node.line));
  return FG.section(
    "Your code",
    FG.unique(lines).map((key) => FG.snippet(key)),
  );
};

// Two fields to name operations without a mouse: "conv", "k3", "#41", "train.py:12 relu".
FG.askForm = () => {
  const fields = [0, 1].map((i) =>
    FG.el("input", {
      id: `ask-${i}`,
      value: FG.state.asked[i] ? FG.itemName(FG.state.asked[i], FG.program()) : "",
      list: "ask-list",
      placeholder: i ? "second: k4, #52, relu …" : "first: k3, #41, conv …",
      "aria-label": i ? "second operation or kernel" : "first operation or kernel",
      onchange: (event) => {
        const found = FG.findItem(event.target.value);
        event.target.setCustomValidity(found ? "" : "nothing has this name");
        event.target.reportValidity();
        if (!found) return;
        FG.state.asked[i] = found;
        FG.select({ kind: "why" });
        FG.byId(`ask-${1 - i}`)?.focus();
      },
    }),
  );
  const options = [
    ...FG.program().kernels.map((kernel) => FG.itemName({ kind: "kernel", id: kernel.id }, FG.program())),
    ...FG.program()
      .optimised.nodes.filter((node) => node.kernels.length)
      .map((node) => `#${node.id} ${FG.nodeName(node)} ${node.module || FG.place(node)}`),
  ];
  return [
    FG.el("h3", {}, "Ask"),
    FG.el(
      "div",
      { class: "ask" },
      fields,
      FG.el(
        "datalist",
        { id: "ask-list" },
        options.map((value) => FG.el("option", { value })),
      ),
    ),
  ];
};
FG.findItem = (text) => {
  const program = FG.program();
  const kernel = text.match(/^\s*k(\d+)\b/);
  if (kernel && program.kernelById.has(Number(kernel[1]))) return { kind: "kernel", id: Number(kernel[1]) };
  const number = text.match(/#(\d+)\b/);
  if (number && program.optimised.byId.has(Number(number[1])))
    return { kind: "op", id: Number(number[1]), graph: "optimised" };
  const [hit] = FG.matches(text).filter((match) => ["op", "kernel"].includes(match.selection.kind));
  return hit ? hit.selection : null;
};

FG.refusalTable = (refusals) =>
  FG.el(
    "table",
    { class: "list" },
    FG.el(
      "thead",
      {},
      FG.el(
        "tr",
        {},
        ["bytes", "producer → consumer", "why not"].map((text) => FG.el("th", { scope: "col" }, text)),
      ),
    ),
    FG.el(
      "tbody",
      {},
      refusals.map((refusal) =>
        FG.pressable(
          FG.el(
            "tr",
            { tabindex: 0, "data-refusal": refusal.number },
            FG.el("td", { class: "num" }, FG.bytes(refusal.bytes)),
            FG.el(
              "td",
              {},
              FG.el("span", { class: "chips" }, [
                ...refusal.from.slice(0, 2).map(FG.badge),
                `${refusal.producer} → ${refusal.consumer}`,
                ...refusal.to.slice(0, 2).map(FG.badge),
              ]),
            ),
            FG.el("td", {}, FG.sentence(refusal.rule)),
          ),
          () => FG.select({ kind: "why", refusal: refusal.number }),
        ),
      ),
    ),
  );
// The same in a narrow column.
FG.refusalCards = (refusals) =>
  refusals.map((refusal) =>
    FG.pressable(
      FG.el(
        "div",
        { class: "refusal", tabindex: 0, role: "button" },
        FG.el(
          "div",
          { class: "chips" },
          refusal.from.slice(0, 2).map(FG.badge),
          `${refusal.producer} → ${refusal.consumer}`,
          refusal.to.slice(0, 2).map(FG.badge),
          FG.el("span", { class: "spacer" }),
          FG.el("span", { class: "muted mono" }, FG.bytes(refusal.bytes)),
        ),
        FG.el("div", { class: "muted" }, FG.sentence(refusal.rule)),
      ),
      () => FG.select({ kind: "why", refusal: refusal.number }),
    ),
  );
FG.badge = (id) => FG.el("span", { class: "badge", style: { "--k": FG.kernelColour(id) } }, `k${id}`);
