"""Scatters: points that add to places read at run time; in C order for every element, on any number of threads."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from loop_reference import reference_loop
from loop_tools import CompiledLoop

from fusegraph.codegen.cpu.scatter import emit_scatter
from fusegraph.dtypes import bool_, float32, float64, int32, int64, uint8
from fusegraph.errors import CompilerError
from fusegraph.ir import scalar
from fusegraph.ir.index import Axis, Index, Indirect
from fusegraph.ir.loops import Buffer, Loop, Stage, Store
from fusegraph.ir.scalar import Expr, const, op

BITS = [128, 256, 512]
THREADS = [1, 2, 3, 8]
I = Index.of
shared_scatter = partial(emit_scatter, parallel=True)


def read(index: Expr, extent: int) -> Index:
    return Index(0, ((Indirect(index, extent), 1),))


class Case:
    """Buffers and arrays of a scatter into `target`."""

    def __init__(self, target: tuple[int, ...], dtype: Any = float32) -> None:
        self.rng = np.random.default_rng(3)
        self.buffers: dict[str, Buffer] = {}
        self.arrays: dict[str, Any] = {}
        self.add("target", self.numbers(target, dtype), "state")

    def numbers(self, shape: tuple[int, ...], dtype: Any = float32) -> Any:
        if dtype.kind == "f":
            return self.rng.standard_normal(shape).astype(dtype)
        return self.rng.integers(0, 9, shape).astype(dtype)

    def add(self, name: str, value: Any, role: str = "input") -> None:
        self.buffers[name] = Buffer(name, value.shape, value.dtype, role)
        self.arrays[name] = value

    def load(self, name: str, *index: Any) -> Expr:
        return scalar.load(name, tuple(map(I, index)), self.buffers[name].dtype)

    def check(
        self, loop: Loop, *, bits: Any = BITS, emit: Any = shared_scatter, written: tuple[str, ...] = ("target",)
    ) -> CompiledLoop:
        """Exact: equal to the last bit to additions one after the other. Else a product may be added with one rounding.

        Both: the same bits on any number of threads. Gives the exact one.
        """
        expected = reference_loop(loop, self.buffers, self.arrays)
        for width in bits:
            for exact in (False, True):
                compiled = CompiledLoop(loop, self.buffers, vector_bits=width, emit=emit, exact=exact)
                first = compiled.run(self.arrays, 1)
                for nt in THREADS:
                    found = compiled.run(self.arrays, nt)
                    for name in written:
                        what = f"{name} bits={width} nt={nt} exact={exact}"
                        np.testing.assert_allclose(
                            found[name], expected[name], 0 if exact else 2e-6, 0 if exact else 1e-6, err_msg=what
                        )
                        assert found[name].tobytes() == first[name].tobytes(), what
        return compiled


@pytest.mark.parametrize("width", [1, 5, 8, 50, 64, 300])
@pytest.mark.parametrize("index_dtype", [int64, int32])
def test_rows_of_an_embedding(width, index_dtype):
    """Duplicates add up in order; indices outside are moved inside."""
    case = Case((13, width))
    rows = case.rng.integers(0, 13, 60)
    rows[[2, 7]] = [-4, 99]
    case.add("rows", rows.astype(index_dtype))
    case.add("u", case.numbers((60, width)))
    t, d = Axis("t", 60), Axis("d", width)
    store = Store(
        "target", (read(case.load("rows", t), 13), I(d)), op("mul", case.load("u", t, d), const(3.0, float32)), "add"
    )
    compiled = case.check(Loop("rows", (), (Stage(axes=(t, d), stores=(store,)),), "scatter"))
    assert compiled.kernel.parallel


@pytest.mark.parametrize("dtype", [float64, int32, int64, uint8])
def test_other_element_types(dtype):
    case = Case((7, 21), dtype)
    case.add("rows", case.rng.integers(0, 7, 40))
    case.add("u", case.numbers((40, 21), dtype))
    t, d = Axis("t", 40), Axis("d", 21)
    store = Store("target", (read(case.load("rows", t), 7), I(d)), case.load("u", t, d), "add")
    case.check(Loop("rows", (), (Stage(axes=(t, d), stores=(store,)),), "scatter"))


def test_batches_of_tokens_into_one_table():
    """The gradient of an embedding of [batch, token] ids, from a gradient that is shared by all tokens of a sample."""
    case = Case((20, 50))
    case.add("ids", case.rng.integers(0, 20, (6, 11)))
    case.add("g", case.numbers((6, 50)))
    n, t, d = Axis("n", 6), Axis("t", 11), Axis("d", 50)
    store = Store("target", (read(case.load("ids", n, t), 20), I(d)), case.load("g", n, d), "add")
    case.check(Loop("bag", (), (Stage(axes=(n, t, d), stores=(store,)),), "scatter"))


def test_single_elements():
    """A histogram with weights: no inner axis."""
    case = Case((9,))
    case.add("bins", case.rng.integers(0, 9, 200))
    case.add("u", case.numbers((200,)))
    t = Axis("t", 200)
    store = Store("target", (read(case.load("bins", t), 9),), case.load("u", t), "add")
    case.check(Loop("histogram", (), (Stage(axes=(t,), stores=(store,)),), "scatter"))


def test_along_an_axis():
    """put_along_add: every row scatters into itself, so rows are shared among threads."""
    case = Case((10, 7))
    case.add("index", case.rng.integers(0, 7, (10, 30)))
    case.add("u", case.numbers((10, 30)))
    i, j = Axis("i", 10), Axis("j", 30)
    store = Store("target", (I(i), read(case.load("index", i, j), 7)), case.load("u", i, j), "add")
    compiled = case.check(Loop("along", (), (Stage(axes=(i, j), stores=(store,)),), "scatter"))
    assert "i0 < 10: this thread's part" in compiled.text or "j1 < 10: this thread's part" in compiled.text


def test_along_the_first_axis():
    case = Case((5, 33))
    case.add("index", case.rng.integers(0, 5, (12, 33)))
    case.add("u", case.numbers((12, 33)))
    i, j = Axis("i", 12), Axis("j", 33)
    store = Store("target", (read(case.load("index", i, j), 5), I(j)), case.load("u", i, j), "add")
    case.check(Loop("along0", (), (Stage(axes=(i, j), stores=(store,)),), "scatter"))


def test_in_the_middle_axis():
    case = Case((3, 6, 9))
    case.add("index", case.rng.integers(0, 6, (8,)))
    case.add("u", case.numbers((3, 8, 9)))
    b, t, d = Axis("b", 3), Axis("t", 8), Axis("d", 9)
    store = Store("target", (I(b), read(case.load("index", t), 6), I(d)), case.load("u", b, t, d), "add")
    case.check(Loop("middle", (), (Stage(axes=(b, t, d), stores=(store,)),), "scatter"))


def test_overlapping_windows():
    """fold: windows of 5 that start every 2 elements overlap; no run-time index."""
    case = Case((4, 23))
    case.add("u", case.numbers((4, 10, 5)))
    n, w, k = Axis("n", 4), Axis("w", 10), Axis("k", 5)
    store = Store("target", (I(n), I(w) * 2 + k), case.load("u", n, w, k), "add")
    case.check(Loop("fold", (), (Stage(axes=(n, w, k), stores=(store,)),), "scatter"))


def test_overlapping_windows_of_one_row_run_on_one_thread():
    case = Case((23,))
    case.add("u", case.numbers((10, 5)))
    w, k = Axis("w", 10), Axis("k", 5)
    store = Store("target", (I(w) * 2 + k,), case.load("u", w, k), "add")
    assert not case.check(Loop("fold", (), (Stage(axes=(w, k), stores=(store,)),), "scatter")).kernel.parallel


def test_two_tables_at_once():
    case = Case((13, 16))
    case.add("other", case.numbers((13, 16)), "state")
    case.add("rows", case.rng.integers(0, 13, 50))
    case.add("u", case.numbers((50, 16)))
    t, d = Axis("t", 50), Axis("d", 16)
    place = (read(case.load("rows", t), 13), I(d))
    u = case.load("u", t, d)
    stores = (Store("target", place, u, "add"), Store("other", place, op("mul", u, u), "add"))
    case.check(Loop("two", (), (Stage(axes=(t, d), stores=stores),), "scatter"), written=("target", "other"))


def test_a_stage_that_initialises_first():
    """Several stages are one after the other only on one thread."""
    case = Case((6, 12))
    case.add("base", case.numbers((6, 12)))
    case.add("rows", case.rng.integers(0, 6, 30))
    case.add("u", case.numbers((30, 12)))
    r, c, t, d = Axis("r", 6), Axis("c", 12), Axis("t", 30), Axis("d", 12)
    copy = Stage(axes=(r, c), stores=(Store("target", (I(r), I(c)), case.load("base", r, c)),))
    add = Stage(
        axes=(t, d), stores=(Store("target", (read(case.load("rows", t), 6), I(d)), case.load("u", t, d), "add"),)
    )
    assert not case.check(Loop("both", (), (copy, add), "scatter")).kernel.parallel


@pytest.mark.parametrize("shape", [(0, 5), (4, 0)])
def test_nothing_to_add(shape):
    case = Case((3, max(shape[1], 1)))
    case.add("rows", np.zeros(shape[0], np.int64))
    case.add("u", case.numbers(shape))
    t, d = Axis("t", shape[0]), Axis("d", shape[1])
    store = Store("target", (read(case.load("rows", t), 3), I(d)), case.load("u", t, d), "add")
    case.check(Loop("nothing", (), (Stage(axes=(t, d), stores=(store,)),), "scatter"))


def test_random_points_with_masks_and_products():
    """Only selected points contribute: a masked load gives 0 elsewhere."""
    case = Case((8, 40))
    case.add("rows", case.rng.integers(0, 8, 25))
    case.add("u", case.numbers((25, 30)))
    t, d = Axis("t", 25), Axis("d", 40)
    value = scalar.load("u", (I(t), I(d) - 5), float32, (scalar.Bound(I(d) - 5, 0, 30),))
    store = Store("target", (read(case.load("rows", t), 8), I(d)), value, "add")
    case.check(Loop("masked", (), (Stage(axes=(t, d), stores=(store,)),), "scatter"))


@pytest.mark.parametrize("mask", ["float", "bool", "not"])
@pytest.mark.parametrize("positions", [3, 8, 21])
@pytest.mark.parametrize("dtype", [float32, float64])
def test_zero_factors_are_skipped(mask: str, positions: int, dtype: Any) -> None:
    """A row is added only where the factor that its points share is not zero: also for ties, and where none or all are."""
    case = Case((5, 7, 18), dtype)
    factor = case.numbers((5, 4, positions), dtype)
    factor[case.rng.random(factor.shape) < 0.8] = 0
    factor[0], factor[1, 1] = 0, -0.0
    factor[2, 2] = 1.5
    case.add("factor", factor)
    case.add("rows", case.numbers((4, 18), dtype))
    case.add("place", case.rng.integers(0, 7, (positions,)), "input")
    n, o, t, i = (Axis(name, extent) for name, extent in zip("noti", (5, 4, positions, 18), strict=True))
    shared, row = case.load("factor", n, o, t), case.load("rows", o, i)
    zero = const(0.0, dtype)
    positive = op("gt", shared, zero, dtype=bool_)
    value = {
        "float": lambda: op("mul", row, shared),
        "bool": lambda: op("mul", op("where", positive, row, zero), row),
        "not": lambda: op("neg", op("where", positive, zero, row)),
    }[mask]()
    target = (I(n), read(case.load("place", t), 7), I(i))
    loop = Loop("s", (), (Stage(axes=(n, o, t, i), stores=(Store("target", target, value, "add"),)),), "scatter")
    case.check(loop)


def test_what_a_zero_would_multiply_is_not_looked_at() -> None:
    """0 * inf is left out, as the pass that makes such scatters says; with exact=True it is NaN, as in numpy."""
    case = Case((2, 3))
    case.add("factor", np.array([[0, 0, 2], [0, 0, 0]], np.float32))
    case.add("rows", np.array([[np.inf, 1, 1]] * 3, np.float32))
    n, t, i = Axis("n", 2), Axis("t", 3), Axis("i", 3)
    value = op("mul", case.load("factor", n, t), case.load("rows", t, i))
    loop = Loop("s", (), (Stage(axes=(n, t, i), stores=(Store("target", (I(n), I(i)), value, "add"),)),), "scatter")
    before = case.arrays["target"].copy()
    for exact in (False, True):
        result = CompiledLoop(loop, case.buffers, exact=exact, emit=emit_scatter).run(case.arrays)["target"]
        assert np.isinf(result[0, 0]) != exact
        assert np.isnan(result[0, 0]) == exact
        assert np.isnan(result[1, 0]) == exact
        np.testing.assert_array_equal(result[1, 1:], before[1, 1:])


def test_a_space_is_refused():
    case = Case((4,))
    t = Axis("t", 4)
    loop = Loop("wrong", (t,), (Stage(stores=(Store("target", (I(t),), const(1.0, float32), "add"),)),), "scatter")
    with pytest.raises(CompilerError, match="has a space"):
        CompiledLoop(loop, case.buffers)


def test_small_scatters_run_on_one_thread():
    for count, expected in ((8, False), (4000, True)):
        case = Case((13, 16))
        case.add("rows", case.rng.integers(0, 13, count))
        case.add("u", case.numbers((count, 16)))
        t, d = Axis("t", count), Axis("d", 16)
        store = Store("target", (read(case.load("rows", t), 13), I(d)), case.load("u", t, d), "add")
        compiled = CompiledLoop(Loop("rows", (), (Stage(axes=(t, d), stores=(store,)),), "scatter"), case.buffers)
        assert compiled.kernel.parallel is expected
