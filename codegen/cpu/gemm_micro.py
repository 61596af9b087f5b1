"""Micro-kernels: one register tile of a contraction, from the first product to the last store.

A micro-kernel is a function of its own, shared by all tiles of its size. It takes the base pointers of the loop's
buffers, the tile's first element of the narrow and of the wide operand, memory for its sums, and its coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from fusegraph.codegen.cpu import irtext
from fusegraph.codegen.cpu.body import Position
from fusegraph.codegen.cpu.contract_epilogue import Epilogue
from fusegraph.codegen.cpu.contract_plan import epilogue_lines
from fusegraph.codegen.cpu.gemm_bands import TileLimit
from fusegraph.codegen.cpu.gemm_limits import TapLimit
from fusegraph.codegen.cpu.gemm_sized import SizeLimit
from fusegraph.codegen.cpu.gemm_tile import Tile
from fusegraph.codegen.cpu.irtext import FAST_MATH, FunctionBuilder, Module, element_bytes
from fusegraph.codegen.cpu.irvector import VectorOps
from fusegraph.codegen.cpu.nest_ops import element_of
from fusegraph.codegen.cpu.run_time import SIZE
from fusegraph.ir.index import Axis
from fusegraph.ir.loops import Loop, Program
from fusegraph.records import dataclass

__all__ = ["ACCUMULATE", "START", "WHOLE", "MicroKernels", "Operands", "Step", "TileMemory"]

WHOLE = "whole"  # sum from zero, then the epilogue
START = "start"  # sum from zero into memory
ACCUMULATE = "accumulate"  # add to the sums in memory
_LINE = 64  # bytes of a line of the cache
_FAR = 1 << 15  # elements of a buffer that does not stay near between two steps
_UNROLLED = 5  # an innermost loop of at most so many steps is written out


@dataclass(frozen=True)
class Step:
    """One loop of the sum: its extent, the elements that both operands advance by, and which steps count if not all."""

    extent: int
    narrow: int
    wide: int
    limit: TapLimit | TileLimit | SizeLimit | None = None


@dataclass(frozen=True)
class TileMemory:
    """How a micro-kernel reads.

    row_table  name of a global with the offset of each row of the narrow operand, or "" where row_stride says it
    whole      whole vectors of the wide operand may be read past the tile's own columns
    dot        vectors run along the sum, with a vector of partial sums for each element of the output; columns of the
               wide operand are column_stride apart
    """

    row_stride: int
    row_table: str
    steps: tuple[Step, ...]
    whole: bool
    dot: bool = False
    column_stride: int = 1


@dataclass(frozen=True)
class Operands:
    """Addresses of a tile's first elements."""

    narrow: str
    wide: str
    sums: str


