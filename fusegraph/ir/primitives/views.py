"""Views: other names for the same elements. They never become kernels: they compose into index maps.

`after(x, a, b, ...)` is x, read not before a and b have been computed. It has no effect on values: a pass that computes a value
again, to save memory, says by it when, and that the copy is not the value that was there already (equal nodes are one node).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fusegraph.dtypes import DType
from fusegraph.errors import DTypeError, ShapeError
from fusegraph.ir import emit as e
from fusegraph.ir.primitives.base import Array, Params, Primitive, Shape, register, require


def _count(shape: Shape) -> int:
    return math.prod(shape)


def _infer_reshape(inputs: Any, params: Params) -> tuple[Shape, DType]:
    (x,) = inputs
    shape = params["shape"]
    require(
        _count(shape) == _count(x.shape),
        f"reshape: {list(x.shape)} has {_count(x.shape)} elements, {list(shape)} has {_count(shape)}",
    )
    return shape, x.dtype


def _infer_permute(inputs: Any, params: Params) -> tuple[Shape, DType]:
    (x,) = inputs
    axes = params["axes"]
    require(
        sorted(axes) == list(range(len(x.shape))), f"permute: {list(axes)} is no order of the axes of {list(x.shape)}"
    )
    return tuple(x.shape[axis] for axis in axes), x.dtype


def _infer_expand(inputs: Any, params: Params) -> tuple[Shape, DType]:
    (x,) = inputs
    shape = params["shape"]
    lead = len(shape) - len(x.shape)
    fits = lead >= 0 and all(extent in (1, shape[lead + axis]) for axis, extent in enumerate(x.shape))
    require(fits, f"cannot broadcast shape {list(x.shape)} to {list(shape)}")
    return shape, x.dtype


def _infer_slice(inputs: Any, params: Params) -> tuple[Shape, DType]:
    """`start`, `size`, `step` an axis: elements start, start + step, ... (size of them); a negative step runs backwards."""
    (x,) = inputs
    start, size, step = params["start"], params["size"], params["step"]
    require(
        len(start) == len(size) == len(step) == len(x.shape), f"slice: {len(start)} ranges for shape {list(x.shape)}"
    )
    for axis, extent in enumerate(x.shape):
        last = start[axis] + (size[axis] - 1) * step[axis]
        inside = size[axis] == 0 or (0 <= start[axis] < extent and 0 <= last < extent)
        require(inside, f"slice: {start[axis]} .. {last} is outside of axis {axis} of shape {list(x.shape)}")
    return tuple(size), x.dtype


def _slice(x: Array, start: Shape, size: Shape, step: Shape) -> Array:
    for axis in range(x.ndim):
        x = np.take(x, start[axis] + step[axis] * np.arange(size[axis]), axis)
    return x


def _infer_pad(inputs: Any, params: Params) -> tuple[Shape, DType]:
    """`low` and `high` new elements before and after each axis, all `value`."""
    (x,) = inputs
    low, high = params["low"], params["high"]
    require(
        len(low) == len(high) == len(x.shape) and min((*low, *high), default=0) >= 0,
        f"pad: {list(low)}, {list(high)} do not fit shape {list(x.shape)}",
    )
    return tuple(extent + low[axis] + high[axis] for axis, extent in enumerate(x.shape)), x.dtype


def _pad(x: Array, low: Shape, high: Shape, value: float) -> Array:
    return np.pad(x, list(zip(low, high, strict=True)), constant_values=x.dtype.type(value)) if x.ndim else x


def _infer_concat(inputs: Any, params: Params) -> tuple[Shape, DType]:
    axis = params["axis"]
    first = inputs[0]
    for other in inputs:
        fits = len(other.shape) == len(first.shape) > axis >= 0 and all(
            a == b for i, (a, b) in enumerate(zip(first.shape, other.shape, strict=True)) if i != axis
        )
        require(fits, f"concat: {list(first.shape)} and {list(other.shape)} do not fit along axis {axis}")
        require(
            other.dtype == first.dtype,
            f"concat: dtypes {first.dtype.name} and {other.dtype.name} differ",
            DTypeError,
        )
    total = sum(other.shape[axis] for other in inputs)
    return (*first.shape[:axis], total, *first.shape[axis + 1 :]), first.dtype


def _infer_after(inputs: Any, params: Params) -> tuple[Shape, DType]:
    """x, and values that must be there before x is read here."""
    require(len(inputs) >= 2, "after: a value, and at least one that comes before it")
    return tuple(inputs[0].shape), inputs[0].dtype


def _vjp_slice(ct: Any, out: Any, inputs: Any, params: Params) -> tuple[Any]:
    (x,) = inputs
    start, size, step = params["start"], params["size"], params["step"]
    if any(abs(s) != 1 for s, n in zip(step, size, strict=True) if n > 1):
        return (_vjp_strided_slice(ct, x, start, size, step),)
    flip = tuple(axis for axis, s in enumerate(step) if s < 0 and size[axis] > 1)
    low = tuple(min(b, b + (n - 1) * s) if n else 0 for b, n, s in zip(start, size, step, strict=True))
    high = tuple(extent - n - at for extent, n, at in zip(x.shape, size, low, strict=True))
    return (e.bind("pad", _flip(ct, flip), low=low, high=high, value=0.0),)


def _flip(x: Any, axes: Shape) -> Any:
    if not axes:
        return x
    shape = x.shape
    start = tuple(n - 1 if axis in axes else 0 for axis, n in enumerate(shape))
    step = tuple(-1 if axis in axes else 1 for axis in range(len(shape)))
    return e.bind("slice", x, start=start, size=tuple(shape), step=step)


def _vjp_strided_slice(ct: Any, x: Any, start: Shape, size: Shape, step: Shape) -> Any:
    """Axis by axis: scatter the cotangent back to the rows that it came from."""
    from fusegraph.dtypes import int64

    for axis in range(len(size)):
        extent = x.shape[axis]
        if (start[axis], size[axis], step[axis]) == (0, extent, 1):
            continue
        rows = e.add(e.mul(e.iota(size[axis], int64, ct), step[axis]), start[axis])
        shape = (*ct.shape[:axis], extent, *ct.shape[axis + 1 :])
        zeros = e.expand(e.constant(0, ct), shape)
        ct = e.bind("put_add", zeros, rows, ct, axis=axis)
    return ct


def _vjp_pad(ct: Any, out: Any, inputs: Any, params: Params) -> tuple[Any]:
    (x,) = inputs
    return (e.bind("slice", ct, start=params["low"], size=tuple(x.shape), step=(1,) * len(x.shape)),)


def _vjp_concat(ct: Any, out: Any, inputs: Any, params: Params) -> tuple[Any, ...]:
    axis, at, parts = params["axis"], 0, []
    for x in inputs:
        start = tuple(at if i == axis else 0 for i in range(len(x.shape)))
        parts.append(e.bind("slice", ct, start=start, size=tuple(x.shape), step=(1,) * len(x.shape)))
        at += x.shape[axis]
    return tuple(parts)


def _vjp_permute(ct: Any, out: Any, inputs: Any, params: Params) -> tuple[Any]:
    return (e.permute(ct, tuple(int(i) for i in np.argsort(params["axes"]))),)


# Sliding windows over one axis: out[..., y, ..., k] = x[..., y * stride + k * dilation, ...]; the window axis comes last.


def _infer_window(inputs: Any, params: Params) -> tuple[Shape, DType]:
    (x,) = inputs
    axis, size, stride, dilation = params["axis"], params["size"], params["stride"], params["dilation"]
    count = (x.shape[axis] - dilation * (size - 1) - 1) // stride + 1
    require(count >= 1, f"window of {size} (dilation {dilation}) is larger than axis {axis} of shape {list(x.shape)}")
    return (*x.shape[:axis], count, *x.shape[axis + 1 :], size), x.dtype


def _window(x: Array, axis: int, size: int, stride: int, dilation: int) -> Array:
    count = (x.shape[axis] - dilation * (size - 1) - 1) // stride + 1
    index = stride * np.arange(count)[:, None] + dilation * np.arange(size)
    return np.moveaxis(np.take(x, index, axis), axis + 1, -1)


def _infer_fold(inputs: Any, params: Params) -> tuple[Shape, DType]:
    """The transpose of `window`: out[i] = the sum of all window elements that came from i; `extent` is the axis' size."""
    (x,) = inputs
    require(x.dtype.kind != "b", f"fold adds numbers, got bool{list(x.shape)}", DTypeError)
    axis = params["axis"]
    return (*x.shape[:axis], params["extent"], *x.shape[axis + 1 : -1]), x.dtype


