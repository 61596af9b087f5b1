"""Fusion: an op graph becomes a Program of fused Loops.

1. roots       which nodes get memory (roots.py); everything else is inlined into them
2. groups      each root begins as a kernel of its own; pairs merge, dearest bytes first, while the rules of groups.py allow
3. order       kernels in an order in which nothing is overwritten before its last reader; updates in place where they can be
4. loops       each group becomes a Loop (schedule.py)

Every refusal is kept, with the rule and the bytes that it costs, for `explain`.
"""

from __future__ import annotations

import functools
import heapq
import os
import operator
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from fusegraph.ir import scalar
from fusegraph.ir.graph import Graph, Node
from fusegraph.ir.index import Index
from fusegraph.ir.loops import Buffer, Guard, Loop, Program
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.ir.verify_loops import verify_program
from fusegraph.passes.groups import NEW, Group, Refusal, Refused, loads, merge_siblings, merge_vertical, old_name, single
from fusegraph.passes.inline import Inliner, reshaped
from fusegraph.passes.roots import Root, RootMaker, base, choose_roots
from fusegraph.passes.schedule import make_loop


@dataclass
class FusionReport:
    """What fusion did: kernels with the nodes in each, and what was refused."""

    kernels: list[tuple[str, tuple[Node, ...]]] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)


@dataclass
class _State:
    """The work in hand."""

    graph: Graph
    merge: bool
    names: dict[Node, str] = field(default_factory=dict)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    roots: list[Root] = field(default_factory=list)
    report: FusionReport = field(default_factory=FusionReport)


def fuse(graph: Graph, merge: bool = True) -> tuple[Program, FusionReport]:
    """The fused program of `graph`. With `merge=False` every root is a kernel of its own ("unfused")."""
    state = _State(graph, merge)
    _name_inputs(state)
    _make_roots(state)
    groups = _merge_all(state, _Groups(state)) if merge else _Groups(state)
    program = _program(state, groups.ordered())
    if os.environ.get("FUSEGRAPH_VERIFY") == "1":
        verify_program(program)
    scalar.clear_interned()
    return program, state.report


# -- 1. roots and buffers --------------------------------------------------------------------------------------------------

def _identifier(name: str) -> str:
    cleaned = re.sub(r"\W", "_", name)
    return cleaned if cleaned and not cleaned[0].isdigit() else f"v_{cleaned}"


def _fresh(state: _State, name: str) -> str:
    name = _identifier(name)
    if name not in state.buffers:
        return name
    return next(f"{name}_{n}" for n in range(1, 10**9) if f"{name}_{n}" not in state.buffers)


def _add_buffer(state: _State, name: str, shape: tuple[int, ...], node: Node, role: str) -> str:
    name = _fresh(state, name)
    state.buffers[name] = Buffer(name, shape, node.dtype, role)
    return name


def _name_inputs(state: _State) -> None:
    updated = {old for old, _ in state.graph.updates}
    for node in state.graph.inputs:
        state.names[node] = _add_buffer(state, node.name, node.shape, node, "state" if node in updated else "input")


def _storage(node: Node) -> Node:
    """The node whose memory holds `node`'s elements in the same order: below reshapes."""
    while node.op == "reshape":
        node = node.inputs[0]
    return node


def _make_roots(state: _State) -> None:
    chosen = choose_roots(state.graph)
    targets = _update_targets(state, set(chosen))
    outputs = {_storage(node) for node in state.graph.outputs}
    for node in chosen:
        if node in targets:
            state.names[node] = state.names[targets[node]] + NEW
            state.buffers[state.names[node]] = replace(state.buffers[state.names[targets[node]]], name=state.names[node], role="state")
        else:
            state.names[node] = _add_buffer(state, node.op, node.shape, node, "output" if node in outputs else "temp")
    maker = RootMaker(Inliner(state.names))
    for node in chosen:
        if PRIMITIVES[node.op].kind == "scatter":
            _scatter_base(state, maker, node)
        state.roots.append(maker.make(node, state.names[node]))
    _copies(state, maker, targets)


