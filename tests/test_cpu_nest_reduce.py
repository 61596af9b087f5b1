"""Reductions as explicit-vector code, against the numpy interpreter."""

from __future__ import annotations

import numpy as np
import pytest
from loop_tools import run_loop
from nest_cases import (
    BITS,
    THREADS,
    Case,
    I,
    axes_of,
    indices,
    softmax,
)

from fusegraph.dtypes import SUPPORTED, float32, int64
from fusegraph.errors import DTypeError
from fusegraph.ir import scalar
from fusegraph.ir.loops import Loop, Reduce, Stage, Store
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.ir.scalar import Bound, const, op

# -- reductions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(1, 1), (5, 3), (64, 10), (17, 50), (3, 64), (2, 65), (9, 1024), (4, 1003), (2, 333)]
)
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
    loop = Loop(
        "layer_norm",
        (r,),
        (
            Stage(reduce_axes=(c,), reduces=(Reduce("sum", "sum", x, float32),)),
            Stage(reduce_axes=(c,), reduces=(Reduce("squares", "sum", op("mul", centred, centred), float32),)),
            Stage(
                axes=(c,),
                stores=(
                    Store(
                        case.output("o", shape),
                        (I(r), I(c)),
                        op("add", op("mul", normal, case.load("w", (c,))), case.load("b", (c,))),
                    ),
                ),
            ),
            Stage(stores=(Store(case.output("mean", (shape[0],)), (I(r),), mean),)),
        ),
    )
    case.check(loop, rtol=1e-5, atol=1e-5, bits=BITS, threads=THREADS)


@pytest.mark.parametrize("shape", [(3, 3), (100, 50), (64, 10), (40, 512), (1000, 16), (257, 1), (50, 33)])
@pytest.mark.parametrize("operation", ["sum", "max"])
def test_column_reductions(shape, operation):
    case, (r, c) = Case(), axes_of(*shape, names="rc")
    case.input("x", shape)
    loop = Loop(
        "columns",
        (c,),
        (
            Stage(reduce_axes=(r,), reduces=(Reduce("a", operation, case.load("x", (r, c)), float32),)),
            Stage(stores=(Store(case.output("o", (shape[1],)), (I(c),), scalar.acc("a", float32)),)),
        ),
    )
    case.check(loop, rtol=1e-5, atol=1e-4, bits=BITS, threads=THREADS)


@pytest.mark.parametrize("operation", ["sum", "prod", "max", "min", "argmax", "argmin"])
@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_every_reduction_of_a_dtype(name, operation):
    dtype = SUPPORTED[name]
    try:
        PRIMITIVES[operation].infer([np.ones(2, dtype)], {"axes": (0,)})
    except DTypeError:
        pytest.skip(f"{operation} does not take {name}")
    for shape, reduced in (
        ((45,), (0,)),
        ((6, 37), (1,)),
        ((37, 11), (0,)),
        ((4, 9, 5), (0, 2)),
        ((3, 4, 50), (1, 2)),
        ((5, 6, 7), (1,)),
    ):
        case, axes = Case(), axes_of(*shape)
        value = case.rng.uniform(0.8, 1.2, shape) if operation == "prod" and dtype.kind == "f" else None
        case.input("x", shape, dtype, value)
        kept = tuple(axis for place, axis in enumerate(axes) if place not in reduced)
        out = int64 if operation.startswith("arg") else dtype
        reduce = Reduce("a", operation, case.load("x", axes), out)
        case.output("o", tuple(axis.extent for axis in kept), out)
        loop = Loop(
            "reduce",
            kept,
            (
                Stage(reduce_axes=tuple(axes[place] for place in reduced), reduces=(reduce,)),
                Stage(stores=(Store("o", indices(kept), scalar.acc("a", out)),)),
            ),
        )
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
        "rows": ((r,), (I(r), I(c)), (c,)),
        "columns": ((r,), (I(c), I(r)), (c,)),
        "all": ((), (I(r), I(c)), (r, c)),
    }[layout]
    case.input("x", (53, 7) if layout == "columns" else (7, 53), float32, data.T if layout == "columns" else data)
    out = int64 if operation.startswith("arg") else float32
    loop = Loop(
        "extreme",
        space,
        (
            Stage(reduce_axes=reduced, reduces=(Reduce("a", operation, case.load("x", index), out),)),
            Stage(
                stores=(
                    Store(case.output("o", tuple(a.extent for a in space), out), indices(space), scalar.acc("a", out)),
                )
            ),
        ),
    )
    case.check(loop, rtol=0, bits=BITS)


