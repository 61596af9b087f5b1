"""numba-cuda text of scalar operations: one entry an operation, the element type kept exactly.

numba widens every integer to 64 bits, so each integer result is cast back, which wraps around as numpy does. Functions of floats
are those of `math` (libdevice, 1 to 2 ulp); what `math` has not is a helper (helpers.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fusegraph.codegen.cuda.helpers import Helper, helper_name
from fusegraph.codegen.cuda.text import constant_text
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
_MATH = {
    "floor": "floor", "ceil": "ceil", "exp": "exp", "expm1": "expm1", "log": "log", "log1p": "log1p", "sqrt": "sqrt",
    "tanh": "tanh", "sin": "sin", "cos": "cos", "isnan": "isnan", "erf": "erf",
}  # fmt: skip
_HELPERS = ("relu", "sigmoid", "sign", "maximum", "minimum", "floordiv", "mod", "shift_left", "shift_right")

Need = Callable[[Helper], None]


def typed(text: Text, dtype: DType) -> Text:
    """`text` cast to `dtype`, where numba's integer arithmetic has widened it."""
    return Text(f"{dtype.name}({text.source})", ATOM) if dtype.kind in "iu" else text


def infix(operator: str, rank: int, a: Text, b: Text) -> Text:
    """`a operator b`, grouped from the left."""
    return Text(f"{a.at_least(rank)} {operator} {b.at_least(rank + 1)}", rank)


def operation_text(node: Expr, args: Sequence[Text], need: Need) -> Text:
    """The text of `node`, a map or zip, from its operands' texts. `need` gets the helpers that it calls."""
    op, dtype = node.op, node.dtype
    if op in _COMPARE:
        return _comparison(node, args)
    if op == "cast":
        return cast_text(node.args[0].dtype, args[0], dtype)
    if op in _INFIX and not (op.startswith("shift") and not _shift_fits(node)):
        return typed(infix(*_INFIX[op], *args), dtype)
    if op in _MATH:
        return Text(f"math.{_MATH[op]}({args[0].source})", ATOM)
    if op in _HELPERS:
        return _call_helper(op, dtype, args, need)
    return _special(node, args)


def _special(node: Expr, args: Sequence[Text]) -> Text:
    op, dtype = node.op, node.dtype
    if op == "neg":
        return typed(Text(f"-{args[0].at_least(ATOM)}", UNARY), dtype)
    if op == "abs":
        return typed(Text(f"abs({args[0].source})", ATOM), dtype)
    if op == "round":
        return Text(f"libdevice.rint{'f' if dtype.name == 'float32' else ''}({args[0].source})", ATOM)
    if op == "pow":
        return Text(f"math.pow({args[0].source}, {args[1].source})", ATOM)
    if op == "rsqrt":
        return Text(f"{dtype.name}(1) / math.sqrt({args[0].source})", PRODUCT)
    if op == "logical_not":
        return Text(f"not {args[0].at_least(NOT)}", NOT)
    if op == "where":
        condition, then, other = (arg.at_least(TERNARY + 1) for arg in args)
        return Text(f"{then} if {condition} else {other}", TERNARY)
    raise CompilerError(f"the CUDA printer does not know the scalar operation {op!r}")


def _call_helper(op: str, dtype: DType, args: Sequence[Text], need: Need) -> Text:
    need((op, dtype))
    return Text(f"{helper_name(op, dtype)}({', '.join(arg.source for arg in args)})", ATOM)


def _shift_fits(node: Expr) -> bool:
    """Whether the count is a constant for which Python's shift and numpy's agree."""
    count = node.args[1]
    return count.op == "const" and 0 <= count.attribute < node.dtype.itemsize * 8


def _comparison(node: Expr, args: Sequence[Text]) -> Text:
    left, right = (
        _compared(arg, text, other) for arg, text, other in zip(node.args, args, reversed(node.args), strict=True)
    )
    return Text(f"{left.at_least(COMPARE + 1)} {_COMPARE[node.op]} {right.at_least(COMPARE + 1)}", COMPARE)


def _compared(arg: Expr, text: Text, other: Expr) -> Text:
    """An operand of a comparison; whole constants beside integers stand bare."""
    whole = arg.op == "const" and other.dtype.kind == "i" and bare_constant(arg.attribute)
    return Text(whole, ATOM) if whole else text


def cast_text(source: DType, text: Text, dtype: DType) -> Text:
    """`text`, an element of type `source`, as type `dtype`."""
    if source == dtype:
        return text
    if dtype.kind == "b":
        zero = "0" if source.kind in "iu" else constant_text(0, source).source
        return Text(f"{text.at_least(COMPARE + 1)} != {zero}", COMPARE)
    return Text(f"{dtype.name}({text.source})", ATOM)
