"""Matrix products and convolutions, register-blocked, with the loop's further stages as epilogue.

The output is cut into panels of columns and tiles of rows. Threads share out the tiles in order, so that neighbours
are on the same thread; a thread packs the panels that it needs itself, and stages the images that it needs itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fusegraph.codegen.cpu.contract_plan import Operand, extent_of
from fusegraph.codegen.cpu.contract_stage import Stager, Staging
from fusegraph.codegen.cpu.gemm_bands import TileLimit
from fusegraph.codegen.cpu.gemm_limits import TapLimit
from fusegraph.codegen.cpu.gemm_micro import ACCUMULATE, START, WHOLE, MicroKernels, Operands, Step, TileMemory
from fusegraph.codegen.cpu.gemm_pack import Packer
from fusegraph.codegen.cpu.gemm_plan import GemmPlan
from fusegraph.codegen.cpu.gemm_rows import RowPacker, RowPanels
from fusegraph.codegen.cpu.gemm_sized import SizeLimit, most_tiles, tile_sizes
from fusegraph.codegen.cpu.gemm_tile import Tile
from fusegraph.codegen.cpu.irtext import FunctionBuilder, Module, element_bytes
from fusegraph.codegen.cpu.kernel import EmittedKernel, kernel_buffers, kernel_function
from fusegraph.codegen.cpu.nest import describe
from fusegraph.codegen.cpu.nest_ops import element_of
from fusegraph.codegen.cpu.run_time import points, product
from fusegraph.ir.index import Axis

__all__ = ["emit_gemm"]

FINISH = "finish"  # the epilogue of a whole panel
START_AND_FINISH = "start_and_finish"  # each tile through scratch
_MANY_TILES = 32  # of rows: shared out whole among a few threads, none has much more than another
_PARALLEL_PRODUCTS = 32_768  # fewer take about a microsecond on one thread


def emit_gemm(module: Module, plan: GemmPlan, exact: bool = False) -> EmittedKernel:
    """Write the kernel into `module`."""
    return _Emitter(module, plan, exact).emit()


class _Emitter:
    def __init__(self, module: Module, plan: GemmPlan, exact: bool) -> None:
        self.module, self.plan, self.found, self.loop = module, plan, plan.found, plan.found.loop
        self.buffers = kernel_buffers(self.loop)
        self.element = element_of(self.found.reduce.dtype)
        self.micro = MicroKernels(
            module, self.loop, plan.program, self.buffers, plan.row, self.found.column, plan.lanes, plan.dot, exact
        )
        name, lanes = self.loop.name, plan.lanes
        self.packer = None if plan.source is None else Packer(module, name, lanes, self.element, plan.source)
        self.narrow_stager = self._stager(plan.narrow_copy, f"{name}_stage_narrow")
        self.wide_stager = self._stager(plan.wide_copy, f"{name}_stage_wide")
        self.row_table = ""
        if plan.row_table:
            entries = ", ".join(f"i64 {offset}" for offset in plan.row_table)
            self.row_table = f"{name}_rows"
            module.add_global(self.row_table, f"internal constant [{len(plan.row_table)} x i64] [{entries}]")
        self._place_scratch()

    def _stager(self, copy: Staging | RowPanels | None, name: str) -> Stager | RowPacker | None:
        if isinstance(copy, RowPanels):
            return RowPacker(self.module, name, self.plan.lanes, self.element, copy)
        return None if copy is None else Stager(self.module, name, self.plan.lanes, self.element, copy)

    def _place_scratch(self) -> None:
        """Scratch: the narrow copy, the wide copy, a panel, the sums of a panel's tiles."""
        plan, element = self.plan, element_bytes(self.element)
        panel = self.packer.bytes(min(plan.panel_width, self.found.column.extent)) if self.packer else 0
        most = most_tiles(plan) if plan.row is not None and plan.row.rows else plan.tiles
        tiles = most if plan.blocks else 1 if plan.keeps_sums else 0
        sums = tiles * plan.row_split.size * self._sums_width() * element
        sizes = [stager.nbytes if stager else 0 for stager in (self.narrow_stager, self.wide_stager)] + [panel, sums]
        self.offsets, at = [], 0
        for size in sizes:
            self.offsets.append(at // element)
            at += -(-size // 64) * 64
        self.scratch_bytes = at

    def _sums_width(self) -> int:
        """Elements of a row of sums: whole vectors; of dot products a vector each."""
        lanes = self.plan.lanes
        return self.plan.panel_width * lanes if self.plan.dot else -(-self.plan.panel_width // lanes) * lanes

    def emit(self) -> EmittedKernel:
        fn = kernel_function(self.module, self.loop)
        describe(fn, self.loop, self.plan.program)
        fn.comment(str(self.plan))
        if self.loop.points() > 0:
            self.narrow_copy, self.wide_copy, self.panel, self.sums = (
                fn.gep("%scratch", offset, self.element) for offset in self.offsets
            )
            self.sizes = tile_sizes(fn, self.plan)
            if self._shares_rows():
                self._row_ranges(fn)
            else:
                self._groups(fn)
        work = self.loop.points() * self.found.depth * extent_of(self.plan.blocks)
        parallel = work >= _PARALLEL_PRODUCTS
        rows = self._leading_points() if parallel and not self.loop.sized else 0
        return EmittedKernel(
            self.loop.name, self.buffers, self.scratch_bytes, parallel, rows, work / _PARALLEL_PRODUCTS
        )

    def _leading_points(self) -> int:
        """Points of the shared axes at the front of the space, which tasks go through first; 0 if each call makes a whole copy."""
        plan = self.plan
        stagers = [stager for stager in (self.narrow_stager, self.wide_stager) if stager is not None]
        if self._shares_rows() or any(not stager.staging.axes for stager in stagers):
            return 0
        count = 1
        for axis, first in zip(plan.outer, self.loop.space, strict=False):
            if axis != first or axis not in self.found.shared:
                break
            count *= axis.extent
        return count

    # -- loops over staged copies, panels and tiles -----------------------------------------------------------------

    def _shares_rows(self) -> bool:
        """Whether threads share out rows: each then copies its own rows of the narrow operand, but packs every panel."""
        plan, copy = self.plan, self.plan.narrow_copy
        if not isinstance(copy, RowPanels) or plan.wide_copy is not None or plan.outer or plan.outer_rows:
            return False
        packed = extent_of(plan.sums) * extent_of(plan.blocks) * self.found.column.extent if self.packer else 0
        return plan.row_split.count >= _MANY_TILES and copy.elements >= packed

    def _row_ranges(self, fn: FunctionBuilder) -> None:
        """Each thread runs down its own rows, panel by panel."""
        plan, stager = self.plan, self.narrow_stager
        assert isinstance(stager, RowPacker)
        low, high = thread_range(fn, plan.row_split.count)
        with fn.if_(fn.compare("slt", "i64", low, high)):
            stager.call_tiles(fn, self._base(stager.staging.buffer), {}, self.narrow_copy, low, high)
            with fn.loop(0, plan.panels) as loop:
                self._task(fn, loop.index, (), {}, low, high)

    def _groups(self, fn: FunctionBuilder) -> None:
        """Outermost: the points that staged copies are made for."""
        plan = self.plan
        stagers = [stager for stager in (self.narrow_stager, self.wide_stager) if stager is not None]
        staged = [stager for stager in stagers if stager.staging.axes and self._staged_outside(stager)]
        grouping = tuple(axis for axis in plan.outer if any(axis in stager.staging.axes for stager in staged))
        inner = plan.outer[len(grouping) :]
        tiles = self.sizes[-1].end if plan.row is not None and plan.row.rows else plan.tiles
        per_group = product(fn, (points(fn, inner), plan.panels, tiles))
        low, high = thread_range(fn, product(fn, (points(fn, grouping), per_group)))
        for stager in stagers:
            if not stager.staging.axes:
                self._stage(fn, stager, {})

        def group(number: str, first: str, last: str) -> None:
            coordinates = decode(fn, number, grouping)
            for stager in staged:
                self._stage(fn, stager, coordinates)
            for_each_part(fn, first, last, tiles, lambda task, a, b: self._task(fn, task, inner, coordinates, a, b))

        for_each_part(fn, low, high, per_group, group)

    def _staged_outside(self, stager: Stager | RowPacker) -> bool:
        return not stager.staging.axes & set(self.plan.blocks)

    def _stage(self, fn: FunctionBuilder, stager: Stager | RowPacker, coordinates: Mapping[Axis, str]) -> None:
        copy = self.narrow_copy if stager is self.narrow_stager else self.wide_copy
        stager.call(fn, self._base(stager.staging.buffer), coordinates, copy)

    def _base(self, buffer: str) -> str:
        return f"%p{self.buffers.index(buffer)}"

    def _task(
        self,
        fn: FunctionBuilder,
        task: str,
        inner: Sequence[Axis],
        coordinates: Mapping[Axis, str],
        first: str,
        last: str,
    ) -> None:
        """The tiles first .. last of one panel."""
        plan, panels = self.plan, Axis("panel", self.plan.panels)
        whole, rest = divmod(self.found.column.extent, plan.panel_width)
        place = {**coordinates, **decode(fn, task, (*inner, panels))}
        panel = place.pop(panels)
        place[self.found.column] = fn.affine([(plan.panel_width, panel)])
        if not rest or not whole:
            self._panel(fn, place, rest or plan.panel_width, first, last)
            return
        with fn.if_else(fn.compare("slt", "i64", panel, whole)) as branch:
            with branch.then():
                self._panel(fn, place, plan.panel_width, first, last)
            with branch.otherwise():
                self._panel(fn, place, rest, first, last)

    def _panel(self, fn: FunctionBuilder, place: Mapping[Axis, str], columns: int, first: str, last: str) -> None:
        plan = self.plan
        if not plan.blocks:
            self._products(fn, START_AND_FINISH if plan.keeps_sums else WHOLE, place, columns, first, last)
            return
        count = points(fn, plan.blocks)
        self._block(fn, START, "0", place, columns, first, last)
        if count != 1:
            with fn.loop(1, count) as loop:
                self._block(fn, ACCUMULATE, loop.index, place, columns, first, last)
        self._rows(fn, FINISH, place, columns, self.panel, first, last)

    def _block(
        self,
        fn: FunctionBuilder,
        kind: str,
        number: str,
        place: Mapping[Axis, str],
        columns: int,
        first: str,
        last: str,
    ) -> None:
        """The part of the sum that block `number` of the outer loops of the sum gives."""
        inside = {**place, **decode(fn, number, self.plan.blocks)}
        for stager in (self.narrow_stager, self.wide_stager):
            if stager is not None and not self._staged_outside(stager):
                self._stage_block(fn, stager, number, inside)
        self._products(fn, kind, inside, columns, first, last)

    def _stage_block(
        self, fn: FunctionBuilder, stager: Stager | RowPacker, number: str, inside: Mapping[Axis, str]
    ) -> None:
        """Make the copy for block `number`, unless the one before it had the same."""
        last = max(place for place, axis in enumerate(self.plan.blocks) if axis in stager.staging.axes)
        same = extent_of(self.plan.blocks[last + 1 :])
        if same == 1 or number == "0":
            self._stage(fn, stager, inside)
            return
        with fn.if_(fn.compare("eq", "i64", fn.binary("urem", "i64", number, same), 0)):
            self._stage(fn, stager, inside)

    def _products(
        self, fn: FunctionBuilder, kind: str, place: Mapping[Axis, str], columns: int, first: str, last: str
    ) -> None:
        """Pack the panel if need be, then run down its tiles."""
        if self.plan.source is not None and self.plan.source.column_table:
            outside = {axis: value for axis, value in place.items() if axis is not self.found.column}
            wide = self._address(fn, self.found.wide, self.wide_stager, outside)
        else:
            wide = self._address(fn, self.found.wide, self.wide_stager, place)
        if self.packer is not None:
            self.packer.call(fn, wide, self.panel, place[self.found.column], columns)
            wide = self.panel
        self._rows(fn, kind, place, columns, wide, first, last)

    def _rows(
        self, fn: FunctionBuilder, kind: str, place: Mapping[Axis, str], columns: int, wide: str, first: str, last: str
    ) -> None:
        if not self.plan.outer_rows:
            self._tiles(fn, kind, place, columns, wide, self.sums, first, last)
            return
        count = self.plan.row_split.count
        block = count * self.plan.row_split.size * self._sums_width()

        def rows(part: str, low: str, high: str) -> None:
            sums = fn.gep(self.sums, fn.affine([(block, part)]), self.element)
            inner = {**place, **decode(fn, part, self.plan.outer_rows)}
            self._tiles(fn, kind, inner, columns, wide, sums, low, high)

        for_each_part(fn, first, last, count, rows)

    def _tiles(
        self, fn: FunctionBuilder, kind: str, place: Mapping[Axis, str], columns: int, wide: str, sums: str, first: str,
        last: str,
    ) -> None:  # fmt: skip
        plan, split, row = self.plan, self.plan.row_split, self.plan.row
        vectors = -(-columns // plan.lanes)
        memory = self._memory(vectors)
        base = self._address(fn, self.found.narrow, self.narrow_stager, place)
        for part in self.sizes:
            size = part.size
            start = fn.max_i64(first, str(part.begin)) if part.begin else first
            end = last if part.is_last else fn.min_i64(last, str(part.end))
            with fn.loop(start, end) as loop:
                at = part.place(fn, loop.index)
                tile_place = {**place} if row is None else {**place, row: at}
                offset = fn.affine([(split.size * self._sums_width(), loop.index)])
                tile_sums = fn.gep(sums, offset, self.element) if plan.blocks else self.sums
                if kind == FINISH:
                    self.micro.finish(fn, str(size), columns, tile_sums, tile_place)
                    continue
                operands = Operands(self._rows_of_tile(fn, base, at, loop.index), wide, tile_sums)
                first_call = START if kind == START_AND_FINISH else kind
                self.micro.call(fn, first_call, Tile(size, vectors), columns, memory, operands, tile_place)
                if kind == START_AND_FINISH:
                    self.micro.finish(fn, str(size), columns, tile_sums, tile_place)

    def _rows_of_tile(self, fn: FunctionBuilder, base: str, row: str, number: str) -> str:
        """Address of the narrow operand for tile `number`, the first row of which is `row`."""
        plan = self.plan
        if plan.row_table:
            return base
        if isinstance(plan.narrow_copy, RowPanels):
            return fn.gep(base, fn.affine([(plan.narrow_copy.pitch, number)]), self.element)
        return fn.gep(base, fn.affine([(plan.row_stride, row)]), self.element)

    def _memory(self, vectors: int) -> TileMemory:
        narrow, wide = self.found.narrow, self.found.wide
        steps, panel_step = [], vectors * self.plan.lanes
        limits: dict[Axis, TapLimit | TileLimit | SizeLimit] = {limit.tap: limit for limit in self.plan.limits}
        limits.update((band.tap, band) for band in self.plan.bands)
        limits.update((axis, SizeLimit(axis)) for axis in self.plan.sums if axis.rows)
        for axis in reversed(self.plan.sums):
            advance = panel_step if self.packer else wide.stride(axis)
            steps.append(Step(axis.extent, narrow.stride(axis), advance, limits.get(axis)))
            panel_step *= axis.extent
        whole = self.packer is not None or self.wide_stager is not None
        column_stride = wide.stride(self.found.column)
        return TileMemory(
            self.plan.row_stride, self.row_table, tuple(reversed(steps)), whole, self.plan.dot, column_stride
        )

    def _address(
        self, fn: FunctionBuilder, operand: Operand, stager: Stager | RowPacker | None, place: Mapping[Axis, str]
    ) -> str:
        """Address of the operand's element at `place`, zero along every other axis."""
        terms, constant = [], operand.flat.constant
        for atom, factor in operand.flat.terms:
            if isinstance(atom, Axis) and atom in place:
                terms.append((factor, place[atom]))
        if stager is None:
            base = self._base(operand.buffer)
        else:
            base = self.narrow_copy if stager is self.narrow_stager else self.wide_copy
        return fn.gep(base, fn.affine(terms, constant), self.element)


def thread_range(fn: FunctionBuilder, count: int | str) -> tuple[str, str]:
    """First and one past the last of `count` pieces of work for thread %tid of %nt."""
    low = fn.binary("udiv", "i64", str(product(fn, (count, "%tid"))), "%nt")
    following = fn.affine([(1, "%tid")], 1)
    return low, fn.binary("udiv", "i64", str(product(fn, (count, following))), "%nt")


def for_each_part(
    fn: FunctionBuilder, low: str, high: str, per_part: int | str, body: Callable[[str, str, str], None]
) -> None:
    """Pieces low .. high in parts of `per_part`: body(part, first piece in the part, one past the last in the part)."""
    first = fn.binary("udiv", "i64", low, per_part)
    behind = [(1, high)] if isinstance(per_part, int) else [(1, high), (1, per_part)]
    last = fn.binary("udiv", "i64", fn.affine(behind, per_part - 1 if isinstance(per_part, int) else -1), per_part)
    last = fn.select(fn.compare("slt", "i64", low, high), "i64", last, first)
    with fn.loop(first, last) as loop:
        before = (-per_part, loop.index) if isinstance(per_part, int) else (-1, product(fn, (per_part, loop.index)))
        start, end = fn.affine([(1, low), before]), fn.affine([(1, high), before])
        body(loop.index, fn.max_i64(start, "0"), fn.min_i64(end, str(per_part)))


def decode(fn: FunctionBuilder, number: str, axes: Sequence[Axis]) -> dict[Axis, str]:
    """The coordinates of point `number`, counted in C order over `axes`."""
    coordinates: dict[Axis, str] = {}
    for axis in reversed(axes[1:]):
        coordinates[axis] = fn.binary("urem", "i64", number, axis.extent)
        number = fn.binary("udiv", "i64", number, axis.extent)
    if axes:
        coordinates[axes[0]] = number
    return coordinates
