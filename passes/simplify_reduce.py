"""Reductions that need not be done, or are done over fewer elements, with the same bits."""

from __future__ import annotations

import math

from fusegraph.ir.graph import Node
from fusegraph.passes.base import RewriteBuilder, Rules, Shape, Value, aligned, is_constant, without_axes, without_ones

REDUCE = Rules()
Inputs = tuple[Node, ...]
Found = Node | Value | None

_REDUCTIONS = ("sum", "prod", "max", "min")
_EXTREMES = ("max", "min")
_NEUTRAL = {"sum": 0, "prod": 1}


@REDUCE.on("matmul", *_REDUCTIONS)
def of_nothing(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """sum over no elements -> 0, product -> 1"""
    if node.op not in _EXTREMES and inputs[0].size == 0 and node.size:
        return build.full(_NEUTRAL.get(node.op, 0), node.shape, node.dtype)
    return None


@REDUCE.on("sum", "prod")
def of_neutral(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """sum of zeros -> 0, product of ones -> 1"""
    neutral = is_constant(inputs[0], _NEUTRAL[node.op])
    return build.full(_NEUTRAL[node.op], node.shape, node.dtype) if neutral else None


@REDUCE.on(*_REDUCTIONS, "argmax", "argmin")
def over_ones(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """reduce over axes of size 1 -> reshape;  the position of the only element -> 0"""
    (x,) = inputs
    axes = node.params["axes"]
    real = tuple(axis for axis in axes if x.shape[axis] != 1)
    if len(real) == len(axes):
        return None
    if not real:
        return build.full(0, node.shape, node.dtype) if node.op.startswith("arg") else build.reshape(x, node.shape)
    return build.reshape(build.reduce(node.op, x, real), node.shape)


@REDUCE.on(*_REDUCTIONS, "argmax", "argmin")
def of_reshape(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """reduce(reshape(x)) -> reshape(reduce(x))  where the reshape only adds or removes axes of size 1"""
    (view,) = inputs
    if view.op != "reshape" or without_ones(view.inputs[0].shape) != without_ones(view.shape):
        return None
    (x,) = view.inputs
    number = dict(
        zip(
            (axis for axis, extent in enumerate(view.shape) if extent != 1),
            (axis for axis, extent in enumerate(x.shape) if extent != 1),
        )
    )
    axes = [number[axis] for axis in node.params["axes"] if axis in number]
    return build.reshape(build.reduce(node.op, x, axes), node.shape) if axes else None


@REDUCE.on(*_EXTREMES)
def extreme_of_repeated(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """max over a repeated axis -> max without it"""
    (view,) = inputs
    if view.op != "expand":
        return None
    shape = aligned(view.inputs[0].shape, view.ndim)
    x = build.reshape(view.inputs[0], shape)
    repeated = {axis for axis in node.params["axes"] if shape[axis] == 1}
    if not repeated:
        return None
    left = [axis - sum(gone < axis for gone in repeated) for axis in node.params["axes"] if axis not in repeated]
    kept = build.expand(build.reshape(x, without_axes(shape, repeated)), without_axes(view.shape, repeated))
    return build.reduce(node.op, kept, left)


@REDUCE.on(*_EXTREMES)
def extreme_of_extreme(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """max(max(x)) -> max(x) over all axes"""
    (inner,) = inputs
    if inner.op != node.op or not build.is_single_use(inner):
        return None
    axes = joined_axes(inner.inputs[0], inner.params["axes"], node.params["axes"])
    return None if is_large(inner.inputs[0], axes) else build.reduce(node.op, inner.inputs[0], axes)


def joined_axes(x: Node, first: Shape, second: Shape) -> Shape:
    """The axes of `x` that go when `first` go, and then `second` of what is left."""
    left = [axis for axis in range(x.ndim) if axis not in first]
    return tuple(sorted((*first, *(left[axis] for axis in second))))


# A reduction of more elements than this into fewer results than that is done in two steps (see `split_reduce`), and one of
# so many rows of a matrix that no cache holds.
LARGE_ELEMENTS = 1 << 16
FEW_RESULTS = 64
MANY_ROWS, LONG_BYTES = 1024, 8 << 20


def is_large(x: Node, axes: Shape) -> bool:
    """Whether reducing `x` over `axes` is worth two steps, the first of which many threads can share."""
    rows = math.prod(x.shape[axis] for axis in axes) if axes == tuple(range(len(axes))) else 0
    if rows >= MANY_ROWS and x.size * x.dtype.itemsize >= LONG_BYTES:
        return True
    return x.size > LARGE_ELEMENTS and math.prod(without_axes(x.shape, axes)) < FEW_RESULTS


@REDUCE.on("sum")
def sum_of_negated(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """sum(-x) -> -sum(x)"""
    (x,) = inputs
    if x.op == "neg" and build.is_single_use(x):
        return build.add("neg", (build.reduce("sum", x.inputs[0], node.params["axes"]),))
    return None