def _update_targets(state: _State, roots: set[Node]) -> dict[Node, Node]:
    """Which root may write straight into which updated input: each root once, and only if the graph returns it in no other way.

    Whatever reads the old value must be able to run first, and the root itself may read it only at the element that it writes.
    """
    outputs = {_storage(node) for node in state.graph.outputs}
    order = _RootOrder(state.graph, roots)
    targets: dict[Node, Node] = {}
    for old, new in state.graph.updates:
        made = _storage(new)
        free = made in roots and made not in outputs and made not in targets and made.shape == old.shape
        if free and _reads_at_its_own_place(state, roots, old, made) and order.overwrite(old, made):
            targets[made] = old
    return targets


class _RootOrder:
    """Which roots must run before which (as bit sets), when views and inlined nodes are looked through."""

    def __init__(self, graph: Graph, roots: set[Node]) -> None:
        self.bit = {node: 1 << i for i, node in enumerate(graph.nodes)}
        self.reads: dict[Node, int] = {}
        self.before: dict[Node, int] = {}
        sources = {node: self.bit[node] for node in graph.inputs}
        for node in graph.nodes:
            if node.op == "input":
                continue
            sources[node] = _union(sources[operand] for operand in node.inputs)
            if node in roots:
                self.reads[node], sources[node] = sources[node], self.bit[node]
                made = (graph.nodes[i] for i in _members(self.reads[node]))
                self.before[node] = _union(self.before[root] | self.bit[root] for root in made if root in roots)

    def overwrite(self, old: Node, new: Node) -> bool:
        """Let root `new` run after all other readers of `old`, unless one of them needs `new`: then False."""
        readers = [root for root, reads in self.reads.items() if reads & self.bit[old] and root is not new]
        if any(self.before[reader] & self.bit[new] for reader in readers):
            return False
        added = _union(self.before[reader] | self.bit[reader] for reader in readers)
        for root in self.before:
            if root is new or self.before[root] & self.bit[new]:
                self.before[root] |= added
        return True


def _union(sets: Iterable[int]) -> int:
    return functools.reduce(operator.or_, sets, 0)


def _members(bits: int) -> Iterator[int]:
    while bits:
        yield (bits & -bits).bit_length() - 1
        bits &= bits - 1


def _reads_at_its_own_place(state: _State, roots: set[Node], old: Node, new: Node) -> bool:
    """Whether root `new` reads the input `old` at no other element than the one that it writes."""
    names = dict(state.names) | {node: f"root {i}" for i, node in enumerate(roots)}
    maker = RootMaker(Inliner(names))
    made = [maker.make(new, "new")]
    if PRIMITIVES[new.op].kind == "scatter" and new.inputs[0] is not old:
        made.append(_base_root(maker, new, "new"))
    return all(load.buffer != names[old] or (root.kind in ("map", "reduce") and load.index == root.index)
               for root in made for load in loads(root))


def _scatter_base(state: _State, maker: RootMaker, node: Node) -> None:
    """A scatter adds to its base: unless that is the very memory, a first kernel copies it there."""
    target, source = state.names[node], node.inputs[0]
    if source in state.names and state.names[source] == old_name(target):
        return
    state.roots.append(_base_root(maker, node, target))


def _base_root(maker: RootMaker, node: Node, target: str) -> Root:
    axes = maker.axes(node.shape)
    index = tuple(map(Index.of, axes))
    return Root(node, target, "map", axes, (), maker.inliner.value(node.inputs[0], index), index)


