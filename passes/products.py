"""Products with repeated factors: fewer multiplications, fewer sums. Not bit-exact; left out when `exact`.

    sum(x * expand(r)) -> sum(x) * r              (x * expand(r)) * expand(s) -> x * expand(r * s)
    (a * R - expand(r * s)) * e -> (a - expand(s)) * p      where p = e * R is there already and R is expand(r)
    x * u + x * v -> x * (u + v)                  where x depends on a contraction that u and v do not depend on

The first leaves the gradients of a normalisation with two sums, of g and of g * x, where plain differentiation has five
over scaled versions of them. The last makes the gradient of a softmax p of dp out of p alone: p * (dp - sum(dp * p)).
With the last the gradient of gelu, silu and the like is the cotangent x times one number that the forward pass can make.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from fusegraph.ir.graph import Graph, Node
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.passes.base import (
    Pass,
    RewriteBuilder,
    Rules,
    Shape,
    Value,
    aligned,
    rewrite,
    scalar_of,
    without_expand,
)

PRODUCTS = Rules()
Inputs = tuple[Node, ...]
Found = Node | Value | None

# A factor is small when each of its elements is used at least this often.
_SHARED = 4
_MOST_FACTORS = 8
_NEARBY = 200  # nodes that are looked at to find out what a factor depends on
# Factors that are left inside of a sum: more, and multiplying them again would cost more than is saved.
_MOST_LEFT = 3


def _is_small(x: Node) -> bool:
    """Whether `x` repeats something much smaller."""
    return x.op == "expand" and x.inputs[0].size * _SHARED <= x.size


def _factors(build: RewriteBuilder, x: Node) -> list[Node]:
    """What a tree of products multiplies. A product below `x` that others than products and sums read is one factor."""
    found: list[Node] = []
    left = [x]
    while left:
        node = left.pop()
        only_multiplied = node is x or all(reader in ("mul", "sum") for reader in build.readers(node))
        if node.op == "mul" and only_multiplied and len(left) + len(found) < _MOST_FACTORS:
            left += reversed(node.inputs)
        else:
            found.append(node)
    return found


def _multiplied(build: RewriteBuilder, nodes: Iterable[Node]) -> Node:
    """The product of nodes of one shape, in an order that does not depend on how it was written."""
    first, *rest = sorted(nodes, key=build.position)
    for node in rest:
        first = build.add("mul", (first, node))
    return first


@PRODUCTS.on("sum")
def factors_of_sum(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """sum(x * expand(r)) -> sum(x) * r  for an r that does not change along the axes of the sum"""
    (x,) = inputs
    axes = node.params["axes"]
    if x.op != "mul" or node.dtype.kind != "f" or x.size == 0:
        return None
    factors = _factors(build, x)
    outside = [f for f in factors if _is_fixed(f, axes, x.ndim)]
    inside = [f for f in factors if not _is_fixed(f, axes, x.ndim)]
    if not outside or not 1 <= len(inside) <= _MOST_LEFT:
        return None
    total = build.reduce("sum", _multiplied(build, inside), axes)
    if any(scalar_of(f) is None for f in outside):
        total = build.reshape(total, tuple(1 if axis in axes else n for axis, n in enumerate(x.shape)))
    for factor in outside:
        total = build.add("mul", (total, build.expand(without_expand(factor), total.shape)))
    return build.reshape(total, node.shape)


def _is_fixed(factor: Node, axes: Shape, rank: int) -> bool:
    shape = aligned(without_expand(factor).shape, rank)
    return factor.op == "expand" and all(shape[axis] == 1 for axis in axes)


@PRODUCTS.on("mul")
def small_factors(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """(x * expand(r)) * expand(s) -> x * expand(r * s)  where r * s is still small"""
    if node.dtype.kind != "f":
        return None
    for inner, outer in (inputs, inputs[::-1]):
        if inner.op != "mul" or not _is_small(outer) or not build.is_single_use(inner):
            continue
        for x, factor in (inner.inputs, inner.inputs[::-1]):
            if not _is_small(factor) or _is_small(x) or (scalar_of(factor) and scalar_of(outer)):
                continue
            r, s = factor.inputs[0], outer.inputs[0]
            shape = tuple(np.broadcast_shapes(r.shape, s.shape))
            if math.prod(shape) * _SHARED <= node.size:
                product = build.add("mul", (build.expand(r, shape), build.expand(s, shape)))
                return build.add("mul", (x, build.expand(product, node.shape)))
    return None


@PRODUCTS.on("add")
def common_factors(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x * u + x * v -> x * (u + v)  for all factors x of both that come from a later contraction than the others"""
    if node.dtype.kind != "f" or any(term.op != "mul" or not build.is_single_use(term) for term in inputs):
        return None
    first, second = (_factors(build, term) for term in inputs)
    shared = [factor for factor in first if factor in second]
    if not shared or len(shared) > len(set(shared)):
        return None
    made = {factor: _contraction(build, factor) for factor in (*first, *second)}
    newest = max(made[factor] for factor in shared)
    shared = [factor for factor in shared if made[factor] == newest]
    rest = [[factor for factor in factors if factor not in shared] for factors in (first, second)]
    if newest < 0 or not all(rest) or any(made[factor] >= newest for factors in rest for factor in factors):
        return None
    total = build.add("add", tuple(_multiplied(build, factors) for factors in rest))
    return build.add("mul", (_multiplied(build, shared), total))


def _contraction(build: RewriteBuilder, node: Node) -> int:
    """The position of the last contraction that `node` is made of by other operations; -1 if there is none nearby."""
    found, left, seen = -1, [node], {node}
    while left and len(seen) < _NEARBY:
        step = left.pop()
        if step.op != "input" and PRIMITIVES[step.op].kind == "contract":
            found = max(found, build.position(step))
            continue
        left += [operand for operand in step.inputs if operand not in seen]
        seen.update(step.inputs)
    return found


def _known_products(graph: Graph) -> Graph:
    """The last rule of the file's text: it needs to know which products the graph has."""
    known: dict[frozenset[Node], Node] = {}

    def rule(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
        if node.op != "mul" or node.dtype.kind != "f":
            return None
        for difference, e in (inputs, inputs[::-1]):
            for a, factor, s in _differences(build, difference):
                product = known.get(frozenset((e, factor)))
                if product is not None:
                    return build.add("mul", (build.add("sub", (a, build.expand(s, node.shape))), product))
        known.setdefault(frozenset(inputs), node)
        return None

    return rewrite(graph, rule)


def _differences(build: RewriteBuilder, node: Node) -> Iterator[tuple[Node, Node, Node]]:
    """(a, R, s) for each way to read `node` as a * R - expand(r * s) with R = expand(r)."""
    if node.op != "sub" or not build.is_single_use(node):
        return
    product, repeated = node.inputs
    if product.op != "mul" or repeated.op != "expand" or repeated.inputs[0].op != "mul":
        return
    for a, factor in (product.inputs, product.inputs[::-1]):
        for s, r in (repeated.inputs[0].inputs, repeated.inputs[0].inputs[::-1]):
            if factor.op == "expand" and factor.inputs[0] is r:
                yield a, factor, s


def products(graph: Graph) -> Graph:
    """`graph` with repeated factors multiplied where they are small."""
    return _known_products(rewrite(graph, PRODUCTS))


PRODUCTS_PASS = Pass("products", products, exact=False, needs=frozenset({"mul"}))
