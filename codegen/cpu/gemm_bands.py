"""Products of which a mask leaves a part: the lower half of the scores of causal attention, and what is made of them.

The mask compares positions: i >= j. It stands in the value of a buffer, which is 0 outside of it (the weights, where the
masked scores were -inf before exp), in the epilogue of the product itself, which does not use the sum outside of it, or in
all that reads the product (the gradient of the weights, which the gradient of softmax multiplies by the weights). A tile
then sums over the steps that its rows can see, and not at all where it sees nothing. Numbers that a row may not see do not
reach it even if they are NaN or infinite; PyTorch's causal kernels leave blocks of them out too. `exact` sums over all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fusegraph.codegen.cpu.irtext import FunctionBuilder
from fusegraph.codegen.cpu.masks import unread_outside, unused_outside, zero_outside
from fusegraph.codegen.cpu.row_bands import find_row_bands
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Loop, Program
from fusegraph.records import dataclass, replace

if TYPE_CHECKING:
    from fusegraph.codegen.cpu.gemm_plan import GemmPlan

__all__ = ["TileLimit", "banded", "masks_of"]


@dataclass(frozen=True)
class TileLimit:
    """A step of the sum counts where `index` >= 0. `row`, `column`: the axes along which a tile has several points."""

    tap: Axis
    index: Index
    row: Axis | None
    column: Axis

    def bounds(self, fn: FunctionBuilder, coordinates: Mapping[Axis, str], rows: int, columns: int) -> tuple[str, str]:
        """First and one past the last step that counts for any of a tile's points; `coordinates` of the first one."""
        most = self.index.constant
        for axis, extent in ((self.row, rows), (self.column, columns)):
            if axis is not None:
                most += max(self.index.coefficient(axis), 0) * (extent - 1)
        terms = [
            (factor, coordinates[axis])
            for axis, factor in self.index.terms
            if isinstance(axis, Axis) and axis is not self.tap
        ]
        best, every = fn.affine(terms, most), str(self.tap.extent)
        slope = self.index.coefficient(self.tap)
        if slope == 0:
            return "0", fn.select(fn.compare("sge", "i64", best, 0), "i64", every, "0")
        if slope < 0:
            return "0", fn.min_i64(every, fn.max_i64("0", fn.affine([(1, best)], 1)))
        return fn.min_i64(every, fn.max_i64("0", fn.affine([(-1, best)]))), every


def banded(plan: GemmPlan) -> GemmPlan:
    """`plan` with its tiles' sums over what masks leave."""
    if plan.dot or not plan.sums or plan.limits:
        return plan
    loop, axes = plan.found.loop, {plan.row, plan.found.column}
    loads = [factor.attribute for factor in plan.found.reduce.value.args]
    known = [zero_outside(load, plan.program) for load in loads]
    for index in (*known, unused_outside(loop), unread_outside(loop, plan.program)):
        if index is None or not index.is_affine or not index.axes & axes or index.axes - axes - set(plan.sums):
            continue
        taps = [axis for axis in plan.sums if axis in index.axes] or [plan.sums[0]]
        if any(axis.rows for axis in (*index.axes, *taps)):  # the sum has another limit, known at run time
            continue
        if len(taps) == 1 and abs(index.coefficient(taps[0])) <= 1:
            return replace(plan, bands=(TileLimit(taps[0], index, plan.row, plan.found.column),))
    return plan


def masks_of(loop: Loop, program: Program) -> tuple[tuple[int, ...] | None, ...]:
    """What other loops say of the operands and of the use of a contraction, or of the rows of a nest, without names: part of the
    key under which loops share their code.
    """
    if loop.schedule == "nest" and (bands := find_row_bands(loop, program)) is not None:
        return ((loop.space.index(bands.row), bands.offset),)
    if loop.schedule != "contract" or loop.stages[0].reduces[0].value.op != "mul":
        return ()
    axes = (*loop.space, *loop.stages[0].reduce_axes)
    found = [
        zero_outside(factor.attribute, program)
        for factor in loop.stages[0].reduces[0].value.args
        if factor.op == "load"
    ]
    found.append(unread_outside(loop, program))
    return tuple(
        None if index is None else (*(index.coefficient(axis) for axis in axes), index.constant) for index in found
    )
