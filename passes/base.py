"""What a pass is, and how graphs are rebuilt.

A pass is a pure function, graph in and graph out, with a name by which it can be switched off. Most passes are a table
of rules, each for the primitives that it starts from:

    RULES = Rules()

    @RULES.on("neg")
    def double_negation(build, node, inputs):
        \"\"\"-(-x) -> x\"\"\"
        return inputs[0].inputs[0] if inputs[0].op == "neg" else None

A rule sees a node whose inputs are rewritten already, and gives the node to use in its place, or None. It makes new
nodes with `build.add`, or with the functions of `fusegraph.ir.emit` on `build.value(node)`.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fusegraph.dtypes import DType
from fusegraph.errors import CompilerError
from fusegraph.ir.graph import Graph, GraphBuilder, Node, freeze_params
from fusegraph.ir.location import NOWHERE, Location
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.records import dataclass, field

Shape = tuple[int, ...]
Rule = Callable[["RewriteBuilder", Node, "tuple[Node, ...]"], "Node | Value | None"]

# How often the rules may fire one after another on one node before that is taken for a loop between two rules.
_FIRE_LIMIT = 64


@dataclass(frozen=True)
class Pass:
    """A named graph -> graph function.

    exact: the results keep every bit (but for the sign of a NaN). needs: without any of these primitives in a graph the
    pass has nothing to do.
    """

    name: str
    run: Callable[[Graph], Graph]
    exact: bool = True
    needs: frozenset[str] = frozenset()

    def __call__(self, graph: Graph) -> Graph:
        """The rewritten graph; `graph` is left as it is."""
        if self.needs and self.needs.isdisjoint({node.op for node in graph.nodes}):
            return graph
        return self.run(graph)


class Value:
    """A node of a graph that is being rebuilt, as an operand of the functions in `fusegraph.ir.emit`."""

    __slots__ = ("build", "node")

    def __init__(self, build: RewriteBuilder, node: Node) -> None:
        self.build = build
        self.node = node

    @property
    def shape(self) -> Shape:
        """The node's shape."""
        return self.node.shape

    @property
    def dtype(self) -> DType:
        """The node's element type."""
        return self.node.dtype

    def __fg_bind__(self, name: str, inputs: Sequence[Any], params: Mapping[str, Any]) -> Value:
        """Add primitive `name` of `inputs` to the graph."""
        return Value(self.build, self.build.add(name, [value.node for value in inputs], params))


