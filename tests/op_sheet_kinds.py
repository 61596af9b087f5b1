"""Sheets of operations on what is hard: ends of integers, NaN and infinities, odd sizes, and much work."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fusegraph.dtypes import SUPPORTED
from fusegraph.ir import PRIMITIVES
from tests.op_sheets import Array, Case, Sheet


def integer_edges() -> Sheet:
    """Division by zero and of the least number by -1, shifts by the width and more, wrap-around, conversions."""
    sheet = Sheet()
    for dtype in (np.int32, np.int64, np.uint8, np.uint32):
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        a = np.array([low, low, 5, 0, 7, high, high // 2 + 1, 3, high], dtype)
        b = np.array([low + high, 1, 0, 0, 2, high, 3, high, 0], dtype)  # low + high is -1 in signed types
        shifts = np.array([31, 32, 64, 70, 0, 1, 7, 8, 63], dtype)
        for name in ("floordiv", "mod", "add", "sub", "mul", "maximum", "minimum", "lt", "ge", "bit_xor"):
            sheet.add(Case(name, (a, b), {}))
        for name in ("shift_left", "shift_right"):
            sheet.add(Case(name, (a, shifts), {}))
        for name in ("sum", "prod", "max", "min", "argmax"):
            sheet.add(Case(name, (np.stack([a, b, a]),), {"axes": (0,)}))
        if low < 0:
            for name in ("neg", "abs", "sign", "relu"):
                sheet.add(Case(name, (a,), {}))
    return sheet


def conversions() -> Sheet:
    """Casts that lose something."""
    sheet = Sheet()
    wide = np.array([-1, -(2**31), 2**31 - 1, 300, 256, 0, 2**24 + 1, 2**53 + 1, 2**62 + 12345], np.int64)
    floats = np.array([np.nan, np.inf, 0.0, -0.0, 1e-40, 5.0, 1e300, -1e300])
    for source in (wide, wide.astype(np.int32), wide.astype(np.uint32), wide.astype(np.uint8)):
        for target in SUPPORTED:
            sheet.add(Case("cast", (source,), {"dtype": target}))
    for source in (floats, floats.astype(np.float32)):
        for target in ("bool", "float32", "float64"):
            sheet.add(Case("cast", (source,), {"dtype": target}))
    sheet.add(Case("cast", (np.array([-1.7, 1.7, -0.5, 2.5, 254.9]),), {"dtype": "int32"}))
    sheet.add(Case("cast", (np.array([3e9, 4e9, 1.5], np.float32),), {"dtype": "uint32"}))
    sheet.add(Case("cast", (np.array([3e9, -4e15, 1.5]),), {"dtype": "int64"}))
    return sheet


def special_sheet(dtype: str) -> Sheet:
    """Maps and zips of (pairs of) special numbers."""
    f = np.finfo(dtype)
    v = np.array(
        [
            np.nan,
            np.inf,
            -np.inf,
            0,
            -0.0,
            1,
            -1,
            0.5,
            -0.5,
            2.5,
            f.max,
            -f.max,
            f.tiny,
            f.smallest_subnormal * 5,
            -f.smallest_subnormal,
            1e-30,
            20,
            -20,
            88.5,
            -87,
            100,
            -100,
            104,
            1000,
            -1000,
            3,
            1e10,
            -1e5,
            0.1,
            1e-4,
            7,
        ],
        dtype,
    )
    a, b = np.repeat(v, len(v)), np.tile(v, len(v))
    sheet = Sheet()
    for name, primitive in PRIMITIVES.items():
        if primitive.kind == "map" and name not in ("cast", "logical_not"):
            sheet.add(Case(name, (v,), {}))
        elif primitive.kind == "zip" and not name.startswith(("bit", "shift", "floordiv", "mod", "where")):
            sheet.add(Case(name, (a, b), {}))
    sheet.add(Case("where", (np.random.default_rng(0).random(a.shape) < 0.5, a, b), {}))
    return sheet


def special_rows(dtype: str) -> Sheet:
    """Reductions, products, gathers and scatters of arrays that hold a few NaN and infinities."""
    rng, sheet = np.random.default_rng(1), Sheet()

    def some(*shape: int, share: float = 0.05) -> np.ndarray:
        wild = rng.choice([np.nan, np.inf, -np.inf], shape)
        return np.where(rng.random(shape) < share, wild, rng.integers(-4, 5, shape) / 2).astype(dtype)

    rows = some(40, 9)
    for x in (rows, np.ascontiguousarray(rows.T), some(70, 33, share=0.01)):
        for name in ("sum", "prod", "max", "min", "argmax", "argmin"):
            for axes in ((0,), (1,), (0, 1)):
                sheet.add(Case(name, (x,), {"axes": axes}))
    weight = rng.uniform(0.5, 1, (9, 20)).astype(dtype)
    sheet.add(Case("matmul", (rows, weight), {}))
    sheet.add(Case("matmul", (np.ascontiguousarray(weight.T), np.ascontiguousarray(rows.T)), {}))
    image, kernel, maps = (
        some(2, 3, 9, 9, share=0.02),
        rng.uniform(0.5, 1, (4, 3, 3, 3)).astype(dtype),
        some(2, 4, 9, 9, share=0.01),
    )
    options = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
    sheet.add(Case("conv", (image, kernel), options))
    sheet.add(Case("conv_input_grad", (maps, kernel), options | {"size": (9, 9)}))
    sheet.add(Case("conv_weight_grad", (image, maps), options | {"kernel": (3, 3)}))
    clamped = np.array([-3, 0, 39, 40, 1000, 5, 5])
    sheet.add(Case("take", (rows, clamped), {"axis": 0}))
    sheet.add(Case("put_add", (rows, clamped, some(7, 9)), {"axis": 0}))
    along = rng.integers(-3, 12, (40, 4))
    sheet.add(Case("take_along", (rows, along), {"axis": 1}))
    sheet.add(Case("put_along_add", (rows, along, some(40, 4)), {"axis": 1}))
    sheet.add(Case("fold", (rows[:20].copy(),), {"axis": 0, "extent": 60, "stride": 2, "dilation": 2}))
    sheet.add(Case("window", (rows,), {"axis": 0, "size": 3, "stride": 2, "dilation": 2}))
    for value in (np.nan, -np.inf):
        sheet.add(Case("pad", (rows,), {"low": (1, 2), "high": (0, 1), "value": value}))
    return sheet


def sizes_sheet(dtype: str) -> Sheet:
    """Rows, columns and vectors of 0 to 65 elements."""
    rng, sheet = np.random.default_rng(2), Sheet()
    for n in (0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65):
        flat, row, column = (rng.uniform(-2, 2, shape).astype(dtype) for shape in ((n,), (3, n), (n, 3)))
        for x in (flat, row, column):
            sheet.add(Case("tanh", (x,), {}))
            sheet.add(Case("maximum", (x, x[::-1].copy()), {}))
            for axis in range(x.ndim):
                sheet.add(Case("sum", (x,), {"axes": (axis,)}))
                if x.shape[axis]:
                    sheet.add(Case("argmax", (x,), {"axes": (axis,)}))
        sheet.add(Case("matmul", (row, column), {}))
        sheet.add(Case("matmul", (column, row), {}))
        sheet.add(Case("permute", (row,), {"axes": (1, 0)}))
    return sheet


def large_sheet(dtype: str) -> Sheet:
    """Work above the thresholds from which kernels are shared among threads."""
    rng, sheet = np.random.default_rng(4), Sheet()

    def some(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
        return rng.uniform(low, high, shape).astype(dtype)

    def add(name: str, *arrays: np.ndarray, **params: object) -> None:
        sheet.add(Case(name, arrays, params))

    x, y, near_one, z = some(203, 331), some(203, 331), some(203, 331, low=0.9, high=1.1), some(7, 65, 9, 31)
    for name in ("exp", "relu"):
        add(name, x)
    for name in ("add", "maximum", "lt"):
        add(name, x, y)
    for axes in ((0,), (1,), (0, 1)):
        for name in ("sum", "max", "argmax", "argmin"):
            add(name, x, axes=axes)
        if len(axes) == 1:
            add("prod", near_one, axes=axes)
    for axes in ((0,), (1,), (1, 3), (0, 2, 3), (0, 1, 2, 3)):
        add("sum", z, axes=axes)
    add("sum", some(300_001), axes=(0,))
    for a, b in (
        ((130, 70), (70, 151)),
        ((11, 5000), (5000, 13)),
        ((6, 33, 40), (6, 40, 37)),
        ((1, 2000), (2000, 90)),
        ((2000, 90), (90, 1)),
    ):
        add("matmul", some(*a), some(*b))
    _large_conv(sheet, some)
    ids = rng.integers(-2, 53, 3000)
    add("take", x, rng.integers(-3, 206, (50, 31)), axis=0)
    add("take", x, rng.integers(0, 331, 400), axis=1)
    add("put_add", some(50, 31), ids, some(3000, 31), axis=0)
    add("put_add", some(31, 50), ids, some(31, 3000), axis=1)
    add("put_along_add", x, rng.integers(0, 331, (203, 400)), some(203, 400), axis=1)
    add("put_along_add", x, rng.integers(0, 203, (400, 331)), some(400, 331), axis=0)
    add("fold", some(40, 200, 3), axis=1, extent=205, stride=1, dilation=2)
    add("window", x, axis=1, size=3, stride=2, dilation=2)
    add("random_bits", np.asarray(np.uint32(9)), np.asarray(np.uint32(3)), shape=(257, 301))
    add("permute", z, axes=(3, 1, 0, 2))
    add("concat", x, y, near_one, axis=1)
    add("pad", x, low=(1, 2), high=(3, 4), value=0.5)
    add("slice", x, start=(202, 0), size=(101, 165), step=(-2, 2))
    return sheet


def _large_conv(sheet: Sheet, some: Callable[..., Array]) -> None:
    for options in (
        {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1},
        {"stride": (2, 1), "padding": ((2, 2), (0, 1)), "dilation": (1, 2), "groups": 3},
    ):
        image, kernel = some(9, 6, 21, 23), some(12, 6 // options["groups"], 3, 3)
        maps = some(*sheet.add(Case("conv", (image, kernel), options)).shape)
        sheet.add(Case("conv_input_grad", (maps, kernel), options | {"size": (21, 23)}))
        sheet.add(Case("conv_weight_grad", (image, maps), options | {"kernel": (3, 3)}))
