"""Micro-kernels: one register tile of a contraction, from the first product to the last store.

A micro-kernel is a function of its own, shared by all tiles of its size: (base pointers of the loop's buffers, the tile's
first element of the narrow and of the wide operand, the coordinates of the tile).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fusegraph.codegen.cpu.contract_epilogue import Epilogue, TilePlace, element_type
from fusegraph.codegen.cpu.gemm_tile import Tile
from fusegraph.codegen.cpu.irtext import FAST_MATH, FunctionBuilder, Module
from fusegraph.codegen.cpu.irvector import VectorOps
from fusegraph.ir.index import Axis
from fusegraph.ir.loops import Loop, Program

__all__ = ["MicroKernels", "Step", "TileMemory"]


@dataclass(frozen=True)
class Step:
    """One loop of the sum: its extent, and the elements that both operands advance by."""

    extent: int
    narrow: int
    wide: int


@dataclass(frozen=True)
class TileMemory:
    """How a micro-kernel reads: between rows of the narrow operand, along the sum, and whether the wide one is packed.

    A packed panel has whole vectors; otherwise only the tile's own columns may be touched.
    """

    row_stride: int
    steps: tuple[Step, ...]
    packed: bool


class MicroKernels:
    """Writes the micro-kernels of one loop into `module`."""

    def __init__(
        self, module: Module, loop: Loop, program: Program, buffers: Sequence[str], row: Axis | None, column: Axis, lanes: int,
        exact: bool,
    ) -> None:  # fmt: skip
        self.module, self.loop, self.program, self.buffers = module, loop, program, tuple(buffers)
        self.row, self.column, self.lanes, self.exact = row, column, lanes, exact
        self.element = element_type(loop.stages[0].reduces[0].dtype)

    def call(
        self, fn: FunctionBuilder, tile: Tile, columns: int, memory: TileMemory, narrow: str, wide: str, coordinates: dict[Axis, str],
    ) -> None:  # fmt: skip
        """Call the micro-kernel for `tile.rows` rows and `columns` columns; `coordinates` of its first element."""
        name = self._define(tile, columns, memory)
        args = [("ptr", f"%base{i}") for i in range(len(self.buffers))] + [("ptr", narrow), ("ptr", wide)]
        fn.call("void", name, args + [("i64", coordinates[axis]) for axis in self.loop.space])

    def _define(self, tile: Tile, columns: int, memory: TileMemory) -> str:
        rest = columns - (tile.vectors - 1) * self.lanes
        name = f"{self.loop.name}_{tile.rows}x{columns}{'p' if memory.packed else ''}"
        if self.module.has_function(name):
            return name
        params = [f"ptr %base{i}" for i in range(len(self.buffers))] + ["ptr %narrow", "ptr %wide"]
        fn = self.module.function(name, params + [f"i64 %x{i}" for i in range(len(self.loop.space))], attrs="noinline")
        counts = [self.lanes] * (tile.vectors - 1) + [rest]
        sums = self._sum(fn, tile, counts, memory)
        place = TilePlace({axis: f"%x{i}" for i, axis in enumerate(self.loop.space)}, self.row, self.column)
        pointers = {buffer: f"%base{i}" for i, buffer in enumerate(self.buffers)}
        flags = "" if self.exact else "contract"
        epilogue = Epilogue(fn, self.module, self.program, pointers, place, self.lanes, flags, self.exact)
        rows = [sums[r * tile.vectors : (r + 1) * tile.vectors] for r in range(tile.rows)]
        epilogue.run(self.loop.stages[1:], rows, counts)
        return name

    def _sum(self, fn: FunctionBuilder, tile: Tile, counts: Sequence[int], memory: TileMemory) -> list[str]:
        ops = VectorOps(fn, self.lanes, self.element, "" if self.exact else FAST_MATH)
        zero = [ops.constant(0)] * (tile.rows * tile.vectors)
        return self._nest(ops, tile, counts, memory, memory.steps, "%narrow", "%wide", zero)

    def _nest(
        self, ops: VectorOps, tile: Tile, counts: Sequence[int], memory: TileMemory, steps: Sequence[Step], narrow: str, wide: str,
        sums: list[str],
    ) -> list[str]:  # fmt: skip
        fn = ops.fn
        if not steps:
            return self._products(ops, tile, counts, memory, narrow, wide, sums)
        step, *inner = steps
        unroll = step.extent if not inner and step.extent <= 5 else 1
        if unroll == step.extent:
            for k in range(unroll):
                at = fn.gep(narrow, k * step.narrow, self.element), fn.gep(wide, k * step.wide, self.element)
                sums = self._nest(ops, tile, counts, memory, inner, *at, sums)
            return sums
        with fn.loop(0, step.extent, carried=[(ops.type, value) for value in sums]) as loop:
            at_narrow = fn.gep(narrow, fn.affine([(step.narrow, loop.index)]), self.element)
            at_wide = fn.gep(wide, fn.affine([(step.wide, loop.index)]), self.element)
            loop.next(*self._nest(ops, tile, counts, memory, inner, at_narrow, at_wide, loop.phis))
        return loop.results

    def _products(
        self, ops: VectorOps, tile: Tile, counts: Sequence[int], memory: TileMemory, narrow: str, wide: str, sums: list[str],
    ) -> list[str]:  # fmt: skip
        fn, out = ops.fn, list(sums)
        vectors = []
        for vector in range(tile.vectors):
            at = fn.gep(wide, vector * self.lanes, self.element)
            vectors.append(ops.load(at) if memory.packed else ops.load_first(at, counts[vector]))
        for row in range(tile.rows):
            factor = ops.load_scalar_broadcast(fn.gep(narrow, row * memory.row_stride, self.element))
            for vector, values in enumerate(vectors):
                at = row * tile.vectors + vector
                out[at] = ops.add(out[at], ops.mul(factor, values)) if self.exact else ops.fma(factor, values, out[at])
        return out
