"""Loops as explicit-vector code, against the numpy interpreter: every operation and dtype, every kind of access and reduction."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
import pytest
from loop_reference import reference_loop
from loop_tools import CompiledLoop, one_loop_program, run_loop

from fusegraph.codegen.cpu.irtext import Module
from fusegraph.codegen.cpu.nest import emit_nest
from fusegraph.dtypes import SUPPORTED, bool_, float32, float64, int32, int64, uint8, uint32
from fusegraph.errors import DTypeError
from fusegraph.ir import scalar
from fusegraph.ir.index import Axis, Index, Indirect, unflatten_index
from fusegraph.ir.loops import Buffer, Loop, Reduce, Stage, Store
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.ir.scalar import Bound, Divides, Expr, const, op
from fusegraph.runtime import llvm

BITS = [128, 256, 512]
THREADS = [1, 2, 3, 8]
I = Index.of
parallel_nest = partial(emit_nest, parallel=True)
RELATIVE = {"exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "sin", "cos", "pow", "rsqrt"}


def axes_of(*extents: int, names: str = "abcdefgh") -> tuple[Axis, ...]:
    return tuple(Axis(name, extent) for name, extent in zip(names, extents, strict=False))


def indices(axes: tuple[Axis, ...]) -> tuple[Index, ...]:
    return tuple(map(I, axes))


class Case:
    """A loop under construction: its buffers and the arrays that they hold."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.buffers: dict[str, Buffer] = {}
        self.arrays: dict[str, Any] = {}

    def input(self, name: str, shape: tuple[int, ...], dtype: Any = float32, value: Any = None, role: str = "input") -> str:
        self.buffers[name] = Buffer(name, shape, dtype, role)
        self.arrays[name] = values(self.rng, shape, dtype) if value is None else np.asarray(value, dtype)
        return name

    def output(self, name: str, shape: tuple[int, ...], dtype: Any = float32, role: str = "output") -> str:
        self.buffers[name] = Buffer(name, shape, dtype, role)
        return name

    def load(self, name: str, index: Any, mask: Any = ()) -> Expr:
        return scalar.load(name, tuple(map(I, index)), self.buffers[name].dtype, mask)

    def check(self, loop: Loop, *, rtol: float = 2e-6, atol: float = 2e-6, bits: Any = None, exact: bool = False,
              emit: Any = parallel_nest, threads: Any = (1, 3)) -> CompiledLoop:  # fmt: skip
        """Run on each vector width and number of threads; compare with the interpreter."""
        expected = reference_loop(loop, self.buffers, self.arrays)
        for width in bits or [llvm.target().vector_bits]:
            compiled = CompiledLoop(loop, self.buffers, vector_bits=width, exact=exact, emit=emit)
            first = None
            for nt in threads:
                found = compiled.run(self.arrays, nt)
                for name in loop.writes():
                    if self.buffers[name].role != "local":
                        compare(found[name], expected[name], f"{loop.name} {name} bits={width} nt={nt}", rtol, atol)
                        assert first is None or found[name].tobytes() == first[name].tobytes(), f"depends on nt={nt}: {name}"
                first = first or found
        return compiled


def compare(found: Any, expected: Any, what: str, rtol: float, atol: float) -> None:
    if found.dtype.kind == "f" and (rtol or atol):
        np.testing.assert_allclose(found, expected, rtol, atol, equal_nan=True, err_msg=what)
    else:
        np.testing.assert_array_equal(found, expected, err_msg=what)


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Any:
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    low = 0 if dtype.kind == "u" else -40
    return rng.integers(low, 90, shape).astype(dtype)


SPECIAL_FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, np.nan, np.inf, -np.inf, 1e-40, 3e38, -3e38, 7.25, 1e-3]


def special_values(dtype: Any, count: int, seed: int) -> Any:
    """Random values with the special ones of the dtype mixed in, in random order."""
    rng = np.random.default_rng(seed)
    found = values(rng, (count,), dtype)
    if dtype.kind == "f":
        special = np.array(SPECIAL_FLOATS).astype(dtype)
    elif dtype.kind == "b":
        special = np.array([True, False])
    else:
        info = np.iinfo(dtype)
        special = np.array([info.min, info.max, 0, 1, info.max - 1, info.min + 1, 3, 70], dtype)
    places = rng.choice(count, 3 * len(special), replace=True)
    found[places] = np.tile(special, 3)
    return found


def primitives_for(dtype: Any, kind: str) -> list[str]:
    """The maps or zips of the table that take `dtype` and keep operands of one type."""
    names = []
    for name, primitive in PRIMITIVES.items():
        if primitive.kind != kind or name in ("cast", "where"):
            continue
        probe = np.ones(2, dtype)
        try:
            primitive.infer([probe] * (1 if kind == "map" else 2), {})
        except DTypeError:
            continue
        names.append(name)
    return names


