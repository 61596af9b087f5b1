"""The report of a compiled program: plain data, from which every text, table and page about it is made.

`program_report` makes it from an Artifact; `encode` and `decode` are the form in which the disk cache keeps it. A report names
files and lines of the user's program. Code does not depend on those: an entry that another file's equal program made gives its
code, and the report is made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fusegraph.dtypes import DType
from fusegraph.inspect.cost import (
    loop_cost,
    operation_bytes,
    traffic,
    unfused_bytes,
    unfused_peak_bytes,
)
from fusegraph.ir.graph import Graph, Node
from fusegraph.ir.loops import Loop, Program
from fusegraph.ir.primitives import PRIMITIVES

if TYPE_CHECKING:
    from fusegraph.build import Artifact
    from fusegraph.passes.fuse import FusionReport
    from fusegraph.passes.groups import Refusal
    from fusegraph.passes.pipeline_log import PipelineLog

Report = dict[str, Any]
_UNTIMED = {
    "floor_ns": None,
    "time_ns": None,
    "idle_ns": None,
    "gb_s": None,
    "gflop_s": None,
    "share_of_roofline": None,
}


def program_report(artifact: Artifact) -> Report:
    """The report of one program. Nodes and kernels are named by their numbers, sizes are in bytes, times in nanoseconds or seconds.

    signature                what the program reads
    graph, optimised         the graph as it was traced, and as it was fused: nodes with the user's lines and with their kernels
    passes, rewrites         what the passes did, in order; which rules fired, how often
    kernels, edges           what runs, in order, with its operations, traffic and times; what goes from one kernel to another
    memory                   every buffer: its place in the arena, first and last kernel; what a memory budget has done
    refusals                 fusions that were refused, dearest first, by which rule
    totals, seconds          sums over kernels; time of each stage of the compilation
    """
    source, graph, (program, fusion) = artifact.source, artifact.graph, artifact.fused
    numbers = {node: number for number, node in enumerate(graph.nodes)}
    computed = _kernels_of_nodes(program, fusion)
    kernels = _kernels(artifact, program, fusion, numbers)
    traced = {node: _kernels_of_traced(node, artifact, computed) for node in artifact.traced.nodes}
    logs = [artifact.log] if artifact.origin is None else [artifact.origin.log, artifact.log]
    _add_by_line(traced, artifact, computed)
    return {
        "name": program.name,
        "phase": "step",
        "backend": artifact.options.backend,
        "signature": [
            {"name": node.name, "shape": list(node.shape), "dtype": node.dtype.name} for node in source.inputs
        ],
        "graph": graph_report(artifact.traced, traced),
        "optimised": graph_report(graph, computed),
        "passes": [dict(vars(run)) for log in logs for run in log.runs],
        "rewrites": [
            {"rule": name, "count": count, "text": text.strip().partition("\n")[0]}
            for (name, text), count in sorted(_fired(logs).items(), key=lambda item: (-item[1], item[0]))
        ],
        "kernels": kernels,
        "edges": _edges(program),
        "memory": _memory(source, artifact.in_memory()) | {"budget": _budget(artifact)},
        "refusals": [_refusal(refusal, numbers) for refusal in fusion.refusals],
        "totals": _totals(source, kernels),
        "seconds": dict(artifact.seconds),
        "from_cache": artifact.from_cache,
        "in_place": [buffer.name for buffer in program.buffers.values() if buffer.role == "state"],
    }


# -- graphs -------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def dtype_name(dtype: DType) -> str:
    """A dtype's name; numpy makes it anew, in 10 us, each time."""
    return dtype.name


def graph_report(graph: Graph, kernels: Mapping[Node, Iterable[int]]) -> Report:
    """The op graph as data. `kernels`: which kernels compute each node."""
    number = {node: index for index, node in enumerate(graph.nodes)}
    return {
        "nodes": [
            _node(node, index, [number[value] for value in node.inputs], kernels.get(node, ()))
            for node, index in number.items()
        ],
        "inputs": [number[node] for node in graph.inputs],
        "outputs": [number[node] for node in graph.outputs],
        "updates": [[number[old], number[new]] for old, new in graph.updates],
    }


