"""Step 2 of fusion: kernels and their order; pairs merge, the most bytes first, until no pair may."""

from __future__ import annotations

import functools
import heapq
import operator
from collections.abc import Iterable

from fusegraph.passes.fusion_state import FusionState, Merge
from fusegraph.passes.groups import (
    Group,
    Refusal,
    Refused,
    joint_nodes,
    loads,
    merge_siblings,
    merge_vertical,
    old_name,
    single,
)
from fusegraph.passes.merge_pairs import Pairs
from fusegraph.passes.schedule import make_loop


class KernelGraph:
    """The kernels so far, which depends on which, and the order that they can run in.

    `below` holds for each kernel all that depend on it, also through others, as a bit set; `bits` are those of a kernel: one for
    each root.
    """

    def __init__(self, state: FusionState) -> None:
        self.state = state
        self.groups: dict[int, Group] = {}
        self.first: dict[int, int] = {}
        self.bits: dict[int, int] = {}
        self.below: dict[int, int] = {}
        self.successors: dict[int, set[int]] = {}
        self.predecessors: dict[int, set[int]] = {}
        self._next = 0
        for position, root in enumerate(state.roots):
            self._add(single(root), position)
        self._connect()
        order = self.order()
        self.first = {number: position for position, number in enumerate(order)}
        self.bits = {number: 1 << number for number in order}
        for number in reversed(order):
            self.below[number] = _union(self.below[after] | self.bits[after] for after in self.successors[number])

    def _add(self, group: Group, first: int) -> int:
        number = self._next
        self._next += 1
        self.groups[number], self.first[number] = group, first
        self.successors[number], self.predecessors[number] = set(), set()
        return number

    def _edge(self, before: int, after: int) -> None:
        if before != after:
            self.successors[before].add(after)
            self.predecessors[after].add(before)

    def _connect(self) -> None:
        """Edges between the single-root kernels: a reader after its writer, what overwrites after readers of the old value.

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
            for writer in (writer for name in sorted(root.after) for writer in writers.get(name, ())):
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
        return any(self.below[n] & self.bits[b] for n in self.successors[a] if n != b)

    def replace(self, a: int, b: int, merged: Group) -> int:
        """One kernel in the place of two."""
        number = self._add(merged, min(self.first[a], self.first[b]))
        for old in (a, b):
            for before in self.predecessors[old] - {a, b}:
                self.successors[before].discard(old)
                self._edge(before, number)
            for after in self.successors[old] - {a, b}:
                self.predecessors[after].discard(old)
                self._edge(number, after)
        self.bits[number], self.below[number] = self.bits[a] | self.bits[b], self.below[a] | self.below[b]
        for old in (a, b):
            for table in (self.groups, self.first, self.bits, self.below, self.successors, self.predecessors):
                del table[old]  # type: ignore[attr-defined]
        self._tell(number)
        return number

    def _tell(self, number: int) -> None:
        """Let kernels above `number` know what is below them by now."""
        stack = [number]
        while stack:
            below = stack.pop()
            reached = self.below[below] | self.bits[below]
            for above in self.predecessors[below]:
                if reached & ~self.below[above]:
                    self.below[above] |= reached
                    stack.append(above)

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


def _union(sets: Iterable[int]) -> int:
    return functools.reduce(operator.or_, sets, 0)


def merge_all(state: FusionState, groups: KernelGraph) -> KernelGraph:
    """Merge pairs, the most bytes first, until no pair may merge."""
    pairs = Pairs(groups)
    refused: dict[tuple[int, int], tuple[str, int]] = {}
    while (state.limit is None or len(state.report.merges) < state.limit) and (pair := pairs.pop()) is not None:
        a, b, kind, nbytes = pair
        try:
            merged = _attempt(groups, a, b, kind)
        except Refused as refusal:
            refused[a, b] = str(refusal), nbytes
            continue
        first, second = groups.groups[a], groups.groups[b]
        state.report.merges.append(Merge(_title(first), _title(second), nbytes, *joint_nodes(first, second)))
        pairs.add(groups.replace(a, b, merged), a, b)
    state.report.refusals = sorted(
        (
            _refusal(rule, groups.groups[a], groups.groups[b], nbytes)
            for (a, b), (rule, nbytes) in refused.items()
            if a in groups.groups and b in groups.groups
        ),
        key=lambda r: (-r.nbytes, r.producer, r.consumer),
    )
    return groups


def _refusal(rule: str, a: Group, b: Group, nbytes: int) -> Refusal:
    return Refusal(rule, _title(a), _title(b), nbytes, *joint_nodes(a, b))


def _attempt(groups: KernelGraph, a: int, b: int, kind: str) -> Group:
    first, second = groups.groups[a], groups.groups[b]
    _check_wanted(groups.state.without, first, second, kind)
    merged = merge_vertical(first, second) if kind == "vertical" else merge_siblings(first, second)
    if groups.path_besides(a, b) or (kind == "siblings" and (groups.path_besides(b, a) or a in groups.successors[b])):
        raise Refused("a third kernel stands between them")
    _check_in_place(groups.state, merged)
    if any(old_name(root.buffer) for root in merged.roots):
        make_loop(merged, "trial", merged.writes, ())
    return merged


def _check_wanted(without: frozenset[str], a: Group, b: Group, kind: str) -> None:
    """Raise Refused for what the user has switched off (see choices.py)."""
    if kind == "siblings" and "siblings" in without:
        raise Refused("disable=['siblings'] keeps kernels apart that read the same")
    if "epilogues" in without and "contract" in (a.kind, b.kind):
        raise Refused("disable=['epilogues'] keeps products and convolutions apart from other operations")


def _check_in_place(state: FusionState, group: Group) -> None:
    """What a group overwrites, it may read only at the element that it is writing."""
    written = {
        old_name(root.buffer) or root.buffer: root for root in group.roots if state.buffers[root.buffer].role == "state"
    }
    for root in group.roots:
        for load in loads(root):
            writer = written.get(load.buffer)
            if writer is not None and load.index != writer.index:
                raise Refused(f"{load.buffer} would be overwritten while other points still read it")


def _title(group: Group) -> str:
    return "+".join(dict.fromkeys(root.node.op for root in group.roots))
