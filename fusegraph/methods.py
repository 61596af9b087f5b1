"""Which functions of `fusegraph.ops` are methods of Tensor, and the operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusegraph import ops
from fusegraph.dtypes import bool_, float32, float64, int32, int64
from fusegraph.ops import inplace
from fusegraph.tensor import Tensor, as_tensor, tensor

SAME_NAME = (
    "abs add addcdiv addcmul addmm all allclose amax amin any argmax argmin argsort baddbmm bincount bitwise_and "
    "bitwise_or bitwise_xor bmm broadcast_to ceil chunk clamp clamp_max clamp_min clip contiguous cos cosh "
    "count_nonzero cumprod cumsum diag diag_embed diagonal div dot eq equal erf erfc exp exp2 expand expand_as "
    "expm1 flatten flip floor floor_divide fmod frac gather ge gt index_add index_select inner isclose isfinite "
    "isinf isnan isneginf isposinf le lerp log log10 log1p log2 logaddexp logical_and logical_not logical_or "
    "logical_xor logit logsumexp lt masked_fill masked_select matmul matrix_power max maximum mean median min "
    "minimum mm moveaxis movedim mul multinomial mv nan_to_num narrow ne neg nonzero norm outer permute pow prod "
    "ravel reciprocal relu remainder repeat repeat_interleave reshape reshape_as roll rot90 round rsqrt scatter "
    "scatter_add select sigmoid sign sin sinh sort split sqrt square squeeze std sub sum swapaxes t "
    "take_along_dim tan tanh tile topk trace transpose tril triu trunc unbind unflatten unfold unique unsqueeze "
    "var view where xlogy"
).split()

OPERATORS = {
    "__add__": "add",
    "__sub__": "sub",
    "__mul__": "mul",
    "__truediv__": "div",
    "__floordiv__": "floor_divide",
    "__mod__": "remainder",
    "__pow__": "pow",
    "__matmul__": "matmul",
    "__eq__": "eq",
    "__ne__": "ne",
    "__lt__": "lt",
    "__le__": "le",
    "__gt__": "gt",
    "__ge__": "ge",
    "__and__": "bitwise_and",
    "__or__": "bitwise_or",
    "__xor__": "bitwise_xor",
    "__neg__": "neg",
    "__abs__": "abs",
    "__getitem__": "getitem",
}
REFLECTED = {
    "__radd__": "add",
    "__rsub__": "sub",
    "__rmul__": "mul",
    "__rtruediv__": "div",
    "__rfloordiv__": "floor_divide",
    "__rmod__": "remainder",
    "__rpow__": "pow",
    "__rmatmul__": "matmul",
    "__rand__": "bitwise_and",
    "__ror__": "bitwise_or",
    "__rxor__": "bitwise_xor",
}


def _where_method(self: Tensor, condition: Any, other: Any) -> Tensor:
    """`self` where `condition`, else `other`."""
    return ops.where(condition, self, other)


def _clone(self: Tensor) -> Tensor:
    """A copy with memory of its own; the gradient flows through."""
    out = ops.mul(self, 1) if self.dtype != bool_ else ops.logical_or(self, self)
    return out


def _to(self: Tensor, dtype: Any = None) -> Tensor:
    """This tensor as `dtype`. Devices do not exist here: `to("cpu")` gives the tensor itself."""
    if dtype is None or dtype == "cpu":
        return self
    return ops.cast(self, dtype)


def _type_as(self: Tensor, other: Tensor) -> Tensor:
    """This tensor as `other`'s dtype."""
    return ops.cast(self, other.dtype)


def _invert(self: Tensor) -> Tensor:
    """Not, for bools; all bits flipped, for integers."""
    return ops.logical_not(self) if self.dtype == bool_ else ops.sub(ops.neg(self), 1)


def _softmax(self: Tensor, dim: int) -> Tensor:
    """softmax over `dim`."""
    from fusegraph import functional

    return functional.softmax(self, dim)


def _log_softmax(self: Tensor, dim: int) -> Tensor:
    """log-softmax over `dim`."""
    from fusegraph import functional

    return functional.log_softmax(self, dim)


NEW = {"new_zeros": ops.zeros, "new_ones": ops.ones, "new_empty": ops.empty, "new_full": ops.full, "new_tensor": tensor}


def _maker(function: Any) -> Any:
    def method(self: Tensor, *args: Any, dtype: Any = None, **kwargs: Any) -> Tensor:
        return function(*args, dtype=dtype or self.dtype, **kwargs)  # type: ignore[no-any-return]

    method.__doc__ = f"`{function.__name__}` with this tensor's dtype."
    return method


def attach() -> None:
    """Give Tensor its methods."""
    for name in SAME_NAME:
        setattr(Tensor, name, getattr(ops, name))
    for operator, name in OPERATORS.items():
        setattr(Tensor, operator, getattr(ops, name))
    for operator, name in REFLECTED.items():
        function = getattr(ops, name)
        setattr(Tensor, operator, lambda self, other, function=function: function(as_like(other, self), self))
    extra: dict[str, Any] = {
        "where": _where_method,
        "clone": _clone,
        "to": _to,
        "type_as": _type_as,
        "__invert__": _invert,
        "softmax": _softmax,
        "log_softmax": _log_softmax,
        "T": property(lambda self: ops.permute(self, tuple(range(self.ndim))[::-1])),
        "mT": property(ops.mT),
    }
    for name, kind in (("float", float32), ("double", float64), ("long", int64), ("int", int32), ("bool", bool_)):
        extra[name] = lambda self, kind=kind: ops.cast(self, kind)
    extra.update(inplace.methods())
    for name, function in NEW.items():
        extra[name] = _maker(function)
    for name, value in extra.items():
        setattr(Tensor, name, value)


def as_like(other: Any, tensor: Tensor) -> Any:
    """The left operand of a reflected operator: a number stays one (its type gives way), an array becomes a tensor."""
    return other if ops.elementwise.is_scalar(other) else as_tensor(other)


if TYPE_CHECKING:

    class TensorMethods:
        """What `attach` gives Tensor, for type checkers: any method of `ops`, and the operators."""

        def __getattr__(self, name: str) -> Any: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __getitem__(self, key: Any) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...


attach()
