"""Rearranging: rolling, tiling, moving axes, stacking in several ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusegraph.errors import IndexRangeError, OptionError, ShapeError
from fusegraph.ir import emit
from fusegraph.ops import shape
from fusegraph.ops.elementwise import broadcast_shapes
from fusegraph.ops.reduce import resolve_dims
from fusegraph.tensor import Tensor, as_tensor, user_error

__all__ = [
    "atleast_1d",
    "atleast_2d",
    "broadcast_tensors",
    "column_stack",
    "hstack",
    "meshgrid",
    "moveaxis",
    "movedim",
    "narrow",
    "ravel",
    "repeat_interleave",
    "roll",
    "rot90",
    "tile",
    "vstack",
]


def ravel(x: Any) -> Tensor:
    """All elements as a vector."""
    return shape.flatten(x)


def narrow(x: Any, dim: int, start: int, length: int) -> Tensor:
    """`length` elements of axis `dim` from `start` on."""
    x = as_tensor(x)
    (axis,) = resolve_dims("narrow", x, dim)
    start = start + x.shape[axis] if start < 0 else start
    if length < 0 or start < 0 or start + length > x.shape[axis]:
        raise user_error(
            IndexRangeError, f"narrow: {start} .. {start + length} is outside of axis {axis} of shape {list(x.shape)}"
        )
    return shape.slice_axis(x, axis, start if length else 0, length)


def movedim(x: Any, source: int | Sequence[int], destination: int | Sequence[int]) -> Tensor:
    """Axes `source` moved to the places `destination`; the others keep their order."""
    x = as_tensor(x)
    given = [[dims] if isinstance(dims, int) else list(dims) for dims in (source, destination)]
    if len(given[0]) != len(given[1]):
        raise user_error(ShapeError, f"movedim: {len(given[0])} axes for {len(given[1])} places")
    for dims in given:
        resolve_dims("movedim", x, dims)
    sources, places = ([dim % x.ndim for dim in dims] for dims in given)
    rest = iter(axis for axis in range(x.ndim) if axis not in sources)
    placed = dict(zip(places, sources, strict=True))
    return emit.permute(x, tuple(placed[i] if i in placed else next(rest) for i in range(x.ndim)))  # type: ignore[no-any-return]


moveaxis = movedim


def tile(x: Any, *dims: Any) -> Tensor:
    """`x` repeated along each axis; missing counts in front are 1."""
    x = as_tensor(x)
    counts = shape._sizes(dims)
    return shape.repeat(x, (1,) * (x.ndim - len(counts)) + counts)


def repeat_interleave(x: Any, repeats: int, dim: int | None = None) -> Tensor:
    """Every element (or slice of axis `dim`) repeated `repeats` times in place."""
    x = as_tensor(x)
    if not isinstance(repeats, int) or repeats < 0:
        raise user_error(
            OptionError, f"repeat_interleave: repeats must be a whole number of at least 0, got {repeats!r}"
        )
    if dim is None:
        x, dim = ravel(x), 0
    (axis,) = resolve_dims("repeat_interleave", x, dim)
    spread = (*x.shape[: axis + 1], repeats, *x.shape[axis + 1 :])
    out = emit.expand(shape.unsqueeze(x, axis + 1), spread)
    return emit.reshape(out, (*x.shape[:axis], x.shape[axis] * repeats, *x.shape[axis + 1 :]))  # type: ignore[no-any-return]


def roll(x: Any, shifts: int | Sequence[int], dims: int | Sequence[int] | None = None) -> Tensor:
    """Elements moved along `dims` by `shifts`; what leaves at the end comes in at the beginning."""
    x = as_tensor(x)
    if dims is None:
        if not isinstance(shifts, int):
            raise user_error(ShapeError, "roll: several shifts need dims")
        return shape.reshape(roll(ravel(x), shifts, 0), x.shape)
    pairs = list(
        zip([shifts] if isinstance(shifts, int) else shifts, [dims] if isinstance(dims, int) else dims, strict=True)
    )
    for shift, dim in pairs:
        (axis,) = resolve_dims("roll", x, dim)
        extent = x.shape[axis]
        cut = -shift % extent if extent else 0
        if cut:
            x = shape.cat([shape.slice_axis(x, axis, cut, extent - cut), shape.slice_axis(x, axis, 0, cut)], axis)
    return x


def rot90(x: Any, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
    """The plane of two axes turned by k right angles, from the first axis towards the second."""
    x = as_tensor(x)
    first, second = dims
    k %= 4
    if k == 2:
        return shape.flip(x, (first, second))
    if k == 1:
        return shape.transpose(shape.flip(x, (second,)), first, second)
    return shape.flip(shape.transpose(x, first, second), (second,)) if k == 3 else x


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Tensor, ...]:
    """Each vector repeated along the axes of the others; "xy" exchanges the first two axes."""
    given = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else tensors
    vectors = [ravel(x) for x in given]
    if indexing not in ("ij", "xy"):
        raise user_error(OptionError, f"meshgrid: indexing must be 'ij' or 'xy', got {indexing!r}")
    full = tuple(x.shape[0] for x in vectors)
    grids = [
        emit.expand(emit.reshape(x, tuple(n if i == axis else 1 for i, n in enumerate(full))), full)
        for axis, x in enumerate(vectors)
    ]
    if indexing == "xy" and len(full) > 1:
        grids = [shape.transpose(grid, 0, 1) for grid in grids]
    return tuple(grids)


def broadcast_tensors(*tensors: Any) -> tuple[Tensor, ...]:
    """All of them in the shape that they broadcast to."""
    given = [as_tensor(x) for x in tensors]
    full = broadcast_shapes("broadcast_tensors", *(x.shape for x in given))
    return tuple(emit.expand(x, full) for x in given)


def atleast_1d(x: Any) -> Tensor:
    """With one axis at least."""
    x = as_tensor(x)
    return x if x.ndim else emit.reshape(x, (1,))


def atleast_2d(x: Any) -> Tensor:
    """With two axes at least (new ones in front)."""
    x = atleast_1d(x)
    return x if x.ndim > 1 else shape.unsqueeze(x, 0)


def hstack(tensors: Sequence[Any]) -> Tensor:
    """Side by side: joined along axis 1 (vectors along axis 0)."""
    parts = [atleast_1d(x) for x in tensors]
    return shape.cat(parts, 0 if parts and parts[0].ndim == 1 else 1)


def vstack(tensors: Sequence[Any]) -> Tensor:
    """One below the other: joined along axis 0, vectors as rows."""
    return shape.cat([atleast_2d(x) for x in tensors], 0)


def column_stack(tensors: Sequence[Any]) -> Tensor:
    """Vectors as columns, matrices side by side."""
    parts = [atleast_1d(x) for x in tensors]
    return shape.cat([shape.unsqueeze(x, 1) if x.ndim == 1 else x for x in parts], 1)
