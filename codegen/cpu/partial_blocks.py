"""Blocks of images of which the last one is partly filled: their number is known at run time only.

Loops over blocked activations run over whole blocks. Images past the last one are computed like the others, from rows of zeros
behind the arguments' rows, and reach nothing else: results have the rows of the call alone, and whatever is summed over
images is summed over zeros there.

    a sum of products over images    both operands hold zeros there: whoever writes them stores zeros for those images
    any other reduction over images  its value is the operation's neutral element there
    an argument, a result            rows of the caller's array, which ends with the last one: where the last block is not full, the
                                     step uses a copy with room for it (a "stand-in"; see step_stand_ins.py)
    another buffer of rows           whoever writes its rows sets those that fill up the last block to zero ("tails")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fusegraph.codegen.cpu.batch_blocks import (
    MOST_WASTE,
    VECTORS,
    Use,
    blocked_loop,
    blocked_shape,
    blocks_of,
    buffers_to_block,
    lanes_of,
)
from fusegraph.codegen.cpu.nest_rewrite import stage_roots
from fusegraph.codegen.cpu.run_time import Refused
from fusegraph.dtypes import DType, bool_, int32, int64
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Loop, Program, Reduce, Stage, Store
from fusegraph.ir.scalar import Expr, const, index_value, load, op, walk
from fusegraph.records import dataclass, replace

__all__ = ["PartialBlocks", "partly_filled"]

Split = Mapping[Axis, tuple[Axis, Axis]]


@dataclass(frozen=True)
class PartialBlocks:
    """A program with its images in blocks of `size`, the last one perhaps partly filled.

    blocked    the buffers that lie in blocks
    stand_ins  inputs and outputs that the step copies where the last block is not full
    tails      by loop, the buffers whose rows it sets to zero from the last one of the call to the end of its block
    """

    program: Program
    size: int
    blocked: tuple[str, ...]
    stand_ins: tuple[str, ...]
    tails: Mapping[str, tuple[str, ...]]


def partly_filled(program: Program, vector_bits: int) -> PartialBlocks | None:
    """`program`, whose number of rows is known at run time, with the activations around its convolutions in blocks.

    None if there is nothing to put in blocks. Raises Refused if that is impossible.
    """
    uses, chosen = buffers_to_block(program)
    if not chosen:
        return None
    most, lanes = max(chosen.values()), lanes_of(program, chosen, vector_bits)
    size = lanes * min(VECTORS, -(-most // lanes))
    if size > MOST_WASTE * most:
        return None
    return _Filling(program, uses, chosen, size).made()


class _Filling:
    """The rewriting of one program."""

    def __init__(
        self, program: Program, uses: Mapping[str, Sequence[Use]], chosen: Mapping[str, int], size: int
    ) -> None:
        self._program, self._chosen, self._size = program, chosen, size
        self._splits: dict[str, Split] = {loop.name: blocks_of(uses[loop.name], chosen, size) for loop in program.loops}
        name = next(n for n in ("n", *(f"n_{k}" for k in range(len(program.buffers) + 1))) if n not in program.buffers)
        self._count = Buffer(name, (), int64, "size")
        self._stand_ins = {buffer for loop in program.loops for buffer in self._external_rows(loop)}
        self._summed = {buffer for loop in program.loops for buffer in self._operands(loop)}
        self._tails = {loop.name: tails for loop in program.loops if (tails := tuple(self._tails_of(loop)))}

    def made(self) -> PartialBlocks:
        """The program in blocks."""
        loops = []
        for loop in self._program.loops:
            split = self._splits[loop.name]
            masked = replace(loop, stages=tuple(self._masked(stage, split) for stage in loop.stages)) if split else loop
            loops.append(blocked_loop(masked, split, self._chosen, self._size))
        buffers = dict(self._program.buffers)
        for name in self._chosen:
            buffers[name] = replace(buffers[name], shape=blocked_shape(buffers[name].shape, self._size))
        buffers[self._count.name] = self._count
        for loop in loops:
            self._make_room(loop, buffers)
        program = replace(self._program, buffers=buffers, loops=tuple(loops))
        return PartialBlocks(program, self._size, tuple(self._chosen), tuple(sorted(self._stand_ins)), self._tails)

    # -- what is read and written past the last row -------------------------------------------------------------------

    def _accesses(self, loop: Loop) -> Iterator[tuple[str, tuple[Index, ...]]]:
        """Buffers in C order that a loop loads or stores along an axis that is split, and where."""
        split = self._splits[loop.name]
        for stage in loop.stages:
            found = [(x.attribute.buffer, x.attribute.index) for x in walk(stage_roots(stage)) if x.op == "load"]
            for buffer, index in (*found, *((store.buffer, store.index) for store in stage.stores)):
                if buffer not in self._chosen and any(not part.axes.isdisjoint(split) for part in index):
                    yield buffer, index

    def _external_rows(self, loop: Loop) -> Iterator[str]:
        """Inputs and outputs whose rows a loop over blocks reads or writes."""
        split = self._splits[loop.name]
        for buffer, index in self._accesses(loop):
            role = self._program.buffers[buffer].role
            if role == "state":
                raise Refused(f"{loop.name} overwrites rows of {buffer} in blocks of images")
            if role in ("input", "output"):
                if index[0].axis not in split or any(not part.axes.isdisjoint(split) for part in index[1:]):
                    raise Refused(f"{loop.name} finds images elsewhere than along the first axis of {buffer}")
                yield buffer

    def _operands(self, loop: Loop) -> Iterator[str]:
        """What a sum of products over images multiplies."""
        split, stage = self._splits[loop.name], loop.stages[0]
        if loop.schedule != "contract" or not any(axis in split for axis in stage.reduce_axes):
            return
        for factor in stage.reduces[0].value.args:
            axes = frozenset[Axis]().union(*(part.axes for part in factor.attribute.index))
            if not all(axis in axes for axis in stage.reduce_axes if axis in split):
                raise Refused(f"{loop.name} adds up images that only one of its operands knows")
            yield factor.attribute.buffer

    def _tails_of(self, loop: Loop) -> Iterator[str]:
        """Buffers that `loop` writes row by row, and that loops over blocks read past the last row."""
        read: dict[str, bool] = {}  # whether always along the first axis
        for buffer, index in (found for other in self._program.loops for found in self._accesses(other)):
            read[buffer] = read.get(buffer, True) and index[0].axis is not None
        for store in dict.fromkeys(store for stage in loop.stages for store in stage.stores):
            buffer = store.buffer
            if buffer not in read or buffer in self._stand_ins or buffer in self._written_in_blocks(loop):
                continue
            if not read[buffer]:
                if buffer in self._summed:
                    raise Refused(f"{loop.name} writes images elsewhere than along the first axis of {buffer}")
            elif store.mode == "store":
                yield buffer

    def _written_in_blocks(self, loop: Loop) -> set[str]:
        split = self._splits[loop.name]
        stores = (store for stage in loop.stages for store in stage.stores)
        return {store.buffer for store in stores if any(not part.axes.isdisjoint(split) for part in store.index)}

    # -- rewriting ----------------------------------------------------------------------------------------------------

    def _is_row(self, axis: Axis) -> Expr:
        """Whether a place along an axis is one of this call's rows."""
        number, count = index_value(Index.of(axis)), load(self._count.name, (), int64)
        return op("lt", op("cast", number, dtype=int32), op("cast", count, dtype=int32), dtype=bool_)

    def _masked(self, stage: Stage, split: Split) -> Stage:
        """With zeros, or what changes no reduction, in the place of images that are none."""
        axes = [axis for axis in stage.reduce_axes if axis in split]
        reduces = tuple(self._reduce(reduce, axes) for reduce in stage.reduces)
        stores = tuple(self._store(store, split) for store in stage.stores)
        return replace(stage, reduces=reduces, stores=stores)

    def _reduce(self, reduce: Reduce, axes: Sequence[Axis]) -> Reduce:
        value = reduce.value
        if not axes or (reduce.op == "sum" and self._is_zero(value)):
            return reduce
        neutral = const(_neutral(reduce.op, value.dtype), value.dtype)
        for axis in axes:
            value = op("where", self._is_row(axis), value, neutral)
        return replace(reduce, value=value)

    def _is_zero(self, value: Expr) -> bool:
        """Whether it is zero past the last image already: a product of operands that are."""
        factors = value.args if value.op == "mul" else (value,)
        return all(factor.op == "load" and factor.attribute.buffer in self._summed for factor in factors)

    def _store(self, store: Store, split: Split) -> Store:
        if store.buffer not in self._summed:
            return store
        axes = {axis for part in store.index for axis in part.axes if axis in split}
        value = store.value
        for axis in sorted(axes, key=lambda axis: axis.name):
            value = op("where", self._is_row(axis), value, const(0, value.dtype))
        return replace(store, value=value)

    def _make_room(self, loop: Loop, buffers: dict[str, Buffer]) -> None:
        """Room in buffers in C order for all images of the last block."""
        images = {axis for pair in self._splits[loop.name].values() for axis in pair}
        for stage in loop.stages:
            found = [(x.attribute.buffer, x.attribute.index) for x in walk(stage_roots(stage)) if x.op == "load"]
            for name, index in (*found, *((store.buffer, store.index) for store in stage.stores)):
                if name in self._chosen:
                    continue
                shape = buffers[name].shape
                ends = (0 if part.axes.isdisjoint(images) else part.bounds[1] + 1 for part in index)
                room = tuple(max(pair) for pair in zip(shape, ends, strict=True))
                if room != shape:
                    buffers[name] = replace(buffers[name], shape=room)


def _neutral(kind: str, dtype: DType) -> float | int | bool:
    """What does not change a reduction."""
    if kind in ("sum", "prod"):
        return int(kind == "prod")
    if kind not in ("max", "min"):
        raise Refused(f"no number is neutral in {kind} over images")
    if dtype.kind == "f":
        return float("-inf") if kind == "max" else float("inf")
    if dtype.kind == "b":
        return kind == "min"
    limits = np.iinfo(dtype)
    return int(limits.min if kind == "max" else limits.max)
