"""Where threads meet: before a kernel that touches what another thread wrote, or writes what another thread read.

Kernels that run on thread 0 alone need no barrier among themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

from fusegraph.codegen.cpu.kernel import EmittedKernel
from fusegraph.codegen.cpu.stretches import Stretch
from fusegraph.codegen.memory import MemoryPlan, plan_memory
from fusegraph.ir.loops import Program

__all__ = ["barriers_before", "place_buffers"]

Region = tuple[str, int, int]  # where, first byte, end


def place_buffers(program: Program, kernels: Sequence[EmittedKernel], stretches: Sequence[Stretch] = ()) -> MemoryPlan:
    """The memory plan of `program`: one with fewer barriers where that takes no more memory."""
    together = [stretch.kernels() for stretch in stretches]
    own = {name: program.buffers[name].nbytes // stretch.blocks for stretch in stretches for name in stretch.own}
    plan = plan_memory(program, together=together, own=own)
    needed, met = (barriers_before(program, kernels, memory, stretches) for memory in (None, plan))
    if needed[-1:] == met[-1:]:
        return plan
    apart = plan_memory(program, phases=needed, together=together, own=own)
    return apart if apart.arena_bytes <= plan.arena_bytes else plan


def barriers_before(
    program: Program,
    kernels: Sequence[EmittedKernel],
    memory: MemoryPlan | None,
    stretches: Sequence[Stretch] = (),
) -> list[int]:
    """For each kernel, how many barriers a step has passed when it begins.

    memory: temps that share bytes are in each other's way too; None: only what the kernels read and write counts. stretches:
    kernels that are run as one.
    """
    regions = _Regions(program, memory)
    # every thread checks the guarded inputs: a late one must not see new values
    checked = {regions.of(guard.buffer) for guard in program.guards}
    written: dict[bool, set[Region]] = {True: set(), False: set()}  # by parallel kernels, by thread 0 alone
    read: dict[bool, set[Region]] = {True: checked, False: set()}
    counts: list[int] = []
    units = {stretch.first: stretch.kernels() for stretch in stretches}
    private = {name for name, buffer in program.buffers.items() if buffer.role == "local"}
    private.update(name for stretch in stretches for name in stretch.own)
    while len(counts) < len(kernels):
        unit = units.get(len(counts), range(len(counts), len(counts) + 1))
        parallel = kernels[unit[0]].parallel
        reads, writes = set[Region](), set[Region]()
        for loop in (program.loops[number] for number in unit):
            reads |= {regions.of(name) for name in loop.reads() if name not in private}
            writes |= {regions.of(name) for name in loop.writes() if name not in private}
        others = (True, False) if parallel else (True,)
        meets = any(_clash(written[kind], reads | writes) or _clash(read[kind], writes) for kind in others)
        if meets:
            written, read = {True: set(), False: set()}, {True: set(), False: set()}
        read[parallel] |= reads
        written[parallel] |= writes
        counts += [(counts[-1] if counts else 0) + meets] * len(unit)
    return counts


class _Regions:
    """What of memory a buffer is: its bytes in the arena, or itself."""

    def __init__(self, program: Program, memory: MemoryPlan | None) -> None:
        self._arena = {} if memory is None else memory.arena
        self._program = program

    def of(self, name: str) -> Region:
        """(where, first byte, end)."""
        if name in self._arena:
            start = self._arena[name]
            return ("arena", start, start + self._program.buffers[name].nbytes)
        return (name, 0, 1)


def _clash(some: set[Region], others: set[Region]) -> bool:
    """Whether two regions share a byte. Outside of the arena only equal ones do."""
    if any(first < end for _, first, end in some & others):
        return True
    inside = [b for b in others if b[0] == "arena"]
    return bool(inside) and any(a[0] == "arena" and a[1] < b[2] and b[1] < a[2] for a in some for b in inside)
