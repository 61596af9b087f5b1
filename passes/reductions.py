"""Sums and products of matrices: fewer, and over fewer elements. Not bit-exact: sums are regrouped.

sum(expand(x)) -> sum(x) * count     sum(sum(x)) -> sum(x)               sum(permute(x)) -> sum(x)
x[m,1] @ y[1,n] -> x * y             transpose(x @ y) -> transpose(y) @ transpose(x)
"""

from __future__ import annotations

import math

from fusegraph.ir.graph import Graph, Node
from fusegraph.passes.base import (
    Pass,
    RewriteBuilder,
    Rules,
    Value,
    aligned,
    constant_value,
    rewrite,
    without_axes,
)
from fusegraph.passes.simplify_reduce import is_large, joined_axes

REDUCTIONS = Rules()
Inputs = tuple[Node, ...]
Found = Node | Value | None


@REDUCTIONS.on("sum")
def sum_of_repeated(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """sum over repeated axes -> sum over the others, times the count"""
    (view,) = inputs
    if view.op != "expand" or view.size == 0:
        return None
    shape = aligned(view.inputs[0].shape, view.ndim)
    repeated = {axis for axis in node.params["axes"] if shape[axis] == 1}
    if not repeated:
        return None
    count = math.prod(view.shape[axis] for axis in repeated)
    x = build.reshape(view.inputs[0], without_axes(shape, repeated))
    x = build.add("mul", (x, build.full(count, x.shape, x.dtype)))
    left = [axis - sum(gone < axis for gone in repeated) for axis in node.params["axes"] if axis not in repeated]
    return build.reduce("sum", build.expand(x, without_axes(view.shape, repeated)), left)


@REDUCTIONS.on("sum", "prod")
def sum_of_sum(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """sum(sum(x)) -> sum(x) over all axes, if that is not a reduction that is better done in two steps"""
    (inner,) = inputs
    if inner.op != node.op or not build.is_single_use(inner):
        return None
    axes = joined_axes(inner.inputs[0], inner.params["axes"], node.params["axes"])
    return None if is_large(inner.inputs[0], axes) else build.reduce(node.op, inner.inputs[0], axes)


@REDUCTIONS.on("sum")
def sum_of_centred(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """sum(x - mean(x)) -> sum(x) * 0  over the same axes: 0, or NaN where x is not finite"""
    (centred,) = inputs
    if centred.op != "sub" or node.dtype.kind != "f":
        return None
    x, mean = centred.inputs
    axes = node.params["axes"]
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(x.shape))
    if mean.op != "expand" or aligned(mean.inputs[0].shape, x.ndim) != kept:
        return None
    product = below_reshapes(mean.inputs[0])
    for total, factor in (product.inputs, product.inputs[::-1]) if product.op == "mul" else ():
        total = below_reshapes(total)
        if total.op == "sum" and total.inputs[0] is x and total.params["axes"] == axes and _is_share(factor, x, axes):
            return build.add("mul", (total, build.full(0, node.shape, node.dtype)))
    return None


def _is_share(factor: Node, x: Node, axes: tuple[int, ...]) -> bool:
    """Whether `factor` is 1 / (how many elements are added up)."""
    count = math.prod(x.shape[axis] for axis in axes)
    return count > 0 and constant_value(factor) == float(x.dtype.type(1 / count))


def below_reshapes(node: Node) -> Node:
    """What `node` is a reshape of."""
    while node.op == "reshape":
        node = node.inputs[0]
    return node


@REDUCTIONS.on("sum", "prod", "max", "min")
def reduce_of_permute(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """sum(permute(x)) -> sum(x), or permute(sum(x)) where the axes that are left change their order"""
    (view,) = inputs
    if view.op != "permute":
        return None
    order = view.params["axes"]
    axes = {order[axis] for axis in node.params["axes"]}
    left = [axis for axis in range(view.ndim) if axis not in axes]
    target = [axis for axis in order if axis not in axes]
    return build.permute(build.reduce(node.op, view.inputs[0], axes), tuple(left.index(axis) for axis in target))


@REDUCTIONS.on("matmul")
def outer_product(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x[m, 1] @ y[1, n] -> expand(x) * expand(y)"""
    x, y = inputs
    if x.shape[-1] != 1 or 0 in node.shape:
        return None
    return build.add("mul", (build.expand(x, node.shape), build.expand(y, node.shape)))


@REDUCTIONS.on("permute")
def transposed_product(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """transpose(x @ y) -> transpose(y) @ transpose(x): the gradient of a weight comes out in the weight's own layout"""
    (product,) = inputs
    rank = node.ndim
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    if product.op != "matmul" or node.params["axes"] != swapped or not build.is_single_use(product):
        return None
    x, y = product.inputs
    return build.add("matmul", (build.permute(y, swapped), build.permute(x, swapped)))


def reductions(graph: Graph) -> Graph:
    """`graph` with fewer sums."""
    return rewrite(graph, REDUCTIONS)


REDUCTIONS_PASS = Pass("reductions", reductions, exact=False)
