"""What a run of the pipeline did, for reports: every pass with its time, which rules fired, what became of each node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property

from fusegraph.ir.graph import Graph, Node
from fusegraph.records import dataclass, field


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


@dataclass(frozen=True)
class Origin:
    """The graph that a program was cut from (a model's forward and gradients in one).

    graph   as it was traced
    log     what passes have done to it
    after   as it was then, and was cut
    links   which node of `after` became which of the program (one that is not among them stayed itself)
    """

    graph: Graph
    log: PipelineLog
    after: Graph
    links: dict[Node, Node] = field(default_factory=dict)

    @cached_property
    def _kept(self) -> frozenset[Node]:
        return frozenset(self.after.nodes)

    def survives(self, node: Node) -> bool:
        """Whether a traced node, or what replaced it, was there when the graph was cut."""
        return any(other in self._kept for other in self.log.successors(node))

    def successors(self, node: Node) -> Iterator[Node]:
        """What stands in a traced node's place in the program that was cut out."""
        for other in self.log.successors(node):
            yield self.links.get(other, other)
