"""What a contraction is, read off a loop's index maps: operands, classes of axes, merged axes.

A loop of schedule "contract" sums a product of two loads. Each axis of its space stands in the index of one
operand, of both, or of neither, and that alone decides how it runs:

    columns   in the wide operand only     (n of a matrix product; n, y, x of a convolution's image)
    rows      in the narrow operand only   (m of a matrix product; the output channels)
    shared    in both or in neither        (batch axes)
    sums      the reduce axes              (k; channels and taps)

Either operand may be the wide one, which is read in vectors along one of its columns; the narrow one is read element
by element. Axes that reshapes split by // and % are taken apart, and neighbours that form one longer axis are merged,
so that all layouts of matrix products and convolutions come out as a few plain axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fusegraph.ir.index import Axis, Div, Index, Mod, Substitution, flatten_index
from fusegraph.ir.loops import Loop, Program, Reduce, Stage, Store
from fusegraph.ir.scalar import Bound, Condition, Divides, Expr, Mask, substitute, walk
from fusegraph.records import dataclass, replace

__all__ = [
    "Contraction",
    "Merges",
    "Operand",
    "epilogue_accesses",
    "merge_axes",
    "normal_form",
    "offsets_along",
    "roles",
    "store_indices",
]


@dataclass(frozen=True)
class Operand:
    """One factor of the product: element `flat` of `buffer` (0 where `mask` fails)."""

    buffer: str
    flat: Index
    mask: Mask = ()

    @property
    def axes(self) -> frozenset[Axis]:
        """Axes that it depends on, also through the mask."""
        return self.flat.axes.union(*(condition.index.axes for condition in self.mask))

    @property
    def affine_axes(self) -> frozenset[Axis]:
        """Axes that stand outside of every // and %."""
        inside = frozenset().union(*(atom.index.axes for atom, _ in self.flat.terms if isinstance(atom, (Div, Mod))))
        return self.flat.axes - inside

    def stride(self, axis: Axis | None) -> int:
        """Elements between neighbours along an axis that it is affine in."""
        return 0 if axis is None else self.flat.coefficient(axis)

    def substitute(self, mapping: Substitution) -> Operand:
        """With axes replaced."""
        mask = tuple(_substituted(condition, mapping) for condition in self.mask)
        return Operand(self.buffer, self.flat.substitute(mapping), mask)


def _substituted(condition: Condition, mapping: Substitution) -> Condition:
    index = condition.index.substitute(mapping)
    return replace(condition, index=index)


@dataclass(frozen=True)
class Contraction:
    """A loop in normal form and the roles of its operands; vectors run along `column`, an axis of the wide operand."""

    loop: Loop
    narrow: Operand
    wide: Operand
    column: Axis
    columns: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    shared: tuple[Axis, ...]
    sums: tuple[Axis, ...]

    @property
    def reduce(self) -> Reduce:
        """The accumulator."""
        return self.loop.stages[0].reduces[0]

    @property
    def depth(self) -> int:
        """Products in each sum."""
        return extent_of(self.sums)


def extent_of(axes: Iterable[Axis]) -> int:
    """Points of these axes."""
    count = 1
    for axis in axes:
        count *= axis.extent
    return count


def normal_form(loop: Loop, program: Program) -> Loop | None:
    """The loop without axes of extent 1 and with divided axes taken apart; None if it is no contraction.

    An empty sum is left to the plain nest.
    """
    if not _is_contraction(loop) or any(axis.extent == 0 for axis in loop.stages[0].reduce_axes):
        return None
    loop = _split_axes(_drop_unit_axes(loop), program)
    return loop if all(_is_regular(operand) for operand in _operands(loop, program)) else None


