"""A graph in which values are computed again, rather than kept, as a schedule of `evict.py` says.

The copies of a value's operations read what they are made of by `after(x, ...)`: not before the kernels have run that come before
them in the schedule. So they are other nodes than the first ones (equal nodes would be one node), and no kernel does both at
once. The kernels that run later read the copies. Operations of one program compute the same numbers whenever they run: random
bits, too, are a function of a key and a counter, and inputs that the program overwrites keep their old values until the last
reader has run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from fusegraph.ir.graph import Graph, GraphBuilder, Node
from fusegraph.ir.loops import Program
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.passes.evict import Event, Step, Value
from fusegraph.passes.fusion_state import FusionReport
from fusegraph.passes.groups import old_name
from fusegraph.records import dataclass

if TYPE_CHECKING:
    from fusegraph.codegen.memory import MemoryPlan

_COST = {"fma": 1, "div": 4, "transcendental": 16}


def operations(node: Node) -> float:
    """About how many cheap operations on elements a node is."""
    primitive = PRIMITIVES[node.op]
    if primitive.kind == "contract":
        return 2.0 * node.size * contracted(node)
    if primitive.kind in ("view", "source") and "random" not in primitive.traits:
        return 0.0
    return float(_COST.get(primitive.cost, 1) * max(node.size, max((x.size for x in node.inputs[:1]), default=0)))


def contracted(node: Node) -> int:
    """How many products are summed for an element of a contraction."""
    a, b = node.inputs[:2]
    if node.op == "matmul":
        return a.shape[-1]
    if node.op == "conv":
        return math.prod(b.shape[1:])
    if node.op == "conv_input_grad":
        return b.shape[0] // node.params["groups"] * math.prod(b.shape[2:])
    return b.shape[0] * math.prod(b.shape[2:])


@dataclass(frozen=True)
class Fused:
    """A graph with its program, how that lies in memory, and what fusion says.

    placed: the program with buffers of the size that they have in memory; save_memory: in which order its kernels are.
    """

    graph: Graph
    program: Program
    placed: Program
    plan: MemoryPlan
    report: FusionReport
    save_memory: bool = False


class Recomputation:
    """What can be computed again in a fused graph, and the graph in which it is."""

    def __init__(self, fused: Fused) -> None:
        self.fused = fused
        buffers = fused.placed.buffers
        self.nodes: dict[str, list[Node]] = {}
        self.stops: dict[Node, str] = {}  # nodes that are in memory
        for node, name in fused.report.buffers.items():
            if (old_name(name) or name) in buffers:
                self.nodes.setdefault(old_name(name) or name, []).append(node)
                self.stops[node] = name
        self.writers: dict[str, list[int]] = {}
        for number, loop in enumerate(fused.placed.loops):
            for name in loop.writes():
                self.writers.setdefault(name, []).append(number)

    def steps(self) -> list[Step]:
        """The kernels, as far as the arena is concerned."""
        temps, made, found = self.fused.plan.arena, set[str](), []
        for loop in self.fused.placed.loops:
            reads = tuple(
                name for name in loop.reads() if name in made
            )  # not what it has made itself, in an earlier stage
            writes = tuple(name for name in loop.writes() if name in temps)
            found.append(Step(reads, writes))
            made.update(writes)
        return found

    def values(self) -> list[Value]:
        """What is in the arena."""
        touched: dict[str, list[int]] = {}
        for number, loop in enumerate(self.fused.placed.loops):
            for name in dict.fromkeys((*loop.reads(), *loop.writes())):
                touched.setdefault(name, []).append(number)
        found = []
        for name in self.fused.plan.arena:
            if name in touched:
                sources, cost = self._region(name)
                first, *uses = touched[name]
                size = self.fused.placed.buffers[name].nbytes
                found.append(Value(name, size, first, tuple(uses), sources, cost, self._taken_over(name, touched)))
        return found

    def _taken_over(self, name: str, touched: Mapping[str, Sequence[int]]) -> str | None:
        """The value whose bytes `name` takes over where it is made."""
        arena, buffers = self.fused.plan.arena, self.fused.placed.buffers
        for other in self.fused.placed.loops[touched[name][0]].reads():
            if arena.get(other) == arena[name] and buffers[other].nbytes == buffers[name].nbytes and other != name:
                return other
        return None

    def _region(self, name: str) -> tuple[tuple[str, ...] | None, float]:
        """(values in the arena that a value is made of, or None if it cannot be made again; the cost of that)."""
        nodes = self.nodes.get(name, [])
        if len(nodes) != 1 or len(self.writers.get(name, ())) != 1:
            return None, math.inf
        sources: set[str] = set()
        outside, cost = False, 0.0
        stack, seen = [nodes[0]], {nodes[0]}
        while stack:
            node = stack.pop()
            cost += operations(node)
            for value in node.inputs[:1] if node.op == "after" else node.inputs:
                if value in self.stops or value.op == "input":
                    outside = True
                    sources |= {self.stops[value]} & self.fused.plan.arena.keys() if value in self.stops else set()
                elif value not in seen:
                    seen.add(value)
                    stack.append(value)
        return (tuple(sorted(sources)), cost) if outside else (None, math.inf)

    def apply(self, events: Iterable[Event]) -> tuple[Graph, dict[Node, Node], list[Node]]:
        """(the graph that does what `events` say, what has become of nodes that read copies, the copies)."""
        graph = self.fused.graph
        rebuild = _Rebuild(graph, self)
        last: Node | None = None
        copies = []
        for event in events:
            if event.again is not None:
                (node,) = self.nodes[event.again]
                copies.append(rebuild.again(node, self._awaited(node, event.step, last)))
                continue
            for name in self.fused.placed.loops[event.step].writes():
                if self.writers[name][-1] == event.step:
                    for node in self.nodes.get(name, ()):
                        last = rebuild.once(node)
        updates = [(old, rebuild.once(new)) for old, new in graph.updates]
        after = rebuild.builder.finish([rebuild.once(node) for node in graph.outputs], updates, graph.name)
        return after, rebuild.became, copies

    def _awaited(self, node: Node, step: int, last: Node | None) -> list[Node]:
        """What a copy of `node` that kernel `step` needs must come after: the kernel before, and a reader of the first `node`."""
        assert last is not None
        loops = self.fused.placed.loops
        readers = [n for n in range(step) if self.stops[node] in loops[n].reads()]
        found = [last]
        for number in reversed(readers):
            made = [n for name in loops[number].writes() for n in self.nodes.get(name, ())]
            if made:
                found += [made[0]] if made[0] is not last else []
                break
        return found


class _Rebuild:
    """Nodes of a graph made again. `current`: what stands for each value in memory at present."""

    def __init__(self, graph: Graph, recomputation: Recomputation) -> None:
        self.stops = recomputation.stops
        self.builder = GraphBuilder(list(graph.inputs), list(graph.inputs))
        self.current: dict[Node, Node] = {}
        self.became: dict[Node, Node] = {}

    def once(self, node: Node) -> Node:
        """`node` on the values as they are at present. The same node, where none of them was computed again."""
        if node in self.current:
            return self.current[node]
        new = self._made(node, ())
        if node in self.stops:
            self.current[node] = new
        if new is not node:
            self.became[node] = new
        return new

    def again(self, node: Node, awaited: Sequence[Node]) -> Node:
        """A copy of `node`, to be computed after `awaited`; from now on it stands for the value."""
        tokens = [self.current.get(value, value) for value in awaited]
        new = self.current[node] = self._made(node, tokens)
        return new

    def _made(self, root: Node, tokens: Sequence[Node]) -> Node:
        """`root` made again down to values in memory; those are read after `tokens`, if there are any."""
        done: dict[Node, Node] = {}
        stack = [root]
        while stack:
            node = stack[-1]
            if node in done:
                stack.pop()
                continue
            if node is not root and (node.op == "input" or node in self.current):
                done[node] = self._leaf(node, tokens)
                continue
            operands = node.inputs[:1] if node.op == "after" else node.inputs
            waiting = [value for value in operands if value not in done]
            stack += waiting
            if not waiting:
                done[node] = self._copy(node, [done[value] for value in operands], bool(tokens))
        return done[root]

    def _leaf(self, node: Node, tokens: Sequence[Node]) -> Node:
        value = self.current.get(node, node)
        return self.builder.add("after", [value, *tokens], {}, node.location) if tokens else value

    def _copy(self, node: Node, operands: list[Node], again: bool) -> Node:
        if node.op == "after":
            operands += [self.current.get(value, value) for value in node.inputs[1:]]
        if again and node.op == "check_index":
            return operands[0]  # checked already
        if tuple(operands) == node.inputs:
            return node
        return self.builder.add(node.op, operands, node.params, node.location)
