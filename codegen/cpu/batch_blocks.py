"""Activations of convolutions with the batch innermost, in blocks: [N, C, H, W] is kept as [N / b, C, H, W, b].

A vector then holds the same pixel of b images. Windows of a convolution or of a pooling never lie across lanes, every
load is aligned, and no lane is left over at the end of a row of 28 or 10 pixels. Only buffers that live inside of the
program change; each index of theirs and each loop over the batch is rewritten, and the loops mean what they meant.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set

from fusegraph.codegen.cpu.nest_rewrite import Rewrite, rewrite_stage, stage_roots
from fusegraph.ir.index import Axis, Div, Index, Mod
from fusegraph.ir.loops import Loop, Program, Stage
from fusegraph.ir.scalar import walk
from fusegraph.records import dataclass, replace

__all__ = ["Use", "batch_blocked", "blocked_loop", "blocked_shape", "blocks_of", "buffers_to_block", "lanes_of"]

VECTORS = 2  # vectors in a block, if the batch allows it
MOST_WASTE = 1.6  # lanes for each image: with 5 images in 8 lanes convolutions lose nothing, pooling little


def batch_blocked(program: Program, vector_bits: int) -> Program:
    """`program` with the activations around its convolutions in blocks of the batch, if its batch size allows it."""
    uses, chosen = buffers_to_block(program)
    size = _block_size(program, chosen, vector_bits) if chosen else 0
    if not size:
        return program
    buffers = dict(program.buffers)
    for name in chosen:
        buffers[name] = replace(buffers[name], shape=blocked_shape(buffers[name].shape, size))
    loops = tuple(blocked_loop(loop, blocks_of(uses[loop.name], chosen, size), chosen, size) for loop in program.loops)
    return replace(program, buffers=buffers, loops=loops)


def buffers_to_block(program: Program) -> tuple[dict[str, list[Use]], dict[str, int]]:
    """What each loop loads and stores, and the buffers that are to lie in blocks, with the extent of their batch."""
    uses = _uses(program)
    batches = {loop.name: _batch_axis(loop) for loop in program.loops}
    seeds = {use.buffer for name, axis in batches.items() if axis is not None for use in uses[name] if use.axis == axis}
    candidates = _candidates(program, uses)
    chosen = {name: candidates[name] for name in sorted(seeds) if name in candidates}
    _grow(program.loops, uses, candidates, chosen)
    return uses, chosen


def blocked_shape(shape: Sequence[int], size: int) -> tuple[int, ...]:
    """The shape of a buffer in blocks."""
    extent, *rest = shape
    return (-(-extent // size), *rest, size)


def _block_size(program: Program, chosen: Mapping[str, int], vector_bits: int) -> int:
    """Images in a block: a divisor of the batch that fills vectors, best two of them; 0 if none fills them well enough."""
    batch, lanes = math.gcd(*chosen.values()), lanes_of(program, chosen, vector_bits)
    sizes = [size for size in range(2, VECTORS * 2 * lanes + 1) if batch % size == 0]
    waste = {size: -(-size // lanes) * lanes / size for size in sizes}
    best = min(sizes, key=lambda size: (waste[size], abs(size - VECTORS * lanes)), default=0)
    return best if best and waste[best] <= MOST_WASTE else 0


def lanes_of(program: Program, chosen: Mapping[str, int], vector_bits: int) -> int:
    """Images in a vector."""
    return vector_bits // (8 * max(program.buffers[name].dtype.itemsize for name in _floats(program, chosen)))


def _floats(program: Program, chosen: Mapping[str, int]) -> list[str]:
    return [name for name in chosen if program.buffers[name].dtype.kind == "f"]


# -- which buffers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Use:
    """One load or store: the buffer, and the axis that is its whole first index (None: something else is)."""

    buffer: str
    axis: Axis | None


def _batch_axis(loop: Loop) -> Axis | None:
    """The axis of the images of a convolution or of one of its gradients; None for other loops."""
    if loop.schedule != "contract":
        return None
    taps = set(loop.stages[0].reduce_axes)
    for node in walk(stage_roots(loop.stages[0])):
        index: tuple[Index, ...] = node.attribute.index if node.op == "load" else ()
        if len(index) > 2 and any(_is_window(part, taps) for part in index[1:]):
            return index[0].axis
    return None


def _is_window(index: Index, taps: Set[Axis]) -> bool:
    """Whether the index walks through windows that overlap: by a position, an axis of the space, and a tap."""
    for atom, _ in index.terms:
        if isinstance(atom, Div) and _is_window(atom.index, taps):
            return True
    reach = {axis: abs(index.coefficient(axis)) for axis in index.axes}
    steps = [step for axis, step in reach.items() if axis not in taps and step]
    return any(
        step * (axis.extent - 1) >= other for axis, step in reach.items() if axis in taps and step for other in steps
    )


def _uses(program: Program) -> dict[str, list[Use]]:
    return {loop.name: list(dict.fromkeys(_uses_of(loop))) for loop in program.loops}


def _uses_of(loop: Loop) -> Iterator[Use]:
    for stage in loop.stages:
        fixed = {axis for axis in stage.reduce_axes if any(r.op.startswith("arg") for r in stage.reduces)}

        def use(buffer: str, index: Sequence[Index], fixed: set[Axis] = fixed) -> Use:
            axis = index[0].axis if index else None
            return Use(buffer, None if axis in fixed else axis)

        for node in walk(stage_roots(stage)):
            if node.op == "load":
                yield use(node.attribute.buffer, node.attribute.index)
        for store in stage.stores:
            yield use(store.buffer, store.index)


def _candidates(program: Program, uses: Mapping[str, Sequence[Use]]) -> dict[str, int]:
    """Extent of the batch of each temporary whose first index is always a plain axis over all of it."""
    found = {name: b.shape[0] for name, b in program.buffers.items() if b.role == "temp" and len(b.shape) > 1}
    for loop in program.loops:
        for use in uses[loop.name]:
            if use.buffer not in found:
                continue
            whole = use.axis is not None and use.axis.extent == found[use.buffer]
            if loop.schedule == "scatter" or not whole or use.axis.rows != bool(program.rows):  # type: ignore[union-attr]
                del found[use.buffer]
    return found


def _grow(
    loops: Sequence[Loop], uses: Mapping[str, Sequence[Use]], candidates: Mapping[str, int], chosen: dict[str, int]
) -> None:
    """Add what elementwise and pooling loops use together with a buffer that has been chosen."""
    changed = True
    while changed:
        changed = False
        for loop in loops:
            axes = {use.axis for use in uses[loop.name] if use.buffer in chosen}
            if loop.schedule != "nest" or not axes:
                continue
            for use in uses[loop.name]:
                if use.buffer in candidates and use.buffer not in chosen and use.axis in axes:
                    chosen[use.buffer] = candidates[use.buffer]
                    changed = True


# -- rewriting ---------------------------------------------------------------------------------------------------------


class _Blocks(Rewrite):
    """Axes as block * size + image, and the indices of blocked buffers with the image last."""

    def __init__(self, sizes: Mapping[str, int], size: int, split: Mapping[Axis, tuple[Axis, Axis]]) -> None:
        super().__init__()
        self._sizes, self._size = sizes, size
        self._mapping = {axis: Index.of(block) * size + image for axis, (block, image) in split.items()}

    def address(self, buffer: str, index: tuple[Index, ...]) -> tuple[Index, ...]:
        """With the image last."""
        new = super().address(buffer, index)
        if buffer not in self._sizes:
            return new
        first, *rest = new
        return (first // self._size, *rest, first % self._size)

    def index(self, index: Index) -> Index:
        """With batch axes replaced."""
        if index.axes.isdisjoint(self._mapping):
            return index
        out = Index(index.constant)
        for atom, c in index.terms:
            if isinstance(atom, Axis):
                out = out + self._mapping.get(atom, Index.of(atom)) * c
            elif isinstance(atom, (Div, Mod)):
                inner = self.index(atom.index)
                out = out + (inner // atom.divisor if isinstance(atom, Div) else inner % atom.divisor) * c
            else:
                out = out + Index(0, ((self.atom(atom), c),))
        return out


def blocks_of(uses: Sequence[Use], chosen: Mapping[str, int], size: int) -> dict[Axis, tuple[Axis, Axis]]:
    """The batch axes of a loop that uses buffers in blocks: for each the axis of the blocks, and that of a block's images."""
    axes = dict.fromkeys(use.axis for use in uses if use.buffer in chosen and use.axis is not None)
    return {axis: (_block_axis(axis, size), Axis(f"{axis.name}_image", size)) for axis in axes}


