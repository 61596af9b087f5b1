"""Matrix products of few rows, where the number of rows is known at run time only: vectors along the rows.

A layer's product x @ w.T of 16 rows reads each weight once: it should not turn and pack all of them for that, as a product of
many rows does. With the rows as columns of the product, only x is packed. Such a product gets a second kernel, for up to so many rows,
over whole blocks of rows; where the last block is not full, its rows past the last one lie in room behind the others, and
nobody uses what is computed for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fusegraph.codegen.cpu.batch_blocks import VECTORS, blocked_loop
from fusegraph.codegen.cpu.contract import plan_contract
from fusegraph.codegen.cpu.kernel import EmittedKernel
from fusegraph.codegen.cpu.nest_rewrite import Rewrite, rewrite_stage, stage_roots
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Loop, Program
from fusegraph.ir.scalar import walk
from fusegraph.records import dataclass, replace

__all__ = ["FEW", "FewRows", "few_rows", "few_rows_alone", "with_room_for"]

FEW = 16  # rows; up to here kernels that are too small for several threads run on one, with fewer barriers

_BLOCKS = (3, 2, 1)  # most blocks of rows that are tried; beyond, packing the other operand pays
_LEAST_GAIN = 0.95  # of the estimated time
_LEAST_ELEMENTS = 1 << 14  # of the operand that would be packed


@dataclass(frozen=True)
class FewRows:
    """The loop for at most `limit` rows, in blocks of `size`."""

    loop: Loop
    size: int
    limit: int
    rows: tuple[str, ...]


def few_rows(loop: Loop, program: Program, vector_bits: int) -> FewRows | None:
    """The way that few rows of a product go, if that is another one than many rows go, and faster."""
    sized = [axis for axis in loop.space if axis.rows]
    if loop.schedule != "contract" or len(sized) != 1 or (sized[0].rows, sized[0].per) != (1, 1):
        return None
    (axis,) = sized
    rows = dict(_accesses(loop, axis))
    plain = all(index[0].axis is axis and axis not in _axes(index[1:]) for index in rows.values())
    if not plain or any(program.buffers[name].role == "state" for name in rows):
        return None
    operands = [factor.attribute.buffer for factor in loop.stages[0].reduces[0].value.args]
    if not any(program.buffers[name].size >= _LEAST_ELEMENTS for name in operands if name not in rows):
        return None
    size = VECTORS * vector_bits // (8 * loop.stages[0].reduces[0].dtype.itemsize)
    for blocks in _BLOCKS:
        if blocks * size - size < axis.extent and (made := _blocked(loop, program, axis, size, blocks, vector_bits)):
            return FewRows(made, size, blocks * size, tuple(rows))
    return None


def few_rows_alone(kernel: EmittedKernel, loop: Loop) -> EmittedKernel:
    """`kernel` for at most `FEW` rows: by one thread, if the work of so many is not worth a second one."""
    axes = {*loop.space, *(axis for stage in loop.stages for axis in (*stage.axes, *stage.reduce_axes))}
    most = max((axis.extent * axis.per // axis.rows for axis in axes if axis.rows), default=0)
    alone = kernel.parallel and most > FEW and kernel.work * FEW < most
    return replace(kernel, parallel=False) if alone else kernel


def _accesses(loop: Loop, axis: Axis) -> Iterator[tuple[str, tuple[Index, ...]]]:
    """Buffers that are loaded or stored along `axis`, and where."""
    for stage in loop.stages:
        found = [(x.attribute.buffer, x.attribute.index) for x in walk(stage_roots(stage)) if x.op == "load"]
        for buffer, index in (*found, *((store.buffer, store.index) for store in stage.stores)):
            if axis in _axes(index):
                yield buffer, index


def _axes(index: tuple[Index, ...]) -> frozenset[Axis]:
    return frozenset[Axis]().union(*(part.axes for part in index))


def _blocked(loop: Loop, program: Program, axis: Axis, size: int, blocks: int, vector_bits: int) -> Loop | None:
    """`loop` over blocks of rows, if its vectors then lie along them and that is faster for so many rows."""
    image = Axis(f"{axis.name}_row", size)
    count = Axis(f"{axis.name}_block", blocks, 1, size) if blocks > 1 else Axis(f"{axis.name}_block", 1)
    few = replace(blocked_loop(loop, {axis: (count, image)}, {}, size), name=f"{loop.name}_few")
    room = replace(
        program, buffers=with_room_for(program.buffers, {name: blocks * size for name, _ in _accesses(loop, axis)})
    )
    mine, theirs = (
        plan_contract(few, room, vector_bits),
        plan_contract(_shortened(loop, axis, blocks * size), room, vector_bits),
    )
    if mine is None or mine.found.column is not image or theirs is None:
        return None
    return few if mine.cycles < _LEAST_GAIN * theirs.cycles else None


def _shortened(loop: Loop, axis: Axis, extent: int) -> Loop:
    """`loop` with at most `extent` rows."""
    short = Axis(axis.name, extent, axis.rows)

    class Shorten(Rewrite):
        def axis(self, old: Axis) -> Axis | None:
            return short if old is axis else old

    rewrite = Shorten()
    space = tuple(short if old is axis else old for old in loop.space)
    return replace(loop, space=space, stages=tuple(rewrite_stage(stage, rewrite) for stage in loop.stages))


def with_room_for(buffers: Mapping[str, Buffer], rows: Mapping[str, int]) -> dict[str, Buffer]:
    """`buffers` with room for at least so many rows in some."""
    grown = dict(buffers)
    for name, count in rows.items():
        first, *rest = buffers[name].shape
        if first < count:
            grown[name] = replace(buffers[name], shape=(count, *rest))
    return grown
