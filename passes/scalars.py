"""Scalar factors: gathered, and applied where the tensor is smallest. Not bit-exact; left out when `exact`.

    (x * s) * t -> x * (s * t)      (x * s) * y -> (x * y) * s      (x * s) @ y -> (x @ y) * s      x / s -> x * (1 / s)

with s, t numbers that are repeated (a constant, a learning rate, 1 / N of a mean). The rules are those of the fast-math
flags that the code is compiled with: reassociation of products, reciprocals (one rounding more), and zeros whose sign
does not count. Terms are never regrouped here. NaN and infinity stay what they are, save where a product of factors
overflows.
"""

from __future__ import annotations

import math

import numpy as np

from fusegraph.ir.graph import Graph, Node
from fusegraph.passes.base import (
    Pass,
    RewriteBuilder,
    Rules,
    Value,
    constant_value,
    rewrite,
    split_factor,
    without_expand,
)

SCALARS = Rules()
Inputs = tuple[Node, ...]
Found = Node | Value | None

# A division by repeated values becomes a product with their reciprocals when this many elements share one.
_SHARED = 4


def _is_safe(value: float, dtype: np.dtype) -> bool:
    """Whether a folded factor is neither NaN, infinite, zero nor denormal: then it rounds as other numbers do."""
    limits = np.finfo(dtype)
    return float(limits.tiny) <= abs(value) <= float(limits.max)


def _scaled(build: RewriteBuilder, x: Node, scalar: Node) -> Node:
    """x * scalar."""
    return build.add("mul", (x, build.expand(scalar, x.shape)))


def _product(build: RewriteBuilder, s: Node, t: Node) -> Node | None:
    """s * t of two 0-d nodes; None if two constants would overflow or vanish."""
    if s.op == "constant" and t.op == "constant":
        value = s.params["value"] * t.params["value"]
        return build.constant(value, s.dtype) if _is_safe(value, s.dtype) else None
    return build.add("mul", (s, t))


@SCALARS.on("add", "sub")
def zero_term(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x + 0 -> x;  x - 0 -> x;  0 - x -> -x  (but for the sign of a zero)"""
    x, y = inputs
    if node.dtype.kind != "f":
        return None
    if constant_value(y) == 0:
        return x
    if constant_value(x) == 0:
        return y if node.op == "add" else build.add("neg", (y,))
    return None


@SCALARS.on("neg")
def negated_difference(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """-(a - b) -> b - a  (but for the sign of a zero)"""
    (x,) = inputs
    return build.add("sub", x.inputs[::-1]) if x.op == "sub" and build.is_single_use(x) else None


@SCALARS.on("add", "sub")
def negated_product(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x + y * (-c) -> x - y * c;  x - y * (-c) -> x + y * c  for a constant c > 0"""
    x, y = inputs
    for first, second in ((x, y), (y, x)) if node.op == "add" else ((x, y),):
        parts = split_factor(second)
        value = constant_value(parts[1]) if parts else None
        if parts and value is not None and value < 0 and node.dtype.kind == "f" and build.is_single_use(second):
            positive = _scaled(build, parts[0], build.constant(-value, node.dtype))
            return build.add("sub" if node.op == "add" else "add", (first, positive))
    return None


@SCALARS.on("div")
def reciprocal(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x / c -> x * (1 / c);  x / expand(y) -> x * expand(1 / y)"""
    x, y = inputs
    value = constant_value(y)
    if value is not None:
        safe = value != 0 and math.isfinite(value) and _is_safe(1 / value, node.dtype)
        return build.add("mul", (x, build.full(1 / value, node.shape, node.dtype))) if safe else None
    source = without_expand(y)
    if source.size * _SHARED > node.size or constant_value(x) is not None:
        return None
    inverse = build.add("div", (build.full(1, source.shape, node.dtype), source))
    return build.add("mul", (x, build.expand(inverse, node.shape)))


@SCALARS.on("mul")
def factor_of_factor(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """(x * s) * t -> x * (s * t)"""
    outer = split_factor(node)
    if node.dtype.kind != "f" or outer is None:
        return None
    inner = split_factor(outer[0])
    if inner is None or not build.is_single_use(outer[0]):
        return None
    product = _product(build, inner[1], outer[1])
    return None if product is None else _scaled(build, inner[0], product)


@SCALARS.on("mul")
def constant_chain(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """(s * c) * d -> s * (c * d)  on scalars"""
    if node.shape or node.dtype.kind != "f":
        return None
    for inner, outer in (inputs, inputs[::-1]):
        if outer.op != "constant" or inner.op != "mul":
            continue
        for s, factor in (inner.inputs, inner.inputs[::-1]):
            if factor.op == "constant":
                product = _product(build, factor, outer)
                return None if product is None else build.add("mul", (s, product))
    return None


@SCALARS.on("mul")
def factor_outward(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """(x * s) * y -> (x * y) * s  (for a y that is smaller than x see `products`)"""
    if node.dtype.kind != "f" or split_factor(node) is not None:
        return None
    for scaled, y in (inputs, inputs[::-1]):
        parts = split_factor(scaled)
        if parts is None or not build.is_single_use(scaled) or without_expand(y).size * _SHARED <= node.size:
            continue
        x, scalar = parts
        return _scaled(build, build.add("mul", (x, y)), scalar)
    return None


def _peeled(build: RewriteBuilder, operand: Node) -> tuple[Node, Node] | None:
    """(x, s) for an operand that is x * s, or reorders its axes or changes its shape; nothing else may read it."""
    views: list[Node] = []
    node = operand
    while node.op in ("permute", "reshape") and build.is_single_use(node):
        views.append(node)
        node = node.inputs[0]
    parts = split_factor(node)
    if parts is None or not build.is_single_use(node):
        return None
    x = parts[0]
    for view in reversed(views):
        x = build.add(view.op, (x,), view.params)
    return x, parts[1]


@SCALARS.on(kind="contract")
def factor_of_contraction(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """(x * s) @ y -> (x @ y) * s;  the same for x @ (y * s), for convolutions, and for a sign"""
    if node.dtype.kind != "f":
        return None
    for position, operand in enumerate(inputs):
        rest = list(inputs)
        if operand.op == "neg" and build.is_single_use(operand):
            rest[position] = operand.inputs[0]
            return build.add("neg", (build.add(node.op, rest, node.params),))
        parts = _peeled(build, operand)
        if parts is not None:
            rest[position] = parts[0]
            return _scaled(build, build.add(node.op, rest, node.params), parts[1])
    return None


@SCALARS.on("pow")
def small_power(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x ** 2 -> x * x;  x ** 3 -> x * x * x;  x ** -1 -> 1 / x"""
    x, exponent = inputs
    value = constant_value(exponent)
    if value in (2, 3):
        square = build.add("mul", (x, x))
        return square if value == 2 else build.add("mul", (square, x))
    return build.add("div", (build.full(1, node.shape, node.dtype), x)) if value == -1 else None


def scalars(graph: Graph) -> Graph:
    """`graph` with scalar factors gathered."""
    return rewrite(graph, SCALARS)


SCALARS_PASS = Pass("scalars", scalars, exact=False)