def _block_axis(axis: Axis, size: int) -> Axis:
    count = -(-axis.extent // size)  # a single block is there in any case
    return (
        Axis(f"{axis.name}_block", count, axis.rows, size)
        if axis.rows and count > 1
        else Axis(f"{axis.name}_block", count)
    )


def blocked_loop(loop: Loop, split: Mapping[Axis, tuple[Axis, Axis]], sizes: Mapping[str, int], size: int) -> Loop:
    """`loop` with its batch axes `split`, and the buffers `sizes` in blocks."""
    if not split:
        return loop
    rewrite = _Blocks(sizes, size, split)
    stages = tuple(_with_axes(rewrite_stage(stage, rewrite), split) for stage in loop.stages)
    return replace(loop, space=_split(loop.space, split), stages=stages)


def _with_axes(stage: Stage, split: Mapping[Axis, tuple[Axis, Axis]]) -> Stage:
    return replace(stage, axes=_split(stage.axes, split), reduce_axes=_split(stage.reduce_axes, split))


def _split(axes: Sequence[Axis], split: Mapping[Axis, tuple[Axis, Axis]]) -> tuple[Axis, ...]:
    """With each batch axis as its block, and its image last."""
    blocks = [split[axis][0] if axis in split else axis for axis in axes]
    return tuple(axis for axis in (*blocks, *(split[axis][1] for axis in axes if axis in split)) if axis.extent > 0)
