"""Primitives as functions: what VJP rules are written with.

An operand decides by itself what applying a primitive means (`__fg_bind__`): a tensor computes or records, a tracer adds a
node. So one VJP table serves eager tensors, traced functions and graph rewrites.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusegraph.dtypes import DType, name_of


def bind(name: str, *inputs: Any, **params: Any) -> Any:
    """Apply primitive `name` to operands of exactly the shapes and dtypes that it takes."""
    for value in inputs:
        binder = getattr(type(value), "__fg_bind__", None)
        if binder is not None:
            return binder(value, name, inputs, params)
    raise TypeError(f"{name}: no operand knows how to apply a primitive: {inputs!r}")


def constant(value: Any, like: Any, dtype: DType | None = None) -> Any:
    """A 0-d constant of `like`'s dtype (or of `dtype`), in the world that `like` lives in."""
    kind = dtype or like.dtype
    return like.__fg_bind__("constant", (), {"value": kind.type(value).item(), "dtype": name_of(kind)})


def full_like(like: Any, value: Any) -> Any:
    """A constant of `like`'s shape and dtype."""
    return expand(constant(value, like), like.shape)


def iota(count: int, dtype: DType, like: Any) -> Any:
    """0, 1, ... count - 1."""
    return like.__fg_bind__("iota", (), {"size": count, "dtype": name_of(dtype)})


def zip_(name: str, a: Any, b: Any) -> Any:
    """A binary zip of two operands of one shape; either may be a Python scalar."""
    if not hasattr(a, "__fg_bind__"):
        a = full_like(b, a)
    if not hasattr(b, "__fg_bind__"):
        b = full_like(a, b)
    return bind(name, a, b)


def add(a: Any, b: Any) -> Any:
    return zip_("add", a, b)


def sub(a: Any, b: Any) -> Any:
    return zip_("sub", a, b)


def mul(a: Any, b: Any) -> Any:
    return zip_("mul", a, b)


def div(a: Any, b: Any) -> Any:
    return zip_("div", a, b)


def eq(a: Any, b: Any) -> Any:
    return zip_("eq", a, b)


def gt(a: Any, b: Any) -> Any:
    return zip_("gt", a, b)


def lt(a: Any, b: Any) -> Any:
    return zip_("lt", a, b)


def ge(a: Any, b: Any) -> Any:
    return zip_("ge", a, b)


def neg(a: Any) -> Any:
    return bind("neg", a)


def where(condition: Any, a: Any, b: Any) -> Any:
    """`a` where `condition`, else `b`; either may be a Python scalar."""
    if not hasattr(a, "__fg_bind__"):
        a = full_like(b, a)
    if not hasattr(b, "__fg_bind__"):
        b = full_like(a, b)
    return bind("where", condition, a, b)


def cast(a: Any, dtype: DType) -> Any:
    """`a` as `dtype`; `a` itself when it has that type."""
    return a if a.dtype == dtype else bind("cast", a, dtype=name_of(dtype))


def reshape(a: Any, shape: Sequence[int]) -> Any:
    """`a` with another shape of as many elements."""
    return a if tuple(shape) == tuple(a.shape) else bind("reshape", a, shape=tuple(shape))


def permute(a: Any, axes: Sequence[int]) -> Any:
    """`a` with its axes in the order `axes`."""
    return a if tuple(axes) == tuple(range(len(a.shape))) else bind("permute", a, axes=tuple(axes))


def swap_last(a: Any) -> Any:
    """The last two axes exchanged."""
    order = list(range(len(a.shape)))
    order[-1], order[-2] = order[-2], order[-1]
    return permute(a, order)


def expand(a: Any, shape: Sequence[int]) -> Any:
    """Broadcast `a` to `shape` by numpy's rule (new axes in front, size 1 repeated)."""
    return a if tuple(shape) == tuple(a.shape) else bind("expand", a, shape=tuple(shape))


def expand_along(a: Any, axes: Sequence[int], shape: Sequence[int]) -> Any:
    """Put back the reduced `axes` of `shape` (kept out of `a`) and repeat `a` along them."""
    kept = tuple(1 if axis in axes else extent for axis, extent in enumerate(shape))
    return expand(reshape(a, kept), shape)


def reduce_sum(a: Any, axes: Sequence[int]) -> Any:
    """Sum over `axes`, which go away."""
    return bind("sum", a, axes=tuple(sorted(axes))) if axes else a


def unexpand(a: Any, shape: Sequence[int]) -> Any:
    """The transpose of `expand`: sum `a` down to `shape`."""
    lead = len(a.shape) - len(shape)
    axes = tuple(range(lead)) + tuple(
        lead + axis for axis, extent in enumerate(shape) if extent == 1 and a.shape[lead + axis] != 1
    )
    return reshape(reduce_sum(a, axes), shape)


def matmul(a: Any, b: Any) -> Any:
    return bind("matmul", a, b)
