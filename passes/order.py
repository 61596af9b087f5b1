"""Step 3 of fusion: the order of the kernels, with few barriers; or, where memory is short, with few bytes alive.

Threads meet at a barrier before a kernel that needs what another has written since the last one (or overwrites what another
reads). Kernels that depend on no other (zeros that a scatter adds to, copies of parameters in another layout) can run at any
time before their first reader: they run with the kernels before that reader's barrier, so that they bring no barrier of their
own, and their results do not lie about for long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusegraph.passes.groups import Group, old_name
from fusegraph.passes.merge import KernelGraph
from fusegraph.passes.merge_pairs import SMALL


def ordered(kernels: KernelGraph) -> list[Group]:
    """The kernels in the order in which they run."""
    order = kernels.order()
    free = {n for n in order if not kernels.predecessors[n] and kernels.successors[n]}
    rest = [n for n in order if n not in free]
    phase = dict(zip(rest, _phases([kernels.groups[n] for n in rest]), strict=True))
    late: dict[int, list[int]] = {}
    for number in order:
        if number in free:
            first = min((phase[n] for n in kernels.successors[number] if n in phase), default=0)
            late.setdefault(max(first - 1, 0), []).append(number)
    found = late.pop(0, []) if 0 in late and _is_first(kernels, late[0], phase) else []
    for position, number in enumerate(rest):
        found.append(number)
        if position + 1 == len(rest) or phase[rest[position + 1]] != phase[number]:
            found += late.pop(phase[number], [])
    return [kernels.groups[n] for n in found]


def _is_first(kernels: KernelGraph, free: Sequence[int], phase: dict[int, int]) -> bool:
    """Whether a kernel of the first phase needs one of `free`: then they all must run before it."""
    return any(phase.get(n) == 0 for number in free for n in kernels.successors[number])


def _phases(groups: Sequence[Group]) -> list[int]:
    """For each kernel, how many barriers come before it."""
    phases: list[int] = []
    read: set[str] = set()
    written: set[str] = set()
    for group in groups:
        reads = {_memory(name) for name in group.reads()}
        writes = {_memory(name) for name in group.writes}
        new = bool(written & (reads | writes) or read & writes)
        if new:
            read, written = set(), set()
        read |= reads
        written |= writes
        phases.append((phases[-1] if phases else 0) + new)
    return phases


def _memory(name: str) -> str:
    return old_name(name) or name


def frugal(kernels: KernelGraph) -> list[Group]:
    """The kernels in an order that keeps few bytes alive: of those that may run, the one that frees most, or adds least.

    What only overwrites a state (a counter of random numbers, say) waits: a value that is computed from it may be wanted again.
    """
    waiting = {number: len(before) for number, before in kernels.predecessors.items()}
    ready = {number for number, count in waiting.items() if count == 0}
    left: dict[str, set[int]] = {}
    for number, group in kernels.groups.items():
        for name in group.reads() | group.writes:
            left.setdefault(name, set()).add(number)
    sizes = {name: buffer.nbytes for name, buffer in kernels.state.buffers.items() if buffer.role == "temp"}
    found: list[int] = []
    while ready:
        number = min(ready, key=lambda n: _demand(kernels, n, left, sizes))
        found.append(number)
        ready.remove(number)
        for name in kernels.groups[number].reads() | kernels.groups[number].writes:
            left[name].discard(number)
        for after in kernels.successors[number]:
            waiting[after] -= 1
            if waiting[after] == 0:
                ready.add(after)
    return [kernels.groups[number] for number in found]


def _demand(
    kernels: KernelGraph, number: int, left: Mapping[str, set[int]], sizes: Mapping[str, int]
) -> tuple[bool, int, int]:
    """What to sort ready kernels by: whether it can wait, bytes that it adds less those that it frees, its place."""
    group = kernels.groups[number]
    names = {name for name in group.reads() | group.writes if name in sizes}
    added = sum(sizes[name] for name in names & group.writes if left[name] != {number})
    freed = sum(sizes[name] for name in names - group.writes if left[name] == {number})
    overwrites = any(old_name(name) for name in group.writes)
    return overwrites and added - freed > -SMALL, added - freed, kernels.first[number]
