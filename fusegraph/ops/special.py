"""Functions of elements that are composed of others."""

from __future__ import annotations

import math
from typing import Any

from fusegraph.dtypes import float32, is_float
from fusegraph.errors import DTypeError
from fusegraph.ops import elementwise as ew
from fusegraph.ops import reduce
from fusegraph.tensor import Tensor, as_tensor, user_error

__all__ = [
    "addcdiv",
    "addcmul",
    "allclose",
    "clamp_max",
    "clamp_min",
    "clip",
    "cosh",
    "erfc",
    "exp2",
    "fmod",
    "frac",
    "isclose",
    "isneginf",
    "isposinf",
    "lerp",
    "log10",
    "log2",
    "logaddexp",
    "logit",
    "nan_to_num",
    "sinh",
    "tan",
    "trunc",
    "xlogy",
    "array_equal",
    "equal",
]


def _floating(x: Any) -> Tensor:
    x = as_tensor(x)
    return x if is_float(x.dtype) else ew.cast(x, float32)


def clip(x: Any, min: Any = None, max: Any = None) -> Tensor:  # noqa: A002
    """`clamp`."""
    return ew.clamp(x, min, max)


def clamp_min(x: Any, min: Any) -> Tensor:  # noqa: A002
    """At least `min`."""
    return ew.clamp(x, min=min)


def clamp_max(x: Any, max: Any) -> Tensor:  # noqa: A002
    """At most `max`."""
    return ew.clamp(x, max=max)


def exp2(x: Any) -> Tensor:
    """2 to the power x."""
    return ew.exp(ew.mul(_floating(x), math.log(2)))


def log2(x: Any) -> Tensor:
    """The logarithm to base 2."""
    return ew.mul(ew.log(x), 1 / math.log(2))


def log10(x: Any) -> Tensor:
    """The logarithm to base 10."""
    return ew.mul(ew.log(x), 1 / math.log(10))


def tan(x: Any) -> Tensor:
    """The tangent."""
    return ew.div(ew.sin(x), ew.cos(x))


def sinh(x: Any) -> Tensor:
    """The hyperbolic sine."""
    x = _floating(x)
    return ew.mul(ew.sub(ew.expm1(x), ew.expm1(ew.neg(x))), 0.5)  # exact near 0, where exp(x) - exp(-x) would cancel


def cosh(x: Any) -> Tensor:
    """The hyperbolic cosine."""
    x = _floating(x)
    return ew.mul(ew.add(ew.exp(x), ew.exp(ew.neg(x))), 0.5)


def erfc(x: Any) -> Tensor:
    """1 - erf(x) (by that subtraction: no more accurate than it)."""
    return ew.sub(1.0, ew.erf(x))


def trunc(x: Any) -> Tensor:
    """The next whole number towards 0."""
    x = as_tensor(x)
    return ew.where(ew.lt(x, 0), ew.ceil(x), ew.floor(x)) if is_float(x.dtype) else x


def frac(x: Any) -> Tensor:
    """What `trunc` takes away."""
    x = as_tensor(x)
    return ew.sub(x, trunc(x))


def fmod(a: Any, b: Any) -> Tensor:
    """a - b * trunc(a / b): the sign is a's (C's %)."""
    a, b = ew.prepare("fmod", a, b)
    rest = ew.remainder(ew.abs(a), ew.abs(b))
    return ew.where(ew.lt(a, 0), ew.neg(rest), rest)


def logaddexp(a: Any, b: Any) -> Tensor:
    """log(exp(a) + exp(b)), without overflow."""
    a, b = ew.prepare("logaddexp", _floating(a), _floating(b))
    top = ew.maximum(a, b)
    gap = ew.abs(ew.sub(a, b))
    same = ew.isnan(gap)  # inf - inf: the sum is that infinity (NaN stays NaN, through `top`)
    return ew.where(same, top, ew.add(top, ew.log1p(ew.exp(ew.neg(ew.where(same, 0.0, gap))))))


def logit(x: Any, eps: float | None = None) -> Tensor:
    """log(x / (1 - x)); x kept inside of [eps, 1 - eps] first, if given."""
    x = _floating(x) if eps is None else ew.clamp(_floating(x), eps, 1.0 - eps)
    return ew.log(ew.div(x, ew.sub(1.0, x)))


def xlogy(x: Any, y: Any) -> Tensor:
    """x * log(y); 0 where x is 0 (unless y is NaN)."""
    x, y = ew.prepare("xlogy", _floating(x), _floating(y))
    nothing = ew.logical_and(ew.eq(x, 0.0), ew.logical_not(ew.isnan(y)))
    return ew.where(nothing, 0.0, ew.mul(x, ew.log(ew.where(nothing, 1.0, y))))


def lerp(a: Any, b: Any, weight: Any) -> Tensor:
    """a + weight * (b - a)."""
    a = as_tensor(a)
    return ew.add(a, ew.mul(ew.sub(b, a), weight))


def addcmul(x: Any, a: Any, b: Any, value: float = 1.0) -> Tensor:
    """x + value * a * b."""
    return ew.add(x, ew.mul(ew.mul(a, b), value))


def addcdiv(x: Any, a: Any, b: Any, value: float = 1.0) -> Tensor:
    """x + value * a / b."""
    return ew.add(x, ew.mul(ew.div(a, b), value))


def nan_to_num(x: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Tensor:
    """NaN replaced by `nan`, infinities by `posinf` and `neginf` (the largest and smallest number)."""
    import numpy as np

    x = _floating(x)
    limits = np.finfo(x.dtype)
    x = ew.where(ew.isnan(x), nan, x)
    x = ew.where(ew.eq(x, math.inf), float(limits.max) if posinf is None else posinf, x)
    return ew.where(ew.eq(x, -math.inf), float(limits.min) if neginf is None else neginf, x)


def isposinf(x: Any) -> Tensor:
    """Is plus infinity."""
    return ew.eq(_floating(x), math.inf)


def isneginf(x: Any) -> Tensor:
    """Is minus infinity."""
    return ew.eq(_floating(x), -math.inf)


def isclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    """|a - b| <= atol + rtol * |b|, element by element."""
    a, b = ew.prepare("isclose", a, b)
    if not is_float(a.dtype):
        a, b = ew.cast(a, "float64"), ew.cast(b, "float64")
    near = ew.logical_and(ew.isfinite(b), ew.le(ew.abs(ew.sub(a, b)), ew.add(ew.mul(ew.abs(b), rtol), atol)))
    near = ew.logical_or(ew.eq(a, b), near)
    return ew.logical_or(near, ew.logical_and(ew.isnan(a), ew.isnan(b))) if equal_nan else near


def allclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """Whether all elements are close. A Python bool: not in compiled functions."""
    return bool(reduce.all(isclose(a, b, rtol, atol, equal_nan)).item())


def equal(a: Any, b: Any) -> bool:
    """Whether shape and all elements are the same. A Python bool: not in compiled functions."""
    a, b = as_tensor(a), as_tensor(b)
    if a.dtype.kind != b.dtype.kind:
        raise user_error(DTypeError, f"equal: dtypes {a.dtype.name} and {b.dtype.name} differ")
    return a.shape == b.shape and bool(reduce.all(ew.eq(a, b)).item())


array_equal = equal