class MicroKernels:
    """Writes the micro-kernels of one loop into `module`."""

    def __init__(
        self, module: Module, loop: Loop, program: Program, buffers: Sequence[str], row: Axis | None, column: Axis,
        lanes: int, dot: bool, exact: bool,
    ) -> None:  # fmt: skip
        self.module, self.loop, self.program, self.buffers = module, loop, program, tuple(buffers)
        self.row, self.column, self.lanes, self.dot, self.exact = row, column, lanes, dot, exact
        self.element = element_of(loop.stages[0].reduces[0].dtype)

    def call(
        self, fn: FunctionBuilder, kind: str, tile: Tile, columns: int, memory: TileMemory, operands: Operands,
        coordinates: Mapping[Axis, str],
    ) -> None:  # fmt: skip
        """Call the micro-kernel for `tile.rows` rows and `columns` columns; `coordinates` of its first element."""
        name = f"{self.loop.name}_{kind}_{tile.rows}x{columns}"
        if not self.module.has_function(name):
            self._define(name, kind, tile, columns, memory)
        addresses = [("ptr", operands.narrow), ("ptr", operands.wide), ("ptr", operands.sums)]
        fn.call("void", name, [*self._bases(), *addresses, *self._places(coordinates)])

    def finish(self, fn: FunctionBuilder, rows: str, columns: int, sums: str, coordinates: Mapping[Axis, str]) -> None:
        """Call the epilogue for `rows` (a number at run time) rows of sums in memory."""
        name = f"{self.loop.name}_finish_{columns}"
        if not self.module.has_function(name):
            self._define_finish(name, columns)
        fn.call("void", name, [*self._bases(), ("ptr", sums), ("i64", rows), *self._places(coordinates)])

    def _bases(self) -> list[tuple[str, str]]:
        return [("ptr", f"%p{i}") for i in range(len(self.buffers))]

    def _places(self, coordinates: Mapping[Axis, str]) -> list[tuple[str, str]]:
        size = [("i64", SIZE)] if self.loop.sized else []
        return [("i64", coordinates[axis]) for axis in self.loop.space] + size

    def _function(self, name: str, *params: str) -> FunctionBuilder:
        bases = [f"ptr %p{i}" for i in range(len(self.buffers))]
        places = [f"i64 %x{i}" for i in range(len(self.loop.space))]
        places += [f"i64 {SIZE}"] if self.loop.sized else []
        return self.module.function(name, [*bases, *params, *places], attrs="noinline")

    def _counts(self, columns: int) -> list[int]:
        """Columns in each vector."""
        return [min(self.lanes, columns - at) for at in range(0, columns, self.lanes)]

    def _define(self, name: str, kind: str, tile: Tile, columns: int, memory: TileMemory) -> None:
        fn = self._function(name, "ptr %narrow", "ptr %wide", "ptr %sums")
        counts = self._counts(columns)
        ops = VectorOps(fn, self.lanes, self.element, "" if self.exact else FAST_MATH)
        if kind != ACCUMULATE:
            self._prefetch(fn, kind, tile.rows, columns)
        width = columns if self.dot else tile.vectors  # vectors of sums in a row
        places = [fn.gep("%sums", at * self.lanes, self.element) for at in range(tile.rows * width)]
        sums = [ops.load(place) if kind == ACCUMULATE else ops.constant(0) for place in places]
        if self.dot:
            sums = _Dots(ops, tile, columns, memory, self._row_number()).sum(sums)
        else:
            coordinates = {axis: f"%x{i}" for i, axis in enumerate(self.loop.space)}
            sums = _Products(ops, tile, counts, memory, self._row_number(), coordinates, self.exact).sum(sums)
        if kind != WHOLE:
            for value, place in zip(sums, places, strict=True):
                ops.store(value, place)
            return
        if self.dot:
            rows = [sums[at : at + columns] for at in range(0, len(sums), columns)]
            sums = [_across(ops, row) for row in rows]
        epilogue = self._epilogue(fn, counts)
        with epilogue.tile():
            for row in range(tile.rows):
                position = None if self.row is None else Position(self._row_number(), row)
                epilogue.row(position, sums[row * tile.vectors : (row + 1) * tile.vectors])

    def _prefetch(self, fn: FunctionBuilder, kind: str, rows: int, columns: int) -> None:
        """Ask for what the epilogue of a tile reads and writes, so that it is near when the sums are.

        What is only written can wait where the sums go through memory first.
        """
        line = _LINE // element_bytes(self.element)
        for (buffer, flat), written in epilogue_lines(self.loop, self.program, _FAR).items():
            row_step = 0 if self.row is None else flat.coefficient(self.row)
            if not flat.is_affine or flat.coefficient(self.column) != 1 or row_step < line:
                continue
            if kind != WHOLE and buffer not in self.loop.reads():
                continue
            at = [(factor, f"%x{self.loop.space.index(axis)}") for axis, factor in flat.terms if isinstance(axis, Axis)]
            first = fn.gep(f"%p{self.buffers.index(buffer)}", fn.affine(at, flat.constant), self.element)
            ours = self.program.buffers[buffer].role in ("temp", "output")  # begins where a line of the cache does
            whole = ours and row_step % line == columns % line == 0
            starts = list(range(0, columns, line)) if whole else [*range(0, columns - 1, line), columns - 1]
            for row in range(rows):
                for start in starts:
                    place = fn.gep(first, row * row_step + start, self.element)
                    fn.intrinsic("void", "prefetch.p0", [("ptr", place), ("i32", int(written)), ("i32", 3), ("i32", 1)])

    def _define_finish(self, name: str, columns: int) -> None:
        fn = self._function(name, "ptr %sums", "i64 %rows")
        counts = self._counts(columns)
        ops = VectorOps(fn, self.lanes, self.element)
        epilogue = self._epilogue(fn, counts)
        with epilogue.tile(), fn.loop(0, "%rows") as loop:
            width = columns if self.dot else len(counts)
            at = fn.gep("%sums", fn.affine([(width * self.lanes, loop.index)]), self.element)
            sums = [ops.load(fn.gep(at, vector * self.lanes, self.element)) for vector in range(width)]
            sums = [_across(ops, sums)] if self.dot else sums
            position = None if self.row is None else Position(fn.affine([(1, self._row_number()), (1, loop.index)]))
            epilogue.row(position, sums)

    def _row_number(self) -> str:
        return "0" if self.row is None else f"%x{self.loop.space.index(self.row)}"

    def _epilogue(self, fn: FunctionBuilder, counts: Sequence[int]) -> Epilogue:
        coordinates = {axis: f"%x{i}" for i, axis in enumerate(self.loop.space)}
        pointers = {buffer: f"%p{i}" for i, buffer in enumerate(self.buffers)}
        return Epilogue(
            fn, self.module, self.loop, self.program, pointers, coordinates, self.row, self.column, self.lanes, counts,
            self.exact,
        )  # fmt: skip