@dataclass
class RewriteBuilder(GraphBuilder):
    """A builder that takes over unchanged nodes of another graph as they are (nodes are immutable).

    `location` is where new nodes belong to when nothing else is said. `replaced` says which nodes of the graph that is
    being rewritten have become others; `became` says so for all graphs since the builder was made. `fired` counts rules.
    """

    location: Location = NOWHERE
    replaced: dict[Node, Node] = field(default_factory=dict)
    became: dict[Node, Node] = field(default_factory=dict)
    fired: Counter[tuple[str, str]] = field(default_factory=Counter)
    _graph: Graph | None = None
    _origins: dict[Node, list[Node]] = field(default_factory=dict)
    _readers: dict[Node, list[str]] | None = None
    _taken: set[Node] = field(default_factory=set)
    _positions: dict[Node, int] = field(default_factory=dict)

    def begin(self, graph: Graph) -> None:
        """From now on `graph` is rewritten."""
        self.inputs = list(graph.inputs)
        self.nodes += [node for node in self.inputs if node not in self._taken]
        self._taken.update(self.inputs)
        if self._graph is not graph:
            self._graph, self._readers = graph, None
        self.replaced, self._origins = {}, {}

    def add(
        self, op: str, inputs: Sequence[Node], params: Mapping[str, Any] | None = None, location: Location = NOWHERE
    ) -> Node:
        """The node `op(inputs, **params)`, at the place of the node that is being rewritten."""
        node = super().add(op, inputs, params, location if location != NOWHERE else self.location)
        self._taken.add(node)
        return node

    def copy(self, node: Node, inputs: tuple[Node, ...]) -> Node:
        """`node` with other inputs of the same shapes and dtypes; the one that is known already if there is one."""
        same = inputs == node.inputs
        if same and node in self._taken:
            return node
        key = (node.op, tuple(map(id, inputs)), freeze_params(node.params))
        known = self._known.get(key)
        if known is None:
            known = node
            if not same:
                known = Node(node.op, inputs, node.params, node.shape, node.dtype, node.location, node.name)
            self._known[key] = known
            self.nodes.append(known)
            self._taken.add(known)
        return known

    def replace(self, node: Node, other: Node) -> None:
        """What read `node` reads `other` from now on."""
        if other is not node:
            self.replaced[node] = self.became[node] = other
            self._origins.setdefault(other, []).append(node)

    def readers(self, node: Node) -> list[str]:
        """The primitives that read `node`, or what became `node`, in the graph that is rewritten.

        A result of the graph is read by "result".
        """
        if self._readers is None:
            assert self._graph is not None
            self._readers = _readers(self._graph)
        found = [] if node in self.replaced else list(self._readers.get(node, ()))
        for origin in self._origins.get(node, ()):
            found += self._readers[origin]
        return found

    def value(self, node: Node) -> Value:
        """`node` as an operand of the functions in `fusegraph.ir.emit`."""
        return Value(self, node)

    def position(self, node: Node) -> int:
        """When `node` was added: a key to sort by that does not depend on how a graph was written."""
        for number in range(len(self._positions), len(self.nodes)):
            self._positions[self.nodes[number]] = number
        return self._positions[node]

    def is_single_use(self, node: Node) -> bool:
        """Whether at most one node reads `node`: what is computed for it is not needed elsewhere."""
        return len(self.readers(node)) <= 1

    def reshape(self, x: Node, shape: Shape) -> Node:
        """`x` with another shape."""
        return x if x.shape == tuple(shape) else self.add("reshape", (x,), {"shape": tuple(shape)})

    def expand(self, x: Node, shape: Shape) -> Node:
        """`x` repeated to `shape`."""
        return x if x.shape == tuple(shape) else self.add("expand", (x,), {"shape": tuple(shape)})

    def permute(self, x: Node, axes: Shape) -> Node:
        """`x` with its axes in the order `axes`."""
        return x if tuple(axes) == tuple(range(x.ndim)) else self.add("permute", (x,), {"axes": tuple(axes)})

    def reduce(self, op: str, x: Node, axes: Iterable[int]) -> Node:
        """`x` reduced over `axes`, which go away."""
        ordered = tuple(sorted(axes))
        return self.add(op, (x,), {"axes": ordered}) if ordered else x

    def slice(self, x: Node, start: Shape, size: Shape, step: Shape | None = None) -> Node:
        """The elements start, start + step, ... (size of them) of each axis."""
        step = (1,) * x.ndim if step is None else step
        return self.add("slice", (x,), {"start": tuple(start), "size": tuple(size), "step": tuple(step)})


class _Shared(threading.local):
    """The builder that all rewrites of a pipeline share: a node that it has taken over is not looked at again."""

    builder: RewriteBuilder | None = None


_shared = _Shared()


@contextmanager
def shared_nodes() -> Iterator[RewriteBuilder]:
    """Rewrites inside share one builder, which is given: equal nodes of all graphs are one node."""
    before = _shared.builder
    _shared.builder = builder = RewriteBuilder()
    try:
        yield builder
    finally:
        _shared.builder = before


def rewrite(graph: Graph, rule: Rule | Rules) -> Graph:
    """`graph` with `rule` applied to every node, producers first, until it gives None.

    The result is `graph` itself when nothing changed.
    """
    build = _shared.builder or RewriteBuilder()
    build.begin(graph)
    new = build.replaced
    table = rule.table if isinstance(rule, Rules) else None
    for node in graph.nodes:
        if node.op == "input":
            continue
        inputs = tuple([new.get(value, value) for value in node.inputs]) if new else node.inputs
        result = build.copy(node, inputs)
        if table is None or result.op in table:
            build.location = node.location
            result = _apply(build, rule, result)
        build.replace(node, result)
    if not any(node in new for node in graph.results):
        return graph
    updates = [(old, new.get(value, value)) for old, value in graph.updates]
    rewritten = build.finish([new.get(node, node) for node in graph.outputs], updates, graph.name)
    return graph if _is_same(graph, rewritten) else rewritten