# -- every operation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["map", "zip"])
@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_every_operation_of_a_dtype(name, kind, bits):
    dtype, case, count = SUPPORTED[name], Case(), 333
    names = primitives_for(dtype, kind)
    if not names:
        pytest.skip(f"no {kind} takes {name}")
    (i,) = axes_of(count)
    case.input("x", (count,), dtype, special_values(dtype, count, 1))
    case.input("y", (count,), dtype, special_values(dtype, count, 2))
    args = [case.load("x", (i,)), case.load("y", (i,))][: 1 if kind == "map" else 2]
    stores = []
    for operation in names:
        out, _ = PRIMITIVES[operation].infer([np.ones(2, dtype)] * len(args), {})[1], None
        case.output(operation, (count,), out)
        stores.append(Store(operation, (I(i),), op(operation, *args, dtype=out)))
    loop = Loop("ops", (i,), (Stage(stores=tuple(stores)),))
    expected = reference_loop(loop, case.buffers, case.arrays)
    found = run_loop(loop, case.buffers, case.arrays, vector_bits=bits)
    for operation in names:
        loose = operation in RELATIVE and dtype.kind == "f"
        compare(found[operation], expected[operation], f"{operation} {name}", 1e-6 if loose else 0, 0)


@pytest.mark.parametrize("bits", BITS)
def test_every_cast(bits):
    case, count = Case(), 77
    (i,) = axes_of(count)
    stores = []
    for source in SUPPORTED.values():
        # values that the target holds: numpy leaves others (NaN, 300 as uint8 from a float, ...) to the compiler
        case.input(source.name, (count,), source, np.abs(values(case.rng, (count,), source)))
        for target in SUPPORTED.values():
            name = case.output(f"{source.name}_{target.name}", (count,), target)
            stores.append(Store(name, (I(i),), op("cast", case.load(source.name, (i,)), dtype=target)))
    case.check(Loop("casts", (i,), (Stage(stores=tuple(stores)),)), rtol=1e-7, atol=0, bits=[bits])


def test_casts_wrap_and_truncate_as_numpy():
    case = Case()
    (i,) = axes_of(9)
    case.input("f", (9,), float32, [-1.9, 1.9, -0.5, 250.7, np.nan, np.inf, 1e9, 0.0, -0.0])
    case.input("n", (9,), int64, [-1, 1 << 40, -(1 << 33) + 5, 255, 256, 0, 2**31, -(2**31), 7])
    stores = [Store(case.output("fb", (9,), bool_), (I(i),), op("cast", case.load("f", (i,)), dtype=bool_))]
    for target in (int32, uint32, uint8, bool_, float32, float64):
        stores.append(Store(case.output(target.name, (9,), target), (I(i),), op("cast", case.load("n", (i,)), dtype=target)))
    case.check(Loop("wrap", (i,), (Stage(stores=tuple(stores)),)), rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_where(name):
    case, dtype = Case(), SUPPORTED[name]
    (i,) = axes_of(45)
    case.input("c", (45,), bool_)
    case.input("x", (45,), dtype)
    case.input("y", (45,), dtype)
    value = op("where", case.load("c", (i,)), case.load("x", (i,)), case.load("y", (i,)))
    case.check(Loop("pick", (i,), (Stage(stores=(Store(case.output("o", (45,), dtype), (I(i),), value),)),)), rtol=0, bits=BITS)


def test_constants_of_every_dtype():
    case = Case()
    (i,) = axes_of(11)
    stores = []
    for dtype, value in ((float32, np.nan), (float64, -np.inf), (float32, -0.0), (int32, -5), (uint32, 2**32 - 1), (uint8, 255),
                         (int64, -(2**63)), (bool_, True), (float32, 0.1)):  # fmt: skip
        name = case.output(f"o{len(stores)}", (11,), dtype)
        stores.append(Store(name, (I(i),), const(value, dtype)))
    case.check(Loop("constants", (i,), (Stage(stores=tuple(stores)),)), rtol=0, atol=0)


def test_exact_calls_the_c_library():
    case = Case()
    (i,) = axes_of(50)
    case.input("x", (50,))
    value = op("tanh", op("exp", case.load("x", (i,))))
    loop = Loop("library", (i,), (Stage(stores=(Store(case.output("o", (50,)), (I(i),), value),)),))
    assert "@tanhf" in case.check(loop, exact=True, rtol=3e-7, atol=0).text
    assert "@tanhf" not in case.check(loop).text


# -- maps: sizes, axes, views ---------------------------------------------------------------------------------------------


def multiply_add(case: Case, axes: tuple[Axis, ...]) -> Expr:
    shape = tuple(axis.extent for axis in axes)
    case.input("x", shape)
    case.input("y", shape)
    return op("add", op("mul", case.load("x", axes), case.load("y", axes)), const(1.5, float32))


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (9,), (31,), (64,), (1000,), (3, 5), (64, 256), (1, 17), (5, 1), (2, 3, 9), (4, 1, 33), ()])
def test_map_of_any_shape(shape):
    case, axes = Case(), axes_of(*shape)
    value = multiply_add(case, axes)
    loop = Loop("map", axes, (Stage(stores=(Store(case.output("o", shape), indices(axes), value),)),))
    case.check(loop, bits=BITS, threads=THREADS)


