"""Large results are written past the caches.

A store to memory that is in no cache first reads the line that it will overwrite, and later pushes out lines that somebody
may still want: a third of the traffic of a = b + c. Results of megabytes that no kernel of the step reads again are written
by non-temporal stores instead (Intel 64 and IA-32 Architectures Optimization Reference Manual, "Memory optimization using
non-temporal stores"). They must be aligned; `OutputMemory` gives such outputs the start of a cache line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Loop, Program
from fusegraph.runtime.memory import CACHE_LINE

if TYPE_CHECKING:
    from fusegraph.codegen.cpu.body import Copy

_LEAST_BYTES = 4 << 20  # smaller results may be read from a cache by whoever called
_LEAST_VECTOR = 32  # bytes: half a line; shorter pieces of a line may leave in more than one go


def streamed_buffers(loop: Loop, program: Program) -> frozenset[str]:
    """The buffers that `loop` writes past the caches."""
    read = {name for other in program.loops for name in other.reads()}
    written = [name for name in loop.writes() if name not in read]
    buffers = [program.buffers[name] for name in written]
    large = {b.name for b in buffers if b.role == "output" and b.nbytes >= _LEAST_BYTES}
    large -= program.rows.keys()  # a few rows are a small array, that may begin anywhere
    added = {store.buffer for stage in loop.stages for store in stage.stores if store.mode != "store"}
    return frozenset(large - added)


def alignment(index: Index, axis: Axis, copy: Copy, itemsize: int) -> int | None:
    """The alignment in bytes of a whole vector at `index`, for a vector axis and a buffer at the start of a cache line.

    None where it is less than the vector's size (or a line). Positions along the vector axis start at multiples of the lanes.
    """
    wanted = min(copy.lanes * itemsize, CACHE_LINE)
    if wanted < _LEAST_VECTOR or copy.count < copy.lanes or not index.is_affine or index.coefficient(axis) != 1:
        return None
    steps = [index.constant + copy.offset, *(step for atom, step in index.terms if atom != axis)]
    return wanted if all(step * itemsize % wanted == 0 for step in steps) else None
