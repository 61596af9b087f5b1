"""Which checks of indices run before a program: nothing may be changed by a step whose labels or tokens are out of range.

An index that is an argument's elements in another shape is checked in native code (Guard). One that is a part of an argument,
or computed from arguments, is computed once more by the reference (Check). An index that depends on nothing is checked here.
What depends on the step's own results (an argmax, say) is inside of its axis by construction, or kept there by clamping.
"""

from __future__ import annotations

from fusegraph.errors import IndexRangeError
from fusegraph.ir import interpret
from fusegraph.ir.graph import Graph, GraphBuilder, Node, topological_order
from fusegraph.ir.loops import Check, Guard
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.ir.text import print_graph

_SAME_ELEMENTS = ("check_index", "reshape", "permute", "expand")
_LIGHT = ("map", "zip", "view", "source", "gather")


def index_checks(graph: Graph, names: dict[Node, str]) -> tuple[tuple[Guard, ...], tuple[Check, ...]]:
    """The checks of `graph`, whose inputs are called `names`. Raises IndexRangeError for a constant index out of range."""
    guards: list[Guard] = []
    checks: list[Check] = []
    for node in graph.nodes:
        if node.op != "check_index":
            continue
        p, source = node.params, node
        while source.op in _SAME_ELEMENTS or (source.op == "cast" and source.inputs[0].dtype.kind in "iu"):
            source = source.inputs[0]
        if source.op == "input" and source.dtype.kind in "iu":
            guards.append(Guard(names[source], p["low"], p["high"], p["allow"], p["what"], str(node.location)))
        elif all(
            n.op == "input" or (PRIMITIVES[n.op].kind in _LIGHT and n.op != "random_bits")
            for n in topological_order([node])
        ):
            small, inputs = _without_checks(node, names)
            if inputs:
                checks.append(
                    Check(print_graph(small), inputs, p["low"], p["high"], p["allow"], p["what"], str(node.location))
                )
            else:
                _check_constant(small, node)
    return tuple(guards), tuple(checks)


def _without_checks(node: Node, names: dict[Node, str]) -> tuple[Graph, tuple[str, ...]]:
    """A graph that computes what `node` checks, and the buffers of its inputs."""
    build = GraphBuilder()
    new: dict[Node, Node] = {}
    for each in topological_order([node]):
        if each.op == "input":
            new[each] = build.input(names[each], each.shape, each.dtype)
        elif each.op == "check_index":
            new[each] = new[each.inputs[0]]
        else:
            new[each] = build.add(each.op, [new[value] for value in each.inputs], each.params)
    return build.finish([new[node]], (), "check"), tuple(value.name for value in build.inputs)


def _check_constant(graph: Graph, node: Node) -> None:
    p = node.params
    ((values,), _) = interpret.run(graph, [])
    bad = (values < p["low"]) | (values >= p["high"])
    if p["allow"] is not None:
        bad &= values != p["allow"]
    if bad.any():
        raise IndexRangeError(
            f"{p['what']} {int(values[bad][0])} is outside of [{p['low']}, {p['high']})\n  at {node.location}"
        )
