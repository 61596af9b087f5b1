"""The gradient through relu and then max-pooling needs the pooled values alone, not what was pooled.

    where(r > 0, fold(where(iota == argmax(window(r)), u, 0)), 0)
        ->  fold(where(iota == argmax(window(r)), where(max(window(r)) > 0, u, 0), 0))

    sum(fold(x))  over the folded axis  ->  sum(x)  over the windows and their elements
    sum(where(iota == argmax(window(r)), u, 0))  over the elements of a window  ->  u

An element of r that gets a gradient is the maximum of its window, so r > 0 there says max > 0 (both are false for NaN).
The backward pass then reads a quarter of what it read before for windows of 2 x 2, and r, often the largest activation
of a network, need not be kept. The gradient of a bias before the pooling is a sum over as many elements as were pooled.
"""

from __future__ import annotations

from fusegraph.ir.graph import Graph, Node
from fusegraph.passes.base import (
    Pass,
    RewriteBuilder,
    Rules,
    Value,
    aligned,
    constant_value,
    rewrite,
    without_expand,
)

__all__ = ["POOL_MASKS"]

_RULES = Rules()


@_RULES.on("where")
def mask_after_pooling(build: RewriteBuilder, node: Node, inputs: tuple[Node, ...]) -> Node | Value | None:
    """where(r > 0, fold(hot(u)), 0) -> fold(hot(where(max > 0, u, 0)))  for the maxima of r's windows"""
    positive, chosen, zero = inputs
    if positive.op != "gt" or constant_value(positive.inputs[1]) != 0 or constant_value(zero) != 0:
        return None
    folds: list[Node] = []
    while chosen.op == "fold":
        folds.append(chosen)
        (chosen,) = chosen.inputs
    if not folds or chosen.op != "where" or constant_value(chosen.inputs[2]) != 0:
        return None
    hot, update, nothing = chosen.inputs
    best = _position_of_maximum(hot)
    if best is None or not _is_pooled(best.inputs[0], positive.inputs[0], folds):
        return None
    kept = _masked(build, best, update)
    result = build.add("where", (hot, kept, nothing))
    for fold in reversed(folds):
        result = build.add("fold", (result,), fold.params)
    return result


@_RULES.on("sum")
def sum_of_fold(build: RewriteBuilder, node: Node, inputs: tuple[Node, ...]) -> Node | Value | None:
    """sum(fold(x)) over the folded axis -> sum(x) over the windows and their elements"""
    (folded,) = inputs
    axes = node.params["axes"]
    if folded.op != "fold" or folded.params["axis"] not in axes:
        return None
    (source,) = folded.inputs
    return build.reduce("sum", source, (*axes, source.ndim - 1))


@_RULES.on("sum")
def sum_of_maximum(build: RewriteBuilder, node: Node, inputs: tuple[Node, ...]) -> Node | Value | None:
    """sum(where(iota == argmax(window(r)), u, 0)) over the elements of a window -> u"""
    (chosen,) = inputs
    if chosen.op != "where" or constant_value(chosen.inputs[2]) != 0:
        return None
    hot, update, _ = chosen.inputs
    best = _position_of_maximum(hot)
    if best is None or not set(best.params["axes"]) <= set(node.params["axes"]):
        return None
    shape = tuple(1 if axis in best.params["axes"] else n for axis, n in enumerate(update.shape))
    small = without_expand(update)
    if small.shape != shape:
        return None
    rest = [axis - sum(gone < axis for gone in best.params["axes"]) for axis in node.params["axes"]
            if axis not in best.params["axes"]]  # fmt: skip
    return build.reduce("sum", build.reshape(small, best.shape), rest)


def _position_of_maximum(hot: Node) -> Node | None:
    """The argmax over the trailing axes of windows that a mask iota == argmax marks; None if it is another mask."""
    if hot.op != "eq":
        return None
    for ramp, index in (hot.inputs, hot.inputs[::-1]):
        best = _below_views(index)
        if best.op != "argmax" or best.inputs[0].shape != hot.shape:
            continue
        axes = best.params["axes"]
        shape = aligned(without_expand(ramp).shape, hot.ndim)
        kept = tuple(1 if axis in axes else n for axis, n in enumerate(hot.shape))
        counts = tuple(n if axis in axes else 1 for axis, n in enumerate(hot.shape))
        if (
            _below_views(ramp).op == "iota"
            and shape == counts
            and aligned(without_expand(index).shape, hot.ndim) == kept
        ):
            return best
    return None


def _below_views(node: Node) -> Node:
    while node.op in ("expand", "reshape"):
        node = node.inputs[0]
    return node


def _is_pooled(windows: Node, source: Node, folds: list[Node]) -> bool:
    """Whether `windows` are those of `source` that `folds`, outermost first, put back in their places."""
    for fold in reversed(folds):
        if windows.op != "window":
            return False
        base = windows.inputs[0]
        axis = windows.params["axis"]
        same = all(windows.params[key] == fold.params[key] for key in ("axis", "stride", "dilation"))
        if not same or base.shape[axis] != fold.params["extent"]:
            return False
        windows = base
    return windows is source


def _masked(build: RewriteBuilder, best: Node, update: Node) -> Node:
    """where(max > 0, update, 0), on as few elements as the update has."""
    axes = best.params["axes"]
    top = build.reduce("max", best.inputs[0], axes)
    small = without_expand(update)
    shape = tuple(1 if axis in axes else n for axis, n in enumerate(update.shape))
    if small.shape != shape:
        small = update
    top = build.expand(build.reshape(top, shape), small.shape)
    positive = build.add("gt", (top, build.full(0, top.shape, top.dtype)))
    return build.expand(build.add("where", (positive, small, build.full(0, small.shape, small.dtype))), update.shape)


def pool_masks(graph: Graph) -> Graph:
    """`graph` with the masks of relus on the pooled side of the gradients of max-pooling."""
    return rewrite(graph, _RULES)


POOL_MASKS = Pass("pool_masks", pool_masks, exact=False, needs=frozenset({"fold"}))
