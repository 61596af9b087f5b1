"""What a run of the pipeline did, for reports: every pass with its time, which rules fired, what became of each node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from fusegraph.ir.graph import Node


@dataclass(frozen=True)
class PassRun:
    """One run of one pass over the graph."""

    name: str
    nodes_before: int
    nodes_after: int
    seconds: float
    changed: bool


@dataclass
class PipelineLog:
    """runs: passes in order. fired: how often each rule (its name, its text) changed a node. became: what replaced a node."""

    runs: list[PassRun] = field(default_factory=list)
    fired: Counter[tuple[str, str]] = field(default_factory=Counter)
    became: dict[Node, Node] = field(default_factory=dict)

    def successors(self, node: Node) -> Iterator[Node]:
        """`node`, then what stands in its place after each rewrite; the last one is in the graph, or nothing needs it."""
        seen: set[Node] = set()
        while node not in seen:
            yield node
            seen.add(node)
            node = self.became.get(node, node)
