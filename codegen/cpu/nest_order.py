"""The order in which a loop walks through what other loops have written: theirs, so that it can run beside them.

The gradients of query, key and value are written head by head, [b, h, t, c], and copied to their places in [b, t, 3, h, c].
Walked through in the order of the copy, the first token needs all heads; in the order b, h, t, 3, c a head is copied as soon
as it is there (see stretches.py), from a cache.
"""

from __future__ import annotations

from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Loop, Program
from fusegraph.ir.scalar import walk
from fusegraph.records import replace

__all__ = ["in_written_order"]

_LEAST_RUN = 64  # bytes that lie side by side in all buffers: shorter runs are better written in the order of memory


def in_written_order(program: Program) -> Program:
    """`program` with loops that only copy and compute element by element over the leading axes of what they read first."""
    if program.rows:
        return program
    led = _led(program)
    loops = [_reordered(loop, program, led) for loop in program.loops]
    changed = any(new is not old for new, old in zip(loops, program.loops, strict=True))
    return replace(program, loops=tuple(loops)) if changed else program


def _led(program: Program) -> dict[str, int]:
    """For each temp that one store writes, how many of its leading dimensions are the leading axes of the loop that does."""
    found: dict[str, int] = {}
    for loop in program.loops:
        for store in (store for stage in loop.stages for store in stage.stores):
            same = 0
            for index, axis in zip(store.index, loop.space, strict=False):
                if index.axis is not axis:
                    break
                same += 1
            found[store.buffer] = 0 if store.buffer in found else same
    return found


def _reordered(loop: Loop, program: Program, led: dict[str, int]) -> Loop:
    """With the axes that lead all temps that it reads outermost, if they are not, and memory is still walked through in runs."""
    if loop.schedule != "nest" or len(loop.stages) != 1 or loop.stages[0].reduces or len(loop.space) < 3:
        return loop
    (stage,) = loop.stages
    loads = [node.attribute for node in walk(stage.expressions()) if node.op == "load"]
    temps = [load for load in loads if program.buffers[load.buffer].role == "temp"]
    inner = (loop.space + stage.axes)[-1]
    leads = [_leading(load.index[: led.get(load.buffer, 0)], inner) for load in temps]
    common = min(leads, key=len, default=())
    if len(common) < 2 or common == loop.space[: len(common)] or not set(common) <= set(loop.space):
        return loop
    places = [load.index for load in temps] + [store.index for store in stage.stores]
    run = inner.extent * min(program.buffers[store.buffer].dtype.itemsize for store in stage.stores)
    together = all(lead[: len(common)] == common for lead in leads)
    if not together or run < _LEAST_RUN or any(place[-1].coefficient(inner) != 1 for place in places):
        return loop
    return replace(loop, space=(*common, *(axis for axis in loop.space if axis not in common)))


def _leading(index: tuple[Index, ...], inner: Axis) -> tuple[Axis, ...]:
    """The axes that the first parts of an index are, up to one that is `inner`, something else or has been there."""
    axes: list[Axis] = []
    for part in index:
        if part.axis is None or part.axis is inner or part.axis in axes:
            break
        axes.append(part.axis)
    return tuple(axes)
