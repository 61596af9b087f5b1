"""The op graph: immutable, hash-consed nodes in SSA form.

A graph has inputs, outputs, and updates: pairs (input, node) that say which input is overwritten, in place, by which value
when a step is done. Node order is a topological order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fusegraph.dtypes import DType, name_of
from fusegraph.errors import GraphError
from fusegraph.ir.location import NOWHERE, Location
from fusegraph.records import dataclass, field

if TYPE_CHECKING:
    import networkx

Shape = tuple[int, ...]
Params = Mapping[str, Any]
_EMPTY: Params = MappingProxyType({})


class Node:
    """One value: the primitive that makes it, from which nodes, of which shape and dtype, written where.

    Compared by identity: a builder makes a node only once for one (op, inputs, params).
    """

    __slots__ = ("op", "inputs", "params", "shape", "dtype", "location", "name")

    def __init__(
        self,
        op: str,
        inputs: tuple[Node, ...],
        params: Params,
        shape: Shape,
        dtype: DType,
        location: Location = NOWHERE,
        name: str = "",
    ) -> None:
        self.op = op
        self.inputs = inputs
        self.params = params
        self.shape = shape
        self.dtype = dtype
        self.location = location
        self.name = name

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        total = 1
        for extent in self.shape:
            total *= extent
        return total

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"<{self.op} {self.dtype.name}{list(self.shape)} {self.name}>".replace(" >", ">")


def freeze_params(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Parameters as a hashable, ordered tuple (floats by their bits, so that -0.0 and 0.0, or nan, are told apart)."""
    return tuple((key, repr(value) if isinstance(value, float) else value) for key, value in sorted(params.items()))


@dataclass
class GraphBuilder:
    """Adds nodes, each only once (hash-consing), checked by the rules in the table of primitives."""

    inputs: list[Node] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    _known: dict[Any, Node] = field(default_factory=dict)

    def input(self, name: str, shape: Shape, dtype: DType, location: Location = NOWHERE) -> Node:
        """A new graph input. Names must differ."""
        if any(node.name == name for node in self.inputs):
            raise GraphError(f"two inputs are called {name!r}")
        node = Node("input", (), _EMPTY, tuple(shape), dtype, location, name)
        self.inputs.append(node)
        self.nodes.append(node)
        return node

    def add(
        self, op: str, inputs: Sequence[Node], params: Mapping[str, Any] | None = None, location: Location = NOWHERE
    ) -> Node:
        """The node `op(inputs, **params)`; its shape and dtype come from the table. Raises ShapeError or DTypeError."""
        from fusegraph.ir.primitives import PRIMITIVES

        params = params or {}
        key = (op, tuple(map(id, inputs)), freeze_params(params))
        node = self._known.get(key)
        if node is None:
            shape, dtype = PRIMITIVES[op].infer(inputs, params)
            node = Node(op, tuple(inputs), MappingProxyType(dict(params)), shape, dtype, location)
            self._known[key] = node
            self.nodes.append(node)
        return node

    def constant(self, value: Any, dtype: DType, location: Location = NOWHERE) -> Node:
        """A 0-d constant."""
        return self.add("constant", (), {"value": dtype.type(value).item(), "dtype": name_of(dtype)}, location)

    def full(self, value: Any, shape: Shape, dtype: DType, location: Location = NOWHERE) -> Node:
        """A constant of any shape."""
        scalar = self.constant(value, dtype, location)
        return self.add("expand", (scalar,), {"shape": tuple(shape)}, location) if shape else scalar

    def finish(self, outputs: Iterable[Node], updates: Iterable[tuple[Node, Node]] = (), name: str = "graph") -> Graph:
        """The finished graph, without nodes that nothing needs (inputs all stay)."""
        return Graph(name, tuple(self.inputs), tuple(outputs), tuple(updates))


@dataclass(frozen=True, eq=False)
class Graph:
    """A finished graph. `updates` are (input, new value) pairs, written in place when the graph has run."""

    name: str
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    updates: tuple[tuple[Node, Node], ...] = ()
    nodes: tuple[Node, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", topological_order(self.results, self.inputs))

    @property
    def results(self) -> tuple[Node, ...]:
        """Everything that must be computed: the outputs, then the updates' new values."""
        return self.outputs + tuple(value for _, value in self.updates)

    def users(self) -> dict[Node, list[Node]]:
        """For each node the nodes that read it, in graph order (a reader of two operands stands twice)."""
        users: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for value in node.inputs:
                users[value].append(node)
        return users

    def names(self) -> dict[Node, str]:
        """A name for each node: an input's own, else its number."""
        names: dict[Node, str] = {}
        for node in self.nodes:
            names[node] = node.name if node.op == "input" else str(len(names))
        return names

    def structure(self) -> tuple[Any, ...]:
        """A hashable form: equal for graphs that compute the same by the same nodes (locations do not count)."""
        number = {node: index for index, node in enumerate(self.nodes)}
        rows = tuple(
            (
                node.op,
                tuple(number[value] for value in node.inputs),
                freeze_params(node.params),
                node.shape,
                name_of(node.dtype),
                node.name if node.op == "input" else "",
            )
            for node in self.nodes
        )
        updates = tuple((number[old], number[new]) for old, new in self.updates)
        return (self.name, rows, tuple(number[node] for node in self.outputs), updates)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self.structure() == other.structure()

    def __hash__(self) -> int:
        return hash(self.structure())

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __str__(self) -> str:
        from fusegraph.ir.text import print_graph

        return print_graph(self)

    def _repr_html_(self) -> str:
        from fusegraph.inspect.html_repr import graph_html

        return graph_html(self)

    def to_networkx(self) -> networkx.DiGraph:
        """A networkx view for graph algorithms: nodes are numbers in graph order with the node's fields as attributes."""
        import networkx

        view = networkx.DiGraph(name=self.name)
        number = {node: index for index, node in enumerate(self.nodes)}
        for node, index in number.items():
            view.add_node(index, node=node, op=node.op, shape=node.shape, dtype=node.dtype.name)
        for node, index in number.items():
            for position, value in enumerate(node.inputs):
                view.add_edge(number[value], index, position=position, nbytes=value.nbytes)
        return view


def topological_order(results: Sequence[Node], inputs: Sequence[Node] = ()) -> tuple[Node, ...]:
    """`inputs`, then every node that `results` need, each after its own inputs. Without recursion."""
    order: dict[Node, None] = dict.fromkeys(inputs)
    for result in results:
        stack = [(result, iter(result.inputs))]
        open_nodes = {result}
        while stack:
            node, rest = stack[-1]
            if node in order:
                stack.pop()
                continue
            for value in rest:
                if value not in order and value not in open_nodes:
                    open_nodes.add(value)
                    stack.append((value, iter(value.inputs)))
                    break
            else:
                order[node] = None
                stack.pop()
    return tuple(order)