def _copies(state: _State, maker: RootMaker, targets: dict[Node, Node]) -> None:
    """Outputs that are inputs' memory, and updates that could not be written in place."""
    late: list[Root] = []
    for old, new in state.graph.updates:
        made = _storage(new)
        if targets.get(made) is old or made is old:
            continue
        source = state.names[made]
        if state.buffers[source].role in ("state", "input"):  # its memory may be overwritten too: keep its value first
            source = _copy(state, maker, state.roots, made, source, _add_buffer(state, f"{source}_kept", made.shape, made, "temp"))
        target = state.names[old] + NEW
        state.buffers[target] = replace(state.buffers[state.names[old]], name=target)
        late.append(_copy_root(state, maker, made, source, target))
        state.report.copies.append(state.names[old])
    for node in state.graph.outputs:
        made = _storage(node)
        name = state.names[made]
        if state.buffers[name].role != "output":
            name = _copy(state, maker, state.roots, made, name, _add_buffer(state, f"{name}_out", made.shape, made, "output"))
        state.outputs.append(name)
    state.roots += late


def _copy(state: _State, maker: RootMaker, roots: list[Root], node: Node, source: str, target: str) -> str:
    roots.append(_copy_root(state, maker, node, source, target))
    return target


def _copy_root(state: _State, maker: RootMaker, node: Node, source: str, target: str) -> Root:
    shape = state.buffers[target].shape
    axes = maker.axes(shape)
    index = tuple(map(Index.of, axes))
    value = scalar.load(source, reshaped(index, shape, state.buffers[source].shape), node.dtype)
    return Root(node, target, "map", axes, (), value, index)


# -- 2. groups -------------------------------------------------------------------------------------------------------------

class _Groups:
    """The kernels so far, which depends on which, and the order that they can run in."""

    def __init__(self, state: _State) -> None:
        self.state = state
        self.groups: dict[int, Group] = {}
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self.successors: dict[int, set[int]] = {}
        self.predecessors: dict[int, set[int]] = {}
        self._next = 0
        for position, root in enumerate(state.roots):
            self._add(single(root), position, position)
        self._connect()
        for position, number in enumerate(self.order()):
            self.first[number] = self.last[number] = position

    def _add(self, group: Group, first: int, last: int) -> int:
        number = self._next
        self._next += 1
        self.groups[number], self.first[number], self.last[number] = group, first, last
        self.successors[number], self.predecessors[number] = set(), set()
        return number

    def _edge(self, before: int, after: int) -> None:
        if before != after:
            self.successors[before].add(after)
            self.predecessors[after].add(before)

    def _connect(self) -> None:
        """Edges between the single-root kernels: a reader after its writer, and what overwrites after the readers of the old value.

        A copy back into a state, at the end, overwrites too.
        """
        writers: dict[str, list[int]] = {}
        readers: dict[str, list[int]] = {}
        for number, group in self.groups.items():
            root = group.roots[0]
            for name in {load.buffer for load in loads(root)}:
                readers.setdefault(name, []).append(number)
                for writer in writers.get(name, ()):
                    self._edge(writer, number)
            for writer in writers.get(root.buffer, ()):
                self._edge(writer, number)
            writers.setdefault(root.buffer, []).append(number)
        for name, numbers in writers.items():
            state = old_name(name) or (name if self.state.buffers[name].role == "state" else None)
            if state is not None:
                for reader in readers.get(state, ()):
                    for number in numbers:
                        self._edge(reader, number)

    def path_besides(self, a: int, b: int) -> bool:
        """Whether B depends on A also through a third kernel."""
        limit = self.last[b]
        stack = [n for n in self.successors[a] if n != b]
        seen = set(stack)
        while stack:
            number = stack.pop()
            for after in self.successors[number]:
                if after == b:
                    return True
                if after not in seen and self.first[after] <= limit:
                    seen.add(after)
                    stack.append(after)
        return False

    def replace(self, a: int, b: int, merged: Group) -> int:
        """One kernel in the place of two."""
        number = self._add(merged, min(self.first[a], self.first[b]), max(self.last[a], self.last[b]))
        for old in (a, b):
            for before in self.predecessors[old] - {a, b}:
                self.successors[before].discard(old)
                self._edge(before, number)
            for after in self.successors[old] - {a, b}:
                self.predecessors[after].discard(old)
                self._edge(number, after)
        for old in (a, b):
            for table in (self.groups, self.first, self.last, self.successors, self.predecessors):
                del table[old]  # type: ignore[attr-defined]
        return number

    def ordered(self) -> list[Group]:
        """The kernels in the order in which they run."""
        return [self.groups[number] for number in self.order()]

    def order(self) -> list[int]:
        """A topological order; among those that are ready, the one whose first root came first."""
        waiting = {number: len(before) for number, before in self.predecessors.items()}
        ready = [(self.first[number], number) for number, count in waiting.items() if count == 0]
        heapq.heapify(ready)
        order = []
        while ready:
            _, number = heapq.heappop(ready)
            order.append(number)
            for after in self.successors[number]:
                waiting[after] -= 1
                if waiting[after] == 0:
                    heapq.heappush(ready, (self.first[after], after))
        if len(order) != len(self.groups):
            raise AssertionError("kernels depend on each other in a circle")
        return order