class _Products:
    """The sum of products of one tile."""

    def __init__(
        self, ops: VectorOps, tile: Tile, counts: Sequence[int], memory: TileMemory, row_number: str,
        coordinates: Mapping[Axis, str], exact: bool,
    ) -> None:  # fmt: skip
        self.ops, self.fn, self.tile, self.counts, self.memory, self.exact = ops, ops.fn, tile, counts, memory, exact
        self.limits = {
            step: step.limit.bounds(ops.fn, coordinates, tile.rows, sum(counts))
            for step in memory.steps
            if step.limit is not None
        }
        self.rows = _row_addresses(ops, tile.rows, memory, row_number) if memory.row_table else []

    def sum(self, sums: list[str]) -> list[str]:
        """Add the products of all steps to `sums`."""
        return self._nest(self.memory.steps, "0", "%wide", sums)

    def _nest(self, steps: Sequence[Step], narrow: str, wide: str, sums: list[str]) -> list[str]:
        """`narrow`: offset of the current step in every row; `wide`: its address."""
        fn = self.fn
        if not steps:
            return self._products(narrow, wide, sums)
        step, *inner = steps
        low, high = self.limits.get(step, (0, step.extent))
        if not inner and step.extent <= _UNROLLED and step.limit is None:
            for k in range(step.extent):
                at = fn.affine([(1, narrow)], k * step.narrow)
                sums = self._products(at, fn.gep(wide, k * step.wide, self.ops.element), sums)
            return sums
        with fn.loop(low, high, carried=[(self.ops.type, value) for value in sums]) as loop:
            at = fn.affine([(1, narrow), (step.narrow, loop.index)])
            at_wide = fn.gep(wide, fn.affine([(step.wide, loop.index)]), self.ops.element)
            loop.next(*self._nest(inner, at, at_wide, loop.phis))
        return loop.results

    def _products(self, narrow: str, wide: str, sums: list[str]) -> list[str]:
        ops, out = self.ops, list(sums)
        vectors = []
        for position, count in enumerate(self.counts):
            at = self.fn.gep(wide, position * ops.lanes, ops.element)
            vectors.append(ops.load(at) if self.memory.whole else ops.load_first(at, count))
        base = "" if self.rows else self.fn.gep("%narrow", narrow, ops.element)
        for row in range(self.tile.rows):
            if self.rows:
                address = self.fn.gep(self.rows[row], narrow, ops.element)
            else:
                address = self.fn.gep(base, row * self.memory.row_stride, ops.element)
            factor = ops.load_scalar_broadcast(address)
            for position, values in enumerate(vectors):
                place = row * self.tile.vectors + position
                out[place] = self._add_product(out[place], factor, values)
        return out

    def _add_product(self, total: str, factor: str, values: str) -> str:
        return self.ops.add(total, self.ops.mul(factor, values)) if self.exact else self.ops.fma(factor, values, total)