def _fold(x: Array, axis: int, extent: int, stride: int, dilation: int) -> Array:
    out = np.zeros((*x.shape[:axis], extent, *x.shape[axis + 1 : -1]), x.dtype)
    moved = np.moveaxis(out, axis, -1)
    source = np.moveaxis(x, axis, -2)
    for k in range(x.shape[-1]):
        moved[..., k * dilation : k * dilation + (source.shape[-2] - 1) * stride + 1 : stride] += source[..., k]
    return out


def _vjp_window(ct: Any, out: Any, inputs: Any, params: Params) -> tuple[Any]:
    axis, stride, dilation = params["axis"], params["stride"], params["dilation"]
    return (e.bind("fold", ct, axis=axis, extent=inputs[0].shape[axis], stride=stride, dilation=dilation),)


def _vjp_fold(ct: Any, out: Any, inputs: Any, params: Params) -> tuple[Any]:
    (x,) = inputs
    axis, stride, dilation = params["axis"], params["stride"], params["dilation"]
    full = e.bind("window", ct, axis=axis, size=x.shape[-1], stride=stride, dilation=dilation)
    if full.shape == x.shape:
        return (full,)
    return (e.bind("slice", full, start=(0,) * len(x.shape), size=tuple(x.shape), step=(1,) * len(x.shape)),)


def _one(extents: Shape, /, **params: Any) -> Any:
    return lambda rng: ((rng.uniform(-2, 2, extents),), params)


