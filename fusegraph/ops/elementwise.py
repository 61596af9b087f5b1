"""Element by element: arithmetic, comparison, functions of one value.

Operands are broadcast and promoted as in PyTorch.
"""

from __future__ import annotations

from typing import Any

from fusegraph.dtypes import as_dtype, bool_, float32, is_float
from fusegraph.errors import DTypeError, OptionError
from fusegraph.ir import emit
from fusegraph.ops.operands import Operand, broadcast_shapes, is_scalar, prepare
from fusegraph.tensor import Tensor, as_tensor, user_error

__all__ = [
    "abs",
    "add",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "cast",
    "ceil",
    "check_index",
    "clamp",
    "cos",
    "div",
    "eq",
    "erf",
    "exp",
    "expm1",
    "floor",
    "floor_divide",
    "ge",
    "gt",
    "isfinite",
    "isinf",
    "isnan",
    "le",
    "log",
    "log1p",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "lt",
    "maximum",
    "minimum",
    "mul",
    "ne",
    "neg",
    "pow",
    "reciprocal",
    "relu",
    "remainder",
    "round",
    "rsqrt",
    "sigmoid",
    "sign",
    "sin",
    "softplus",
    "sqrt",
    "square",
    "sub",
    "tanh",
    "where",
]


def _binary(name: str, a: Operand, b: Operand, as_float: bool = False) -> Tensor:
    a, b = prepare(name, a, b)
    if as_float and not is_float(a.dtype):
        a, b = cast(a, float32), cast(b, float32)
    return emit.bind(name, a, b)  # type: ignore[no-any-return]


def _unary(name: str, x: Operand, as_float: bool = True) -> Tensor:
    x = as_tensor(x)
    return emit.bind(name, cast(x, float32) if as_float and not is_float(x.dtype) else x)  # type: ignore[no-any-return]


def cast(x: Operand, dtype: Any) -> Tensor:
    """`x` as another element type (`x.to(dtype)`)."""
    x = as_tensor(x)
    kind = as_dtype(dtype)
    if kind == bool_ and x.dtype != bool_:
        return ne(x, 0)
    return emit.cast(x, kind)  # type: ignore[no-any-return]


def add(a: Operand, b: Operand) -> Tensor:
    """a + b; for bools, or."""
    a, b = prepare("add", a, b)
    return emit.bind("bit_or" if a.dtype == bool_ else "add", a, b)  # type: ignore[no-any-return]


def sub(a: Operand, b: Operand) -> Tensor:
    """a - b."""
    return _binary("sub", a, b)


def mul(a: Operand, b: Operand) -> Tensor:
    """a * b; for bools, and."""
    a, b = prepare("mul", a, b)
    return emit.bind("bit_and" if a.dtype == bool_ else "mul", a, b)  # type: ignore[no-any-return]


def div(a: Operand, b: Operand) -> Tensor:
    """a / b; integers become float32."""
    return _binary("div", a, b, as_float=True)


def floor_divide(a: Operand, b: Operand) -> Tensor:
    """The quotient rounded down."""
    a, b = prepare("floor_divide", a, b)
    return floor(emit.bind("div", a, b)) if is_float(a.dtype) else emit.bind("floordiv", a, b)


def remainder(a: Operand, b: Operand) -> Tensor:
    """a - b * floor(a / b): the sign is b's (Python's %); exact while the quotient fits into the type's whole
    numbers.
    """
    a, b = prepare("remainder", a, b)
    if not is_float(a.dtype):
        return emit.bind("mod", a, b)  # type: ignore[no-any-return]
    quotient = floor(emit.bind("div", a, b))
    return sub(a, where(eq(quotient, 0.0), 0.0, mul(b, quotient)))  # 0 * inf is 0 here: 5 % inf is 5


