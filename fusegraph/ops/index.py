"""Indexing: slices, gathers, scatters."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusegraph.dtypes import bool_, is_integer
from fusegraph.errors import DTypeError, IndexRangeError, ShapeError, UnsupportedError
from fusegraph.ir import emit
from fusegraph.ops import elementwise as ew
from fusegraph.ops.reduce import resolve_dims
from fusegraph.ops.shape import slice_axis
from fusegraph.tensor import Tensor, as_tensor, user_error

__all__ = [
    "gather",
    "getitem",
    "index_add",
    "index_select",
    "masked_fill",
    "scatter",
    "scatter_add",
    "select",
    "take",
    "take_along_dim",
    "tril",
    "triu",
]


def getitem(x: Any, key: Any) -> Tensor:
    """x[key]: integers, slices (any step), None, ..., and integer arrays (one, or several that are broadcast
    together, side by side).
    """
    x = as_tensor(x)
    keys = list(key) if isinstance(key, tuple) else [key]
    used = sum(1 for k in keys if k is not None and k is not Ellipsis)
    if used > x.ndim:
        raise user_error(ShapeError, f"{used} indices for a tensor of shape {list(x.shape)}")
    if not any(k is Ellipsis for k in keys):
        keys.append(Ellipsis)
    at = next(i for i, k in enumerate(keys) if k is Ellipsis)
    keys[at : at + 1] = [slice(None)] * (x.ndim - used)
    return _apply_keys(x, keys)


def _apply_keys(x: Tensor, keys: list[Any]) -> Tensor:
    axis = 0
    arrays: list[tuple[int, Tensor]] = []
    for key in keys:
        if key is None:
            x = emit.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]))
            axis += 1
        elif isinstance(key, slice):
            start, stop, step = key.indices(x.shape[axis])
            size = len(range(start, stop, step))
            if (start, size, step) != (0, x.shape[axis], 1):
                x = slice_axis(x, axis, start if size else 0, size, step)
            axis += 1
        elif isinstance(key, (int, np.integer)) and not isinstance(key, bool):
            x = select(x, axis, int(key))
        else:
            arrays.append((axis, _index_tensor(key)))
            axis += 1
    return _gather_arrays(x, arrays) if arrays else x


def _index_tensor(key: Any) -> Tensor:
    index = as_tensor(key)
    if index.dtype == bool_:
        raise user_error(
            UnsupportedError,
            "x[mask] has a size that depends on values; use fg.where(mask, x, 0), masked_fill, or "
            "x[np.flatnonzero(mask)] outside of compiled code",
        )
    if not is_integer(index.dtype):
        raise user_error(DTypeError, f"an index must be integers, got {index.dtype.name}{list(index.shape)}")
    return index


def _gather_arrays(x: Tensor, arrays: list[tuple[int, Tensor]]) -> Tensor:
    first = arrays[0][0]
    if [axis for axis, _ in arrays] != list(range(first, first + len(arrays))):
        raise user_error(
            UnsupportedError, "index arrays must stand side by side (x[:, i, j], not x[i, :, j]); permute first"
        )
    shape = ew.broadcast_shapes("indexing", *(index.shape for _, index in arrays))
    flat: Any = None
    extent = 1
    for axis, index in arrays:
        n = x.shape[axis]
        if index.is_symbol:
            index = ew.check_index(index, -n, n, f"index of axis {axis} of shape {list(x.shape)},")
        else:
            _check_concrete(index, n, axis, x)
        index = ew.cast(index, "int64")
        index = ew.where(ew.lt(index, 0), ew.add(index, n), index)
        index = emit.expand(index, shape)
        flat = index if flat is None else ew.add(ew.mul(flat, n), index)
        extent *= n
    joined = emit.reshape(x, (*x.shape[:first], extent, *x.shape[first + len(arrays) :]))
    return emit.bind("take", joined, flat, axis=first)  # type: ignore[no-any-return]


def _check_concrete(index: Tensor, extent: int, axis: int, x: Tensor) -> None:
    values = index._value
    if values.size and (values.min() < -extent or values.max() >= extent):
        bad = int(values[(values < -extent) | (values >= extent)].ravel()[0])
        raise user_error(IndexRangeError, f"index {bad} is outside of axis {axis} of shape {list(x.shape)}")


def select(x: Any, dim: int, index: int) -> Tensor:
    """The slice at `index` of axis `dim`, without that axis."""
    x = as_tensor(x)
    (axis,) = resolve_dims("select", x, dim)
    n = x.shape[axis]
    if not -n <= index < n:
        raise user_error(IndexRangeError, f"index {index} is outside of axis {axis} of shape {list(x.shape)}")
    part = slice_axis(x, axis, index % n, 1)
    return emit.reshape(part, (*x.shape[:axis], *x.shape[axis + 1 :]))  # type: ignore[no-any-return]


def _checked(index: Any, extent: int, what: str) -> Tensor:
    index = as_tensor(index)
    if not is_integer(index.dtype):
        raise user_error(DTypeError, f"{what} must be integers, got {index.dtype.name}{list(index.shape)}")
    return ew.check_index(index, 0, extent, what)


def take(x: Any, index: Any, dim: int = 0, what: str = "index") -> Tensor:
    """Slices of axis `dim` at `index` (of any shape, which takes the axis' place): an embedding's lookup.

    Raises IndexRangeError for an index outside of [0, size of the axis).
    """
    x = as_tensor(x)
    (axis,) = resolve_dims("take", x, dim)
    return emit.bind("take", x, _checked(index, x.shape[axis], what), axis=axis)  # type: ignore[no-any-return]


def index_select(x: Any, dim: int, index: Any) -> Tensor:
    """`take` with a 1-d index."""
    return take(x, index, dim)


def gather(x: Any, dim: int, index: Any) -> Tensor:
    """out[..., i, ...] = x[..., index[..., i, ...], ...] along `dim` (as torch.gather; the other axes may be
    smaller in `index`).
    """
    x, index = as_tensor(x), as_tensor(index)
    (axis,) = resolve_dims("gather", x, dim)
    if index.ndim != x.ndim:
        raise user_error(
            ShapeError, f"gather: input {list(x.shape)} and index {list(index.shape)} need the same number of axes"
        )
    index = _checked(index, x.shape[axis], "index")
    size = tuple(x.shape[i] if i == axis else index.shape[i] for i in range(x.ndim))
    if size != x.shape:
        x = emit.bind("slice", x, start=(0,) * x.ndim, size=size, step=(1,) * x.ndim)
    return emit.bind("take_along", x, index, axis=axis)  # type: ignore[no-any-return]


def take_along_dim(x: Any, index: Any, dim: int | None = None) -> Tensor:
    """`gather` whose other axes are broadcast; without `dim`, of all elements."""
    x, index = as_tensor(x), as_tensor(index)
    if dim is None:
        return gather(emit.reshape(x, (x.numel(),)), 0, emit.reshape(index, (index.numel(),)))
    (axis,) = resolve_dims("take_along_dim", x, dim)
    others = ew.broadcast_shapes(
        "take_along_dim", *(tuple(1 if i == axis else n for i, n in enumerate(v.shape)) for v in (x, index))
    )
    x, index = (
        emit.expand(v, tuple(v.shape[axis] if i == axis else n for i, n in enumerate(others))) for v in (x, index)
    )
    return gather(x, axis, index)


def _scattered(name: str, x: Tensor, dim: int, index: Any, src: Any, combine: Any) -> Tensor:
    """`combine(part of x, index, part of src)` where `index`, which may be smaller than both, reaches."""
    index = as_tensor(index)
    src = src if ew.is_scalar(src) else as_tensor(src)
    (axis,) = resolve_dims(name, x, dim)
    fits = index.ndim == x.ndim and all(n <= x.shape[i] for i, n in enumerate(index.shape) if i != axis)
    fits = fits and (
        not isinstance(src, Tensor) or (src.ndim == x.ndim and all(n <= m for n, m in zip(index.shape, src.shape)))
    )
    if not fits:
        raise user_error(
            ShapeError,
            f"{name}: index {list(index.shape)} must not be larger than input {list(x.shape)} (off axis {axis}) and "
            f"source {list(getattr(src, 'shape', ()))}",
        )
    index = _checked(index, x.shape[axis], "index")
    src = (
        emit.full_like(emit.cast(index, x.dtype), src)
        if ew.is_scalar(src)
        else _leading(ew.cast(src, x.dtype), index.shape)
    )
    size = tuple(x.shape[i] if i == axis else n for i, n in enumerate(index.shape))
    return combine(x, size, index, src, axis)  # type: ignore[no-any-return]


def _leading(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """The corner of `x` of the given size."""
    return x if size == x.shape else emit.bind("slice", x, start=(0,) * x.ndim, size=size, step=(1,) * x.ndim)


def _widened(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`x` with zeros (False) behind it, up to `shape`."""
    high = tuple(n - m for n, m in zip(shape, x.shape, strict=True))
    return emit.bind("pad", x, low=(0,) * x.ndim, high=high, value=0) if any(high) else x


def scatter_add(x: Any, dim: int, index: Any, src: Any) -> Tensor:
    """`x` with src[..., i, ...] added at index[..., i, ...] along `dim` (as torch.scatter_add)."""

    def combine(x: Tensor, size: tuple[int, ...], index: Tensor, src: Tensor, axis: int) -> Tensor:
        if size == x.shape:
            return emit.bind("put_along_add", x, index, src, axis=axis)  # type: ignore[no-any-return]
        zeros = emit.expand(emit.constant(0, x), size)
        return ew.add(x, _widened(emit.bind("put_along_add", zeros, index, src, axis=axis), x.shape))

    return _scattered("scatter_add", as_tensor(x), dim, index, src, combine)


def scatter(x: Any, dim: int, index: Any, src: Any) -> Tensor:
    """`x` with src[..., i, ...] (or a number) written at index[..., i, ...] along `dim`; where an index is
    repeated, the mean.
    """

    def combine(x: Tensor, size: tuple[int, ...], index: Tensor, src: Tensor, axis: int) -> Tensor:
        zeros = emit.expand(emit.constant(0, x), size)
        counts = emit.bind("put_along_add", zeros, index, emit.full_like(src, 1), axis=axis)
        total = emit.bind("put_along_add", zeros, index, src, axis=axis)
        value = ew.cast(ew.div(total, ew.maximum(counts, 1)), x.dtype)
        return ew.where(_widened(ew.gt(counts, 0), x.shape), _widened(value, x.shape), x)

    return _scattered("scatter", as_tensor(x), dim, index, src, combine)


def index_add(x: Any, dim: int, index: Any, source: Any) -> Tensor:
    """`x` with slices of `source` added at `index` of axis `dim` (as torch.index_add)."""
    x, source = as_tensor(x), as_tensor(source)
    (axis,) = resolve_dims("index_add", x, dim)
    return emit.bind("put_add", x, _checked(index, x.shape[axis], "index"), source, axis=axis)  # type: ignore[no-any-return]


def masked_fill(x: Any, mask: Any, value: Any) -> Tensor:
    """`value` where `mask`, else `x`."""
    return ew.where(mask, value, x)


def _triangle(x: Tensor, diagonal: int, lower: bool) -> Tensor:
    if x.ndim < 2:
        raise user_error(ShapeError, f"a triangle needs two axes, got shape {list(x.shape)}")
    rows, columns = x.shape[-2:]
    i = emit.reshape(emit.iota(rows, np.dtype(np.int64), x), (rows, 1))
    j = emit.iota(columns, np.dtype(np.int64), x)
    offset = ew.sub(j, i)
    return ew.where(ew.le(offset, diagonal) if lower else ew.ge(offset, diagonal), x, 0)


def tril(x: Any, diagonal: int = 0) -> Tensor:
    """Zero above the diagonal."""
    return _triangle(as_tensor(x), diagonal, True)


def triu(x: Any, diagonal: int = 0) -> Tensor:
    """Zero below the diagonal."""
    return _triangle(as_tensor(x), diagonal, False)
