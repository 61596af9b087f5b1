"""The PTX interpreter's floating-point instructions and conversions, against numpy and exact fractions."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from ptx.ir import DTYPES
from ptx.snippet import evaluate

F32 = np.float32
TINY = float(np.finfo(F32).tiny)


def floats(kind: str, rng: np.random.Generator, count: int = 2, special: bool = True) -> list[np.ndarray]:
    """Arrays of a float type: every pair of special values meets, and random ones over many magnitudes."""
    dtype = DTYPES[kind]
    info = np.finfo(dtype)
    odd = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        1.5,
        -2.5,
        0.1,
        np.inf,
        -np.inf,
        np.nan,
        info.max,
        info.tiny,
        info.tiny / 4,
        -info.tiny / 4,
    ]
    values = np.array(odd if special else [0.5, -3.0], dtype)
    one, two = (grid.reshape(-1) for grid in np.meshgrid(values, values))
    scale = 4 if kind == "f16" else 20
    noise = [(rng.standard_normal(200) * 2.0 ** rng.integers(-scale, scale, 200)).astype(dtype) for _ in range(3)]
    return [np.concatenate([x, n]) for x, n in zip((one, two, np.roll(one, 3)), noise)][:count]


def same(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal to the last bit, zeros with their signs; any NaN equals any other."""
    np.testing.assert_array_equal(got, expected)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got[number]), np.signbit(expected[number]))


ARITHMETIC = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div.rn": np.divide}


CASES = [(name, kind) for name in ARITHMETIC for kind in ("f16", "f32", "f64") if (name, kind) != ("div.rn", "f16")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_arithmetic(name: str, kind: str, rng: np.random.Generator) -> None:
    a, b = floats(kind, rng)
    with np.errstate(all="ignore"):
        expected = ARITHMETIC[name](a, b)
    same(evaluate(f"{name}.{kind} %d, %a, %b;", [kind, kind], [a, b], kind), expected)


def exactly(value: Fraction, mode: str) -> np.float32:
    """A fraction rounded to float32 in a direction, by comparing with exact fractions."""
    near = F32(float(value))
    steps = [near, np.nextafter(near, F32(-np.inf)), np.nextafter(near, F32(np.inf))]
    below = max(s for s in steps if Fraction(float(s)) <= value)
    above = min(s for s in steps if Fraction(float(s)) >= value)
    if mode == "rn":
        return min((below, above), key=lambda s: (abs(Fraction(float(s)) - value), int(s.view(np.uint32)) & 1))
    return {"rm": below, "rp": above, "rz": below if value >= 0 else above}[mode]


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_rounding_modes(mode: str, rng: np.random.Generator) -> None:
    """Sums, products, quotients and fused products, each rounded once from the exact value."""
    a, b, c = (rng.standard_normal(150).astype(F32) for _ in range(3))
    cases: dict[str, Callable[..., Fraction]] = {
        f"add.{mode}.f32 %d, %a, %b;": lambda x, y, z: x + y,
        f"mul.{mode}.f32 %d, %a, %b;": lambda x, y, z: x * y,
        f"div.{mode}.f32 %d, %a, %b;": lambda x, y, z: x / y,
        f"fma.{mode}.f32 %d, %a, %b, %c;": lambda x, y, z: x * y + z,
        f"rcp.{mode}.f32 %d, %a;": lambda x, y, z: 1 / x,
    }
    for code, oracle in cases.items():
        got = evaluate(code, ["f32"] * 3, [a, b, c], "f32")
        expected = [exactly(oracle(*(Fraction(float(v)) for v in row)), mode) for row in zip(a, b, c)]
        np.testing.assert_array_equal(got, np.array(expected), err_msg=code)


def test_fma_keeps_the_exact_product() -> None:
    """(1 + 2**-12)**2 - (1 + 2**-11) is 2**-24, which a product rounded to float32 loses."""
    a, c = np.array([1 + 2.0**-12], F32), np.array([-1 - 2.0**-11], F32)
    assert evaluate("fma.rn.f32 %d, %a, %a, %b;", ["f32"] * 2, [a, c], "f32")[0] == F32(2.0**-24)
    assert evaluate("mul.f32 %f0, %a, %a;\n add.f32 %d, %f0, %b;", ["f32"] * 2, [a, c], "f32")[0] == 0


@pytest.mark.parametrize("kind", ["f16", "f32", "f64"])
def test_min_max(kind: str, rng: np.random.Generator) -> None:
    """A number beats NaN, except with .NaN; the zeros are ordered."""
    a, b = floats(kind, rng)
    low = np.where((a == 0) & (b == 0), np.where(np.signbit(a) | np.signbit(b), -0.0, 0.0), np.fmin(a, b))
    high = np.where((a == 0) & (b == 0), np.where(np.signbit(a) & np.signbit(b), -0.0, 0.0), np.fmax(a, b))
    same(evaluate(f"min.{kind} %d, %a, %b;", [kind, kind], [a, b], kind), low.astype(a.dtype))
    same(evaluate(f"max.{kind} %d, %a, %b;", [kind, kind], [a, b], kind), high.astype(a.dtype))
    either = np.isnan(a) | np.isnan(b)
    same(
        evaluate(f"max.NaN.{kind} %d, %a, %b;", [kind, kind], [a, b], kind),
        np.where(either, np.nan, high).astype(a.dtype),
    )


def test_signs(rng: np.random.Generator) -> None:
    a, b = floats("f32", rng)
    same(evaluate("neg.f32 %d, %a;", ["f32"], [a], "f32"), -a)
    same(evaluate("abs.f32 %d, %a;", ["f32"], [a], "f32"), np.abs(a))
    same(evaluate("copysign.f32 %d, %a, %b;", ["f32"] * 2, [a, b], "f32"), np.copysign(b, a))


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ex2.approx.f32": np.exp2,
    "lg2.approx.f32": np.log2,
    "sin.approx.f32": np.sin,
    "cos.approx.f32": np.cos,
    "tanh.approx.f32": np.tanh,
    "sqrt.rn.f32": np.sqrt,
    "sqrt.approx.f32": np.sqrt,
    "rsqrt.approx.f32": lambda x: 1 / np.sqrt(x),
    "rcp.approx.f32": lambda x: 1 / x,
    "sqrt.rn.f64": np.sqrt,
    "rcp.rn.f64": lambda x: 1 / x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, rng: np.random.Generator) -> None:
    kind = name[-3:]
    (a,) = floats(kind, rng, 1)
    with np.errstate(all="ignore"):
        expected = FUNCTIONS[name](a.astype(np.float64)).astype(a.dtype)
    same(evaluate(f"{name} %d, %a;", [kind], [a], kind), expected)


