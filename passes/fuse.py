"""Fusion: an op graph becomes a Program of fused Loops.

1. roots       which nodes get memory (roots.py, memory_roots.py); everything else is inlined into them (inline.py)
2. groups      each root begins as a kernel of its own; pairs merge, dearest bytes first (merge.py), while the rules of
               groups.py allow
3. order       kernels in an order in which nothing is overwritten before its last reader; updates in place where they can be
4. loops       each group becomes a Loop (schedule.py)

Every refusal is kept, with the rule and the bytes that it costs, for `explain`.
"""

from __future__ import annotations

import os

from fusegraph.ir import scalar
from fusegraph.ir.graph import Graph, Node
from fusegraph.ir.loops import Loop, Program
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.ir.verify_loops import verify_program
from fusegraph.passes.fusion_state import FusionReport, FusionState
from fusegraph.passes.groups import Group, old_name
from fusegraph.passes.index_checks import index_checks
from fusegraph.passes.memory_roots import make_roots, name_inputs
from fusegraph.passes.merge import KernelGraph, merge_all
from fusegraph.passes.order import frugal, ordered
from fusegraph.passes.roots import storage
from fusegraph.passes.schedule import make_loop

__all__ = ["FusionReport", "fuse"]


def fuse(
    graph: Graph,
    merge: bool = True,
    limit: int | None = None,
    *,
    save_memory: bool = False,
    without: frozenset[str] = frozenset(),
) -> tuple[Program, FusionReport]:
    """The fused program of `graph`. With `merge=False` every root is a kernel of its own ("unfused").

    limit: only the first so many merges are done; their order is the same in every run.
    save_memory: kernels in an order in which little is alive, rather than one with few barriers; what is used at different times
    is not read by one kernel.
    without: names of choices that are switched off (see choices.py).
    """
    state = FusionState(graph, merge, limit, save_memory, without)
    name_inputs(state)
    make_roots(state)
    groups = merge_all(state, KernelGraph(state)) if merge else KernelGraph(state)
    program = _program(state, frugal(groups) if save_memory else ordered(groups))
    if os.environ.get("FUSEGRAPH_VERIFY") == "1":
        verify_program(program)
    scalar.clear_interned()
    return program, state.report


def _program(state: FusionState, kernels: list[Group]) -> Program:
    readers: dict[str, int] = {}
    for group in kernels:
        for name in group.reads():
            readers[name] = readers.get(name, 0) + 1
    loops: list[Loop] = []
    for number, group in enumerate(kernels):
        if any(axis.extent == 0 for axis in group.space) or (group.kind == "scatter" and group.work == 0):
            continue
        exported = frozenset(name for name in group.writes if _is_exported(state, group, name, readers))
        nodes = _nodes_of(state, group)
        loop, local = make_loop(group, f"k{number}_{_short(nodes)}", exported, nodes)
        loops.append(loop)
        state.buffers.update({buffer.name: buffer for buffer in local})
        state.report.kernels.append((loop.name, nodes))
    state.report.buffers = {node: name for node, name in state.names.items() if node.op != "input"}
    state.buffers = {name: buffer for name, buffer in state.buffers.items() if old_name(name) is None}
    used = {name for loop in loops for name in loop.reads() + loop.writes()} | set(state.outputs)
    kept = {name: b for name, b in state.buffers.items() if name in used or b.role in ("input", "state")}
    inputs = tuple(state.names[node] for node in state.graph.inputs)
    return Program(
        state.graph.name, kept, tuple(loops), inputs, tuple(state.outputs), *index_checks(state.graph, state.names)
    )


def _is_exported(state: FusionState, group: Group, name: str, readers: dict[str, int]) -> bool:
    """Whether something outside of the group needs the buffer."""
    return (
        state.buffers[name].role in ("output", "state")
        or readers.get(name, 0) > (name in group.reads())
        or group.kind == "scatter"
        or any(root.node.op.startswith("put") and root.kind == "map" for root in group.roots if root.buffer == name)
    )


def _nodes_of(state: FusionState, group: Group) -> tuple[Node, ...]:
    """The operations that run inside of a kernel, in graph order (views left out)."""
    mine = {root.node for root in group.roots}
    found: set[Node] = set()
    stack = [
        root.node for root in group.roots if state.names.get(storage(root.node)) == root.buffer or root.kind != "map"
    ]
    while stack:
        node = stack.pop()
        found.add(node)
        stack += [
            operand
            for operand in node.inputs
            if operand not in found and (operand not in state.names or operand in mine)
        ]
    shown = [node for node in found if node.op not in ("input", "constant") and PRIMITIVES[node.op].kind != "view"]
    return tuple(sorted(shown, key=state.places.__getitem__))


def _short(nodes: tuple[Node, ...]) -> str:
    names = list(dict.fromkeys(node.op for node in nodes)) or ["copy"]
    anchors = (
        [name for name in names if PRIMITIVES[name].kind in ("contract", "reduce", "scatter", "gather")]
        if nodes
        else names
    )
    rest = [name for name in names if name not in anchors]
    return "_".join((anchors + rest)[:4])
