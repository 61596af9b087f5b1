"""Common subexpressions: nodes that compute the same become one node.

    f(a, b), f(a, b) -> one f(a, b)      a + b, b + a -> one a + b      a < b, b > a -> one a < b

Every primitive is a pure function of its inputs and parameters (random bits too: of key and counter), so equal nodes
are equal values. The first one in graph order stays.
"""

from __future__ import annotations

from typing import Any

from fusegraph.ir.graph import Graph, Node, freeze_params
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.passes.base import Pass, RewriteBuilder, Rules, rewrite

_MIRRORED = {"gt": "lt", "ge": "le"}
_COMMUTATIVE = {name for name, primitive in PRIMITIVES.items() if "commutative" in primitive.traits} | {"eq", "ne"}


def cse(graph: Graph) -> Graph:
    """`graph` with every value computed once."""
    rules = Rules()
    first: dict[tuple[Any, ...], Node] = {}

    @rules.on(*_COMMUTATIVE, *_MIRRORED, *_MIRRORED.values())
    def in_one_order(build: RewriteBuilder, node: Node, inputs: tuple[Node, ...]) -> Node:
        """f(b, a) -> f(a, b), if that is there already"""
        op, operands = node.op, tuple(map(id, inputs))
        if op in _COMMUTATIVE:
            operands = tuple(sorted(operands))
        elif op in _MIRRORED:
            op, operands = _MIRRORED[op], operands[::-1]
        return first.setdefault((op, operands, freeze_params(node.params)), node)

    return rewrite(graph, rules)  # which makes equal nodes one


CSE = Pass("cse", cse)
