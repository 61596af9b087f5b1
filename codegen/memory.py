"""The memory plan of a program: where every buffer lives, and the offsets in the arena.

A temp lives from the kernel that writes it to the last that reads it; temps that are never alive together share bytes. Temps
that the same kernel reads for the last time and writes for the first time, element for element, may share them as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from fusegraph.ir.index import Axis
from fusegraph.ir.loops import Loop, Program, Store
from fusegraph.ir.scalar import walk
from fusegraph.records import dataclass
from fusegraph.runtime.memory import Interval, plan_offsets

ALIGN = 64
THREAD_GAP = 16 * 1024  # between the workspaces of two threads: adjacent ones share lines through the prefetcher


@dataclass(frozen=True)
class MemoryPlan:
    """externals: buffers whose address is in the table (inputs, states, outputs), in table order.

    arena: temp -> byte offset; arena_bytes: its size; unshared_bytes: what the temps would take without sharing.
    locals: local, or temp of a thread's own -> byte offset in a thread's workspace; local_bytes: their size.
    """

    externals: tuple[str, ...]
    arena: dict[str, int]
    arena_bytes: int
    unshared_bytes: int
    locals: dict[str, int]
    local_bytes: int


def plan_memory(
    program: Program,
    in_place: Callable[[Loop], bool] = lambda loop: True,
    phases: Sequence[int] = (),
    together: Sequence[range] = (),
    own: Mapping[str, int] = MappingProxyType({}),
) -> MemoryPlan:
    """Places for all buffers of `program`. in_place: whether what a loop writes may take over what dies there.

    phases: how many barriers are before each kernel in any case. What dies in a phase is then free from the next phase on:
    reused at once, it would take a barrier more. together: loops that are not run one after another: what one of them touches
    is alive during all. own: temps that lie in the threads' workspaces, and the number of bytes that each thread needs.
    """
    externals = tuple(name for name, b in program.buffers.items() if b.role in ("input", "state", "output"))
    spans = {name: span for name, span in _spans(program, together).items() if name not in own}
    owner = _in_place_owners(program, spans, in_place, phases)
    names = [name for name in spans if owner[name] == name]
    whole = (
        {
            name: (
                min(spans[n][0] for n in spans if owner[n] == name),
                max(spans[n][1] for n in spans if owner[n] == name),
            )
            for name in names
        }
        if len(spans) < 200
        else _owner_spans(spans, owner)
    )
    ends = {phase: number for number, phase in enumerate(phases)}
    last = [ends[phase] for phase in phases] or range(len(program.loops))
    intervals = [Interval(_padded(program.buffers[n].nbytes), whole[n][0], last[whole[n][1]]) for n in names]
    offsets, peak = plan_offsets(intervals, ALIGN)
    placed = dict(zip(names, offsets, strict=True))
    arena = {name: placed[owner[name]] for name in spans}
    local, at = {}, 0
    for name, buffer in program.buffers.items():
        if buffer.role == "local" or name in own:
            local[name] = at
            at += _padded(own.get(name, buffer.nbytes))
    return MemoryPlan(externals, arena, peak, sum(_padded(program.buffers[name].nbytes) for name in spans), local, at)


def _padded(nbytes: int) -> int:
    return max(-(-nbytes // ALIGN) * ALIGN, ALIGN)


def _owner_spans(spans: dict[str, tuple[int, int]], owner: dict[str, str]) -> dict[str, tuple[int, int]]:
    out: dict[str, tuple[int, int]] = {}
    for name, (first, last) in spans.items():
        a, b = out.get(owner[name], (first, last))
        out[owner[name]] = (min(a, first), max(b, last))
    return out


def _spans(program: Program, together: Sequence[range]) -> dict[str, tuple[int, int]]:
    """For each temp its first and last kernel."""
    spans: dict[str, tuple[int, int]] = {}
    units = {number: unit for unit in together for number in unit}
    for number, loop in enumerate(program.loops):
        unit = units.get(number, range(number, number + 1))
        for name in loop.reads() + loop.writes():
            if program.buffers[name].role == "temp":
                spans[name] = (spans.get(name, (unit[0], 0))[0], unit[-1])
    return spans


def _in_place_owners(
    program: Program, spans: dict[str, tuple[int, int]], in_place: Callable[[Loop], bool], phases: Sequence[int]
) -> dict[str, str]:
    """Which temp's bytes each temp uses: its own, or those of one that dies, element for element, where it is born."""
    owner = {name: name for name in spans}
    beside = _read_beside(program, phases)
    taken: set[str] = set()
    for number, loop in enumerate(program.loops):
        for stage in loop.stages[-1:] if in_place(loop) else ():
            for store in stage.stores:
                for name in _dying_at(program, loop, store, number, spans, stage.axes):
                    if (
                        name not in taken
                        and (number, name) not in beside
                        and spans.get(store.buffer, (-1, 0))[0] == number
                        and owner[store.buffer] == store.buffer
                    ):
                        owner[store.buffer] = owner[name]
                        taken.add(name)
                        break
    return owner


def _read_beside(program: Program, phases: Sequence[int]) -> set[tuple[int, str]]:
    """(kernel, buffer) where a kernel that no barrier stands before reads the buffer too."""
    readers: dict[tuple[int, str], list[int]] = {}
    for number, (loop, phase) in enumerate(zip(program.loops, phases, strict=False)):
        for name in loop.reads():
            readers.setdefault((phase, name), []).append(number)
    return {(number, name) for (_, name), numbers in readers.items() for number in numbers[1:]}


def _dying_at(
    program: Program, loop: Loop, store: Store, number: int, spans: dict[str, tuple[int, int]], axes: tuple[Axis, ...]
) -> list[str]:
    """Temps that `loop` reads for the last time, each only at the element that `store` writes, of the same type and size."""
    target = program.buffers[store.buffer]
    if target.role != "temp" or loop.schedule == "scatter" or len(loop.stages[-1].stores) > 1:
        return []
    indices: dict[str, set[object]] = {}
    for stage in loop.stages:
        for expr in walk(stage.expressions()):
            if expr.op == "load":
                indices.setdefault(expr.attribute.buffer, set()).add(expr.attribute.index)
    return [
        name
        for name, seen in indices.items()
        if spans.get(name, (0, -1))[1] == number
        and spans[name][0] < number
        and seen == {store.index}
        and (program.buffers[name].dtype, program.buffers[name].shape) == (target.dtype, target.shape)
    ]
