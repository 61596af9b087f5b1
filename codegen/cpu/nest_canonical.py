"""The form that loops have before code is written for them.

- Every load and store has one index, the element's number in C order (buffers are dense).
- Neighbouring axes that every index walks through as if they were one are one: a [64, 256] elementwise kernel runs over 16384
  points.
- A lone stage that only stores hands its axes over to the space.
- Inner axes of all stages have the same names ("j0" is the innermost), so that an expression that two stages share is one
  object, computed once where its value can stay in a register.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fusegraph.ir.index import Axis, Div, Index, Indirect, Mod, flatten_index
from fusegraph.ir.loops import Buffer, Loop, Reduce, Stage, Store
from fusegraph.ir.scalar import Bound, Divides, Expr, Load, Mask, make, walk

Merges = Mapping[Axis, tuple[Axis, bool]]  # axis -> (the axis that replaces it, whether its terms carry the new axis)


def canonical_loop(loop: Loop, buffers: Mapping[str, Buffer]) -> Loop:
    """`loop` in canonical form. Axes of extent 1 are gone; axes of extent 0 remain."""
    flat = _rewrite_loop(loop, _Flatten(buffers))
    flat = _without_unit_axes(flat)
    if len(flat.stages) == 1 and not flat.stages[0].reduces and flat.schedule != "scatter":
        stage = flat.stages[0]
        flat = replace(flat, space=flat.space + stage.axes, stages=(replace(stage, axes=()),))
    return _merge_axes(flat)


def flat_stages(stages: Sequence[Stage], buffers: Mapping[str, Buffer]) -> tuple[Stage, ...]:
    """Stages whose loads and stores have one index each, the element's number; their axes stay as they are."""
    rewrite = _Flatten(buffers)
    return tuple(_rewrite_stage(stage, rewrite) for stage in stages)


def stage_roots(stage: Stage) -> list[Expr]:
    """Every expression that a stage evaluates: values, and what the indices of its stores read."""
    from fusegraph.ir.scalar import indirect_values

    roots = stage.expressions()
    for store in stage.stores:
        for index in store.index:
            roots += indirect_values(index)
    return roots


def inner_axes(stage: Stage) -> tuple[Axis, ...]:
    """The axes that a stage loops over."""
    return stage.axes + stage.reduce_axes


# -- rewriting ------------------------------------------------------------------------------------------------------------


class _Rewrite:
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
        return tuple(
            Bound(self.index(c.index), c.low, c.high) if isinstance(c, Bound) else Divides(self.index(c.index), c.divisor)
            for c in mask
        )

    def address(self, buffer: str, index: tuple[Index, ...]) -> tuple[Index, ...]:
        """The new form of the index of a load or store."""
        return tuple(map(self.index, index))

    def index(self, index: Index) -> Index:
        """The new form of an index; values inside of it were rewritten before."""
        terms: dict[object, int] = {}
        constant = index.constant
        changed = False
        for atom, c in index.terms:
            new = self.atom(atom)
            changed = changed or new is not atom
            if new is None:
                continue
            terms[new] = terms.get(new, 0) + c
        return Index.from_terms(constant, terms) if changed else index  # type: ignore[arg-type]

    def atom(self, atom: object) -> object:
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


class _Flatten(_Rewrite):
    def __init__(self, buffers: Mapping[str, Buffer]) -> None:
        super().__init__()
        self._buffers = buffers

    def address(self, buffer: str, index: tuple[Index, ...]) -> tuple[Index, ...]:
        return (flatten_index([self.index(part) for part in index], self._buffers[buffer].shape),)


class _Rename(_Rewrite):
    def __init__(self, merges: Merges) -> None:
        super().__init__()
        self._merges = merges

    def axis(self, axis: Axis) -> Axis | None:
        new, carries = self._merges.get(axis, (axis, True))
        return new if carries else None


def _rewrite_loop(loop: Loop, rewrite: _Rewrite) -> Loop:
    return replace(loop, stages=tuple(_rewrite_stage(stage, rewrite) for stage in loop.stages))


def _rewrite_stage(stage: Stage, rewrite: _Rewrite) -> Stage:
    reduces = tuple(Reduce(r.name, r.op, rewrite.expr(r.value), r.dtype) for r in stage.reduces)
    stores = tuple(
        Store(s.buffer, rewrite.address(s.buffer, s.index), rewrite.expr(s.value), s.mode) for s in stage.stores
    )
    return replace(stage, reduces=reduces, stores=stores)


def _without_unit_axes(loop: Loop) -> Loop:
    def kept(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(axis for axis in axes if axis.extent != 1)

    stages = tuple(replace(s, axes=kept(s.axes), reduce_axes=kept(s.reduce_axes)) for s in loop.stages)
    return replace(loop, space=kept(loop.space), stages=stages)


# -- merging axes ---------------------------------------------------------------------------------------------------------


def _all_indices(stages: Sequence[Stage]) -> list[Index]:
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


def _is_one(outer: Axis, inner: Axis, indices: Sequence[Index]) -> bool:
    """Whether every index walks through (outer, inner) as through one axis."""
    return all(index.coefficient(outer) == inner.extent * index.coefficient(inner) for index in indices)


def _groups(axes: tuple[Axis, ...], indices: Sequence[Index]) -> list[list[Axis]]:
    groups: list[list[Axis]] = []
    for axis in axes:
        if groups and _is_one(groups[-1][-1], axis, indices):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return groups


def _merged(groups: list[list[Axis]], name: str, merges: dict[Axis, tuple[Axis, bool]]) -> tuple[Axis, ...]:
    """One new axis for each group, named `name`0, 1, ... from the innermost outwards."""
    axes = []
    for position, group in enumerate(groups):
        axis = Axis(f"{name}{len(groups) - 1 - position}", math.prod(a.extent for a in group))
        merges.update({old: (axis, old is group[-1]) for old in group})
        axes.append(axis)
    return tuple(axes)


def _merge_axes(loop: Loop) -> Loop:
    space_merges: dict[Axis, tuple[Axis, bool]] = {}
    space = _merged(_groups(loop.space, _all_indices(loop.stages)), "i", space_merges)
    rewrites: dict[tuple[tuple[Axis, bool], ...], _Rename] = {}
    stages = []
    for stage in loop.stages:
        indices = _all_indices([stage])
        merges = dict(space_merges)
        axes = _merged(_groups(stage.axes, indices), "j", merges)
        reduce_axes = _merged(_groups(stage.reduce_axes, indices), "k" if axes else "j", merges)
        rewrite = rewrites.setdefault(tuple(sorted(merges.items(), key=str)), _Rename(merges))  # type: ignore[call-overload]
        stages.append(replace(_rewrite_stage(stage, rewrite), axes=axes, reduce_axes=reduce_axes))
    return replace(loop, space=space, stages=tuple(stages))
