"""Python text of scalar operations: what differs for numpy's types (scalar_text.py has the rest).

numba computes int32, uint32 and uint8 in 64 bits; so every such result is cast back, which wraps around as numpy does.
"""

from __future__ import annotations

from fusegraph.codegen.python_helpers import helper_name
from fusegraph.codegen.python_text import ATOM, Text, bare_constant
from fusegraph.codegen.scalar_text import NOUNS, Target, infix
from fusegraph.dtypes import DType
from fusegraph.ir.scalar import Expr

__all__ = ["NOUNS", "infix", "operation_text", "typed"]

_HELPERS = ("relu", "sigmoid", "floordiv", "mod", "shift_left", "shift_right")
_NUMPY = {
    "abs": "abs", "sign": "sign", "floor": "floor", "ceil": "ceil", "round": "rint", "exp": "exp", "expm1": "expm1",
    "log": "log", "log1p": "log1p", "sqrt": "sqrt", "tanh": "tanh", "sin": "sin", "cos": "cos", "isnan": "isnan",
}  # fmt: skip


def _is_narrow(dtype: DType) -> bool:
    """Whether arithmetic on `dtype` is done in more bits than it has."""
    return dtype.kind in "iu" and dtype.name != "int64"


def _int64(expr: Expr, text: Text) -> Text:
    """An index expression, a plain Python int until now, as an element."""
    return Text(f"np.int64({text.source})", ATOM) if expr.op == "index" else text


def _compared(arg: Expr, text: Text, other: Expr) -> Text:
    """Whole constants stand bare: exact beside any element type."""
    return Text(bare_constant(arg.attribute) or text.source, ATOM) if arg.op == "const" else text


NUMPY = Target(
    types="np.",
    widens=_is_narrow,
    functions={op: f"np.{name}({{0}})" for op, name in _NUMPY.items()}
    | {"maximum": "np.maximum({0}, {1})", "minimum": "np.minimum({0}, {1})", "erf": "np.{dtype}(math.erf({0}))"},
    helpers={op: op for op in _HELPERS},
    helper_name=helper_name,
    operand=_int64,
    compared=_compared,
    zero=lambda dtype: "0",
)
operation_text = NUMPY.operation_text
typed = NUMPY.typed
