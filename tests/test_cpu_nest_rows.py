"""Rows in the nest emitter: stages joined, rows fetched ahead, exp of what is never positive."""

from __future__ import annotations

import numpy as np
import pytest
from nest_cases import BITS, THREADS, Case, I, axes_of, softmax, text_of

from fusegraph.codegen.cpu.nest_canonical import canonical_loop
from fusegraph.codegen.cpu.nest_join import join_stages
from fusegraph.codegen.cpu.nest_pairs import Pairs, plan_pairs
from fusegraph.codegen.cpu.nest_plan import plan_nest
from fusegraph.codegen.cpu.nest_range import mark_exps
from fusegraph.codegen.cpu.nest_strips import plan_strips
from fusegraph.dtypes import DType, bool_, float32, float64
from fusegraph.ir import scalar
from fusegraph.ir.index import Axis
from fusegraph.ir.loops import Loop, Reduce, Stage, Store
from fusegraph.ir.scalar import Expr, op, walk


def row_case(rows: int, columns: int) -> tuple[Case, tuple]:
    case = Case()
    axes = axes_of(rows, columns, columns, names="rcd")
    case.input("x", (rows, columns))
    case.output("y", (rows, columns))
    return case, axes


def stored_then_summed(case: Case, axes: tuple, read: tuple, value: Expr | None = None) -> Loop:
    """y[r, c] = x * x, then total = sum over d of y at `read` (or of `value`), then o[r] = total."""
    r, c, d = axes
    x = case.load("x", (r, c))
    total = scalar.acc("total", float32)
    value = scalar.load("y", read, float32) if value is None else value
    case.output("o", (r.extent,))
    return Loop(
        "rows",
        (r,),
        (
            Stage(axes=(c,), stores=(Store("y", (I(r), I(c)), op("mul", x, x)),)),
            Stage(reduce_axes=(d,), reduces=(Reduce("total", "sum", value, float32),)),
            Stage(stores=(Store("o", (I(r),), total),)),
        ),
    )


def stages_of(case: Case, loop: Loop) -> tuple[Stage, ...]:
    return join_stages(canonical_loop(loop, case.buffers)).stages


@pytest.mark.parametrize("columns", [5, 64, 300])
def test_a_value_is_summed_where_it_is_stored(columns: int) -> None:
    case, axes = row_case(7, columns)
    loop = stored_then_summed(case, axes, (I(axes[0]), I(axes[2])))
    first = stages_of(case, loop)[0]
    assert first.reduces and first.stores
    assert {node.attribute.buffer for node in walk(first.expressions()) if node.op == "load"} == {"x"}
    case.check(loop, bits=BITS, threads=THREADS)


def test_a_value_is_not_summed_where_it_is_stored_if_other_points_are_read() -> None:
    case, axes = row_case(7, 40)
    loop = stored_then_summed(case, axes, (I(axes[0]), I(39) - I(axes[2])))
    assert len(stages_of(case, loop)) == 3
    case.check(loop, bits=BITS, threads=THREADS)


def test_what_is_read_first_is_not_overwritten_before() -> None:
    """sum of y, then y = x: another element of y would be overwritten before it is read."""
    case = Case()
    r, c, d = axes_of(5, 40, 40, names="rcd")
    case.input("x", (5, 40))
    case.input("y", (5, 40), role="state")
    case.output("o", (5,))
    for index, count in ((I(39) - I(d), 3), (I(d), 2)):
        y = scalar.load("y", (I(r), index), float32)
        loop = Loop(
            "rows",
            (r,),
            (
                Stage(reduce_axes=(d,), reduces=(Reduce("total", "sum", y, float32),)),
                Stage(axes=(c,), stores=(Store("y", (I(r), I(c)), case.load("x", (r, c))),)),
                Stage(stores=(Store("o", (I(r),), scalar.acc("total", float32)),)),
            ),
        )
        assert len(stages_of(case, loop)) == count
        case.check(loop, bits=BITS)


def test_the_sum_of_a_row_comes_before_what_reads_it() -> None:
    case, _ = row_case(6, 64)
    loop = softmax(case, 6, 64)
    assert len(stages_of(case, loop)) == 3


def test_exp_below_the_maximum() -> None:
    case, _ = row_case(6, 64)
    stages = mark_exps(canonical_loop(softmax(case, 6, 64), case.buffers).stages)
    names = {node.op for stage in stages for node in walk(stage.expressions())}
    assert "exp_of_negative" in names and "exp" not in names