def test_elementwise_axes_become_one_flat_axis():
    case, axes = Case(), axes_of(64, 256)
    value = multiply_add(case, axes)
    text = case.check(Loop("flat", axes, (Stage(stores=(Store(case.output("o", (64, 256)), indices(axes), value),)),))).text
    assert "for i0 < 16384 by 32" in text


@pytest.mark.parametrize("shape", [(3, 5), (64, 50), (7, 128), (33, 9)])
def test_broadcasts_along_rows_and_columns(shape):
    case, (i, j) = Case(), axes_of(*shape)
    case.input("x", shape)
    case.input("row", (shape[0],))
    case.input("column", (shape[1],))
    case.input("one", ())
    value = op("add", op("mul", case.load("x", (i, j)), case.load("row", (i,))), case.load("column", (j,)))
    value = op("sub", value, case.load("one", ()))
    loop = Loop("broadcast", (i, j), (Stage(stores=(Store(case.output("o", shape), (I(i), I(j)), value),)),))
    case.check(loop, bits=BITS, threads=THREADS)


@pytest.mark.parametrize("axis_in_stage", [False, True])
@pytest.mark.parametrize("view", ["transpose", "flip", "stride", "flip_both", "shift", "diagonal"])
def test_views(view, axis_in_stage):
    case, (i, j) = Case(), axes_of(13, 21)
    shape, index = {
        "transpose": ((21, 13), (I(j), I(i))),
        "flip": ((13, 21), (I(i), I(20) - j)),
        "stride": ((13, 63), (I(i), I(j) * 3 + 1)),
        "flip_both": ((13, 21), (I(12) - i, I(20) - j)),
        "shift": ((15, 24), (I(i) + 2, I(j) + 3)),
        "diagonal": ((40, 1), (I(i) + j, I(0))),
    }[view]
    case.input("x", shape)
    value = op("neg", case.load("x", index))
    stage = Stage(axes=(j,) if axis_in_stage else (), stores=(Store(case.output("o", (13, 21)), (I(i), I(j)), value),))
    case.check(Loop("view", (i,) if axis_in_stage else (i, j), (stage,)), rtol=0, bits=BITS)


@pytest.mark.parametrize("shapes", [((6, 10), (5, 12)), ((4, 9, 5), (12, 15)), ((7, 16), (14, 8)), ((24,), (2, 3, 4))])
def test_reshapes_by_division_and_remainder(shapes):
    """Reading a transposed array in another shape: indices with // and %."""
    before, after = shapes
    case, axes = Case(), axes_of(*after)
    flat = I(0)
    for axis in axes:
        flat = flat * axis.extent + axis
    turned = unflatten_index(flat, before[::-1])[::-1]
    case.input("x", before)
    loop = Loop("reshape", axes, (Stage(stores=(Store(case.output("o", after), indices(axes), case.load("x", turned)),)),))
    case.check(loop, rtol=0, bits=BITS)


def test_storing_into_views():
    case, (i, j) = Case(), axes_of(9, 19)
    case.input("x", (9, 19))
    x = case.load("x", (i, j))
    case.output("turned", (19, 9))
    case.output("flipped", (9, 19))
    case.input("wide", (9, 57), role="state")
    stores = (Store("turned", (I(j), I(i)), x), Store("flipped", (I(i), I(18) - j), x), Store("wide", (I(i), I(j) * 3 + 2), x))
    case.check(Loop("into_views", (i, j), (Stage(stores=stores),)), rtol=0, bits=BITS)


@pytest.mark.parametrize("dtype", [float32, float64, int32, int64, uint8, bool_])
def test_padding_never_touches_memory_outside(dtype):
    case, (i, j) = Case(), axes_of(11, 14)
    case.input("x", (8, 9), dtype)
    row, column = I(i) - 2, I(j) - 3
    padded = case.load("x", (row, column), (Bound(row, 0, 8), Bound(column, 0, 9)))
    wide = case.load("x", (row, I(j) % 9), (Bound(row, 0, 8),))
    stores = (Store(case.output("o", (11, 14), dtype), indices((i, j)), padded),
              Store(case.output("w", (11, 14), dtype), indices((i, j)), wide),
              Store(case.output("m", (11, 14), bool_), indices((i, j)), scalar.inside((Bound(row, 0, 8), Bound(column, 0, 9)))))  # fmt: skip
    case.check(Loop("pad", (i, j), (Stage(stores=stores),)), rtol=0, bits=BITS)