def _merge_all(state: _State, groups: _Groups) -> _Groups:
    """Merge pairs, the most bytes first, until no pair may merge."""
    heap: list[tuple[int, int, int, str]] = []
    known = {number: (group.reads(), group.writes) for number, group in groups.groups.items()}
    readers: dict[str, set[int]] = {}
    for number, (reads, _) in known.items():
        for name in reads:
            readers.setdefault(name, set()).add(number)

    def push(number: int) -> None:
        for a, b, kind, nbytes in _candidates(state, groups, known, readers, number):
            heapq.heappush(heap, (-nbytes, a, b, kind))

    for number in list(groups.groups):
        push(number)
    refused: dict[tuple[int, int], Refusal] = {}
    while heap:
        nbytes, a, b, kind = heapq.heappop(heap)
        if a not in groups.groups or b not in groups.groups:
            continue
        try:
            merged = _attempt(groups, a, b, kind)
        except Refused as refusal:
            refused[a, b] = Refusal(str(refusal), _title(groups.groups[a]), _title(groups.groups[b]), -nbytes)
            continue
        number = groups.replace(a, b, merged)
        known[number] = (merged.reads(), merged.writes)
        for name in known[number][0]:
            readers.setdefault(name, set()).add(number)
        push(number)
    state.report.refusals = sorted((r for (a, b), r in refused.items() if a in groups.groups and b in groups.groups),
                                   key=lambda r: (-r.nbytes, r.producer, r.consumer))
    return groups


def _attempt(groups: _Groups, a: int, b: int, kind: str) -> Group:
    first, second = groups.groups[a], groups.groups[b]
    merged = merge_vertical(first, second) if kind == "vertical" else merge_siblings(first, second)
    if groups.path_besides(a, b) or (kind == "siblings" and (groups.path_besides(b, a) or a in groups.successors[b])):
        raise Refused("a third kernel stands between them")
    _check_in_place(groups.state, merged)
    if any(old_name(root.buffer) for root in merged.roots):
        make_loop(merged, "trial", merged.writes, ())
    return merged


def _check_in_place(state: _State, group: Group) -> None:
    """What a group overwrites, it may read only at the element that it is writing."""
    written = {old_name(root.buffer) or root.buffer: root for root in group.roots if state.buffers[root.buffer].role == "state"}
    for root in group.roots:
        for load in loads(root):
            writer = written.get(load.buffer)
            if writer is not None and load.index != writer.index:
                raise Refused(f"{load.buffer} would be overwritten while other points still read it")


def _candidates(state: _State, groups: _Groups, known: dict[int, tuple[frozenset[str], frozenset[str]]],
                readers: dict[str, set[int]], number: int) -> Iterator[tuple[int, int, str, int]]:
    """Pairs with `number` that could merge, with the bytes that a merge saves."""
    reads, writes = known[number]
    alive = groups.groups
    for name in writes:
        for other in readers.get(name, ()):
            if other in alive and other != number and other in groups.successors[number]:
                yield number, other, "vertical", 2 * state.buffers[name].nbytes
    for before in groups.predecessors[number]:
        shared = known[before][1] & reads
        if shared:
            yield before, number, "vertical", 2 * sum(state.buffers[name].nbytes for name in shared)
    if alive[number].kind == "nest":
        beside = {other for name in reads for other in readers.get(name, ()) if other in alive and other != number}
        if not alive[number].space:
            beside |= {other for other, group in alive.items() if other != number and group.kind == "nest" and not group.space}
        for other in beside:
            a, b = (number, other) if groups.first[number] < groups.first[other] else (other, number)
            if alive[other].kind == "nest" and b not in groups.successors[a]:
                yield a, b, "siblings", sum(state.buffers[name].nbytes for name in reads & known[other][0])


