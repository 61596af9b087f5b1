"""Reductions: sums, means, extremes over axes.

`dim` is an axis, several, or None for all; `keepdim` keeps them with size 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from fusegraph.autograd import with_vjp
from fusegraph.dtypes import bool_, float32, int64, is_float
from fusegraph.errors import OptionError, ShapeError
from fusegraph.ir import emit
from fusegraph.ops import elementwise as ew
from fusegraph.tensor import Tensor, as_tensor, user_error

Dims = int | Sequence[int] | None

__all__ = [
    "all",
    "amax",
    "amin",
    "any",
    "argmax",
    "argmin",
    "count_nonzero",
    "cumprod",
    "cumsum",
    "logsumexp",
    "max",
    "mean",
    "min",
    "norm",
    "prod",
    "std",
    "sum",
    "var",
    "var_mean",
    "ValuesAndIndices",
]


class ValuesAndIndices(NamedTuple):
    """What `max(dim)` and `min(dim)` give."""

    values: Tensor
    indices: Tensor


def resolve_dims(name: str, x: Tensor, dim: Dims) -> tuple[int, ...]:
    """`dim` as axes counted from the front, in order.

    Raises ShapeError for one that does not exist, or stands twice.
    """
    dims = range(x.ndim) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    for axis in dims:
        if not -x.ndim <= axis < x.ndim:
            raise user_error(
                ShapeError,
                f"{name}: dim {axis} does not exist in a tensor of shape {list(x.shape)}"
                + (" (a 0-d tensor has no axis)" if not x.ndim else ""),
            )
    axes = tuple(sorted(axis % x.ndim for axis in dims))
    if len(set(axes)) != len(axes):
        raise user_error(ShapeError, f"{name}: dims {list(dims)} name an axis twice")
    return axes


def _axes(name: str, x: Tensor, dim: Dims) -> tuple[int, ...]:
    """`dim` as axes; no axes at all (an empty tuple) mean all of them, as None does (as in PyTorch)."""
    return resolve_dims(name, x, None if isinstance(dim, Sequence) and not len(dim) else dim)


def _reduce(name: str, x: Tensor, dim: Dims, keepdim: bool, op: str | None = None) -> Tensor:
    axes = _axes(name, x, dim)
    out = emit.bind(op or name, x, axes=axes) if axes else x
    return keep_dims(out, x, axes) if keepdim else out


def keep_dims(out: Tensor, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """`out`, reduced from `x` over `axes`, with those axes put back with size 1."""
    return emit.reshape(out, tuple(1 if i in axes else n for i, n in enumerate(x.shape)))  # type: ignore[no-any-return]


def sum(x: Any, dim: Dims = None, keepdim: bool = False, dtype: Any = None) -> Tensor:  # noqa: A001
    """The sum over `dim`; bools and small integers are added as int64."""
    x = as_tensor(x)
    if dtype is not None or not is_float(x.dtype):
        x = ew.cast(x, dtype or int64)
    return _reduce("sum", x, dim, keepdim)


def mean(x: Any, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The mean over `dim`."""
    x = as_tensor(x)
    x = x if is_float(x.dtype) else ew.cast(x, float32)
    count = math.prod(x.shape[axis] for axis in _axes("mean", x, dim))
    return ew.mul(sum(x, dim, keepdim), 1.0 / count if count else float("nan"))


