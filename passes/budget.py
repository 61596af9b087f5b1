"""A memory budget: the program whose arena is no larger than so many bytes, and computes little again.

First as it is; then with the kernels in an order that keeps little alive; then with values computed again (evict.py, recompute.py).
What is evicted is found on the program as it was fused; the result is fused and planned anew, and the arena of that plan is what
counts. While it is too large, the same is done with less memory; then once more on what came out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fusegraph.ir.graph import Graph, Node
from fusegraph.passes.evict import NEVER, Event, Shortage, schedule
from fusegraph.passes.recompute import Fused, Recomputation, operations

MAX_FUSIONS = 8  # of one round, each with less memory than the one before
MAX_RELAXATIONS = 2
MAX_ROUNDS = 2
_LEAST, _MOST = 0.97, 0.8  # how much less
_ENOUGH = 0.98  # a round that saves less than that is the last one
_HOPELESS = 1.3  # arenas are rarely so much smaller than the sum of what is alive

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
        return _work(self.fused.graph) - self.given_operations

    @property
    def given_operations(self) -> float:
        """Operations on elements that the given graph is."""
        return _work(self.given)


def _work(graph: Graph) -> float:
    return sum(operations(node) for node in graph.nodes if node.op not in ("input", "constant"))


class DoesNotFit(Exception):
    """No way was found. best: the program with the smallest arena."""

    def __init__(self, best: Fitted) -> None:
        super().__init__(f"the smallest arena found has {best.arena_bytes} bytes")
        self.best = best


def within_budget(graph: Graph, budget: int, plan: Plan, thorough: bool = True) -> Fitted:
    """`graph` with a program whose arena has at most `budget` bytes.

    plan: fuses a graph (True: with the kernels in an order that keeps little alive), and lays its program out in memory.
    thorough: where there is no hope, find out how small the arena can be.
    Raises DoesNotFit.
    """
    best = Fitted(graph, (plain := plan(graph, False)), plain.plan.arena_bytes)
    if best.arena_bytes <= budget:
        return best
    start = Fitted(graph, plan(graph, True), best.unlimited_bytes)
    for _ in range(MAX_ROUNDS):
        best = _smaller(best, start)
        if best.arena_bytes <= budget:
            break
        start, before = _recomputing(start, budget, plan, thorough), start
        if start.arena_bytes > _ENOUGH * before.arena_bytes:
            break
    best = _smaller(best, start)
    if best.arena_bytes > budget:
        raise DoesNotFit(best)
    return best


def _smaller(a: Fitted, b: Fitted) -> Fitted:
    return b if b.arena_bytes < a.arena_bytes else a


def _recomputing(start: Fitted, budget: int, plan: Plan, thorough: bool) -> Fitted:
    """The program that computes least again and fits; if there is none, the one with the smallest arena."""
    search = _Search(start, plan)
    wanted = budget * search.unlimited // max(start.arena_bytes, 1)  # a kernel may take over its operands' memory
    least = search.least()
    limit = max(wanted, least)
    best, too_much = start, search.unlimited
    if least > wanted * _HOPELESS:
        tried = [search.within(least * part // 10) for part in (10, 12, 14)] if thorough else [start]
        return min(tried, key=lambda found: found.arena_bytes)
    for _ in range(MAX_FUSIONS):
        found = search.within(limit)
        best = _smaller(best, found)
        if best.arena_bytes <= budget:
            return _relaxed(search, best, limit, too_much, budget)
        if limit == least:
            break
        too_much, limit = limit, max(least, int(limit * min(_LEAST, max(_MOST, budget / found.arena_bytes))))
    return best


def _relaxed(search: _Search, best: Fitted, enough: int, too_much: int, budget: int) -> Fitted:
    """What fits with as much memory as possible: between what was `enough` for the arena to fit and what was `too_much`."""
    for _ in range(MAX_RELAXATIONS):
        middle = (enough + too_much) // 2
        if too_much - enough < (1 - _LEAST) * enough or not best.copies:
            break
        found = search.within(middle)
        if found.arena_bytes <= budget:
            best, enough = min(best, found, key=lambda fitted: fitted.recomputed_operations), middle
        else:
            too_much = middle
    return best


class _Search:
    """Programs that compute values of one again, with different amounts of memory. unlimited: with which it computes none again."""

    def __init__(self, start: Fitted, plan: Plan) -> None:
        self._start, self._plan = start, plan
        self._recomputation = Recomputation(start.fused)
        self._steps, self._values = self._recomputation.steps(), self._recomputation.values()
        _, self.unlimited = schedule(self._steps, self._values, NEVER)

    def least(self) -> int:
        """The least memory for which there is a schedule, found from below."""
        limit = 1
        while True:
            try:
                schedule(self._steps, self._values, limit)
            except Shortage as shortage:
                limit = shortage.needed
            else:
                return limit

    def within(self, limit: int) -> Fitted:
        """The program for `limit` bytes; for the next larger amount for which there is a schedule, if need be."""
        while True:
            try:
                events, _ = schedule(self._steps, self._values, limit)
            except Shortage as shortage:
                limit = shortage.needed
            else:
                return _recomputed(self._start, self._recomputation, events, self._plan)


def _recomputed(start: Fitted, recomputation: Recomputation, events: list[Event], plan: Plan) -> Fitted:
    graph, became, copies = recomputation.apply(events)
    kept = set(graph.nodes)
    earlier = tuple(became.get(node, node) for node in start.copies)
    copies = [node for node in (*earlier, *copies) if node in kept]
    return Fitted(start.given, plan(graph, True), start.unlimited_bytes, tuple(copies), start.became | became)
