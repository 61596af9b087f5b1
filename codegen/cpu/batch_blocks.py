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

__all__ = ["batch_blocked"]

_VECTORS = 2  # vectors in a block, if the batch allows it
_MOST_WASTE = 1.6  # lanes for each image: with 5 images in 8 lanes convolutions lose nothing, pooling little


def batch_blocked(program: Program, vector_bits: int) -> Program:
    """`program` with the activations around its convolutions in blocks of the batch, if its batch size allows it."""
    uses = _uses(program)
    batches = {loop.name: _batch_axis(loop) for loop in program.loops}
    seeds = {use.buffer for name, axis in batches.items() if axis is not None for use in uses[name] if use.axis == axis}
    candidates = _candidates(program, uses)
    chosen = {name: candidates[name] for name in sorted(seeds) if name in candidates}
    if not chosen:
        return program
    _grow(program.loops, uses, candidates, chosen)
    size = _block_size(program, chosen, vector_bits)
    if not size:
        return program
    buffers = dict(program.buffers)
    for name in chosen:
        extent, *rest = buffers[name].shape
        buffers[name] = replace(buffers[name], shape=(extent // size, *rest, size))
    loops = tuple(_blocked(loop, uses[loop.name], chosen, size) for loop in program.loops)
    return replace(program, buffers=buffers, loops=loops)


def _block_size(program: Program, chosen: Mapping[str, int], vector_bits: int) -> int:
    """Images in a block: a divisor of the batch that fills vectors, best two of them; 0 if none fills them well enough."""
    batch = math.gcd(*chosen.values())
    lanes = vector_bits // (8 * max(program.buffers[name].dtype.itemsize for name in _floats(program, chosen)))
    sizes = [size for size in range(2, _VECTORS * 2 * lanes + 1) if batch % size == 0]
    waste = {size: -(-size // lanes) * lanes / size for size in sizes}
    best = min(sizes, key=lambda size: (waste[size], abs(size - _VECTORS * lanes)), default=0)
    return best if best and waste[best] <= _MOST_WASTE else 0


def _floats(program: Program, chosen: Mapping[str, int]) -> list[str]:
    return [name for name in chosen if program.buffers[name].dtype.kind == "f"]


# -- which buffers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Use:
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


def _uses(program: Program) -> dict[str, list[_Use]]:
    return {loop.name: list(dict.fromkeys(_uses_of(loop))) for loop in program.loops}


def _uses_of(loop: Loop) -> Iterator[_Use]:
    for stage in loop.stages:
        fixed = {axis for axis in stage.reduce_axes if any(r.op.startswith("arg") for r in stage.reduces)}

        def use(buffer: str, index: Sequence[Index], fixed: set[Axis] = fixed) -> _Use:
            axis = index[0].axis if index else None
            return _Use(buffer, None if axis in fixed else axis)

        for node in walk(stage_roots(stage)):
            if node.op == "load":
                yield use(node.attribute.buffer, node.attribute.index)
        for store in stage.stores:
            yield use(store.buffer, store.index)


def _candidates(program: Program, uses: Mapping[str, Sequence[_Use]]) -> dict[str, int]:
    """Extent of the batch of each temporary whose first index is always a plain axis over all of it."""
    found = {name: b.shape[0] for name, b in program.buffers.items() if b.role == "temp" and len(b.shape) > 1}
    for loop in program.loops:
        for use in uses[loop.name]:
            if use.buffer not in found:
                continue
            if loop.schedule == "scatter" or use.axis is None or use.axis.extent != found[use.buffer]:
                del found[use.buffer]
    return found


def _grow(
    loops: Sequence[Loop], uses: Mapping[str, Sequence[_Use]], candidates: Mapping[str, int], chosen: dict[str, int]
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


def _blocked(loop: Loop, uses: Sequence[_Use], sizes: Mapping[str, int], size: int) -> Loop:
    axes = dict.fromkeys(use.axis for use in uses if use.buffer in sizes and use.axis is not None)
    if not axes:
        return loop
    split = {axis: (Axis(f"{axis.name}_block", axis.extent // size), Axis(f"{axis.name}_image", size)) for axis in axes}
    rewrite = _Blocks(sizes, size, split)
    stages = tuple(_with_axes(rewrite_stage(stage, rewrite), split) for stage in loop.stages)
    return replace(loop, space=_split(loop.space, split), stages=stages)


def _with_axes(stage: Stage, split: Mapping[Axis, tuple[Axis, Axis]]) -> Stage:
    return replace(stage, axes=_split(stage.axes, split), reduce_axes=_split(stage.reduce_axes, split))


def _split(axes: Sequence[Axis], split: Mapping[Axis, tuple[Axis, Axis]]) -> tuple[Axis, ...]:
    """With each batch axis as its block, and its image last."""
    blocks = [split[axis][0] if axis in split else axis for axis in axes]
    return tuple(axis for axis in (*blocks, *(split[axis][1] for axis in axes if axis in split)) if axis.extent > 0)
