"""Dead code: updates that write an input's own value back are dropped, and with them what only they needed.

    update %w = %w  ->  (nothing)

Nodes that no result needs are never part of a finished graph: building one leaves them out.
"""

from __future__ import annotations

from fusegraph.ir.graph import Graph
from fusegraph.passes.base import Pass


def dce(graph: Graph) -> Graph:
    """`graph` without updates that change nothing."""
    updates = tuple((old, new) for old, new in graph.updates if old is not new)
    return graph if len(updates) == len(graph.updates) else Graph(graph.name, graph.inputs, graph.outputs, updates)


DCE = Pass("dce", dce)
