"""Functions of float32 in emitted kernels: instructions, and errors against float64, NaN and infinities among the arguments.

The interpreter rounds what the hardware approximates (div.full, sqrt.approx, ex2.approx, ...) correctly; the PTX manual bounds
their errors by 1 to 2 units in the last place. What is measured here is what the instructions around them add.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
from fusegraph.codegen.cuda.step import emit_step
from fusegraph.runtime import cuda_compile
from tests.cuda_traffic import cuda_artifact, measure

pytestmark = pytest.mark.skipif(
    bool(cuda_compile.missing()), reason=f"kernels cannot be compiled: {cuda_compile.missing()}"
)
Array = np.ndarray[Any, Any]
WIDE = np.concatenate(
    [
        np.linspace(-12, 12, 4001),
        np.geomspace(1e-44, 3e38, 2000),
        -np.geomspace(1e-44, 3e38, 2000),
        [0.0, -0.0, np.nan, np.inf, -np.inf],
    ]
).astype(np.float32)


def sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


# name: function, reference, units in the last place, instructions of a warp an element (all included), PTX that must be there
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Array], float, int, str]] = {
    "exp": (lambda x: x.exp(), np.exp, 1.5, 36, "ex2.approx.ftz.f32"),
    "sigmoid": (lambda x: x.sigmoid(), sigmoid, 2.0, 42, "div.full.f32"),
    "tanh": (lambda x: x.tanh(), np.tanh, 2.0, 42, "ex2.approx.ftz.f32"),
    "erf": (lambda x: fg.erf(x), np.vectorize(math.erf), 1.5, 43, "ex2.approx.ftz.f32"),
    "sqrt": (lambda x: x.sqrt(), np.sqrt, 1.0, 19, "sqrt.approx.f32"),
    "rsqrt": (lambda x: x.rsqrt(), lambda x: 1 / np.sqrt(x), 1.5, 19, "rsqrt.approx.f32"),
    "reciprocal": (lambda x: 1 / x, lambda x: 1 / x, 1.0, 19, "div.full.f32"),
    "log": (lambda x: x.log(), np.log, 1.0, 60, "fma.rn.f32"),
}


def units(got: Array, wanted: Array) -> Array:
    """Errors in units of the last place of float32 (of the smallest normal number, for smaller ones)."""
    spacing = np.spacing(np.maximum(np.abs(wanted.astype(np.float32)), np.finfo(np.float32).tiny))
    return np.abs(got.astype(np.float64) - wanted) / spacing


def run(function: Callable[..., Any], *arrays: Array, exact: bool = False) -> tuple[Array, Any]:
    artifact = cuda_artifact(function, *arrays)
    outputs, (launch,) = measure(emit_step(artifact.fused[0], exact), list(arrays))
    return outputs[0], launch


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_and_instructions(name: str, exact: bool) -> None:
    function, reference, most, instructions, ptx = FUNCTIONS[name]
    got, launch = run(function, WIDE, exact=exact)
    with np.errstate(all="ignore"):
        wanted = reference(WIDE.astype(np.float64))
        rounded = wanted.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(rounded))
    normal = np.isfinite(rounded)
    np.testing.assert_array_equal(got[~normal], rounded[~normal])
    assert units(got[normal], wanted[normal]).max() <= most
    if not exact:
        warps = launch.launch.grid[0] * launch.kernel.threads // 32
        assert sum(launch.counters.instructions.values()) / warps <= instructions
        assert any(ptx in instruction.text for instruction in launch.counters.code)


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
def test_division(exact: bool) -> None:
    rng = np.random.default_rng(0)
    a = np.concatenate([np.exp(rng.uniform(-100, 88, 3000)), [0, 0, np.inf, np.inf, np.nan, 1, -1, 1e-45, 3e38]])
    b = np.concatenate([-np.exp(rng.uniform(-100, 88, 3000)), [0, 1, np.inf, 2, 1, 0, 0, 3e38, 1e-45]])
    a, b = a.astype(np.float32), b.astype(np.float32)
    got, launch = run(lambda a, b: a / b, a, b, exact=exact)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(
            got, a / b
        )  # the interpreter divides exactly: this is about the right instruction
    code = " ".join(instruction.text for instruction in launch.counters.code)
    assert ("div.rn.f32" in code, "div.full.f32" in code) == (exact, not exact)