def test_exp_below_another_maximum_is_exp() -> None:
    case = Case()
    r, c = axes_of(4, 33, names="rc")
    case.input("x", (4, 33))
    case.input("z", (4, 33))
    x, z, largest = case.load("x", (r, c)), case.load("z", (r, c)), scalar.acc("largest", float32)
    values = [
        op("exp", op("sub", z, largest)),
        op("exp", op("neg", op("mul", x, z))),
        op("exp", op("neg", op("mul", z, z))),
    ]
    stores = tuple(Store(case.output(f"o{n}", (4, 33)), (I(r), I(c)), value) for n, value in enumerate(values))
    stages = (Stage(reduce_axes=(c,), reduces=(Reduce("largest", "max", x, float32),)), Stage(axes=(c,), stores=stores))
    loop = Loop("l", (r,), stages)
    marked = mark_exps(canonical_loop(loop, case.buffers).stages)[1]
    assert [store.value.op for store in marked.stores] == ["exp", "exp", "exp_of_negative"]
    case.check(loop, bits=BITS)


def test_erf_makes_use_of_the_exp_beside_it() -> None:
    """In float32 only, and of the same number only."""
    for dtype, names in (
        (float32, ["exp_of_negative", "erf_beside_exp", "erf"]),
        (float64, ["exp_of_negative", "erf", "erf"]),
    ):
        case = Case()
        r, c = axes_of(4, 33, names="rc")
        case.input("x", (4, 33), dtype)
        case.input("z", (4, 33), dtype)
        x, z = case.load("x", (r, c)), case.load("z", (r, c))
        values = [op("exp", op("neg", op("mul", x, x))), op("erf", x), op("erf", z)]
        outputs = [case.output(f"o{n}", (4, 33), dtype) for n in range(3)]
        stores = tuple(Store(name, (I(r), I(c)), value) for name, value in zip(outputs, values, strict=True))
        loop = Loop("l", (r,), (Stage(axes=(c,), stores=stores),))
        marked = mark_exps(canonical_loop(loop, case.buffers).stages)[0]
        assert [store.value.op for store in marked.stores] == names
        case.check(loop, bits=BITS)


def test_exp_below_a_maximum_of_what_is_overwritten_is_exp() -> None:
    """x - max(x), but x is doubled in between."""
    case = Case()
    (r, c) = axes_of(6, 40, names="rc")
    case.input("x", (6, 40), role="state")
    case.output("o", (6, 40))
    x, place = case.load("x", (r, c)), (I(r), I(c))
    value = op("exp", op("sub", x, scalar.acc("largest", float32)))
    stages = (
        Stage(reduce_axes=(c,), reduces=(Reduce("largest", "max", x, float32),)),
        Stage(axes=(c,), stores=(Store("x", place, op("add", x, x)),)),
        Stage(axes=(c,), stores=(Store("o", place, value),)),
    )
    loop = Loop("l", (r,), stages)
    marked = mark_exps(canonical_loop(loop, case.buffers).stages)
    assert marked[2].stores[0].value.op == "exp"
    case.check(loop, bits=BITS)


def test_softmax_of_infinite_rows() -> None:
    case = Case()
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    x[0, 3], x[1, 3:50], x[2, :], x[3, 9], x[4, 5] = np.inf, -np.inf, -np.inf, np.nan, 3e38
    loop = softmax(case, 5, 64)
    case.arrays["x"] = x
    case.check(loop, bits=BITS)


@pytest.mark.parametrize(("rows", "columns", "fetched"), [(300, 1100, True), (30, 1100, False), (3000, 100, False)])
def test_long_rows_of_large_arrays_are_fetched_ahead(rows: int, columns: int, fetched: bool) -> None:
    case = Case()
    loop = softmax(case, rows, columns)
    assert ("@llvm.prefetch" in text_of(loop, case.buffers)) is fetched
    if fetched:
        case.check(loop)


# -- strips ------------------------------------------------------------------------------------------------------------


