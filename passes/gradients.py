"""Gradients in a form that is cheap to compute.

    put_along_add(0, i, u)  with one index along the axis   ->  where(iota == i, u, 0)
    sum(where(iota == i, u, 0))  over the axis              ->  u at i
    x > 0  where relu(x) is there                           ->  relu(x) > 0
    exp(z - log(sum(exp(z))))                               ->  exp(z) * (1 / sum(exp(z)))

With the first two the gradient of a cross-entropy is (softmax - one-hot) * g, element by element: no scatter, and no
sum over the classes. With the third a backward pass needs the output of a relu, which is kept anyway, and not its
input. The fourth is the softmax of values whose log-softmax is known, without a second exponential for each element.
"""

from __future__ import annotations

import math

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
    constant_value,
    rewrite,
    without_axes,
    without_expand,
    without_ones,
)

Inputs = tuple[Node, ...]
Found = Node | Value | None

ONE_HOT = Rules()


# -- which integers an index can be -----------------------------------------------------------------------------------


def index_range(node: Node, depth: int = 12) -> tuple[int, int]:
    """(low, high) with low <= every element < high, as far as it can be seen; at worst all that the type holds."""
    value = constant_value(node)
    if value is not None:
        return (value, value + 1)
    rule = _RANGES.get(node.op) if depth else None
    found = rule(node, depth - 1) if rule else None
    info = np.iinfo(node.dtype)
    return (int(info.min), int(info.max) + 1) if found is None else found


def _range_of_same(node: Node, depth: int) -> tuple[int, int] | None:
    (x,) = node.inputs
    if x.dtype.kind not in "iu":
        return None
    low, high = index_range(x, depth)
    info = np.iinfo(node.dtype)
    return (low, high) if info.min <= low and high <= int(info.max) + 1 else None


def _range_of_check(node: Node, depth: int) -> tuple[int, int] | None:
    low, high, allow = node.params["low"], node.params["high"], node.params["allow"]
    return (low, high) if allow is None else (min(low, allow), max(high, allow + 1))


def _range_of_position(node: Node, depth: int) -> tuple[int, int] | None:
    return (0, math.prod(node.inputs[0].shape[axis] for axis in node.params["axes"]))


def _range_of_limit(node: Node, depth: int) -> tuple[int, int] | None:
    limit = max if node.op == "maximum" else min
    (low, high), (low2, high2) = (index_range(x, depth) for x in node.inputs)
    return (limit(low, low2), limit(high, high2))


def _range_of_choice(node: Node, depth: int) -> tuple[int, int] | None:
    """Of where(c, a, b); in where(x != v, x, b) with a checked x the value v, that the check allows, does not count."""
    condition, a, b = node.inputs
    first, second = index_range(a, depth), index_range(b, depth)
    checked = without_expand(a)
    if condition.op == "ne" and checked.op == "check_index" and a in condition.inputs:
        other = condition.inputs[1] if condition.inputs[0] is a else condition.inputs[0]
        if constant_value(other) is not None and constant_value(other) == checked.params["allow"]:
            first = (checked.params["low"], checked.params["high"])
    return (min(first[0], second[0]), max(first[1], second[1]))


_RANGES = {
    "reshape": _range_of_same,
    "expand": _range_of_same,
    "permute": _range_of_same,
    "slice": _range_of_same,
    "cast": _range_of_same,
    "check_index": _range_of_check,
    "argmax": _range_of_position,
    "argmin": _range_of_position,
    "maximum": _range_of_limit,
    "minimum": _range_of_limit,
    "where": _range_of_choice,
    "iota": lambda node, depth: (0, max(node.params["size"], 1)),
}


def _is_inside(index: Node, extent: int) -> bool:
    low, high = index_range(index)
    return low >= 0 and high <= extent


def _inside(build: RewriteBuilder, index: Node, extent: int) -> Node:
    """`index` kept inside of [0, extent), as gathers and scatters do; itself where it is known to be inside."""
    low, high = index_range(index)
    if low < 0:
        index = build.add("maximum", (index, build.full(0, index.shape, index.dtype)))
    return build.add("minimum", (index, build.full(extent - 1, index.shape, index.dtype))) if high > extent else index