def roles(loop: Loop, program: Program) -> Iterator[Contraction]:
    """Every sensible choice of the wide operand and of the axis that vectors run along; the most natural one first.

    That is the axis of neighbours in the output; the others are the longest axis of each operand.
    """
    first, second = _operands(loop, program)
    single = [axis for axis in loop.space if (axis in first.axes) != (axis in second.axes)]
    flats = store_indices(loop, program)
    chosen: dict[Axis, None] = {}
    for flat in flats:
        chosen.update(dict.fromkeys(axis for axis in single if flat.coefficient(axis) == 1))
    for operand in (second, first):
        of_operand = [axis for axis in single if axis in operand.axes]
        if of_operand:
            chosen[max(of_operand, key=lambda axis: axis.extent)] = None
    for column in (axis for axis in chosen if not axis.rows):
        narrow, wide = (first, second) if column in second.axes else (second, first)
        yield _classified(loop, narrow, wide, column)


def _classified(loop: Loop, narrow: Operand, wide: Operand, column: Axis) -> Contraction:
    columns: list[Axis] = []
    rows: list[Axis] = []
    shared: list[Axis] = []
    for axis in loop.space:
        in_narrow, in_wide = axis in narrow.axes, axis in wide.axes
        (shared if in_narrow == in_wide else columns if in_wide else rows).append(axis)
    sums = loop.stages[0].reduce_axes
    return Contraction(loop, narrow, wide, column, tuple(columns), tuple(rows), tuple(shared), sums)


# -- merging --------------------------------------------------------------------------------------------------------


