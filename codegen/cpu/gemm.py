"""Matrix products in every layout, register-blocked, with the loop's further stages as epilogue.

The output is cut into panels of columns; a panel is packed if the wide operand is not contiguous along the columns; then
micro-kernels run down its rows. Threads share out the tiles in order, so that neighbours are on the same thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fusegraph.codegen.cpu.contract_epilogue import element_type, supports
from fusegraph.codegen.cpu.contract_plan import Contraction, Operand
from fusegraph.codegen.cpu.gemm_micro import MicroKernels, Step, TileMemory
from fusegraph.codegen.cpu.gemm_pack import Packer, PanelSource
from fusegraph.codegen.cpu.gemm_tile import Split, Tile, choose_tile, even_split
from fusegraph.codegen.cpu.irtext import FunctionBuilder, Module
from fusegraph.codegen.cpu.kernel import EmittedKernel
from fusegraph.ir.index import Axis
from fusegraph.ir.loops import Program

__all__ = ["GemmPlan", "emit_gemm", "plan_gemm"]

_PARALLEL_PRODUCTS = 32_768  # fewer take about a microsecond on one thread


@dataclass(frozen=True)
class GemmPlan:
    """How a contraction runs as a matrix product."""

    found: Contraction
    program: Program
    row: Axis | None
    outer_rows: tuple[Axis, ...]
    outer: tuple[Axis, ...]
    sums: tuple[Axis, ...]
    lanes: int
    tile: Tile
    packed: bool

    @property
    def row_extent(self) -> int:
        """Rows of a panel along `row`."""
        return 1 if self.row is None else self.row.extent

    @property
    def row_split(self) -> Split:
        """The tiles along `row`."""
        return even_split(self.row_extent, self.tile.rows)

    @property
    def panel_width(self) -> int:
        """Columns of a whole panel."""
        return self.tile.vectors * self.lanes


def plan_gemm(found: Contraction, program: Program, vector_bits: int, exact: bool = False) -> GemmPlan | None:
    """A plan, or None if the wide operand is masked or not affine, or the epilogue has an operation that is not handled."""
    if not found.wide.plain or not supports(found.loop.stages[1:], program):
        return None
    lanes = vector_bits // (8 * found.reduce.dtype.itemsize)
    row = max(found.rows, key=lambda axis: axis.extent, default=None)
    outer = (*found.shared, *(axis for axis in found.columns if axis is not found.column))
    # the axis with the smallest stride innermost; exact results keep the order of the loop
    sums = found.sums if exact else tuple(sorted(found.sums, key=lambda axis: -abs(found.wide.stride(axis))))
    registers = 32 if vector_bits == 512 else 16
    tile = choose_tile(1 if row is None else row.extent, found.column.extent, lanes, registers)
    return GemmPlan(
        found, program, row, tuple(axis for axis in found.rows if axis is not row), outer, sums, lanes, tile,
        packed=found.wide.stride(found.column) != 1,
    )  # fmt: skip


def emit_gemm(module: Module, plan: GemmPlan, exact: bool = False) -> EmittedKernel:
    """Write the kernel into `module`."""
    return _Emitter(module, plan, exact).emit()


class _Emitter:
    def __init__(self, module: Module, plan: GemmPlan, exact: bool) -> None:
        self.module, self.plan, self.found, self.loop = module, plan, plan.found, plan.found.loop
        self.buffers = tuple(dict.fromkeys(self.loop.reads() + self.loop.writes()))
        self.element = element_type(self.found.reduce.dtype)
        self.micro = MicroKernels(
            module, self.loop, plan.program, self.buffers, plan.row, self.found.column, plan.lanes, exact
        )
        source = PanelSource(
            self.found.wide.stride(self.found.column), tuple((axis.extent, self.found.wide.stride(axis)) for axis in plan.sums)
        )
        self.packer = Packer(module, self.loop.name, plan.lanes, self.element, source)

    def emit(self) -> EmittedKernel:
        params = [f"ptr %base{i}" for i in range(len(self.buffers))] + ["ptr noalias %scratch", "i64 %tid", "i64 %nt"]
        fn = self.module.function(self.loop.name, params)
        if self.loop.points() > 0:
            self._panels(fn)
        scratch = self.packer.bytes(min(self.plan.panel_width, self.found.column.extent)) if self.plan.packed else 0
        return EmittedKernel(self.loop.name, self.buffers, scratch, self.found.multiplications >= _PARALLEL_PRODUCTS)

    # -- loops over panels and tiles --------------------------------------------------------------------------------------

    def _panels(self, fn: FunctionBuilder) -> None:
        plan = self.plan
        whole, rest = divmod(self.found.column.extent, plan.panel_width)
        panels = whole + (1 if rest else 0)
        tiles = math.prod(axis.extent for axis in plan.outer_rows) * plan.row_split.count
        low, high = thread_range(fn, math.prod(axis.extent for axis in plan.outer) * panels * tiles)
        for_each_part(fn, low, high, tiles, lambda task, first, last: self._task(fn, task, panels, whole, rest, first, last))

    def _task(self, fn: FunctionBuilder, task: str, panels: int, whole: int, rest: int, first: str, last: str) -> None:
        coordinates = decode(fn, task, (*self.plan.outer, Axis("panel", panels)))
        panel = coordinates[Axis("panel", panels)]
        coordinates[self.found.column] = fn.affine([(self.plan.panel_width, panel)])
        if not rest or not whole:
            self._panel(fn, coordinates, rest or self.plan.panel_width, first, last)
            return
        with fn.if_else(fn.compare("slt", "i64", panel, whole)) as branch:
            with branch.then():
                self._panel(fn, coordinates, self.plan.panel_width, first, last)
            with branch.otherwise():
                self._panel(fn, coordinates, rest, first, last)

    def _panel(self, fn: FunctionBuilder, coordinates: dict[Axis, str], columns: int, first: str, last: str) -> None:
        wide = self._address(fn, self.found.wide, coordinates)
        if self.plan.packed:
            self.packer.call(fn, wide, "%scratch", columns)
            wide = "%scratch"
        count = self.plan.row_split.count
        if not self.plan.outer_rows:
            self._tiles(fn, coordinates, columns, wide, first, last)
            return

        def rows(part: str, low: str, high: str) -> None:
            self._tiles(fn, {**coordinates, **decode(fn, part, self.plan.outer_rows)}, columns, wide, low, high)

        for_each_part(fn, first, last, count, rows)

    def _tiles(self, fn: FunctionBuilder, coordinates: dict[Axis, str], columns: int, wide: str, first: str, last: str) -> None:
        split, row = self.plan.row_split, self.plan.row
        vectors = -(-columns // self.plan.lanes)
        memory = self._memory(vectors)
        base = self._address(fn, self.found.narrow, coordinates)
        for low, high, size in split.sizes():
            start = fn.max_i64(first, str(low)) if low else first
            end = fn.min_i64(last, str(high)) if high < split.count else last
            with fn.loop(start, end) as loop:
                factor, constant = split.start(loop.index, size)  # type: ignore[arg-type]
                at = fn.affine([(factor, loop.index)], constant)
                narrow = fn.gep(base, fn.affine([(memory.row_stride, at)]), self.element)
                place = {**coordinates} if row is None else {**coordinates, row: at}
                self.micro.call(fn, Tile(size, vectors), columns, memory, narrow, wide, place)

    def _memory(self, vectors: int) -> TileMemory:
        narrow, wide = self.found.narrow, self.found.wide
        steps, panel_step = [], vectors * self.plan.lanes
        for axis in reversed(self.plan.sums):
            steps.append(Step(axis.extent, narrow.stride(axis), panel_step if self.plan.packed else wide.stride(axis)))
            panel_step *= axis.extent
        return TileMemory(narrow.stride(self.plan.row), tuple(reversed(steps)), self.plan.packed)

    def _address(self, fn: FunctionBuilder, operand: Operand, coordinates: Mapping[Axis, str]) -> str:
        """Address of the operand's element at `coordinates`, zero along every other axis."""
        terms = [(factor, coordinates[axis]) for axis, factor in operand.flat.terms if axis in coordinates]
        offset = fn.affine(terms, operand.flat.constant)  # type: ignore[arg-type]
        return fn.gep(f"%base{self.buffers.index(operand.buffer)}", offset, self.element)


