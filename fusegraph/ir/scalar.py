"""Scalar expressions: the body of a loop, a DAG of operations on single elements.

Expressions are interned: equal ones are the same object, so common subexpressions are shared by construction.

    op          args            attributes
    const                       value
    index                       Index (the value of an index expression, int64)
    load                        Load(buffer, index, mask)
    acc                         name of an accumulator that an earlier stage closed
    inside                      Bounds (bool): every index of a mask lies within its limits
    philox      key, counter    Index (the element's number): uint32 random bits
    <primitive> operands        any map or zip of the table: add, exp, where, cast, ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fusegraph.dtypes import DType, bool_, int64, uint32
from fusegraph.ir.index import Axis, Div, Index, Indirect, Mod
from fusegraph.records import dataclass


@dataclass(frozen=True, repr=False)
class Bound:
    """low <= index < high."""

    index: Index
    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low} <= {self.index} < {self.high}"

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class Divides:
    """index is a multiple of divisor."""

    index: Index
    divisor: int

    def __str__(self) -> str:
        return f"{self.divisor} divides {self.index}"

    __repr__ = __str__


Condition = Bound | Divides
Mask = tuple[Condition, ...]


class Load(NamedTuple):
    """An element of `buffer` (a name) at `index`; where a condition of `mask` fails nothing is read and the value is 0."""

    buffer: str
    index: tuple[Index, ...]  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    mask: Mask = ()


class Expr:
    """One interned expression. Make it with the functions below; compare with `is`.

    axes   every axis that it depends on
    below  operands, and the expressions inside of its indirect indices
    depth  expressions on the longest way down, itself counted
    """

    __slots__ = ("op", "args", "dtype", "attribute", "axes", "below", "depth")
    axes: frozenset[Axis]
    below: tuple[Expr, ...]
    depth: int

    def __init__(self, op: str, args: tuple[Expr, ...], dtype: DType, attribute: Any) -> None:
        self.op, self.args, self.dtype, self.attribute = op, args, dtype, attribute
        # here and not when asked for: operands have theirs, so that nothing goes down a long chain
        indices = self.indices()
        inside = [value for index in indices for value in indirect_values(index)]
        self.below = (*args, *inside) if inside else args
        self.axes = _union([arg.axes for arg in args] + [index.axes for index in indices])
        self.depth = 1 + max([part.depth for part in self.below], default=0)

    def indices(self) -> list[Index]:
        """The index expressions that stand in this node itself."""
        if self.op == "load":
            return [*self.attribute.index, *(condition.index for condition in self.attribute.mask)]
        if self.op in ("index", "philox"):
            return [self.attribute]
        return [condition.index for condition in self.attribute] if self.op == "inside" else []

    def substitute(self, mapping: Mapping[Axis, Index]) -> Expr:
        """With axes replaced by index expressions."""
        return self if self.axes.isdisjoint(mapping) else substitute([self], mapping)[0]

    def __str__(self) -> str:
        if self.op == "const":
            return f"{self.attribute!r}"
        if self.op == "load":
            inside = ", ".join(map(str, self.attribute.index))
            return f"{self.attribute.buffer}[{inside}]" + ("?" if self.attribute.mask else "")
        if self.op == "acc":
            return str(self.attribute)
        extra = [str(self.attribute)] if self.attribute is not None and self.op != "cast" else []
        name = f"{self.op}_{self.dtype.name}" if self.op == "cast" else self.op
        return f"{name}({', '.join([*map(str, self.args), *extra])})"

    __repr__ = __str__


def _union(parts: Sequence[frozenset[Axis]]) -> frozenset[Axis]:
    """The union; one of `parts` itself where that has everything."""
    largest = max(parts, key=len, default=_NO_AXES)
    return largest if all(part <= largest for part in parts) else largest.union(*parts)


_NO_AXES: frozenset[Axis] = frozenset()
_interned: dict[Any, Expr] = {}


def make(op: str, args: Sequence[Expr], dtype: DType, attribute: Any = None) -> Expr:
    """The expression `op(args)`."""
    frozen = repr(attribute) if isinstance(attribute, float) else (type(attribute).__name__, attribute)
    key = (op, tuple(map(id, args)), dtype.num, frozen)
    found = _interned.get(key)
    if found is None:
        found = _interned[key] = Expr(op, tuple(args), dtype, attribute)
    return found


def clear_interned() -> None:
    """Forget all expressions (between compilations, so that memory does not grow)."""
    _interned.clear()


def const(value: Any, dtype: DType) -> Expr:
    """A constant."""
    return make("const", (), dtype, dtype.type(value).item())


def index_value(index: Index) -> Expr:
    """The value of an index expression, as int64."""
    return make("index", (), int64, index)


def load(buffer: str, index: Sequence[Index], dtype: DType, mask: Mask = ()) -> Expr:
    """An element of a buffer."""
    return make("load", (), dtype, Load(buffer, tuple(index), mask))


def acc(name: str, dtype: DType) -> Expr:
    """The value of a closed accumulator."""
    return make("acc", (), dtype, name)


def inside(mask: Mask) -> Expr:
    """Whether every condition of `mask` holds."""
    return make("inside", (), bool_, mask)


def philox(key: Expr, counter: Expr, element: Index) -> Expr:
    """Random bits of element number `element`."""
    return make("philox", (key, counter), uint32, element)


def op(name: str, *args: Expr, dtype: DType | None = None) -> Expr:
    """A map or zip of the table of primitives."""
    return make(name, args, dtype or args[-1].dtype)


def walk(roots: Sequence[Expr]) -> list[Expr]:
    """Every expression below `roots` (also those inside of indirect indices), operands first. Without recursion."""
    order: dict[Expr, None] = {}
    stack = list(roots[::-1])
    while stack:
        node = stack.pop()
        if node in order:
            continue
        below = node.below
        waiting = [child for child in below if child not in order] if below else None
        if waiting:
            stack.append(node)
            stack += waiting[::-1]
        else:
            order[node] = None
    return list(order)


def children(node: Expr) -> tuple[Expr, ...]:
    """Operands, and the expressions inside of indirect indices."""
    return node.below


def indirect_values(index: Index) -> list[Expr]:
    """The scalar expressions that an index reads."""
    found: list[Expr] = []
    for atom, _ in index.terms:
        if isinstance(atom, Axis):
            continue
        if isinstance(atom, Indirect):
            found.append(atom.value)
        elif isinstance(atom, (Div, Mod)):
            found += indirect_values(atom.index)
    return found


def rewrite(roots: Sequence[Expr], function: Any) -> list[Expr]:
    """Rebuild `roots` from below: `function(node, new_args)` gives each node's replacement."""
    new: dict[Expr, Expr] = {}
    for node in walk(roots):
        new[node] = function(node, tuple(new[arg] for arg in node.args))
    return [new[root] for root in roots]


