"""Algebra of maps and zips that keeps every bit.

Floating point: x * 0 stays (x may be NaN or infinite), x + 0 stays (it turns -0 into 0; see `scalars`).
"""

from __future__ import annotations

from fusegraph.ir.graph import Node
from fusegraph.passes.base import RewriteBuilder, Rules, Value, is_constant

ALGEBRA = Rules()
Inputs = tuple[Node, ...]
Found = Node | Value | None


@ALGEBRA.on("neg", "logical_not")
def double_negation(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """-(-x) -> x"""
    return inputs[0].inputs[0] if inputs[0].op == node.op else None


@ALGEBRA.on("mul")
def times_one(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x * 1 -> x;  x * -1 -> -x"""
    for x, factor in (inputs, inputs[::-1]):
        if is_constant(factor, 1):
            return x
        if is_constant(factor, -1) and node.dtype.kind in "fi":
            return build.add("neg", (x,))
    return None