def _node(node: Node, number: int, inputs: list[int], kernels: Iterable[int]) -> Report:
    attributes = {name: str(value) for name, value in node.params.items()}
    if node.op == "input":
        attributes["name"] = node.name
    return {
        "id": number,
        "op": node.op,
        "inputs": inputs,
        "shape": list(node.shape),
        "dtype": dtype_name(node.dtype),
        "file": node.location.file,
        "line": node.location.line,
        "module": node.location.module,
        "region": node.location.region,
        "attributes": attributes,
        "kernels": list(kernels),
    }


def _kernels_of_nodes(program: Program, fusion: FusionReport) -> dict[Node, list[int]]:
    """Which kernels compute each node of the optimised graph (a value that is computed again has several)."""
    number = {loop.name: index for index, loop in enumerate(program.loops)}
    found: dict[Node, list[int]] = {}
    for name, nodes in fusion.kernels:
        for node in nodes:
            found.setdefault(node, []).append(number[name])
    return found


def _is_computed(node: Node) -> bool:
    return node.op not in ("input", "constant") and PRIMITIVES[node.op].kind != "view"


def _fired(logs: Sequence[PipelineLog]) -> Counter[tuple[str, str]]:
    """How often each rule changed a node."""
    total: Counter[tuple[str, str]] = Counter()
    for log in logs:
        total.update(log.fired)
    return total


def _kernels_of_traced(node: Node, artifact: Artifact, computed: Mapping[Node, list[int]]) -> list[int]:
    """Which kernels compute what the rewrites have made of a traced node."""
    if not _is_computed(node):
        return []
    return next((computed[other] for other in _became(node, artifact) if other in computed), [])


def _became(node: Node, artifact: Artifact) -> Iterator[Node]:
    """`node`, and what stands in its place after each rewrite; where that is a view at last, also what it is a view of."""
    last: Node | None = node
    while last is not None:
        cut = (last,) if artifact.origin is None else artifact.origin.successors(last)
        for part in cut:
            for last in artifact.log.successors(part):
                yield last
        last = last.inputs[0] if not _is_computed(last) and len(last.inputs) == 1 else None


def _add_by_line(traced: dict[Node, list[int]], artifact: Artifact, computed: Mapping[Node, list[int]]) -> None:
    """A node that rules took to pieces is looked for among the operations of its own line and module.

    One that is whole, and missing, is in the other program.
    """
    by_line: dict[Any, set[int]] = {}
    origin = artifact.origin
    for node in artifact.graph.nodes:
        if node.location.file:
            by_line.setdefault(node.location, set()).update(computed.get(node, ()))
    for node, kernels in traced.items():
        if not kernels and _is_computed(node) and (origin is None or not origin.survives(node)):
            traced[node] = sorted(by_line.get(node.location, ()))


# -- kernels ------------------------------------------------------------------------------------------------------------------


def lines_of(nodes: Sequence[Node]) -> list[str]:
    """The places in the user's program that nodes come from, each once: file:line and module."""
    return list(dict.fromkeys(f"{n.location.short} {n.location.module}".strip() for n in nodes if n.location.file))


def _kernels(artifact: Artifact, program: Program, fusion: FusionReport, numbers: Mapping[Node, int]) -> list[Report]:
    nodes_of, seen, found = dict(fusion.kernels), set[Node](), []
    for index, (loop, threads) in enumerate(zip(program.loops, artifact.threads, strict=True)):
        nodes = nodes_of.get(loop.name, ())
        again = [numbers[node] for node in nodes if node in seen]
        seen.update(nodes)
        found.append(_kernel(index, loop, program, nodes, numbers) | {"recomputed": again, "threads": threads})
        found[-1]["together"] = None
    for stretch in artifact.stretches:
        names = [program.loops[number].name for number in stretch.kernels()]
        for number in stretch.kernels():
            found[number]["together"] = {"kernels": names, "blocks": stretch.blocks}
    return found


