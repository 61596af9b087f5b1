"""Vector math against float64 numpy: accuracy over all exponents, special values, lane counts, module contents."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable

import numpy as np
import pytest

from fusegraph.codegen.cpu.irtext import FunctionBuilder, Module
from fusegraph.codegen.cpu.irvector import VectorOps
from fusegraph.codegen.cpu.vecmath import FUNCTIONS, VectorMath
from fusegraph.runtime import llvm

UNARY = [name for name in FUNCTIONS if name != "pow"]
MAX_ULP = 2.5
_DTYPES = {"float": np.float32, "double": np.float64}


@functools.cache
def kernel(name: str, lanes: int, element: str, exact: bool) -> tuple[llvm.LoadedCode, Callable[..., None]]:
    """A native loop out[i] = name(x[i], y[i]) over a multiple of ``lanes`` elements."""
    module = Module(256)
    fn = module.function("kernel", ["ptr noalias %x", "ptr noalias %y", "ptr noalias %out", "i64 %n"], linkage="")
    v = VectorOps(fn, lanes, element)
    with fn.loop(0, "%n", lanes) as loop:
        sources = ["%x", "%y"] if name in ("pow", "erf_beside_exp") else ["%x"]
        operands = [v.load(fn.gep(source, loop.index, element)) for source in sources]
        result = VectorMath(module, lanes, element, exact).call(fn, name, *operands)
        v.store(result, fn.gep("%out", loop.index, element))
    code = llvm.load(llvm.compile_ir(module.text()), ["kernel"])
    pointers = [ctypes.c_void_p] * 3
    return code, ctypes.CFUNCTYPE(None, *pointers, ctypes.c_int64)(code.address("kernel"))


def evaluate(
    name: str, *operands: np.ndarray, lanes: int = 8, element: str = "float", exact: bool = False
) -> np.ndarray:
    """Run the generated function on arrays of any length."""
    _, run = kernel(name, lanes, element, exact)
    size = operands[0].size
    padded = [np.resize(np.asarray(a, _DTYPES[element]), -(-size // lanes) * lanes) for a in operands]
    out = np.empty_like(padded[0])
    run(padded[0].ctypes.data, padded[-1].ctypes.data, out.ctypes.data, out.size)
    return out[:size]


def sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


def erf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(value) for value in x.tolist()])


def reference(name: str, *operands: np.ndarray, wide: type = np.float64) -> np.ndarray:
    """The function in a wider format."""
    functions = {"sigmoid": sigmoid, "erf": erf, "pow": np.power, "rsqrt": lambda x: 1.0 / np.sqrt(x)}
    with np.errstate(all="ignore"):
        return functions.get(name, getattr(np, name, None))(*[a.astype(wide) for a in operands])


def float32_samples(step: int, seed: int) -> np.ndarray:
    """Every ``step``-th of all 2**32 floats, from a random start: all exponents, denormals, infinities and NaNs."""
    start = np.random.default_rng(seed).integers(step)
    return np.arange(start, 1 << 32, step, dtype=np.uint64).astype(np.uint32).view(np.float32)


def edges() -> np.ndarray:
    """Neighbourhoods (64 floats either side) of zeros, thresholds, and of where functions overflow and underflow."""
    points = [0.0, 2.0**-126, 2.0**-25, 0.5, 0.6, 0.83, 1.0, 1.25, 2.0, 4.0, 9.0, 10.0, 17.3, 18.0, 87.33655, 88.0]
    points += [88.72284, 89.0, 103.27893, 103.97208, 104.0, 131072.0, 3.4028235e38, math.sqrt(0.5), math.sqrt(2.0)]
    points += [math.log(2) / 2, *(k * math.pi / 4 for k in range(1, 65)), *(k * math.log(2) / 2 for k in range(200))]
    bits = np.array(points, np.float32).view(np.uint32).astype(np.int64)
    near = np.clip(bits[:, None] + np.arange(-64, 65), 0, 0x7F800000).astype(np.uint32).view(np.float32).ravel()
    return np.concatenate([near, -near, np.float32([np.inf, -np.inf, np.nan])])


def assert_close(name: str, got: np.ndarray, want: np.ndarray, limit: float, *operands: np.ndarray) -> None:
    """Finite results within ``limit`` ulp of their own format, others (inf, NaN) and the sign of zeros equal."""
    info = np.finfo(got.dtype)
    with np.errstate(all="ignore"):
        rounded = want.astype(got.dtype)
        finite = np.isfinite(rounded) & np.isfinite(got)
        _, exponent = np.frexp(np.where(finite, want, 1.0))
        unit = np.ldexp(want.dtype.type(1.0), np.maximum(exponent - 1, info.minexp) - info.nmant)
        error = np.where(finite, np.abs(got - want) / unit, 0.0)
        same = (got == rounded) & (np.signbit(got) == np.signbit(rounded)) | (np.isnan(got) & np.isnan(rounded))
        wrong = np.where(finite & (want != 0.0), error > limit, ~same)
    at = np.flatnonzero(wrong)[:5]
    shown = [f"{name}{tuple(float(a[k]) for a in operands)} = {got[k]!r}, not {want[k]!r}" for k in at]
    assert not wrong.any(), f"{wrong.sum()} wrong, largest error {error.max():.3f} ulp: " + "; ".join(shown)


@pytest.mark.parametrize("name", UNARY)
def test_float32_accuracy_over_all_exponents(name: str) -> None:
    x = float32_samples(1021, seed=len(name))
    assert_close(name, evaluate(name, x), reference(name, x), MAX_ULP, x)


@pytest.mark.parametrize("name", UNARY)
def test_float32_accuracy_at_edges(name: str) -> None:
    x = edges()
    assert_close(name, evaluate(name, x), reference(name, x), MAX_ULP, x)


@pytest.mark.parametrize("name", UNARY)
def test_float32_accuracy_where_models_live(name: str) -> None:
    x = np.random.default_rng(7).normal(0.0, 4.0, 1 << 19).astype(np.float32)
    assert_close(name, evaluate(name, x), reference(name, x), MAX_ULP, x)


SPECIALS = {
    "exp": [(math.inf, math.inf), (-math.inf, 0.0), (0.0, 1.0), (-0.0, 1.0)],
    "expm1": [(math.inf, math.inf), (-math.inf, -1.0), (-0.0, -0.0)],
    "log": [(0.0, -math.inf), (-0.0, -math.inf), (-1.0, math.nan), (-math.inf, math.nan), (math.inf, math.inf), (1, 0)],
    "log1p": [(-1.0, -math.inf), (-1.5, math.nan), (math.inf, math.inf), (-0.0, -0.0), (-math.inf, math.nan)],
    "tanh": [(math.inf, 1.0), (-math.inf, -1.0), (-0.0, -0.0)],
    "sigmoid": [(math.inf, 1.0), (-math.inf, 0.0), (0.0, 0.5), (-0.0, 0.5)],
    "erf": [(math.inf, 1.0), (-math.inf, -1.0), (-0.0, -0.0)],
    "sin": [(math.inf, math.nan), (-math.inf, math.nan), (-0.0, -0.0), (2.0**70, -0.998179402193)],
    "cos": [(math.inf, math.nan), (-math.inf, math.nan), (0.0, 1.0), (2.0**70, 0.0603148492248)],
    "sqrt": [(-1.0, math.nan), (-0.0, -0.0), (math.inf, math.inf)],
    "rsqrt": [(0.0, math.inf), (-0.0, -math.inf), (-1.0, math.nan), (math.inf, 0.0)],
}
# float32 arguments or results that are denormal
DENORMAL = {
    "exp": [(-103.97, 2.0**-149), (-104.5, 0.0), (-100.0, 27 * 2.0**-149)],
    "expm1": [(2.0**-149, 2.0**-149), (-1e-40, -1e-40)],
    "log": [(2.0**-149, -103.278929903)],
    "log1p": [(-1e-42, -1e-42)],
    "tanh": [(1e-42, 1e-42)],
    "sigmoid": [(-100.0, 27 * 2.0**-149)],
}


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("element", ["float", "double"])
@pytest.mark.parametrize("name", UNARY)
def test_special_values(name: str, element: str, exact: bool) -> None:
    cases = SPECIALS[name] + (DENORMAL.get(name, []) if element == "float" else [])
    x, want = np.array(cases, _DTYPES[element]).T
    got = evaluate(name, x, element=element, exact=exact)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=0)
    zeros = want == 0
    assert (np.signbit(got[zeros]) == np.signbit(want[zeros])).all()


@pytest.mark.parametrize("lanes", [1, 8])
@pytest.mark.parametrize("name", UNARY)
def test_every_nan_stays_nan(name: str, lanes: int) -> None:
    payloads = np.random.default_rng(3).integers(1, 1 << 23, 4096).astype(np.uint32)
    x = np.concatenate([payloads | 0x7F800000, payloads | 0xFF800000]).astype(np.uint32).view(np.float32)
    assert np.isnan(evaluate(name, x, lanes=lanes)).all()
    if name == "exp":
        one = np.ones_like(x) * 2
        assert np.isnan(evaluate("pow", x, one)).all() and np.isnan(evaluate("pow", one, x)).all()


@pytest.mark.parametrize("lanes", [1, 4, 16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_lane_counts_agree_bit_for_bit(name: str, lanes: int) -> None:
    # the argument at which sin and cos turn to the library is decided by vector, so it differs between lane counts
    x = np.concatenate([edges(), float32_samples(1 << 16, seed=1)])
    x = x[~(np.abs(x) > 131072.0)] if name in ("sin", "cos") else x
    x = x[~np.isnan(x)]
    y = x[::-1] if name == "pow" else x
    got, want = evaluate(name, x, y, lanes=lanes), evaluate(name, x, y, lanes=8)
    same = (got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))
    assert same.all(), (x[~same][:5], got[~same][:5], want[~same][:5])


@pytest.mark.parametrize("element", ["float", "double"])
def test_exp_of_negative_is_exp(element: str) -> None:
    rng = np.random.default_rng(23)
    x = -np.concatenate([np.abs(edges()), np.exp(rng.uniform(-20, 7, 1 << 16)), rng.uniform(0, 110, 1 << 16)])
    x = x.astype(_DTYPES[element])
    got, want = (evaluate(name, x, element=element) for name in ("exp_of_negative", "exp"))
    np.testing.assert_array_equal(got, want)


def test_erf_beside_exp_accuracy() -> None:
    x = np.concatenate([edges(), float32_samples(4099, seed=7), np.linspace(-4.5, 4.5, 1 << 16, dtype=np.float32)])
    with np.errstate(all="ignore"):
        beside = evaluate("exp_of_negative", -(x * x))
    assert_close("erf", evaluate("erf_beside_exp", x, beside), reference("erf", x), MAX_ULP, x)


def test_trigonometry_in_vectors_with_one_large_lane() -> None:
    x = np.random.default_rng(5).uniform(-3, 3, 64).astype(np.float32)
    x[::8] = 1e30
    for name in ("sin", "cos"):
        assert_close(name, evaluate(name, x), reference(name, x), MAX_ULP, x)


POW_SPECIALS = np.float32(
    [0.0, 1.0, 2.0, 0.5, 3.0, 2.5, 1e-45, 1e-38, 1e38, np.inf, 16777216, 16777215, 33554432, 0.99999994, 1.0000001]
    + [127, 128, 149, 150, 8388607.5]
)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("lanes", [1, 8])
def test_pow_special_values(lanes: int, exact: bool) -> None:
    values = np.concatenate([POW_SPECIALS, -POW_SPECIALS, np.float32([np.nan])])
    x, y = (grid.ravel() for grid in np.meshgrid(values, values))
    assert_close("pow", evaluate("pow", x, y, lanes=lanes, exact=exact), reference("pow", x, y), 1.0, x, y)


def pow_samples(kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng, n = np.random.default_rng(11), 1 << 20
    if kind == "all bits":
        x, y = (rng.integers(0, 1 << 32, n, dtype=np.uint64).astype(np.uint32).view(np.float32) for _ in range(2))
    elif kind == "positive base":
        x, y = np.exp2(rng.uniform(-149, 128, n)), rng.uniform(-5, 5, n)
    elif kind == "base near one":
        x, y = 1 + rng.normal(0, 1e-3, n), rng.uniform(-1e5, 1e5, n)
    else:
        x, y = rng.uniform(-10, 10, n), rng.integers(-40, 40, n)
    return np.asarray(x, np.float32), np.asarray(y, np.float32)


@pytest.mark.parametrize("kind", ["all bits", "positive base", "base near one", "whole exponent"])
def test_pow_accuracy(kind: str) -> None:
    x, y = pow_samples(kind)
    assert_close("pow", evaluate("pow", x, y), reference("pow", x, y), 0.6, x, y)


def float64_samples() -> np.ndarray:
    rng, n = np.random.default_rng(17), 1 << 18
    wide = rng.choice([-1.0, 1.0], n) * np.exp(rng.uniform(-45, 12, n))
    bits = rng.integers(0, 1 << 64, n, dtype=np.uint64).view(np.float64)
    return np.concatenate([rng.normal(0, 4, n), wide, bits, rng.uniform(-750, 715, n)])


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="needs a long double of 64 bits as the reference")
@pytest.mark.parametrize("name", [name for name in UNARY if name != "erf"])
def test_float64_accuracy(name: str) -> None:
    x = float64_samples()
    assert_close(name, evaluate(name, x, lanes=4, element="double"), reference(name, x, wide=np.longdouble), MAX_ULP, x)


def test_float64_erf_accuracy() -> None:
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(19)
    x = np.concatenate([rng.normal(0, 1.5, 3000), np.linspace(0.8, 0.9, 500), np.exp(rng.uniform(-40, 2, 500))])
    with mpmath.workprec(120):
        exact = [mpmath.erf(mpmath.mpf(value)) for value in x.tolist()]
        got = evaluate("erf", x, lanes=4, element="double")
        error = [abs(mpmath.mpf(g) - e) / math.ulp(float(e)) for g, e in zip(got.tolist(), exact, strict=True)]
    assert max(error) < MAX_ULP


@pytest.mark.parametrize("element", ["float", "double"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_library_calls(name: str, element: str) -> None:
    rng = np.random.default_rng(13)
    x, y = rng.uniform(0.01, 20, 1 << 14), rng.uniform(-3, 3, 1 << 14)
    x, y = x.astype(_DTYPES[element]), y.astype(_DTYPES[element])
    got = evaluate(name, x, y, lanes=4, element=element, exact=True)
    want = reference(name, x, y) if name == "pow" else reference(name, x)
    np.testing.assert_allclose(got, want, rtol=4 * np.finfo(_DTYPES[element]).eps)


@pytest.mark.parametrize("element", ["float", "double"])
@pytest.mark.parametrize("exponent", [2.0, 3.0, 4.0, 1.0, 0.5, -1.0, -2.0, -3.0, -0.5, 2.5, 0.0])
def test_power_with_a_constant_exponent(exponent: float, element: str) -> None:
    module = Module(256)
    v_type = "<8 x float>" if element == "float" else "<8 x double>"
    fn = module.function("kernel", ["ptr %x"], linkage="")
    x = fn.load(v_type, "%x")
    fn.store(v_type, VectorMath(module, 8, element).power(fn, x, exponent), "%x")
    code = llvm.load(llvm.compile_ir(module.text()), ["kernel"])
    data = np.array([0.25, 0.3, 1.0, 1.7, 3.0, 10.0, 1e9, 7e-9], _DTYPES[element])
    want = data.astype(np.float64) ** exponent
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code.address("kernel"))(data.ctypes.data)
    np.testing.assert_allclose(data, want, rtol=3 * np.finfo(data.dtype).eps)
    assert ("fg_pow" in module.text()) == (exponent in (2.5, 0.0, -3.0))


def test_module_defines_only_what_is_used_and_only_once() -> None:
    module = Module(256)
    for number in range(2):
        fn = module.function(f"k{number}", ["<8 x float> %x"], returns="<8 x float>", linkage="")
        fn.ret("<8 x float>", VectorMath(module, 8, "float").call(fn, "exp", "%x"))
    text = module.text()
    assert text.count("define") == 3 and text.count("@fg_exp_8xfloat(<8 x float> %x)") == 3
    llvm.compile_ir(text)


def test_unknown_function_and_element_are_refused() -> None:
    with pytest.raises(ValueError, match="no function 'gamma'"):
        VectorMath(Module(), 8, "float").call(FunctionBuilder("f", []), "gamma", "%x")
    with pytest.raises(ValueError, match="float or double"):
        VectorMath(Module(), 8, "i32")
