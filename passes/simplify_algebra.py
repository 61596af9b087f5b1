"""Algebra of maps and zips that keeps every bit (but for the sign of a NaN).

What IEEE arithmetic forbids stays: x * 0 (x may be infinite), x + 0 (turns -0 into 0; see `scalars`), x - x, x == x.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fusegraph.dtypes import SUPPORTED
from fusegraph.ir.graph import Node
from fusegraph.ir.interpret import apply
from fusegraph.passes.base import RewriteBuilder, Rules, Value, constant_value, is_constant, split_factor

ALGEBRA = Rules()
Inputs = tuple[Node, ...]
Found = Node | Value | None

# dtype -> the dtypes that hold each of its values exactly
_WIDER: dict[str, set[str]] = {
    "bool": set(SUPPORTED),
    "uint8": {"int32", "uint32", "int64", "float32", "float64"},
    "int32": {"int64", "float64"},
    "uint32": {"int64", "float64"},
    "int64": set(),
    "float32": {"float64"},
    "float64": set(),
}
_NEGATED = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}
# What a comparison of a value with itself gives; a NaN equals nothing, not even itself.
_OF_SELF = {"eq": True, "ge": True, "le": True, "ne": False, "lt": False, "gt": False}
_WHOLE = ("floor", "ceil", "round")


@ALGEBRA.on(kind="map")
@ALGEBRA.on(kind="zip")
def fold_constants(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """f(constant, ...) -> constant, on scalars"""
    if node.shape or any(x.op != "constant" for x in inputs):
        return None
    operands = [np.asarray(x.params["value"], x.dtype) for x in inputs]
    return build.constant(apply(node.op, operands, node.params).item(), node.dtype)


@ALGEBRA.on("neg", "logical_not")
def double_negation(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """-(-x) -> x"""
    return inputs[0].inputs[0] if inputs[0].op == node.op else None


@ALGEBRA.on("neg")
def negated_factor(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """-(x * s) -> x * (-s)  for a scalar s"""
    parts = split_factor(inputs[0])
    if parts is None or not build.is_single_use(inputs[0]):
        return None
    x, scalar = parts
    return build.add("mul", (x, build.expand(build.add("neg", (scalar,)), node.shape)))


@ALGEBRA.on("logical_not")
def negated_comparison(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """not (a == b) -> a != b;  for integers also not (a < b) -> a >= b (a NaN is neither)"""
    (x,) = inputs
    if x.op in ("eq", "ne") or (x.op in _NEGATED and x.inputs[0].dtype.kind != "f"):
        return build.add(_NEGATED[x.op], x.inputs)
    return None


@ALGEBRA.on("abs")
def abs_of_sign(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """|-x| -> |x|;  ||x|| -> |x|;  |relu(x)| -> relu(x)"""
    (x,) = inputs
    if x.op == "neg":
        return build.add("abs", x.inputs)
    return x if x.op in ("abs", "relu") else None


@ALGEBRA.on("relu", "sign", *_WHOLE)
def repeated(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """relu(relu(x)) -> relu(x);  relu(|x|) -> |x|;  floor(round(x)) -> round(x)"""
    (x,) = inputs
    same = x.op == node.op or (node.op in _WHOLE and x.op in _WHOLE) or (node.op == "relu" and x.op == "abs")
    return x if same else None


@ALGEBRA.on("cast")
def cast_of_cast(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x as its own type -> x;  (x as A) as B -> x as B  where A holds every value of x"""
    (x,) = inputs
    if x.dtype == node.dtype:
        return x
    if x.op == "cast" and x.dtype.name in _WIDER[x.inputs[0].dtype.name]:
        source = x.inputs[0]
        return source if source.dtype == node.dtype else build.add("cast", (source,), node.params)
    return None