def _kernel(
    index: int, loop: Loop, program: Program, nodes: Sequence[Node], numbers: Mapping[Node, int]
) -> dict[str, Any]:
    cost, (reads, writes) = loop_cost(loop, program), traffic(loop, program)
    return {
        "id": index,
        "name": loop.name,
        "schedule": loop.schedule,
        "space": [axis.extent for axis in loop.space],
        "operations": [node.op for node in nodes],
        "nodes": [numbers[node] for node in nodes],
        "lines": lines_of(nodes),
        "reads": [{"buffer": name, "bytes": count} for name, count in reads.items()],
        "writes": [{"buffer": name, "bytes": count} for name, count in writes.items()],
        "bytes_read": cost.bytes_read,
        "bytes_written": cost.bytes_written,
        "flops": cost.flops,
        "unfused_bytes": sum(map(operation_bytes, nodes)),
    } | _UNTIMED


def _edges(program: Program) -> list[Report]:
    """What goes from kernel to kernel."""
    made: dict[str, int] = {}
    edges = []
    for index, loop in enumerate(program.loops):
        reads, _ = traffic(loop, program)
        edges += [
            {"from": made[name], "to": index, "buffer": name, "bytes": count}
            for name, count in reads.items()
            if made.get(name, index) != index
        ]
        made.update(dict.fromkeys(loop.writes(), index))
    return edges


def _totals(source: Graph, kernels: Sequence[Report]) -> Report:
    return {
        **{name: sum(kernel[name] for kernel in kernels) for name in ("bytes_read", "bytes_written", "flops")},
        "unfused_bytes": unfused_bytes(source),
        "operations": sum(node.op not in ("input", "constant") for node in source.nodes),
        "kernels": len(kernels),
    }


def _memory(source: Graph, program: Program) -> Report:
    from fusegraph.codegen.memory import plan_memory

    plan = plan_memory(program)
    used: dict[str, list[int]] = {name: [] for name in program.buffers}
    for index, loop in enumerate(program.loops):
        for name in loop.reads() + loop.writes():
            used[name].append(index)
    return {
        "arena_bytes": plan.arena_bytes,
        "unshared_bytes": plan.unshared_bytes,
        "unfused_peak_bytes": unfused_peak_bytes(source),
        "buffers": [
            {
                "name": buffer.name,
                "role": buffer.role,
                "bytes": buffer.nbytes,
                "offset": plan.arena.get(buffer.name, plan.locals.get(buffer.name)),
                "first": min(used[buffer.name], default=None),
                "last": max(used[buffer.name], default=None),
            }
            for buffer in program.buffers.values()
        ],
    }


def _budget(artifact: Artifact) -> Report | None:
    """What is computed again under a memory budget; None without one."""
    fitted = artifact.fitted
    if fitted is None:
        return None
    copies = sorted(fitted.copies, key=lambda node: -node.nbytes)
    return {
        "budget_bytes": artifact.options.memory_budget,
        "unlimited_bytes": fitted.unlimited_bytes,
        "recomputed_bytes": fitted.recomputed_bytes,
        "recomputed_operations": int(fitted.recomputed_operations),
        "operations": int(fitted.given_operations),
        "recomputed": [{"operation": node.op, "bytes": node.nbytes, "lines": lines_of([node])} for node in copies],
    }


def _refusal(refusal: Refusal, numbers: Mapping[Node, int]) -> Report:
    def number(node: Node | None) -> int | None:
        return None if node is None else numbers.get(node)

    return {
        "rule": refusal.rule,
        "producer": refusal.producer,
        "consumer": refusal.consumer,
        "producer_node": number(refusal.producer_node),
        "consumer_node": number(refusal.consumer_node),
        "bytes": refusal.nbytes,
    }


# -- in the disk cache --------------------------------------------------------------------------------------------------------


def places_digest(graph: Graph) -> str:
    """A digest of the places in the user's program that a graph's nodes come from."""
    text = ";".join(f"{node.op} {node.location}@{node.location.region}" for node in graph.nodes)
    return hashlib.sha256(text.encode()).hexdigest()


def encode(report: Report, graph: Graph) -> bytes:
    """A report as it is stored beside the code of `graph`."""
    return json.dumps({"places": places_digest(graph), "report": report}, separators=(",", ":")).encode()


def decode(data: bytes, graph: Graph) -> Report | None:
    """The report that was stored; None if it is damaged, or names other places than those of `graph`."""
    try:
        found = json.loads(data)
        report = found["report"] if found["places"] == places_digest(graph) else None
    except (ValueError, KeyError, TypeError):
        return None
    return report if isinstance(report, dict) and isinstance(report.get("kernels"), list) else None
