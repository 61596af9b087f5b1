"""Sequences of different length, padded to one: means and extremes over what is really there."""

from __future__ import annotations

from typing import Any

from fusegraph import ops
from fusegraph.dtypes import bool_, int64, is_integer
from fusegraph.errors import DTypeError, ShapeError
from fusegraph.tensor import Tensor, as_tensor, user_error

__all__ = ["masked_max", "masked_mean"]


def _as_mask(name: str, x: Tensor, mask: Any, dim: int) -> tuple[Tensor, int]:
    """A bool mask that broadcasts over `x` (1 for every axis that it does not have), and `dim` from the front."""
    (axis,) = ops.reduce.resolve_dims(name, x, dim)
    mask = as_tensor(mask)
    if is_integer(mask.dtype) and mask.shape == x.shape[:axis]:  # lengths
        mask = ops.arange(x.shape[axis]) < ops.unsqueeze(mask, -1)
    if mask.dtype != bool_:
        raise user_error(
            DTypeError,
            f"{name}: the mask should be bool (True where an element counts), or integer lengths of shape "
            f"{list(x.shape[:axis])}; got {mask.dtype.name}{list(mask.shape)}",
        )
    if mask.ndim == axis + 1 and mask.ndim < x.ndim:
        mask = ops.reshape(mask, (*mask.shape, *(1,) * (x.ndim - mask.ndim)))
    if mask.ndim != x.ndim or ops.elementwise.broadcast_shapes(name, mask.shape, x.shape) != x.shape:
        raise user_error(
            ShapeError, f"{name}: mask {list(mask.shape)} does not fit input {list(x.shape)} over axis {axis}"
        )
    return mask, axis


def masked_mean(x: Any, mask: Any, dim: int) -> Tensor:
    """The mean over `dim` of the elements where `mask` is True; 0 where there are none.

    mask: bool of shape x.shape[:dim + 1] (or one that broadcasts to x), or the number of leading elements that count:
    integers of shape x.shape[:dim]. Padding is left out, whatever it holds (NaN too).
    """
    x = as_tensor(x)
    mask, axis = _as_mask("masked_mean", x, mask, dim)
    total = ops.sum(ops.where(mask, x, 0.0), axis)
    extent = x.shape[axis]
    repeated = 1 if mask.shape[axis] == extent else extent
    count = ops.sum(ops.cast(mask, int64), axis) * repeated
    return total * (1.0 / ops.cast(ops.maximum(count, 1), x.dtype))


def masked_max(x: Any, mask: Any, dim: int) -> Tensor:
    """The largest over `dim` of the elements where `mask` is True; 0 where there are none. `mask` as in `masked_mean`.

    Of equal ones the first takes the gradient.
    """
    x = as_tensor(x)
    mask, axis = _as_mask("masked_max", x, mask, dim)
    largest = ops.max(ops.where(mask, x, float("-inf")), axis).values
    return ops.where(ops.any(mask, axis), largest, 0.0)
