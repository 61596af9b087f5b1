"""Initial values, in place, as torch.nn.init; drawn from the default generator (`fg.manual_seed`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fusegraph import ops
from fusegraph.autograd import no_grad
from fusegraph.errors import OptionError, ShapeError
from fusegraph.random import Generator
from fusegraph.tensor import Tensor, user_error
from fusegraph.trace import suspended

__all__ = [
    "calculate_gain",
    "constant_",
    "eye_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]


def fan(shape: tuple[int, ...]) -> tuple[int, int]:
    """How many inputs reach one output of a weight of `shape`, and how many outputs one input.

    Raises ShapeError below 2-d.
    """
    if len(shape) < 2:
        raise user_error(ShapeError, f"fan in and fan out need a weight of at least 2 axes, got {list(shape)}")
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps the variance through `nonlinearity`."""
    gains = {
        "linear": 1.0,
        "sigmoid": 1.0,
        "conv1d": 1.0,
        "conv2d": 1.0,
        "tanh": 5 / 3,
        "relu": math.sqrt(2),
        "selu": 0.75,
    }
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        return math.sqrt(2 / (1 + slope**2))
    if nonlinearity not in gains:
        raise user_error(
            OptionError, f"nonlinearity must be one of {', '.join([*gains, 'leaky_relu'])}, got {nonlinearity!r}"
        )
    return gains[nonlinearity]


def _fill(tensor: Tensor, make: Any) -> Tensor:
    with suspended(), no_grad():
        tensor.copy_(make())
    return tensor


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Uniform on [a, b)."""
    return _fill(tensor, lambda: ops.rand(tensor.shape, generator=generator) * (b - a) + a)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Normal with the given mean and standard deviation."""
    return _fill(tensor, lambda: ops.randn(tensor.shape, generator=generator) * std + mean)


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
) -> Tensor:
    """Normal, values outside of [a, b] drawn anew."""

    def draw() -> Tensor:
        values = ops.randn(tensor.shape, generator=generator) * std + mean
        for _ in range(1000):
            outside = ops.logical_or(values < a, values > b)
            if not ops.any(outside).item():
                return values
            values = ops.where(outside, ops.randn(tensor.shape, generator=generator) * std + mean, values)
        raise user_error(OptionError, f"trunc_normal_: [{a}, {b}] is too far from mean {mean} with std {std}")

    return _fill(tensor, draw)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """All `val`."""
    return _fill(tensor, lambda: ops.full(tensor.shape, val, tensor.dtype))


def zeros_(tensor: Tensor) -> Tensor:
    """All 0."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """All 1."""
    return constant_(tensor, 1.0)


def eye_(tensor: Tensor) -> Tensor:
    """1 on the diagonal, else 0."""
    return _fill(tensor, lambda: ops.eye(tensor.shape[0], tensor.shape[1], dtype=tensor.dtype))


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise user_error(OptionError, f"mode must be 'fan_in' or 'fan_out', got {mode!r}")
    inputs = fan(tensor.shape)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(max(inputs, 1))


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Uniform with variance gain**2 / fan (He et al., ICCV 2015)."""
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Normal with variance gain**2 / fan (He et al., ICCV 2015)."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Uniform with variance 2 gain**2 / (fan in + fan out) (Glorot and Bengio, AISTATS 2010)."""
    bound = gain * math.sqrt(6.0 / sum(fan(tensor.shape)))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Normal with variance 2 gain**2 / (fan in + fan out) (Glorot and Bengio, AISTATS 2010)."""
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / sum(fan(tensor.shape))), generator)


def orthogonal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """A (semi-)orthogonal matrix, axes after the first taken as one (Saxe et al., ICLR 2014)."""

    def draw() -> Any:
        rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
        flat = np.asarray(ops.randn((max(rows, columns), min(rows, columns)), dtype="float64", generator=generator))
        q, r = np.linalg.qr(flat)
        q *= np.sign(np.diag(r))
        return ((q.T if rows < columns else q) * gain).reshape(tensor.shape)

    fan(tensor.shape)
    return _fill(tensor, draw)