def _is_same(a: Graph, b: Graph) -> bool:
    """Whether two graphs over the same inputs have the same nodes in the same order.

    A rule that makes a node and then drops it leaves equal nodes behind, that are other objects.
    """
    if len(a.nodes) != len(b.nodes):
        return False
    match: dict[Node, Node] = {}
    for x, y in zip(a.nodes, b.nodes):
        if x is not y:
            same = (
                x.op == y.op
                and x.op != "input"
                and x.shape == y.shape
                and x.dtype == y.dtype
                and (
                    len(x.inputs) == len(y.inputs)
                    and all(match[p] is q for p, q in zip(x.inputs, y.inputs))
                    and freeze_params(x.params) == freeze_params(y.params)
                )
            )
            if not same:
                return False
        match[x] = y
    return all(match[x] is y for x, y in zip(a.results, b.results))


def _readers(graph: Graph) -> dict[Node, list[str]]:
    readers: dict[Node, list[str]] = {node: [] for node in graph.nodes}
    for node in graph.nodes:
        for value in node.inputs:
            readers[value].append(node.op)
    for node in graph.results:
        readers[node].append("result")
    return readers


def _apply(build: RewriteBuilder, rule: Rule, node: Node) -> Node:
    for _ in range(_FIRE_LIMIT):
        found = rule(build, node, node.inputs)
        if found is None or found is node:
            return node
        result = found.node if isinstance(found, Value) else found
        if (result.shape, result.dtype) != (node.shape, node.dtype):
            raise CompilerError(f"a rewrite of {node!r} gave {result!r}, which has another type")
        node = result
    raise CompilerError(f"rewrites of {node!r} do not come to an end")


class Rules:
    """A table of rules by the primitives that they start from; called like one rule, the first that fits wins."""

    def __init__(self, *parts: Rules) -> None:
        self.table: dict[str, list[Rule]] = defaultdict(list)
        for part in parts:
            for op, rules in part.table.items():
                self.table[op] += rules

    def on(self, *ops: str, kind: str | None = None) -> Callable[[Rule], Rule]:
        """Register a rule for primitives `ops`, and for all of `kind`."""
        names = [*ops, *(name for name, primitive in PRIMITIVES.items() if primitive.kind == kind)]

        def register(rule: Rule) -> Rule:
            for name in names:
                self.table[name].append(rule)
            return rule

        return register

    def __call__(self, build: RewriteBuilder, node: Node, inputs: tuple[Node, ...]) -> Node | Value | None:
        for rule in self.table.get(node.op, ()):
            found = rule(build, node, inputs)
            if found is not None:
                if found is not node:
                    build.fired[rule.__name__, rule.__doc__ or ""] += 1
                return found
        return None


# -- what rules look at -----------------------------------------------------------------------------------------------


def without_expand(node: Node) -> Node:
    """What `node` repeats: the operand of an expand, else the node itself."""
    return node.inputs[0] if node.op == "expand" else node


def constant_value(node: Node) -> Any:
    """The Python number that all elements of `node` are known to be, or None."""
    source = without_expand(node)
    return source.params["value"] if source.op == "constant" else None


def is_constant(node: Node, value: float) -> bool:
    """Whether all elements of `node` are known to equal `value` (0.0 and -0.0 are told apart)."""
    found = constant_value(node)
    return found is not None and found == value and math.copysign(1, found) == math.copysign(1, value)


def scalar_of(node: Node) -> Node | None:
    """The 0-d node that `node` repeats (or that it is), or None."""
    source = without_expand(node)
    return source if source.shape == () else None


def split_factor(x: Node) -> tuple[Node, Node] | None:
    """(a, s) when `x` is a * s with a 0-d, repeated `s` (and `a` is no repeated scalar itself)."""
    if x.op == "mul":
        for a, factor in (x.inputs, x.inputs[::-1]):
            scalar = scalar_of(factor)
            if scalar is not None and scalar_of(a) is None:
                return a, scalar
    return None


def without_ones(shape: Shape) -> Shape:
    """The extents other than 1: what a reshape that only adds or removes axes of size 1 keeps."""
    return tuple(extent for extent in shape if extent != 1)


def without_axes(shape: Shape, axes: Iterable[int]) -> Shape:
    """`shape` without the given axes."""
    gone = set(axes)
    return tuple(extent for axis, extent in enumerate(shape) if axis not in gone)


def aligned(shape: Shape, rank: int) -> Shape:
    """`shape` as broadcasting sees it beside a shape of `rank` axes: with axes of size 1 in front."""
    return (1,) * (rank - len(shape)) + tuple(shape)
