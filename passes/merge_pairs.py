"""Pairs of kernels that may merge, the most bytes first."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from fusegraph.ir.loops import Buffer
from fusegraph.passes.groups import Group

if TYPE_CHECKING:
    from fusegraph.passes.merge import KernelGraph

SMALL = 1 << 12  # bytes: of a value that may lie about
COMMON_READERS = 8
COMMON_BYTES = 64
"""What more kernels read (a learning rate, which every update of a parameter reads) makes a pair of each two of them. They wait
until no other pair saves more than they could: most kernels are part of others by then. The order of pairs is as ever."""


class Pairs:
    """Pairs of kernels of `kernels` that could merge. `pop` gives each once, in order of (bytes saved, numbers)."""

    def __init__(self, kernels: KernelGraph) -> None:
        self._kernels, self._buffers = kernels, kernels.state.buffers
        self._heap: list[tuple[int, int, int, str]] = []
        self._last: tuple[int, int, int, str] | None = None
        self._known: dict[int, tuple[frozenset[str], frozenset[str]]] = {}
        self._readers: dict[str, set[int]] = {}
        for number, group in kernels.groups.items():
            self._read(number, group)
        common = [name for name, readers in self._readers.items() if len(readers) > COMMON_READERS]
        self._common = frozenset(name for name in common if self._buffers[name].nbytes <= COMMON_BYTES)
        self._least = self._bytes(self._common)  # a pair that shares nothing else saves no more
        self._waiting = True
        for number in kernels.groups:
            self._push(number)

    def add(self, number: int, *gone: int) -> None:
        """A merged kernel is there, instead of others: it forms pairs of its own."""
        self._read(number, self._kernels.groups[number])
        for other in gone:
            for name in self._known[other][0]:
                self._readers[name].discard(other)
        self._push(number)

    def pop(self) -> tuple[int, int, str, int] | None:
        """The next pair (both kernels are there), how it would merge, and the bytes that it saves; None: no more."""
        alive = self._kernels.groups
        while True:
            if self._waiting and (not self._heap or -self._heap[0][0] <= self._least):
                self._waiting = False
                for number in alive:
                    self._push_siblings(number, self._by_common(number))
            if not self._heap:
                return None
            pair = heapq.heappop(self._heap)
            nbytes, a, b, kind = pair
            if a in alive and b in alive and pair != self._last:
                self._last = pair
                return a, b, kind, -nbytes

    def _read(self, number: int, group: Group) -> None:
        self._known[number] = (group.reads(), group.writes)
        for name in self._known[number][0]:
            self._readers.setdefault(name, set()).add(number)

    def _push(self, number: int) -> None:
        for a, b, nbytes in self._vertical(number):
            heapq.heappush(self._heap, (-nbytes, a, b, "vertical"))
        beside = self._readers_of(self._known[number][0] - self._common)
        self._push_siblings(number, beside if self._waiting else beside | self._by_common(number))

    def _push_siblings(self, number: int, beside: Iterable[int]) -> None:
        for a, b, nbytes in self._siblings(number, beside):
            heapq.heappush(self._heap, (-nbytes, a, b, "siblings"))

    def _vertical(self, number: int) -> Iterator[tuple[int, int, int]]:
        """Pairs of a producer and a consumer, one of which is `number`."""
        reads, writes = self._known[number]
        for name in writes:
            for other in self._readers.get(name, ()):
                if other in self._kernels.successors[number]:
                    yield number, other, 2 * self._buffers[name].nbytes
        for before in self._kernels.predecessors[number]:
            shared = self._known[before][1] & reads
            if shared:
                yield before, number, 2 * self._bytes(shared)

    def _readers_of(self, names: Iterable[str]) -> set[int]:
        """Kernels that read one of `names`."""
        return {number for name in names for number in self._readers[name]}

    def _by_common(self, number: int) -> set[int]:
        """Kernels that read nothing that `number` reads but what is common, and those that, like it, have no space."""
        alive, reads = self._kernels.groups, self._known[number][0]
        beside = self._readers_of(reads & self._common)
        if not alive[number].space:
            beside |= {other for other, group in alive.items() if group.kind == "nest" and not group.space}
        return {n for n in beside if not (reads & self._known[n][0]) - self._common}

    def _siblings(self, number: int, beside: Iterable[int]) -> Iterator[tuple[int, int, int]]:
        """Pairs of `number` and an older kernel of `beside`, neither of which needs the other."""
        alive, reads = self._kernels.groups, self._known[number][0]
        if alive[number].kind != "nest":
            return
        mine = _large(self._buffers, reads) if self._kernels.state.save_memory else frozenset()
        for other in beside:
            if other >= number or alive[other].kind != "nest":
                continue
            theirs = self._known[other][0]
            if mine and _large(self._buffers, theirs) not in (mine, frozenset()):
                continue  # side by side, the two would need what both of them read at the same time
            first = self._kernels.first
            a, b = (number, other) if first[number] < first[other] else (other, number)
            if b not in self._kernels.successors[a]:
                yield a, b, self._bytes(reads & theirs)

    def _bytes(self, names: Iterable[str]) -> int:
        return sum(self._buffers[name].nbytes for name in names)


def _large(buffers: Mapping[str, Buffer], names: frozenset[str]) -> frozenset[str]:
    """Those that take memory worth saving."""
    found = (buffers[name] for name in names)
    return frozenset(buffer.name for buffer in found if buffer.role == "temp" and buffer.nbytes > SMALL)