@ALGEBRA.on("add")
def doubled(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x + x -> x * 2"""
    x, y = inputs
    return build.add("mul", (x, build.full(2, node.shape, node.dtype))) if x is y else None


@ALGEBRA.on("add", "sub")
def negated_view(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x + expand(-y) -> x - expand(y);  x - expand(-y) -> x + expand(y);  also through reshape and permute"""
    x, y = inputs
    for first, second in ((x, y), (y, x)) if node.op == "add" else ((x, y),):
        views: list[Node] = []
        while second.op in ("expand", "reshape", "permute") and build.is_single_use(second):
            views.append(second)
            second = second.inputs[0]
        if views and second.op == "neg" and build.is_single_use(second):
            value = second.inputs[0]
            for view in reversed(views):
                value = build.add(view.op, (value,), view.params)
            return build.add("sub" if node.op == "add" else "add", (first, value))
    return None


@ALGEBRA.on("add")
def plus(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x + (-y) -> x - y;  integers: x + 0 -> x, (x + c) + d -> x + (c + d)"""
    for x, y in (inputs, inputs[::-1]):
        if y.op == "neg":
            return build.add("sub", (x, y.inputs[0]))
        value = constant_value(y)
        if value is None:
            continue
        if node.dtype.kind == "f":
            if is_constant(y, -0.0):
                return x
        elif value == 0:
            return x
        elif x.op == "add":
            return _chain(build, x, y, "add")
    return None


@ALGEBRA.on("sub")
def minus(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x - 0 -> x;  x - (-y) -> x + y;  integers: x - x -> 0, 0 - x -> -x, x - c -> x + (-c)"""
    x, y = inputs
    if is_constant(y, 0):
        return x
    if y.op == "neg":
        return build.add("add", (x, y.inputs[0]))
    if node.dtype.kind == "f":
        return None
    if x is y:
        return build.full(0, node.shape, node.dtype)
    if node.dtype.kind == "i" and is_constant(x, 0):
        return build.add("neg", (y,))
    value = constant_value(y)
    return None if value is None else build.add("add", (x, _wrapped(build, -value, node)))


def _wrapped(build: RewriteBuilder, value: int, like: Node) -> Node:
    """A constant of `like`'s type, modulo its range."""
    bits = 8 * like.dtype.itemsize
    value %= 1 << bits
    if like.dtype.kind == "i" and value >> (bits - 1):
        value -= 1 << bits
    return build.full(value, like.shape, like.dtype)


def _chain(build: RewriteBuilder, inner: Node, constant: Node, op: str) -> Found:
    """(x op c) op d -> x op (c op d), modulo the range of the integer type"""
    for x, other in (inner.inputs, inner.inputs[::-1]):
        first, second = constant_value(other), constant_value(constant)
        if first is not None:
            joined = first + second if op == "add" else first * second
            return build.add(op, (x, _wrapped(build, joined, inner)))
    return None


@ALGEBRA.on("mul")
def times(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x * 1 -> x;  x * -1 -> -x;  (-x) * (-y) -> x * y;  (-x) * c -> x * (-c);  integers: x * 0 -> 0, (x * c) * d"""
    a, b = inputs
    if a.op == "neg" and b.op == "neg":
        return build.add("mul", (a.inputs[0], b.inputs[0]))
    for x, factor in (inputs, inputs[::-1]):
        value = constant_value(factor)
        if value is None:
            if x.op == "neg" and build.is_single_use(x):
                return build.add("neg", (build.add("mul", (x.inputs[0], factor)),))
        elif value == 1:
            return x
        elif value == -1 and node.dtype.kind in "fi":
            return build.add("neg", (x,))
        elif node.dtype.kind in "iu" and value == 0:
            return factor
        elif node.dtype.kind in "iu" and x.op == "mul":
            return _chain(build, x, factor, "mul")
        elif node.dtype.kind == "f" and x.op == "neg":
            return build.add("mul", (x.inputs[0], build.full(-value, node.shape, node.dtype)))
    return None


@ALGEBRA.on("div")
def over(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x / 1 -> x;  x / -1 -> -x;  (-x) / (-y) -> x / y;  (-x) / y -> -(x / y);  1 / sqrt(x) -> rsqrt(x)"""
    x, y = inputs
    if is_constant(y, 1):
        return x
    if is_constant(y, -1):
        return build.add("neg", (x,))
    if is_constant(x, 1) and y.op == "sqrt":
        return build.add("rsqrt", y.inputs)
    if x.op == "neg" and y.op == "neg":
        return build.add("div", (x.inputs[0], y.inputs[0]))
    if x.op == "neg" and build.is_single_use(x):
        return build.add("neg", (build.add("div", (x.inputs[0], y)),))
    if y.op == "neg" and build.is_single_use(y):
        return build.add("neg", (build.add("div", (x, y.inputs[0])),))
    return None


@ALGEBRA.on("pow")
def power(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x ** 1 -> x;  x ** 0 -> 1 (of a NaN too)"""
    x, exponent = inputs
    value = constant_value(exponent)
    if value == 1:
        return x
    return build.full(1, node.shape, node.dtype) if value == 0 else None


@ALGEBRA.on("floordiv", "mod")
def whole_division(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x // 1 -> x;  x mod 1 -> 0"""
    if not is_constant(inputs[1], 1):
        return None
    return inputs[0] if node.op == "floordiv" else build.full(0, node.shape, node.dtype)


@ALGEBRA.on("maximum", "minimum", "bit_and", "bit_or")
def of_equals(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """f(x, x) -> x  for max, min, and, or"""
    return inputs[0] if inputs[0] is inputs[1] else None


@ALGEBRA.on("eq", "ne", "lt", "le", "gt", "ge")
def compared_with_itself(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x < x -> false, x != x -> isnan(x);  other than floating point: x == x -> true"""
    a, b = inputs
    if a is not b:
        return None
    if a.dtype.kind == "f" and node.op not in ("lt", "gt"):
        return build.add("isnan", (a,)) if node.op == "ne" else None
    return build.full(_OF_SELF[node.op], node.shape, node.dtype)


@ALGEBRA.on("bit_and", "bit_or", "bit_xor")
def logic_with_constant(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """bools: x & true -> x, x & false -> false, x | false -> x, x | true -> true, x ^ false -> x, x ^ true -> not x"""
    if node.dtype.kind != "b":
        return None
    for x, other in (inputs, inputs[::-1]):
        value = constant_value(other)
        if value is None:
            continue
        if node.op == "bit_xor":
            return build.add("logical_not", (x,)) if value else x
        return x if bool(value) == (node.op == "bit_and") else other
    return None


@ALGEBRA.on("bit_and", "bit_or", "bit_xor", "shift_left", "shift_right")
def bits_with_zero(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """integers: x | 0 -> x, x ^ 0 -> x, x & 0 -> 0, x << 0 -> x;  x ^ x -> 0"""
    a, b = inputs
    if a is b and node.op == "bit_xor":
        return build.full(0, node.shape, node.dtype)
    if node.dtype.kind == "b":
        return None
    pairs = ((a, b),) if node.op.startswith("shift") else ((a, b), (b, a))
    for x, other in pairs:
        if is_constant(other, 0):
            return other if node.op == "bit_and" else x
    return None


@ALGEBRA.on("where")
def choice(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """where(c, x, x) -> x;  where(true, a, b) -> a;  where(not c, a, b) -> where(c, b, a);
    where(c, where(c, a, b), d) -> where(c, a, d)"""
    condition, a, b = inputs
    if a is b:
        return a
    value: Any = constant_value(condition)
    if value is not None:
        return a if value else b
    if condition.op == "logical_not":
        return build.add("where", (condition.inputs[0], b, a))
    if a.op == "where" and a.inputs[0] is condition:
        return build.add("where", (condition, a.inputs[1], b))
    if b.op == "where" and b.inputs[0] is condition:
        return build.add("where", (condition, a, b.inputs[2]))
    if node.dtype.kind == "b" and {constant_value(a), constant_value(b)} == {True, False}:
        return condition if constant_value(a) else build.add("logical_not", (condition,))
    return None