class Merges:
    """Loops with two axes merged, and the indices of their outputs: made once for all plans that come by them."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._loops: dict[tuple[int, Axis, Axis], tuple[Loop, Loop]] = {}
        self._outputs: dict[int, tuple[Loop, list[Index]]] = {}  # by identity of the loop, which is kept alive

    def outputs(self, loop: Loop) -> list[Index]:
        """Element numbers of all that the stages after the sum load, store or compute."""
        known = self._outputs.get(id(loop))
        if known is None:
            known = self._outputs[id(loop)] = (loop, _output_indices(loop, self._program))
        return known[1]

    def merged(self, loop: Loop, outer: Axis, inner: Axis, axis: Axis, mapping: Substitution) -> Loop:
        """`loop` with `axis` in the place of two."""
        key = (id(loop), outer, inner)
        known = self._loops.get(key)
        if known is None:
            known = self._loops[key] = (loop, _substitute_loop(loop, mapping, {outer: (axis,), inner: ()}))
        return known[1]


def merge_axes(
    found: Contraction, merges: Merges, *, plain_columns: bool, plain_rows: bool, merge_sums: bool,
    apart: frozenset[Axis] = frozenset(),
) -> Contraction:  # fmt: skip
    """Merge neighbouring axes of a class wherever every index of the output stays affine.

    Without `plain_columns` the wide operand may come to hold // and % of merged columns (it is then gathered), without
    `plain_rows` the narrow operand of merged rows (a table of offsets then stands for the row's stride). The axes `apart` are not merged.
    """
    groups = ("columns", "rows", "sums") if merge_sums else ("columns", "rows")
    while True:
        outputs = merges.outputs(found.loop)
        for group, outer, inner in _neighbours(found, groups):
            plain = [found.narrow.flat] if plain_rows or group != "rows" else []
            plain += [found.wide.flat] if plain_columns or group != "columns" else []
            if outer in apart or inner in apart or outer.rows or inner.rows:
                continue
            if all(_is_one_axis(index, outer, inner) for index in (*outputs, *plain)):
                found = _merged(found, outer, inner, merges)
                break
        else:
            return found


def _neighbours(found: Contraction, groups: Sequence[str]) -> Iterator[tuple[str, Axis, Axis]]:
    for name in groups:
        group: tuple[Axis, ...] = getattr(found, name)
        for outer in group:
            for inner in group:
                if outer is not inner:
                    yield name, outer, inner


def _is_one_axis(index: Index, outer: Axis, inner: Axis) -> bool:
    """Whether the two axes act as one longer axis in `index`."""
    if index.coefficient(outer) != index.coefficient(inner) * inner.extent:
        return False
    divided = [Index(0, ((atom, 1),)).axes for atom, _ in index.terms if type(atom) is not Axis]
    return not any(outer in axes or inner in axes for axes in divided)


def _merged(found: Contraction, outer: Axis, inner: Axis, merges: Merges) -> Contraction:
    axis = Axis(f"{outer.name}_{inner.name}", outer.extent * inner.extent)
    flat = Index.of(axis)
    mapping = {outer: flat // inner.extent, inner: flat % inner.extent}
    groups = {name: _joined(getattr(found, name), outer, inner, axis) for name in ("columns", "rows", "sums")}
    return replace(
        found, loop=merges.merged(found.loop, outer, inner, axis, mapping),
        narrow=found.narrow.substitute(mapping), wide=found.wide.substitute(mapping),
        column=axis if found.column in (outer, inner) else found.column, **groups,
    )  # fmt: skip


def _joined(group: tuple[Axis, ...], outer: Axis, inner: Axis, axis: Axis) -> tuple[Axis, ...]:
    return tuple(axis if member is outer else member for member in group if member is not inner)


def offsets_along(operand: Operand, axis: Axis) -> tuple[int, ...] | None:
    """The operand's offset at each point of `axis`, all other axes at zero; None if it does not simply add up."""
    for atom, _ in operand.flat.terms:
        if isinstance(atom, (Div, Mod)) and axis in atom.index.axes and atom.index.axes != {axis}:
            return None
    places = np.arange(axis.extent, dtype=np.int64)
    along = _evaluate(operand.flat, axis, places)
    return tuple(map(int, along - _evaluate(operand.flat, axis, places[:1] * 0)))


def _evaluate(index: Index, axis: Axis, places: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The index's value where `axis` has the values `places` and every other axis is zero."""
    total = np.full(len(places), index.constant, np.int64)
    for atom, factor in index.terms:
        if isinstance(atom, Axis):
            total += factor * (places if atom is axis or atom == axis else 0)
        elif isinstance(atom, Div):
            total += factor * (_evaluate(atom.index, axis, places) // atom.divisor)
        elif isinstance(atom, Mod):
            total += factor * (_evaluate(atom.index, axis, places) % atom.divisor)
    return total


# -- reading a loop -------------------------------------------------------------------------------------------------


def _is_contraction(loop: Loop) -> bool:
    if not loop.stages or len(loop.stages[0].reduces) != 1 or loop.stages[0].axes or loop.stages[0].stores:
        return False
    reduce = loop.stages[0].reduces[0]
    product = reduce.value
    return (
        reduce.op == "sum" and reduce.dtype.kind == "f" and product.op == "mul"
        and all(factor.op == "load" and factor.dtype == reduce.dtype for factor in product.args)
        and all(not stage.axes and not stage.reduces for stage in loop.stages[1:])
        and any(stage.stores for stage in loop.stages[1:])
        and all(store.mode == "store" for stage in loop.stages for store in stage.stores)
    )  # fmt: skip


def _operands(loop: Loop, program: Program) -> tuple[Operand, Operand]:
    loads = [factor.attribute for factor in loop.stages[0].reduces[0].value.args]
    first, second = (
        Operand(load.buffer, flatten_index(load.index, program.buffers[load.buffer].shape), load.mask) for load in loads
    )
    return first, second


def _is_regular(operand: Operand) -> bool:
    """Whether no part of its address is read at run time."""
    indices = [operand.flat, *(condition.index for condition in operand.mask)]
    return all(isinstance(atom, (Axis, Div, Mod)) for index in indices for atom, _ in index.terms)


def store_indices(loop: Loop, program: Program) -> list[Index]:
    """The element number that each store writes."""
    stores = [store for stage in loop.stages for store in stage.stores]
    return [flatten_index(store.index, program.buffers[store.buffer].shape) for store in stores]


def epilogue_accesses(loop: Loop, program: Program) -> list[Index]:
    """The element number of each load and store of the stages after the sum."""
    found = store_indices(loop, program)
    for expr in walk([value for stage in loop.stages[1:] for value in stage.expressions()]):
        if expr.op == "load":
            found.append(flatten_index(expr.attribute.index, program.buffers[expr.attribute.buffer].shape))
    return found


def epilogue_lines(loop: Loop, program: Program, size: int) -> dict[tuple[str, Index], bool]:
    """(buffer, element number) that the stages after the sum read or write, of buffers of at least `size` elements.

    True: it is written.
    """
    found: dict[tuple[str, Index], bool] = {}
    stores = [store for stage in loop.stages for store in stage.stores]
    for store, flat in zip(stores, store_indices(loop, program), strict=True):
        found[store.buffer, flat] = True
    for expr in walk([value for stage in loop.stages[1:] for value in stage.expressions()]):
        if expr.op == "load":
            load = expr.attribute
            found.setdefault((load.buffer, flatten_index(load.index, program.buffers[load.buffer].shape)), False)
    return {key: written for key, written in found.items() if program.buffers[key[0]].size >= size}


def _output_indices(loop: Loop, program: Program) -> list[Index]:
    """Element numbers of all that the stages after the sum load, store or compute."""
    found = store_indices(loop, program)
    for expr in walk([value for stage in loop.stages[1:] for value in stage.expressions()]):
        if expr.op == "load":
            found.append(flatten_index(expr.attribute.index, program.buffers[expr.attribute.buffer].shape))
            found += [condition.index for condition in expr.attribute.mask]
        else:
            found += expr.indices()
    return found


# -- rewriting of a loop's axes -------------------------------------------------------------------------------------


def _substitute_loop(loop: Loop, mapping: Substitution, axes: Mapping[Axis, Sequence[Axis]]) -> Loop:
    """The loop with axes replaced: `mapping` gives each as an index, `axes` what takes its place in the lists."""

    def replaced(old: Iterable[Axis]) -> tuple[Axis, ...]:
        return tuple(new for axis in old for new in axes.get(axis, (axis,)))

    values = list(dict.fromkeys([value for stage in loop.stages for value in _values(stage)]))
    new = dict(zip(values, substitute(values, mapping), strict=True))

    def store(old: Store) -> Store:
        return Store(old.buffer, tuple(i.substitute(mapping) for i in old.index), new[old.value], old.mode)

    stages = tuple(
        Stage(
            replaced(stage.axes), replaced(stage.reduce_axes),
            tuple(replace(reduce, value=new[reduce.value]) for reduce in stage.reduces),
            tuple(map(store, stage.stores)),
        )
        for stage in loop.stages
    )  # fmt: skip
    return replace(loop, space=replaced(loop.space), stages=stages)


def _values(stage: Stage) -> list[Expr]:
    return [*(reduce.value for reduce in stage.reduces), *(store.value for store in stage.stores)]


def _drop_unit_axes(loop: Loop) -> Loop:
    unit = {axis: () for axis in (*loop.space, *loop.stages[0].reduce_axes) if axis.extent == 1}
    return _substitute_loop(loop, {axis: Index() for axis in unit}, unit) if unit else loop


def _split_axes(loop: Loop, program: Program) -> Loop:
    """Take apart every axis that an index divides: axis = quotient * divisor + remainder."""
    while True:
        found = _divided_axis(loop, program)
        if found is None:
            return loop
        axis, divisor = found
        high, low = Axis(f"{axis.name}_q{divisor}", axis.extent // divisor), Axis(f"{axis.name}_r{divisor}", divisor)
        loop = _substitute_loop(loop, {axis: Index.of(high) * divisor + low}, {axis: (high, low)})
        loop = _drop_unit_axes(loop)


def _divided_axis(loop: Loop, program: Program) -> tuple[Axis, int] | None:
    indices = _output_indices(loop, program)
    for operand in _operands(loop, program):
        indices += [
            operand.flat,
            *(condition.index for condition in operand.mask if isinstance(condition, (Bound, Divides))),
        ]
    for index in indices:
        for atom, _ in index.terms:
            if isinstance(atom, (Div, Mod)):
                axis = atom.index.axis
                if (
                    axis is not None
                    and not axis.rows
                    and axis.extent % atom.divisor == 0
                    and 1 < atom.divisor < axis.extent
                ):
                    return axis, atom.divisor
    return None
