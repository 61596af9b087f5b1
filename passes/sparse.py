"""Sparse gradients stay sparse: what is scattered onto zeros and then added to a tensor is scattered onto that tensor.

    x + put_add(0, i, u) -> put_add(x, i, u)      x - put_add(0, i, u) -> put_add(x, i, -u)
    put_add(0, i, u) * s -> put_add(0, i, u * s)     for a scalar s

Together: plain SGD on an embedding, W - lr * put_add(0, i, u), becomes put_add(W, i, -lr * u), which touches only the
rows that were looked up. Equal indices are added up in another order: not bit-exact, left out when `exact`. (0 * s is
taken to be 0: s is a finite number.)
"""

from __future__ import annotations

from collections.abc import Callable

from fusegraph.ir.graph import Graph, Node
from fusegraph.passes.base import Pass, RewriteBuilder, Rules, Value, constant_value, rewrite, split_factor

SPARSE = Rules()
Inputs = tuple[Node, ...]
Found = Node | Value | None


def _scatters_onto_zeros(build: RewriteBuilder, node: Node) -> list[Node]:
    """The scatters, first to last, that `node` is made of, when the first is onto zeros and nothing else reads them."""
    chain: list[Node] = []
    while node.op in ("put_add", "put_along_add") and build.is_single_use(node):
        chain.append(node)
        node = node.inputs[0]
    return chain[::-1] if constant_value(node) == 0 else []


def _again(build: RewriteBuilder, chain: list[Node], base: Node, change: Callable[[Node], Node] = lambda u: u) -> Node:
    """The scatters of `chain` onto `base`, with changed updates."""
    for scatter in chain:
        _, index, updates = scatter.inputs
        base = build.add(scatter.op, (base, index, change(updates)), scatter.params)
    return base


@SPARSE.on("mul")
def scaled_scatter(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """put_add(0, i, u) * s -> put_add(0, i, u * s)"""
    parts = split_factor(node)
    chain = _scatters_onto_zeros(build, parts[0]) if parts else []
    if parts is None or not chain:
        return None

    def scaled(updates: Node) -> Node:
        return build.add("mul", (updates, build.expand(parts[1], updates.shape)))

    return _again(build, chain, chain[0].inputs[0], scaled)


@SPARSE.on("neg")
def negated_scatter(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """-put_add(0, i, u) -> put_add(0, i, -u)"""
    chain = _scatters_onto_zeros(build, inputs[0])
    return _again(build, chain, chain[0].inputs[0], lambda u: build.add("neg", (u,))) if chain else None


@SPARSE.on("add")
def added_scatter(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x + put_add(0, i, u) -> put_add(x, i, u)"""
    for x, scatter in (inputs, inputs[::-1]):
        chain = _scatters_onto_zeros(build, scatter)
        if chain:
            return _again(build, chain, x)
    return None


@SPARSE.on("add")
def added_views(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """view(put_add(0, i, u)) + view(put_add(0, j, v)) -> view(put_add(0, i, u) + put_add(0, j, v))  for the same view"""
    a, b = inputs
    same = a.op == b.op and a.op in ("reshape", "permute") and a.params == b.params
    if not same or a.inputs[0].shape != b.inputs[0].shape or not (build.is_single_use(a) and build.is_single_use(b)):
        return None
    if not all(_shows_scatter(build, x) for x in inputs):
        return None
    return build.add(a.op, (build.add("add", (a.inputs[0], b.inputs[0])),), a.params)


def _shows_scatter(build: RewriteBuilder, node: Node) -> bool:
    while node.op in ("reshape", "permute") and build.is_single_use(node):
        (node,) = node.inputs
    return bool(_scatters_onto_zeros(build, node))


@SPARSE.on("sub")
def subtracted_scatter(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x - put_add(0, i, u) -> put_add(x, i, -u)"""
    chain = _scatters_onto_zeros(build, inputs[1])
    return _again(build, chain, inputs[0], lambda u: build.add("neg", (u,))) if chain else None


def sparse(graph: Graph) -> Graph:
    """`graph` with scatters onto zeros moved into what they are added to."""
    return rewrite(graph, SPARSE)


SPARSE_PASS = Pass("sparse", sparse, exact=False, needs=frozenset({"put_add", "put_along_add"}))
