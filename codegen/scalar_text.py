"""Text of scalar operations, one entry an operation, for every target whose kernels are Python text.

A target states what differs: how its element types are called, which types its arithmetic widens, which functions it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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
)
from fusegraph.dtypes import DType
from fusegraph.errors import CompilerError
from fusegraph.ir.scalar import Expr
from fusegraph.records import dataclass

INFIX = {
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
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}

# What a variable that holds the result of an operation is called.
NOUNS = {
    "neg": "negated", "abs": "size", "sign": "sign", "floor": "floor", "ceil": "ceiling", "round": "rounded",
    "exp": "exponential", "log": "logarithm", "sqrt": "root", "rsqrt": "inverse_root", "relu": "rectified",
    "add": "added", "sub": "difference", "mul": "product", "div": "ratio", "pow": "power", "maximum": "larger",
    "minimum": "smaller", "floordiv": "quotient", "mod": "remainder", "shift_left": "shifted", "shift_right": "shifted",
    "eq": "equal", "ne": "unequal", "lt": "less", "le": "at_most", "gt": "greater", "ge": "at_least",
    "where": "chosen", "logical_not": "opposite", "isnan": "is_nan", "clamp": "index", "philox": "bits",
}  # fmt: skip

Helper = tuple[str, DType | None]
Need = Callable[[Helper], None]


def infix(operator: str, rank: int, a: Text, b: Text) -> Text:
    """`a operator b`, grouped from the left."""
    return Text(f"{a.at_least(rank)} {operator} {b.at_least(rank + 1)}", rank)


@dataclass(frozen=True)
class Target:
    """What one target's text looks like, where targets differ.

    types       stands before the name of an element type: "np." or nothing
    widens      whether arithmetic on elements of a type is done in more bits than it has, so that results are cast back
    functions   operations that are a call: its text, with {0}, {1} for operands and {dtype} for the element type
    helpers     operations that are calls of functions in the module itself, by their kind; helper_name: what those are called
    operand     an operand of an operation as it stands there; compared: of a comparison, with the other side
    zero        what an element is compared with, to make it a bool
    """

    types: str
    widens: Callable[[DType], bool]
    functions: Mapping[str, str]
    helpers: Mapping[str, str]
    helper_name: Callable[[str, DType | None], str]
    operand: Callable[[Expr, Text], Text]
    compared: Callable[[Expr, Text, Expr], Text]
    zero: Callable[[DType], str]

    def operation_text(self, node: Expr, args: Sequence[Text], need: Need) -> Text:
        """The text of `node`, a map or zip, from its operands' texts. `need` gets the helpers that it calls."""
        op, dtype = node.op, node.dtype
        if op in COMPARISONS:
            return self._comparison(node, args)
        if op == "cast" and node.args[0].dtype != dtype:
            return self.cast_text(node.args[0].dtype, args[0], dtype)
        args = [self.operand(arg, text) for arg, text in zip(node.args, args, strict=True)]
        if op == "cast":
            return args[0]
        if op in self.helpers and not (op.startswith("shift") and _shift_fits(node)):
            need((self.helpers[op], dtype))
            call = f"{self.helper_name(self.helpers[op], dtype)}({', '.join(arg.source for arg in args)})"
            return Text(call, ATOM)
        if op in self.functions:
            call = self.functions[op].format(*(arg.source for arg in args), dtype=dtype.name)
            return self.typed(Text(call, ATOM), dtype)
        if op in INFIX:
            return self.typed(infix(*INFIX[op], *args), dtype)
        return self._special(node, args)

    def typed(self, text: Text, dtype: DType) -> Text:
        """`text`, cast to `dtype` where the target's arithmetic has widened it."""
        return Text(f"{self.types}{dtype.name}({text.source})", ATOM) if self.widens(dtype) else text

    def cast_text(self, source: DType, text: Text, dtype: DType) -> Text:
        """`text`, an element of type `source`, as type `dtype`."""
        if source == dtype:
            return text
        if dtype.kind == "b":
            return Text(f"{text.at_least(COMPARE + 1)} != {self.zero(source)}", COMPARE)
        return Text(f"{self.types}{dtype.name}({text.source})", ATOM)

    def _comparison(self, node: Expr, args: Sequence[Text]) -> Text:
        pairs = zip(node.args, args, reversed(node.args), strict=True)
        left, right = (self.compared(arg, text, other) for arg, text, other in pairs)
        return Text(f"{left.at_least(COMPARE + 1)} {COMPARISONS[node.op]} {right.at_least(COMPARE + 1)}", COMPARE)

    def _special(self, node: Expr, args: Sequence[Text]) -> Text:
        op, dtype = node.op, node.dtype
        if op == "neg":
            return self.typed(Text(f"-{args[0].at_least(ATOM)}", UNARY), dtype)
        if op == "pow":  # numpy's power takes another way (sqrt) for single numbers than for arrays
            base, exponent = (arg.at_least(ATOM) for arg in args)
            tight = base.isidentifier() and exponent.isidentifier()
            return Text(f"{base}**{exponent}" if tight else f"{base} ** {exponent}", UNARY)
        if op == "rsqrt":
            root = self.functions["sqrt"].format(args[0].source, dtype=dtype.name)
            return Text(f"{self.types}{dtype.name}(1) / {root}", PRODUCT)
        if op == "logical_not":
            return Text(f"not {args[0].at_least(NOT)}", NOT)
        if op == "where":
            condition, then, other = (arg.at_least(TERNARY + 1) for arg in args)
            return Text(f"{then} if {condition} else {other}", TERNARY)
        raise CompilerError(f"no text is known for the scalar operation {op!r}")


def _shift_fits(node: Expr) -> bool:
    """Whether the count is a constant for which Python's shift and numpy's agree."""
    count = node.args[1]
    return count.op == "const" and 0 <= count.attribute < node.dtype.itemsize * 8