def test_flush_to_zero_and_saturation(rng: np.random.Generator) -> None:
    a, b = floats("f32", rng)
    flush = lambda x: np.where(np.abs(x) < TINY, np.copysign(F32(0), x), x)  # noqa: E731
    with np.errstate(all="ignore"):
        same(evaluate("add.ftz.f32 %d, %a, %b;", ["f32"] * 2, [a, b], "f32"), flush(flush(a) + flush(b)))
        same(evaluate("mul.ftz.f32 %d, %a, %b;", ["f32"] * 2, [a, b], "f32"), flush(flush(a) * flush(b)))
        clipped = evaluate("add.sat.f32 %d, %a, %b;", ["f32"] * 2, [a, b], "f32")
        np.testing.assert_array_equal(clipped, np.nan_to_num(np.clip(a + b, 0, 1), nan=0.0))


@pytest.mark.parametrize("name", ["lt", "ne", "eq", "ltu", "neu", "equ", "geu", "num", "nan"])
def test_comparisons_with_nan(name: str, rng: np.random.Generator) -> None:
    """Ordered comparisons are false with a NaN, unordered ones true."""
    a, b = floats("f32", rng)
    nan = np.isnan(a) | np.isnan(b)
    base = {"lt": a < b, "ne": a != b, "eq": a == b, "ge": a >= b}.get(name[:2], nan)
    expected = {"num": ~nan, "nan": nan}.get(name, base | nan if len(name) == 3 else base & ~nan)
    got = evaluate(f"setp.{name}.f32 %p0, %a, %b;\n selp.u32 %d, 1, 0, %p0;", ["f32"] * 2, [a, b], "u32")
    np.testing.assert_array_equal(got.astype(bool), expected)


def test_classes_of_numbers(rng: np.random.Generator) -> None:
    (a,) = floats("f32", rng, 1)
    expected = {"finite": np.isfinite(a), "infinite": np.isinf(a), "notanumber": np.isnan(a), "number": ~np.isnan(a)}
    expected["subnormal"] = (a != 0) & (np.abs(a) < TINY)
    for name, truth in expected.items():
        got = evaluate(f"testp.{name}.f32 %p0, %a;\n selp.u32 %d, 1, 0, %p0;", ["f32"], [a], "u32")
        np.testing.assert_array_equal(got.astype(bool), truth, err_msg=name)


