"""The op graph: nodes, the table of primitives, text form, verifier, numpy reference."""

from fusegraph.ir.graph import Graph, GraphBuilder, Node
from fusegraph.ir.location import Location
from fusegraph.ir.primitives import PRIMITIVES, Primitive
from fusegraph.ir.text import parse
from fusegraph.ir.verify import verify

__all__ = ["PRIMITIVES", "Graph", "GraphBuilder", "Location", "Node", "Primitive", "parse", "verify"]
