"""Roots: the nodes that get memory of their own, and the loop that computes each of them.

Everything else is inlined into the roots that read it. Reductions, contractions and scatters are roots; so is what a
contraction reads (unless it is a strided view of a root), what leaves the graph, and what would cost more to compute
twice than to keep.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cached_property

from fusegraph.ir import scalar
from fusegraph.ir.graph import Graph, Node
from fusegraph.ir.index import Axis, Index, flatten_index
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.ir.scalar import Bound, Condition, Divides, Expr, Load, indirect_values, walk
from fusegraph.passes.base import without_expand
from fusegraph.passes.early_roots import early_roots
from fusegraph.passes.inline import Inliner, disjoint_fold, indirect
from fusegraph.records import dataclass

MAX_INLINED_OPS = 60  # a body larger than this spills registers: 16 vector registers on AVX2
RECOMPUTE_OPS = (
    6  # cheap operations that are rather done twice than loaded (one load and store of a vector cost about as much)
)
MAX_DEPTH = 96  # operations on the longest way through a body: printers and code generators go down it by recursion
_EXPENSIVE = {"div": 4, "transcendental": 16}


@dataclass(frozen=True)
class Root:
    """The loop that computes one node: for each point of `axes`, `value` (reduced over `reduce_axes`) goes to `index`.

    kind: map | reduce | contract | scatter
    after: buffers that must be there before it reads anything (from the primitive of that name)
    """

    node: Node
    buffer: str
    kind: str
    axes: tuple[Axis, ...]
    reduce_axes: tuple[Axis, ...]
    value: Expr
    index: tuple[Index, ...]
    reduce_op: str = ""
    after: frozenset[str] = frozenset()

    @cached_property
    def loads(self) -> tuple[Load, ...]:
        """Everything that it loads, also for its addresses."""
        roots = [self.value] + [value for part in self.index for value in indirect_values(part)]
        return tuple(expr.attribute for expr in walk(roots) if expr.op == "load")

    @property
    def work(self) -> int:
        """Points of its loops."""
        return math.prod(axis.extent for axis in (*self.axes, *self.reduce_axes))


def is_anchor(node: Node) -> bool:
    """Whether the node is computed by a loop of its own kind, never inlined."""
    kind = PRIMITIVES[node.op].kind
    return kind in ("contract", "scatter") or (kind == "reduce" and not (node.op == "fold" and disjoint_fold(node)))


def base(node: Node) -> Node:
    """The node whose elements a chain of views shows."""
    while _shows_one(node):
        node = node.inputs[0]
    return node


def _shows_one(node: Node) -> bool:
    """Whether it is a view of one value."""
    is_view = node.op in PRIMITIVES and PRIMITIVES[node.op].kind == "view"
    return is_view and (len(node.inputs) == 1 or node.op == "after")


def storage(node: Node) -> Node:
    """The node whose memory holds `node`'s elements in the same order: below reshapes."""
    while node.op in ("reshape", "after"):
        node = node.inputs[0]
    return node


def choose_roots(graph: Graph) -> list[Node]:
    """The nodes that are materialised, in graph order."""
    roots = {node for node in graph.nodes if node.op != "input" and is_anchor(node)}
    for result in graph.results:
        if stored := _stored(result):
            roots.add(stored)
    for node in graph.nodes:
        if node.op != "input" and PRIMITIVES[node.op].kind == "contract":
            roots |= {made for operand in node.inputs for made in _operand_roots(operand)}
        elif (
            node.op in ("take", "take_along")
            and base(node.inputs[0]).op != "input"
            and not _is_source(base(node.inputs[0]))
        ):
            roots.add(base(node.inputs[0]))
        elif node.op == "expand":
            roots |= set(_repeated(node))
        elif node.op == "put_add":
            roots |= set(_rows_of_factors(node.inputs[2]))
        elif node.op == "after":
            roots |= {made for value in node.inputs[1:] if (made := _stored(value))}
    _cut_expensive(graph, roots)
    roots.update(early_roots(graph, roots, _own_cost, _EXPENSIVE["transcendental"]))
    return [node for node in graph.nodes if node in roots]


