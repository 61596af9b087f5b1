"""How a canonical loop is run: which axis the vector lanes lie along, how much is unrolled, what is split among
threads.

Two ways:
  columns   lanes lie along one axis of the space; each lane is a point of its own, with its own accumulators
  rows      the space is walked point by point; each stage has its lanes along one of its own axes
The cheaper one is taken, by a count of instructions that knows contiguous, strided and gathered access.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fusegraph.codegen.cpu.nest_memory import MOST_STEP
from fusegraph.codegen.cpu.nest_rewrite import inner_axes, stage_roots
from fusegraph.codegen.cpu.vecmath import FUNCTIONS, RESTRICTED
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Loop, Stage
from fusegraph.ir.scalar import Expr, walk
from fusegraph.records import dataclass

_PARALLEL_WORK = 40_000  # instructions on single elements; below about 2 us one thread is faster than waking others
_SPLIT_ITEMS = 24  # leading axes with fewer points than this are split further, to share evenly among many cores
_STATIC_VECTORS = 8  # rows of at most this many vectors are written out without a loop
_STEP_COST = {"sum": 2.0, "prod": 2.0, "max": 4.0, "min": 4.0}  # of one step of a reduction: its latency counts
_COSTS = {
    "div": 4.0, "sqrt": 4.0, "rsqrt": 8.0, "floordiv": 20.0, "mod": 20.0, "philox": 110.0, "exp": 26.0, "exp_of_negative": 22.0, "expm1": 30.0,
    "log": 45.0, "log1p": 48.0, "tanh": 50.0, "sigmoid": 35.0, "erf": 55.0, "erf_beside_exp": 30.0, "sin": 60.0, "cos": 60.0, "pow": 120.0,
}  # fmt: skip
_LIGHT = 16.0  # instructions of a body that LLVM interleaves well by itself
_LONG, _LONGEST = 50.0, 400.0  # instructions of a body that wants four registers a value; beyond that it is code size
_STATIC_WEIGHT = 300  # but not if that makes more than about this many instructions


@dataclass(frozen=True)
class StagePlan:
    """rows: the stage's vector axis (None: point by point), lanes, vectors in flight; whether all are written out."""

    axis: Axis | None
    lanes: int
    copies: int
    static: bool


@dataclass(frozen=True)
class Plan:
    """columns if `axis` is not None (the vector axis of the space), else rows (`stages` says how).

    lanes         of a vector (one or two registers), and `narrow`: of one register, for what is left at the end of
    the axis
    outer         the other axes of the space, looped over in this order
    shared        how many of them, from the front, are split among threads (as one range)
    split_vector  whether the vector axis is split too
    chains        columns: separate accumulators along the innermost reduce axis
    """

    axis: Axis | None
    lanes: int
    narrow: int
    copies: int
    chains: int
    outer: tuple[Axis, ...]
    shared: int
    split_vector: bool
    stages: tuple[StagePlan, ...]
    parallel: bool


def plan_nest(loop: Loop, buffers: Mapping[str, Buffer], lanes: int, exact: bool, parallel: bool | None = None) -> Plan:
    """Choose for a canonical loop. `lanes`: float32 elements in a vector register. `parallel`: None decides by work."""
    lanes = _lanes_of_types(loop, lanes)
    columns = None if _uses_local(loop, buffers) else _best_column(loop, lanes)
    rows = _best_rows(loop, lanes, exact)
    if parallel is None:
        parallel = _work(loop) >= _PARALLEL_WORK
    parallel = parallel and loop.points() > 1
    if columns is not None and columns[0] <= rows[0]:
        return _column_plan(loop, columns[1], lanes, exact, parallel)
    outer = _sized_first(loop.space)
    return Plan(None, 1, 1, 1, 1, outer, _shared_axes(outer), False, rows[1], parallel)


def fitting_lanes(extent: int, lanes: int) -> int:
    """The vector length for an axis of this extent: at most `lanes`, a power of two that is not more than needed."""
    return min(lanes, 1 << max(extent - 1, 1).bit_length())


# -- costs -------------------------------------------------------------------------------------------------------------


def _uses_local(loop: Loop, buffers: Mapping[str, Buffer]) -> bool:
    return any(buffers[name].role == "local" for name in (*loop.reads(), *loop.writes()))


