"""The LLVM IR text builder and its vector operations: every piece is compiled, run and compared with numpy."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest

from fusegraph.codegen.cpu.irtext import FAST_MATH, FunctionBuilder, Module, float_const, int_const
from fusegraph.codegen.cpu.irvector import VectorOps
from fusegraph.runtime import llvm

DTYPES = {"float": np.float32, "double": np.float64, "i32": np.int32, "i64": np.int64, "i8": np.int8}
SHAPES = [(1, "float"), (4, "float"), (8, "float"), (16, "float"), (2, "double"), (4, "double"), (8, "i32"), (4, "i64")]
SHAPES += [(16, "i8")]


def run(module: Module, name: str, *args: np.ndarray | int) -> None:
    """Compile the module and call one of its functions with array pointers and i64 values."""
    code = llvm.load(llvm.compile_ir(module.text()), [name])
    types = [ctypes.c_int64 if isinstance(arg, int) else ctypes.c_void_p for arg in args]
    values = [arg if isinstance(arg, int) else arg.ctypes.data for arg in args]
    ctypes.CFUNCTYPE(None, *types)(code.address(name))(*values)


def exported(params: list[str]) -> tuple[Module, FunctionBuilder]:
    module = Module(256)
    return module, module.function("f", params, linkage="")


def compute_i64(expression, *args: int) -> int:
    """Run ``expression(fn, names)``, which gives an i64 value, on i64 arguments."""
    names = [f"%a{k}" for k in range(len(args))]
    module, fn = exported(["ptr %out", *(f"i64 {name}" for name in names)])
    fn.store("i64", expression(fn, *names), "%out")
    out = np.zeros(1, np.int64)
    run(module, "f", out, *args)
    return int(out[0])


# control flow


@pytest.mark.parametrize("bounds", [(0, 0), (0, 1), (3, 17), (5, 2), (-4, 4)])
@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("dynamic", [False, True])
def test_loop_sums_like_range(bounds: tuple[int, int], step: int, dynamic: bool) -> None:
    def sums(fn: FunctionBuilder, lo: str, hi: str) -> str:
        lo, hi = (lo, hi) if dynamic else bounds
        with fn.loop(lo, hi, step, carried=[("i64", 100), ("i64", 0)]) as loop:
            loop.next(fn.affine([(1, loop.phis[0]), (1, loop.index)]), fn.affine([(1, loop.phis[1])], 1))
        return fn.affine([(1, loop.results[0]), (1000, loop.results[1])])

    expected = range(*bounds, step)
    assert compute_i64(sums, *bounds) == 100 + sum(expected) + 1000 * len(expected)


def test_nested_loops_with_a_branch_inside() -> None:
    def count(fn: FunctionBuilder, n: str) -> str:
        with fn.loop(0, n, carried=[("i64", 0)]) as outer:
            with fn.loop(0, outer.index, carried=[("i64", outer.phis[0])]) as inner:
                odd = fn.compare("eq", "i64", fn.binary("and", "i64", inner.index, 1), 1)
                with fn.if_(odd, [("i64", inner.phis[0])]) as branch:
                    branch.give(fn.affine([(1, inner.phis[0])], 1))
                inner.next(branch.results[0])
            outer.next(inner.results[0])
        return outer.results[0]

    assert compute_i64(count, 9) == sum(j % 2 for i in range(9) for j in range(i))


@pytest.mark.parametrize("argument", [3, 4])
def test_if_else_merges_both_arms(argument: int) -> None:
    def pick(fn: FunctionBuilder, a: str) -> str:
        with fn.if_else(fn.compare("sgt", "i64", a, 3), ["i64", "i64"]) as branch:
            with branch.then():
                branch.give("7", fn.affine([(2, a)]))
            with branch.otherwise():
                branch.give(a, "1")
        return fn.affine([(100, branch.results[0]), (1, branch.results[1])])

    assert compute_i64(pick, argument) == (708 if argument > 3 else 301)


def test_constant_bounds_need_no_guard() -> None:
    fn = FunctionBuilder("f", [])
    with fn.loop(0, 4):
        pass
    assert "icmp slt i64 0" not in fn.text()


def test_missing_values_are_refused() -> None:
    fn = FunctionBuilder("f", [])
    with pytest.raises(ValueError, match="never called next"), fn.loop(0, 4, carried=[("i64", 0)]):
        pass
    with pytest.raises(ValueError, match="never called give"), fn.if_("true", [("i64", 0)]):
        pass
    with pytest.raises(ValueError, match="exactly one then"), fn.if_else("true"):
        pass
    with pytest.raises(ValueError, match="step must be positive"), fn.loop(0, 4, 0):
        pass


# scalars, constants, module


def test_affine_folds_integers() -> None:
    fn = FunctionBuilder("f", [])
    assert fn.affine([(3, "4"), (2, 5)], 1) == "23"
    assert fn.affine([(1, "%i"), (0, "%j")]) == "%i"
    assert compute_i64(lambda fn, a, b: fn.affine([(3, a), (-1, b), (2, 4)], -5), 10, 7) == 26


def test_min_and_max() -> None:
    assert compute_i64(lambda fn, a, b: fn.affine([(100, fn.min_i64(a, b)), (1, fn.max_i64(a, b))]), -2, 9) == -191
    fn = FunctionBuilder("f", [])
    assert (fn.min_i64(3, 4), fn.max_i64(3, 4)) == ("3", "4")


@pytest.mark.parametrize("element", ["float", "double"])
def test_float_constants_are_exact(element: str) -> None:
    values = [0.0, -0.0, 1.0, 0.1, math.pi, 1e-45, 3.4028235e38, 1e300, math.inf, -math.inf, math.nan]
    module, fn = exported(["ptr %out"])
    for position, value in enumerate(values):
        fn.store(element, float_const(value, element), fn.gep("%out", position, element))
    out = np.empty(len(values), DTYPES[element])
    run(module, "f", out)
    with np.errstate(over="ignore"):
        want = np.array(values).astype(DTYPES[element])
    np.testing.assert_array_equal(out, want)
    assert (np.signbit(out[:2]) == [False, True]).all()


def test_constants_of_other_types() -> None:
    assert (int_const(True, "i1"), int_const(-3, "i32")) == ("true", "-3")
    with pytest.raises(ValueError, match="float or double"):
        float_const(1.0, "i32")


def test_module_text_is_deterministic_and_declares_once() -> None:
    def build() -> str:
        module = Module(256)
        module.add_global("table", "internal constant [2 x float] zeroinitializer")
        for name in ("g", "f"):
            fn = module.function(name, ["float %x"], returns="float", linkage="")
            fn.comment("shape (2, 3)\nsecond line")
            fn.ret("float", fn.intrinsic("float", "sqrt.f32", [("float", fn.call("float", "expf", [("float", "%x")],
                                                                                 external=True))]))  # fmt: skip
        return module.text()

    text = build()
    assert text == build()
    assert text.count("declare float @expf(float)") == 1 and text.index("@g(") < text.index("@f(")
    assert "  ; shape (2, 3)\n  ; second line" in text and '"prefer-vector-width"="256"' in text
    llvm.compile_ir(text)


def test_module_refuses_conflicts() -> None:
    module = Module()
    module.function("f", [])
    with pytest.raises(ValueError, match="already in the module"):
        module.function("f", [])
    module.add_global("g", "global i32 0")
    with pytest.raises(ValueError, match="defined twice"):
        module.add_global("g", "global i32 1")
    module.declare("h", "declare void @h()")
    with pytest.raises(ValueError, match="declared twice"):
        module.declare("h", "declare i32 @h()")


def test_metadata_on_the_back_edge() -> None:
    module, fn = exported(["ptr %out"])
    hint = module.add_metadata('!{!"llvm.loop.unroll.disable"}')
    node = module.add_metadata(f"distinct !{{{{self}}, {hint}}}")
    with fn.loop(0, 4, metadata=f"!llvm.loop {node}") as loop:
        fn.store("i64", loop.index, fn.gep("%out", loop.index, "i64"))
    out = np.zeros(4, np.int64)
    run(module, "f", out)
    assert (out == range(4)).all()


# vectors


@pytest.mark.parametrize("lanes, element", SHAPES)
def test_transpose(lanes: int, element: str) -> None:
    module, fn = exported(["ptr %x", "ptr %y"])
    v = VectorOps(fn, lanes, element)
    columns = v.transpose([v.load(fn.gep("%x", row * lanes, element)) for row in range(lanes)])
    for position, column in enumerate(columns):
        v.store(column, fn.gep("%y", position * lanes, element))
    x = np.arange(lanes * lanes).reshape(lanes, lanes).astype(DTYPES[element])
    y = np.zeros_like(x)
    run(module, "f", x, y)
    np.testing.assert_array_equal(y, x.T)


@pytest.mark.parametrize("lanes, element", SHAPES)
def test_reduce(lanes: int, element: str) -> None:
    module, fn = exported(["ptr %x", "ptr %y"])
    v = VectorOps(fn, lanes, element, FAST_MATH)
    for position, kind in enumerate(["add", "mul", "max", "min"]):
        fn.store(element, v.reduce(kind, v.load("%x")), fn.gep("%y", position, element))
    dtype = DTYPES[element]
    x = np.random.default_rng(lanes).integers(1, 3, lanes).astype(dtype)
    y = np.zeros(4, dtype)
    run(module, "f", x, y)
    with np.errstate(over="ignore"):
        assert y.tolist() == [x.sum(dtype=dtype), x.prod(dtype=dtype), x.max(), x.min()]


@pytest.mark.parametrize("lanes", [1, 4, 8, 16])
def test_maximum_and_minimum_propagate_nan(lanes: int) -> None:
    module, fn = exported(["ptr %x", "ptr %y", "ptr %out"])
    v = VectorOps(fn, lanes, "float")
    a, b = v.load("%x"), v.load("%y")
    results = [v.maximum(a, b), v.minimum(a, b), v.maximum_constant(a, 0.0), v.minimum_constant(a, 0.0)]
    results += [v.broadcast(v.reduce("max", a)), v.broadcast(v.reduce("min", b))]
    for row, result in enumerate(results):
        v.store(result, fn.gep("%out", row * lanes, "float"))
    code = llvm.load(llvm.compile_ir(module.text()), ["f"])
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(code.address("f"))
    rng = np.random.default_rng(0)
    for _ in range(200):
        x, y = (rng.choice(np.float32([np.nan, 1, -2, 3, np.inf, -np.inf]), lanes) for _ in range(2))
        out = np.empty((6, lanes), np.float32)
        call(x.ctypes.data, y.ctypes.data, out.ctypes.data)
        want = [np.maximum(x, y), np.minimum(x, y), np.maximum(x, 0), np.minimum(x, 0)]
        want += [np.full(lanes, x.max()), np.full(lanes, y.min())]
        np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("lanes, element", SHAPES)
def test_partial_load_and_store_touch_nothing_else(lanes: int, element: str, dynamic: bool) -> None:
    module = Module(256)
    for count in range(lanes + 1):
        fn = module.function(f"f{count}", ["ptr %x", "ptr %y", "ptr %z", "i64 %n"], linkage="")
        v = VectorOps(fn, lanes, element)
        size = "%n" if dynamic else count
        loaded = v.load_first("%x", size, v.constant(3))
        v.store(loaded, "%z")
        v.store_first(loaded, "%y", size)
    code = llvm.load(llvm.compile_ir(module.text()), [f"f{count}" for count in range(lanes + 1)])
    x = np.arange(1, lanes + 1).astype(DTYPES[element])
    for count in range(lanes + 1):
        y, z = np.zeros_like(x), np.zeros_like(x)
        call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, ctypes.c_int64)(code.address(f"f{count}"))
        call(x.ctypes.data, y.ctypes.data, z.ctypes.data, count)
        np.testing.assert_array_equal(y, np.where(np.arange(lanes) < count, x, 0))
        np.testing.assert_array_equal(z, np.where(np.arange(lanes) < count, x, 3))


@pytest.mark.parametrize("index_element", ["i32", "i64"])
@pytest.mark.parametrize("lanes, element", SHAPES)
def test_gather_and_scatter(lanes: int, element: str, index_element: str) -> None:
    module, fn = exported(["ptr %x", "ptr %index", "ptr %out"])
    v = VectorOps(fn, lanes, element)
    index = v.of(index_element).load("%index")
    v.store(v.gather("%x", index, index_element), "%out")
    wide = index if index_element == "i64" else v.of("i32").convert("sext", index, "i64")
    first = (lanes + 1) // 2
    v.store(v.gather_masked("%x", wide, v.first_mask(first), v.constant(9)), fn.gep("%out", lanes, element))
    v.scatter(v.load("%x"), fn.gep("%out", 2 * lanes, element), index, index_element)
    x = np.arange(5, 5 + 2 * lanes).astype(DTYPES[element])
    order = np.random.default_rng(1).permutation(lanes).astype(DTYPES[index_element])
    out = np.zeros((3, lanes), x.dtype)
    run(module, "f", x, order, out)
    np.testing.assert_array_equal(out[0], x[order])
    np.testing.assert_array_equal(out[1], np.where(np.arange(lanes) < first, x[order], 9))
    np.testing.assert_array_equal(out[2][order], x[:lanes])


@pytest.mark.parametrize("lanes", [1, 4, 8])
def test_lanes_iota_and_any(lanes: int) -> None:
    module, fn = exported(["ptr %out", "i64 %n"])
    v = VectorOps(fn, lanes, "i64")
    v.store(v.iota("%n"), "%out")
    v.store(v.insert(v.iota(5), "%n", lanes - 1), fn.gep("%out", lanes, "i64"))
    found = v.any(v.compare("eq", v.iota(), v.broadcast("%n")))
    fn.store("i64", fn.cast("zext", "i1", found, "i64"), fn.gep("%out", 2 * lanes, "i64"))
    for n in (0, lanes - 1, lanes):
        out = np.zeros(2 * lanes + 1, np.int64)
        run(module, "f", out, n)
        assert out[:lanes].tolist() == list(range(n, n + lanes))
        assert out[lanes : 2 * lanes].tolist() == [*range(5, 4 + lanes), n]
        assert out[-1] == (n < lanes)


def test_wrong_lane_counts_are_refused() -> None:
    v = VectorOps(FunctionBuilder("f", []), 4, "float")
    with pytest.raises(ValueError, match="needs 4 values, got 2"):
        v.constants([1.0, 2.0])
    with pytest.raises(ValueError, match="needs 4 rows, got 1"):
        v.transpose(["%x"])
