"""Staging: a masked operand is copied into scratch with its padding filled in, and is then an affine, unmasked one.

The image of a convolution is read at y * stride + i * dilation - padding, where outside rows count as zero. The copy
holds every row that any (y, i) asks for, zeros where there is none, so that inner loops neither test nor clamp. The
input gradient of a strided convolution reads at offset // stride where stride divides the offset; its copy has
stride - 1 zeros between the elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from fusegraph.codegen.cpu.contract_plan import Operand
from fusegraph.codegen.cpu.irtext import FunctionBuilder, Module, element_bytes
from fusegraph.codegen.cpu.irvector import VectorOps
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Program
from fusegraph.ir.scalar import Bound, Divides
from fusegraph.records import dataclass, replace

__all__ = ["Dimension", "Staging", "plan_staging"]

_SLACK = 64  # elements behind the copy that whole vectors may read
_MAX_ELEMENTS = 1 << 21


@dataclass(frozen=True)
class Dimension:
    """One direction of the copy: the values of `index`, from `low` on, `extent` of them, `pitch` elements apart.

    The value u stands for element u // step of the source (elements `stride` apart) if step divides u and
    valid_low <= u // step < valid_high; else for zero.
    """

    index: Index
    low: int
    extent: int
    stride: int
    step: int
    valid_low: int
    valid_high: int
    pitch: int = 0

    @property
    def inside(self) -> tuple[int, int]:
        """First and one past the last element of the source that the copy holds."""
        first = max(self.valid_low, -(-self.low // self.step))
        return first, max(first, min(self.valid_high, (self.low + self.extent - 1) // self.step + 1))


@dataclass(frozen=True)
class Staging:
    """How an operand is copied: `dimensions` outermost first; `source` is what is left of its address."""

    buffer: str
    source: Index
    dimensions: tuple[Dimension, ...]

    @property
    def axes(self) -> frozenset[Axis]:
        """The copy is made anew for each point of these."""
        return self.source.axes

    @property
    def elements(self) -> int:
        """Size of the copy with the slack behind it."""
        return math.prod(dimension.extent for dimension in self.dimensions) + _SLACK

    @property
    def can_be_sized(self) -> bool:
        """Whether no dimension has a run-time extent."""
        return not any(axis.rows for dimension in self.dimensions for axis in dimension.index.axes)

    @property
    def contiguous(self) -> bool:
        """Whether the innermost elements lie side by side in the source."""
        return self.dimensions[-1].stride == 1 and self.dimensions[-1].step == 1

    def operand(self) -> Operand:
        """The operand as it stands in the copy."""
        flat = Index()
        for dimension in self.dimensions:
            flat = flat + (dimension.index - dimension.low) * dimension.pitch
        return Operand(self.buffer, flat)


def plan_staging(
    operand: Operand, program: Program, apart: Iterable[Axis], innermost: Axis | None = None
) -> Staging | None:
    """A staging of `operand`, or None if its mask is not one of bounds on separate directions.

    Directions that run along the axes `apart` alone are not part of the copy: it is made for each point of those.
    `innermost`: the axis that the copy's neighbours lie along; None: as in the source.
    """
    found = _masked_dimensions(operand)
    if found is None:
        return None
    dimensions, rest = found
    if not rest.is_affine:
        return None
    outside, free = set(apart), Index(rest.constant)
    for atom, factor in rest.terms:
        if not isinstance(atom, Axis):
            return None
        if atom in outside:
            free = free + Index.of(atom) * factor
        else:
            dimensions.append(Dimension(Index.of(atom), 0, atom.extent, factor, 1, 0, atom.extent))
    staging = _laid_out(Staging(operand.buffer, free, tuple(dimensions)), innermost)
    return staging if staging.elements <= _MAX_ELEMENTS else None


def _masked_dimensions(operand: Operand) -> tuple[list[Dimension], Index] | None:
    """One dimension for each index that the mask restricts, and the address without them."""
    rest = operand.flat
    dimensions: list[Dimension] = []
    for place, offset, step, low, high in _directions(operand):
        factor = _factor(rest, place)
        if factor is None or not offset.is_affine or any(offset.axes & other.index.axes for other in dimensions):
            return None
        first, last = offset.bounds
        dimensions.append(Dimension(offset, first, last - first + 1, factor, step, low, high))
        rest = rest - place * factor
    if any(rest.axes & dimension.index.axes for dimension in dimensions):
        return None
    return dimensions, rest


def _directions(operand: Operand) -> list[tuple[Index, Index, int, int, int]]:
    """What a mask says, by direction: (place in the source, offset = place * step where valid, step, low, high)."""
    found: dict[tuple[Index, Index], tuple[int, int, int]] = {}
    for condition in operand.mask:
        if isinstance(condition, Divides):  # several may have one place, that of an axis of size 1: a constant
            place = condition.index // condition.divisor
            low, high = place.bounds
            found[place, condition.index] = condition.divisor, low, high + 1
    for condition in operand.mask:
        if isinstance(condition, Bound):
            index = condition.index
            low, high = index.bounds
            for key in [key for key in found if key[0] == index] or [(index, index)]:
                step, first, end = found.get(key, (1, low, high + 1))
                found[key] = step, max(first, condition.low), min(end, condition.high)
    return [(place, offset, *limits) for (place, offset), limits in found.items()]


def _factor(flat: Index, index: Index) -> int | None:
    """The whole number f with flat = f * index + terms in which none of index's atoms occur; None if there is none.

    0 for an index that is constant: it is part of the address already.
    """
    if index.is_constant:
        return 0
    terms = dict(flat.terms)
    factors = {divmod(terms.get(atom, 0), factor) for atom, factor in index.terms}
    if len(factors) != 1:
        return None
    factor, remainder = factors.pop()
    return factor if factor != 0 and remainder == 0 else None


def _laid_out(staging: Staging, innermost: Axis | None) -> Staging:
    """The copy in the order of the source, the direction with the smallest stride, or `innermost`, innermost."""
    ordered = sorted(staging.dimensions, key=lambda d: (d.index.axis is innermost is not None, -abs(d.stride) / d.step))
    pitch, out = 1, []
    for dimension in reversed(ordered):
        out.append(replace(dimension, pitch=pitch))
        pitch *= dimension.extent
    return replace(staging, dimensions=tuple(reversed(out)))


class Stager:
    """Writes the function `@name(ptr %source, ptr %copy)` that fills a copy; %source is the address of `source`."""

    def __init__(self, module: Module, name: str, lanes: int, element: str, staging: Staging) -> None:
        self.module, self.name, self.lanes, self.element, self.staging = module, name, lanes, element, staging

    @property
    def nbytes(self) -> int:
        """Memory of the copy."""
        return -(-self.staging.elements * element_bytes(self.element) // 64) * 64

    def call(self, fn: FunctionBuilder, base: str, coordinates: Mapping[Axis, str], copy: str) -> None:
        """Fill `copy` from the buffer at `base`, for the point `coordinates` of the staging's axes."""
        if not self.module.has_function(self.name):
            self._define()
        terms = [(factor, coordinates[axis]) for axis, factor in self.staging.source.terms if isinstance(axis, Axis)]
        source = fn.gep(base, fn.affine(terms, self.staging.source.constant), self.element)
        fn.call("void", self.name, [("ptr", source), ("ptr", copy)])

    def _define(self) -> None:
        fn = self.module.function(self.name, ["ptr noalias %source", "ptr noalias %copy"], attrs="noinline")
        self._fill(fn, 0, "%source", "%copy")

    def _fill(self, fn: FunctionBuilder, depth: int, source: str, copy: str) -> None:
        """Fill the block of dimension `depth`: zeros below the valid elements, they themselves, zeros above."""
        dimension = self.staging.dimensions[depth]
        first, last = dimension.inside
        size = dimension.pitch * dimension.extent
        begin = (first * dimension.step - dimension.low) * dimension.pitch
        end = begin + ((last - first - 1) * dimension.step + 1) * dimension.pitch if last > first else begin
        if dimension.step > 1:  # zeros between the elements too
            begin, end = 0, 0
        self._zeros(fn, copy, 0, begin)
        self._zeros(fn, copy, end, size)
        if last <= first:
            return
        at_source = fn.gep(source, first * dimension.stride, self.element)
        at_copy = fn.gep(copy, (first * dimension.step - dimension.low) * dimension.pitch, self.element)
        if depth == len(self.staging.dimensions) - 2 and self._is_transposed(depth):
            part = replace(dimension, low=0, extent=last - first)
            self._transpose(fn, part, self.staging.dimensions[-1], at_source, at_copy)
            return
        if depth == len(self.staging.dimensions) - 1:
            self._elements(fn, last - first, dimension, at_source, at_copy)
            return
        with fn.loop(0, last - first) as loop:
            inner_source = fn.gep(at_source, fn.affine([(dimension.stride, loop.index)]), self.element)
            inner_copy = fn.gep(at_copy, fn.affine([(dimension.step * dimension.pitch, loop.index)]), self.element)
            self._fill(fn, depth + 1, inner_source, inner_copy)

    def _is_transposed(self, depth: int) -> bool:
        """Whether the last two dimensions are a matrix of whole rows whose columns lie side by side in the source."""
        return _turns(*self.staging.dimensions[depth:])

    def _transpose(self, fn: FunctionBuilder, outer: Dimension, inner: Dimension, source: str, copy: str) -> None:
        """Squares of lanes x lanes are transposed in registers."""
        lanes = self.lanes

        def squares(first: str | int, rows: int) -> None:
            for start, count in _pieces(inner.extent, lanes):
                if count == lanes and start == 0:
                    with fn.loop(0, inner.extent // lanes * lanes, lanes) as loop:
                        self._square(fn, outer, inner, source, copy, first, rows, loop.index, lanes)
                elif count < lanes:
                    self._square(fn, outer, inner, source, copy, first, rows, start, count)

        whole = outer.extent // lanes * lanes
        if whole:
            with fn.loop(0, whole, lanes) as loop:
                squares(loop.index, lanes)
        if outer.extent > whole:
            squares(whole, outer.extent - whole)

    def _square(
        self, fn: FunctionBuilder, outer: Dimension, inner: Dimension, source: str, copy: str, first: str | int,
        rows: int, start: str | int, columns: int,
    ) -> None:  # fmt: skip
        """Rows first .. of the copy, elements start .. of each."""
        ops = VectorOps(fn, self.lanes, self.element)
        at_source = fn.gep(source, fn.affine([(1, first), (inner.stride, start)]), self.element)
        at_copy = fn.gep(copy, fn.affine([(outer.pitch, first), (1, start)]), self.element)
        read = [ops.load_first(fn.gep(at_source, k * inner.stride, self.element), rows) for k in range(columns)]
        read += [ops.constant(0)] * (self.lanes - columns)
        for row, values in enumerate(ops.transpose(read)[:rows]):
            ops.store_first(values, fn.gep(at_copy, row * outer.pitch, self.element), columns)

    def _elements(self, fn: FunctionBuilder, count: int, dimension: Dimension, source: str, copy: str) -> None:
        if dimension.stride != 1 or dimension.step != 1:
            with fn.loop(0, count) as loop:
                value = fn.load(self.element, fn.gep(source, fn.affine([(dimension.stride, loop.index)]), self.element))
                fn.store(self.element, value, fn.gep(copy, fn.affine([(dimension.step, loop.index)]), self.element))
            return
        self._vectors(fn, count, lambda ops, at, n: ops.store_first(ops.load_first(fn.gep(source, at, self.element), n),
                                                                   fn.gep(copy, at, self.element), n))  # fmt: skip

    def _zeros(self, fn: FunctionBuilder, copy: str, begin: int, end: int) -> None:
        if begin < end:
            start = fn.gep(copy, begin, self.element)
            self._vectors(
                fn, end - begin, lambda ops, at, n: ops.store_first(ops.constant(0), fn.gep(start, at, self.element), n)
            )

    def _vectors(self, fn: FunctionBuilder, count: int, body: Callable[[VectorOps, str | int, int], None]) -> None:
        ops = VectorOps(fn, self.lanes, self.element)
        whole = count // self.lanes * self.lanes
        if whole > 4 * self.lanes:
            with fn.loop(0, whole, self.lanes) as loop:
                body(ops, loop.index, self.lanes)
        else:
            for at in range(0, whole, self.lanes):
                body(ops, at, self.lanes)
        if count > whole:
            body(ops, whole, count - whole)


def _turns(outer: Dimension, inner: Dimension) -> bool:
    """Whether they are a matrix of whole rows whose columns lie side by side in the source."""
    whole = inner.low == 0 and inner.inside == (0, inner.extent)
    return whole and outer.step == inner.step == 1 and outer.stride == 1 and inner.stride != 1


def _pieces(extent: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(size, extent - start)) for start in range(0, extent, size)]