def test_several_reductions_in_one_stage_and_a_derived_one():
    case, (r, c) = Case(), axes_of(19, 61, names="rc")
    case.input("x", (19, 61))
    x = case.load("x", (r, c))
    low, high = scalar.acc("low", float32), scalar.acc("high", float32)
    scaled = op("div", op("sub", x, low), op("sub", high, low))
    loop = Loop(
        "scale",
        (r,),
        (
            Stage(
                reduce_axes=(c,),
                reduces=(
                    Reduce("low", "min", x, float32),
                    Reduce("high", "max", x, float32),
                    Reduce("at", "argmax", x, int64),
                ),
            ),
            Stage(reduce_axes=(c,), reduces=(Reduce("mean", "sum", scaled, float32),)),
            Stage(axes=(c,), stores=(Store(case.output("o", (19, 61)), (I(r), I(c)), scaled),)),
            Stage(
                stores=(
                    Store(case.output("mean", (19,)), (I(r),), scalar.acc("mean", float32)),
                    Store(case.output("at", (19,), int64), (I(r),), scalar.acc("at", int64)),
                )
            ),
        ),
    )
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
        loop = Loop(
            "product",
            (m, n),
            (
                Stage(reduce_axes=(k,), reduces=(Reduce("p", "sum", product, float32),)),
                Stage(stores=(Store(case.output("o", (9, 21)), (I(m), I(n)), value),)),
            ),
            "contract",
        )
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
    loop = Loop(
        "convolve",
        (n, o, y, x),
        (
            Stage(reduce_axes=(c, i, j), reduces=(Reduce("p", "sum", product, float32),)),
            Stage(
                stores=(Store(case.output("out", (2, 3, size, size)), indices((n, o, y, x)), scalar.acc("p", float32)),)
            ),
        ),
        "contract",
    )
    case.check(loop, rtol=1e-5, atol=1e-5, bits=BITS)


def test_max_pooling():
    case, (n, y, x, i, j) = Case(), axes_of(6, 13, 11, 2, 2, names="nyxij")
    case.input("image", (6, 26, 22))
    value = case.load("image", (n, I(y) * 2 + i, I(x) * 2 + j))
    loop = Loop(
        "pool",
        (n, y, x),
        (
            Stage(
                reduce_axes=(i, j), reduces=(Reduce("m", "max", value, float32), Reduce("w", "argmax", value, int64))
            ),
            Stage(
                stores=(
                    Store(case.output("o", (6, 13, 11)), indices((n, y, x)), scalar.acc("m", float32)),
                    Store(case.output("w", (6, 13, 11), int64), indices((n, y, x)), scalar.acc("w", int64)),
                )
            ),
        ),
    )
    case.check(loop, rtol=0, bits=BITS)


def test_full_reduction_in_chunks_and_at_once():
    case, (chunk, i) = Case(), axes_of(8, 1000)
    case.input("x", (8000,))
    x = case.load("x", (I(chunk) * 1000 + i,))
    loop = Loop(
        "chunks",
        (chunk,),
        (
            Stage(reduce_axes=(i,), reduces=(Reduce("s", "sum", op("mul", x, x), float32),)),
            Stage(stores=(Store(case.output("o", (8,)), (I(chunk),), scalar.acc("s", float32)),)),
        ),
    )
    case.check(loop, rtol=1e-5, bits=BITS, threads=THREADS)
    (k,) = axes_of(8000, names="k")
    loop = Loop(
        "whole",
        (),
        (
            Stage(reduce_axes=(k,), reduces=(Reduce("s", "sum", case.load("x", (k,)), float32),)),
            Stage(stores=(Store(case.output("t", ()), (), scalar.acc("s", float32)),)),
        ),
    )
    assert not case.check(loop, rtol=1e-4, atol=1e-4, bits=BITS, threads=THREADS).kernel.parallel


def test_exact_sums_go_in_order():
    """Sequential float32 sums, to the last bit."""
    case, (r, c) = Case(), axes_of(6, 300, names="rc")
    case.input("x", (6, 300))
    loop = Loop(
        "ordered",
        (r,),
        (
            Stage(reduce_axes=(c,), reduces=(Reduce("s", "sum", case.load("x", (r, c)), float32),)),
            Stage(stores=(Store(case.output("o", (6,)), (I(r),), scalar.acc("s", float32)),)),
        ),
    )
    found = run_loop(loop, case.buffers, case.arrays, exact=True)["o"]
    total = np.zeros(6, np.float32)
    for column in case.arrays["x"].T:
        total = total + column
    np.testing.assert_array_equal(found, total)
