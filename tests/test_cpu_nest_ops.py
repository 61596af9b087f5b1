"""Every operation of every dtype as explicit-vector code, against the numpy interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from loop_reference import reference_loop
from loop_tools import run_loop
from nest_cases import (
    BITS,
    Case,
    I,
    axes_of,
    compare,
    values,
)

from fusegraph.dtypes import SUPPORTED, bool_, float32, float64, int32, int64, uint8, uint32
from fusegraph.errors import DTypeError
from fusegraph.ir.loops import Loop, Stage, Store
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.ir.scalar import const, op

RELATIVE = {"exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "sin", "cos", "pow", "rsqrt"}
SPECIAL_FLOATS = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -0.5,
    1.5,
    2.5,
    -2.5,
    np.nan,
    np.inf,
    -np.inf,
    1e-40,
    3e38,
    -3e38,
    7.25,
    1e-3,
]


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


# -- every operation ---------------------------------------------------------------------------------------------------


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
        stores.append(
            Store(case.output(target.name, (9,), target), (I(i),), op("cast", case.load("n", (i,)), dtype=target))
        )
    case.check(Loop("wrap", (i,), (Stage(stores=tuple(stores)),)), rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_where(name):
    case, dtype = Case(), SUPPORTED[name]
    (i,) = axes_of(45)
    case.input("c", (45,), bool_)
    case.input("x", (45,), dtype)
    case.input("y", (45,), dtype)
    value = op("where", case.load("c", (i,)), case.load("x", (i,)), case.load("y", (i,)))
    case.check(
        Loop("pick", (i,), (Stage(stores=(Store(case.output("o", (45,), dtype), (I(i),), value),)),)), rtol=0, bits=BITS
    )


def test_constants_of_every_dtype():
    case = Case()
    (i,) = axes_of(11)
    stores = []
    for dtype, value in (
        (float32, np.nan),
        (float64, -np.inf),
        (float32, -0.0),
        (int32, -5),
        (uint32, 2**32 - 1),
        (uint8, 255),
        (int64, -(2**63)),
        (bool_, True),
        (float32, 0.1),
    ):
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
