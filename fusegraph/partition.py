"""Forward and backward of a compiled model as two programs: what the forward keeps for the backward.

The joint graph (forward and gradients) is optimised as a whole and then cut: what depends on an output's gradient runs in the
backward program. Of the forward values that it needs, graph inputs are handed over as they are, and cheap functions of kept
values are computed again; the rest is kept. Under a memory budget less is kept (passes/saved_values.py).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fusegraph import autograd
from fusegraph.ir import emit
from fusegraph.ir.graph import Graph, GraphBuilder, Node, topological_order
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.records import dataclass, field

if TYPE_CHECKING:
    from fusegraph.build import Options
    from fusegraph.passes.pipeline_log import Origin
    from fusegraph.tensor import Tensor
    from fusegraph.version import Version

Array = np.ndarray[Any, Any]


@dataclass
class Joint:
    """How the backward program hangs together with the forward one.

    roots      positions of the outputs that have a gradient; seeds: the inputs that stand for those gradients
    targets    what gets a gradient: argument symbols and captured tensors; gradients: their nodes
    outputs    nodes of the function's own results
    saved      forward values that the forward program gives besides; passed: forward inputs that the backward reads again
    origins    for reports, what the forward and the backward program were cut from
    overwritten  inputs that the forward program overwrites and its outputs depend on (the counter of random numbers, say)
    budgets    under a memory budget, that of the forward program's arena and that of the backward one's
    """

    roots: list[int]
    seeds: list[Node]
    targets: list[Any]
    gradients: list[Node]
    outputs: list[Node]
    saved: list[Node] = field(default_factory=list)
    passed: list[int] = field(default_factory=list)
    overwritten: list[int] = field(default_factory=list)
    source: Graph | None = None
    budgets: tuple[int | None, int | None] = (None, None)
    origins: tuple[Origin, Origin] | None = None

    @property
    def count(self) -> int:
        """How many of the forward program's outputs are the function's own."""
        return len(self.outputs)

    def attach(
        self,
        version: Version,
        sources: list[Tensor],
        arrays: list[Array],
        outputs: list[Tensor],
        made: list[Array],
        before: dict[int, Array],
    ) -> None:
        """Record the call, so that `.backward()` of its outputs runs the backward program.

        sources: tensors of the graph's inputs; before: what overwritten ones of them held.
        """
        inputs = [self._concrete(target, sources) for target in self.targets]
        kept = [arrays[position] for position in self.passed] + made[self.count :]
        used = [(sources[position], sources[position]._version) for position in self.passed]
        shapes = [made[i].shape for i in self.roots]
        backward = version.backward
        assert backward is not None

        def pull(cotangents: list[Any]) -> list[Any]:
            from fusegraph.tensor import Tensor

            autograd.check_unchanged(used)
            if autograd.is_grad_enabled():
                return self._replayed(
                    [Tensor._make(before[i]) if i in before else t for i, t in enumerate(sources)], inputs, cotangents
                )
            seeds = [
                np.zeros(shape, made[i].dtype) if cotangents[i] is None else np.ascontiguousarray(cotangents[i]._value)
                for i, shape in zip(self.roots, shapes, strict=True)
            ]
            return [Tensor._make(value) for value in backward.run([*kept, *seeds])]

        record = autograd.Record(inputs, len(outputs), pull)
        for position in self.roots:
            outputs[position].requires_grad = True
            outputs[position]._record, outputs[position]._output = record, position

    def _concrete(self, target: Any, sources: list[Tensor]) -> Tensor:
        """The tensor of this call that a target stands for."""
        if not target.is_symbol:
            return target  # type: ignore[no-any-return]
        assert self.source is not None
        return sources[self.source.inputs.index(target._value)]

    def _replayed(self, sources: list[Tensor], inputs: list[Tensor], cotangents: list[Any]) -> list[Any]:
        """Gradients that can be differentiated again: the forward graph applied to the tensors, operation by operation."""
        assert self.source is not None
        values: dict[Node, Any] = dict(zip(self.source.inputs, sources, strict=True))
        for node in self.source.nodes:
            if node.op != "input":
                values[node] = _apply(node, [values[value] for value in node.inputs], sources)
        roots = [values[self.outputs[i]] for i in self.roots if cotangents[i] is not None]
        seeds = [cotangents[i] for i in self.roots if cotangents[i] is not None]
        return list(autograd.grad(roots, inputs, seeds, create_graph=True, allow_unused=True))


def _apply(node: Node, operands: list[Any], anchors: list[Any]) -> Any:
    if operands:
        return emit.bind(node.op, *operands, **node.params)
    return anchors[0].__fg_bind__(node.op, (), dict(node.params))


def split_joint(forward: Graph, joint: Joint, options: Options) -> tuple[Graph, Joint, Graph]:
    """(forward graph with the kept values among its outputs, the finished joint, backward graph)."""
    from fusegraph.build import optimised
    from fusegraph.passes.pipeline_log import Origin, PipelineLog

    whole = Graph(forward.name, forward.inputs, (*forward.outputs, *joint.gradients), forward.updates)
    whole = _with_all_inputs(whole, joint.seeds)
    after, log = (whole, PipelineLog()) if options.backend == "reference" else optimised(whole, options)
    outputs = list(after.outputs[: len(forward.outputs)])
    gradients = list(after.outputs[len(forward.outputs) :])
    seeds = list(after.inputs[len(after.inputs) - len(joint.seeds) :])
    inputs = after.inputs[: len(after.inputs) - len(joint.seeds)]
    late = _depending(after, set(seeds))
    updated = {old for old, _ in after.updates}
    joint_graph = JointGraph(after, outputs, gradients, inputs, seeds, late, updated)
    split = joint_graph.split(joint_graph.default())
    budgets: tuple[int | None, int | None] = (None, None)
    if options.memory_budget is not None:
        from fusegraph.memory_budget import split_within

        split, budgets = split_within(joint_graph, split, options)
    source = Graph(
        forward.name,
        tuple(node for node in forward.inputs if node not in joint.seeds),
        forward.outputs,
        forward.updates,
    )
    needed = topological_order(source.outputs)
    overwritten = [source.inputs.index(old) for old, _ in source.updates if old in needed]
    done = Joint(
        joint.roots,
        seeds,
        joint.targets,
        gradients,
        list(forward.outputs),
        split.saved,
        [inputs.index(node) for node in split.passed],
        overwritten,
        source,
        budgets,
        (Origin(whole, log, after), Origin(whole, log, after, split.links)),
    )
    return split.forward, done, split.backward


@dataclass(frozen=True)
class Split:
    """A joint graph cut in two. saved, passed: as in `Joint`; links: what has become of nodes in the backward graph."""

    saved: list[Node]
    passed: list[Node]
    forward: Graph
    backward: Graph
    links: dict[Node, Node]

    @property
    def saved_bytes(self) -> int:
        """What is kept from the forward program to the backward one."""
        return sum(node.nbytes for node in self.saved)


@dataclass(frozen=True)
class JointGraph:
    """Forward and gradients in one optimised graph. late: what depends on a seed; updated: inputs that are overwritten."""

    graph: Graph
    outputs: list[Node]
    gradients: list[Node]
    inputs: Sequence[Node]
    seeds: list[Node]
    late: set[Node]
    updated: set[Node]

    @property
    def needed(self) -> set[Node]:
        """Forward values that late nodes read, or that are gradients."""
        found = {v for node in self.graph.nodes if node in self.late for v in node.inputs if v not in self.late}
        return found | {node for node in self.gradients if node not in self.late}

    def default(self) -> tuple[list[Node], list[Node]]:
        """(what is kept, which inputs are handed over) without a memory budget."""
        return _kept(self.graph, self.gradients, self.late, self.updated)

    def keeping(self, chosen: Collection[Node]) -> tuple[list[Node], list[Node]]:
        """The same, where of the nodes in `chosen` those are kept that are reached; the others are computed again."""
        kept: set[Node] = set()
        passed: set[Node] = set()
        waiting, seen = list(self.needed), set(self.needed)
        while waiting:
            node = waiting.pop()
            if node.op == "input":
                (kept if node in self.updated else passed).add(node)
            elif node in chosen:
                kept.add(node)
            else:
                waiting += [value for value in node.inputs if value not in seen]
                seen.update(node.inputs)
        order = {node: i for i, node in enumerate(self.graph.nodes)}.__getitem__
        return sorted(kept, key=order), sorted(passed, key=order)

    def split(self, kept: tuple[list[Node], list[Node]], again: bool = False) -> Split:
        """The two graphs. again: also random numbers are computed again, from their key and counter."""
        saved, passed = kept
        links: dict[Node, Node] = {}
        backward = _backward_graph(self.graph, self.gradients, passed, saved, self.seeds, self.late, links, again)
        forward = Graph(self.graph.name, tuple(self.inputs), (*self.outputs, *saved), self.graph.updates)
        return Split(saved, passed, forward, backward, links)


def _with_all_inputs(graph: Graph, seeds: list[Node]) -> Graph:
    """The graph with `seeds` last among its inputs."""
    first = tuple(node for node in graph.inputs if node not in seeds)
    return Graph(graph.name, (*first, *seeds), graph.outputs, graph.updates)


def _depending(graph: Graph, sources: set[Node]) -> set[Node]:
    late = set(sources)
    for node in graph.nodes:
        if any(value in late for value in node.inputs):
            late.add(node)
    return late


def _kept(graph: Graph, gradients: list[Node], late: set[Node], updated: set[Node]) -> tuple[list[Node], list[Node]]:
    """Forward values that the backward needs: (to be kept, graph inputs that are handed over)."""
    needed = {value for node in graph.nodes if node in late for value in node.inputs if value not in late}
    needed |= {node for node in gradients if node not in late}
    kept: set[Node] = set()
    passed: set[Node] = set()
    position = {node: i for i, node in enumerate(graph.nodes)}
    waiting = set(needed)
    while waiting:
        node = max(waiting, key=position.__getitem__)
        waiting.discard(node)
        if node.op == "input":
            (kept if node in updated else passed).add(node)
        elif _is_free(node) or _is_cheap(node, kept | waiting | passed, updated):
            waiting.update(node.inputs)
        else:
            kept.add(node)
    order = position.__getitem__
    return sorted(kept, key=order), sorted(passed, key=order)


def _is_free(node: Node) -> bool:
    kind = PRIMITIVES[node.op].kind
    return node.op in ("constant", "iota") or (kind == "view" and node.op not in ("pad", "concat"))


def _is_cheap(node: Node, at_hand: set[Node], updated: set[Node]) -> bool:
    """A cheap function of values that the backward has anyway."""
    primitive = PRIMITIVES[node.op]
    if primitive.kind not in ("map", "zip") or primitive.cost != "cheap":
        return False
    return all(
        _base(value) in at_hand
        or _base(value).op in ("constant", "iota")
        or (_base(value).op == "input" and _base(value) not in updated)
        for value in node.inputs
    )


def _base(node: Node) -> Node:
    while node.op != "input" and PRIMITIVES[node.op].kind == "view" and len(node.inputs) == 1:
        node = node.inputs[0]
    return node


def _backward_graph(
    graph: Graph,
    gradients: list[Node],
    passed: list[Node],
    saved: list[Node],
    seeds: list[Node],
    late: set[Node],
    new: dict[Node, Node],
    again: bool,
) -> Graph:
    """The graph of the gradients. new: gets what has become of each node of `graph`; again: see `JointGraph.split`."""
    builder = GraphBuilder()
    for prefix, nodes in (("", passed), ("saved_", saved), ("", seeds)):
        for number, node in enumerate(nodes):
            name = node.name if not prefix else f"{prefix}{number}_{node.name or node.op}"
            new[node] = builder.input(name, node.shape, node.dtype)
    for node in graph.nodes:
        if node not in new and node.op != "input" and all(value in new for value in node.inputs):
            if node in late or again or _wanted(node):
                new[node] = builder.add(node.op, [new[value] for value in node.inputs], node.params, node.location)
    return builder.finish([new[node] for node in gradients], (), f"{graph.name}_backward")


def _wanted(node: Node) -> bool:
    """Forward nodes may be computed again; which of them are needed, the finished graph finds out."""
    return "random" not in PRIMITIVES[node.op].traits
