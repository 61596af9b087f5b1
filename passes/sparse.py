"""Sparse gradients stay sparse: what is scattered onto zeros and then added to a tensor is scattered onto that tensor.

    x + put_add(0, i, u) -> put_add(x, i, u)      x - put_add(0, i, u) -> put_add(x, i, -u)
    put_add(0, i, u) * s -> put_add(0, i, u * s)     for a scalar s

Together: plain SGD on an embedding, W - lr * put_add(0, i, u), becomes put_add(W, i, -lr * u), which touches only the
rows that were looked up. Equal indices are added up in another order: not bit-exact, left out when `exact`. (0 * s is
taken to be 0: s is a finite number.)
"""

from __future__ import annotations

from fusegraph.ir.graph import Graph, Node
from fusegraph.passes.base import Pass, RewriteBuilder, Rules, Value, constant_value, rewrite, split_factor

SPARSE = Rules()
Inputs = tuple[Node, ...]
Found = Node | Value | None


def _scatter_onto_zeros(build: RewriteBuilder, node: Node) -> tuple[Node, Node] | None:
    """(index, updates) of a put_add or put_along_add onto zeros that nothing else reads."""
    if node.op not in ("put_add", "put_along_add") or not build.is_single_use(node):
        return None
    base, index, updates = node.inputs
    return (index, updates) if constant_value(base) == 0 else None


@SPARSE.on("mul")
def scaled_scatter(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """put_add(0, i, u) * s -> put_add(0, i, u * s)"""
    parts = split_factor(node)
    found = _scatter_onto_zeros(build, parts[0]) if parts else None
    if parts is None or found is None:
        return None
    scatter, scalar = parts
    index, updates = found
    scaled = build.add("mul", (updates, build.expand(scalar, updates.shape)))
    return build.add(scatter.op, (scatter.inputs[0], index, scaled), scatter.params)


@SPARSE.on("neg")
def negated_scatter(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """-put_add(0, i, u) -> put_add(0, i, -u)"""
    found = _scatter_onto_zeros(build, inputs[0])
    if found is None:
        return None
    scatter = inputs[0]
    return build.add(scatter.op, (scatter.inputs[0], found[0], build.add("neg", (found[1],))), scatter.params)


@SPARSE.on("add")
def added_scatter(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x + put_add(0, i, u) -> put_add(x, i, u)"""
    for x, scatter in (inputs, inputs[::-1]):
        found = _scatter_onto_zeros(build, scatter)
        if found is not None:
            return build.add(scatter.op, (x, *found), scatter.params)
    return None


@SPARSE.on("sub")
def subtracted_scatter(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x - put_add(0, i, u) -> put_add(x, i, -u)"""
    x, scatter = inputs
    found = _scatter_onto_zeros(build, scatter)
    if found is None:
        return None
    return build.add(scatter.op, (x, found[0], build.add("neg", (found[1],))), scatter.params)


def sparse(graph: Graph) -> Graph:
    """`graph` with scatters onto zeros moved into what they are added to."""
    return rewrite(graph, SPARSE)


SPARSE_PASS = Pass("sparse", sparse, exact=False)