def pow(a: Operand, b: Operand) -> Tensor:  # noqa: A001
    """a to the power b. A small whole exponent becomes products, 0.5 a square root."""
    if is_scalar(b):
        base = as_tensor(a)
        if b == 2:
            return mul(base, base)
        if b == 3:
            return mul(mul(base, base), base)
        if b == 1:
            return base
        if is_float(base.dtype) and b in (0.5, -0.5, -1):
            return {0.5: sqrt, -0.5: rsqrt, -1: reciprocal}[b](base)
        if b < 0 and not is_float(base.dtype) and isinstance(b, int):
            raise user_error(
                OptionError,
                f"pow: {base.dtype.name} values to the negative power {b}; convert to a floating point type first",
            )
    a, b = prepare("pow", a, b)
    if is_float(a.dtype):
        return emit.bind("pow", a, b)  # type: ignore[no-any-return]
    return cast(round(emit.bind("pow", cast(a, "float64"), cast(b, "float64"))), a.dtype)


def maximum(a: Operand, b: Operand) -> Tensor:
    """The larger of two; NaN if either is."""
    a, b = prepare("maximum", a, b)
    return emit.bind("bit_or" if a.dtype == bool_ else "maximum", a, b)  # type: ignore[no-any-return]


def minimum(a: Operand, b: Operand) -> Tensor:
    """The smaller of two; NaN if either is."""
    a, b = prepare("minimum", a, b)
    return emit.bind("bit_and" if a.dtype == bool_ else "minimum", a, b)  # type: ignore[no-any-return]


def clamp(x: Operand, min: Operand = None, max: Operand = None) -> Tensor:  # noqa: A002
    """`x` kept inside of [min, max]. The gradient passes where x is inside (bounds included)."""
    x = as_tensor(x)
    out = x if min is None else where(lt(x, min), min, x)
    return out if max is None else where(gt(out, max), max, out)


def eq(a: Operand, b: Operand) -> Tensor:
    """a == b."""
    return _binary("eq", a, b)


def ne(a: Operand, b: Operand) -> Tensor:
    """a != b."""
    return _binary("ne", a, b)


def lt(a: Operand, b: Operand) -> Tensor:
    """a < b."""
    return _binary("lt", a, b)


def le(a: Operand, b: Operand) -> Tensor:
    """a <= b."""
    return _binary("le", a, b)


def gt(a: Operand, b: Operand) -> Tensor:
    """a > b."""
    return _binary("gt", a, b)


def ge(a: Operand, b: Operand) -> Tensor:
    """a >= b."""
    return _binary("ge", a, b)


def _bits(name: str, a: Operand, b: Operand) -> Tensor:
    a, b = prepare(name, a, b)
    if is_float(a.dtype):
        raise user_error(DTypeError, f"{name} takes integers or bools, got {a.dtype.name}{list(a.shape)}")
    return emit.bind(name, a, b)  # type: ignore[no-any-return]


def bitwise_and(a: Operand, b: Operand) -> Tensor:
    """a & b."""
    return _bits("bit_and", a, b)


def bitwise_or(a: Operand, b: Operand) -> Tensor:
    """a | b."""
    return _bits("bit_or", a, b)


def bitwise_xor(a: Operand, b: Operand) -> Tensor:
    """a ^ b."""
    return _bits("bit_xor", a, b)


def logical_and(a: Operand, b: Operand) -> Tensor:
    """Both are true (not zero)."""
    return _bits("bit_and", cast(a, bool_), cast(b, bool_))


def logical_or(a: Operand, b: Operand) -> Tensor:
    """One is true (not zero)."""
    return _bits("bit_or", cast(a, bool_), cast(b, bool_))


def logical_xor(a: Operand, b: Operand) -> Tensor:
    """Exactly one is true (not zero)."""
    return _bits("bit_xor", cast(a, bool_), cast(b, bool_))


def logical_not(x: Operand) -> Tensor:
    """Is false (zero)."""
    return emit.bind("logical_not", cast(x, bool_))  # type: ignore[no-any-return]


