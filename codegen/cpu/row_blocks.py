"""Which part of each buffer a block of a loop's points touches: what running kernels block by block rests on.

The points of the leading axes, in C order, are cut into equal blocks. A block's number has digits, each a leading axis or a
part of one. Where element e of a buffer is touched by the block whose digits are e // step % extent, for steps and extents
that hold for every access, blocks touch different elements:

    s[b, h, i, j]           over b < 8, h < 4         block 4 b + h: one run of elements, ((4096, 32),)
    g[b, i, 32 h + j]       j < 32                    every 64th run of 32 elements:      ((8192, 8), (32, 4))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusegraph.ir.index import Axis, Index, flatten_index
from fusegraph.ir.loops import Buffer, Loop
from fusegraph.ir.scalar import indirect_values, walk

__all__ = ["Parts", "blocks_of_buffers", "is_one_run"]

Parts = tuple[tuple[int, int], ...]  # (step, extent) of each digit of a block's number, the most significant one first


def blocks_of_buffers(loop: Loop, blocks: int, buffers: Mapping[str, Buffer]) -> dict[str, Parts]:
    """For each buffer that block k of `blocks` touches part k of, and nothing else, where the parts lie.

    Without the buffers that several blocks may touch an element of, or that one loop touches at places of two kinds.
    """
    cut = _cut(_leading_axes(loop), blocks)
    if cut is None:
        return {}
    digits, mapping = cut
    found: dict[str, set[Parts | None]] = {}
    for name, index in _accesses(loop):
        flat = flatten_index(index, buffers[name].shape).substitute(mapping)
        found.setdefault(name, set()).add(_parts(flat, digits))
    single = {name: kinds.pop() for name, kinds in found.items() if len(kinds) == 1}
    return {name: parts for name, parts in single.items() if parts is not None}


def is_one_run(parts: Parts, blocks: int, buffer: Buffer) -> bool:
    """Whether a block's part is elements k * size / blocks up to (k + 1) * size / blocks."""
    return parts == ((buffer.size // blocks, blocks),) and buffer.size % blocks == 0


def _leading_axes(loop: Loop) -> tuple[Axis, ...]:
    """The axes that kernels walk through in C order from the outside."""
    lone = loop.stages[0] if len(loop.stages) == 1 and loop.schedule == "nest" else None
    return loop.space if lone is None or lone.reduces else (*loop.space, *lone.axes)


def _cut(axes: Sequence[Axis], blocks: int) -> tuple[list[Axis], dict[Axis, Index]] | None:
    """The digits of a block's number, and what an axis becomes of which one is a part; None if blocks end elsewhere."""
    digits: list[Axis] = []
    for axis in axes:
        if blocks == 1 or axis.rows:
            break
        if blocks % axis.extent == 0:
            digits += [axis] if axis.extent > 1 else []
            blocks //= axis.extent
        elif axis.extent % blocks == 0:
            outer, inner = Axis(f"{axis.name}_block", blocks), Axis(f"{axis.name}_in_block", axis.extent // blocks)
            return [*digits, outer], {axis: Index.of(outer) * inner.extent + inner}
        else:
            return None
    return (digits, {}) if blocks == 1 else None


def _accesses(loop: Loop) -> list[tuple[str, tuple[Index, ...]]]:
    """What is loaded and stored where."""
    stores = [store for stage in loop.stages for store in stage.stores]
    places = [value for store in stores for index in store.index for value in indirect_values(index)]
    values = walk([*(value for stage in loop.stages for value in stage.expressions()), *places])
    loads = [node.attribute for node in values if node.op == "load"]
    return [(access.buffer, access.index) for access in (*loads, *stores)]


def _parts(flat: Index, digits: Sequence[Axis]) -> Parts | None:
    """(step, extent) with flat // step % extent equal to each digit; neighbours that are one longer digit joined."""
    found: list[tuple[int, int]] = []
    for axis in digits:
        step = flat.coefficient(axis)
        span = step * axis.extent
        if step <= 0:
            return None
        below = tuple((atom, factor) for atom, factor in flat.terms if atom is not axis and factor % span)
        low, high = Index(flat.constant % span, below).bounds
        if low < 0 or high >= step:
            return None
        if found and found[-1][0] == span:
            found[-1] = step, found[-1][1] * axis.extent
        else:
            found.append((step, axis.extent))
    return tuple(found)