def column_sums(case: Case, rows: tuple[int, ...], columns: int, dtype: DType, *, stored: bool = False) -> Loop:
    """a[c] = sum of x * (y - mean[rows]), b[c] = max of x, over all rows; then o = a + w[c] * b and p = b."""
    *k, c = axes_of(*rows, columns, names="klmc"[4 - len(rows) - 1 :])
    x = case.load(case.input("x", (*rows, columns), dtype), (*k, c))
    y = case.load(case.input("y", (*rows, columns), dtype), (*k, c))
    mean = case.load(case.input("mean", rows, dtype), k)
    w = case.load(case.input("w", (columns,), dtype), (c,))
    value = op("mul", x, op("sub", y, mean))
    a, b = scalar.acc("a", dtype), scalar.acc("b", dtype)
    stages = [Stage(reduce_axes=tuple(k), reduces=(Reduce("a", "sum", value, dtype), Reduce("b", "max", x, dtype)))]
    if stored:
        case.output("v", (*rows, columns), dtype)
        again = tuple(axes_of(*rows, names="rst"))
        moved = dict(zip(k, map(I, again), strict=True))
        place = (*map(I, again), I(c))
        stages.insert(0, Stage(axes=again, stores=(Store("v", place, value.substitute(moved)),)))
    case.output("o", (columns,), dtype)
    case.output("p", (columns,), dtype)
    last = (Store("o", (I(c),), op("add", a, op("mul", w, b))), Store("p", (I(c),), b))
    return Loop("columns", (c,), (*stages, Stage(stores=last)))


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("dtype", [float32, float64])
@pytest.mark.parametrize("shape", [((512,), 256), ((131,), 517), ((3, 46), 515), ((70,), 1001), ((4, 5, 31), 128)])
def test_sums_of_columns_in_strips(shape: tuple[tuple[int, ...], int], dtype: DType, stored: bool) -> None:
    case = Case()
    loop = column_sums(case, *shape, dtype, stored=stored)
    canonical = join_stages(canonical_loop(loop, case.buffers))
    plan = plan_nest(canonical, case.buffers, 8, False, True)
    assert plan_strips(canonical, plan, False) is not None
    case.check(loop, rtol=2e-5, atol=2e-4, bits=BITS, threads=THREADS)


@pytest.mark.parametrize(("rows", "columns"), [(40, 256), (4096, 64), (3, 30000), (400, 9000)])
def test_sums_of_few_or_near_rows_are_not_cut_in_strips(rows: int, columns: int) -> None:
    case = Case()
    canonical = join_stages(canonical_loop(column_sums(case, (rows,), columns, float32), case.buffers))
    assert plan_strips(canonical, plan_nest(canonical, case.buffers, 8, False, True), False) is None


# -- pairs -------------------------------------------------------------------------------------------------------------


def causal_softmax(case: Case, rows: int, columns: int, *, reverse: bool = False) -> Loop:
    """exp of the masked row goes through a local buffer, as fusion makes it; `reverse`: read from its end."""
    r, c, d = axes_of(rows, columns, columns, names="rcd")
    case.input("x", (rows, columns))
    case.output("e", (columns,), role="local")
    case.output("o", (rows, columns))
    largest, total = scalar.acc("largest", float32), scalar.acc("total", float32)

    def masked(axis: Axis) -> Expr:
        seen = op("ge", scalar.index_value(I(r)), scalar.index_value(I(axis)), dtype=bool_)
        return op("where", seen, case.load("x", (r, axis)), scalar.const(-np.inf, float32))

    def kept(axis: Axis) -> Expr:
        return scalar.load("e", (I(columns - 1) - I(axis) if reverse else I(axis),), float32)

    return Loop(
        "causal",
        (r,),
        (
            Stage(reduce_axes=(c,), reduces=(Reduce("largest", "max", masked(c), float32),)),
            Stage(axes=(c,), stores=(Store("e", (I(c),), op("exp", op("sub", masked(c), largest))),)),
            Stage(reduce_axes=(d,), reduces=(Reduce("total", "sum", kept(d), float32),)),
            Stage(axes=(d,), stores=(Store("o", (I(r), I(d)), op("div", kept(d), total)),)),
        ),
    )


def pairs_of(case: Case, loop: Loop) -> Pairs | None:
    canonical = join_stages(canonical_loop(loop, case.buffers))
    return plan_pairs(canonical, plan_nest(canonical, case.buffers, 8, False, True), case.buffers)


@pytest.mark.parametrize("rows", [4, 5, 16, 37])
@pytest.mark.parametrize("columns", [10, 33, 64])
def test_short_rows_in_pairs(rows: int, columns: int) -> None:
    case = Case()
    loop = causal_softmax(case, rows, columns)
    pairs = pairs_of(case, loop)
    assert pairs is not None and "e" not in pairs.loop.reads() + pairs.loop.writes()
    case.check(loop, bits=BITS, threads=THREADS)


def test_rows_that_go_through_memory_are_not_paired() -> None:
    case = Case()
    loop = causal_softmax(case, 16, 64, reverse=True)
    assert pairs_of(case, loop) is None
    case.check(loop, bits=BITS, threads=THREADS)