def _is_source(node: Node) -> bool:
    return node.op in ("constant", "iota", "input")


def _stored(result: Node) -> Node | None:
    """What must have memory so that `result` can leave the graph: below reshapes, which share it."""
    result = storage(result)
    return None if result.op == "input" else result


def _operand_roots(operand: Node) -> Iterator[Node]:
    """A contraction reads strided memory: the lowest node of which the operand's chain of views is a strided view."""
    stored = below = operand
    while below is not base(operand):
        below = below.inputs[0]
        if _is_strided(operand, below):
            stored = below
    if stored.op != "input":
        yield stored


def _is_strided(operand: Node, source: Node) -> bool:
    axes = tuple(Index.of(Axis(f"s{i}", extent)) for i, extent in enumerate(operand.shape))
    read = Inliner({source: "x"}).value(operand, axes)
    return read.op == "load" and not read.attribute.mask and flatten_index(read.attribute.index, source.shape).is_affine


def _repeated(node: Node) -> Iterator[Node]:
    """Costly scalars and rows that are repeated along an axis are computed once."""
    source = base(node.inputs[0])
    if node.size > 4 * max(source.size, 1) and _own_cost(source) >= 4 and PRIMITIVES[source.op].kind in ("map", "zip"):
        yield source


def _rows_of_factors(updates: Node) -> Iterator[Node]:
    """A scatter adds row by row: what it repeats often is laid out in rows first, where that takes a transposition."""
    for factor in updates.inputs if updates.op == "mul" else ():
        source = without_expand(factor)
        if source.shape in ((), (1,)) or updates.size < 8 * source.size:
            continue
        axes = tuple(Axis(f"r{i}", extent) for i, extent in enumerate(source.shape))
        memory = base(source)
        read = Inliner({memory: "x"}).value(source, tuple(map(Index.of, axes)))
        if read.op == "load" and flatten_index(read.attribute.index, memory.shape).coefficient(axes[-1]) not in (
            0,
            1,
        ):
            yield _deepest_permute(source)


def _deepest_permute(view: Node) -> Node:
    """The permute that is nearest to the memory that a chain of views shows; `view` itself if there is none."""
    found = node = view
    while _shows_one(node):
        found = node if node.op == "permute" else found
        node = node.inputs[0]
    return found


def _own_cost(node: Node) -> int:
    primitive = PRIMITIVES.get(node.op)
    if primitive is None or primitive.kind not in ("map", "zip", "source", "gather"):
        return 0
    if node.op in ("constant", "iota"):
        return 0
    return _EXPENSIVE.get(primitive.cost, 1)


def _cut_expensive(graph: Graph, roots: set[Node]) -> None:
    """Make a root of what several readers need and is dear to compute again, and of what a body grows too large at."""
    users = graph.users()
    cost: dict[Node, int] = {}
    depth: dict[Node, int] = {}
    for node in graph.nodes:
        if node.op == "input" or node in roots:
            cost[node] = depth[node] = 0
            continue
        depth[node] = 1 + max((depth[operand] for operand in node.inputs), default=0)
        cost[node] = _own_cost(node) + sum(cost[operand] for operand in dict.fromkeys(node.inputs))
        elementwise = PRIMITIVES[node.op].kind in ("map", "zip", "gather")
        readers = len(set(users[node]))
        too_dear = (readers > 1 and cost[node] > RECOMPUTE_OPS) or cost[node] > MAX_INLINED_OPS * 4
        if (elementwise and too_dear) or depth[node] >= MAX_DEPTH:
            roots.add(node)
            cost[node] = depth[node] = 0


