"""Shapes: views of the same elements, joining and splitting, and the matrix product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fusegraph.dtypes import promote
from fusegraph.errors import ShapeError
from fusegraph.ir import emit
from fusegraph.ops import elementwise as ew
from fusegraph.ops.reduce import resolve_dims
from fusegraph.tensor import Tensor, as_tensor, user_error

__all__ = [
    "broadcast_to",
    "cat",
    "chunk",
    "concat",
    "contiguous",
    "expand",
    "expand_as",
    "flatten",
    "flip",
    "matmul",
    "mT",
    "pad",
    "permute",
    "repeat",
    "reshape",
    "reshape_as",
    "split",
    "squeeze",
    "stack",
    "swapaxes",
    "t",
    "transpose",
    "unbind",
    "unflatten",
    "unfold",
    "unsqueeze",
    "view",
]


def _sizes(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Sizes given one by one, or as one sequence."""
    given = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    return tuple(int(n) for n in given)


def reshape(x: Any, *shape: Any) -> Tensor:
    """The same elements, in C order, in another shape; one size may be -1."""
    x = as_tensor(x)
    sizes = list(_sizes(shape))
    if sizes.count(-1) > 1:
        raise user_error(ShapeError, f"reshape to {sizes}: only one size can be -1")
    if -1 in sizes:
        known = 1
        for n in sizes:
            known *= n if n != -1 else 1
        if known == 0 or x.numel() % known:
            raise user_error(ShapeError, f"reshape: {x.numel()} elements of shape {list(x.shape)} do not fit {sizes}")
        sizes[sizes.index(-1)] = x.numel() // known
    return emit.reshape(x, tuple(sizes))  # type: ignore[no-any-return]


def view(x: Any, *shape: Any) -> Tensor:
    """`reshape` (a tensor here has no memory layout that could refuse it)."""
    return reshape(x, *shape)


def reshape_as(x: Any, other: Tensor) -> Tensor:
    """`x` in `other`'s shape."""
    return reshape(x, other.shape)


def flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Axes start_dim .. end_dim (both included) as one."""
    x = as_tensor(x)
    if x.ndim == 0:
        return emit.reshape(x, (1,))  # type: ignore[no-any-return]
    (first,), (last,) = resolve_dims("flatten", x, start_dim), resolve_dims("flatten", x, end_dim)
    if first > last:
        raise user_error(
            ShapeError, f"flatten: start_dim {start_dim} comes after end_dim {end_dim} in shape {list(x.shape)}"
        )
    joined = 1
    for n in x.shape[first : last + 1]:
        joined *= n
    return emit.reshape(x, (*x.shape[:first], joined, *x.shape[last + 1 :]))  # type: ignore[no-any-return]


def unflatten(x: Any, dim: int, sizes: Sequence[int]) -> Tensor:
    """Axis `dim` taken apart into axes of the given sizes (one may be -1)."""
    x = as_tensor(x)
    (axis,) = resolve_dims("unflatten", x, dim)
    sizes = list(sizes)
    if sizes.count(-1) == 1:
        known = -math.prod(sizes)
        sizes[sizes.index(-1)] = x.shape[axis] // known if known else 0
    if math.prod(sizes) != x.shape[axis] or min(sizes, default=0) < 0:
        raise user_error(
            ShapeError,
            f"unflatten: sizes {sizes} do not multiply to {x.shape[axis]}, axis {axis} of shape {list(x.shape)}",
        )
    return emit.reshape(x, (*x.shape[:axis], *sizes, *x.shape[axis + 1 :]))  # type: ignore[no-any-return]


def permute(x: Any, *dims: Any) -> Tensor:
    """The axes in another order."""
    x = as_tensor(x)
    axes = tuple(axis % x.ndim if -x.ndim <= axis < x.ndim else axis for axis in _sizes(dims))
    return emit.permute(x, axes)  # type: ignore[no-any-return]


def transpose(x: Any, dim0: int, dim1: int) -> Tensor:
    """Two axes exchanged."""
    x = as_tensor(x)
    (a,), (b,) = resolve_dims("transpose", x, dim0), resolve_dims("transpose", x, dim1)
    order = list(range(x.ndim))
    order[a], order[b] = b, a
    return emit.permute(x, order)  # type: ignore[no-any-return]


def swapaxes(x: Any, dim0: int, dim1: int) -> Tensor:
    """`transpose`."""
    return transpose(x, dim0, dim1)


def t(x: Any) -> Tensor:
    """A matrix transposed; vectors and numbers as they are."""
    x = as_tensor(x)
    if x.ndim > 2:
        raise user_error(
            ShapeError, f"t() takes at most two axes, got shape {list(x.shape)}; use .mT or .transpose(a, b)"
        )
    return transpose(x, 0, 1) if x.ndim == 2 else x


def mT(x: Any) -> Tensor:
    """The last two axes exchanged."""
    return transpose(x, -2, -1)


def squeeze(x: Any, dim: Any = None) -> Tensor:
    """Without axes of size 1 (all of them, or those in `dim`)."""
    x = as_tensor(x)
    axes = resolve_dims("squeeze", x, dim)
    return emit.reshape(x, tuple(n for i, n in enumerate(x.shape) if not (i in axes and n == 1)))  # type: ignore[no-any-return]


def unsqueeze(x: Any, dim: int) -> Tensor:
    """With a new axis of size 1 at `dim`."""
    x = as_tensor(x)
    if not -x.ndim - 1 <= dim <= x.ndim:
        raise user_error(ShapeError, f"unsqueeze: dim {dim} does not fit shape {list(x.shape)}")
    at = dim % (x.ndim + 1)
    return emit.reshape(x, (*x.shape[:at], 1, *x.shape[at:]))  # type: ignore[no-any-return]


def expand(x: Any, *shape: Any) -> Tensor:
    """Broadcast to `shape`; -1 keeps a size."""
    x = as_tensor(x)
    sizes = _sizes(shape)
    lead = len(sizes) - x.ndim
    if lead >= 0:
        sizes = tuple(x.shape[i - lead] if n == -1 and i >= lead else n for i, n in enumerate(sizes))
    return emit.expand(x, sizes)  # type: ignore[no-any-return]


def broadcast_to(x: Any, shape: Sequence[int]) -> Tensor:
    """`expand`."""
    return expand(x, tuple(shape))


def expand_as(x: Any, other: Tensor) -> Tensor:
    """`x` broadcast to `other`'s shape."""
    return expand(x, other.shape)