def _row_addresses(ops: VectorOps, rows: int, memory: TileMemory, row_number: str) -> list[str]:
    """Address of each row of the narrow operand."""
    fn, addresses = ops.fn, []
    for row in range(rows):
        if memory.row_table:
            slot = fn.gep(f"@{memory.row_table}", fn.affine([(1, row_number)], row), "i64")
            addresses.append(fn.gep("%narrow", fn.load("i64", slot), ops.element))
        else:
            addresses.append(fn.gep("%narrow", row * memory.row_stride, ops.element))
    return addresses


class _Dots:
    """The sums of one tile as dot products: both operands are read in vectors along the innermost loop of the sum."""

    def __init__(self, ops: VectorOps, tile: Tile, columns: int, memory: TileMemory, row_number: str) -> None:
        self.ops, self.fn, self.columns, self.memory = ops, ops.fn, columns, memory
        self.rows = _row_addresses(ops, tile.rows, memory, row_number)

    def sum(self, sums: list[str]) -> list[str]:
        """Add the products of all steps to `sums`, a vector of partial sums for each row and column."""
        return self._nest(self.memory.steps, "0", "0", sums)

    def _nest(self, steps: Sequence[Step], narrow: str, wide: str, partial: list[str]) -> list[str]:
        """`narrow`, `wide`: offsets of the current step."""
        fn, lanes = self.fn, self.ops.lanes
        step, *inner = steps
        if inner:
            with self._loop(0, self._end(step), 1, partial) as loop:
                at = fn.affine([(1, narrow), (step.narrow, loop.index)])
                at_wide = fn.affine([(1, wide), (step.wide, loop.index)])
                loop.next(*self._nest(inner, at, at_wide, loop.phis))
            return loop.results
        whole = step.extent // lanes * lanes
        if whole > 4 * lanes:
            with self._loop(0, whole, lanes, partial) as loop:
                at, at_wide = fn.affine([(1, narrow), (1, loop.index)]), fn.affine([(1, wide), (1, loop.index)])
                loop.next(*self._products(at, at_wide, lanes, loop.phis))
            partial = loop.results
        else:
            for k in range(0, whole, lanes):
                partial = self._products(fn.affine([(1, narrow)], k), fn.affine([(1, wide)], k), lanes, partial)
        if whole < step.extent:
            at, at_wide = fn.affine([(1, narrow)], whole), fn.affine([(1, wide)], whole)
            partial = self._products(at, at_wide, step.extent - whole, partial)
        return partial

    def _end(self, step: Step) -> int | str:
        """One past the last of the steps, of which all count."""
        return step.extent if step.limit is None else step.limit.bounds(self.fn, {}, 0, 0)[1]

    def _loop(self, low: int, high: int | str, step: int, partial: list[str]) -> AbstractContextManager[irtext.Loop]:
        return self.fn.loop(low, high, step, carried=[(self.ops.type, value) for value in partial])

    def _products(self, narrow: str, wide: str, count: int, partial: list[str]) -> list[str]:
        """`count` steps from these offsets on, in the lanes of one vector."""
        ops, fn, out = self.ops, self.fn, list(partial)
        base = fn.gep("%wide", wide, ops.element)
        columns = [
            ops.load_first(fn.gep(base, column * self.memory.column_stride, ops.element), count)
            for column in range(self.columns)
        ]
        for row, address in enumerate(self.rows):
            factors = ops.load_first(fn.gep(address, narrow, ops.element), count)
            for column, values in enumerate(columns):
                at = row * self.columns + column
                out[at] = ops.fma(factors, values, out[at])
        return out


def _across(ops: VectorOps, columns: Sequence[str]) -> str:
    """Lane c: the sum of all lanes of vector c."""
    parts = ops.transpose([*columns, *([ops.constant(0)] * (ops.lanes - len(columns)))])
    while len(parts) > 1:
        parts = [ops.add(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]
