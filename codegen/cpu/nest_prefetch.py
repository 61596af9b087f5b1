"""Rows that come from main memory are asked for one row ahead, in the stage that computes most.

A stage that only looks for the maximum of a row waits for memory, the next one only computes: without help the two
never overlap, since the processor's own prefetcher stops at the end of a page. Softmax of 4096 x 1024 numbers on one
core of a Zen 3, CPU time: forward 3.6 ms without and 2.9 ms with, forward and backward 5.8 and 4.6 ms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusegraph.codegen.cpu.body import Copy
from fusegraph.codegen.cpu.nest_memory import MemoryWriter
from fusegraph.codegen.cpu.nest_plan import Plan, stage_weight
from fusegraph.codegen.cpu.nest_rewrite import inner_axes, stage_roots
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Loop, Stage
from fusegraph.ir.scalar import walk
from fusegraph.records import dataclass

_LINE = 64  # bytes
_LEAST_ROW = 1 << 11  # bytes, half a page: the processor fetches shorter rows by itself
_LEAST_BUFFER = 1 << 20  # bytes; smaller ones may still be in the second-level cache


@dataclass(frozen=True)
class Stream:
    """Memory that a row passes through: `index` is its element at a point, of the row to fetch."""

    buffer: str
    index: Index
    itemsize: int
    written: bool


@dataclass(frozen=True)
class Prefetch:
    """The streams that stage number `stage` fetches."""

    stage: int
    streams: tuple[Stream, ...]

    def write(self, memory: MemoryWriter, copies: Sequence[Copy]) -> None:
        """Fetch the lines that belong to some neighbouring vectors."""
        elements = sum(copy.count for copy in copies)
        for stream in self.streams:
            for at in range(0, elements, _LINE // stream.itemsize):
                memory.prefetch(stream.buffer, stream.index + at, copies[0], stream.written)


def plan_prefetch(loop: Loop, plan: Plan, buffers: Mapping[str, Buffer]) -> Prefetch | None:
    """For a loop in rows whose stages all walk over one axis; None where nothing is worth it."""
    if plan.axis is not None or not loop.space or len(loop.stages) < 2:
        return None
    number = max(range(len(loop.stages)), key=lambda n: _weight(loop.stages[n], plan, n))
    axis = plan.stages[number].axis
    if axis is None or inner_axes(loop.stages[number]) != (axis,) or not _weight(loop.stages[number], plan, number):
        return None
    found = [s for stage in loop.stages for s in _streams(stage, loop.space[-1], axis, buffers, loop.writes())]
    return Prefetch(number, tuple(dict.fromkeys(found))) if found else None


def _weight(stage: Stage, plan: Plan, number: int) -> float:
    return 0.0 if plan.stages[number].static or plan.stages[number].axis is None else stage_weight(stage)


def _streams(
    stage: Stage, row: Axis, axis: Axis, buffers: Mapping[str, Buffer], written: Sequence[str]
) -> list[Stream]:
    """What a stage reads of a row, one row ahead."""
    streams = []
    for node in walk(stage_roots(stage)):
        if node.op != "load" or node.attribute.mask or node.attribute.buffer in written:
            continue
        buffer, index = buffers[node.attribute.buffer], node.attribute.index[0]
        size, step = buffer.dtype.itemsize, index.coefficient(row)
        large = buffer.role != "local" and buffer.nbytes >= _LEAST_BUFFER and axis.extent * size >= _LEAST_ROW
        if large and index.is_affine and index.coefficient(axis) == 1 and step >= axis.extent:
            streams.append(Stream(buffer.name, index + step, size, False))
    return streams
