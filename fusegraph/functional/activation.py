"""Activations, softmax and dropout."""

from __future__ import annotations

import math
from typing import Any

from fusegraph import ops
from fusegraph.dtypes import float32, is_float
from fusegraph.errors import OptionError
from fusegraph.ops.elementwise import erf, relu, sigmoid, softplus, tanh
from fusegraph.random import Generator
from fusegraph.tensor import Tensor, as_tensor, user_error

__all__ = [
    "celu",
    "dropout",
    "elu",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "log_softmax",
    "logsigmoid",
    "mish",
    "relu",
    "relu6",
    "sigmoid",
    "silu",
    "softmax",
    "softmin",
    "softplus",
    "softsign",
    "tanh",
]


def _floating(x: Any) -> Tensor:
    x = as_tensor(x)
    return x if is_float(x.dtype) else ops.cast(x, float32)


def gelu(x: Any, approximate: str = "none") -> Tensor:
    """x times the normal distribution function of x; `approximate="tanh"` for the form with tanh."""
    x = _floating(x)
    if approximate == "none":
        return 0.5 * x * (1.0 + erf(x * math.sqrt(0.5)))
    if approximate == "tanh":
        return 0.5 * x * (1.0 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    raise user_error(OptionError, f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")


def silu(x: Any) -> Tensor:
    """x * sigmoid(x)."""
    x = _floating(x)
    return x * sigmoid(x)


def mish(x: Any) -> Tensor:
    """x * tanh(softplus(x))."""
    x = _floating(x)
    return x * tanh(softplus(x))


def elu(x: Any, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha * (exp(x) - 1)."""
    x = _floating(x)
    # The branch that is not taken must not overflow: its gradient would be inf * 0.
    return ops.where(x > 0, x, alpha * ops.expm1(ops.where(x > 0, 0.0, x)))


def celu(x: Any, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha * (exp(x / alpha) - 1)."""
    x = _floating(x)
    return ops.where(x > 0, x, alpha * ops.expm1(ops.where(x > 0, 0.0, x) * (1.0 / alpha)))


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, else negative_slope * x."""
    x = as_tensor(x)
    return ops.where(x > 0, x, x * negative_slope)


def hardtanh(x: Any, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """x kept inside of [min_val, max_val]; the gradient is 0 at and beyond the bounds (as PyTorch)."""
    x = as_tensor(x)
    inside = ops.logical_and(x > min_val, x < max_val)
    return ops.where(inside, x, ops.clamp(x.detach(), min_val, max_val))


def relu6(x: Any) -> Tensor:
    """x kept inside of [0, 6]."""
    return hardtanh(x, 0.0, 6.0)


def hardsigmoid(x: Any) -> Tensor:
    """x / 6 + 1/2, kept inside of [0, 1]."""
    return hardtanh(_floating(x) + 3.0, 0.0, 6.0) * (1.0 / 6.0)


def hardswish(x: Any) -> Tensor:
    """x * hardsigmoid(x)."""
    x = _floating(x)
    return x * ops.clamp(x + 3.0, 0.0, 6.0) * (1.0 / 6.0)


def softsign(x: Any) -> Tensor:
    """x / (1 + |x|)."""
    x = _floating(x)
    return x / (1.0 + ops.abs(x))


def logsigmoid(x: Any) -> Tensor:
    """log(sigmoid(x)), without overflow."""
    x = _floating(x)
    return ops.minimum(x, 0.0) - ops.log1p(ops.exp(-ops.abs(x)))


def _shifted(x: Tensor, dim: int, name: str) -> Tensor:
    """`x` minus its largest along `dim`: exp of it cannot overflow.

    The shift does not change the result, so it has no gradient.
    """
    from fusegraph.ops.reduce import resolve_dims

    if x.ndim == 0:
        return x - x.detach()
    axes = resolve_dims(name, x, dim)
    if x.shape[axes[0]] == 0:
        return x
    return x - ops.amax(x.detach(), axes, True)


def softmax(x: Any, dim: int = -1, dtype: Any = None) -> Tensor:
    """exp(x) divided by its sum over `dim`."""
    x = _floating(x) if dtype is None else ops.cast(x, dtype)
    weights = ops.exp(_shifted(x, dim, "softmax"))
    return weights / ops.sum(weights, dim if x.ndim else None, True)


def softmin(x: Any, dim: int = -1, dtype: Any = None) -> Tensor:
    """softmax(-x)."""
    return softmax(ops.neg(_floating(x)), dim, dtype)


def log_softmax(x: Any, dim: int = -1, dtype: Any = None) -> Tensor:
    """log(softmax(x)) over `dim`, without overflow."""
    x = _floating(x) if dtype is None else ops.cast(x, dtype)
    shifted = _shifted(x, dim, "log_softmax")
    return shifted - ops.log(ops.sum(ops.exp(shifted), dim if x.ndim else None, True))


def check_probability(name: str, p: float) -> float:
    """`p`. Raises OptionError outside of [0, 1]."""
    if not 0.0 <= p <= 1.0:
        raise user_error(OptionError, f"{name}: the probability p must be in [0, 1], got {p}")
    return p


def dropout(x: Any, p: float = 0.5, training: bool = True, generator: Generator | None = None) -> Tensor:
    """In training each element is 0 with probability `p` and 1 / (1 - p) times itself else; `x` as it is otherwise.

    The choice comes from a counter-based generator: the same eager and compiled, and new at every call.
    """
    x = _floating(x)
    check_probability("dropout", p)
    if not training or p == 0.0:
        return x
    if p == 1.0:
        return x * 0.0
    keep = ops.bernoulli(1.0 - p, x.shape, generator=generator)
    return ops.where(keep, x * (1.0 / (1.0 - p)), 0.0)
