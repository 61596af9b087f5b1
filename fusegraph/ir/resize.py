"""Graphs that differ only in the number of rows of their inputs: finding that out, and making the graph for another number.

Two traces of one function, at two sizes of a leading (batch) axis, are compared node by node. Every number in them, a size or a
parameter, must be the same or a fixed multiple of the size; constants (1 / n, say) may differ, they become inputs. What is
found once must be found in the same way for every further size: then the graphs are one graph with a size that varies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fusegraph.ir.graph import Graph, GraphBuilder, Node
from fusegraph.records import dataclass

__all__ = ["Differs", "NoSizes", "Pattern", "Sizes", "compare", "constants_of_one_row", "resized", "sizes_of"]


class Differs(Exception):
    """Why two graphs are not one graph at two sizes, in words."""


class NoSizes(Differs):
    """The arguments do not have another number of rows."""


@dataclass(frozen=True)
class Sizes:
    """The number of rows in one graph, and in another."""

    old: int
    new: int

    def rows(self, old: int, new: int, what: str) -> int:
        """0 if two numbers are the same, c if they are c times the sizes. Raises Differs for anything else."""
        if old == new:
            return 0
        if old > 0 and old % self.old == 0 and old // self.old * self.new == new:
            return old // self.old
        raise Differs(f"{what} is {old} for {self.old} rows and {new} for {self.new}")


@dataclass(frozen=True)
class Pattern:
    """How two graphs differ.

    rows    for each whole number of the graph (sizes and parameters of its nodes, in order) how often it holds the size; 0: fixed
    varying numbers of the nodes that are constants of another value
    """

    rows: tuple[int, ...]
    varying: tuple[int, ...]


def sizes_of(old: Graph, new: Graph) -> Sizes:
    """The sizes of the axis in which the inputs of two graphs differ. Raises NoSizes if it is none, Differs if not a leading one."""
    pairs = []
    for before, after in zip(old.inputs, new.inputs, strict=False):
        if before.shape != after.shape:
            if before.ndim != after.ndim or before.shape[1:] != after.shape[1:]:
                raise Differs(f"`{before.name}` differs in other axes than the first one")
            pairs.append((before.shape[0], after.shape[0]))
    if len(old.inputs) != len(new.inputs) or not pairs:
        raise NoSizes("the inputs do not differ in their first axis")
    sizes = Sizes(*min(pairs))
    if min(sizes.old, sizes.new) < 1:
        raise Differs("an axis has no elements")
    if any(a % sizes.old or a // sizes.old * sizes.new != b for a, b in pairs):
        raise Differs("the first axes of the arguments do not grow together")
    return sizes


def compare(old: Graph, new: Graph, sizes: Sizes) -> Pattern:
    """How `new` differs from `old`. Raises Differs if it is more than another number of rows."""
    if len(old.nodes) != len(new.nodes) or old.name != new.name:
        raise Differs(
            f"the function does {len(old.nodes)} operations for {sizes.old} rows and {len(new.nodes)} for {sizes.new}"
        )
    number = {node: index for index, node in enumerate(old.nodes)}
    other = {node: index for index, node in enumerate(new.nodes)}
    if _wiring(old, number) != _wiring(new, other):
        raise Differs("results or updates differ")
    rows: list[int] = []
    varying = []
    for index, (before, after) in enumerate(zip(old.nodes, new.nodes, strict=True)):
        where = f"operation {index} ({before.op} at {before.location.short})"
        same = before.op == after.op and before.dtype == after.dtype and before.name == after.name
        if not same or [number[i] for i in before.inputs] != [other[i] for i in after.inputs]:
            raise Differs(f"{where} is another one: {after.op}")
        if before.op == "constant":
            if repr(before.params["value"]) != repr(after.params["value"]):
                varying.append(index)
            continue
        rows += _rows((before.shape, _ordered(before)), (after.shape, _ordered(after)), sizes, where)
    return Pattern(tuple(rows), tuple(varying))


def _wiring(graph: Graph, number: dict[Node, int]) -> Any:
    updates = [(number[a], number[b]) for a, b in graph.updates]
    return [number[node] for node in graph.outputs], updates, [number[node] for node in graph.inputs]


def _ordered(node: Node) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(node.params.items()))


def _rows(old: Any, new: Any, sizes: Sizes, where: str) -> Iterator[int]:
    """For each whole number inside of `old`, in order, how often it holds the size."""
    if type(old) is not type(new):
        raise Differs(f"{where} has other parameters")
    if isinstance(old, (tuple, list)):
        if len(old) != len(new):
            raise Differs(f"{where} has other parameters")
        for a, b in zip(old, new, strict=True):
            yield from _rows(a, b, sizes, where)
    elif type(old) is int:
        yield sizes.rows(old, new, f"a size in {where}")
    elif repr(old) != repr(new):
        raise Differs(f"{where}: {old!r} for {sizes.old} rows, {new!r} for {sizes.new}")


def constants_of_one_row(graph: Graph, sizes: Sizes, pattern: Pattern, new: Graph) -> list[Any]:
    """Values of the constants pattern.varying in `new`, which has one row. Raises Differs if it is not the same graph.

    A trace of one row has no operations that repeat a row once: they are left out of `graph` too before it is compared.
    """
    made: dict[Node, Node] = {}
    one = resized(graph, sizes, pattern, (), new.name, made)
    found = compare(one, new, Sizes(sizes.new, sizes.new))
    place = {node: index for index, node in enumerate(one.nodes)}
    mine = [place[made[graph.nodes[index]]] for index in pattern.varying]
    if not set(found.varying) <= set(mine):
        raise Differs("other constants depend on the number of rows")
    return [new.nodes[index].params["value"] for index in mine]


def resized(
    graph: Graph,
    sizes: Sizes,
    pattern: Pattern,
    lift: Sequence[int],
    name: str,
    made: dict[Node, Node] | None = None,
) -> Graph:
    """`graph` for sizes.new rows. The constants number `lift` become further inputs, behind the others.

    made: gets what has become of each node. Raises Differs if it cannot be made, or its values do not get the shapes that
    they should have.
    """
    builder = GraphBuilder()
    made = {} if made is None else made
    rows = iter(pattern.rows)
    plans = []
    for node in graph.nodes:  # in order: what belongs to which number
        if node.op != "constant":
            plans.append((node, _replaced((node.shape, _ordered(node)), rows, sizes.new)))
        else:
            plans.append((node, (node.shape, _ordered(node))))
    shapes = {node: shape for node, (shape, _) in plans}
    for node in graph.inputs:
        made[node] = builder.input(node.name, shapes[node], node.dtype, node.location)
    taken = {node.name for node in graph.inputs}
    for index in lift:
        node = graph.nodes[index]
        free = next(n for n in (f"constant_{index}{'_' * k}" for k in range(len(taken) + 1)) if n not in taken)
        made[node] = builder.input(free, (), node.dtype, node.location)
    for node, (shape, params) in plans:
        if node in made:
            continue
        if node.op in ("expand", "reshape") and sizes.new == 1 and made[node.inputs[0]].shape == shape:
            made[node] = made[node.inputs[0]]
            continue
        try:
            made[node] = builder.add(node.op, [made[value] for value in node.inputs], dict(params), node.location)
        except Exception as error:
            raise Differs(f"{node.op} at {node.location.short} is impossible for {sizes.new} rows: {error}") from error
        if made[node].shape != shape or made[node].dtype != node.dtype:
            raise Differs(f"{node.op} at {node.location.short} does not follow the number of rows")
    updates = [(made[old], made[new]) for old, new in graph.updates]
    return builder.finish([made[node] for node in graph.outputs], updates, name)


def _replaced(value: Any, rows: Iterator[int], size: int) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_replaced(part, rows, size) for part in value)
    if type(value) is int:
        count = next(rows)
        return count * size if count else value
    return value
