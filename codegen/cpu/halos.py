"""Activations with a border of zeros: what a padded convolution reads outside of the image lies in memory, as zeros.

A convolution that is padded by p reads p pixels outside of the image. The buffer gets that many pixels more on each
side, the kernel that writes the image writes the border too, and every reader loads without a mask: no kernel has to
copy the image into a padded one. Only buffers inside of the program change, each written by a single loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusegraph.codegen.cpu.gemm_limits import share_of_taps
from fusegraph.codegen.cpu.nest_rewrite import Rewrite, rewrite_loop, stage_roots
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Loop, Program, Stage, Store
from fusegraph.ir.scalar import Bound, Expr, Load, const, make, walk
from fusegraph.records import dataclass, replace

__all__ = ["Halo", "with_halos"]

_MOST_GROWTH = 2.5  # a buffer that its border makes larger than this stays as it is
_FEW_TAPS = 0.85  # where a transposed convolution uses less than this part of its taps, it sums over those alone


@dataclass(frozen=True)
class Halo:
    """Pixels before and behind each axis of `buffer`; `zeros` writes them, beside the loop `writer`."""

    buffer: str
    before: tuple[int, ...]
    behind: tuple[int, ...]
    writer: str
    zeros: Loop


def with_halos(program: Program, names: Sequence[str]) -> tuple[Program, dict[str, list[Halo]]]:
    """`program` with borders around those of the temporaries `names` that convolutions read past the edge of.

    Also the borders, by the loop that is to write them.
    """
    halos = [halo for name in names if (halo := _halo(program, name)) is not None]
    if not halos:
        return program, {}
    buffers = dict(program.buffers)
    for halo in halos:
        buffers[halo.buffer] = _grown(buffers[halo.buffer], halo.before, halo.behind)
    rewrite = _Shift({halo.buffer: halo.before for halo in halos})
    loops = tuple(
        rewrite_loop(loop, rewrite) if any(halo.buffer in loop.reads() + loop.writes() for halo in halos) else loop
        for loop in program.loops
    )
    by_writer: dict[str, list[Halo]] = {}
    for halo in halos:
        by_writer.setdefault(halo.writer, []).append(halo)
    return replace(program, buffers=buffers, loops=loops), by_writer


def _grown(buffer: Buffer, before: Sequence[int], behind: Sequence[int]) -> Buffer:
    return replace(buffer, shape=tuple(map(sum, zip(before, buffer.shape, behind, strict=True))))


def _loads(program: Program, name: str) -> list[tuple[Loop, Load]]:
    return [
        (loop, node.attribute)
        for loop in program.loops
        if name in loop.reads()
        for stage in loop.stages
        for node in walk(stage_roots(stage))
        if node.op == "load" and node.attribute.buffer == name
    ]


def _halo(program: Program, name: str) -> Halo | None:
    """The border of a buffer, as wide as its masked loads reach; None where masks are of another kind."""
    buffer = program.buffers[name]
    writers = [loop.name for loop in program.loops if name in loop.writes()]
    before, behind = [0] * len(buffer.shape), [0] * len(buffer.shape)
    padded = False
    for loop, load in _loads(program, name):
        for condition in load.mask:
            axis = _masked_axis(condition, load, buffer)
            if axis is None or share_of_taps(condition, loop.stages[0].reduce_axes) < _FEW_TAPS:
                return None
            low, high = load.index[axis].bounds
            before[axis], behind[axis] = max(before[axis], -low), max(behind[axis], high + 1 - buffer.shape[axis])
        padded = padded or (bool(load.mask) and loop.schedule == "contract")
    if not padded or len(writers) != 1 or buffer.role != "temp":
        return None
    grown = _grown(buffer, before, behind)
    if grown.size > _MOST_GROWTH * buffer.size:
        return None
    return Halo(name, tuple(before), tuple(behind), writers[0], _zeros(grown, before, behind, _blocks(program, name)))


def _blocks(program: Program, name: str) -> Axis | None:
    """The first axis of the writing loop, if its extent is known at run time only."""
    stores = (store for loop in program.loops for stage in loop.stages for store in stage.stores)
    axes = {store.index[0].axis for store in stores if store.buffer == name}
    return next((axis for axis in axes if axis is not None and axis.rows), None)


def _masked_axis(condition: object, load: Load, buffer: Buffer) -> int | None:
    """The axis of the buffer that a condition keeps an index inside of."""
    if not isinstance(condition, Bound):
        return None
    for axis, index in enumerate(load.index):
        if index == condition.index and (condition.low, condition.high) == (0, buffer.shape[axis]):
            return axis
    return None


def _zeros(buffer: Buffer, before: Sequence[int], behind: Sequence[int], blocks: Axis | None) -> Loop:
    """Writes the border of a grown buffer: for each axis with one the slabs before and behind the image.

    blocks: the first axis, where its extent is known at run time only.
    """
    bordered = [d for d in range(len(buffer.shape)) if before[d] or behind[d]]
    space = {d: Axis(f"h{d}", extent) for d, extent in enumerate(buffer.shape) if d < bordered[0]}
    if blocks is not None and 0 in space:
        space[0] = Axis("h0", blocks.extent, blocks.rows, blocks.per)
    zero = const(0, buffer.dtype)
    stages = []
    for d in bordered:
        for start, count in ((0, before[d]), (buffer.shape[d] - behind[d], behind[d])):
            if not count:
                continue
            first = [before[e] if e in bordered and e < d else 0 for e in range(len(buffer.shape))]
            extents = [
                extent - (before[e] + behind[e] if e in bordered and e < d else 0)
                for e, extent in enumerate(buffer.shape)
            ]
            first[d], extents[d] = start, count
            axes = {e: Axis(f"h{d}_{start}_{e}", extents[e]) for e in range(len(extents)) if e not in space}
            index = tuple(Index.of((space | axes)[e]) + first[e] for e in range(len(extents)))
            stages.append(Stage(axes=tuple(axes.values()), stores=(Store(buffer.name, index, zero),)))
    return Loop(f"{buffer.name}_halo", tuple(space.values()), tuple(stages))


class _Shift(Rewrite):
    """Indices of grown buffers moved by the border before the image; their loads have no mask any more."""

    def __init__(self, before: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self._before = before

    def address(self, buffer: str, index: tuple[Index, ...]) -> tuple[Index, ...]:
        """With the border before it."""
        new = super().address(buffer, index)
        if buffer not in self._before:
            return new
        return tuple(part + shift for part, shift in zip(new, self._before[buffer], strict=True))

    def _node(self, node: Expr) -> Expr:
        new = super()._node(node)
        if node.op == "load" and node.attribute.buffer in self._before:
            return make("load", new.args, new.dtype, Load(node.attribute.buffer, new.attribute.index))
        return new