class RootMaker:
    """Builds the loops of roots; names axes."""

    def __init__(self, inliner: Inliner) -> None:
        self.inliner = inliner
        self._count = itertools.count()

    def axes(self, shape: tuple[int, ...], letters: str = "i") -> tuple[Axis, ...]:
        """New axes of the given extents."""
        names = letters if len(letters) == len(shape) else letters[0] * len(shape)
        return tuple(Axis(f"{letter}{next(self._count)}", extent) for letter, extent in zip(names, shape, strict=True))

    def make(self, node: Node, buffer: str) -> Root:
        """The loop that computes `node` into `buffer`."""
        rules = {
            "matmul": self._matmul,
            "conv": self._conv,
            "conv_input_grad": self._conv_input_grad,
            "conv_weight_grad": self._conv_weight_grad,
            "put_add": self._put_add,
            "put_along_add": self._put_along_add,
        }
        if node.op in rules:
            return rules[node.op](node, buffer)
        if node.op == "fold" and not disjoint_fold(node):
            return self._fold(node, buffer)
        if PRIMITIVES[node.op].kind == "reduce" and node.op != "fold":
            return self._reduce(node, buffer)
        axes = self.axes(node.shape)
        index = tuple(map(Index.of, axes))
        return Root(node, buffer, "map", axes, (), self.inliner.operation(node, index), index)

    def _reduce(self, node: Node, buffer: str) -> Root:
        (x,) = node.inputs
        every = self.axes(x.shape)
        reduced = tuple(every[axis] for axis in sorted(node.params["axes"]))
        axes = tuple(axis for axis in every if axis not in reduced)
        value = self.inliner.value(x, tuple(map(Index.of, every)))
        return Root(node, buffer, "reduce", axes, reduced, value, tuple(map(Index.of, axes)), node.op)

    def _fold(self, node: Node, buffer: str) -> Root:
        (x,) = node.inputs
        axis, stride, dilation = node.params["axis"], node.params["stride"], node.params["dilation"]
        axes, (tap,) = self.axes(node.shape), self.axes((x.shape[-1],), "k")
        index = tuple(map(Index.of, axes))
        offset = index[axis] - Index.of(tap) * dilation
        window = offset // stride
        mask = scalar.simplify_mask((Divides(offset, stride), Bound(window, 0, x.shape[axis])))
        value = self.inliner.value(x, (*index[:axis], window, *index[axis + 1 :], Index.of(tap)), mask)
        if not (value.op == "load" and set(mask) <= set(value.attribute.mask)) and mask:
            value = scalar.op("where", scalar.inside(mask), value, scalar.const(0, node.dtype))
        return Root(node, buffer, "reduce", axes, (tap,), value, index, "sum")

    def _matmul(self, node: Node, buffer: str) -> Root:
        a, b = node.inputs
        *batch, m, n = self.axes(node.shape, "b" * (len(node.shape) - 2) + "mn")
        (k,) = self.axes((a.shape[-1],), "k")
        lead = tuple(map(Index.of, batch))
        left = self.inliner.value(a, (*lead, Index.of(m), Index.of(k)))
        right = self.inliner.value(b, (*lead, Index.of(k), Index.of(n)))
        axes = (*batch, m, n)
        return Root(
            node, buffer, "contract", axes, (k,), scalar.op("mul", left, right), tuple(map(Index.of, axes)), "sum"
        )

    def _conv(self, node: Node, buffer: str) -> Root:
        x, w = node.inputs
        n, o, y, z = self.axes(node.shape, "noyx")
        c, i, j = self.axes(w.shape[1:], "cij")
        stride, padding, dilation, groups = (node.params[key] for key in ("stride", "padding", "dilation", "groups"))
        channel = Index.of(c) + (Index.of(o) // (w.shape[0] // groups)) * w.shape[1]
        rows = Index.of(y) * stride[0] + Index.of(i) * dilation[0] - padding[0][0]
        columns = Index.of(z) * stride[1] + Index.of(j) * dilation[1] - padding[1][0]
        mask = scalar.simplify_mask((Bound(rows, 0, x.shape[2]), Bound(columns, 0, x.shape[3])))
        left = self.inliner.value(x, (Index.of(n), channel, rows, columns), mask)
        right = self.inliner.value(w, tuple(map(Index.of, (o, c, i, j))))
        axes = (n, o, y, z)
        return Root(
            node, buffer, "contract", axes, (c, i, j), scalar.op("mul", left, right), tuple(map(Index.of, axes)), "sum"
        )

    def _conv_input_grad(self, node: Node, buffer: str) -> Root:
        ct, w = node.inputs
        n, c, y, z = self.axes(node.shape, "ncyx")
        stride, padding, dilation, groups = (node.params[key] for key in ("stride", "padding", "dilation", "groups"))
        o, i, j = self.axes((w.shape[0] // groups, *w.shape[2:]), "oij")
        group = Index.of(c) // w.shape[1]
        maps = Index.of(o) + group * o.extent
        conditions: list[Condition] = []
        places = []
        for at, tap, d in ((y, i, 0), (z, j, 1)):
            offset = Index.of(at) + padding[d][0] - Index.of(tap) * dilation[d]
            place = offset // stride[d]
            conditions += [Divides(offset, stride[d]), Bound(place, 0, ct.shape[2 + d])]
            places.append(place)
        mask = scalar.simplify_mask(tuple(conditions))
        left = self.inliner.value(ct, (Index.of(n), maps, *places), mask)
        right = self.inliner.value(w, (maps, Index.of(c) % w.shape[1], Index.of(i), Index.of(j)))
        axes = (n, c, y, z)
        return Root(
            node, buffer, "contract", axes, (o, i, j), scalar.op("mul", left, right), tuple(map(Index.of, axes)), "sum"
        )

    def _conv_weight_grad(self, node: Node, buffer: str) -> Root:
        x, ct = node.inputs
        o, c, i, j = self.axes(node.shape, "ocij")
        n, y, z = self.axes((ct.shape[0], *ct.shape[2:]), "nyx")
        stride, padding, dilation, groups = (node.params[key] for key in ("stride", "padding", "dilation", "groups"))
        channel = Index.of(c) + (Index.of(o) // (node.shape[0] // groups)) * node.shape[1]
        rows = Index.of(y) * stride[0] + Index.of(i) * dilation[0] - padding[0][0]
        columns = Index.of(z) * stride[1] + Index.of(j) * dilation[1] - padding[1][0]
        mask = scalar.simplify_mask((Bound(rows, 0, x.shape[2]), Bound(columns, 0, x.shape[3])))
        left = self.inliner.value(x, (Index.of(n), channel, rows, columns), mask)
        right = self.inliner.value(ct, tuple(map(Index.of, (n, o, y, z))))
        axes = (o, c, i, j)
        return Root(
            node, buffer, "contract", axes, (n, y, z), scalar.op("mul", left, right), tuple(map(Index.of, axes)), "sum"
        )

    def _put_add(self, node: Node, buffer: str) -> Root:
        base_, position, updates = node.inputs
        axis, rank = node.params["axis"], len(position.shape)
        axes = self.axes(updates.shape, "u")
        index = tuple(map(Index.of, axes))
        row = indirect(self.inliner.value(position, index[axis : axis + rank]), base_.shape[axis])
        target = (*index[:axis], row, *index[axis + rank :])
        return Root(node, buffer, "scatter", axes, (), self.inliner.value(updates, index), target)

    def _put_along_add(self, node: Node, buffer: str) -> Root:
        base_, position, updates = node.inputs
        axis = node.params["axis"]
        axes = self.axes(updates.shape, "u")
        index = tuple(map(Index.of, axes))
        row = indirect(self.inliner.value(position, index), base_.shape[axis])
        return Root(
            node,
            buffer,
            "scatter",
            axes,
            (),
            self.inliner.value(updates, index),
            (*index[:axis], row, *index[axis + 1 :]),
        )