def prod(x: Any, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The product over `dim`."""
    x = as_tensor(x)
    return _reduce("prod", x if is_float(x.dtype) else ew.cast(x, int64), dim, keepdim)


def var(x: Any, dim: Dims = None, correction: float = 1, keepdim: bool = False) -> Tensor:
    """The variance over `dim`, divided by (count - correction)."""
    x = as_tensor(x)
    x = x if is_float(x.dtype) else ew.cast(x, float32)
    count = math.prod(x.shape[axis] for axis in _axes("var", x, dim))
    centred = ew.sub(x, mean(x, dim, True))
    left = count - correction
    return ew.mul(sum(ew.mul(centred, centred), dim, keepdim), 1.0 / left if left > 0 else float("nan"))


def std(x: Any, dim: Dims = None, correction: float = 1, keepdim: bool = False) -> Tensor:
    """The standard deviation over `dim`."""
    return root(var(x, dim, correction, keepdim))


def root(total: Tensor) -> Tensor:
    """The square root of a sum of squares; where that is 0 the gradient is 0, not 0 * inf."""
    if not total.requires_grad:
        return ew.sqrt(total)
    zero = ew.eq(total.detach(), 0.0)
    return ew.where(zero, 0.0, ew.sqrt(ew.where(zero, 1.0, total)))


def var_mean(x: Any, dim: Dims = None, correction: float = 1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The variance, and the mean, over `dim`."""
    return var(x, dim, correction, keepdim), mean(x, dim, keepdim)


def amax(x: Any, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The largest over `dim`; equal ones share the gradient, as in PyTorch."""
    return _shared_extreme("max", x, dim, keepdim)


def amin(x: Any, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The smallest over `dim`; equal ones share the gradient, as in PyTorch."""
    return _shared_extreme("min", x, dim, keepdim)


def _shared_extreme(op: str, x: Any, dim: Dims, keepdim: bool) -> Tensor:
    """The extreme, whose gradient goes in equal shares to all elements that equal it."""
    x = as_tensor(x)
    axes = _axes(f"a{op}", x, dim)
    if not axes:
        return x

    def vjp(ct: Tensor, out: Tensor, x: Tensor) -> tuple[Tensor]:
        chosen = ew.eq(x, keep_dims(out, x, axes)).detach()
        share = ew.div(ct, sum(ew.cast(chosen, x.dtype), axes))
        return (ew.where(chosen, keep_dims(share, x, axes), 0.0),)

    out = with_vjp(lambda x: emit.bind(op, x, axes=axes), [x], vjp)
    return keep_dims(out, x, axes) if keepdim else out


def max(x: Any, dim: Any = None, keepdim: bool = False) -> Any:  # noqa: A001
    """The largest of all; with `dim`: (values, indices), the first of equal ones; with another tensor: `maximum`."""
    return _extreme("max", x, dim, keepdim)


def min(x: Any, dim: Any = None, keepdim: bool = False) -> Any:  # noqa: A001
    """The smallest of all; with `dim`: (values, indices), the first of equal ones; with another tensor: `minimum`."""
    return _extreme("min", x, dim, keepdim)


def _extreme(op: str, x: Any, dim: Any, keepdim: bool) -> Any:
    x = as_tensor(x)
    if dim is None:
        return _shared_extreme(op, x, None, False)
    if not isinstance(dim, int):
        return ew.maximum(x, dim) if op == "max" else ew.minimum(x, dim)
    if x.ndim == 0:
        resolve_dims(op, x, dim)
    return ValuesAndIndices(_reduce(op, x, dim, keepdim), _reduce(op, x, dim, keepdim, f"arg{op}"))


def argmax(x: Any, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The (int64) position of the first largest; over all elements when `dim` is None."""
    return _arg("argmax", as_tensor(x), dim, keepdim)


def argmin(x: Any, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The (int64) position of the first smallest; over all elements when `dim` is None."""
    return _arg("argmin", as_tensor(x), dim, keepdim)


def _arg(op: str, x: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    if x.ndim == 0 and dim is None:
        return ew.cast(ew.mul(ew.cast(x, bool_), False), int64)
    return _reduce(op, x, dim, keepdim)


def any(x: Any, dim: Dims = None, keepdim: bool = False) -> Tensor:  # noqa: A001
    """Whether one element over `dim` is true (of none: no)."""
    return _truth("any", ew.cast(x, bool_), dim, keepdim)


def all(x: Any, dim: Dims = None, keepdim: bool = False) -> Tensor:  # noqa: A001
    """Whether all elements over `dim` are true (of none: yes)."""
    return _truth("all", ew.cast(x, bool_), dim, keepdim)


def _truth(name: str, x: Tensor, dim: Dims, keepdim: bool) -> Tensor:
    axes = _axes(name, x, dim)
    if 0 in (x.shape[axis] for axis in axes):  # the primitives have no extreme of nothing
        count = sum(x, axes, keepdim)
        return ew.eq(count, 0) if name == "all" else ew.ne(count, 0)
    return _reduce(name, x, axes if axes else (), keepdim, "max" if name == "any" else "min")


def count_nonzero(x: Any, dim: Dims = None) -> Tensor:
    """How many elements over `dim` are not zero."""
    return sum(ew.cast(x, bool_), dim)


def logsumexp(x: Any, dim: Dims, keepdim: bool = False) -> Tensor:
    """log(sum(exp(x))) over `dim`, without overflow; all -inf gives -inf."""
    x = as_tensor(x)
    axes = resolve_dims("logsumexp", x, dim)
    top = _reduce("logsumexp", x.detach(), axes, True, "max")
    top = ew.where(ew.isfinite(top), top, 0.0)
    out = ew.add(ew.log(sum(ew.exp(ew.sub(x, top)), axes, True)), top)
    return out if keepdim else emit.reshape(out, tuple(n for i, n in enumerate(x.shape) if i not in axes))


def norm(x: Any, p: float | str = 2, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The p-norm over `dim`: 2 (or "fro"), 1, 0 (how many are not 0), inf, -inf, or any other number."""
    x = as_tensor(x)
    if p in (2, "fro"):
        return root(sum(ew.mul(x, x), dim, keepdim))
    if not isinstance(p, (int, float)):
        raise user_error(OptionError, f"norm: p must be a number or 'fro', got {p!r}")
    if math.isinf(p):
        return (amax if p > 0 else amin)(ew.abs(x), dim, keepdim)
    if p == 1:
        return sum(ew.abs(x), dim, keepdim)
    if p == 0:
        return sum(ew.cast(ew.ne(x, 0), x.dtype), dim, keepdim)
    total = sum(ew.pow(ew.abs(x), p), dim, keepdim)
    zero = ew.eq(total.detach(), 0.0)  # as in `root`
    return ew.where(zero, 0.0, ew.pow(ew.where(zero, 1.0, total), 1.0 / p))


def cumsum(x: Any, dim: int, dtype: Any = None) -> Tensor:
    """Running sums along `dim`; bools and integers as int64. In log2(size) steps, each a shifted addition."""
    x = as_tensor(x)
    if dtype is not None or not is_float(x.dtype):
        x = ew.cast(x, dtype or int64)
    return _scan("cumsum", x, dim, ew.add, 0)


def cumprod(x: Any, dim: int, dtype: Any = None) -> Tensor:
    """Running products along `dim`; bools and integers as int64."""
    x = as_tensor(x)
    if dtype is not None or not is_float(x.dtype):
        x = ew.cast(x, dtype or int64)
    return _scan("cumprod", x, dim, ew.mul, 1)


def _scan(name: str, x: Tensor, dim: int, combine: Any, neutral: int) -> Tensor:
    """Hillis and Steele's scan: after the step with `shift`, element i holds the last 2 * shift elements up to i."""
    (axis,) = resolve_dims(name, x, dim)
    extent, shift = x.shape[axis], 1
    while shift < extent:
        size = tuple(n - shift if i == axis else n for i, n in enumerate(x.shape))
        head = emit.bind("slice", x, start=(0,) * x.ndim, size=size, step=(1,) * x.ndim)
        low = tuple(shift if i == axis else 0 for i in range(x.ndim))
        x = combine(x, emit.bind("pad", head, low=low, high=(0,) * x.ndim, value=neutral))
        shift *= 2
    return x
