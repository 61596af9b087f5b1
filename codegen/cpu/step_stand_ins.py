"""Copies of arguments and results with room for all images of the last block, where that one is not full.

Loops over blocks of images read and write whole blocks (partial_blocks.py). A caller's array ends with its last row. Where the
number of rows is no multiple of the block's, the step copies such arguments first, with zeros behind them, and such results last.
Else it uses the caller's arrays, as it does for more rows than loops over blocks take (few_rows.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fusegraph.codegen.cpu.irtext import FunctionBuilder
from fusegraph.codegen.cpu.nest import thread_share
from fusegraph.codegen.cpu.run_time import SIZE, ceiling
from fusegraph.codegen.memory import ALIGN, MemoryPlan
from fusegraph.ir.loops import Buffer, Program
from fusegraph.records import dataclass, replace

__all__ = ["StandIn", "StandIns", "clear_tail", "with_room"]


@dataclass(frozen=True)
class StandIn:
    """A copy of the buffer `name` with `room` rows, in blocks of `size`; used for at most `limit` rows (None: for any number)."""

    name: str
    size: int
    room: int
    limit: int | None


def _row_bytes(buffer: Buffer) -> int:
    return math.prod(buffer.shape[1:]) * buffer.dtype.itemsize


def with_room(
    memory: MemoryPlan, program: Program, stand_ins: Sequence[StandIn]
) -> tuple[MemoryPlan, dict[StandIn, int]]:
    """The arena with room behind it for copies, and where they are."""
    places, end = {}, memory.arena_bytes
    for one in stand_ins:
        places[one] = end
        end += -(-one.room * _row_bytes(program.buffers[one.name]) // ALIGN) * ALIGN
    return replace(memory, arena_bytes=end), places


def clear_tail(fn: FunctionBuilder, pointer: str, buffer: Buffer, size: int) -> None:
    """Set the rows from the last one of the call to the end of its block of `size` to zero."""
    row = _row_bytes(buffer)
    start = fn.gep(pointer, fn.op(f"mul i64 {SIZE}, {row}"), "i8")
    rest = fn.affine([(size, ceiling(fn, SIZE, size)), (-1, SIZE)])
    fn.declare("llvm.memset.p0.i64", "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
    fn.emit(f"call void @llvm.memset.p0.i64(ptr {start}, i8 0, i64 {fn.op(f'mul i64 {rest}, {row}')}, i1 false)")


class StandIns:
    """Writes the copies into the driver. `places`: of the stand-ins in the arena."""

    def __init__(self, fn: FunctionBuilder, program: Program, places: dict[StandIn, int]) -> None:
        self._fn, self._program, self._places = fn, program, places
        self._pairs: dict[StandIn, tuple[str, str]] = {}
        self._used = {one: self._is_used(one) for one in places}

    def _is_used(self, one: StandIn) -> str:
        fn = self._fn
        partial = fn.compare("ne", "i64", fn.op(f"urem i64 {SIZE}, {one.size}"), 0)
        return (
            partial if one.limit is None else fn.binary("and", "i1", partial, fn.compare("sle", "i64", SIZE, one.limit))
        )

    def enter(self, address: dict[str, str], arena: str) -> None:
        """Copy arguments; `address` then says what kernels are to use."""
        for one, offset in self._places.items():
            self._pairs[one] = address[one.name], self._fn.gep(arena, offset, "i8")
        inputs = self._of_role("input")
        for one in inputs:
            given, copy = self._pairs[one]
            with self._fn.if_(self._used[one]):
                self._copy(one.name, given, copy)
                with self._fn.if_(self._fn.compare("eq", "i64", "%tid", 0)):
                    clear_tail(self._fn, copy, self._program.buffers[one.name], one.size)
        with self._if_any(inputs):
            self._fn.emit("call void @fg_barrier(ptr %ctl, i64 %nt)")
        for one, (given, copy) in self._pairs.items():
            address[one.name] = self._fn.select(self._used[one], "ptr", copy, given)

    def leave(self) -> None:
        """Copy results."""
        outputs = self._of_role("output")
        with self._if_any(outputs):
            self._fn.emit("call void @fg_barrier(ptr %ctl, i64 %nt)")
        for one in outputs:
            given, copy = self._pairs[one]
            with self._fn.if_(self._used[one]):
                self._copy(one.name, copy, given)

    def _of_role(self, role: str) -> list[StandIn]:
        return [one for one in self._pairs if self._program.buffers[one.name].role == role]

    @contextmanager
    def _if_any(self, some: Sequence[StandIn]) -> Iterator[None]:
        """What is written inside runs if one of them is used."""
        used = "false"
        for one in some:
            used = self._used[one] if used == "false" else self._fn.binary("or", "i1", used, self._used[one])
        with self._fn.if_(used):
            yield

    def _copy(self, name: str, source: str, target: str) -> None:
        """This thread's part of the rows."""
        fn, row = self._fn, _row_bytes(self._program.buffers[name])
        low, high = thread_share(fn, SIZE, parallel=True)
        start = fn.op(f"mul i64 {low}, {row}")
        count = fn.op(f"mul i64 {fn.affine([(1, str(high)), (-1, str(low))])}, {row}")
        fn.declare("llvm.memcpy.p0.p0.i64", "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
        target, source = fn.gep(target, start, "i8"), fn.gep(source, start, "i8")
        fn.emit(f"call void @llvm.memcpy.p0.p0.i64(ptr {target}, ptr {source}, i64 {count}, i1 false)")