def repeat(x: Any, *times: Any) -> Tensor:
    """`x` repeated `times` along each axis (new axes in front)."""
    x = as_tensor(x)
    counts = _sizes(times)
    if len(counts) < x.ndim:
        raise user_error(ShapeError, f"repeat: {len(counts)} counts for shape {list(x.shape)}")
    shape = (1,) * (len(counts) - x.ndim) + x.shape
    mixed = tuple(n for pair in zip(counts, shape, strict=True) for n in pair)
    spread = emit.expand(emit.reshape(x, tuple(n for s in shape for n in (1, s))), mixed)
    return emit.reshape(spread, tuple(c * s for c, s in zip(counts, shape, strict=True)))  # type: ignore[no-any-return]


def flip(x: Any, *dims: Any) -> Tensor:
    """The order along `dims` reversed."""
    x = as_tensor(x)
    axes = resolve_dims("flip", x, _sizes(dims))
    start = tuple(n - 1 if i in axes and n else 0 for i, n in enumerate(x.shape))
    step = tuple(-1 if i in axes else 1 for i in range(x.ndim))
    return emit.bind("slice", x, start=start, size=x.shape, step=step)  # type: ignore[no-any-return]


def contiguous(x: Any) -> Tensor:
    """The tensor itself: the compiler lays memory out."""
    return as_tensor(x)


