"""Step 1 of fusion: buffers for the graph's inputs and roots, and the roots' loops; which updates are written in place."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from fusegraph.ir import scalar
from fusegraph.ir.graph import Graph, Node
from fusegraph.ir.index import Index
from fusegraph.ir.loops import Buffer
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.passes.fusion_state import FusionState
from fusegraph.passes.groups import NEW, loads, old_name
from fusegraph.passes.inline import Inliner, reshaped
from fusegraph.passes.roots import Root, RootMaker, choose_roots, storage
from fusegraph.records import replace


def _identifier(name: str) -> str:
    cleaned = re.sub(r"\W", "_", name)
    return cleaned if cleaned and not cleaned[0].isdigit() else f"v_{cleaned}"


def _fresh(state: FusionState, name: str) -> str:
    name = _identifier(name)
    if name not in state.buffers:
        return name
    first = state.numbers.get(name, 1)  # smaller ones are taken
    number = next(n for n in range(first, 10**9) if f"{name}_{n}" not in state.buffers)
    state.numbers[name] = number
    return f"{name}_{number}"


def _add_buffer(state: FusionState, name: str, shape: tuple[int, ...], node: Node, role: str) -> str:
    name = _fresh(state, name)
    state.buffers[name] = Buffer(name, shape, node.dtype, role)
    return name


def name_inputs(state: FusionState) -> None:
    updated = {old for old, _ in state.graph.updates}
    for node in state.graph.inputs:
        state.names[node] = _add_buffer(state, node.name, node.shape, node, "state" if node in updated else "input")


def make_roots(state: FusionState) -> None:
    chosen = choose_roots(state.graph)
    targets = _update_targets(state, set(chosen))
    outputs = {storage(node) for node in state.graph.outputs}
    users, kept = state.graph.users(), {storage(node) for node in state.graph.results}
    for node in chosen:
        if node not in targets and node not in outputs and _adds_to_scatter(state, node, users, kept):
            state.names[node] = state.names[node.inputs[0]]
        elif node in targets:
            state.names[node] = state.names[targets[node]] + NEW
            state.buffers[state.names[node]] = replace(
                state.buffers[state.names[targets[node]]], name=state.names[node], role="state"
            )
        else:
            state.names[node] = _add_buffer(state, node.op, node.shape, node, "output" if node in outputs else "temp")
    maker = RootMaker(Inliner(state.names))
    for node in chosen:
        if PRIMITIVES[node.op].kind == "scatter":
            _scatter_base(state, maker, node)
        state.roots.append(replace(maker.make(node, state.names[node]), after=_awaited(state, node)))
    _copies(state, maker, targets)


def _awaited(state: FusionState, root: Node) -> frozenset[str]:
    """Buffers that `root`, or what is inlined into it, must come after."""
    found: set[str] = set()
    seen: set[Node] = set()
    stack = list(root.inputs)
    while stack:
        node = stack.pop()
        if node in seen or node in state.names:
            continue
        seen.add(node)
        if node.op == "after":
            found |= {state.names[storage(value)] for value in node.inputs[1:]}
        stack += node.inputs[:1] if node.op == "after" else node.inputs
    return frozenset(found)


def _adds_to_scatter(state: FusionState, node: Node, users: Mapping[Node, Sequence[Node]], kept: set[Node]) -> bool:
    """Whether `node` is a scatter onto another's result, which nothing else reads: then it goes on in the same memory."""
    if PRIMITIVES[node.op].kind != "scatter":
        return False
    onto = node.inputs[0]
    scattered = onto.op != "input" and PRIMITIVES[onto.op].kind == "scatter" and onto in state.names
    return scattered and len(users[onto]) == 1 and onto not in kept and state.buffers[state.names[onto]].role == "temp"


def _update_targets(state: FusionState, roots: set[Node]) -> dict[Node, Node]:
    """Which root may write straight into which updated input: each root once, and only if the graph returns it in no other way.

    Whatever reads the old value must be able to run first, and the root itself may read it only at the element that it writes.
    """
    outputs = {storage(node) for node in state.graph.outputs}
    order = _RootOrder(state.graph, roots)
    names = dict(state.names) | {node: f"root {i}" for i, node in enumerate(roots)}
    targets: dict[Node, Node] = {}
    for old, new in state.graph.updates:
        made = storage(new)
        free = made in roots and made not in outputs and made not in targets and made.shape == old.shape
        if free and _reads_at_its_own_place(names, old, made) and order.overwrite(old, made):
            targets[made] = old
    return targets


