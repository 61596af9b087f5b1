"""Cotangents that are zero nearly everywhere go through convolutions as scatters, which leave the zeros out.

The gradient of a maximum over many positions (max-over-time, global max-pooling) is zero but at the position that won. A
convolution's gradients then need one row of products for each winner, not one for each position:

    conv_input_grad(g, w)  ->  put_add(0, [y, x], g * w)       conv_weight_grad(x, g)  ->  put_add(0, [channel], g * x)

The code generator skips the points where g is 0. Equal places are added up in another order, and an infinite or NaN factor of
a zero is not multiplied: not bit-exact, left out when `exact`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fusegraph.ir.graph import Graph, Node
from fusegraph.passes.base import Pass, RewriteBuilder, Rules, Value, constant_value, rewrite, without_expand
from fusegraph.passes.gradients import hot_index

SPARSE_COTANGENTS = Rules()
Inputs = tuple[Node, ...]
Found = Node | Value | None

# From this many positions to a winner on, skipping beats a dense product: a row of 150 products takes 56 ns for 16 positions
# at 85 % of the multiply-add peak, and 25 ns as a scatter with its search for the winner (2 cores, AVX2).
MIN_POSITIONS = 16


def positions_to_a_winner(g: Node) -> int:
    """Of how many elements of `g`, as far as its operations show, all but one (or ties of it) are zero; 1: of none."""
    while g.op in ("reshape", "permute", "neg"):
        (g,) = g.inputs
    if g.op == "where" and constant_value(g.inputs[2]) == 0:
        return max(_picked(g.inputs[0]), positions_to_a_winner(g.inputs[1]))
    if g.op == "mul":
        return max(map(positions_to_a_winner, g.inputs))
    return positions_to_a_winner(g.inputs[0]) if g.op == "div" else 1


def _picked(mask: Node) -> int:
    """Out of how many elements `mask` picks one: x == max(x), or iota == argmax(x)."""
    if mask.op == "cast":
        (mask,) = mask.inputs
    if mask.op != "eq":
        return 1
    for x, extreme in (mask.inputs, mask.inputs[::-1]):
        best = without_expand(extreme)
        while best.op == "reshape":
            (best,) = best.inputs
        if best.op in ("max", "min") and best.inputs[0] is x:
            return math.prod(x.shape[axis] for axis in best.params["axes"])
    hot = [mask.shape[axis] for axis in range(mask.ndim) if mask.shape[axis] > 1 and hot_index(mask, axis) is not None]
    return max(hot, default=1)


def _is_worth_it(node: Node, g: Node) -> bool:
    params = node.params
    plain = params["groups"] == 1 and all(pair == (0, 0) for pair in params["padding"])
    return plain and node.size > 0 and g.size > 0 and positions_to_a_winner(g) >= MIN_POSITIONS


def _counter(build: RewriteBuilder, shape: Sequence[int], steps: dict[int, int]) -> Node:
    """int64 of `shape`: the sum of coordinate * step over the axes in `steps`."""
    total: Node | None = None
    for axis, step in steps.items():
        ramp = build.add("iota", (), {"size": shape[axis], "dtype": "int64"})
        ramp = build.reshape(ramp, tuple(n if i == axis else 1 for i, n in enumerate(shape)))
        part = build.expand(ramp, tuple(shape))
        if step != 1:
            factor = build.add("constant", (), {"value": step, "dtype": "int64"})
            part = build.add("mul", (part, build.expand(factor, tuple(shape))))
        total = part if total is None else build.add("add", (total, part))
    assert total is not None
    return total


def _zeros(build: RewriteBuilder, shape: tuple[int, ...], like: Node) -> Node:
    zero = build.add("constant", (), {"value": 0.0, "dtype": like.dtype.name})
    return build.expand(zero, shape)


def _repeated(build: RewriteBuilder, x: Node, shape: tuple[int, ...], axes: Sequence[int]) -> Node:
    """`x`, whose axes are `axes` of `shape`, repeated along the others."""
    return build.expand(build.reshape(x, tuple(n if i in axes else 1 for i, n in enumerate(shape))), shape)


@SPARSE_COTANGENTS.on("conv_input_grad")
def scattered_input_gradient(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """conv_input_grad(g, w) -> put_add(0, [y, x], g * w)  for a g that is zero nearly everywhere"""
    g, w = inputs
    if not _is_worth_it(node, g):
        return None
    (n, c, height, width), (_, o, p, q), (i, j) = node.shape, g.shape, w.shape[2:]
    (down, right), (apart, aside) = node.params["stride"], node.params["dilation"]
    taps = (o, p, q, i, j)
    place = _counter(build, taps, {1: down * width, 2: right, 3: apart * width, 4: aside})
    shape = (n, *taps, c)
    product = build.add(
        "mul",
        (
            _repeated(build, g, shape, (0, 1, 2, 3)),
            _repeated(build, build.permute(w, (0, 2, 3, 1)), shape, (1, 4, 5, 6)),
        ),
    )
    rows = build.add("put_add", (_zeros(build, (n, height * width, c), g), place, product), {"axis": 1})
    return build.permute(build.reshape(rows, (n, height, width, c)), (0, 3, 1, 2))


@SPARSE_COTANGENTS.on("conv_weight_grad")
def scattered_weight_gradient(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """conv_weight_grad(x, g) -> put_add(0, [channel], g * x)  for a g that is zero nearly everywhere"""
    x, g = inputs
    if not _is_worth_it(node, g):
        return None
    (o, c, i, j), (n, _, p, q) = node.shape, g.shape
    windows = build.permute(x, (0, 2, 3, 1))
    for axis, size in ((1, i), (2, j)):
        step = {"stride": node.params["stride"][axis - 1], "dilation": node.params["dilation"][axis - 1]}
        windows = build.add("window", (windows,), {"axis": axis, "size": size, **step})
    windows = build.slice(windows, (0,) * 6, (n, p, q, c, i, j))  # a stride may leave positions over
    shape = (o, n, p, q, i, j, c)
    product = build.add(
        "mul",
        (
            _repeated(build, build.permute(g, (1, 0, 2, 3)), shape, (0, 1, 2, 3)),
            _repeated(build, build.permute(windows, (0, 1, 2, 4, 5, 3)), shape, (1, 2, 3, 4, 5, 6)),
        ),
    )
    rows = build.add(
        "put_add",
        (_zeros(build, (o, i, j, c), g), _counter(build, (o, n, p, q), {0: 1}), product),
        {"axis": 0},
    )
    return build.permute(rows, (0, 3, 1, 2))


def sparse_cotangents(graph: Graph) -> Graph:
    """`graph` with gradients of convolutions as scatters where their cotangents are zero nearly everywhere."""
    return rewrite(graph, SPARSE_COTANGENTS)


SPARSE_COTANGENTS_PASS = Pass(
    "sparse_cotangents", sparse_cotangents, exact=False, needs=frozenset({"conv_input_grad", "conv_weight_grad"})
)
