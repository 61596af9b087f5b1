"""Products of which a mask leaves a part: the lower half of the scores of causal attention, and what is made of them.

The mask compares positions: i >= j. It stands in the value of a buffer, which is 0 outside of it (the weights, where the
masked scores were -inf before exp), or in the epilogue of the product itself, which does not use the sum outside of it. A
tile then sums over the steps that its rows can see, and not at all where it sees nothing. Numbers that a row may not see
do not reach it even if they are NaN or infinite; PyTorch's causal kernels leave blocks of them out too. `exact` sums
over all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fusegraph.codegen.cpu.irtext import FunctionBuilder
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Loop, Program
from fusegraph.ir.scalar import Expr, Load, walk
from fusegraph.records import dataclass, replace

if TYPE_CHECKING:
    from fusegraph.codegen.cpu.gemm_plan import GemmPlan

__all__ = ["TileLimit", "banded", "masks_of"]

_COMPARISONS = {"ge": (1, 0), "gt": (1, -1), "le": (-1, 0), "lt": (-1, -1)}  # sign and constant of left - right >= 0
_Rule = Callable[[Expr, Program, Loop, int], "Index | None"]
_DEPTH = 12  # operations that are looked through for a mask


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
    for index in (*(_zero_outside(load, plan.program) for load in loads), _unused_outside(loop)):
        if index is None or not index.is_affine or not index.axes & axes or index.axes - axes - set(plan.sums):
            continue
        taps = [axis for axis in plan.sums if axis in index.axes] or [plan.sums[0]]
        if any(axis.rows for axis in (*index.axes, *taps)):  # the sum has another limit, known at run time
            continue
        if len(taps) == 1 and abs(index.coefficient(taps[0])) <= 1:
            return replace(plan, bands=(TileLimit(taps[0], index, plan.row, plan.found.column),))
    return plan


def masks_of(loop: Loop, program: Program) -> tuple[tuple[int, ...] | None, ...]:
    """What is known of the operands of a contraction, without names: part of the key under which loops share their code."""
    if loop.schedule != "contract" or loop.stages[0].reduces[0].value.op != "mul":
        return ()
    axes = (*loop.space, *loop.stages[0].reduce_axes)
    found = [
        _zero_outside(factor.attribute, program)
        for factor in loop.stages[0].reduces[0].value.args
        if factor.op == "load"
    ]
    return tuple(
        None if index is None else (*(index.coefficient(axis) for axis in axes), index.constant) for index in found
    )


def _unused_outside(loop: Loop) -> Index | None:
    """The index with the property that where it is < 0 no result depends on the sum."""
    reduce = loop.stages[0].reduces[0]
    stores = [store for stage in loop.stages[1:] for store in stage.stores]
    found: set[Index | None] = set()
    for store in stores:
        if any(expr.op == "load" and expr.attribute.buffer in loop.writes() for expr in walk([store.value])):
            return None
        if _depends(store.value, reduce.name):
            found.add(_unused_by(store.value, reduce.name))
    return found.pop() if len(found) == 1 else None


def _unused_by(value: Expr, accumulator: str) -> Index | None:
    if value.op != "where" or any(_depends(value.args[place], accumulator) for place in (0, 2)):
        return None
    return _condition(value.args[0])


def _depends(value: Expr, accumulator: str) -> bool:
    return any(expr.op == "acc" and expr.attribute == accumulator for expr in walk([value]))


# -- what is known of a buffer -----------------------------------------------------------------------------------------


def _zero_outside(load: Load, program: Program) -> Index | None:
    """The index with the property that where it is < 0 what is loaded is 0, or its whole row is NaN."""
    return _loaded(load, program, None, _is_zero, _DEPTH)


def _loaded(load: Load, program: Program, loop: Loop | None, rule: _Rule, depth: int) -> Index | None:
    """What `rule` says of the value that was stored to what is loaded, in the axes of the loading loop."""
    role = program.buffers[load.buffer].role
    if role not in ("temp", "local") or load.mask or depth == 0:
        return None
    writers = [loop] if role == "local" else [other for other in program.loops if load.buffer in other.writes()]
    if len(writers) != 1 or writers[0] is None:
        return None
    stores = [store for stage in writers[0].stages for store in stage.stores if store.buffer == load.buffer]
    if len(stores) != 1 or stores[0].mode != "store":
        return None
    index = rule(stores[0].value, program, writers[0], depth - 1)
    places = {part.axis: at for part, at in zip(stores[0].index, load.index, strict=True) if part.axis is not None}
    same = set(writers[0].space) if role == "local" else set()  # a local buffer is one point's own
    if index is None or not index.is_affine or not index.axes <= places.keys() | same:
        return None
    return index.substitute(places)


def _is_zero(value: Expr, program: Program, loop: Loop, depth: int) -> Index | None:
    """The index with the property that where it is < 0, `value` is 0."""
    if depth == 0:
        return None
    if value.op == "load":
        return _loaded(value.attribute, program, loop, _is_zero, depth)
    if value.op == "where":
        return _condition(value.args[0]) if _is_constant(value.args[2], 0.0) else None
    if value.op in ("mul", "div"):
        factors = value.args if value.op == "mul" else value.args[:1]
        found = (_is_zero(factor, program, loop, depth - 1) for factor in factors)
        return next((index for index in found if index is not None), None)
    return _is_lowest(value.args[0], program, loop, depth - 1) if value.op == "exp" else None


def _is_lowest(value: Expr, program: Program, loop: Loop, depth: int) -> Index | None:
    """The index with the property that where it is < 0, `value` is -inf, or NaN with the whole row."""
    if depth == 0:
        return None
    if value.op == "load":
        return _loaded(value.attribute, program, loop, _is_lowest, depth)
    if value.op == "where":
        return _condition(value.args[0]) if _is_constant(value.args[2], float("-inf")) else None
    return _is_lowest(value.args[0], program, loop, depth - 1) if value.op == "sub" else None


def _is_constant(value: Expr, number: float) -> bool:
    return value.op == "const" and value.attribute == number


def _condition(value: Expr) -> Index | None:
    """The index with the property that `value`, a comparison of positions, holds where it is >= 0."""
    if value.op not in _COMPARISONS:
        return None
    sides = [_position(side) for side in value.args]
    if sides[0] is None or sides[1] is None:
        return None
    sign, constant = _COMPARISONS[value.op]
    return (sides[0] - sides[1]) * sign + constant


def _position(value: Expr) -> Index | None:
    """The index that an integer expression is."""
    while value.op == "cast" and value.dtype.kind == "i" and value.args[0].dtype.kind == "i":
        value = value.args[0]
    if value.op == "const" and value.dtype.kind == "i":
        return Index(value.attribute)
    return value.attribute if value.op == "index" else None