def test_masks_with_strides_divisions_and_flips():
    case, (i, j) = Case(), axes_of(5, 23)
    case.input("x", (5, 12))
    half = I(j) // 2
    dilated = case.load("x", (i, half), (Divides(I(j), 2), Bound(half, 1, 10)))
    flipped = case.load("x", (i, I(11) - j), (Bound(I(j), 0, 12),))
    strided = case.load("x", (i, I(j) * 2 - 6), (Bound(I(j) * 2 - 6, 0, 12),))
    single = case.load("x", (i, 0), (Bound(I(j), 4, 7),))
    stores = tuple(
        Store(case.output(name, (5, 23)), indices((i, j)), value)
        for name, value in (("a", dilated), ("b", flipped), ("c", strided), ("d", single))
    )
    case.check(Loop("masks", (i, j), (Stage(stores=stores),)), rtol=0, bits=BITS)


def test_a_mask_that_never_holds_reads_nothing():
    case, (i,) = Case(), axes_of(9)
    case.input("x", (0,))
    value = case.load("x", (I(i) - 100,), (Bound(I(i) - 100, 0, 0),))
    case.check(Loop("nothing", (i,), (Stage(stores=(Store(case.output("o", (9,)), (I(i),), value),)),)), bits=BITS)


def test_index_values_and_iota():
    case, (i, j) = Case(), axes_of(7, 30)
    flat = scalar.index_value(I(i) * 30 + j)
    stores = [Store(case.output("n", (7, 30), int64), indices((i, j)), flat)]
    for dtype in (float32, float64, int32, uint8, bool_):
        stores.append(Store(case.output(dtype.name, (7, 30), dtype), indices((i, j)), op("cast", flat, dtype=dtype)))
    big = scalar.index_value(I(j) * (1 << 40) + i)
    stores.append(Store(case.output("big", (7, 30), int64), indices((i, j)), big))
    case.check(Loop("iota", (i, j), (Stage(stores=tuple(stores)),)), rtol=0, bits=BITS)


@pytest.mark.parametrize("dtype", [int64, int32, uint8, uint32])
@pytest.mark.parametrize("width", [1, 8, 50])
def test_gather_clamps_and_copies_rows(dtype, width):
    case, (t, d) = Case(), axes_of(37, width)
    rows = np.arange(37) % 20
    rows[[3, 17]] = 200 if dtype.kind == "u" else [-5, 120]
    case.input("index", (37,), dtype, rows)
    case.input("table", (20, width))
    place = I(0) + Index(0, ((Indirect(case.load("index", (t,)), 20), 1),))
    loop = Loop("gather", (t, d), (Stage(stores=(Store(case.output("o", (37, width)), (I(t), I(d)), case.load("table", (place, d))),)),))
    case.check(loop, rtol=0, bits=BITS)


def test_gather_along_the_vector_axis():
    case, (i, j) = Case(), axes_of(6, 29)
    case.input("index", (6, 29), int32, case.rng.integers(-2, 15, (6, 29)))
    case.input("x", (6, 12))
    place = Index(0, ((Indirect(case.load("index", (i, j)), 12), 1),))
    loop = Loop("along", (i, j), (Stage(stores=(Store(case.output("o", (6, 29)), indices((i, j)), case.load("x", (i, place))),)),))
    case.check(loop, rtol=0, bits=BITS)


def test_random_bits_are_those_of_the_reference():
    case, (i, j) = Case(), axes_of(5, 37)
    case.input("key", (), uint32, 0xDEADBEEF)
    case.input("counter", (), uint32, 7)
    bits = scalar.philox(case.load("key", ()), case.load("counter", ()), I(i) * 37 + j)
    uniform = op("mul", op("cast", op("shift_right", bits, const(8, uint32)), dtype=float32), const(2.0**-24, float32))
    stores = (Store(case.output("o", (5, 37), uint32), indices((i, j)), bits), Store(case.output("u", (5, 37)), indices((i, j)), uniform))
    case.check(Loop("random", (i, j), (Stage(stores=stores),)), rtol=0, bits=BITS)


# -- reductions -----------------------------------------------------------------------------------------------------------


