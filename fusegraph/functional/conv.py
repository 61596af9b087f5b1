"""Convolutions (cross-correlations, as PyTorch)."""

from __future__ import annotations

from typing import Any

from fusegraph import ops
from fusegraph.errors import OptionError, ShapeError
from fusegraph.ir import emit
from fusegraph.tensor import Tensor, as_tensor, user_error

__all__ = ["conv1d", "conv2d"]

Sizes = tuple[int, ...]
Padding = tuple[tuple[int, int], ...]


def as_sizes(name: str, value: int | tuple[int, ...], count: int, least: int = 1) -> Sizes:
    """One number for all axes, or one an axis, as a tuple.

    Raises OptionError for a wrong count or a number below `least`.
    """
    sizes = (value,) * count if isinstance(value, int) else tuple(int(n) for n in value)
    if len(sizes) == 1:
        sizes *= count
    if len(sizes) != count or min(sizes) < least:
        raise user_error(OptionError, f"{name} must be {count} number(s) of at least {least}, got {value!r}")
    return sizes


def resolve_padding(name: str, padding: Any, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Padding:
    """(low, high) an axis from a number, numbers, 'valid' or 'same' (whose extra element goes to the high side)."""
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        if any(s != 1 for s in stride):
            raise user_error(OptionError, f"{name}: padding='same' needs stride 1, got {stride}")
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, str):
        raise user_error(OptionError, f"{name}: padding must be numbers, 'valid' or 'same', got {padding!r}")
    return tuple((n, n) for n in as_sizes(f"{name}: padding", padding, len(kernel), 0))


def _conv(name: str, x: Tensor, weight: Tensor, bias: Any, options: tuple[Any, Any, Any, int], axes: int) -> Tensor:
    if x.ndim not in (axes + 1, axes + 2) or weight.ndim != axes + 2:
        wanted = "[N, C, H, W] (or [C, H, W])" if axes == 2 else "[N, C, L] (or [C, L])"
        raise user_error(
            ShapeError, f"{name}: input {list(x.shape)} and weight {list(weight.shape)}; the input should be {wanted}"
        )
    if x.ndim == axes + 1:
        return ops.squeeze(_conv(name, ops.unsqueeze(x, 0), weight, bias, options, axes), 0)
    stride, dilation = as_sizes(f"{name}: stride", options[0], axes), as_sizes(f"{name}: dilation", options[2], axes)
    padding = resolve_padding(name, options[1], weight.shape[2:], stride, dilation)
    if axes == 1:  # a row of an image
        x, weight = ops.unsqueeze(x, 2), ops.unsqueeze(weight, 2)
        stride, dilation, padding = (1, *stride), (1, *dilation), ((0, 0), *padding)
    out = emit.bind("conv", x, weight, stride=stride, padding=padding, dilation=dilation, groups=options[3])
    if axes == 1:
        out = ops.squeeze(out, 2)
    return out if bias is None else out + ops.reshape(bias, (-1, *(1,) * axes))


def conv1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """x [N, C, L] with weight [O, C / groups, K] -> [N, O, L'].

    `padding` may be 'same' or 'valid'. Raises ShapeError.
    """
    return _conv("conv1d", as_tensor(x), as_tensor(weight), bias, (stride, padding, dilation, groups), 1)


def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """x [N, C, H, W] with weight [O, C / groups, KH, KW] -> [N, O, H', W'].

    `padding` may be 'same' or 'valid'. Raises ShapeError.
    """
    return _conv("conv2d", as_tensor(x), as_tensor(weight), bias, (stride, padding, dilation, groups), 2)
