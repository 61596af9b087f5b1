"""What the steps of fusion share: names of buffers, roots, the report."""

from __future__ import annotations

from dataclasses import dataclass, field

from fusegraph.ir.graph import Graph, Node
from fusegraph.ir.loops import Buffer
from fusegraph.passes.groups import Refusal
from fusegraph.passes.roots import Root


@dataclass
class FusionReport:
    """What fusion did: kernels with the nodes in each, and what was refused."""

    kernels: list[tuple[str, tuple[Node, ...]]] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)


@dataclass
class FusionState:
    """The work in hand."""

    graph: Graph
    merge: bool
    names: dict[Node, str] = field(default_factory=dict)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    roots: list[Root] = field(default_factory=list)
    report: FusionReport = field(default_factory=FusionReport)