def _lanes_of_types(loop: Loop, lanes: int) -> int:
    """Half as many lanes where everything has eight bytes."""
    sizes = {node.dtype.itemsize for stage in loop.stages for node in walk(stage_roots(stage)) if node.op != "index"}
    sizes -= {1}
    return max(2, lanes // 2) if sizes == {8} else lanes


def operation_cost(node: Expr) -> float:
    """Instructions of one operation on a vector, roughly; of loads only what is not memory access."""
    if node.op in ("const", "acc", "load"):
        return 0.0
    cost = _COSTS.get(node.op, 1.0)
    by_polynomial = (node.op in FUNCTIONS and node.op != "sqrt") or node.op in RESTRICTED
    return 4 * cost if by_polynomial and node.dtype.itemsize == 8 else cost


def _access_cost(index: Index, axis: Axis | None, lanes: int, loaded: bool) -> float:
    """Of one vector of `lanes` points along `axis` (None: of one point)."""
    if axis is None or axis not in index.axes:
        return 1.0
    if not all(isinstance(atom, Axis) or axis not in Index(0, ((atom, 1),)).axes for atom, _ in index.terms):
        return 3.0 * lanes + 2
    step = index.coefficient(axis)
    return {1: 1.0, -1: 2.0}.get(step, 2.0 * step if loaded and 2 <= step <= MOST_STEP else 2.0 * lanes)


def _stage_cost(
    stage: Stage, space: Sequence[Axis], axis: Axis | None, lanes: int, known: set[Expr] | None = None
) -> float:
    """Instructions of a stage over the whole space. Values are computed once along the inner axes that they depend on.

    `known`: expressions whose values are in registers already.
    """
    inner = inner_axes(stage)
    everywhere = math.prod(a.extent for a in space if a != axis)
    total = 0.0

    def evaluations(axes: frozenset[Axis], varies: bool) -> float:
        count = everywhere * math.prod(a.extent for a in inner if a in axes and a != axis)
        if axis is None or not varies:
            return count
        return count * math.ceil(axis.extent / lanes)

    for node in walk(stage_roots(stage)):
        if known and node in known:
            continue
        cost = operation_cost(node)
        if node.op == "load":
            cost += _access_cost(node.attribute.index[0], axis, lanes, loaded=not node.attribute.mask) + 2 * len(
                node.attribute.mask
            )
        total += cost * evaluations(node.axes, axis in node.axes)
    points = frozenset(inner)
    for store in stage.stores:
        total += _access_cost(store.index[0], axis, lanes, loaded=False) * evaluations(points, True)
    total += sum(_STEP_COST.get(reduce.op, 6.0) for reduce in stage.reduces) * evaluations(points, True)
    if axis in stage.reduce_axes:
        across = sum(_STEP_COST.get(reduce.op, 6.0) for reduce in stage.reduces)
        total += everywhere * across * math.log2(max(lanes, 2))
    return total + everywhere * 2


def _best_column(loop: Loop, lanes: int) -> tuple[float, Axis] | None:
    found = []
    for position, axis in enumerate(reversed(loop.space)):
        width = fitting_lanes(axis.extent, lanes)
        found.append((sum(_stage_cost(stage, loop.space, axis, width) for stage in loop.stages), position, axis))
    if not found:
        return None
    cost, _, axis = min(found)
    return cost, axis


def _best_rows(loop: Loop, lanes: int, exact: bool) -> tuple[float, tuple[StagePlan, ...]]:
    """The cost of running row by row, and how. Rows that are written out keep values for later stages."""
    total, plans = 0.0, []
    kept: dict[Axis, set[Expr]] = {}
    for stage in loop.stages:
        cost, axis = _best_row_axis(stage, loop.space, lanes, exact, kept)
        plan = plan_stage(stage, axis, lanes)
        if axis is not None and plan.static and len(inner_axes(stage)) == 1:
            kept.setdefault(axis, set()).update(walk(stage_roots(stage)))
        total += cost
        plans.append(plan)
    return total, tuple(plans)


def _best_row_axis(stage: Stage, space: Sequence[Axis], lanes: int, exact: bool,
                   kept: Mapping[Axis, set[Expr]]) -> tuple[float, Axis | None]:  # fmt: skip
    choices: list[tuple[float, int, Axis | None]] = [(_stage_cost(stage, space, None, 1), 1 << 30, None)]
    candidates = inner_axes(stage)
    if stage.reduces and exact:
        candidates = ()
    elif any(reduce.op.startswith("arg") for reduce in stage.reduces):
        candidates = candidates[-1:]  # lanes must meet the points in C order
    for position, axis in enumerate(reversed(candidates)):
        if axis.extent > 1:
            cost = _stage_cost(stage, space, axis, fitting_lanes(axis.extent, lanes), kept.get(axis))
            choices.append((cost, position, axis))
    best = min(choices, key=lambda choice: choice[:2])
    return best[0], best[2]


def threads_worth(loop: Loop) -> float:
    """The work of the whole loop, in what is worth a second thread."""
    return _work(loop) / _PARALLEL_WORK


def _work(loop: Loop) -> int:
    """Element operations of the whole loop."""
    total = 0
    for stage in loop.stages:
        points = math.prod(axis.extent for axis in inner_axes(stage))
        operations = sum(1 + int(operation_cost(node)) for node in walk(stage_roots(stage)) if node.op != "const")
        total += points * (operations + len(stage.stores) + len(stage.reduces))
    return total * loop.points()


# -- unrolling and splitting -------------------------------------------------------------------------------------------


def stage_weight(stage: Stage) -> float:
    """Instructions of one vector of a stage, roughly."""
    nodes = walk(stage_roots(stage))
    return sum(operation_cost(node) + (node.op == "load") for node in nodes) + len(stage.stores) + len(stage.reduces)


def _copies(weight: float, vectors: int, most: int = 4) -> int:
    """Vectors in flight; a number that leaves no rest if there is one."""
    wanted = min(most if weight <= _LIGHT else 1, max(vectors, 1))
    for count in range(wanted, 1, -1):
        if vectors % count == 0 and 2 * count >= wanted:
            return count
    return wanted


def _wide_lanes(weight: float, extent: int, lanes: int) -> int:
    """Two or four registers a value for long bodies, so that independent chains hide each other's latency.

    Vectors side by side do not: LLVM's scheduler puts one after the other to save registers. The longer the chain, the
    less of it fits into the processor's window: 20 operations with tanh, sigmoid and exp take 34 ns for 8 points with
    two registers a value on Zen 3, 25 ns with four; gelu 7.4 and 6.2 ns.
    """
    if _LONG < weight <= _LONGEST and extent >= 8 * lanes and (extent % (4 * lanes) == 0 or extent >= 64 * lanes):
        return 4 * lanes
    return 2 * lanes if weight > _LIGHT and extent >= 4 * lanes else lanes


def plan_stage(stage: Stage, axis: Axis | None, lanes: int) -> StagePlan:
    """How a stage runs with its lanes along `axis` (one of its own), in rows."""
    if axis is None:
        return StagePlan(None, 1, 1, False)
    lanes = fitting_lanes(axis.extent, lanes)
    weight, vectors = stage_weight(stage), -(-axis.extent // lanes)
    if not axis.rows and vectors <= _STATIC_VECTORS and weight * vectors <= _STATIC_WEIGHT:
        return StagePlan(axis, lanes, vectors, True)
    lanes = _wide_lanes(weight, axis.extent, lanes)
    return StagePlan(axis, lanes, _copies(weight, axis.extent // lanes), False)


def _column_plan(loop: Loop, axis: Axis, lanes: int, exact: bool, parallel: bool) -> Plan:
    weight = max(stage_weight(stage) for stage in loop.stages)
    narrow = fitting_lanes(axis.extent, lanes)
    lanes = _wide_lanes(weight, axis.extent, narrow)
    reduces = max(len(stage.reduces) for stage in loop.stages)
    full = max(axis.extent // lanes, 1)
    most = 8 if reduces == 1 and weight <= 6 else 4
    copies = _copies(weight, full, most)
    innermost = [stage.reduce_axes[-1].extent for stage in loop.stages if stage.reduce_axes]
    chains = 1
    if reduces and not exact and copies * reduces < 4 and max(innermost, default=0) >= 16:
        chains = 4 // (copies * reduces)
    outer = _sized_first([a for a in loop.space if a != axis])
    shared = _shared_axes(outer)
    split = math.prod(a.extent for a in outer) < _SPLIT_ITEMS and axis.extent > lanes * copies
    return Plan(axis, lanes, narrow, copies, chains, outer, len(outer) if split else shared, split, (), parallel)


def _sized_first(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The order of the loops: an axis of run-time extent is outermost, so that the number of points is a multiple of n."""
    return tuple(sorted(axes, key=lambda axis: not axis.rows))


def _shared_axes(axes: Sequence[Axis]) -> int:
    """How many leading axes have enough points together to be shared evenly."""
    points = 1
    for position, axis in enumerate(axes):
        points *= axis.extent
        if points >= 2 * _SPLIT_ITEMS:
            return position + 1
    return len(axes)


def leading_points(space: Sequence[Axis], plan: Plan) -> int:
    """Points of the axes at the front of `space` that are shared out in C order; 0 where the vector axis is shared out."""
    if plan.split_vector:
        return 0
    points = 1
    for axis, first in zip(plan.outer[: plan.shared], space, strict=False):
        if axis != first:
            break
        points *= axis.extent
    return points
