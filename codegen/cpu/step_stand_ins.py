"""Copies of arguments and results with room for all images of the last block, where that one is not full.

Loops over blocks of images read and write whole blocks (partial_blocks.py). A caller's array ends with its last row. Where the
number of rows is no multiple of the block's, the step copies such arguments first, with zeros behind them, and such results last.
Else it uses the caller's arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fusegraph.codegen.cpu.irtext import FunctionBuilder
from fusegraph.codegen.cpu.nest import thread_share
from fusegraph.codegen.cpu.run_time import SIZE, ceiling
from fusegraph.codegen.memory import ALIGN, MemoryPlan
from fusegraph.ir.loops import Buffer, Program
from fusegraph.records import replace

__all__ = ["StandIns", "clear_tail", "with_room"]


def _row_bytes(buffer: Buffer) -> int:
    return math.prod(buffer.shape[1:]) * buffer.dtype.itemsize


def with_room(memory: MemoryPlan, program: Program, names: Sequence[str]) -> tuple[MemoryPlan, dict[str, int]]:
    """The arena with room behind it for copies of `names`, and where they are."""
    places, end = {}, memory.arena_bytes
    for name in names:
        places[name] = end
        end += -(-program.buffers[name].nbytes // ALIGN) * ALIGN
    return replace(memory, arena_bytes=end), places


def clear_tail(fn: FunctionBuilder, pointer: str, buffer: Buffer, size: int) -> None:
    """Set the rows from the last one of the call to the end of its block of `size` to zero."""
    row = _row_bytes(buffer)
    start = fn.gep(pointer, fn.op(f"mul i64 {SIZE}, {row}"), "i8")
    rest = fn.affine([(size, ceiling(fn, SIZE, size)), (-1, SIZE)])
    fn.declare("llvm.memset.p0.i64", "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
    fn.emit(f"call void @llvm.memset.p0.i64(ptr {start}, i8 0, i64 {fn.op(f'mul i64 {rest}, {row}')}, i1 false)")


class StandIns:
    """Writes the copies into the driver. `places`: of the stand-ins in the arena; `size`: rows in a block."""

    def __init__(self, fn: FunctionBuilder, program: Program, places: dict[str, int], size: int) -> None:
        self._fn, self._program, self._places, self._size = fn, program, places, size
        self._pairs: dict[str, tuple[str, str]] = {}
        self._partial = fn.compare("ne", "i64", fn.op(f"urem i64 {SIZE}, {size}"), 0)

    def enter(self, address: dict[str, str], arena: str) -> None:
        """Copy arguments; `address` then says what kernels are to use."""
        for name, offset in self._places.items():
            self._pairs[name] = address[name], self._fn.gep(arena, offset, "i8")
        inputs = [name for name in self._pairs if self._program.buffers[name].role == "input"]
        if inputs:
            with self._fn.if_(self._partial):
                for name in inputs:
                    given, copy = self._pairs[name]
                    self._copy(name, given, copy)
                    with self._fn.if_(self._fn.compare("eq", "i64", "%tid", 0)):
                        clear_tail(self._fn, copy, self._program.buffers[name], self._size)
                self._fn.emit("call void @fg_barrier(ptr %ctl, i64 %nt)")
        for name, (given, copy) in self._pairs.items():
            address[name] = self._fn.select(self._partial, "ptr", copy, given)

    def leave(self) -> None:
        """Copy results."""
        outputs = [name for name in self._pairs if self._program.buffers[name].role == "output"]
        if outputs:
            with self._fn.if_(self._partial):
                self._fn.emit("call void @fg_barrier(ptr %ctl, i64 %nt)")
                for name in outputs:
                    given, copy = self._pairs[name]
                    self._copy(name, copy, given)

    def _copy(self, name: str, source: str, target: str) -> None:
        """This thread's part of the rows."""
        fn, row = self._fn, _row_bytes(self._program.buffers[name])
        low, high = thread_share(fn, SIZE, parallel=True)
        start = fn.op(f"mul i64 {low}, {row}")
        count = fn.op(f"mul i64 {fn.affine([(1, str(high)), (-1, str(low))])}, {row}")
        fn.declare("llvm.memcpy.p0.p0.i64", "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
        target, source = fn.gep(target, start, "i8"), fn.gep(source, start, "i8")
        fn.emit(f"call void @llvm.memcpy.p0.p0.i64(ptr {target}, ptr {source}, i64 {count}, i1 false)")
