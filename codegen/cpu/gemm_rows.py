"""Panels of the narrow operand: the rows of a tile side by side for each step of the sum.

In a weight gradient the sum runs over the rows of both operands, so that a tile's rows lie side by side in memory and
the steps of its sum a whole row of the matrix apart, often in the same few sets of the cache. The matrix is read once,
along its rows, and written tile by tile as a micro-kernel reads it (the packing of A in Goto and van de Geijn, "Anatomy
of high-performance matrix multiplication", 2008).
"""

from __future__ import annotations

from collections.abc import Mapping

from fusegraph.codegen.cpu.contract_plan import Operand, extent_of
from fusegraph.codegen.cpu.gemm_tile import Split
from fusegraph.codegen.cpu.irtext import FunctionBuilder, Module, element_bytes
from fusegraph.codegen.cpu.irvector import VectorOps
from fusegraph.codegen.cpu.run_time import SIZE, bound
from fusegraph.ir.index import Axis, Index
from fusegraph.records import dataclass

__all__ = ["RowPacker", "RowPanels", "row_panels"]

_APART = 16  # elements between two panels: whole vectors are stored, and the same step of all panels is not in one set
_MAX_ELEMENTS = 1 << 21


@dataclass(frozen=True)
class RowPanels:
    """A copy of an operand whose rows are neighbours in memory, in panels of the rows of a tile.

    source   what is left of the address outside of rows and sums
    sums     (axis, elements that the source advances by) of each loop of the sum, outermost first
    """

    buffer: str
    source: Index
    sums: tuple[tuple[Axis, int], ...]
    split: Split

    @property
    def axes(self) -> frozenset[Axis]:
        """The copy is made anew for each point of these."""
        return self.source.axes

    @property
    def depth(self) -> int:
        """Steps of the sum."""
        return extent_of(axis for axis, _ in self.sums)

    @property
    def pitch(self) -> int:
        """Elements between two panels."""
        return self.depth * self.split.size + _APART

    @property
    def elements(self) -> int:
        """Size of the copy."""
        return self.split.count * self.pitch

    @property
    def contiguous(self) -> bool:
        """Neighbours in the copy are neighbours in the source."""
        return True

    @property
    def rows(self) -> int:
        """Of the first loop of the sum, if its extent is known at run time only (see Axis)."""
        return self.sums[0][0].rows

    @property
    def can_be_sized(self) -> bool:
        """Whether at most the first loop of the sum has an extent known at run time only."""
        return not any(axis.rows for axis, _ in self.sums[1:])

    def operand(self) -> Operand:
        """The first row of a panel in the copy."""
        flat, step = Index(), self.split.size
        for axis, _ in reversed(self.sums):
            flat = flat + Index.of(axis) * step
            step *= axis.extent
        return Operand(self.buffer, flat)


def row_panels(operand: Operand, row: Axis, sums: tuple[Axis, ...], split: Split) -> RowPanels | None:
    """Panels of an unmasked affine operand whose stride along `row` is one; None if they would be too large."""
    rest = operand.flat - Index.of(row)
    for axis in sums:
        rest = rest - Index.of(axis) * operand.stride(axis)
    panels = RowPanels(operand.buffer, rest, tuple((axis, operand.stride(axis)) for axis in sums), split)
    return panels if panels.elements <= _MAX_ELEMENTS else None


class RowPacker:
    """Writes `@name(ptr %source, ptr %copy, i64 %first, i64 %end)`, which makes the panels first .. end of a copy."""

    def __init__(self, module: Module, name: str, lanes: int, element: str, staging: RowPanels) -> None:
        self.module, self.name, self.lanes, self.element, self.staging = module, name, lanes, element, staging

    @property
    def nbytes(self) -> int:
        """Memory of the copy."""
        return -(-self.staging.elements * element_bytes(self.element) // 64) * 64

    def call(self, fn: FunctionBuilder, base: str, coordinates: Mapping[Axis, str], copy: str) -> None:
        """Make all panels from the buffer at `base`, for the point `coordinates` of the copy's axes."""
        self.call_tiles(fn, base, coordinates, copy, "0", str(self.staging.split.count))

    def call_tiles(
        self, fn: FunctionBuilder, base: str, coordinates: Mapping[Axis, str], copy: str, first: str, end: str
    ) -> None:
        """Make the panels of the tiles first .. end alone."""
        staging = self.staging
        if not self.module.has_function(self.name):
            self._define()
        terms = [(factor, coordinates[axis]) for axis, factor in staging.source.terms if isinstance(axis, Axis)]
        source = fn.gep(base, fn.affine(terms, staging.source.constant), self.element)
        size = [("i64", SIZE)] if staging.rows else []
        fn.call("void", self.name, [("ptr", source), ("ptr", copy), ("i64", first), ("i64", end), *size])

    def _define(self) -> None:
        params = ["ptr noalias %source", "ptr noalias %copy", "i64 %first", "i64 %end"]
        params += [f"i64 {SIZE}"] if self.staging.rows else []
        fn = self.module.function(self.name, params, attrs="noinline")
        self._steps(fn, 0, self.staging.depth * self.staging.split.size, "%source", "%copy")

    def _steps(self, fn: FunctionBuilder, depth: int, size: int, source: str, copy: str) -> None:
        """The loops of the sum from number `depth` on; `size`: elements of a panel that they fill."""
        if depth == len(self.staging.sums):
            self._rows(fn, source, copy)
            return
        axis, stride = self.staging.sums[depth]
        step = size // axis.extent
        with fn.loop(0, bound(fn, axis)) as loop:
            at_source = fn.gep(source, fn.affine([(stride, loop.index)]), self.element)
            at_copy = fn.gep(copy, fn.affine([(step, loop.index)]), self.element)
            self._steps(fn, depth + 1, step, at_source, at_copy)

    def _rows(self, fn: FunctionBuilder, source: str, copy: str) -> None:
        """One step of the sum of every panel. What a vector has too much, the next step overwrites."""
        ops, split = VectorOps(fn, self.lanes, self.element), self.staging.split
        for begin, end, size in split.sizes():
            low, high = fn.max_i64("%first", str(begin)), fn.min_i64("%end", str(end))
            with fn.loop(low, high) as loop:
                at_source = fn.gep(source, fn.affine([(size, loop.index)], split.start(size)), self.element)
                at_copy = fn.gep(copy, fn.affine([(self.staging.pitch, loop.index)]), self.element)
                for at in range(0, size, self.lanes):
                    values = ops.load_first(fn.gep(at_source, at, self.element), min(self.lanes, size - at))
                    ops.store(values, fn.gep(at_copy, at, self.element))
