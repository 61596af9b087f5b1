"""Methods that change a tensor: `x.add_(y)`, `x += y`, `x[key] = value`.

A leaf (a parameter, a buffer) is overwritten in its memory, as by `copy_`. A computed tensor has no memory that
anything else may see: it takes the new value as its own, and the gradient flows through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fusegraph import autograd
from fusegraph.dtypes import bool_, int64
from fusegraph.errors import DTypeError, ShapeError, UnsupportedError
from fusegraph.ir import emit
from fusegraph.ops import create, index, shape, special
from fusegraph.ops import elementwise as ew
from fusegraph.random import Generator
from fusegraph.tensor import Tensor, as_tensor, user_error

# method (without its underscore) -> function; the first argument is the tensor that changes
CHANGES: dict[str, Callable[..., Tensor]] = {
    "add": ew.add,
    "sub": ew.sub,
    "mul": ew.mul,
    "div": ew.div,
    "pow": ew.pow,
    "neg": ew.neg,
    "abs": ew.abs,
    "exp": ew.exp,
    "log": ew.log,
    "sqrt": ew.sqrt,
    "rsqrt": ew.rsqrt,
    "square": ew.square,
    "reciprocal": ew.reciprocal,
    "relu": ew.relu,
    "sigmoid": ew.sigmoid,
    "tanh": ew.tanh,
    "floor": ew.floor,
    "ceil": ew.ceil,
    "round": ew.round,
    "clamp": ew.clamp,
    "remainder": ew.remainder,
    "floor_divide": ew.floor_divide,
    "masked_fill": index.masked_fill,
    "scatter_add": index.scatter_add,
    "index_add": index.index_add,
    "lerp": special.lerp,
    "addcmul": special.addcmul,
    "addcdiv": special.addcdiv,
    "clip": ew.clamp,
    "tril": index.tril,
    "triu": index.triu,
}
OPERATORS = {
    "__iadd__": ew.add,
    "__isub__": ew.sub,
    "__imul__": ew.mul,
    "__itruediv__": ew.div,
    "__ifloordiv__": ew.floor_divide,
    "__imod__": ew.remainder,
    "__ipow__": ew.pow,
    "__iand__": ew.bitwise_and,
    "__ior__": ew.bitwise_or,
    "__ixor__": ew.bitwise_xor,
}


def _before(x: Tensor) -> Tensor:
    """The value of `x` as it is now, whatever happens to `x`."""
    alias = Tensor._make(x._value, x.requires_grad, x._record, x._output)
    alias._trace, alias._leaf = x._trace, x._leaf
    return alias


def replace(x: Tensor, new: Tensor, name: str) -> Tensor:
    """Give `x` the value `new` (computed from `_before(x)`, if from `x`).

    Raises DTypeError, ShapeError, GradientError.
    """
    if new.shape != x.shape:
        raise user_error(
            ShapeError,
            f"{name}: the result has shape {list(new.shape)}, but the tensor that it is written to {list(x.shape)}",
        )
    if "biuf".index("i" if new.dtype.kind == "u" else new.dtype.kind) > "biuf".index(
        "i" if x.dtype.kind == "u" else x.dtype.kind
    ):
        raise user_error(DTypeError, f"{name}: a {new.dtype.name} result cannot be written to a {x.dtype.name} tensor")
    computed = x._record is not None or (x.is_symbol and x._leaf is None)
    if not computed and not (new.requires_grad and autograd.is_grad_enabled()):
        return x.copy_(new)
    if not computed and x.requires_grad:
        return x.copy_(new)  # a leaf: raises, and says what to do
    if not x.owns_memory:
        raise user_error(
            UnsupportedError,
            f"{name}: a tensor of shape {list(x.shape)} that is a view of another one is changed in place; "
            "take a .clone() first",
        )
    new = ew.cast(new, x.dtype)
    x._value, x._record, x._output, x._trace = new._value, new._record, new._output, new._trace
    x.requires_grad = new.requires_grad
    x._version += 1
    return x


def _changing(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def method(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return replace(self, function(_lifted(self), *args, **kwargs), f"{name}_")

    method.__name__, method.__doc__ = f"{name}_", f"`{name}`, in place."
    return method


def _lifted(x: Tensor) -> Tensor:
    """`x` for reading: an alias where `x` itself is about to be another value."""
    return _before(x) if x._record is not None or x.is_symbol else x


def _operator(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def method(self: Tensor, other: Any) -> Tensor:
        # Python gives the name what is returned: a new tensor serves wherever no memory is shared.
        if self._record is not None or not self.owns_memory or (self.is_symbol and self._leaf is None):
            return function(self, other)
        return replace(self, function(self, other), "in-place operator")

    return method


def zero_(self: Tensor) -> Tensor:
    """All 0, in place."""
    return fill_(self, 0)


def fill_(self: Tensor, value: Any) -> Tensor:
    """All `value`, in place."""
    return replace(
        self,
        create.full_like(self, value) if ew.is_scalar(value) else shape.expand(ew.cast(value, self.dtype), self.shape),
        "fill_",
    )


def uniform_(self: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Uniform on [a, b), in place."""
    return replace(
        self, ew.add(ew.mul(create.rand(self.shape, dtype=self.dtype, generator=generator), b - a), a), "uniform_"
    )


