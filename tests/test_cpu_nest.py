"""Maps as explicit-vector code, against the numpy interpreter: sizes, axes, and every kind of access."""

from __future__ import annotations

import numpy as np
import pytest
from nest_cases import (
    BITS,
    THREADS,
    Case,
    I,
    axes_of,
    indices,
    multiply_add,
    text_of,
)

from fusegraph.dtypes import bool_, float32, float64, int32, int64, uint8, uint32
from fusegraph.ir import scalar
from fusegraph.ir.index import Index, Indirect, unflatten_index
from fusegraph.ir.loops import Loop, Stage, Store
from fusegraph.ir.scalar import Bound, Divides, const, op

# -- maps: sizes, axes, views ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [(1,), (7,), (8,), (9,), (31,), (64,), (1000,), (3, 5), (64, 256), (1, 17), (5, 1), (2, 3, 9), (4, 1, 33), ()],
)
def test_map_of_any_shape(shape):
    case, axes = Case(), axes_of(*shape)
    value = multiply_add(case, axes)
    loop = Loop("map", axes, (Stage(stores=(Store(case.output("o", shape), indices(axes), value),)),))
    case.check(loop, bits=BITS, threads=THREADS)


def test_elementwise_axes_become_one_flat_axis():
    case, axes = Case(), axes_of(64, 256)
    value = multiply_add(case, axes)
    text = case.check(
        Loop("flat", axes, (Stage(stores=(Store(case.output("o", (64, 256)), indices(axes), value),)),))
    ).text
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
    loop = Loop(
        "reshape", axes, (Stage(stores=(Store(case.output("o", after), indices(axes), case.load("x", turned)),)),)
    )
    case.check(loop, rtol=0, bits=BITS)


def test_storing_into_views():
    case, (i, j) = Case(), axes_of(9, 19)
    case.input("x", (9, 19))
    x = case.load("x", (i, j))
    case.output("turned", (19, 9))
    case.output("flipped", (9, 19))
    case.input("wide", (9, 57), role="state")
    stores = (
        Store("turned", (I(j), I(i)), x),
        Store("flipped", (I(i), I(18) - j), x),
        Store("wide", (I(i), I(j) * 3 + 2), x),
    )
    case.check(Loop("into_views", (i, j), (Stage(stores=stores),)), rtol=0, bits=BITS)


@pytest.mark.parametrize("dtype", [float32, float64, int32, int64, uint8, bool_])
def test_padding_never_touches_memory_outside(dtype):
    case, (i, j) = Case(), axes_of(11, 14)
    case.input("x", (8, 9), dtype)
    row, column = I(i) - 2, I(j) - 3
    padded = case.load("x", (row, column), (Bound(row, 0, 8), Bound(column, 0, 9)))
    wide = case.load("x", (row, I(j) % 9), (Bound(row, 0, 8),))
    stores = (
        Store(case.output("o", (11, 14), dtype), indices((i, j)), padded),
        Store(case.output("w", (11, 14), dtype), indices((i, j)), wide),
        Store(
            case.output("m", (11, 14), bool_), indices((i, j)), scalar.inside((Bound(row, 0, 8), Bound(column, 0, 9)))
        ),
    )
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
    loop = Loop(
        "gather",
        (t, d),
        (Stage(stores=(Store(case.output("o", (37, width)), (I(t), I(d)), case.load("table", (place, d))),)),),
    )
    case.check(loop, rtol=0, bits=BITS)


def test_gather_along_the_vector_axis():
    case, (i, j) = Case(), axes_of(6, 29)
    case.input("index", (6, 29), int32, case.rng.integers(-2, 15, (6, 29)))
    case.input("x", (6, 12))
    place = Index(0, ((Indirect(case.load("index", (i, j)), 12), 1),))
    loop = Loop(
        "along",
        (i, j),
        (Stage(stores=(Store(case.output("o", (6, 29)), indices((i, j)), case.load("x", (i, place))),)),),
    )
    case.check(loop, rtol=0, bits=BITS)


def test_random_bits_are_those_of_the_reference():
    case, (i, j) = Case(), axes_of(5, 37)
    case.input("key", (), uint32, 0xDEADBEEF)
    case.input("counter", (), uint32, 7)
    bits = scalar.philox(case.load("key", ()), case.load("counter", ()), I(i) * 37 + j)
    uniform = op("mul", op("cast", op("shift_right", bits, const(8, uint32)), dtype=float32), const(2.0**-24, float32))
    stores = (
        Store(case.output("o", (5, 37), uint32), indices((i, j)), bits),
        Store(case.output("u", (5, 37)), indices((i, j)), uniform),
    )
    case.check(Loop("random", (i, j), (Stage(stores=stores),)), rtol=0, bits=BITS)


