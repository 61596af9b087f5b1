"""Normalisation, and what is measured between vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fusegraph import ops
from fusegraph.autograd import no_grad
from fusegraph.errors import OptionError, ShapeError
from fusegraph.tensor import Tensor, as_tensor, user_error

__all__ = [
    "batch_norm",
    "cosine_similarity",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "normalize",
    "pairwise_distance",
    "rms_norm",
]


def _check_channels(name: str, x: Tensor, channels: int, **vectors: Tensor | None) -> None:
    for what, vector in vectors.items():
        if vector is not None and vector.shape != (channels,):
            raise user_error(
                ShapeError, f"{name}: {what} {list(vector.shape)} should be [{channels}] for input {list(x.shape)}"
            )


def _per_channel(vector: Tensor, x: Tensor) -> Tensor:
    return ops.reshape(vector, tuple(-1 if axis == 1 else 1 for axis in range(x.ndim)))


def batch_norm(
    x: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """x [N, C, ...] with each channel brought to mean 0 and variance 1, then times weight [C] plus bias [C].

    In training with the statistics of this batch, which are mixed into running_mean and running_var in place
    (`momentum` of the new ones); else with the running ones. Raises ShapeError.
    """
    x = as_tensor(x)
    if x.ndim < 2:
        raise user_error(ShapeError, f"batch_norm: the input should be [N, C, ...], got {list(x.shape)}")
    _check_channels(
        "batch_norm", x, x.shape[1], weight=weight, bias=bias, running_mean=running_mean, running_var=running_var
    )
    if not training and (running_mean is None or running_var is None):
        raise user_error(OptionError, "batch_norm: with training=False it needs running_mean and running_var")
    if training:
        mean, var = _batch_statistics(x, running_mean, running_var, momentum)
    else:
        assert running_mean is not None and running_var is not None
        mean, var = _per_channel(running_mean, x), _per_channel(running_var, x)
    out = (x - mean) * ops.rsqrt(var + eps)
    if weight is not None:
        out = out * _per_channel(weight, x)
    return out if bias is None else out + _per_channel(bias, x)


def _batch_statistics(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float
) -> tuple[Tensor, Tensor]:
    axes = (0, *range(2, x.ndim))
    count = math.prod(x.shape[axis] for axis in axes)
    if count <= 1:
        raise user_error(
            ShapeError, f"batch_norm: in training each channel needs more than one value, got input {list(x.shape)}"
        )
    mean = ops.mean(x, axes, True)
    var = ops.mean(ops.square(x - mean), axes, True)
    with no_grad():
        for running, new in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
            if running is not None:
                running.copy_(running * (1.0 - momentum) + ops.reshape(new.detach(), running.shape) * momentum)
    return mean, var


def instance_norm(x: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """x [N, C, ...] with each channel of each example brought to mean 0 and variance 1."""
    x = as_tensor(x)
    if x.ndim < 3:
        raise user_error(ShapeError, f"instance_norm: the input should be [N, C, ...], got {list(x.shape)}")
    return group_norm(x, x.shape[1], weight, bias, eps)


def _standardized(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - ops.mean(x, axes, True)
    return centred * ops.rsqrt(ops.mean(ops.square(centred), axes, True) + eps)


def _last_axes(name: str, x: Tensor, normalized_shape: Sequence[int] | int, *vectors: Any) -> tuple[int, ...]:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or x.shape[max(x.ndim - len(shape), 0) :] != shape:
        raise user_error(ShapeError, f"{name}: the last axes of input {list(x.shape)} should be {list(shape)}")
    for vector in vectors:
        if vector is not None and vector.shape != shape:
            raise user_error(ShapeError, f"{name}: weight and bias should be {list(shape)}, got {list(vector.shape)}")
    return tuple(range(x.ndim - len(shape), x.ndim))


def layer_norm(
    x: Any, normalized_shape: Sequence[int] | int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    """x brought to mean 0 and variance 1 over its last axes (of `normalized_shape`), then times weight plus bias."""
    x = as_tensor(x)
    out = _standardized(x, _last_axes("layer_norm", x, normalized_shape, weight, bias), eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def rms_norm(x: Any, normalized_shape: Sequence[int] | int, weight: Any = None, eps: float | None = None) -> Tensor:
    """x divided by the root of its mean square over the last axes, then times weight; eps None: the dtype's epsilon."""
    x = as_tensor(x)
    axes = _last_axes("rms_norm", x, normalized_shape, weight)
    if eps is None:
        eps = 2.0**-23 if x.dtype.itemsize == 4 else 2.0**-52
    out = x * ops.rsqrt(ops.mean(ops.square(x), axes, True) + eps)
    return out if weight is None else out * weight


def group_norm(x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """x [N, C, ...] with each of `num_groups` groups of channels brought to mean 0 and variance 1.

    Raises ShapeError.
    """
    x = as_tensor(x)
    if x.ndim < 2 or num_groups < 1 or x.shape[1] % num_groups:
        raise user_error(
            ShapeError, f"group_norm: the channels of input {list(x.shape)} do not divide into {num_groups} groups"
        )
    _check_channels("group_norm", x, x.shape[1], weight=weight, bias=bias)
    grouped = ops.reshape(x, (x.shape[0], num_groups, x.shape[1] // num_groups, *x.shape[2:]))
    out = ops.reshape(_standardized(grouped, tuple(range(2, grouped.ndim)), eps), x.shape)
    out = out if weight is None else out * _per_channel(weight, x)
    return out if bias is None else out + _per_channel(bias, x)


def normalize(x: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """x divided by its p-norm over `dim` (at least `eps`)."""
    x = as_tensor(x)
    return x / ops.clamp(ops.norm(x, p, dim, True), min=eps)


def cosine_similarity(x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """The cosine of the angle between vectors along `dim`; each norm counts as at least `eps`."""
    x1, x2 = as_tensor(x1), as_tensor(x2)
    lengths = [ops.clamp(ops.norm(x, 2, dim, True), min=eps) for x in (x1, x2)]
    return ops.sum((x1 / lengths[0]) * (x2 / lengths[1]), dim)


def pairwise_distance(x1: Any, x2: Any, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    """The p-norm of x1 - x2 + eps over the last axis."""
    return ops.norm(as_tensor(x1) - x2 + eps, p, -1, keepdim)