def normal_(self: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Normal, in place."""
    return replace(
        self, ew.add(ew.mul(create.randn(self.shape, dtype=self.dtype, generator=generator), std), mean), "normal_"
    )


def detach_(self: Tensor) -> Tensor:
    """Cut this tensor off from how it was made."""
    self._record, self.requires_grad = None, False
    return self


def setitem(x: Tensor, key: Any, value: Any) -> None:
    """x[key] = value:

    `key` as in `getitem`, or a bool mask; `value` is broadcast. Of equal indices the last one wins (eager).
    """
    if isinstance(key, Tensor) and key.dtype == bool_ or isinstance(key, np.ndarray) and key.dtype == np.bool_:
        new = _masked(x, as_tensor(key), value)
    else:
        new = _placed(x, key, value)
    replace(x, new, "x[key] = value")


def _masked(x: Tensor, mask: Tensor, value: Any) -> Tensor:
    if mask.shape != x.shape[: mask.ndim]:
        raise user_error(ShapeError, f"x[mask] = value: mask {list(mask.shape)} does not fit {list(x.shape)}")
    value = value if ew.is_scalar(value) else ew.cast(value, x.dtype)
    if isinstance(value, Tensor) and value.ndim > x.ndim - mask.ndim:  # one value for each True
        return _placed(x, tuple(np.nonzero(mask._concrete("x[mask] = values"))), value)
    mask = emit.reshape(mask, (*mask.shape, *(1,) * (x.ndim - mask.ndim)))
    return ew.cast(ew.where(mask, value, _lifted(x)), x.dtype)


def _placed(x: Tensor, key: Any, value: Any) -> Tensor:
    """`x` with `value` at the elements that `key` chooses."""
    source = _lifted(x)
    numbers = index.getitem(emit.reshape(emit.iota(x.numel(), int64, source), x.shape), key)
    value = shape.expand(ew.cast(value, x.dtype), numbers.shape)
    flat, at, values = (emit.reshape(part, (part.numel(),)) for part in (source, numbers, value))
    if not at.is_symbol:
        _, last = np.unique(at._value[::-1], return_index=True)
        if len(last) != at.numel():
            keep = Tensor._make(np.sort(at.numel() - 1 - last))
            at, values = emit.bind("take", at, keep, axis=0), emit.bind("take", values, keep, axis=0)
    hit = emit.bind("put_add", emit.expand(emit.constant(0, at, int64), flat.shape), at, emit.full_like(at, 1), axis=0)
    if x.dtype == bool_:
        written = emit.bind(
            "put_add", emit.expand(emit.constant(0, at, int64), flat.shape), at, ew.cast(values, int64), axis=0
        )
        out = ew.where(ew.gt(hit, 0), ew.gt(written, 0), flat)
    else:
        out = emit.bind("put_add", ew.where(ew.gt(hit, 0), 0, flat), at, values, axis=0)
    return emit.reshape(out, x.shape)  # type: ignore[no-any-return]


def methods() -> dict[str, Callable[..., Any]]:
    """All of these, by the name of the method."""
    found: dict[str, Callable[..., Any]] = {f"{name}_": _changing(name, function) for name, function in CHANGES.items()}
    found.update({name: _operator(function) for name, function in OPERATORS.items()})
    found.update(
        {
            "zero_": zero_,
            "fill_": fill_,
            "uniform_": uniform_,
            "normal_": normal_,
            "detach_": detach_,
            "__setitem__": setitem,
        }
    )
    return found
