"""Inlining: the scalar expression of a node's element, down to loads of materialised nodes.

Views compose into index maps here, and never become kernels: an index expression is pushed down through them. What stays
is arithmetic on loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusegraph.dtypes import SUPPORTED
from fusegraph.ir import scalar
from fusegraph.ir.graph import Node
from fusegraph.ir.index import Index, Indirect, flatten_index, unflatten_index
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.ir.scalar import Bound, Condition, Expr, Mask

Coordinates = tuple[Index, ...]


class Inliner:
    """Makes expressions. `buffers` names the memory of every materialised node (graph inputs among them)."""

    def __init__(self, buffers: Mapping[Node, str]) -> None:
        self.buffers = buffers
        self._known: dict[tuple[Node, Coordinates, Mask], Expr] = {}

    def value(self, node: Node, index: Coordinates, mask: Mask = ()) -> Expr:
        """The element of `node` at `index`; where `mask` fails the result is not used, and nothing is read."""
        if node in self.buffers:
            return scalar.load(self.buffers[node], index, node.dtype, mask)
        return self.operation(node, index, mask)

    def operation(self, node: Node, index: Coordinates, mask: Mask = ()) -> Expr:
        """As `value`, but computed even if the node is materialised."""
        key = (node, index, mask)
        if key not in self._known:
            rule = _RULES.get(node.op, _elementwise)
            self._known[key] = rule(self, node, index, mask)
        return self._known[key]


def _elementwise(inliner: Inliner, node: Node, index: Coordinates, mask: Mask) -> Expr:
    if PRIMITIVES[node.op].kind not in ("map", "zip"):
        raise AssertionError(f"{node!r} must be materialised before it is read")
    args = [inliner.value(operand, index, mask) for operand in node.inputs]
    return scalar.make(node.op, args, node.dtype)


def _constant(inliner: Inliner, node: Node, index: Coordinates, mask: Mask) -> Expr:
    return scalar.const(node.params["value"], node.dtype)


def _iota(inliner: Inliner, node: Node, index: Coordinates, mask: Mask) -> Expr:
    value = scalar.index_value(index[0])
    return value if node.dtype == value.dtype else scalar.op("cast", value, dtype=node.dtype)


def _random(inliner: Inliner, node: Node, index: Coordinates, mask: Mask) -> Expr:
    key, counter = (inliner.value(operand, (), ()) for operand in node.inputs)
    return scalar.philox(key, counter, flatten_index(index, node.shape))


def _after(inliner: Inliner, node: Node, index: Coordinates, mask: Mask) -> Expr:
    return inliner.value(node.inputs[0], index, mask)  # what must come before is an edge between kernels (merge.py)


def _check_index(inliner: Inliner, node: Node, index: Coordinates, mask: Mask) -> Expr:
    return inliner.value(node.inputs[0], index, mask)


def _reshape(inliner: Inliner, node: Node, index: Coordinates, mask: Mask) -> Expr:
    (x,) = node.inputs
    return inliner.value(x, reshaped(index, node.shape, x.shape), mask)


def reshaped(index: Coordinates, shape: tuple[int, ...], source: tuple[int, ...]) -> Coordinates:
    """Coordinates in `source` of the element at `index` of `shape`. Axes that both share stay as they are."""
    if tuple(n for n in shape if n != 1) == tuple(n for n in source if n != 1):
        kept = iter([part for part, n in zip(index, shape, strict=True) if n != 1])
        return tuple(Index() if n == 1 else next(kept) for n in source)
    return unflatten_index(flatten_index(index, shape), source)


def _permute(inliner: Inliner, node: Node, index: Coordinates, mask: Mask) -> Expr:
    source: list[Index] = [Index()] * len(index)
    for part, axis in zip(index, node.params["axes"], strict=True):
        source[axis] = part
    return inliner.value(node.inputs[0], tuple(source), mask)


def _expand(inliner: Inliner, node: Node, index: Coordinates, mask: Mask) -> Expr:
    (x,) = node.inputs
    lead = len(index) - len(x.shape)
    return inliner.value(
        x, tuple(Index() if n == 1 else part for part, n in zip(index[lead:], x.shape, strict=True)), mask
    )


def _slice(inliner: Inliner, node: Node, index: Coordinates, mask: Mask) -> Expr:
    start, step = node.params["start"], node.params["step"]
    return inliner.value(
        node.inputs[0], tuple(part * k + at for part, at, k in zip(index, start, step, strict=True)), mask
    )


def masked(value: Expr, mask: Mask, fill: Any) -> Expr:
    """`value` where `mask` holds, else `fill`. A load that is 0 there already needs no selection."""
    if not mask:
        return value
    if value.op == "load" and fill == 0 and set(mask) <= set(value.attribute.mask):
        return value
    return scalar.op("where", scalar.inside(mask), value, scalar.const(fill, value.dtype))


def _pad(inliner: Inliner, node: Node, index: Coordinates, mask: Mask) -> Expr:
    (x,) = node.inputs
    source = tuple(part - low for part, low in zip(index, node.params["low"], strict=True))
    conditions: list[Condition] = [Bound(part, 0, n) for part, n in zip(source, x.shape, strict=True)]
    added = scalar.simplify_mask(tuple(conditions))
    if any(
        condition.index.bounds[1] < 0 or condition.index.bounds[0] >= condition.high
        for condition in added
        if isinstance(condition, Bound)
    ):
        return scalar.const(node.params["value"], node.dtype)
    return masked(inliner.value(x, source, scalar.simplify_mask(mask + added)), added, node.params["value"])


def _concat(inliner: Inliner, node: Node, index: Coordinates, mask: Mask) -> Expr:
    axis, at = node.params["axis"], 0
    low, high = index[axis].bounds
    result: Expr | None = None
    for x in node.inputs:
        extent = x.shape[axis]
        if extent and high >= at and low < at + extent:
            source = (*index[:axis], index[axis] - at, *index[axis + 1 :])
            here = scalar.simplify_mask((Bound(index[axis], at, at + extent),))
            value = inliner.value(x, source, scalar.simplify_mask(mask + here))
            result = value if result is None else scalar.op("where", scalar.inside(here), value, result)
        at += extent
    return result if result is not None else scalar.const(0, node.dtype)


def _window(inliner: Inliner, node: Node, index: Coordinates, mask: Mask) -> Expr:
    axis, stride, dilation = node.params["axis"], node.params["stride"], node.params["dilation"]
    source = (*index[:axis], index[axis] * stride + index[-1] * dilation, *index[axis + 1 : -1])
    return inliner.value(node.inputs[0], source, mask)


def disjoint_fold(node: Node) -> bool:
    """Whether the windows that a fold adds up do not overlap: then each element has at most one source."""
    return bool(node.params["stride"] >= node.inputs[0].shape[-1] and node.params["dilation"] == 1)


def _fold(inliner: Inliner, node: Node, index: Coordinates, mask: Mask) -> Expr:
    (x,) = node.inputs
    axis, stride = node.params["axis"], node.params["stride"]
    window, place = index[axis] // stride, index[axis] % stride
    here = scalar.simplify_mask((Bound(window, 0, x.shape[axis]), Bound(place, 0, x.shape[-1])))
    source = (*index[:axis], window, *index[axis + 1 :], place)
    return masked(inliner.value(x, source, scalar.simplify_mask(mask + here)), here, 0)


def _take(inliner: Inliner, node: Node, index: Coordinates, mask: Mask) -> Expr:
    x, position = node.inputs
    axis = node.params["axis"]
    rank = len(position.shape)
    chosen = inliner.value(position, index[axis : axis + rank], mask)
    source = (*index[:axis], indirect(chosen, x.shape[axis]), *index[axis + rank :])
    return inliner.value(x, source, mask)


def _take_along(inliner: Inliner, node: Node, index: Coordinates, mask: Mask) -> Expr:
    x, position = node.inputs
    axis = node.params["axis"]
    chosen = inliner.value(position, index, mask)
    return inliner.value(x, (*index[:axis], indirect(chosen, x.shape[axis]), *index[axis + 1 :]), mask)


def indirect(value: Expr, extent: int) -> Index:
    """The index that `value` gives at run time, clamped into [0, extent)."""
    known = _known_index(value)
    if known is not None and known.bounds[0] >= 0 and known.bounds[1] < extent:
        return known
    if value.op == "cast" and value.args[0].dtype == SUPPORTED["int64"] and value.dtype.kind in "iu":
        return indirect(value.args[0], extent)
    return Index(0, ((Indirect(value, extent), 1),)) if extent > 1 else Index()


def _known_index(value: Expr) -> Index | None:
    """`value` as an index expression, where it is made of axes and integers alone."""
    if value.op == "index":
        return value.attribute  # type: ignore[no-any-return]
    if value.op == "const" and value.dtype.kind in "iu":
        return Index(value.attribute)
    if value.op not in ("add", "sub", "mul") or value.dtype != SUPPORTED["int64"]:
        return None
    left, right = (_known_index(arg) for arg in value.args)
    if left is None or right is None:
        return None
    if value.op == "mul":
        left, right = (right, left) if left.is_constant else (left, right)
        return left * right.constant if right.is_constant else None
    return left + right if value.op == "add" else left - right


_RULES = {
    "constant": _constant,
    "iota": _iota,
    "random_bits": _random,
    "after": _after,
    "check_index": _check_index,
    "reshape": _reshape,
    "permute": _permute,
    "expand": _expand,
    "slice": _slice,
    "pad": _pad,
    "concat": _concat,
    "window": _window,
    "fold": _fold,
    "take": _take,
    "take_along": _take_along,
}
