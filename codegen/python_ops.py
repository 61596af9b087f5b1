"""Python text of scalar operations: one entry an operation, the element type kept exactly.

numba computes int32, uint32 and uint8 in 64 bits; so every such result is cast back, which wraps around as numpy does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fusegraph.codegen.python_helpers import Helper, helper_name
from fusegraph.codegen.python_text import (
    ATOM,
    BIT_AND,
    BIT_OR,
    BIT_XOR,
    COMPARE,
    NOT,
    PRODUCT,
    SHIFT,
    SUM,
    TERNARY,
    UNARY,
    Text,
    bare_constant,
)
from fusegraph.dtypes import DType
from fusegraph.errors import CompilerError
from fusegraph.ir.scalar import Expr

_INFIX = {
    "add": ("+", SUM),
    "sub": ("-", SUM),
    "mul": ("*", PRODUCT),
    "div": ("/", PRODUCT),
    "bit_and": ("&", BIT_AND),
    "bit_or": ("|", BIT_OR),
    "bit_xor": ("^", BIT_XOR),
    "shift_left": ("<<", SHIFT),
    "shift_right": (">>", SHIFT),
}
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_NUMPY = {
    "abs": "abs", "sign": "sign", "floor": "floor", "ceil": "ceil", "round": "rint", "exp": "exp", "expm1": "expm1",
    "log": "log", "log1p": "log1p", "sqrt": "sqrt", "tanh": "tanh", "sin": "sin", "cos": "cos", "isnan": "isnan",
    "maximum": "maximum", "minimum": "minimum",
}  # fmt: skip

# What a variable that holds the result of an operation is called.
NOUNS = {
    "neg": "negated", "abs": "size", "sign": "sign", "floor": "floor", "ceil": "ceiling", "round": "rounded",
    "exp": "exponential", "log": "logarithm", "sqrt": "root", "rsqrt": "inverse_root", "relu": "rectified",
    "add": "added", "sub": "difference", "mul": "product", "div": "ratio", "pow": "power", "maximum": "larger",
    "minimum": "smaller", "floordiv": "quotient", "mod": "remainder", "shift_left": "shifted", "shift_right": "shifted",
    "eq": "equal", "ne": "unequal", "lt": "less", "le": "at_most", "gt": "greater", "ge": "at_least",
    "where": "chosen", "logical_not": "opposite", "isnan": "is_nan", "clamp": "index", "philox": "bits",
}  # fmt: skip


def is_narrow(dtype: DType) -> bool:
    """Whether arithmetic on `dtype` is done in more bits than it has."""
    return dtype.kind in "iu" and dtype.name != "int64"


def typed(text: Text, dtype: DType) -> Text:
    """`text`, cast to `dtype` where numba's arithmetic would have widened it."""
    return Text(f"np.{dtype.name}({text.source})", ATOM) if is_narrow(dtype) else text


def infix(operator: str, rank: int, a: Text, b: Text) -> Text:
    """`a operator b`, grouped from the left."""
    return Text(f"{a.at_least(rank)} {operator} {b.at_least(rank + 1)}", rank)


Helpers = Callable[[Helper], None]


def operation_text(node: Expr, args: Sequence[Text], need: Helpers) -> Text:
    """The text of `node`, a map or zip from its operands' texts. `need` gets the helpers that it calls."""
    op, dtype = node.op, node.dtype
    if op in _COMPARE:
        return _comparison(node, args)
    if op == "cast":
        return _cast(node.args[0], args[0], dtype)
    args = [_int64(arg, text) for arg, text in zip(node.args, args, strict=True)]
    if op in ("floordiv", "mod") or op.startswith("shift") and not _shift_fits(node):
        return _call_helper(op, dtype, args, need)
    if op in _INFIX:
        return typed(infix(*_INFIX[op], *args), dtype) if dtype.kind != "b" else infix(*_INFIX[op], *args)
    if op in _NUMPY:
        call = Text(f"np.{_NUMPY[op]}({', '.join(arg.source for arg in args)})", ATOM)
        return typed(call, dtype)
    return _special(node, args, need)


def _special(node: Expr, args: Sequence[Text], need: Helpers) -> Text:
    op, dtype = node.op, node.dtype
    if op == "neg":
        return typed(Text(f"-{args[0].at_least(ATOM)}", UNARY), dtype)
    if op == "pow":  # numpy's power takes another way (sqrt) for single numbers than for arrays
        base, exponent = (arg.at_least(ATOM) for arg in args)
        tight = base.isidentifier() and exponent.isidentifier()
        return Text(f"{base}**{exponent}" if tight else f"{base} ** {exponent}", UNARY)
    if op == "rsqrt":
        return Text(f"np.{dtype.name}(1) / np.sqrt({args[0].source})", PRODUCT)
    if op == "erf":
        return Text(f"np.{dtype.name}(math.erf({args[0].source}))", ATOM)
    if op == "logical_not":
        return Text(f"not {args[0].at_least(NOT)}", NOT)
    if op == "where":
        condition, then, other = (arg.at_least(TERNARY + 1) for arg in args)
        return Text(f"{then} if {condition} else {other}", TERNARY)
    if op in ("relu", "sigmoid"):
        return _call_helper(op, dtype, args, need)
    raise CompilerError(f"the Python printer does not know the scalar operation {op!r}")


def _call_helper(op: str, dtype: DType, args: Sequence[Text], need: Helpers) -> Text:
    need((op, dtype))
    return Text(f"{helper_name(op, dtype)}({', '.join(arg.source for arg in args)})", ATOM)


def _shift_fits(node: Expr) -> bool:
    """Whether the count is a constant for which Python's shift and numpy's agree."""
    count = node.args[1]
    return count.op == "const" and 0 <= count.attribute < node.dtype.itemsize * 8


def _int64(expr: Expr, text: Text) -> Text:
    """An index expression, a plain Python int until now, as an element."""
    return Text(f"np.int64({text.source})", ATOM) if expr.op == "index" else text


def _comparison(node: Expr, args: Sequence[Text]) -> Text:
    left, right = (
        Text(bare_constant(arg.attribute) or text.source, ATOM) if arg.op == "const" else text
        for arg, text in zip(node.args, args, strict=True)
    )
    return Text(f"{left.at_least(COMPARE + 1)} {_COMPARE[node.op]} {right.at_least(COMPARE + 1)}", COMPARE)


def _cast(value: Expr, text: Text, dtype: DType) -> Text:
    if value.dtype == dtype:
        return _int64(value, text)
    if dtype.kind == "b":
        return Text(f"{text.at_least(COMPARE + 1)} != 0", COMPARE)
    return Text(f"np.{dtype.name}({text.source})", ATOM)