def softmax(case: Case, rows: int, columns: int) -> Loop:
    r, c = axes_of(rows, columns, names="rc")
    case.input("x", (rows, columns))
    x, largest, total = case.load("x", (r, c)), scalar.acc("largest", float32), scalar.acc("total", float32)
    e = op("exp", op("sub", x, largest))
    case.output("o", (rows, columns))
    return Loop("softmax", (r,), (
        Stage(reduce_axes=(c,), reduces=(Reduce("largest", "max", x, float32),)),
        Stage(reduce_axes=(c,), reduces=(Reduce("total", "sum", e, float32),)),
        Stage(axes=(c,), stores=(Store("o", (I(r), I(c)), op("div", e, total)),))))  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (64, 10), (17, 50), (3, 64), (2, 65), (9, 1024), (4, 1003), (2, 333)])
def test_softmax_of_rows(shape):
    case = Case()
    case.check(softmax(case, *shape), bits=BITS, threads=THREADS)


def test_softmax_of_special_rows():
    case = Case()
    loop = softmax(case, 4, 37)
    case.arrays["x"][0, 3] = np.nan
    case.arrays["x"][1, 5] = np.inf
    case.arrays["x"][2, :] = -np.inf
    case.arrays["x"][3, 20:] = -np.inf
    case.check(loop, bits=BITS)


@pytest.mark.parametrize("shape", [(5, 7), (33, 64), (8, 512), (3, 1001)])
def test_layer_norm(shape):
    case, (r, c) = Case(), axes_of(*shape, names="rc")
    case.input("x", shape)
    case.input("w", (shape[1],))
    case.input("b", (shape[1],))
    x, scale = case.load("x", (r, c)), const(1 / shape[1], float32)
    mean = op("mul", scalar.acc("sum", float32), scale)
    centred = op("sub", x, mean)
    variance = op("mul", scalar.acc("squares", float32), scale)
    normal = op("mul", centred, op("rsqrt", op("add", variance, const(1e-5, float32))))
    loop = Loop("layer_norm", (r,), (
        Stage(reduce_axes=(c,), reduces=(Reduce("sum", "sum", x, float32),)),
        Stage(reduce_axes=(c,), reduces=(Reduce("squares", "sum", op("mul", centred, centred), float32),)),
        Stage(axes=(c,), stores=(Store(case.output("o", shape), (I(r), I(c)), op("add", op("mul", normal, case.load("w", (c,))), case.load("b", (c,)))),)),
        Stage(stores=(Store(case.output("mean", (shape[0],)), (I(r),), mean),))))  # fmt: skip
    case.check(loop, rtol=1e-5, atol=1e-5, bits=BITS, threads=THREADS)


@pytest.mark.parametrize("shape", [(3, 3), (100, 50), (64, 10), (40, 512), (1000, 16), (257, 1), (50, 33)])
@pytest.mark.parametrize("operation", ["sum", "max"])
def test_column_reductions(shape, operation):
    case, (r, c) = Case(), axes_of(*shape, names="rc")
    case.input("x", shape)
    loop = Loop("columns", (c,), (
        Stage(reduce_axes=(r,), reduces=(Reduce("a", operation, case.load("x", (r, c)), float32),)),
        Stage(stores=(Store(case.output("o", (shape[1],)), (I(c),), scalar.acc("a", float32)),))))  # fmt: skip
    case.check(loop, rtol=1e-5, atol=1e-4, bits=BITS, threads=THREADS)


@pytest.mark.parametrize("operation", ["sum", "prod", "max", "min", "argmax", "argmin"])
@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_every_reduction_of_a_dtype(name, operation):
    dtype = SUPPORTED[name]
    try:
        PRIMITIVES[operation].infer([np.ones(2, dtype)], {"axes": (0,)})
    except DTypeError:
        pytest.skip(f"{operation} does not take {name}")
    for shape, reduced in (((45,), (0,)), ((6, 37), (1,)), ((37, 11), (0,)), ((4, 9, 5), (0, 2)), ((3, 4, 50), (1, 2)), ((5, 6, 7), (1,))):
        case, axes = Case(), axes_of(*shape)
        value = case.rng.uniform(0.8, 1.2, shape) if operation == "prod" and dtype.kind == "f" else None
        case.input("x", shape, dtype, value)
        kept = tuple(axis for place, axis in enumerate(axes) if place not in reduced)
        out = int64 if operation.startswith("arg") else dtype
        reduce = Reduce("a", operation, case.load("x", axes), out)
        case.output("o", tuple(axis.extent for axis in kept), out)
        loop = Loop("reduce", kept, (
            Stage(reduce_axes=tuple(axes[place] for place in reduced), reduces=(reduce,)),
            Stage(stores=(Store("o", indices(kept), scalar.acc("a", out)),))))  # fmt: skip
        case.check(loop, rtol=1e-5, atol=1e-5, bits=BITS)