@pytest.mark.parametrize("dtype", [float32, float64])
def test_division_by_what_a_row_shares(dtype):
    """Multiplied by a reciprocal: 1.5 ulp from the quotient, also for inf, NaN, zero, tiny and huge divisors."""
    case, info = Case(), np.finfo(dtype)
    divisors = [
        1.0,
        3.0,
        -7.0,
        0.0,
        -0.0,
        np.inf,
        np.nan,
        info.tiny / 8,
        info.smallest_subnormal,
        info.max,
        info.max / 3,
        1e-20,
    ]
    r, c = axes_of(len(divisors), 37, names="rc")
    rows = case.rng.standard_normal((len(divisors), 37)) * np.array(
        [[1.0]] * 7 + [[float(info.tiny)]] * 2 + [[float(info.max / 8)]] * 2 + [[1.0]]
    )
    rows[:, 5:9] = [0.0, np.inf, -np.inf, np.nan]
    case.input("x", rows.shape, dtype, rows)
    case.input("d", (len(divisors),), dtype, divisors)
    quotient = op("div", case.load("x", (r, c)), case.load("d", (r,)))
    loop = Loop(
        "divide",
        (r, c),
        (
            Stage(
                stores=(
                    Store(case.output("o", rows.shape, dtype), (I(r), I(c)), quotient),
                    Store(
                        case.output("k", rows.shape, dtype),
                        (I(r), I(c)),
                        op("div", case.load("x", (r, c)), const(3.7, dtype)),
                    ),
                )
            ),
        ),
    )
    case.check(loop, rtol=1.5 * float(info.eps), atol=1.5 * float(info.smallest_subnormal), bits=BITS)
    assert "fdiv contract <8" not in text_of(loop, case.buffers)
    case.check(loop, rtol=0, atol=0, exact=True)


def test_run_time_masks_never_become_masked_loads():
    """LLVM 22 drops the mask of a masked load of which it finds out late that a part is false: none is handed to it."""
    case, (i, j) = Case(), axes_of(11, 14)
    case.input("x", (8, 9), float64)
    row, column = I(i) - 2, I(j) - 3
    value = case.load("x", (row, column), (Bound(row, 0, 8), Bound(column, 0, 9)))
    loop = Loop("pad", (i, j), (Stage(stores=(Store(case.output("o", (11, 14), float64), indices((i, j)), value),)),))
    for line in text_of(loop, case.buffers).splitlines():
        assert "masked.load" not in line or line.startswith("declare") or "i1> <i1 true" in line


def test_a_reshape_of_a_transpose_is_contiguous_again():
    """[8, 4, 64, 32] read as [512, 128]: axes are cut at 64 and 32, and the copy needs no lane by lane loads."""
    case, (i, j) = Case(), axes_of(512, 128)
    case.input("x", (8, 4, 64, 32))
    value = case.load("x", (I(i) // 64, I(j) // 32, I(i) % 64, I(j) % 32))
    loop = Loop("heads", (i, j), (Stage(stores=(Store(case.output("o", (512, 128)), indices((i, j)), value),)),))
    assert "insertelement" not in text_of(loop, case.buffers)
    case.check(loop, rtol=0, bits=BITS, threads=THREADS)


def test_concatenation_is_cut_where_its_parts_begin():
    """Masks that change every 100 columns are the same for whole vectors."""
    case, (i, j) = Case(), axes_of(4, 300)
    value = const(0.0, float32)
    for part in range(3):
        case.input(f"x{part}", (4, 100))
        here = Bound(I(j), 100 * part, 100 * part + 100)
        chosen = case.load(f"x{part}", (i, I(j) - 100 * part), (here,))
        value = op("where", scalar.inside((here,)), chosen, value)
    loop = Loop("cat", (i, j), (Stage(stores=(Store(case.output("o", (4, 300)), indices((i, j)), value),)),))
    assert "icmp ult <" not in text_of(loop, case.buffers)
    case.check(loop, rtol=0, bits=BITS, threads=THREADS)


@pytest.mark.parametrize("form", ["ab + cd", "ab - cd", "exp + cd", "-ab - exp", "exp - a/b"])
def test_which_of_two_products_is_fused_is_not_left_to_llvm(form: str) -> None:
    """It chose differently in two copies of a body: the last bit of a result depended on which copy computed it."""
    case, (i,) = Case(), axes_of(1003)
    a, b, c, d = (case.load(case.input(name, (1003,)), (I(i),)) for name in "abcd")
    ab, cd, exp = op("mul", a, b), op("mul", c, d), op("exp", c)
    value = {
        "ab + cd": op("add", ab, cd),
        "ab - cd": op("sub", ab, cd),
        "exp + cd": op("add", exp, cd),
        "-ab - exp": op("sub", op("neg", ab), exp),
        "exp - a/b": op("sub", exp, op("div", a, op("add", op("mul", b, b), const(1.0, float32)))),
    }[form]
    loop = Loop("sum", (i,), (Stage(stores=(Store(case.output("o", (1003,)), (I(i),), value),)),))
    body = [
        line
        for line in text_of(loop, case.buffers).splitlines()
        if " = fadd contract" in line or " = fsub contract" in line
    ]
    text = text_of(loop, case.buffers)
    if "exp" not in form:  # exp is made of sums of its own
        assert not body and "@llvm.fma." in text
    case.check(loop, rtol=1e-6, bits=BITS, threads=THREADS)