def _title(group: Group) -> str:
    return "+".join(dict.fromkeys(root.node.op for root in group.roots))


# -- 4. the program --------------------------------------------------------------------------------------------------------

def _program(state: _State, ordered: list[Group]) -> Program:
    readers: dict[str, int] = {}
    for group in ordered:
        for name in group.reads():
            readers[name] = readers.get(name, 0) + 1
    loops: list[Loop] = []
    for number, group in enumerate(ordered):
        if any(axis.extent == 0 for axis in group.space) or (group.kind == "scatter" and group.work == 0):
            continue
        exported = frozenset(name for name in group.writes if _is_exported(state, group, name, readers))
        nodes = _nodes_of(state, group)
        loop, local = make_loop(group, f"k{number}_{_short(nodes)}", exported, nodes)
        loops.append(loop)
        state.buffers.update({buffer.name: buffer for buffer in local})
        state.report.kernels.append((loop.name, nodes))
    state.buffers = {name: buffer for name, buffer in state.buffers.items() if old_name(name) is None}
    used = {name for loop in loops for name in loop.reads() + loop.writes()} | set(state.outputs)
    kept = {name: b for name, b in state.buffers.items() if name in used or b.role in ("input", "state")}
    inputs = tuple(state.names[node] for node in state.graph.inputs)
    return Program(state.graph.name, kept, tuple(loops), inputs, tuple(state.outputs), tuple(_guards(state)))


def _is_exported(state: _State, group: Group, name: str, readers: dict[str, int]) -> bool:
    """Whether something outside of the group needs the buffer."""
    return state.buffers[name].role in ("output", "state") or readers.get(name, 0) > (name in group.reads()) or group.kind == "scatter" \
        or any(root.node.op.startswith("put") and root.kind == "map" for root in group.roots if root.buffer == name)


def _nodes_of(state: _State, group: Group) -> tuple[Node, ...]:
    """The operations that run inside of a kernel, in graph order (views left out)."""
    mine = {root.node for root in group.roots}
    found: set[Node] = set()
    stack = [root.node for root in group.roots if state.names.get(_storage(root.node)) == root.buffer or root.kind != "map"]
    while stack:
        node = stack.pop()
        found.add(node)
        stack += [operand for operand in node.inputs if operand not in found and (operand not in state.names or operand in mine)]
    return tuple(node for node in state.graph.nodes if node in found and node.op not in ("input", "constant")
                 and PRIMITIVES[node.op].kind != "view")


def _short(nodes: tuple[Node, ...]) -> str:
    names = list(dict.fromkeys(node.op for node in nodes)) or ["copy"]
    anchors = [name for name in names if PRIMITIVES[name].kind in ("contract", "reduce", "scatter", "gather")] if nodes else names
    rest = [name for name in names if name not in anchors]
    return "_".join((anchors + rest)[:4])


def _guards(state: _State) -> Iterator[Guard]:
    """Checks of index arguments, before anything runs."""
    for node in state.graph.nodes:
        source = node
        if node.op != "check_index":
            continue
        while source.op in ("check_index", "cast") or (PRIMITIVES.get(source.op) and PRIMITIVES[source.op].kind == "view"
                                                       and len(source.inputs) == 1 and source.op != "pad"):
            source = source.inputs[0]
        if source.op == "input":
            p = node.params
            yield Guard(state.names[source], p["low"], p["high"], p["allow"], p["what"], str(node.location))


__all__ = ["FusionReport", "fuse", "base", "replace"]