def thread_range(fn: FunctionBuilder, count: int) -> tuple[str, str]:
    """First and one past the last of `count` pieces of work for thread %tid of %nt."""
    low = fn.binary("udiv", "i64", fn.affine([(count, "%tid")]), "%nt")
    following = fn.affine([(1, "%tid")], 1)
    return low, fn.binary("udiv", "i64", fn.affine([(count, following)]), "%nt")


def for_each_part(fn: FunctionBuilder, low: str, high: str, per_part: int, body: Callable[[str, str, str], None]) -> None:
    """Pieces low .. high in parts of `per_part`: body(part, first piece in the part, one past the last in the part)."""
    first = fn.binary("udiv", "i64", low, per_part)
    last = fn.binary("udiv", "i64", fn.affine([(1, high)], per_part - 1), per_part)
    last = fn.select(fn.compare("slt", "i64", low, high), "i64", last, first)
    with fn.loop(first, last) as loop:
        start = fn.affine([(1, low), (-per_part, loop.index)])
        end = fn.affine([(1, high), (-per_part, loop.index)])
        body(loop.index, fn.max_i64(start, "0"), fn.min_i64(end, str(per_part)))


def decode(fn: FunctionBuilder, number: str, axes: Sequence[Axis]) -> dict[Axis, str]:
    """The coordinates of point `number`, counted in C order over `axes`."""
    coordinates: dict[Axis, str] = {}
    for axis in reversed(axes[1:]):
        coordinates[axis] = number if axis.extent == 0 else fn.binary("urem", "i64", number, axis.extent)
        number = fn.binary("udiv", "i64", number, axis.extent)
    if axes:
        coordinates[axes[0]] = number
    return coordinates
