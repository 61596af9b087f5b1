"""The verifier: which graphs are legal at which stage. Tests run it after every pass."""

from __future__ import annotations

from fusegraph.errors import GraphError
from fusegraph.ir.graph import Graph
from fusegraph.ir.primitives import PRIMITIVES


def verify(graph: Graph) -> Graph:
    """`graph` itself, if every node obeys its rule, comes after what it reads, and updates fit. Raises GraphError."""
    seen = set()
    for node in graph.nodes:
        if node.op != "input":
            if node.op not in PRIMITIVES:
                raise GraphError(f"{graph.name}: no primitive is called {node.op!r}")
            for value in node.inputs:
                if value not in seen:
                    raise GraphError(f"{graph.name}: {node!r} reads {value!r} before it is made")
            shape, dtype = PRIMITIVES[node.op].infer(node.inputs, node.params)
            if (tuple(shape), dtype) != (node.shape, node.dtype):
                raise GraphError(f"{graph.name}: {node!r} should be {dtype.name}{list(shape)}")
        elif node not in graph.inputs:
            raise GraphError(f"{graph.name}: input {node.name!r} is not among the graph's inputs")
        seen.add(node)
    updated = [old for old, _ in graph.updates]
    if len(set(updated)) != len(updated):
        raise GraphError(f"{graph.name}: an input is updated twice")
    for old, new in graph.updates:
        if old not in graph.inputs or (old.shape, old.dtype) != (new.shape, new.dtype):
            raise GraphError(f"{graph.name}: update of {old!r} by {new!r}: not an input, or another type")
    return graph
