"""Repetition last: what is computed from repeated values is computed once, and its result repeated.

f(expand(x)) -> expand(f(x))     expand(x) + expand(y) -> expand(x + y)     reshape(expand(x)) -> expand(reshape(x))
"""

from __future__ import annotations

import numpy as np

from fusegraph.ir.graph import Node
from fusegraph.passes.base import RewriteBuilder, Rules, Shape, Value, aligned, without_expand

EXPAND = Rules()
Inputs = tuple[Node, ...]
Found = Node | Value | None


@EXPAND.on(kind="map")
@EXPAND.on(kind="zip")
def repeated_operands(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """f(expand(x), expand(y), ...) -> expand(f(x, y, ...))  if x, y, ... broadcast to something smaller"""
    if any(x.op != "expand" for x in inputs):
        return None
    sources = [without_expand(x) for x in inputs]
    shape = tuple(np.broadcast_shapes(*(x.shape for x in sources)))
    if int(np.prod(shape, dtype=np.int64)) >= node.size and len(shape) == node.ndim:
        return None
    small = build.add(node.op, [build.expand(x, shape) for x in sources], node.params)
    return build.expand(small, node.shape)


@EXPAND.on("expand")
def expand_of_view(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """expand to the same shape -> x;  expand(expand(x)) -> expand(x);
    expand(reshape(x)) -> expand(x)  where the reshape only adds axes of size 1 in front"""
    (x,) = inputs
    if x.shape == node.shape:
        return x
    if x.op == "expand":
        return build.expand(x.inputs[0], node.shape)
    if x.op == "reshape" and x.shape == aligned(x.inputs[0].shape, x.ndim):
        return build.expand(x.inputs[0], node.shape)
    return None


@EXPAND.on("reshape")
def reshape_of_expand(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """reshape(expand(x)) -> expand(reshape(x))  if it does not join a repeated axis with another one"""
    (view,) = inputs
    if view.op != "expand" or view.size == 0:
        return None
    (x,) = view.inputs
    shape = _reshaped_source(aligned(x.shape, view.ndim), view.shape, node.shape)
    return None if shape is None else build.expand(build.reshape(x, shape), node.shape)


def _reshaped_source(source: Shape, old: Shape, new: Shape) -> Shape | None:
    """The shape of `source` (which is repeated to `old`) so that repeating it to `new` gives the reshaped values."""
    found: list[int] = []
    for olds, news in _groups(old, new):
        extents = [source[axis] for axis in olds]
        if all(extent == 1 for extent in extents):
            found += [1] * len(news)
        elif extents == [old[axis] for axis in olds]:
            found += [new[axis] for axis in news]
        else:
            return None
    return tuple(found)


def _groups(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes of two shapes that hold as many elements (no extent is 0)."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        olds, news, left, right = [], [], 1, 1
        if i < len(old):
            olds, left, i = [i], old[i], i + 1
        while left != right:
            if left < right:
                olds.append(i)
                left, i = left * old[i], i + 1
            else:
                news.append(j)
                right, j = right * new[j], j + 1
        if not olds:
            news, j = [j], j + 1
        groups.append((olds, news))
    return groups


@EXPAND.on("permute")
def permute_of_expand(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """permute(expand(x)) -> expand(permute(x))"""
    (view,) = inputs
    if view.op != "expand":
        return None
    x = build.reshape(view.inputs[0], aligned(view.inputs[0].shape, view.ndim)) if view.inputs[0].shape else None
    return build.expand(view.inputs[0] if x is None else build.permute(x, node.params["axes"]), node.shape)


@EXPAND.on("slice")
def slice_of_expand(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """slice(expand(x)) -> expand(slice(x))"""
    (view,) = inputs
    if view.op != "expand" or node.size == 0:
        return None
    (x,) = view.inputs
    first = view.ndim - x.ndim
    ranges = []
    for key, whole in (("start", 0), ("size", 1), ("step", 1)):
        values = node.params[key][first:]
        ranges.append(tuple(whole if extent == 1 else value for extent, value in zip(x.shape, values)))
    return build.expand(build.slice(x, *ranges), node.shape)


@EXPAND.on("window")
def window_of_expand(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """window(expand(scalar)) -> expand(scalar)"""
    (x,) = inputs
    return build.expand(x.inputs[0], node.shape) if x.op == "expand" and x.inputs[0].shape == () else None


@EXPAND.on("concat")
def concat_of_repeated(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """concat(expand(s), expand(s)) -> expand(s)  for one scalar s"""
    source = without_expand(inputs[0])
    if source.shape == () and all(without_expand(x) is source for x in inputs):
        return build.expand(source, node.shape)
    return None


@EXPAND.on(kind="map")
@EXPAND.on(kind="zip")
@EXPAND.on(kind="reduce")
@EXPAND.on(kind="contract")
@EXPAND.on("reshape", "permute", "slice", "pad", "concat", "take", "take_along")
def empty(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """a result without elements -> constant"""
    return build.full(0, node.shape, node.dtype) if node.size == 0 else None


@EXPAND.on("expand")
def empty_expand(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """expand to nothing -> constant"""
    return build.full(0, node.shape, node.dtype) if node.size == 0 and inputs[0].op != "constant" else None