def substitute(roots: Sequence[Expr], mapping: Mapping[Axis, Index]) -> list[Expr]:
    """`roots` with axes replaced by index expressions."""
    new: dict[Expr, Expr] = {}
    for node in walk(roots):
        if node.axes.isdisjoint(mapping):
            new[node] = node
        else:
            args = tuple([new[arg] for arg in node.args])
            new[node] = make(node.op, args, node.dtype, _with_indices(node, lambda index: index.substitute(mapping)))
    return [new[root] for root in roots]


def replace_loads(roots: Sequence[Expr], function: Callable[[Expr], Expr]) -> list[Expr]:
    """Rebuild `roots` from below, also inside of indirect indices: `function(load)` gives each load's replacement."""
    new: dict[Expr, Expr] = {}

    def moved(index: Index) -> Index:
        return index.replace_values(new) if indirect_values(index) else index

    for node in walk(roots):
        args = tuple([new[arg] for arg in node.args])
        if args == node.args and node.op not in _WITH_INDICES:
            new[node] = node
            continue
        made = make(node.op, args, node.dtype, _with_indices(node, moved))
        new[node] = function(made) if made.op == "load" else made
    return [new[root] for root in roots]


_WITH_INDICES = frozenset(("load", "index", "philox", "inside"))


def _with_indices(node: Expr, function: Callable[[Index], Index]) -> Any:
    """The attribute of `node` with `function` applied to every index expression in it."""
    attribute = node.attribute
    if node.op == "load":
        return Load(attribute.buffer, tuple(map(function, attribute.index)), _mask(attribute.mask, function))
    if node.op in ("index", "philox"):
        return function(attribute)
    return _mask(attribute, function) if node.op == "inside" else attribute


def _mask(mask: Mask, function: Callable[[Index], Index]) -> Mask:
    if not mask:
        return mask
    out: list[Condition] = []
    for condition in mask:
        index = function(condition.index)
        out.append(
            Bound(index, condition.low, condition.high)
            if isinstance(condition, Bound)
            else Divides(index, condition.divisor)
        )
    return simplify_mask(tuple(out))


def simplify_mask(mask: Mask) -> Mask:
    """Without conditions that always hold, each once."""
    kept: dict[Condition, None] = {}
    for condition in mask:
        low, high = condition.index.bounds
        if isinstance(condition, Bound):
            always = condition.low <= low and high < condition.high
        else:
            always = (condition.index % condition.divisor) == Index()
        if not always:
            kept[condition] = None
    return tuple(kept)
