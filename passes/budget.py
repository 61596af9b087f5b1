"""A memory budget: the program whose arena is no larger than so many bytes, and computes little again.

First as it is; then with the kernels in an order that keeps little alive; then with values computed again (evict.py, recompute.py).
What is evicted is found on the program as it was fused; the result is fused and planned anew, and the arena of that plan is what
counts. While it is too large, the same is done with less memory; then once more on what came out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fusegraph.ir.graph import Graph, Node
from fusegraph.passes.evict import NEVER, Event, Shortage, schedule
from fusegraph.passes.recompute import Fused, Recomputation, operations

MAX_FUSIONS = 12  # of one round, each with less memory than the one before
MAX_ROUNDS = 3
_LEAST, _MOST = 0.97, 0.8  # how much less

Plan = Callable[[Graph, bool], Fused]


@dataclass(frozen=True)
class Fitted:
    """A program under a budget.

    given            the graph as it was; fused: the graph as it is now, with its program
    unlimited_bytes  the arena without a budget
    copies           what is computed again; became: nodes of the given graph that have become others
    """

    given: Graph
    fused: Fused
    unlimited_bytes: int
    copies: tuple[Node, ...] = ()
    became: dict[Node, Node] = field(default_factory=dict)

    @property
    def arena_bytes(self) -> int:
        """The size of the arena."""
        return self.fused.plan.arena_bytes

    @property
    def recomputed_bytes(self) -> int:
        """Bytes of the values that are computed again."""
        return sum(node.nbytes for node in self.copies)

    @property
    def recomputed_operations(self) -> float:
        """Operations on elements that are done beyond those of the given graph."""
        return _work(self.fused.graph) - _work(self.given)


def _work(graph: Graph) -> float:
    return sum(operations(node) for node in graph.nodes if node.op not in ("input", "constant"))


class DoesNotFit(Exception):
    """No way was found. best: the program with the smallest arena."""

    def __init__(self, best: Fitted) -> None:
        super().__init__(f"the smallest arena found has {best.arena_bytes} bytes")
        self.best = best


def within_budget(graph: Graph, budget: int, plan: Plan) -> Fitted:
    """`graph` with a program whose arena has at most `budget` bytes.

    plan: fuses a graph (True: with the kernels in an order that keeps little alive), and lays its program out in memory.
    Raises DoesNotFit.
    """
    best = Fitted(graph, (plain := plan(graph, False)), plain.plan.arena_bytes)
    if best.arena_bytes > budget:
        best = _smaller(best, Fitted(graph, plan(graph, True), best.unlimited_bytes))
    for _ in range(MAX_ROUNDS):
        before = best
        for found in _attempts(before, budget, plan) if best.arena_bytes > budget else ():
            best = _smaller(best, found)
            if best.arena_bytes <= budget:
                return best
        if best is before:
            break
    if best.arena_bytes > budget:
        raise DoesNotFit(best)
    return best


def _smaller(a: Fitted, b: Fitted) -> Fitted:
    return b if b.arena_bytes < a.arena_bytes else a


def _attempts(start: Fitted, budget: int, plan: Plan) -> Iterator[Fitted]:
    """Programs that compute values again, with less and less memory, until there is too little for a kernel."""
    recomputation = Recomputation(start.fused)
    steps, values = recomputation.steps(), recomputation.values()
    _, too_much = schedule(steps, values, NEVER)
    limit = budget * too_much // max(start.arena_bytes, 1)
    fusions = 0
    while fusions < MAX_FUSIONS:
        try:
            events, _ = schedule(steps, values, limit)
        except Shortage as shortage:
            if shortage.needed >= too_much:
                return
            limit = shortage.needed
            continue
        found = _recomputed(start, recomputation, events, plan)
        fusions += 1
        yield found
        too_much = limit
        limit = int(limit * min(_LEAST, max(_MOST, budget / max(found.arena_bytes, 1))))


def _recomputed(start: Fitted, recomputation: Recomputation, events: list[Event], plan: Plan) -> Fitted:
    graph, became, copies = recomputation.apply(events)
    kept = set(graph.nodes)
    earlier = tuple(became.get(node, node) for node in start.copies)
    copies = [node for node in (*earlier, *copies) if node in kept]
    return Fitted(start.given, plan(graph, True), start.unlimited_bytes, tuple(copies), start.became | became)
