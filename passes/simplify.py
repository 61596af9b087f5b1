"""Simplify: local rules that keep every bit of the result, a file for each kind.

simplify_algebra   maps and zips          simplify_views    views of views
simplify_expand    repetition last        simplify_reduce   reductions of little or nothing
"""

from __future__ import annotations

from fusegraph.ir.graph import Graph
from fusegraph.passes.base import Pass, Rules, rewrite
from fusegraph.passes.simplify_algebra import ALGEBRA
from fusegraph.passes.simplify_expand import EXPAND
from fusegraph.passes.simplify_reduce import REDUCE
from fusegraph.passes.simplify_views import VIEWS

RULES = Rules(VIEWS, EXPAND, REDUCE, ALGEBRA)


def simplify(graph: Graph) -> Graph:
    """`graph` with the rules applied once to every node, producers first."""
    return rewrite(graph, RULES)


SIMPLIFY = Pass("simplify", simplify)
