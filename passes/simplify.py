"""Simplify: local rules that keep every bit of the result."""

from __future__ import annotations

from fusegraph.ir.graph import Graph
from fusegraph.passes.base import Pass, Rules, rewrite
from fusegraph.passes.simplify_algebra import ALGEBRA

RULES = Rules(ALGEBRA)


def simplify(graph: Graph) -> Graph:
    """`graph` with the rules applied once to every node, producers first."""
    return rewrite(graph, RULES)


SIMPLIFY = Pass("simplify", simplify)