def _all(*makers: Any) -> Any:
    return lambda rng: [make(rng) for make in makers]


register(
    Primitive(
        "reshape",
        "view",
        _infer_reshape,
        lambda x, shape: np.reshape(x, shape),
        vjp=lambda ct, out, inputs, params: (e.reshape(ct, inputs[0].shape),),
        samples=_all(
            _one((6,), shape=(2, 3)),
            _one((2, 3, 4), shape=(6, 4)),
            _one((2, 6), shape=(3, 4)),
            _one((), shape=(1, 1)),
            _one((0, 3), shape=(0,)),
        ),
        errors=lambda: [((np.zeros(6),), {"shape": (4,)}, ShapeError, "has 6 elements")],
    )
)
register(
    Primitive(
        "permute",
        "view",
        _infer_permute,
        lambda x, axes: np.transpose(x, axes),
        vjp=_vjp_permute,
        samples=_all(_one((3, 5), axes=(1, 0)), _one((2, 3, 4), axes=(2, 0, 1)), _one((0, 3), axes=(1, 0))),
        errors=lambda: [((np.zeros((2, 3)),), {"axes": (0, 0)}, ShapeError, "no order")],
    )
)
register(
    Primitive(
        "expand",
        "view",
        _infer_expand,
        lambda x, shape: np.broadcast_to(x, shape),
        vjp=lambda ct, out, inputs, params: (e.unexpand(ct, inputs[0].shape),),
        samples=_all(
            _one((), shape=(2, 3)),
            _one((3,), shape=(2, 3)),
            _one((2, 1, 4), shape=(2, 5, 4)),
            _one((1, 1), shape=(0, 4)),
        ),
        errors=lambda: [((np.zeros((2, 3)),), {"shape": (2, 4)}, ShapeError, "cannot broadcast")],
    )
)
register(
    Primitive(
        "slice",
        "view",
        _infer_slice,
        _slice,
        vjp=_vjp_slice,
        samples=_all(
            _one((7,), start=(2,), size=(4,), step=(1,)),
            _one((5, 9), start=(4, 1), size=(5, 4), step=(-1, 2)),
            _one((3, 4), start=(0, 3), size=(3, 2), step=(1, -3)),
            _one((4,), start=(0,), size=(0,), step=(1,)),
        ),
        errors=lambda: [((np.zeros(4),), {"start": (2,), "size": (3,), "step": (1,)}, ShapeError, "outside of axis 0")],
    )
)
register(
    Primitive(
        "pad",
        "view",
        _infer_pad,
        _pad,
        vjp=_vjp_pad,
        samples=_all(
            _one((3,), low=(1,), high=(2,), value=0.0),
            _one((2, 5), low=(0, 2), high=(1, 0), value=-1.5),
            _one((0, 2), low=(1, 0), high=(0, 0), value=0.0),
        ),
    )
)
register(
    Primitive(
        "concat",
        "view",
        _infer_concat,
        lambda *xs, axis: np.concatenate(xs, axis),
        vjp=_vjp_concat,
        samples=lambda rng: [
            ((rng.uniform(-2, 2, (2, 3)), rng.uniform(-2, 2, (4, 3))), {"axis": 0}),
            ((rng.uniform(-2, 2, (2, 3)), rng.uniform(-2, 2, (2, 0)), rng.uniform(-2, 2, (2, 5))), {"axis": 1}),
        ],
        errors=lambda: [((np.zeros((2, 3)), np.zeros((2, 4))), {"axis": 0}, ShapeError, "do not fit")],
    )
)
register(
    Primitive(
        "window",
        "view",
        _infer_window,
        _window,
        vjp=_vjp_window,
        samples=_all(
            _one((9,), axis=0, size=3, stride=1, dilation=1),
            _one((2, 8, 3), axis=1, size=2, stride=2, dilation=1),
            _one((2, 10), axis=1, size=3, stride=2, dilation=2),
        ),
        errors=lambda: [((np.zeros(4),), {"axis": 0, "size": 5, "stride": 1, "dilation": 1}, ShapeError, "larger")],
    )
)
register(
    Primitive(
        "fold",
        "reduce",
        _infer_fold,
        _fold,
        vjp=_vjp_fold,
        samples=_all(
            _one((7, 3), axis=0, extent=9, stride=1, dilation=1),
            _one((2, 4, 3, 2), axis=1, extent=8, stride=2, dilation=1),
            _one((2, 3, 3), axis=1, extent=10, stride=2, dilation=2),
            _one((3, 2), axis=0, extent=9, stride=3, dilation=1),
        ),
    )
)
register(
    Primitive(
        "after",
        "view",
        _infer_after,
        lambda x, *before: x,
        vjp=lambda ct, out, inputs, params: (ct, *(None,) * (len(inputs) - 1)),
        samples=lambda rng: [
            ((rng.uniform(-2, 2, (2, 3)), np.arange(4)), {}),
            ((rng.uniform(-2, 2, (5,)), np.arange(2), np.arange(3)), {}),
        ],
        errors=lambda: [((np.zeros(3),), {}, ShapeError, "at least one that comes before")],
    )
)
