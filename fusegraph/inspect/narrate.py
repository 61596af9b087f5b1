"""What passes and fusion did, as events (FUSEGRAPH_LOG=passes,fusion): one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusegraph import events

if TYPE_CHECKING:
    from fusegraph.ir.graph import Graph, Node
    from fusegraph.passes.fuse import FusionReport
    from fusegraph.passes.pipeline_log import PipelineLog


def tell_passes(graph: Graph, log: PipelineLog) -> None:
    """An event for each pass that changed the graph."""
    if events.wanted("passes"):
        for run in log.runs:
            if run.changed:
                events.event(
                    "passes",
                    f"{graph.name}: {run.name}: {run.nodes_before} nodes -> {run.nodes_after} in {1e3 * run.seconds:.1f} ms",
                )


def tell_fusion(graph: Graph, report: FusionReport) -> None:
    """An event for each merge, in their order, then one for each refusal, dearest first."""
    if not events.wanted("fusion"):
        return
    for number, merge in enumerate(report.merges, 1):
        events.event(
            "fusion",
            f"{graph.name}: merged {number}: {merge.producer} + {merge.consumer}, saves {merge.nbytes} bytes "
            f"({_place(merge.producer_node)}, {_place(merge.consumer_node)})",
        )
    for refusal in report.refusals:
        events.event(
            "fusion",
            f"{graph.name}: refused: {refusal.producer} | {refusal.consumer}, costs {refusal.nbytes} bytes: {refusal.rule} "
            f"({_place(refusal.producer_node)}, {_place(refusal.consumer_node)})",
        )


def _place(node: Node | None) -> str:
    return node.location.short if node is not None else "?"