@pytest.mark.parametrize("operation", ["argmax", "argmin", "max", "min"])
@pytest.mark.parametrize("layout", ["rows", "columns", "all"])
def test_first_extreme_and_nan(operation, layout):
    """Ties go to the first element; the first NaN wins; infinities of the wrong sign are still elements."""
    worst = -np.inf if operation.endswith("max") else np.inf
    case = Case()
    data = case.rng.integers(0, 3, (7, 53)).astype(np.float32)
    data[1, [9, 30]] = np.nan
    data[2, :] = worst
    data[3, 44:] = np.nan
    data[4, :] = np.inf
    data[5, 0] = data[5, 52] = np.nan
    r, c = axes_of(7, 53, names="rc")
    space, index, reduced = {
        "rows": ((r,), (I(r), I(c)), (c,)), "columns": ((r,), (I(c), I(r)), (c,)), "all": ((), (I(r), I(c)), (r, c)),
    }[layout]  # fmt: skip
    case.input("x", (53, 7) if layout == "columns" else (7, 53), float32, data.T if layout == "columns" else data)
    out = int64 if operation.startswith("arg") else float32
    loop = Loop("extreme", space, (
        Stage(reduce_axes=reduced, reduces=(Reduce("a", operation, case.load("x", index), out),)),
        Stage(stores=(Store(case.output("o", tuple(a.extent for a in space), out), indices(space), scalar.acc("a", out)),))))  # fmt: skip
    case.check(loop, rtol=0, bits=BITS)


def test_several_reductions_in_one_stage_and_a_derived_one():
    case, (r, c) = Case(), axes_of(19, 61, names="rc")
    case.input("x", (19, 61))
    x = case.load("x", (r, c))
    low, high = scalar.acc("low", float32), scalar.acc("high", float32)
    scaled = op("div", op("sub", x, low), op("sub", high, low))
    loop = Loop("scale", (r,), (
        Stage(reduce_axes=(c,), reduces=(Reduce("low", "min", x, float32), Reduce("high", "max", x, float32),
                                         Reduce("at", "argmax", x, int64))),
        Stage(reduce_axes=(c,), reduces=(Reduce("mean", "sum", scaled, float32),)),
        Stage(axes=(c,), stores=(Store(case.output("o", (19, 61)), (I(r), I(c)), scaled),)),
        Stage(stores=(Store(case.output("mean", (19,)), (I(r),), scalar.acc("mean", float32)),
                      Store(case.output("at", (19,), int64), (I(r),), scalar.acc("at", int64))))))  # fmt: skip
    case.check(loop, rtol=1e-5, atol=1e-5, bits=BITS, threads=THREADS)


def test_matrix_product_and_convolution_as_plain_nests():
    case, (m, n, k) = Case(), axes_of(9, 21, 13, names="mnk")
    case.input("a", (9, 13))
    case.input("b", (13, 21))
    case.input("t", (21, 13))
    case.input("bias", (21,))
    for weights in (case.load("b", (k, n)), case.load("t", (n, k))):
        product = op("mul", case.load("a", (m, k)), weights)
        value = op("relu", op("add", scalar.acc("p", float32), case.load("bias", (n,))))
        loop = Loop("product", (m, n), (
            Stage(reduce_axes=(k,), reduces=(Reduce("p", "sum", product, float32),)),
            Stage(stores=(Store(case.output("o", (9, 21)), (I(m), I(n)), value),))), "contract")  # fmt: skip
        case.check(loop, rtol=1e-5, atol=1e-5, bits=BITS, threads=THREADS)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 1)])
def test_padded_convolution(stride, padding):
    case = Case()
    size = (9 + 2 * padding - 3) // stride + 1
    n, o, y, x, c, i, j = axes_of(2, 3, size, size, 2, 3, 3, names="noyxcij")
    case.input("image", (2, 2, 9, 9))
    case.input("w", (3, 2, 3, 3))
    row, column = I(y) * stride + i - padding, I(x) * stride + j - padding
    mask = (Bound(row, 0, 9), Bound(column, 0, 9)) if padding else ()
    product = op("mul", case.load("image", (n, c, row, column), mask), case.load("w", (o, c, i, j)))
    loop = Loop("convolve", (n, o, y, x), (
        Stage(reduce_axes=(c, i, j), reduces=(Reduce("p", "sum", product, float32),)),
        Stage(stores=(Store(case.output("out", (2, 3, size, size)), indices((n, o, y, x)), scalar.acc("p", float32)),))), "contract")  # fmt: skip
    case.check(loop, rtol=1e-5, atol=1e-5, bits=BITS)


def test_max_pooling():
    case, (n, y, x, i, j) = Case(), axes_of(6, 13, 11, 2, 2, names="nyxij")
    case.input("image", (6, 26, 22))
    value = case.load("image", (n, I(y) * 2 + i, I(x) * 2 + j))
    loop = Loop("pool", (n, y, x), (
        Stage(reduce_axes=(i, j), reduces=(Reduce("m", "max", value, float32), Reduce("w", "argmax", value, int64))),
        Stage(stores=(Store(case.output("o", (6, 13, 11)), indices((n, y, x)), scalar.acc("m", float32)),
                      Store(case.output("w", (6, 13, 11), int64), indices((n, y, x)), scalar.acc("w", int64))))))  # fmt: skip
    case.check(loop, rtol=0, bits=BITS)


