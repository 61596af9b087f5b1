"""numba-cuda text of scalar operations: what differs from Python's (scalar_text.py has the rest).

numba widens every integer to 64 bits, so each integer result is cast back, which wraps around as numpy does. Functions of floats
are those of `math` (libdevice, 1 to 2 ulp); what `math` has not is a helper (helpers.py). Division and square roots of float32 are
those of the hardware, unless results must be `exact` (device.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fusegraph.codegen.cuda.helpers import helper_name
from fusegraph.codegen.cuda.text import constant_text
from fusegraph.codegen.python_text import ATOM, Text, bare_constant
from fusegraph.codegen.scalar_text import Need, Target
from fusegraph.dtypes import DType
from fusegraph.ir.scalar import Expr

_MATH = ("floor", "ceil", "exp", "expm1", "log", "log1p", "sqrt", "tanh", "sin", "cos", "isnan", "erf")
_HELPERS = ("relu", "sigmoid", "sign", "maximum", "minimum", "floordiv", "mod", "shift_left", "shift_right", "round")


def _compared(arg: Expr, text: Text, other: Expr) -> Text:
    """An operand of a comparison; whole constants beside integers stand bare."""
    whole = arg.op == "const" and other.dtype.kind == "i" and bare_constant(arg.attribute)
    return Text(whole, ATOM) if whole else text


def _zero(dtype: DType) -> str:
    return "0" if dtype.kind in "iu" else constant_text(0, dtype).source


CUDA = Target(
    types="",
    widens=lambda dtype: dtype.kind in "iu",
    functions={op: f"math.{op}({{0}})" for op in _MATH} | {"abs": "abs({0})", "pow": "math.pow({0}, {1})"},
    helpers={op: op for op in _HELPERS},
    helper_name=helper_name,
    operand=lambda expr, text: text,
    compared=_compared,
    zero=_zero,
)

# float32 without exact: at most 2 units in the last place off, over the whole range, where the rounded ones are subroutines
FAST = replace(
    CUDA,
    functions={**CUDA.functions, "div": "div_full({0}, {1})", "sqrt": "sqrt_approx({0})", "rsqrt": "rsqrt_approx({0})"},
    helpers={**CUDA.helpers, "sigmoid": "fast_sigmoid"},
)


def operation_text(node: Expr, args: Sequence[Text], need: Need, exact: bool = False) -> Text:
    """The text of a map or zip from its operands' texts. exact: correctly rounded division and square root."""
    target = CUDA if exact or node.dtype.name != "float32" else FAST
    return target.operation_text(node, args, need)


cast_text = CUDA.cast_text