# -- one-hot gradients ------------------------------------------------------------------------------------------------


def _one_hot(build: RewriteBuilder, index: Node, shape: Shape, axis: int) -> Node:
    """The mask iota == index over `axis` of `shape`; `index` has size 1 there."""
    extent = shape[axis]
    ramp = build.add("iota", (), {"size": extent, "dtype": index.dtype.name})
    ramp = build.reshape(ramp, (extent,) + (1,) * (len(shape) - axis - 1))
    return build.add("eq", (build.expand(ramp, shape), build.expand(_inside(build, index, extent), shape)))


def _fits(extent: int, index: Node) -> bool:
    """Whether all positions of an axis are numbers of the index's type."""
    return index.dtype.kind in "iu" and extent <= int(np.iinfo(index.dtype).max) + 1


@ONE_HOT.on("put_along_add")
def scatter_of_one(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """put_along_add(0, i, u) -> where(iota == i, u, 0)  for one index along the axis"""
    base, index, updates = inputs
    axis = node.params["axis"]
    if constant_value(base) != 0 or index.shape[axis] != 1 or node.size == 0 or not _fits(node.shape[axis], index):
        return None
    mask = _one_hot(build, index, node.shape, axis)
    return build.add("where", (mask, build.expand(updates, node.shape), build.expand(without_expand(base), node.shape)))


@ONE_HOT.on("put_add")
def scatter_of_one_slice(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """put_add(0, i, u) -> where(iota == i, u, 0)  for a single index i"""
    base, index, updates = inputs
    axis = node.params["axis"]
    if constant_value(base) != 0 or index.size != 1 or node.size == 0 or not _fits(node.shape[axis], index):
        return None
    shape = node.shape
    mask = _one_hot(build, build.reshape(index, (1,) * len(shape)), shape, axis)
    updates = build.reshape(updates, tuple(1 if i == axis else n for i, n in enumerate(shape)))
    return build.add("where", (mask, build.expand(updates, shape), build.expand(without_expand(base), shape)))


def hot_index(mask: Node, axis: int) -> Node | None:
    """i (size 1 along `axis`) for a mask iota == i over `axis` that is true exactly once along it."""
    if mask.op != "eq" or mask.inputs[0].dtype.kind not in "iu":
        return None
    for ramp, position in (mask.inputs, mask.inputs[::-1]):
        index = without_expand(position)
        shape = aligned(index.shape, mask.ndim)
        if not _is_ramp(ramp, axis) or shape[axis] != 1:
            continue
        if _is_inside(index, mask.shape[axis]):
            return index
    return None


def _is_ramp(node: Node, axis: int) -> bool:
    """Whether `node` counts 0, 1, ... along `axis` and is repeated along the other axes."""
    source = without_expand(node)
    shape = aligned(source.shape, node.ndim)
    while source.op == "reshape" or (source.op == "cast" and _fits(node.shape[axis], source)):
        source = source.inputs[0]
    return source.op == "iota" and without_ones(shape) == (node.shape[axis],) and shape[axis] == node.shape[axis]


@ONE_HOT.on("sum")
def sum_of_one(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """sum(where(iota == i, u, 0)) over iota's axis -> u, or u at i where u differs along the axis"""
    (chosen,) = inputs
    if chosen.op != "where" or constant_value(chosen.inputs[2]) != 0:
        return None
    mask, u, _ = chosen.inputs
    for axis in node.params["axes"]:
        index = hot_index(mask, axis)
        if index is None or mask.shape[axis] == 1:
            continue
        rest = [other - (other > axis) for other in node.params["axes"] if other != axis]
        return build.reduce("sum", _selected(build, u, index, axis), rest)
    return None


def _selected(build: RewriteBuilder, u: Node, index: Node, axis: int) -> Node:
    """u[..., index, ...] along `axis`, which goes away."""
    target = without_axes(u.shape, (axis,))
    source = without_expand(u)
    shape = aligned(source.shape, u.ndim)
    if shape[axis] == 1:
        return build.expand(build.reshape(source, without_axes(shape, (axis,))), target)
    along = build.expand(index, tuple(1 if i == axis else n for i, n in enumerate(u.shape)))
    return build.reshape(build.add("take_along", (u, along), {"axis": axis}), target)


@ONE_HOT.on("take_along")
def gather_first(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """take_along(f(x, expand(r)), i) -> f(take_along(x, i), r)  where fewer elements are taken than there are

    With it the loss of a label is computed from its score alone, not from the log-softmax of all classes.
    """
    source, index = inputs
    axis = node.params["axis"]
    chain: list[tuple[Node, int]] = []
    while index.shape[axis] < source.shape[axis]:
        position = _only_varying(source, axis)
        if position is None:
            break
        chain.append((source, position))
        source = source.inputs[position]
    if not chain:
        return None
    value = build.add("take_along", (source, index), node.params)
    for step, position in reversed(chain):
        operands = [
            value if i == position else build.expand(x.inputs[0], node.shape) for i, x in enumerate(step.inputs)
        ]
        value = build.add(step.op, operands, step.params)
    return value


def _only_varying(node: Node, axis: int) -> int | None:
    """The position of the operand of an elementwise node that is not repeated along `axis`, if there is just one."""
    if node.op == "input" or PRIMITIVES[node.op].kind not in ("map", "zip"):
        return None
    varying = [
        i for i, x in enumerate(node.inputs) if x.op != "expand" or aligned(x.inputs[0].shape, x.ndim)[axis] != 1
    ]
    return varying[0] if len(varying) == 1 else None


# -- values that the forward pass has already -------------------------------------------------------------------------


def _relu_masks(graph: Graph) -> Graph:
    """x > 0 -> relu(x) > 0 where relu(x) is in the graph."""
    known = {node.inputs[0]: node for node in graph.nodes if node.op == "relu"}
    if not known:
        return graph
    relus: dict[Node, Node] = {}

    def rule(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
        if node.op == "relu":
            relus[inputs[0]] = node
        positive = (node.op == "gt" and inputs[0] in relus and constant_value(inputs[1]) == 0) or (
            node.op == "lt" and inputs[1] in relus and constant_value(inputs[0]) == 0
        )
        if not positive:
            return None
        pair = [relus.get(x, x) for x in inputs]
        return build.add(node.op, pair)

    return rewrite(graph, rule)


def gradients(graph: Graph) -> Graph:
    """`graph` with one-hot scatters as selections, and relu masks taken from outputs."""
    return _relu_masks(rewrite(graph, ONE_HOT))


GRADIENTS = Pass("gradients", gradients, needs=frozenset({*ONE_HOT.table, "relu"}))


# -- softmax out of log-softmax ---------------------------------------------------------------------------------------

SOFTMAX = Rules()


@SOFTMAX.on("exp")
def exp_of_log_softmax(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """exp(z - log(sum(exp(z)))) -> exp(z) * (1 / sum(exp(z)))  for z = x - max(x), which cannot overflow"""
    (logs,) = inputs
    if logs.op != "sub":
        return None
    z, shift = logs.inputs
    log = _below_views(shift)
    if log.op != "log" or not _is_shifted(z):
        return None
    total = _below_views(log.inputs[0])
    if total.op != "sum" or total.inputs[0].op != "exp" or total.inputs[0].inputs[0] is not z:
        return None
    axes = total.params["axes"]
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(z.shape))
    inverse = build.add("div", (build.full(1, kept, node.dtype), build.reshape(total, kept)))
    if aligned(without_expand(shift).shape, z.ndim) != kept:
        return None
    return build.add("mul", (total.inputs[0], build.expand(inverse, z.shape)))


def _below_views(node: Node) -> Node:
    while node.op in ("expand", "reshape"):
        node = node.inputs[0]
    return node


def _is_shifted(z: Node) -> bool:
    """Whether z is x - max(x)."""
    if z.op != "sub":
        return False
    top = _below_views(z.inputs[1])
    return top.op == "max" and top.inputs[0] is z.inputs[0]


def softmax(graph: Graph) -> Graph:
    """`graph` with the exponential of a log-softmax as a quotient."""
    return rewrite(graph, SOFTMAX)


SOFTMAX_PASS = Pass("softmax", softmax, exact=False, needs=frozenset({"log"}))
