"""What the epilogue of a contraction computes with less memory than the later kernels that read its result.

A residual connection or a mask that all readers of a contraction's result apply is applied before the result is stored:
its readers then load one array in the place of several. (A bias alone costs them next to nothing.)

A gradient multiplies the cotangent, from a later contraction, by a number that depends on the forward pass alone: the
derivative of gelu, of the sum and of erf of the sum. Where the forward contraction's epilogue computes that number, it is
stored in the place of those that it is made of, if nothing else reads them later on: one array for two, and the costly
operations run where the numbers are in registers.
"""

from __future__ import annotations

from collections.abc import Callable

from fusegraph.ir.graph import Graph, Node
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.passes.base import without_expand

__all__ = ["early_roots"]


def early_roots(graph: Graph, roots: set[Node], cost: Callable[[Node], int], least: int) -> list[Node]:
    """The nodes to compute early, beside `roots`. `cost`: of one operation; `least`: of costly operations."""
    found = _Epilogues(graph, roots, cost, least)
    applied = (found.applied_by_all(node) for node in graph.nodes if _is_contraction(node))
    return [node for node in applied if node is not None] + [node for node in graph.nodes if found.is_better_kept(node)]


def _is_contraction(node: Node) -> bool:
    return node.op != "input" and PRIMITIVES[node.op].kind == "contract"


def _runs_beside(node: Node) -> bool:
    """Whether a node can be computed in the epilogue of what makes its operands."""
    return node.op in ("reshape", "expand") or (node.op != "input" and PRIMITIVES[node.op].kind in ("map", "zip"))


class _Epilogues:
    """For each node the contraction in whose epilogue it can be computed (`made_by`): the last one that it depends on."""

    def __init__(self, graph: Graph, roots: set[Node], cost: Callable[[Node], int], least: int) -> None:
        self.roots, self.cost, self.least = roots, cost, least
        self.made_by: dict[Node, Node | None] = {}
        self.ready: dict[Node, int] = {}  # the place of the last node that must be there before
        self.users, self.results = graph.users(), set(graph.results)
        self.place = place = {node: number for number, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            made = [of for operand in node.inputs if (of := self.made_by[operand]) is not None]
            ready = [self.ready[operand] for operand in node.inputs]
            if _is_contraction(node):
                made, ready = [node], [place[node]]
            elif not _runs_beside(node):
                made, ready = [], [place[node]] if node.inputs else []
            self.made_by[node] = max(made, key=place.__getitem__, default=None)
            self.ready[node] = max(ready, default=-1)

    def applied_by_all(self, contraction: Node) -> Node | None:
        """The last of the operations, one after the other, by way of which alone the contraction's result is read."""
        node = last = contraction
        saves = False
        while len(self.users[node]) == 1 and node not in self.results:
            (user,) = self.users[node]
            if user in self.roots or user.size != node.size or self.made_by[user] is not contraction:
                break
            if any(self.ready[x] >= self.place[contraction] for x in user.inputs if x is not node):
                break
            saves |= user.op == "where" or any(x.size == without_expand(x).size for x in user.inputs if x is not node)
            node = user
            last = last if node.op in ("reshape", "expand") else node
        if not saves or last is contraction or last.dtype.itemsize > contraction.dtype.itemsize:
            return None
        stored = all(user in self.roots and self.made_by[user] is contraction for user in self.users[node])
        return None if stored else last

    def is_better_kept(self, node: Node) -> bool:
        """Whether storing `node` takes the place of more than one array as large, or of one and of costly operations."""
        contraction = self.made_by[node]
        if contraction is None or node in self.roots or self.cost(node) == 0 or contraction.size != node.size:
            return False
        if len(self.users[node]) != 1 or self.made_by[self.users[node][0]] in (None, contraction):
            return False
        cost, read = self._made_of(node)
        if any(self.made_by[x] is not contraction for x in read):
            return False
        saved = sum(self._is_read_here(x, node) for x in read)
        return saved > 1 or (saved == 1 and cost >= self.least)

    def _made_of(self, node: Node) -> tuple[int, list[Node]]:
        """What computing `node` costs, and the arrays of its size that are read for it."""
        cost, read, seen, left = 0, [], {node}, [node]
        while left:
            step = left.pop()
            cost += self.cost(step)
            for operand in step.inputs:
                if operand in seen:
                    continue
                seen.add(operand)
                if operand not in self.roots and operand.op != "input":
                    left.append(operand)
                elif operand.size == node.size:
                    read.append(operand)
        return cost, read

    def _is_read_here(self, x: Node, node: Node) -> bool:
        """Whether all that reads `x` runs in the kernel that makes it, but for what reads it by way of `node`."""
        left, seen = list(self.users[x]), {node}
        while left:
            step = left.pop()
            if step in seen:
                continue
            seen.add(step)
            if self.made_by[step] is not self.made_by[x]:
                return False
            if step not in self.roots:
                left += self.users[step]
        return x.op != "input" and x not in self.results