def cat(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    """Tensors joined along `dim`."""
    parts = [as_tensor(part) for part in tensors]
    if not parts:
        raise user_error(ShapeError, "cat of no tensors")
    kind = parts[0].dtype
    for part in parts[1:]:
        kind = promote(kind, part.dtype)
    (axis,) = resolve_dims("cat", parts[0], dim)
    if len(parts) == 1:
        return parts[0]
    return emit.bind("concat", *(ew.cast(part, kind) for part in parts), axis=axis)  # type: ignore[no-any-return]


def concat(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    """`cat`."""
    return cat(tensors, dim)


def stack(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    """Tensors of one shape joined along a new axis `dim`."""
    return cat([unsqueeze(part, dim) for part in tensors], dim)


def slice_axis(x: Tensor, axis: int, start: int, size: int, step: int = 1) -> Tensor:
    """`size` elements of `axis` from `start` on, `step` apart; the other axes whole."""
    return emit.bind(
        "slice",
        x,
        start=tuple(start if i == axis else 0 for i in range(x.ndim)),  # type: ignore[no-any-return]
        size=tuple(size if i == axis else n for i, n in enumerate(x.shape)),
        step=tuple(step if i == axis else 1 for i in range(x.ndim)),
    )


def split(x: Any, split_size_or_sections: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Parts of the given size (the last may be smaller), or of the given sizes, along `dim`."""
    x = as_tensor(x)
    (axis,) = resolve_dims("split", x, dim)
    extent = x.shape[axis]
    if isinstance(split_size_or_sections, int):
        step = split_size_or_sections
        if step < 1:
            raise user_error(ShapeError, f"split: a part needs at least 1 element, got {step}")
        sections = [min(step, extent - at) for at in range(0, extent, step)] or [0]
    else:
        sections = list(split_size_or_sections)
        if sum(sections) != extent:
            raise user_error(
                ShapeError, f"split: sizes {sections} do not add up to {extent}, axis {axis} of shape {list(x.shape)}"
            )
    starts = [sum(sections[:i]) for i in range(len(sections))]
    return tuple(slice_axis(x, axis, start if size else 0, size) for start, size in zip(starts, sections, strict=True))


def chunk(x: Any, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most `chunks` parts of equal size (the last may be smaller) along `dim`."""
    x = as_tensor(x)
    (axis,) = resolve_dims("chunk", x, dim)
    return split(x, max(1, -(-x.shape[axis] // chunks)), axis)


def unbind(x: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """The slices along `dim`, without that axis."""
    x = as_tensor(x)
    (axis,) = resolve_dims("unbind", x, dim)
    return tuple(squeeze(slice_axis(x, axis, i, 1), axis) for i in range(x.shape[axis]))


def unfold(x: Any, dimension: int, size: int, step: int, dilation: int = 1) -> Tensor:
    """Sliding windows of `size` along `dimension`, `step` apart; the window's axis comes last (as Tensor.unfold)."""
    x = as_tensor(x)
    (axis,) = resolve_dims("unfold", x, dimension)
    return emit.bind("window", x, axis=axis, size=size, stride=step, dilation=dilation)  # type: ignore[no-any-return]


def pad(x: Any, pad: Sequence[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """New elements around `x`;

    `pad` is (low, high) of the last axis, then of the one before, ... (as F.pad). Negative crops.
    """
    x = as_tensor(x)
    if mode != "constant":
        raise user_error(ShapeError, f"pad: mode {mode!r} is not supported, only 'constant'")
    if len(pad) % 2 or len(pad) > 2 * x.ndim:
        raise user_error(ShapeError, f"pad: {len(pad)} numbers do not fit shape {list(x.shape)}")
    low, high = [0] * x.ndim, [0] * x.ndim
    for i in range(len(pad) // 2):
        low[-1 - i], high[-1 - i] = pad[2 * i], pad[2 * i + 1]
    start = tuple(-min(a, 0) for a in low)
    size = tuple(n + min(a, 0) + min(b, 0) for n, a, b in zip(x.shape, low, high, strict=True))
    if size != x.shape:
        x = emit.bind("slice", x, start=start, size=size, step=(1,) * x.ndim)
    if all(n <= 0 for n in (*low, *high)):
        return x
    return emit.bind("pad", x, low=tuple(max(n, 0) for n in low), high=tuple(max(n, 0) for n in high), value=value)  # type: ignore[no-any-return]


def matmul(a: Any, b: Any) -> Tensor:
    """The matrix product, batched and broadcast over leading axes as in PyTorch (vectors too)."""
    a, b = as_tensor(a), as_tensor(b)
    if not a.ndim or not b.ndim:
        raise user_error(
            ShapeError, f"matmul: shapes {list(a.shape)} and {list(b.shape)}: a 0-d tensor is no matrix; use *"
        )
    kind = promote(a.dtype, b.dtype)
    left = emit.reshape(ew.cast(a, kind), (1, *a.shape)) if a.ndim == 1 else ew.cast(a, kind)
    right = emit.reshape(ew.cast(b, kind), (*b.shape, 1)) if b.ndim == 1 else ew.cast(b, kind)
    if left.shape[-1] != right.shape[-2]:
        raise user_error(
            ShapeError,
            f"matmul: shapes {list(a.shape)} and {list(b.shape)}: the inner sizes {left.shape[-1]} and "
            f"{right.shape[-2]} differ",
        )
    out = _batched(left, right)
    if b.ndim == 1:
        out = emit.reshape(out, out.shape[:-1])
    return emit.reshape(out, (*out.shape[:-2], out.shape[-1]) if b.ndim > 1 else out.shape[:-1]) if a.ndim == 1 else out


def _batched(left: Tensor, right: Tensor) -> Tensor:
    if right.ndim == 2 and left.ndim > 2:  # one matrix for the whole batch: a single, taller product
        rows = (
            emit.reshape(left, (-1 if left.numel() == 0 else left.numel() // left.shape[-1], left.shape[-1]))
            if left.numel()
            else None
        )
        if rows is not None:
            return emit.reshape(emit.matmul(rows, right), (*left.shape[:-1], right.shape[-1]))  # type: ignore[no-any-return]
    batch = ew.broadcast_shapes("matmul", left.shape[:-2], right.shape[:-2])
    return emit.matmul(emit.expand(left, (*batch, *left.shape[-2:])), emit.expand(right, (*batch, *right.shape[-2:])))  # type: ignore[no-any-return]
