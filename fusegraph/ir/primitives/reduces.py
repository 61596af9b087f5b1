"""Reductions over axes, which go away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fusegraph.dtypes import SUPPORTED, DType
from fusegraph.errors import DTypeError, ShapeError
from fusegraph.ir import emit as e
from fusegraph.ir.primitives.base import Array, InferRule, Params, Primitive, Sample, Shape, register, require

_CASES: tuple[tuple[Shape, Shape], ...] = (
    ((7,), (0,)),
    ((3, 5), (0,)),
    ((3, 5), (1,)),
    ((3, 5), (0, 1)),
    ((2, 3, 9), (1,)),
    ((2, 3, 9), (0, 2)),
    ((1, 17), (1,)),
    ((4, 1), (1,)),
    ((33, 70), (1,)),
    ((70, 33), (0,)),
)


def _kept(shape: Shape, axes: Shape) -> Shape:
    return tuple(extent for axis, extent in enumerate(shape) if axis not in axes)


def _infer_reduce(name: str, kinds: str, empty_allowed: bool) -> InferRule:
    def infer(inputs: Any, params: Params) -> tuple[Shape, DType]:
        (value,) = inputs
        axes = params["axes"]
        require(
            all(0 <= axis < len(value.shape) for axis in axes) and len(set(axes)) == len(axes),
            f"{name}: axes {list(axes)} do not fit shape {list(value.shape)}",
        )
        require(
            value.dtype.kind in kinds, lambda: f"{name} does not take {value.dtype.name}{list(value.shape)}", DTypeError
        )
        require(
            empty_allowed or all(value.shape[axis] for axis in axes),
            f"{name} of nothing: shape {list(value.shape)} is empty along {list(axes)}",
        )
        return _kept(value.shape, axes), value.dtype

    return infer


def _samples(rng: np.random.Generator) -> list[Sample]:
    return [((rng.uniform(-2, 2, shape),), {"axes": axes}) for shape, axes in _CASES]


def _vjp_sum(ct: Any, out: Any, inputs: Any, params: Params) -> tuple[Any]:
    (value,) = inputs
    return (e.expand_along(ct, params["axes"], value.shape),)


def first_extreme_mask(op: str, value: Any, axes: Shape) -> Any:
    """True at the first (in C order over `axes`) extreme element along `axes`, False elsewhere."""
    index = e.bind("argmax" if op == "max" else "argmin", value, axes=axes)
    count = int(np.prod([value.shape[axis] for axis in axes], dtype=np.int64))
    ramp = e.iota(count, SUPPORTED["int64"], value)
    ramp = e.reshape(ramp, tuple(value.shape[axis] if axis in axes else 1 for axis in range(len(value.shape))))
    return e.eq(e.expand(ramp, value.shape), e.expand_along(index, axes, value.shape))


def _vjp_extreme(op: str) -> Callable[..., tuple[Any]]:
    def vjp(ct: Any, out: Any, inputs: Any, params: Params) -> tuple[Any]:
        (value,) = inputs
        mask = first_extreme_mask(op, value, params["axes"])
        return (e.where(mask, e.expand_along(ct, params["axes"], value.shape), 0),)

    return vjp


def _vjp_prod(ct: Any, out: Any, inputs: Any, params: Params) -> tuple[Any]:
    """out / x for each factor, exact with one zero among the factors too (then only that factor has a cotangent)."""
    (value,) = inputs
    axes = params["axes"]
    zero = e.eq(value, 0.0)
    others = e.bind("prod", e.where(zero, 1.0, value), axes=axes)
    zeros = e.reduce_sum(e.cast(zero, value.dtype), axes)
    zeros, others, whole = (e.expand_along(part, axes, value.shape) for part in (zeros, others, out))
    at_zero = e.where(e.eq(zeros, 1.0), others, 0.0)
    elsewhere = e.where(e.eq(zeros, 0.0), e.div(whole, e.where(zero, 1.0, value)), 0.0)
    return (e.mul(e.expand_along(ct, axes, value.shape), e.where(zero, at_zero, elsewhere)),)


def _sum(x: Array, axes: Shape) -> Array:
    return np.asarray(np.sum(x, axis=axes, dtype=x.dtype), dtype=x.dtype)


def _argreduce(function: Callable[..., Array]) -> Callable[..., Array]:
    """The first extreme's position, counted in C order over `axes`; a NaN wins (as in numpy)."""

    def run(x: Array, axes: Shape) -> Array:
        kept = [axis for axis in range(x.ndim) if axis not in axes]
        count = int(np.prod([x.shape[axis] for axis in axes], dtype=np.int64))
        moved = np.transpose(x, (*kept, *sorted(axes))).reshape([x.shape[axis] for axis in kept] + [count])
        return np.asarray(function(moved, axis=-1), dtype=np.int64)

    return run


def _infer_arg(name: str) -> InferRule:
    base = _infer_reduce(name, "fiub", empty_allowed=False)

    def infer(inputs: Any, params: Params) -> tuple[Shape, DType]:
        return base(inputs, params)[0], SUPPORTED["int64"]

    return infer


def _errors() -> list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    return [((np.zeros((2, 3)),), {"axes": (2,)}, ShapeError, "do not fit")]


register(
    Primitive("sum", "reduce", _infer_reduce("sum", "fiu", True), _sum, vjp=_vjp_sum, samples=_samples, errors=_errors)
)
register(
    Primitive(
        "prod",
        "reduce",
        _infer_reduce("prod", "fiu", True),
        lambda x, axes: np.asarray(np.prod(x, axis=axes, dtype=x.dtype)),
        vjp=_vjp_prod,
        samples=_samples,
        errors=_errors,
    )
)
register(
    Primitive(
        "max",
        "reduce",
        _infer_reduce("max", "fiub", False),
        lambda x, axes: np.asarray(np.max(x, axis=axes)),
        vjp=_vjp_extreme("max"),
        samples=_samples,
        errors=_errors,
    )
)
register(
    Primitive(
        "min",
        "reduce",
        _infer_reduce("min", "fiub", False),
        lambda x, axes: np.asarray(np.min(x, axis=axes)),
        vjp=_vjp_extreme("min"),
        samples=_samples,
        errors=_errors,
    )
)
register(Primitive("argmax", "reduce", _infer_arg("argmax"), _argreduce(np.argmax), samples=_samples, errors=_errors))
register(Primitive("argmin", "reduce", _infer_arg("argmin"), _argreduce(np.argmin), samples=_samples, errors=_errors))
