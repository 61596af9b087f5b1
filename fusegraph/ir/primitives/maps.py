"""Maps: one operand, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fusegraph.dtypes import SUPPORTED, DType, as_dtype
from fusegraph.errors import DTypeError
from fusegraph.ir import emit as e
from fusegraph.ir.primitives.base import Array, InferRule, Params, Primitive, Sample, Shape, register, require

_ANY_SHAPES: tuple[Shape, ...] = ((), (1,), (7,), (3, 5), (0, 4), (2, 3, 9))


def _infer_same(name: str, kinds: str) -> InferRule:
    def infer(inputs: Any, params: Params) -> tuple[Shape, DType]:
        (value,) = inputs
        require(
            value.dtype.kind in kinds, lambda: f"{name} does not take {value.dtype.name}{list(value.shape)}", DTypeError
        )
        return value.shape, value.dtype

    return infer


def _samples(low: float, high: float) -> Callable[[np.random.Generator], list[Sample]]:
    def samples(rng: np.random.Generator) -> list[Sample]:
        return [((rng.uniform(low, high, shape).astype(np.float64),), {}) for shape in _ANY_SHAPES]

    return samples


def _erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype)


def _sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(x.dtype)


def _map(
    name: str,
    reference: Callable[[Array], Array],
    derivative: Callable[[Any, Any, Any], Any] | None,
    *,
    kinds: str = "f",
    cost: str = "cheap",
    low: float = -2.0,
    high: float = 2.0,
    traits: frozenset[str] = frozenset(),
) -> None:
    """Register a map; `derivative(cotangent, output, x)` gives x's cotangent."""
    register(
        Primitive(
            name,
            "map",
            _infer_same(name, kinds),
            lambda x: np.asarray(reference(x), dtype=x.dtype),
            vjp=(lambda ct, out, inputs, params: (derivative(ct, out, inputs[0]),)) if derivative else None,
            cost=cost,
            traits=traits,
            samples=_samples(low, high),
        )
    )


def _two_over_root_pi_exp(ct: Any, out: Any, x: Any) -> Any:
    return e.mul(ct, e.mul(e.bind("exp", e.neg(e.mul(x, x))), 2 / math.sqrt(math.pi)))


_map("neg", np.negative, lambda ct, out, x: e.neg(ct), kinds="fi")
_map("abs", np.abs, lambda ct, out, x: e.mul(ct, e.bind("sign", x)), kinds="fi")
_map("sign", np.sign, lambda ct, out, x: e.full_like(x, 0), kinds="fi", low=0.1)
_map("floor", np.floor, lambda ct, out, x: e.full_like(x, 0))
_map("ceil", np.ceil, lambda ct, out, x: e.full_like(x, 0))
_map("round", np.round, lambda ct, out, x: e.full_like(x, 0))
_map("exp", np.exp, lambda ct, out, x: e.mul(ct, out), cost="transcendental")
_map("expm1", np.expm1, lambda ct, out, x: e.mul(ct, e.add(out, 1.0)), cost="transcendental")
_map("log", np.log, lambda ct, out, x: e.div(ct, x), cost="transcendental", low=0.2)
_map("log1p", np.log1p, lambda ct, out, x: e.div(ct, e.add(x, 1.0)), cost="transcendental", low=-0.7)
_map("sqrt", np.sqrt, lambda ct, out, x: e.div(e.mul(ct, 0.5), out), cost="div", low=0.2)
_map("rsqrt", lambda x: 1 / np.sqrt(x), lambda ct, out, x: e.mul(ct, e.mul(e.div(out, x), -0.5)), cost="div", low=0.2)
_map("tanh", np.tanh, lambda ct, out, x: e.mul(ct, e.sub(1.0, e.mul(out, out))), cost="transcendental")
_map("sigmoid", _sigmoid, lambda ct, out, x: e.mul(ct, e.mul(out, e.sub(1.0, out))), cost="transcendental")
_map("erf", _erf, _two_over_root_pi_exp, cost="transcendental")
_map("sin", np.sin, lambda ct, out, x: e.mul(ct, e.bind("cos", x)), cost="transcendental")
_map("cos", np.cos, lambda ct, out, x: e.neg(e.mul(ct, e.bind("sin", x))), cost="transcendental")


def _relu(x: Array) -> Array:
    return np.where(x > 0, x, np.where(np.isnan(x), x, x.dtype.type(0)))


_map("relu", _relu, lambda ct, out, x: e.where(e.gt(out, 0), ct, 0), kinds="fi", low=-2.0)


def _infer_bool(name: str, kinds: str) -> InferRule:
    def infer(inputs: Any, params: Params) -> tuple[Shape, DType]:
        (value,) = inputs
        require(
            value.dtype.kind in kinds, lambda: f"{name} does not take {value.dtype.name}{list(value.shape)}", DTypeError
        )
        return value.shape, SUPPORTED["bool"]

    return infer


def _nan_samples(rng: np.random.Generator) -> list[Sample]:
    return [((np.where(rng.random(shape) < 0.5, np.nan, 1.0),), {}) for shape in _ANY_SHAPES]


register(
    Primitive(
        "logical_not",
        "map",
        _infer_bool("logical_not", "b"),
        np.logical_not,
        traits=frozenset({"boolean"}),
        samples=lambda rng: [((rng.random(shape) < 0.5,), {}) for shape in _ANY_SHAPES],
    )
)
register(
    Primitive("isnan", "map", _infer_bool("isnan", "f"), np.isnan, traits=frozenset({"boolean"}), samples=_nan_samples)
)


def _infer_cast(inputs: Any, params: Params) -> tuple[Shape, DType]:
    return inputs[0].shape, as_dtype(params["dtype"])


def _vjp_cast(ct: Any, out: Any, inputs: Any, params: Params) -> tuple[Any]:
    (value,) = inputs
    return (e.cast(ct, value.dtype) if value.dtype.kind == "f" and ct.dtype.kind == "f" else None,)


def _cast_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        ((np.asarray(rng.uniform(0, 50, (3, 5))).astype(source),), {"dtype": target})
        for source in SUPPORTED
        for target in SUPPORTED
        if source != target
    ]


register(Primitive("cast", "map", _infer_cast, lambda x, dtype: x.astype(dtype), vjp=_vjp_cast, samples=_cast_samples))


def _infer_check_index(inputs: Any, params: Params) -> tuple[Shape, DType]:
    (value,) = inputs
    require(
        value.dtype.kind in "iu",
        lambda: f"an index must be an integer, got {value.dtype.name}{list(value.shape)}",
        DTypeError,
    )
    return value.shape, value.dtype


def _check_index(x: Array, low: int, high: int, allow: int | None, what: str) -> Array:
    from fusegraph.errors import IndexRangeError

    bad = (x < low) | (x >= high)
    if allow is not None:
        bad &= x != allow
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise IndexRangeError(f"{what} {x[place]} at {list(place)} is outside of [{low}, {high})")
    return x


# The identity, with a promise that is checked before a step changes anything: low <= x < high, or x == allow.
register(
    Primitive(
        "check_index",
        "view",
        _infer_check_index,
        _check_index,
        traits=frozenset({"guard"}),
        samples=lambda rng: [((rng.integers(0, 5, (4,)),), {"low": 0, "high": 5, "allow": None, "what": "index"})],
    )
)
