"""What the steps of fusion share: names of buffers, roots, the report."""

from __future__ import annotations

from functools import cached_property

from fusegraph.ir.graph import Graph, Node
from fusegraph.ir.loops import Buffer
from fusegraph.passes.groups import Refusal
from fusegraph.passes.roots import Root
from fusegraph.records import dataclass, field


@dataclass(frozen=True)
class Merge:
    """A pair of kernels that became one: their operations, the bytes that it saved, and the nodes between which they meet."""

    producer: str
    consumer: str
    nbytes: int
    producer_node: Node = field(compare=False)
    consumer_node: Node = field(compare=False)


@dataclass
class FusionReport:
    """What fusion did: kernels with the nodes in each, what was merged (in this order), and what was refused.

    buffers: which node has which buffer (the new value of a state that is written in place: its name and `groups.NEW`).
    """

    kernels: list[tuple[str, tuple[Node, ...]]] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)
    buffers: dict[Node, str] = field(default_factory=dict)


@dataclass
class FusionState:
    """The work in hand. limit: how many pairs may merge (None: all that the rules allow); save_memory, without: as in `fuse`.

    numbers: the last number that was given to a buffer of each name.
    """

    graph: Graph
    merge: bool
    limit: int | None = None
    save_memory: bool = False
    without: frozenset[str] = frozenset()
    names: dict[Node, str] = field(default_factory=dict)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    roots: list[Root] = field(default_factory=list)
    report: FusionReport = field(default_factory=FusionReport)
    numbers: dict[str, int] = field(default_factory=dict)

    @cached_property
    def places(self) -> dict[Node, int]:
        """Where each node stands in the graph."""
        return {node: place for place, node in enumerate(self.graph.nodes)}
