"""The choice of a way to run a contraction as a blocked matrix product: roles, tile, packing, staging.

Every sensible plan is made and its time estimated in cycles; the cheapest one is emitted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from fusegraph.codegen.cpu.contract_epilogue import epilogue_weight
from fusegraph.codegen.cpu.contract_plan import (
    Contraction,
    Merges,
    Operand,
    epilogue_accesses,
    extent_of,
    merge_axes,
    offsets_along,
    roles,
)
from fusegraph.codegen.cpu.contract_stage import Staging
from fusegraph.codegen.cpu.gemm_bands import TileLimit, banded
from fusegraph.codegen.cpu.gemm_limits import Limits
from fusegraph.codegen.cpu.gemm_operands import staged_operands
from fusegraph.codegen.cpu.gemm_pack import PanelSource, in_two_pieces
from fusegraph.codegen.cpu.gemm_rows import RowPanels, row_panels
from fusegraph.codegen.cpu.gemm_sized import can_be_sized
from fusegraph.codegen.cpu.gemm_tile import Split, Tile, dot_cost, dot_tiles, even_split, tile_cost, tiles
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Loop, Program
from fusegraph.records import dataclass, replace

__all__ = ["GemmPlan", "plan_gemm"]

_MAX_TABLE = 4096  # entries of a table of row or column offsets
_MAX_PANEL = 1 << 16  # elements of a packed panel; more do not stay in the second-level cache
_MIN_DEPTH = 64  # steps of the sum that a block should have
_MAX_ROWS = 14
_MAX_TABLE_ROWS = 11  # rows of a tile whose addresses come from a table: one general register each

_MAX_UNROLLED = 250  # instructions of an epilogue that is written out for every vector of a tile

_LINE, _SETS, _WAYS = 64, 64, 8  # first-level cache: bytes of a line, sets, ways

# Estimated cycles, measured on Zen 3 with 8 lanes.
_NARROW_MISS, _WIDE_MISS = 3.5, 2.0  # for a step of the sum of a tile
_COPY, _TRANSPOSE, _PIECES, _SCATTERED = 1.5, 2.0, 2.0, 10.0  # for each packed vector
_TRANSPOSE_MANY = (
    4.0  # of panels of three vectors and more: rows that are read side by side are too many to be fetched ahead
)
_STORE, _STRIDED = 2.0, 18.0  # for each vector of the output, and each access of it to columns that are apart
_ACROSS_LINES = 1.5  # loads that count for one at any offset: half of the vectors lie across two lines
_THROUGH = 0.06  # for each element that is read from the third-level cache or beyond
_FAR_DOTS = 1.3  # factor for dot products of vectors that come from the second-level cache
_CALL = 25.0  # for each tile
_STAGE, _STAGE_STRIDED = 0.4, 1.0  # for each element
_FAR = 1.0  # for each step of the sum of a tile


@dataclass(frozen=True)
class GemmPlan:
    """How a contraction runs as a matrix product.

    outer         loops around everything, those that a staged copy depends on first
    blocks        loops of the sum outside of the tiles; the tiles' sums are kept in scratch between them
    sums          the other loops of the sum, outermost first
    narrow_copy, wide_copy   stagings of the operands, or panels of the narrow one
    row_table     offset of each row in the narrow operand, empty where row_stride says it
    source        how panels of the wide operand are packed; None: it is read in place
    strided       loads and stores of the epilogue in which neighbouring columns are apart
    limits        taps of a transposed convolution that are summed up only where they lie inside of the image
    bands         masks that leave a part of the sums
    dot           vectors run along the sum; the tile is one of rows x columns dot products
    """

    found: Contraction
    program: Program
    lanes: int
    tile: Tile
    row: Axis | None
    outer_rows: tuple[Axis, ...]
    outer: tuple[Axis, ...]
    blocks: tuple[Axis, ...]
    sums: tuple[Axis, ...]
    narrow_copy: Staging | RowPanels | None
    wide_copy: Staging | None
    row_stride: int
    row_table: tuple[int, ...]
    source: PanelSource | None
    strided: int
    dot: bool
    limits: Limits = ()
    bands: tuple[TileLimit, ...] = ()

    def __str__(self) -> str:
        shape = f"{self.row_extent} rows x {self.found.column.extent} columns ({self.found.column.name})"
        kind = f"dot products of {self.tile.rows} rows x {self.tile.vectors} columns" if self.dot else (
            f"{self.tile.rows} rows x {self.tile.vectors} vectors of {self.lanes}")  # fmt: skip
        parts = [f"{shape} in tiles of {kind}"]
        if self.source is not None:
            parts.append("packed panels")
        parts += [f"{copy.buffer} staged" for copy in (self.narrow_copy, self.wide_copy) if copy is not None]
        if self.limits:
            parts.append("taps inside of the image only")
        if self.bands:
            parts.append("what the mask leaves")
        if self.blocks:
            parts.append(f"sums in {extent_of(self.blocks)} blocks")
        return ", ".join(parts)

    @property
    def row_extent(self) -> int:
        """Rows along `row`."""
        return 1 if self.row is None else self.row.extent

    @property
    def row_split(self) -> Split:
        """The tiles along `row`."""
        return even_split(self.row_extent, self.tile.rows)

    @property
    def panel_width(self) -> int:
        """Columns of a whole panel."""
        return self.tile.vectors if self.dot else self.tile.vectors * self.lanes

    @property
    def panels(self) -> int:
        """Panels along the column axis, the last one perhaps narrower."""
        return -(-self.found.column.extent // self.panel_width)

    @property
    def keeps_sums(self) -> bool:
        """Whether the epilogue is written once for all rows, and reads a tile's sums from scratch."""
        tile = self.tile.rows * (1 if self.dot else self.tile.vectors)
        return bool(self.blocks) or epilogue_weight(self.found.loop.stages[1:]) * tile > _MAX_UNROLLED

    @property
    def tiles(self) -> int:
        """Tiles of one panel."""
        return extent_of(self.outer_rows) * self.row_split.count

    @property
    def cycles(self) -> float:
        """Estimated time of the whole loop on one thread."""
        found, outer = self.found, extent_of(self.outer)
        rows = extent_of(self.outer_rows)
        depth = extent_of(self.sums) * extent_of(self.blocks) * math.prod(limit.share for limit in self.limits)
        vectors = -(-found.column.extent // self.lanes)
        step = self._dot_cycles() if self.dot else depth * tile_cost(self.tile, self.row_extent, vectors)
        total = outer * rows * step
        total += outer * depth * self.panels * self.tiles * self._miss_cycles()
        total += outer * self.panels * self._pass_cycles()
        total += outer * self.panels * self.tiles * _CALL * (1 + extent_of(self.blocks) if self.blocks else 1)
        total += outer * rows * self.row_extent * vectors * (_STORE + _STRIDED * self.strided)
        if self.source is not None:
            total += outer * depth * vectors * _pack_cost(self.source, self.lanes, self.tile.vectors)
        copies = [copy for copy in (self.narrow_copy, self.wide_copy) if copy is not None]
        return total + sum(map(self._copy_cycles, copies))

    def _copy_cycles(self, copy: Staging | RowPanels) -> float:
        """Time of making an operand's copies, and of reading them from further away if they are large."""
        times = extent_of(copy.axes)
        if copy.axes & set(self.blocks):  # made inside of the loops over panels
            times *= self.panels * extent_of(axis for axis in self.outer if axis not in copy.axes)
        far = _FAR if copy.elements > _MAX_PANEL and isinstance(copy, Staging) else 0.0
        steps = extent_of(self.outer) * extent_of(self.sums) * extent_of(self.blocks) * self.panels * self.tiles
        return copy.elements * times * (_STAGE if copy.contiguous else _STAGE_STRIDED) + steps * far

    @property
    def is_far(self) -> bool:
        """Whether the vectors that dot products of a row of tiles read do not stay in the first-level cache."""
        vectors = self.tile.rows + self.tile.vectors
        return vectors * extent_of(self.sums) * self.found.reduce.dtype.itemsize > _LINE * _SETS * _WAYS // 2

    def _dot_cycles(self) -> float:
        step, last = dot_cost(self.tile, self.row_extent, self.found.column.extent, self.lanes, self._across_lines())
        steps = extent_of(self.sums[:-1]) * -(-self.sums[-1].extent // self.lanes)
        step *= _FAR_DOTS if self.is_far else 1.0
        return extent_of(self.blocks) * steps * step + last

    def _across_lines(self) -> float:
        """Loads that a load of dot products counts for: more than one where vectors lie across the lines of the cache."""
        strides = [0]
        for flat in (self.found.wide.flat, self.found.narrow.flat):
            strides += [flat.constant, *(factor for atom, factor in flat.terms if atom is not self.sums[-1])]
        if all(stride % self.lanes == 0 for stride in strides):
            return 1.0
        return 1.1 if all(stride % max(self.lanes // 2, 1) == 0 for stride in strides) else _ACROSS_LINES

    def _pass_cycles(self) -> float:
        """Time of reading what a panel's blocks of dot products go through, where that lies far away."""
        if not self.dot or not self.blocks:
            return 0.0
        narrow, wide = (self.program.buffers[o.buffer].size for o in (self.found.narrow, self.found.wide))
        return (narrow + wide / self.panels) * _THROUGH if narrow + wide > 2 * _MAX_PANEL else 0.0

    def _miss_cycles(self) -> float:
        """Extra cycles for each step of the sum of a tile."""
        if self.dot:
            return 0.0
        narrow = self._misses(self.found.narrow, self.narrow_copy, _NARROW_MISS)
        if self.source is not None:
            return narrow
        lines = 1 + self.panel_width * self.found.reduce.dtype.itemsize // _LINE
        return narrow + self._misses(self.found.wide, self.wide_copy, _WIDE_MISS, lines)

    def _misses(self, operand: Operand, copy: Staging | RowPanels | None, cycles: float, lines: int = 1) -> float:
        """Extra cycles for a step of the sum if the lines that a tile reads do not stay in the first-level cache."""
        size = self.found.reduce.dtype.itemsize
        strides = [abs(operand.stride(axis)) * size for axis in self.sums]
        if copy is not None or not strides or min(strides) < _LINE:
            return 0.0
        sets = _SETS if strides[-1] % _LINE else _SETS // math.gcd(strides[-1] // _LINE, _SETS)
        return cycles if lines * extent_of(self.sums) >= sets * _WAYS else 0.0


def _pack_cost(source: PanelSource, lanes: int, vectors: int) -> float:
    if source.column_table:
        return _PIECES if in_two_pieces(source.column_table, lanes) else _SCATTERED
    if source.column_stride == 1:
        return _COPY
    if not source.transposed:
        return _SCATTERED
    return _TRANSPOSE if vectors <= 2 else _TRANSPOSE_MANY


def plan_gemm(loop: Loop, program: Program, vector_bits: int, exact: bool = False) -> GemmPlan | None:
    """The plan with the least estimated time for a contraction in normal form; None if there is none.

    `exact`: the sums keep the loop's order.
    """
    plans, merges = [], Merges(program)
    for found in roles(loop, program):
        for staged in staged_operands(found, program, exact):
            # with one column axis there is nothing to merge, hence no other plan
            for plain_columns in (True, False) if len(found.columns) > 1 else (True,):
                plans += _plans(*staged, program, vector_bits, plain_columns, exact, merges)
    if loop.sized:
        plans = [plan for plan in plans if can_be_sized(plan)]
    best = min(plans, key=lambda plan: plan.cycles, default=None)
    return best if best is None or exact else banded(best)


def _plans(
    found: Contraction, narrow_copy: Staging | None, wide_copy: Staging | None, limits: Limits, program: Program,
    vector_bits: int, plain_columns: bool, exact: bool, merges: Merges,
) -> list[GemmPlan]:  # fmt: skip
    """Every plan for these roles and copies. Sums that a copy is made for are done block by block."""
    copies = [copy for copy in (narrow_copy, wide_copy) if copy is not None]
    blocks = tuple(axis for axis in found.sums if any(axis in copy.axes for copy in copies))
    if exact and blocks != found.loop.stages[0].reduce_axes[: len(blocks)]:
        return []
    found = replace(found, sums=tuple(axis for axis in found.sums if axis not in blocks))
    apart = frozenset().union(*(limit.axes for limit in limits))
    found = merge_axes(found, merges, plain_columns=plain_columns, plain_rows=False, merge_sums=not exact, apart=apart)
    layout = _layout(found, plain_columns)
    if layout is None:
        return []
    # the axis with the smallest stride innermost; exact results keep the order of the loop
    limited = {limit.tap for limit in limits}
    sums = found.sums if exact else tuple(
        sorted(found.sums, key=lambda axis: (axis not in limited, -abs(found.wide.stride(axis))))
    )  # fmt: skip
    lanes = vector_bits // (8 * found.reduce.dtype.itemsize)
    base = GemmPlan(
        found, program, lanes, Tile(1, 1), layout.row,
        outer_rows=tuple(axis for axis in found.rows if axis is not layout.row),
        outer=(*found.shared, *(axis for axis in found.columns if axis is not found.column)),
        blocks=blocks, sums=sums, narrow_copy=narrow_copy, wide_copy=wide_copy,
        row_stride=found.narrow.stride(layout.row), row_table=layout.row_table, source=None,
        strided=sum(abs(flat.coefficient(found.column)) > 1 for flat in epilogue_accesses(found.loop, program)), dot=False,
        limits=limits,
    )  # fmt: skip
    if found.column in apart or layout.row in apart:
        return []
    if limits:
        return [_ordered(replace(base, tile=tile)) for tile in _limited_tiles(base, vector_bits)]
    return [_ordered(plan) for plan in _variants(base, layout, 32 if vector_bits == 512 else 16, exact)]


def _limited_tiles(base: GemmPlan, vector_bits: int) -> list[Tile]:
    """Tiles for a sum over some taps only: read in place."""
    if base.found.wide.stride(base.found.column) != 1 or base.row_table:
        return []
    registers = 32 if vector_bits == 512 else 16
    return list(tiles(base.row_extent, base.found.column.extent, base.lanes, registers, _MAX_ROWS))


def _variants(base: GemmPlan, layout: _Layout, registers: int, exact: bool) -> Iterator[GemmPlan]:
    """`base` with every tile, packed or not, with the narrow operand as it is or in panels, and as dot products."""
    found, sums = base.found, base.sums
    rows, columns, table = base.row_extent, found.column.extent, layout.column_table
    most_rows = _MAX_TABLE_ROWS if base.row_table else _MAX_ROWS
    for tile in tiles(rows, columns, base.lanes, registers, most_rows):
        plain = replace(base, tile=tile)
        for plan in (plain, *_in_row_panels(plain)):
            if not table and found.wide.stride(found.column) == 1:
                yield plan
            yield _packed(plan, table)
    if not exact and not table and sums and found.narrow.stride(sums[-1]) == found.wide.stride(sums[-1]) == 1:
        for tile in dot_tiles(rows, columns, base.lanes, registers):
            plan = replace(base, tile=tile, dot=True)
            yield plan
            if (inner := _near(plan)) is not plan:
                yield inner


def _ordered(plan: GemmPlan) -> GemmPlan:
    """With the loops that a copy is made for outermost."""
    copied = {axis for copy in (plan.narrow_copy, plan.wide_copy) if copy is not None for axis in copy.axes}
    outer = tuple(sorted(plan.outer, key=lambda axis: (axis not in copied, not axis.rows)))
    return plan if outer == plan.outer else replace(plan, outer=outer)


def _in_row_panels(plan: GemmPlan) -> list[GemmPlan]:
    """With the narrow operand copied so that the rows of a tile stand side by side for each step of the sum."""
    row = plan.row
    if (
        plan.narrow_copy is not None
        or row is None
        or row.rows
        or plan.row_stride != 1
        or plan.outer_rows
        or plan.blocks
    ):
        return []
    copy = row_panels(plan.found.narrow, row, plan.sums, plan.row_split) if plan.sums else None
    return [] if copy is None else [replace(plan, found=replace(plan.found, narrow=copy.operand()), narrow_copy=copy)]


def _packed(plan: GemmPlan, column_table: tuple[int, ...]) -> GemmPlan:
    """With packed panels, of a part of the sum each if a whole one would not stay in the cache."""
    width = plan.panel_width
    while extent_of(plan.sums) * width > _MAX_PANEL:
        first, *rest = plan.sums
        inner = extent_of(rest)
        if inner >= _MIN_DEPTH and (not first.rows or first.per > 1):
            plan = replace(plan, blocks=(*plan.blocks, first), sums=tuple(rest))
            continue
        part = max(
            (d for d in range(1, first.extent) if first.extent % d == 0 and d * inner * width <= _MAX_PANEL), default=1
        )
        if part * inner < _MIN_DEPTH or first.rows:
            break
        plan = _split_sum(plan, first, part)
    wide = plan.found.wide
    steps = tuple((axis.extent, wide.stride(axis)) for axis in plan.sums)
    sized = plan.sums[0] if plan.sums and plan.sums[0].rows else None
    return replace(plan, source=PanelSource(wide.stride(plan.found.column), column_table, steps, sized))


def _near(plan: GemmPlan) -> GemmPlan:
    """With outer loops of the sum as blocks, until the vectors that a tile reads stay in the first-level cache."""
    while plan.is_far and len(plan.sums) > 1 and extent_of(plan.sums[1:]) >= _MIN_DEPTH:
        if plan.sums[0].rows and plan.sums[0].per == 1:
            break
        plan = replace(plan, blocks=(*plan.blocks, plan.sums[0]), sums=plan.sums[1:])
    return plan


def _split_sum(plan: GemmPlan, axis: Axis, part: int) -> GemmPlan:
    """With `axis`, the first of the sum, in blocks of `part` steps."""
    outer, inner = Axis(f"{axis.name}_block", axis.extent // part), Axis(f"{axis.name}_in_block", part)
    mapping = {axis: Index.of(outer) * part + inner}
    found = plan.found
    found = replace(found, narrow=found.narrow.substitute(mapping), wide=found.wide.substitute(mapping))
    return replace(plan, found=found, blocks=(*plan.blocks, outer), sums=(inner, *plan.sums[1:]))


@dataclass(frozen=True)
class _Layout:
    row: Axis | None
    row_table: tuple[int, ...]
    column_table: tuple[int, ...]


def _layout(found: Contraction, plain_columns: bool) -> _Layout | None:
    """The row axis, and the tables of rows and columns that are at irregular places; None if they cannot be had."""
    row = max(found.rows, key=lambda axis: axis.extent, default=None)
    irregular = [axis for axis in found.rows if axis not in found.narrow.affine_axes]
    irregular += [axis for axis in found.columns if axis not in found.wide.affine_axes]
    if any(axis is not row and axis is not found.column for axis in irregular):
        return None
    if not plain_columns and found.column not in irregular:
        return None  # the same plan as with plain columns
    if any(axis.extent > _MAX_TABLE for axis in irregular):
        return None
    row_table = offsets_along(found.narrow, row) if row is not None and row in irregular else ()
    column_table = offsets_along(found.wide, found.column) if found.column in irregular else ()
    return None if row_table is None or column_table is None else _Layout(row, row_table, column_table)
