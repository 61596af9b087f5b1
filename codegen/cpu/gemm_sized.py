"""Matrix products over an axis of run-time extent: its rows in tiles whose number is known at run time, its sum as far as n.

Rows are cut into as many whole tiles as there are; what is left over is put together from tiles of 8, 4, 2 and 1 rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fusegraph.codegen.cpu.irtext import FunctionBuilder
from fusegraph.codegen.cpu.run_time import bound, product
from fusegraph.ir.index import Axis
from fusegraph.records import dataclass

if TYPE_CHECKING:
    from fusegraph.codegen.cpu.gemm_plan import GemmPlan

__all__ = ["SizeLimit", "TileSize", "can_be_sized", "most_tiles", "tile_sizes"]


@dataclass(frozen=True)
class SizeLimit:
    """The steps of a sum over an axis of run-time extent."""

    axis: Axis

    def bounds(self, fn: FunctionBuilder, coordinates: Mapping[Axis, str], rows: int, columns: int) -> tuple[str, str]:
        """First and one past the last step; the same for every tile."""
        return "0", str(bound(fn, self.axis))


@dataclass(frozen=True)
class TileSize:
    """The tiles number `begin` .. `end` - 1 have `size` rows; tile `begin` starts at row `start`."""

    size: int
    begin: int | str
    end: int | str
    start: int | str
    is_last: bool

    def place(self, fn: FunctionBuilder, number: str) -> str:
        """The first row of tile `number`."""
        if isinstance(self.begin, int) and isinstance(self.start, int):
            return fn.affine([(self.size, number)], self.start - self.size * self.begin)
        return fn.affine([(self.size, number), (-self.size, self.begin), (1, self.start)])


def tile_sizes(fn: FunctionBuilder, plan: GemmPlan) -> list[TileSize]:
    """The tiles of one panel, by size."""
    row, split = plan.row, plan.row_split
    if row is None or not row.rows:
        sizes = list(split.sizes())
        return [
            TileSize(size, low, high, size * low + split.start(size), high == split.count) for low, high, size in sizes
        ]
    rows, size = bound(fn, row), split.size
    whole, rest = fn.op(f"udiv i64 {rows}, {size}"), fn.op(f"urem i64 {rows}, {size}")
    start = product(fn, (whole, size))
    found = [TileSize(size, 0, whole, 0, size == 1)]
    begin: int | str = whole
    for part in _parts(size):
        bit = fn.op(f"and i64 {rest}, {part}")
        count = bit if part == 1 else fn.op(f"lshr i64 {bit}, {part.bit_length() - 1}")
        end = fn.op(f"add i64 {begin}, {count}")
        found.append(TileSize(part, begin, end, start, part == 1))
        begin, start = end, fn.op(f"add i64 {start}, {bit}")
    return found


def _parts(size: int) -> list[int]:
    """Powers of two, largest first, that every number below `size` is a sum of, each at most once."""
    return [1 << power for power in reversed(range((size - 1).bit_length()))]


def most_tiles(plan: GemmPlan) -> int:
    """Of one panel, for any number of rows."""
    return plan.row_extent // plan.row_split.size + len(_parts(plan.row_split.size))


def can_be_sized(plan: GemmPlan) -> bool:
    """Whether a plan can take the number of points along its axes of run-time extent as it comes."""
    outer = plan.outer[1:] if plan.outer and plan.outer[0].rows else plan.outer
    fixed = [*outer, *plan.outer_rows, *plan.blocks[1:], *plan.sums[1:]]
    if any(axis.rows for axis in fixed) or (plan.row is not None and plan.row.rows and plan.outer_rows):
        return False
    if any(axis.rows for limit in plan.limits for axis in limit.axes):
        return False
    if plan.sums and plan.sums[0].rows:
        if plan.dot and len(plan.sums) == 1:
            return False
        if plan.source is not None and not plan.source.can_be_sized:
            return False
    copies = [copy for copy in (plan.narrow_copy, plan.wide_copy) if copy is not None]
    return all(copy.can_be_sized for copy in copies) and _outermost_is_grouped(plan)


def _outermost_is_grouped(plan: GemmPlan) -> bool:
    """Whether an outer axis of run-time extent is the one whose number of points nobody divides by."""
    if not plan.outer or not plan.outer[0].rows:
        return True
    copied = [copy.axes for copy in (plan.narrow_copy, plan.wide_copy) if copy is not None]
    grouping = [axis for axis in plan.outer if any(axis in axes for axes in copied)]
    return not grouping or grouping[0] is plan.outer[0]
