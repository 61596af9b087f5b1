"""Rewriting loops: what the steps that bring a loop into canonical form share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusegraph.ir.index import Atom, Axis, Div, Index, Indirect, Mod
from fusegraph.ir.loops import Loop, Reduce, Stage, Store
from fusegraph.ir.scalar import Bound, Condition, Divides, Expr, Load, Mask, indirect_values, make, walk
from fusegraph.records import replace


def stage_roots(stage: Stage) -> list[Expr]:
    """Every expression that a stage evaluates: values, and what the indices of its stores read."""
    roots = stage.expressions()
    for store in stage.stores:
        for index in store.index:
            roots += indirect_values(index)
    return roots


def inner_axes(stage: Stage) -> tuple[Axis, ...]:
    """The axes that a stage loops over."""
    return stage.axes + stage.reduce_axes


def all_indices(stages: Sequence[Stage]) -> list[Index]:
    """Every index of the stages, those inside of divisions too, each once."""
    found: dict[Index, None] = {}
    pending = [index for stage in stages for store in stage.stores for index in store.index]
    pending += [index for stage in stages for node in walk(stage_roots(stage)) for index in node.indices()]
    while pending:
        index = pending.pop()
        if index in found:
            continue
        found[index] = None
        pending += [atom.index for atom, _ in index.terms if isinstance(atom, (Div, Mod))]
    return list(found)


class Rewrite:
    """Maps expressions and indices; subclasses change loads' and stores' addresses or the axes."""

    def __init__(self) -> None:
        self._known: dict[Expr, Expr] = {}

    def expr(self, root: Expr) -> Expr:
        """The new form of an expression."""
        for node in walk([root]):
            if node not in self._known:
                self._known[node] = self._node(node)
        return self._known[root]

    def _node(self, node: Expr) -> Expr:
        args = tuple(self._known[arg] for arg in node.args)
        attribute = node.attribute
        if node.op == "load":
            index = self.address(attribute.buffer, attribute.index)
            attribute = Load(attribute.buffer, index, self.mask(attribute.mask))
        elif node.op in ("index", "philox"):
            attribute = self.index(attribute)
        elif node.op == "inside":
            attribute = self.mask(attribute)
        return make(node.op, args, node.dtype, attribute)

    def mask(self, mask: Mask) -> Mask:
        """The new form of a mask."""
        return tuple(map(self.condition, mask))

    def condition(self, condition: Condition) -> Condition:
        """The new form of a condition of a mask."""
        index = self.index(condition.index)
        if isinstance(condition, Bound):
            return Bound(index, condition.low, condition.high)
        return Divides(index, condition.divisor)

    def address(self, buffer: str, index: tuple[Index, ...]) -> tuple[Index, ...]:
        """The new form of the index of a load or store."""
        return tuple(map(self.index, index))

    def index(self, index: Index) -> Index:
        """The new form of an index; values inside of it were rewritten before."""
        terms: dict[Atom, int] = {}
        constant = index.constant
        changed = False
        for atom, c in index.terms:
            new = self.atom(atom)
            changed = changed or new is not atom
            if new is None:
                continue
            terms[new] = terms.get(new, 0) + c
        return Index.from_terms(constant, terms) if changed else index

    def atom(self, atom: Any) -> Any:
        """The new form of an atom; None if its term goes away."""
        if isinstance(atom, Axis):
            return self.axis(atom)
        if isinstance(atom, Indirect):
            new = self.expr(atom.value)
            return atom if new is atom.value else Indirect(new, atom.extent)
        assert isinstance(atom, (Div, Mod))
        inner = self.index(atom.index)
        return atom if inner is atom.index else type(atom)(inner, atom.divisor)

    def axis(self, axis: Axis) -> Axis | None:
        """The new form of an axis; None if its term goes away."""
        return axis


def rewrite_loop(loop: Loop, rewrite: Rewrite) -> Loop:
    """`loop` with all its expressions and indices rewritten."""
    return replace(loop, stages=tuple(rewrite_stage(stage, rewrite) for stage in loop.stages))


def rewrite_stage(stage: Stage, rewrite: Rewrite) -> Stage:
    """`stage` with all its expressions and indices rewritten."""
    reduces = tuple(Reduce(r.name, r.op, rewrite.expr(r.value), r.dtype) for r in stage.reduces)
    stores = tuple(
        Store(s.buffer, rewrite.address(s.buffer, s.index), rewrite.expr(s.value), s.mode) for s in stage.stores
    )
    return replace(stage, reduces=reduces, stores=stores)
