"""Panels of the wide operand, copied into scratch so that a micro-kernel reads them without gaps.

A panel holds, for each step of the sum in order, the tile's columns in whole vectors; columns past the edge are zero.
Columns that lie side by side are copied, columns that lie along the sum are transposed in registers, and columns at
irregular places (the windows of a convolution, where a vector spans two rows of the image) are put together from two
contiguous pieces, or element by element.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from fusegraph.codegen.cpu.irtext import FunctionBuilder, Module, element_bytes
from fusegraph.codegen.cpu.irvector import VectorOps
from fusegraph.codegen.cpu.run_time import SIZE, bound
from fusegraph.ir.index import Axis
from fusegraph.records import dataclass

__all__ = ["Packer", "PanelSource", "in_two_pieces"]


@dataclass(frozen=True)
class PanelSource:
    """Elements between columns, or the place of each column, and (extent, elements) of each loop of the sum.

    sized: the axis of the first loop, if its extent is known at run time only.
    """

    column_stride: int
    column_table: tuple[int, ...]
    steps: tuple[tuple[int, int], ...]
    sized: Axis | None = None

    @property
    def depth(self) -> int:
        """Steps of the sum in all."""
        count = 1
        for extent, _ in self.steps:
            count *= extent
        return count

    @property
    def can_be_sized(self) -> bool:
        """Whether its first loop may have an extent that is known at run time only: not where that is the one transposed."""
        return not self.transposed or len(self.merged().steps) > 1

    @property
    def transposed(self) -> bool:
        """Whether the sum runs along memory and the columns do not."""
        return not self.column_table and self.column_stride != 1 and bool(self.steps) and self.steps[-1][1] == 1

    def merged(self) -> PanelSource:
        """With loops of the sum joined where memory allows."""
        steps: list[tuple[int, int]] = []
        for extent, stride in self.steps:
            if steps and steps[-1][1] == extent * stride and not (self.sized is not None and len(steps) == 1):
                steps[-1] = steps[-1][0] * extent, stride
            else:
                steps.append((extent, stride))
        return PanelSource(self.column_stride, self.column_table, tuple(steps), self.sized)


@lru_cache(maxsize=256)
def in_two_pieces(table: tuple[int, ...], lanes: int) -> bool:
    """Whether every vector of columns consists of at most two contiguous pieces."""
    for start in range(0, len(table), lanes):
        part = table[start : start + lanes]
        breaks = sum(after != before + 1 for before, after in zip(part, part[1:], strict=False))
        if breaks > 1 or any(after < before for before, after in zip(part, part[1:], strict=False)):
            return False
    return True


class Packer:
    """Writes the packing functions of one loop into `module`: `@name(ptr %source, ptr %panel, i64 %column)`.

    %source is the address of the panel's first column; with a table of columns, of column 0.
    """

    def __init__(self, module: Module, prefix: str, lanes: int, element: str, source: PanelSource) -> None:
        self.module, self.prefix, self.lanes, self.element = module, prefix, lanes, element
        self.source = source.merged()
        self.pieces = in_two_pieces(source.column_table, lanes)

    def call(self, fn: FunctionBuilder, source: str, panel: str, column: str, columns: int) -> None:
        """Fill `panel` with `columns` columns (at least one), the first of which is number `column`."""
        name = f"{self.prefix}_pack{columns}"
        if not self.module.has_function(name):
            self._define(name, columns)
        size = [("i64", SIZE)] if self.source.sized is not None else []
        fn.call("void", name, [("ptr", source), ("ptr", panel), ("i64", column), *size])

    def bytes(self, columns: int) -> int:
        """Size of a panel of this many columns."""
        vectors = -(-columns // self.lanes)
        return self.source.depth * vectors * self.lanes * element_bytes(self.element)

    def _define(self, name: str, columns: int) -> None:
        params = ["ptr noalias %source", "ptr noalias %panel", "i64 %column"]
        params += [f"i64 {SIZE}"] if self.source.sized is not None else []
        fn = self.module.function(name, params, attrs="noinline")
        ops = VectorOps(fn, self.lanes, self.element)
        counts = [min(self.lanes, columns - at) for at in range(0, columns, self.lanes)]
        places = [self._places(ops, at * self.lanes, count) for at, count in enumerate(counts)]
        steps: list[tuple[int | str, int]] = list(self.source.steps)
        if self.source.sized is not None:
            steps[0] = bound(fn, self.source.sized), steps[0][1]
        self._nest(ops, counts, places, steps, "%source", "%panel")

    def _nest(
        self, ops: VectorOps, counts: Sequence[int], places: Sequence[_Places], steps: Sequence[tuple[int | str, int]],
        source: str, panel: str,
    ) -> None:  # fmt: skip
        fn = ops.fn
        if self.source.transposed and len(steps) == 1 and isinstance(steps[0][0], int):
            self._transpose(ops, counts, steps[0][0], source, panel)
        elif not steps:
            for vector, count in enumerate(counts):
                value = places[vector].load(ops, source, count)
                ops.store(value, fn.gep(panel, vector * self.lanes, self.element))
        else:
            (extent, stride), *inner = steps
            advance = self.lanes * len(counts)
            for inner_extent, _ in inner:
                advance *= int(inner_extent)  # only the first loop's is known at run time
            with fn.loop(0, extent) as loop:
                at_source = fn.gep(source, fn.affine([(stride, loop.index)]), self.element)
                at_panel = fn.gep(panel, fn.affine([(advance, loop.index)]), self.element)
                self._nest(ops, counts, places, inner, at_source, at_panel)

    def _places(self, ops: VectorOps, start: int, count: int) -> _Places:
        """Where the columns from `start` on lie."""
        if not self.source.column_table:
            return _Regular(start * self.source.column_stride, self.source.column_stride)
        table = [*self.source.column_table, *([self.source.column_table[-1]] * self.lanes)]
        text = ", ".join(f"i64 {offset}" for offset in table)
        name = self.module.add_global(f"{self.prefix}_columns", f"internal constant [{len(table)} x i64] [{text}]")
        fn = ops.fn
        at = fn.gep(name, fn.affine([(1, "%column")], start), "i64")
        offsets = ops.of("i64").load(at)
        if not self.pieces:
            return _Scattered(offsets)
        first, last = ops.of("i64").extract(offsets, 0), ops.of("i64").extract(offsets, count - 1)
        return _TwoPieces(ops, offsets, first, fn.affine([(1, last)], 1 - count))

    def _transpose(self, ops: VectorOps, counts: Sequence[int], extent: int, source: str, panel: str) -> None:
        """The sum runs along memory: squares of lanes x lanes are transposed in registers."""
        whole = extent // self.lanes * self.lanes
        if whole:
            with ops.fn.loop(0, whole, self.lanes) as loop:
                self._squares(ops, counts, self.lanes, source, panel, loop.index)
        if whole < extent:
            self._squares(ops, counts, extent - whole, source, panel, str(whole))

    def _squares(self, ops: VectorOps, counts: Sequence[int], depth: int, source: str, panel: str, start: str) -> None:
        fn, width = ops.fn, self.lanes * len(counts)
        at_source = fn.gep(source, start, self.element)
        at_panel = fn.gep(panel, fn.affine([(width, start)]), self.element)
        for vector, count in enumerate(counts):
            rows = []
            for lane in range(self.lanes):
                at = fn.gep(at_source, (vector * self.lanes + lane) * self.source.column_stride, self.element)
                rows.append(ops.load_first(at, depth) if lane < count else ops.constant(0))
            for k, row in enumerate(ops.transpose(rows)[:depth]):
                ops.store(row, fn.gep(at_panel, k * width + vector * self.lanes, self.element))


class _Places:
    """Where the columns of one vector lie, relative to the current step's address."""

    def load(self, ops: VectorOps, source: str, count: int) -> str:
        """The vector's first `count` columns, zero in the further lanes."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Regular(_Places):
    offset: int
    stride: int

    def load(self, ops: VectorOps, source: str, count: int) -> str:
        fn = ops.fn
        at = fn.gep(source, self.offset, ops.element)
        if self.stride == 1:
            return ops.load_first(at, count)
        lanes = [fn.load(ops.element, fn.gep(at, lane * self.stride, ops.element)) for lane in range(count)]
        return ops.from_lanes(lanes + [ops.scalar_constant(0)] * (ops.lanes - count))


@dataclass(frozen=True)
class _Scattered(_Places):
    offsets: str

    def load(self, ops: VectorOps, source: str, count: int) -> str:
        lanes = []
        for lane in range(count):
            offset = ops.of("i64").extract(self.offsets, lane)
            lanes.append(ops.fn.load(ops.element, ops.fn.gep(source, offset, ops.element)))
        return ops.from_lanes(lanes + [ops.scalar_constant(0)] * (ops.lanes - count))


class _TwoPieces(_Places):
    """Lanes of the first piece lie from `first` on, the others so that the last one is at its place."""

    def __init__(self, ops: VectorOps, offsets: str, first: str, second: str) -> None:
        self.first, self.second, self.lane_by_lane = first, second, _Scattered(offsets)
        wide = ops.of("i64")
        self.in_first = wide.compare("eq", offsets, wide.iota(first))

    def load(self, ops: VectorOps, source: str, count: int) -> str:
        fn = ops.fn
        if count == ops.lanes:
            head, tail = fn.gep(source, self.first, ops.element), fn.gep(source, self.second, ops.element)
            return ops.select(self.in_first, ops.load(head), ops.load(tail))
        return self.lane_by_lane.load(ops, source, count)  # LLVM 22 may drop a mask that it finds out late to be false