class _RootOrder:
    """Which roots must run before which (as bit sets), when views and inlined nodes are looked through."""

    def __init__(self, graph: Graph, roots: set[Node]) -> None:
        self.bit = {node: 1 << i for i, node in enumerate(graph.nodes)}
        self.readers: dict[Node, list[Node]] = {node: [] for node in graph.inputs}
        self.before: dict[Node, int] = {}
        self.after: dict[Node, list[Node]] = {node: [] for node in roots}
        sources = {node: self.bit[node] for node in graph.inputs}
        for node in graph.nodes:
            if node.op == "input":
                continue
            sources[node] = _union(sources[operand] for operand in node.inputs)
            if node in roots:
                read = [graph.nodes[i] for i in _members(sources[node])]
                sources[node] = self.bit[node]
                self.before[node] = _union(self.before[root] | self.bit[root] for root in read if root in roots)
                for root in read:
                    if root in roots:
                        self.after[root].append(node)
                for source in read:
                    if source in self.readers:
                        self.readers[source].append(node)

    def overwrite(self, old: Node, new: Node) -> bool:
        """Let root `new` run after all other readers of `old`, unless one of them needs `new`: then False."""
        readers = [root for root in self.readers[old] if root is not new]
        if any(self.before[reader] & self.bit[new] for reader in readers):
            return False
        for reader in readers:
            self.after[reader].append(new)
        self._grow(new, _union(self.before[reader] | self.bit[reader] for reader in readers))
        return True

    def _grow(self, root: Node, added: int) -> None:
        """`root`, and what comes after it, come after `added` too."""
        stack = [(root, added)]
        while stack:
            root, added = stack.pop()
            if added & ~self.before[root]:
                self.before[root] |= added
                reached = self.before[root] | self.bit[root]
                stack += [(after, reached) for after in self.after[root]]


def _union(sets: Iterable[int]) -> int:
    return functools.reduce(operator.or_, sets, 0)


def _members(bits: int) -> Iterator[int]:
    while bits:
        yield (bits & -bits).bit_length() - 1
        bits &= bits - 1


def _reads_at_its_own_place(names: dict[Node, str], old: Node, new: Node) -> bool:
    """Whether root `new` reads the input `old` at no other element than the one that it writes."""
    maker = RootMaker(Inliner(names))
    made = [maker.make(new, "new")]
    if PRIMITIVES[new.op].kind == "scatter" and new.inputs[0] is not old:
        made.append(_base_root(maker, new, "new"))
    return all(
        load.buffer != names[old] or (root.kind in ("map", "reduce") and load.index == root.index)
        for root in made
        for load in loads(root)
    )


def _scatter_base(state: FusionState, maker: RootMaker, node: Node) -> None:
    """A scatter adds to its base: unless that is the very memory, a first kernel copies it there."""
    target, source = state.names[node], node.inputs[0]
    if source in state.names and state.names[source] in (old_name(target), target):
        return
    state.roots.append(_base_root(maker, node, target))


def _base_root(maker: RootMaker, node: Node, target: str) -> Root:
    axes = maker.axes(node.shape)
    index = tuple(map(Index.of, axes))
    return Root(node, target, "map", axes, (), maker.inliner.value(node.inputs[0], index), index)


def _copies(state: FusionState, maker: RootMaker, targets: dict[Node, Node]) -> None:
    """Outputs that are inputs' memory, and updates that could not be written in place."""
    late: list[Root] = []
    for old, new in state.graph.updates:
        made = storage(new)
        if targets.get(made) is old or made is old:
            continue
        source = state.names[made]
        if state.buffers[source].role in ("state", "input"):  # its memory may be overwritten too: keep its value first
            source = _copy(
                state, maker, state.roots, made, source, _add_buffer(state, f"{source}_kept", made.shape, made, "temp")
            )
        target = state.names[old] + NEW
        state.buffers[target] = replace(state.buffers[state.names[old]], name=target)
        late.append(_copy_root(state, maker, made, source, target))
        state.report.copies.append(state.names[old])
    for node in state.graph.outputs:
        made = storage(node)
        name = state.names[made]
        if state.buffers[name].role != "output":
            name = _copy(
                state, maker, state.roots, made, name, _add_buffer(state, f"{name}_out", made.shape, made, "output")
            )
        state.outputs.append(name)
    state.roots += late


def _copy(state: FusionState, maker: RootMaker, roots: list[Root], node: Node, source: str, target: str) -> str:
    roots.append(_copy_root(state, maker, node, source, target))
    return target


def _copy_root(state: FusionState, maker: RootMaker, node: Node, source: str, target: str) -> Root:
    shape = state.buffers[target].shape
    axes = maker.axes(shape)
    index = tuple(map(Index.of, axes))
    value = scalar.load(source, reshaped(index, shape, state.buffers[source].shape), node.dtype)
    return Root(node, target, "map", axes, (), value, index)
