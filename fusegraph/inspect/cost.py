"""What a kernel moves and computes: bytes and operations, counted from its Loop."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fusegraph.ir.graph import Graph, Node
from fusegraph.ir.loops import Loop, Program, Stage
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.ir.scalar import walk


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


def loop_cost(loop: Loop, program: Program) -> Cost:
    """The cost of one kernel."""
    points = loop.points()
    work = max((points * math.prod(a.extent for a in (*s.axes, *s.reduce_axes)) for s in loop.stages), default=0)

    def touched(name: str) -> int:
        buffer = program.buffers[name]
        return 0 if buffer.role == "local" else min(buffer.nbytes, work * buffer.dtype.itemsize)

    flops = sum(points * _stage_flops(stage) for stage in loop.stages)
    return Cost(sum(map(touched, loop.reads())), sum(map(touched, loop.writes())), flops)


def _stage_flops(stage: Stage) -> int:
    nodes = walk(stage.expressions())
    operations = sum(
        1 for node in nodes if node.op in PRIMITIVES and node.dtype.kind == "f" and node.op not in ("where", "cast")
    )
    operations += len(stage.reduces) + sum(store.mode == "add" for store in stage.stores)
    return operations * math.prod(axis.extent for axis in (*stage.axes, *stage.reduce_axes))


def unfused_bytes(graph: Graph) -> int:
    """Bytes that a system moves that runs one operation after the other: each reads its operands and writes its result."""
    return sum(_operation_bytes(node) for node in graph.nodes)


def _operation_bytes(node: Node) -> int:
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