def test_full_reduction_in_chunks_and_at_once():
    case, (chunk, i) = Case(), axes_of(8, 1000)
    case.input("x", (8000,))
    x = case.load("x", (I(chunk) * 1000 + i,))
    loop = Loop("chunks", (chunk,), (
        Stage(reduce_axes=(i,), reduces=(Reduce("s", "sum", op("mul", x, x), float32),)),
        Stage(stores=(Store(case.output("o", (8,)), (I(chunk),), scalar.acc("s", float32)),))))  # fmt: skip
    case.check(loop, rtol=1e-5, bits=BITS, threads=THREADS)
    (k,) = axes_of(8000, names="k")
    loop = Loop("whole", (), (
        Stage(reduce_axes=(k,), reduces=(Reduce("s", "sum", case.load("x", (k,)), float32),)),
        Stage(stores=(Store(case.output("t", ()), (), scalar.acc("s", float32)),))))  # fmt: skip
    assert not case.check(loop, rtol=1e-4, atol=1e-4, bits=BITS, threads=THREADS).kernel.parallel


def test_exact_sums_go_in_order():
    """Sequential float32 sums, to the last bit."""
    case, (r, c) = Case(), axes_of(6, 300, names="rc")
    case.input("x", (6, 300))
    loop = Loop("ordered", (r,), (
        Stage(reduce_axes=(c,), reduces=(Reduce("s", "sum", case.load("x", (r, c)), float32),)),
        Stage(stores=(Store(case.output("o", (6,)), (I(r),), scalar.acc("s", float32)),))))  # fmt: skip
    found = run_loop(loop, case.buffers, case.arrays, exact=True)["o"]
    total = np.zeros(6, np.float32)
    for column in case.arrays["x"].T:
        total = total + column
    np.testing.assert_array_equal(found, total)


# -- memory: empty, in place, local, several stages -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)])
def test_empty_spaces_and_reductions(shape):
    case, axes = Case(), axes_of(*shape)
    value = multiply_add(case, axes)
    case.check(Loop("empty", axes, (Stage(stores=(Store(case.output("o", shape), indices(axes), value),)),)), bits=BITS)
    first, rest = axes[:1], axes[1:]
    totals = (Reduce("s", "sum", value, float32), Reduce("p", "prod", value, float32))
    results = tuple(
        Store(case.output(name, (shape[0],)), indices(first), scalar.acc(name, float32)) for name in ("s", "p")
    )
    case.check(Loop("empty_rows", first, (Stage(reduce_axes=rest, reduces=totals), Stage(stores=results))), bits=BITS)


def test_update_in_place():
    case, (i,) = Case(), axes_of(1003)
    for name in ("p", "m"):
        case.input(name, (1003,), role="state")
    case.input("g", (1003,))
    momentum = op("add", op("mul", case.load("m", (i,)), const(0.9, float32)), case.load("g", (i,)))
    step = op("sub", case.load("p", (i,)), op("mul", momentum, const(0.1, float32)))
    loop = Loop("sgd", (i,), (Stage(stores=(Store("m", (I(i),), momentum), Store("p", (I(i),), step))),))
    case.check(loop, bits=BITS, threads=THREADS)


@pytest.mark.parametrize("width", [5, 48, 700])
def test_later_stages_see_what_earlier_ones_stored(width):
    """In place and through a temp; the last stage reads the row backwards."""
    case, (r, c) = Case(), axes_of(7, width, names="rc")
    case.input("s", (7, width), role="state")
    case.output("t", (7, width), role="temp")
    s = case.load("s", (r, c))
    loop = Loop("chain", (r,), (
        Stage(axes=(c,), stores=(Store("s", (I(r), I(c)), op("add", s, const(1.0, float32))),)),
        Stage(axes=(c,), stores=(Store("t", (I(r), I(c)), op("mul", s, const(2.0, float32))),)),
        Stage(reduce_axes=(c,), reduces=(Reduce("a", "sum", case.load("t", (r, c)), float32),)),
        Stage(axes=(c,), stores=(Store(case.output("o", (7, width)), (I(r), I(c)),
                                       op("sub", case.load("t", (r, I(width - 1) - c)), scalar.acc("a", float32))),))))  # fmt: skip
    case.check(loop, rtol=1e-5, atol=1e-3, bits=BITS)


