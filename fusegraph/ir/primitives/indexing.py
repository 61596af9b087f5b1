"""Gather and scatter: one level of indirection.

take(x, index; axis)             out[..., i..., ...] = x[..., index[i...], ...]              (an embedding's lookup)
take_along(x, index; axis)       out[..., i, ...] = x[..., index[..., i, ...], ...]           (torch.gather)
put_add(base, index, u; axis)    base with u[..., i..., ...] added at index[i...]             (take's transpose)
put_along_add(base, index, u; axis)                                                           (take_along's transpose)
Targets keep an index inside of its axis by clamping; `check_index` makes a wrong one an error.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fusegraph.dtypes import DType
from fusegraph.errors import DTypeError
from fusegraph.ir import emit as e
from fusegraph.ir.primitives.base import Array, Params, Primitive, Sample, Shape, register, require


def _require_index(name: str, index: Any) -> None:
    require(
        index.dtype.kind in "iu",
        lambda: f"{name}: the index must be an integer, got {index.dtype.name}{list(index.shape)}",
        DTypeError,
    )


def _require_numbers(name: str, base: Any, updates: Any) -> None:
    require(
        base.dtype == updates.dtype,
        lambda: f"{name}: dtypes {base.dtype.name} and {updates.dtype.name} differ",
        DTypeError,
    )
    require(base.dtype.kind != "b", f"{name} adds numbers, got bool{list(base.shape)}", DTypeError)


def _infer_take(inputs: Any, params: Params) -> tuple[Shape, DType]:
    x, index = inputs
    axis = params["axis"]
    _require_index("take", index)
    require(0 <= axis < len(x.shape), f"take: axis {axis} is outside of shape {list(x.shape)}")
    require(x.shape[axis] > 0 or 0 in index.shape, f"take: axis {axis} of shape {list(x.shape)} is empty")
    return (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]), x.dtype


def _infer_put_add(inputs: Any, params: Params) -> tuple[Shape, DType]:
    base, index, updates = inputs
    axis = params["axis"]
    _require_index("put_add", index)
    expected = (*base.shape[:axis], *index.shape, *base.shape[axis + 1 :])
    require(updates.shape == expected, f"put_add: updates {list(updates.shape)} should be {list(expected)}")
    _require_numbers("put_add", base, updates)
    return base.shape, base.dtype


def _infer_take_along(inputs: Any, params: Params) -> tuple[Shape, DType]:
    x, index = inputs
    axis = params["axis"]
    _require_index("take_along", index)
    fits = len(x.shape) == len(index.shape) > axis >= 0 and all(
        a == b for i, (a, b) in enumerate(zip(x.shape, index.shape, strict=True)) if i != axis
    )
    require(fits, f"take_along: shapes {list(x.shape)} and {list(index.shape)} differ off axis {axis}")
    return index.shape, x.dtype


def _infer_put_along_add(inputs: Any, params: Params) -> tuple[Shape, DType]:
    base, index, updates = inputs
    _infer_take_along((base, index), params)
    require(
        index.shape == updates.shape,
        f"put_along_add: index {list(index.shape)} and updates {list(updates.shape)} differ",
    )
    _require_numbers("put_along_add", base, updates)
    return base.shape, base.dtype


def _clamped(index: Array, extent: int) -> Array:
    return np.clip(index.astype(np.int64), 0, max(extent - 1, 0))


def _put_add(base: Array, index: Array, updates: Array, axis: int) -> Array:
    out = base.copy()
    moved = np.moveaxis(out, axis, 0)
    flat = np.moveaxis(updates.reshape((*base.shape[:axis], index.size, *base.shape[axis + 1 :])), axis, 0)
    np.add.at(moved, _clamped(index, base.shape[axis]).ravel(), flat)
    return out


def _put_along_add(base: Array, index: Array, updates: Array, axis: int) -> Array:
    out = base.copy()
    grid: list[Any] = list(np.indices(index.shape, sparse=True))
    grid[axis] = _clamped(index, base.shape[axis])
    np.add.at(out, tuple(grid), updates)
    return out


def _zeros(x: Any) -> Any:
    return e.full_like(x, 0)


def _samples_take(rng: np.random.Generator) -> list[Sample]:
    return [
        ((rng.uniform(-2, 2, shape), rng.integers(0, shape[axis], index)), {"axis": axis})
        for shape, index, axis in (
            ((9, 4), (5,), 0),
            ((9, 4), (2, 3), 0),
            ((3, 7, 2), (4,), 1),
            ((6,), (), 0),
            ((5, 3), (0,), 0),
        )
    ]


def _samples_put(rng: np.random.Generator) -> list[Sample]:
    return [
        (
            (
                rng.uniform(-2, 2, shape),
                rng.integers(0, shape[axis], index),
                rng.uniform(-2, 2, (*shape[:axis], *index, *shape[axis + 1 :])),
            ),
            {"axis": axis},
        )
        for shape, index, axis in (
            ((9, 4), (5,), 0),
            ((9, 4), (4, 6), 0),
            ((3, 7, 2), (4,), 1),
            ((6,), (), 0),
            ((3, 2), (0,), 0),
        )
    ]


def _samples_along(rng: np.random.Generator) -> list[Sample]:
    return [
        ((rng.uniform(-2, 2, shape), rng.integers(0, shape[axis], index)), {"axis": axis})
        for shape, index, axis in (((5, 7), (5, 1), 1), ((5, 7), (3, 7), 0), ((2, 3, 4), (2, 6, 4), 1))
    ]


def _samples_put_along(rng: np.random.Generator) -> list[Sample]:
    return [((*inputs, rng.uniform(-2, 2, inputs[1].shape)), params) for inputs, params in _samples_along(rng)]


register(
    Primitive(
        "take",
        "gather",
        _infer_take,
        lambda x, index, axis: np.take(x, _clamped(index, x.shape[axis]), axis),
        vjp=lambda ct, out, inputs, params: (
            e.bind("put_add", _zeros(inputs[0]), inputs[1], ct, axis=params["axis"]),
            None,
        ),
        samples=_samples_take,
        errors=lambda: [((np.zeros((3, 2)), np.zeros(2)), {"axis": 0}, DTypeError, "must be an integer")],
    )
)
register(
    Primitive(
        "take_along",
        "gather",
        _infer_take_along,
        lambda x, index, axis: np.take_along_axis(x, _clamped(index, x.shape[axis]), axis),
        vjp=lambda ct, out, inputs, params: (
            e.bind("put_along_add", _zeros(inputs[0]), inputs[1], ct, axis=params["axis"]),
            None,
        ),
        samples=_samples_along,
    )
)
register(
    Primitive(
        "put_add",
        "scatter",
        _infer_put_add,
        _put_add,
        vjp=lambda ct, out, inputs, params: (ct, None, e.bind("take", ct, inputs[1], axis=params["axis"])),
        samples=_samples_put,
    )
)
register(
    Primitive(
        "put_along_add",
        "scatter",
        _infer_put_along_add,
        _put_along_add,
        vjp=lambda ct, out, inputs, params: (ct, None, e.bind("take_along", ct, inputs[1], axis=params["axis"])),
        samples=_samples_put_along,
    )
)
