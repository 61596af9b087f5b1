"""Panels of the wide operand, copied into scratch so that a micro-kernel reads them without gaps.

A panel holds, for each step of the sum in order, the tile's columns in whole vectors; columns past the edge are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fusegraph.codegen.cpu.irtext import FunctionBuilder, Module, element_bytes
from fusegraph.codegen.cpu.irvector import VectorOps

__all__ = ["PanelSource", "Packer"]


@dataclass(frozen=True)
class PanelSource:
    """Elements between columns, and (extent, elements) of each loop of the sum, outermost first."""

    column_stride: int
    steps: tuple[tuple[int, int], ...]

    @property
    def depth(self) -> int:
        """Steps of the sum in all."""
        count = 1
        for extent, _ in self.steps:
            count *= extent
        return count


class Packer:
    """Writes the packing functions of one loop into `module`: `@name(ptr %source, ptr %panel)`."""

    def __init__(self, module: Module, prefix: str, lanes: int, element: str, source: PanelSource) -> None:
        self.module, self.prefix, self.lanes, self.element, self.source = module, prefix, lanes, element, source

    def call(self, fn: FunctionBuilder, source: str, panel: str, columns: int) -> None:
        """Fill `panel` with `columns` columns (at least one) from `source`, the address of the first."""
        name = f"{self.prefix}_pack{columns}"
        if not self.module.has_function(name):
            self._define(name, columns)
        fn.call("void", name, [("ptr", source), ("ptr", panel)])

    def _define(self, name: str, columns: int) -> None:
        fn = self.module.function(name, ["ptr noalias %source", "ptr noalias %panel"], attrs="noinline")
        ops = VectorOps(fn, self.lanes, self.element)
        counts = [min(self.lanes, columns - at) for at in range(0, columns, self.lanes)]
        transposed = self.source.column_stride != 1 and bool(self.source.steps) and self.source.steps[-1][1] == 1
        self._nest(ops, counts, self.source.steps, "%source", "%panel", transposed)

    def _nest(
        self, ops: VectorOps, counts: Sequence[int], steps: Sequence[tuple[int, int]], source: str, panel: str, transposed: bool
    ) -> None:
        fn = ops.fn
        if transposed and len(steps) == 1:
            self._transpose(ops, counts, steps[0][0], source, panel)
        elif not steps:
            self._row(ops, counts, source, panel)
        else:
            (extent, stride), *inner = steps
            advance = self.lanes * len(counts)
            for inner_extent, _ in inner:
                advance *= inner_extent
            with fn.loop(0, extent) as loop:
                at_source = fn.gep(source, fn.affine([(stride, loop.index)]), self.element)
                at_panel = fn.gep(panel, fn.affine([(advance, loop.index)]), self.element)
                self._nest(ops, counts, inner, at_source, at_panel, transposed)

    def _row(self, ops: VectorOps, counts: Sequence[int], source: str, panel: str) -> None:
        """One step of the sum: copy (or gather) its columns."""
        fn, stride = ops.fn, self.source.column_stride
        for vector, count in enumerate(counts):
            at = fn.gep(source, vector * self.lanes * stride, self.element)
            if stride == 1:
                value = ops.load_first(at, count)
            else:
                lanes = [fn.load(self.element, fn.gep(at, lane * stride, self.element)) for lane in range(count)]
                value = ops.from_lanes(lanes + [ops.scalar_constant(0)] * (self.lanes - count))
            ops.store(value, fn.gep(panel, vector * self.lanes, self.element))

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

    def bytes(self, columns: int) -> int:
        """Size of a panel of this many columns."""
        vectors = -(-columns // self.lanes)
        return self.source.depth * vectors * self.lanes * element_bytes(self.element)
