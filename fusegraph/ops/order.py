"""What depends on the order of values: sorting is done by numpy, so these are not for compiled functions."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fusegraph.errors import ShapeError, TraceError
from fusegraph.ir import emit
from fusegraph.ops.reduce import ValuesAndIndices, resolve_dims
from fusegraph.ops.shape import slice_axis
from fusegraph.tensor import Tensor, as_tensor, user_error
from fusegraph.trace import current_trace

__all__ = [
    "argsort",
    "bincount",
    "masked_select",
    "median",
    "multinomial",
    "nonzero",
    "randperm",
    "sort",
    "topk",
    "unique",
]

Sorted = ValuesAndIndices


class UniqueWithCounts(NamedTuple):
    """What `unique` gives with counts."""

    values: Tensor
    counts: Tensor


def _values(name: str, x: Any, hint: str) -> Any:
    """The array behind `x`. Raises TraceError in a compiled function."""
    x = as_tensor(x)
    if current_trace() is not None:
        raise user_error(
            TraceError,
            f"{name} cannot be compiled: {hint}; do it outside of the compiled function and pass the result in",
        )
    return x._concrete(name)


def argsort(x: Any, dim: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The int64 positions that sort `x` along `dim`; equal ones stay in order, NaN counts as largest."""
    array = _values("argsort", x, "its order depends on values")
    if not array.ndim:
        return Tensor._make(np.zeros((), np.int64))
    (axis,) = resolve_dims("argsort", as_tensor(x), dim)
    if not descending:
        return Tensor._make(np.argsort(array, axis, kind="stable"))
    backwards = np.flip(np.argsort(np.flip(array, axis), axis, kind="stable"), axis)  # keeps equal ones in order
    return Tensor._make(array.shape[axis] - 1 - backwards)


def sort(x: Any, dim: int = -1, descending: bool = False, stable: bool = True) -> ValuesAndIndices:
    """(values, indices) sorted along `dim`; the gradient goes back to where each value came from."""
    x = as_tensor(x)
    indices = argsort(x, dim, descending)
    if not x.ndim:
        return ValuesAndIndices(x, indices)
    (axis,) = resolve_dims("sort", x, dim)
    return ValuesAndIndices(emit.bind("take_along", x, indices, axis=axis), indices)


def topk(x: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> ValuesAndIndices:  # noqa: A002
    """(values, indices) of the k largest (or smallest) along `dim`, in order."""
    x = as_tensor(x)
    (axis,) = resolve_dims("topk", x, dim)
    if not 0 <= k <= x.shape[axis]:
        raise user_error(ShapeError, f"topk: k = {k} of axis {axis} of shape {list(x.shape)}")
    indices = slice_axis(argsort(x, axis, descending=largest), axis, 0, k)
    return ValuesAndIndices(emit.bind("take_along", x, indices, axis=axis), indices)


def median(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """The middle element (the lower of two); with `dim`: (values, indices)."""
    x = as_tensor(x)
    flat = emit.reshape(x, (x.numel(),)) if dim is None else x
    if not flat.numel():
        raise user_error(ShapeError, f"median of nothing: shape {list(x.shape)}")
    (axis,) = resolve_dims("median", flat, -1 if dim is None else dim)
    array = flat._concrete("median")
    order = argsort(flat, axis)
    middle = np.expand_dims(
        (np.sum(~np.isnan(array), axis) - 1) // 2
        if array.dtype.kind == "f"
        else np.full(np.delete(array.shape, axis), (array.shape[axis] - 1) // 2),
        axis,
    )
    if array.dtype.kind == "f":  # NaN, sorted to the end, is the median where there is one
        has_nan = np.isnan(array).any(axis, keepdims=True)
        middle = np.where(has_nan, array.shape[axis] - 1, middle)
    indices = np.take_along_axis(order._value, middle, axis)
    values = emit.bind("take_along", flat, Tensor._make(indices), axis=axis)
    if dim is None:
        return emit.reshape(values, ())
    kept = (
        tuple(n if i != axis else 1 for i, n in enumerate(x.shape))
        if keepdim
        else tuple(n for i, n in enumerate(x.shape) if i != axis)
    )
    return ValuesAndIndices(emit.reshape(values, kept), Tensor._make(indices.reshape(kept)))


def nonzero(x: Any, as_tuple: bool = False) -> Any:
    """Where `x` is not 0: [count, ndim] positions, or with `as_tuple` one vector an axis."""
    array = _values("nonzero", x, "the size of its result depends on values")
    found = np.nonzero(array)
    if as_tuple:
        return tuple(Tensor._make(axis.astype(np.int64)) for axis in found)
    return Tensor._make(np.stack(found, 1).astype(np.int64) if found else np.zeros((int(bool(array)), 0), np.int64))


def masked_select(x: Any, mask: Any) -> Tensor:
    """The elements of `x` where `mask` is true, in order, as a vector."""
    x = as_tensor(x)
    chosen = np.broadcast_to(
        _values("masked_select", mask, "the size of its result depends on values; use fg.where"), x.shape
    )
    return emit.bind("take", emit.reshape(x, (x.numel(),)), Tensor._make(np.flatnonzero(chosen)), axis=0)  # type: ignore[no-any-return]


def unique(x: Any, return_counts: bool = False) -> Any:
    """The different values, sorted; with `return_counts` also how often each is there."""
    values, counts = np.unique(_values("unique", x, "the size of its result depends on values"), return_counts=True)
    return (
        UniqueWithCounts(Tensor._make(values), Tensor._make(counts.astype(np.int64)))
        if return_counts
        else Tensor._make(values)
    )


def bincount(x: Any, minlength: int = 0) -> Tensor:
    """How often each of 0, 1, ... is in the vector `x`."""
    return Tensor._make(
        np.bincount(_values("bincount", x, "the size of its result depends on values"), minlength=minlength).astype(
            np.int64
        )
    )


def randperm(n: int) -> Tensor:
    """0 ... n - 1 in random order, from the default generator."""
    from fusegraph.random import default_generator

    return argsort(default_generator().bits((n,)))


def multinomial(weights: Any, num_samples: int, replacement: bool = False) -> Tensor:
    """Indices drawn with probability proportional to `weights` [..., n], from the default generator."""
    from fusegraph.ops.create import rand

    array = np.asarray(_values("multinomial", weights, "its choice depends on values"), np.float64)
    if (array < 0).any() or not np.isfinite(array).all() or (array.sum(-1) <= 0).any():
        raise user_error(ShapeError, "multinomial: weights must be finite, not negative, and not all 0")
    if replacement:
        ends = np.cumsum(array, -1) / array.sum(-1, keepdims=True)
        draws = np.asarray(rand((*array.shape[:-1], num_samples), dtype="float64"))
        return Tensor._make((draws[..., :, None] >= ends[..., None, :-1]).sum(-1).astype(np.int64))
    if ((array > 0).sum(-1) < num_samples).any():
        raise user_error(
            ShapeError, f"multinomial: {num_samples} samples without replacement from fewer positive weights"
        )
    # Exponential race (Efraimidis and Spirakis, 2006): the smallest -log(u) / w win.
    with np.errstate(divide="ignore"):
        keys = -np.log1p(-np.asarray(rand(array.shape, dtype="float64"))) / array
    return Tensor._make(np.argsort(keys, -1, kind="stable")[..., :num_samples].astype(np.int64))
