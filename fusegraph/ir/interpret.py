"""The numpy reference: runs a graph node by node. Slow, exact, the oracle of everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusegraph.ir.graph import Graph, Node
from fusegraph.ir.primitives import PRIMITIVES

Array = np.ndarray[Any, Any]


def apply(op: str, arrays: Sequence[Array], params: Any) -> Array:
    """One primitive on numpy arrays."""
    with np.errstate(all="ignore"):
        return PRIMITIVES[op].reference(*arrays, **params)


def evaluate(graph: Graph, arrays: Sequence[Array]) -> dict[Node, Array]:
    """The value of every node of `graph`, given its inputs' arrays in order."""
    values: dict[Node, Array] = dict(zip(graph.inputs, arrays, strict=True))
    for node in graph.nodes:
        if node.op != "input":
            values[node] = apply(node.op, [values[value] for value in node.inputs], node.params)
    return values


def run(graph: Graph, arrays: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    """Outputs, and the new values of the updated inputs (nothing is changed in place)."""
    values = evaluate(graph, arrays)
    return [values[node] for node in graph.outputs], [values[new] for _, new in graph.updates]