@pytest.mark.parametrize("width", [6, 200])
def test_local_buffers(width):
    case, (r, c, k) = Case(), axes_of(9, width, width, names="rck")
    case.input("x", (9, width))
    case.output("l", (width,), role="local")
    square = op("mul", case.load("x", (r, c)), case.load("x", (r, c)))
    loop = Loop("local", (r,), (
        Stage(axes=(c,), stores=(Store("l", (I(c),), square),)),
        Stage(reduce_axes=(k,), reduces=(Reduce("a", "max", case.load("l", (k,)), float32),)),
        Stage(axes=(c,), stores=(Store(case.output("o", (9, width)), (I(r), I(c)),
                                       op("div", case.load("l", (I(width - 1) - c,)), scalar.acc("a", float32))),))))  # fmt: skip
    case.check(loop, bits=BITS, threads=[1])


def test_stage_that_depends_on_earlier_accumulators_in_an_index():
    """The element at the largest element's place (a run-time index that a stage computed)."""
    case, (r, c) = Case(), axes_of(12, 41, names="rc")
    case.input("x", (12, 41))
    case.input("y", (12, 41))
    place = Index(0, ((Indirect(scalar.acc("at", int64), 41), 1),))
    loop = Loop("pick", (r,), (
        Stage(reduce_axes=(c,), reduces=(Reduce("at", "argmax", case.load("x", (r, c)), int64),)),
        Stage(stores=(Store(case.output("o", (12,)), (I(r),), case.load("y", (r, place))),))))  # fmt: skip
    case.check(loop, rtol=0, bits=BITS, threads=THREADS)


# -- the text -------------------------------------------------------------------------------------------------------------


def text_of(loop: Loop, buffers: dict[str, Buffer]) -> str:
    module = Module(vector_bits=256)
    emit_nest(module, loop, one_loop_program(loop, buffers), 256)
    return module.text()


def test_text_is_the_same_every_time_and_tells_what_it_is():
    texts = set()
    for _ in range(3):
        case = Case()
        texts.add(text_of(softmax(case, 64, 100), case.buffers))
        scalar.clear_interned()
    (text,) = texts
    assert "; nest softmax(r < 64)" in text
    assert "; %p0 = x: float32[64, 100] (input)" in text
    assert "; largest = max over (j0 < 100)" in text


def test_small_rows_stay_in_registers():
    """Softmax over 10 classes: x is read once, exp is computed once, there is no inner loop."""
    case = Case()
    kernel = text_of(softmax(case, 64, 10), case.buffers).split("}")[0]
    assert kernel.count("@fg_exp") == 2  # 8 + 2 lanes
    assert len(re.findall(r"^loop\d+:", kernel, re.M)) == 1
    assert len(re.findall(r"= (load|call) <8 x float>.*(load|ptr)", kernel)) == 2


def test_small_kernels_run_on_one_thread():
    for size, expected in ((64, False), (100_000, True)):
        case, axes = Case(), axes_of(size)
        value = multiply_add(case, axes)
        loop = Loop("map", axes, (Stage(stores=(Store(case.output("o", (size,)), indices(axes), value),)),))
        module = Module(vector_bits=256)
        assert emit_nest(module, loop, one_loop_program(loop, case.buffers), 256).parallel is expected


@pytest.mark.parametrize("dtype", [float32, float64])
def test_division_by_what_a_row_shares(dtype):
    """Multiplied by a reciprocal: 1.5 ulp from the quotient, and inf, NaN, zero, tiny and huge divisors are divided by."""
    case, info = Case(), np.finfo(dtype)
    divisors = [1.0, 3.0, -7.0, 0.0, -0.0, np.inf, np.nan, info.tiny / 8, info.smallest_subnormal, info.max, info.max / 3, 1e-20]
    r, c = axes_of(len(divisors), 37, names="rc")
    rows = case.rng.standard_normal((len(divisors), 37)) * np.array([[1.0]] * 7 + [[float(info.tiny)]] * 2 + [[float(info.max / 8)]] * 2 + [[1.0]])
    rows[:, 5:9] = [0.0, np.inf, -np.inf, np.nan]
    case.input("x", rows.shape, dtype, rows)
    case.input("d", (len(divisors),), dtype, divisors)
    quotient = op("div", case.load("x", (r, c)), case.load("d", (r,)))
    loop = Loop("divide", (r, c), (Stage(stores=(
        Store(case.output("o", rows.shape, dtype), (I(r), I(c)), quotient),
        Store(case.output("k", rows.shape, dtype), (I(r), I(c)), op("div", case.load("x", (r, c)), const(3.7, dtype))))),))  # fmt: skip
    case.check(loop, rtol=1.5 * float(info.eps), atol=1.5 * float(info.smallest_subnormal), bits=BITS)
    assert "fdiv contract <8" not in text_of(loop, case.buffers)
    case.check(loop, rtol=0, atol=0, exact=True)