def where(condition: Operand, a: Operand, b: Operand) -> Tensor:
    """`a` where `condition`, else `b`."""
    condition = cast(condition, bool_)
    a, b = prepare("where", a, b)
    shape = broadcast_shapes("where", condition.shape, a.shape)
    return emit.bind("where", emit.expand(condition, shape), emit.expand(a, shape), emit.expand(b, shape))  # type: ignore[no-any-return]


def neg(x: Operand) -> Tensor:
    """-x."""
    return _unary("neg", x, as_float=False)


def abs(x: Operand) -> Tensor:  # noqa: A001
    """|x|; the gradient at 0 is 0."""
    return _unary("abs", x, as_float=False)


def sign(x: Operand) -> Tensor:
    """-1, 0 or 1."""
    return _unary("sign", x, as_float=False)


def square(x: Operand) -> Tensor:
    """x * x."""
    return mul(x, x)


def reciprocal(x: Operand) -> Tensor:
    """1 / x."""
    return div(1.0, x)


def floor(x: Operand) -> Tensor:
    """The next whole number below."""
    return _unary("floor", x)


def ceil(x: Operand) -> Tensor:
    """The next whole number above."""
    return _unary("ceil", x)


def round(x: Operand) -> Tensor:  # noqa: A001
    """The nearest whole number, halves to the even one."""
    return _unary("round", x)


def exp(x: Operand) -> Tensor:
    """e to the power x."""
    return _unary("exp", x)


def expm1(x: Operand) -> Tensor:
    """exp(x) - 1, accurate near 0."""
    return _unary("expm1", x)


def log(x: Operand) -> Tensor:
    """The natural logarithm."""
    return _unary("log", x)


def log1p(x: Operand) -> Tensor:
    """log(1 + x), accurate near 0."""
    return _unary("log1p", x)


def sqrt(x: Operand) -> Tensor:
    """The square root."""
    return _unary("sqrt", x)


def rsqrt(x: Operand) -> Tensor:
    """1 / sqrt(x)."""
    return _unary("rsqrt", x)


def sin(x: Operand) -> Tensor:
    """The sine."""
    return _unary("sin", x)


def cos(x: Operand) -> Tensor:
    """The cosine."""
    return _unary("cos", x)


def tanh(x: Operand) -> Tensor:
    """The hyperbolic tangent."""
    return _unary("tanh", x)


def sigmoid(x: Operand) -> Tensor:
    """1 / (1 + exp(-x)), without overflow."""
    return _unary("sigmoid", x)


def erf(x: Operand) -> Tensor:
    """The error function."""
    return _unary("erf", x)


def relu(x: Operand) -> Tensor:
    """max(x, 0); NaN stays; the gradient at 0 is 0."""
    return _unary("relu", x, as_float=False)


def softplus(x: Operand, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta x)) / beta, without overflow; x itself where beta x > threshold (as PyTorch)."""
    x = as_tensor(x)
    scaled = x if beta == 1.0 else mul(x, beta)
    far = gt(scaled, threshold)
    near = where(far, 0.0, scaled)
    smooth = add(maximum(near, 0.0), log1p(exp(neg(abs(near)))))
    return where(far, x, smooth if beta == 1.0 else div(smooth, beta))


def isnan(x: Operand) -> Tensor:
    """Is NaN."""
    return _unary("isnan", x)


def isinf(x: Operand) -> Tensor:
    """Is plus or minus infinity."""
    return eq(abs(cast(x, float32) if not is_float(as_tensor(x).dtype) else x), float("inf"))


def isfinite(x: Operand) -> Tensor:
    """Is neither infinite nor NaN."""
    return lt(abs(cast(x, float32) if not is_float(as_tensor(x).dtype) else x), float("inf"))


def check_index(index: Operand, low: int, high: int, what: str, allow: int | None = None) -> Tensor:
    """`index` itself; an element outside of [low, high) (and not `allow`) is an IndexRangeError that calls it `what`.

    In a compiled function an index that comes with the arguments is checked before anything is computed or changed.
    """
    return emit.bind("check_index", as_tensor(index), low=low, high=high, allow=allow, what=what)  # type: ignore[no-any-return]
