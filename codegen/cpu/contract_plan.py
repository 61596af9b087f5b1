"""What a contraction is, read off a loop's index maps: operands, classes of axes, merged axes.

A loop of schedule "contract" sums a product of two loads. Each axis of its space stands in the index of one operand, of
both, or of neither, and that alone decides how it runs:

    columns   in the vector operand only          (n of a matrix product; n, y, x of a convolution's image)
    rows      in the broadcast operand only       (m of a matrix product; the output channels)
    shared    in both or in neither               (batch axes)
    sums      the reduce axes                     (k; channels and taps)

The vector operand is the one that the unit-stride axis of the output belongs to. Axes that reshapes split by // and % are
taken apart, and neighbours that form one longer axis in every index are merged, so that all layouts of matrix products and
convolutions come out as a few plain axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fusegraph.ir.index import Axis, Div, Index, Mod, flatten_index
from fusegraph.ir.loops import Loop, Program, Reduce, Stage, Store
from fusegraph.ir.scalar import Expr, Mask, walk

__all__ = ["Contraction", "Operand", "analyse", "merge_axes", "substitute_loop"]


@dataclass(frozen=True)
class Operand:
    """One factor of the product: element `flat` of `buffer` (0 where `mask` fails)."""

    buffer: str
    flat: Index
    mask: Mask

    @property
    def plain(self) -> bool:
        """Whether every address is an affine function of the axes and always inside."""
        return not self.mask and self.flat.is_affine

    @property
    def axes(self) -> frozenset[Axis]:
        """Axes that it depends on, also through the mask."""
        return self.flat.axes.union(*(condition.index.axes for condition in self.mask))

    def stride(self, axis: Axis | None) -> int:
        """Elements between neighbours along `axis` (only for a plain operand, or an axis that it is affine in)."""
        return 0 if axis is None else self.flat.coefficient(axis)


@dataclass(frozen=True)
class Contraction:
    """A loop in normal form. `narrow` is read element by element (broadcast), `wide` in vectors along `column`.

    `narrow_first`: the narrow operand is the first factor of the product.
    """

    loop: Loop
    narrow: Operand
    wide: Operand
    narrow_first: bool
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
    def multiplications(self) -> int:
        """Products that are summed in the whole loop."""
        count = self.loop.points()
        for axis in self.sums:
            count *= axis.extent
        return count


def analyse(loop: Loop, program: Program) -> Contraction | None:
    """The contraction that `loop` is, or None if it is not a sum of a product of two loads followed by plain stores.

    An empty sum is left to the plain nest, and so is an output of a single element.
    """
    if not _is_contraction(loop) or any(axis.extent == 0 for axis in loop.stages[0].reduce_axes):
        return None
    loop = _split_axes(_drop_unit_axes(loop), program)
    operands = _operands(loop, program)
    if operands is None:
        return None
    column = _output_axis(loop, program, operands)
    if column is None:
        return None
    narrow_first = column in operands[1].axes
    narrow, wide = operands if narrow_first else operands[::-1]
    if column in narrow.axes or column not in wide.axes or not narrow.plain:
        return None
    return _classified(loop, narrow, wide, narrow_first, column)


def _classified(loop: Loop, narrow: Operand, wide: Operand, narrow_first: bool, column: Axis) -> Contraction:
    columns, rows, shared = [], [], []
    for axis in loop.space:
        in_narrow, in_wide = axis in narrow.axes, axis in wide.axes
        (shared if in_narrow == in_wide else columns if in_wide else rows).append(axis)
    groups = tuple(columns), tuple(rows), tuple(shared)
    return Contraction(loop, narrow, wide, narrow_first, column, *groups, loop.stages[0].reduce_axes)


def merge_axes(found: Contraction, program: Program, *, keep_wide_plain: bool) -> Contraction:
    """Merge neighbouring axes of a class wherever every index of the loop stays affine.

    `keep_wide_plain=False` lets the wide operand's index keep // and % of merged axes (its panels are then gathered).
    """
    while True:
        for outer, inner in _neighbours(found):
            merged = _merged(found, program, outer, inner, keep_wide_plain)
            if merged is not None:
                found = merged
                break
        else:
            return found


def _neighbours(found: Contraction) -> Iterator[tuple[Axis, Axis]]:
    for group in (found.columns, found.rows, found.sums):
        for outer in group:
            for inner in group:
                if outer is not inner:
                    yield outer, inner


def _merged(found: Contraction, program: Program, outer: Axis, inner: Axis, keep_wide_plain: bool) -> Contraction | None:
    axis = Axis(f"{outer.name}_{inner.name}", outer.extent * inner.extent)
    flat = Index.of(axis)
    loop = substitute_loop(found.loop, {outer: flat // inner.extent, inner: flat % inner.extent}, {outer: (axis,), inner: ()})
    operands = _operands(loop, program)
    if operands is None:
        return None
    narrow, wide = operands if found.narrow_first else operands[::-1]
    if not narrow.plain or (keep_wide_plain and not wide.flat.is_affine):
        return None
    if not all(_stays_affine(index, axis) for index in _output_indices(loop, program)):
        return None
    column = axis if found.column in (outer, inner) else found.column
    return _classified(loop, narrow, wide, found.narrow_first, column)


def _stays_affine(index: Index, axis: Axis) -> bool:
    return all(isinstance(atom, Axis) or axis not in Index(0, ((atom, 1),)).axes for atom, _ in index.terms)


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


def _operands(loop: Loop, program: Program) -> tuple[Operand, Operand] | None:
    found = []
    for factor in loop.stages[0].reduces[0].value.args:
        flat = flatten_index(factor.attribute.index, program.buffers[factor.attribute.buffer].shape)
        if any(not isinstance(atom, (Axis, Div, Mod)) for atom, _ in flat.terms):
            return None
        found.append(Operand(factor.attribute.buffer, flat, factor.attribute.mask))
    return found[0], found[1]


def _output_axis(loop: Loop, program: Program, operands: tuple[Operand, Operand]) -> Axis | None:
    """The space axis along which vectors run: neighbours in the output, or else the longest one of a single operand."""
    single = [axis for axis in loop.space if (axis in operands[0].axes) != (axis in operands[1].axes)]
    for flat in _store_indices(loop, program):
        unit = [axis for axis in single if flat.coefficient(axis) == 1]
        if unit:
            return max(unit, key=lambda axis: axis.extent)
    return max(single, key=lambda axis: axis.extent) if single else None


def _store_indices(loop: Loop, program: Program) -> list[Index]:
    return [flatten_index(store.index, program.buffers[store.buffer].shape) for stage in loop.stages for store in stage.stores]


def _output_indices(loop: Loop, program: Program) -> list[Index]:
    """Element numbers of all that the stages after the sum load, store or compute."""
    found = _store_indices(loop, program)
    for expr in walk([value for stage in loop.stages[1:] for value in stage.expressions()]):
        if expr.op == "load":
            found.append(flatten_index(expr.attribute.index, program.buffers[expr.attribute.buffer].shape))
            found += [condition.index for condition in expr.attribute.mask]
        else:
            found += expr.indices()
    return found


# -- rewriting of a loop's axes -------------------------------------------------------------------------------------------


def substitute_loop(loop: Loop, mapping: Mapping[Axis, Index], axes: Mapping[Axis, Sequence[Axis]]) -> Loop:
    """The loop with axes replaced: `mapping` gives each old axis as an index, `axes` what takes its place in the lists."""

    def replaced(old: Iterable[Axis]) -> tuple[Axis, ...]:
        return tuple(new for axis in old for new in axes.get(axis, (axis,)))

    def expr(value: Expr) -> Expr:
        return value.substitute(mapping)

    stages = tuple(
        Stage(
            replaced(stage.axes), replaced(stage.reduce_axes),
            tuple(replace(reduce, value=expr(reduce.value)) for reduce in stage.reduces),
            tuple(Store(s.buffer, tuple(i.substitute(mapping) for i in s.index), expr(s.value), s.mode) for s in stage.stores),
        )
        for stage in loop.stages
    )  # fmt: skip
    return replace(loop, space=replaced(loop.space), stages=stages)


def _drop_unit_axes(loop: Loop) -> Loop:
    unit = {axis: () for axis in (*loop.space, *loop.stages[0].reduce_axes) if axis.extent == 1}
    return substitute_loop(loop, {axis: Index() for axis in unit}, unit) if unit else loop


def _split_axes(loop: Loop, program: Program) -> Loop:
    """Take apart every axis that an index divides: axis = quotient * divisor + remainder."""
    while True:
        found = _divided_axis(loop, program)
        if found is None:
            return loop
        axis, divisor = found
        high, low = Axis(f"{axis.name}_q{divisor}", axis.extent // divisor), Axis(f"{axis.name}_r{divisor}", divisor)
        loop = substitute_loop(loop, {axis: Index.of(high) * divisor + low}, {axis: (high, low)})
        loop = _drop_unit_axes(loop)


def _divided_axis(loop: Loop, program: Program) -> tuple[Axis, int] | None:
    operands = _operands(loop, program)
    indices = _output_indices(loop, program)
    for operand in operands or ():
        indices += [operand.flat, *(condition.index for condition in operand.mask)]
    for index in indices:
        for atom, _ in index.terms:
            if isinstance(atom, (Div, Mod)):
                axis = atom.index.axis
                if axis is not None and axis.extent % atom.divisor == 0 and 1 < atom.divisor < axis.extent:
                    return axis, atom.divisor
    return None
