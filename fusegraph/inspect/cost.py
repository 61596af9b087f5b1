"""What a kernel moves and computes: bytes and operations, counted from its Loop."""

from __future__ import annotations

import math

from fusegraph.ir.graph import Graph, Node
from fusegraph.ir.loops import Loop, Program, Stage
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.ir.scalar import walk
from fusegraph.records import dataclass


@dataclass(frozen=True)
class Cost:
    """bytes_read, bytes_written: each buffer that a kernel touches counted once; flops: arithmetic operations on elements.

    A gather counts the elements that it reads, not the table.
    """

    bytes_read: int
    bytes_written: int
    flops: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.bytes_read + other.bytes_read, self.bytes_written + other.bytes_written, self.flops + other.flops
        )

    @property
    def nbytes(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written


NOTHING = Cost(0, 0, 0)


def traffic(loop: Loop, program: Program) -> tuple[dict[str, int], dict[str, int]]:
    """(bytes that a kernel reads, bytes that it writes) by buffer; those of a thread's own memory are left out."""
    points = loop.points()
    work = max((points * math.prod(a.extent for a in (*s.axes, *s.reduce_axes)) for s in loop.stages), default=0)

    def touched(names: tuple[str, ...]) -> dict[str, int]:
        buffers = [program.buffers[name] for name in names]
        return {b.name: min(b.nbytes, work * b.dtype.itemsize) for b in buffers if b.role != "local"}

    return touched(loop.reads()), touched(loop.writes())


def loop_cost(loop: Loop, program: Program) -> Cost:
    """The cost of one kernel."""
    reads, writes = traffic(loop, program)
    flops = sum(loop.points() * _stage_flops(stage) for stage in loop.stages)
    return Cost(sum(reads.values()), sum(writes.values()), flops)


def _stage_flops(stage: Stage) -> int:
    nodes = walk(stage.expressions())
    operations = sum(
        1 for node in nodes if node.op in PRIMITIVES and node.dtype.kind == "f" and node.op not in ("where", "cast")
    )
    operations += len(stage.reduces) + sum(store.mode == "add" for store in stage.stores)
    return operations * math.prod(axis.extent for axis in (*stage.axes, *stage.reduce_axes))


def unfused_bytes(graph: Graph) -> int:
    """Bytes that a system moves that runs one operation after the other: each reads its operands and writes its result."""
    return sum(operation_bytes(node) for node in graph.nodes)


def unfused_peak_bytes(graph: Graph) -> int:
    """The most bytes that results of operations take at one time in such a system, each freed after its last reader."""
    owner: dict[Node, Node] = {}
    last: dict[Node, int] = {}
    for number, node in enumerate(graph.nodes):
        is_view = (
            node.op != "input" and PRIMITIVES[node.op].kind == "view" and len(node.inputs) == 1 and node.op != "pad"
        )
        owner[node] = owner[node.inputs[0]] if is_view else node
        for value in (node, *node.inputs):
            last[owner[value]] = number
    last.update(dict.fromkeys((owner[node] for node in graph.results), len(graph.nodes)))
    freed: dict[int, int] = {}
    held = peak = 0
    for number, node in enumerate(graph.nodes):
        if owner[node] is node and node.op not in ("input", "constant"):
            held += node.nbytes
            freed[last[node]] = freed.get(last[node], 0) + node.nbytes
        peak = max(peak, held)
        held -= freed.get(number, 0)
    return peak


def operation_bytes(node: Node) -> int:
    """Bytes that one operation alone reads and writes (a view: none)."""
    if node.op in ("input", "constant") or PRIMITIVES[node.op].kind == "view":
        return 0
    reads = 0
    for value in node.inputs:
        while (
            value.op != "input" and PRIMITIVES[value.op].kind == "view" and len(value.inputs) == 1 and value.op != "pad"
        ):
            value = value.inputs[0]
        reads += min(value.nbytes, node.nbytes) if PRIMITIVES[node.op].kind == "gather" else value.nbytes
    return reads + node.nbytes