@pytest.mark.parametrize("out", ["s32", "u32", "s64", "u64", "s16", "u8"])
@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
def test_floats_to_integers(mode: str, out: str, rng: np.random.Generator) -> None:
    """Rounded as asked, saturated, NaN to 0."""
    (a,) = floats("f32", rng, 1)
    a = np.concatenate(
        [a, np.array([0.5, 1.5, 2.5, -0.5, -1.5, 2.0**31, 2.0**32, -(2.0**31), 2.0**63, 300, -300], F32)]
    )
    rounding = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[mode]
    limits = np.iinfo(DTYPES[out])
    whole = [0 if np.isnan(v) else v if np.isinf(v) else int(rounding(np.float64(v))) for v in a]
    expected = [int(max(limits.min, min(limits.max, v))) for v in whole]
    assert evaluate(f"cvt.{mode}.{out}.f32 %d, %a;", ["f32"], [a], out).tolist() == expected


def test_integers_to_floats(rng: np.random.Generator) -> None:
    a = rng.integers(-(2**63), 2**63 - 1, 300)
    same(
        evaluate("cvt.rn.f32.s64 %d, %a;", ["s64"], [a], "f32"), np.array([exactly(Fraction(int(v)), "rn") for v in a])
    )
    same(
        evaluate("cvt.rz.f32.s64 %d, %a;", ["s64"], [a], "f32"), np.array([exactly(Fraction(int(v)), "rz") for v in a])
    )
    small = rng.integers(0, 2**32, 300).astype(np.uint32)
    same(evaluate("cvt.rn.f32.u32 %d, %a;", ["u32"], [small], "f32"), small.astype(F32))
    same(evaluate("cvt.rn.f64.u32 %d, %a;", ["u32"], [small], "f64"), small.astype(np.float64))


def test_floats_to_floats(rng: np.random.Generator) -> None:
    (wide,) = floats("f64", rng, 1)
    with np.errstate(all="ignore"):
        same(evaluate("cvt.rn.f32.f64 %d, %a;", ["f64"], [wide], "f32"), wide.astype(F32))
    (a,) = floats("f32", rng, 1)
    with np.errstate(all="ignore"):
        same(evaluate("cvt.rn.f16.f32 %d, %a;", ["f32"], [a], "f16"), a.astype(np.float16))
        half = a.astype(np.float16)
    same(evaluate("cvt.f64.f32 %d, %a;", ["f32"], [a], "f64"), a.astype(np.float64))
    same(evaluate("cvt.f32.f16 %d, %a;", ["f16"], [half], "f32"), half.astype(F32))
    for mode, function in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)):
        same(evaluate(f"cvt.{mode}.f32.f32 %d, %a;", ["f32"], [a], "f32"), function(a))
    np.testing.assert_array_equal(
        evaluate("cvt.sat.f32.f32 %d, %a;", ["f32"], [a], "f32"), np.nan_to_num(np.clip(a, 0, 1), nan=0.0)
    )


def test_bfloat16_and_tf32(rng: np.random.Generator) -> None:
    """Both drop the last bits of a float32: bfloat16 to nearest even, tf32 with ties away from zero."""
    a = np.concatenate([rng.standard_normal(300).astype(F32), np.array([np.inf, -np.inf, 0, -0.0], F32)])
    narrow = evaluate("cvt.rn.bf16.f32 %d, %a;", ["f32"], [a], "b16")
    back = evaluate("cvt.f32.bf16 %d, %a;", ["b16"], [narrow], "f32")
    finite = np.isfinite(a)
    step = 2.0 ** (np.floor(np.log2(np.abs(np.where(a == 0, 1, a)))) - 7)
    assert np.all(np.abs(back[finite] - a[finite]) <= step[finite] / 2)
    assert np.array_equal(back[~finite], a[~finite])
    tie = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8], F32)
    even = evaluate("cvt.rn.bf16.f32 %h0, %a;\n cvt.f32.bf16 %d, %h0;", ["f32"], [tie], "f32")
    np.testing.assert_array_equal(even, np.array([1, 1 + 2.0**-6], F32))
    away = evaluate("cvt.rna.tf32.f32 %d, %a;", ["f32"], [np.array([1 + 2.0**-11, -1 - 2.0**-11], F32)], "f32")
    np.testing.assert_array_equal(away, np.array([1 + 2.0**-10, -1 - 2.0**-10], F32))
    pair = evaluate("cvt.rn.bf16x2.f32 %d, %a, %b;", ["f32"] * 2, [a, -a], "b32")
    np.testing.assert_array_equal(pair >> 16, narrow)
