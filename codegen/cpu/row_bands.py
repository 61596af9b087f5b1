"""Row kernels under a causal mask, in bands of rows, each as wide as its rows can see.

    for r < 64:  softmax over 64 columns     ->     for r < 16:       softmax over 16 columns, and 48 zeros
                                                    for r = 16 .. 31: softmax over 32 columns, and 32 zeros ...

What a mask hides is -inf before exp and 0 behind it (see masks.py), so that maxima and sums over what a row can see are those
of the whole row. Half of the exponentials of causal attention are those of -inf.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fusegraph.codegen.cpu.masks import lowest_outside, zero_value_outside
from fusegraph.codegen.cpu.nest_rewrite import inner_axes
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Loop, Program, Reduce, Stage, Store
from fusegraph.ir.scalar import const, substitute
from fusegraph.records import dataclass, replace

__all__ = ["RowBands", "find_row_bands"]

_BANDS = 4  # each is code of its own
_LEAST_ROWS = 16  # of a band: two vectors of columns
_LEAST_COLUMNS = 32
_LEAST_ELEMENTS = 1 << 15  # of the loop: with fewer, the code for the bands costs more to compile than it saves


@dataclass(frozen=True)
class RowBands:
    """Row r of `row` sees columns 0 .. r + offset; `outer`: points of the axes outside of the rows."""

    row: Axis
    offset: int
    outer: int

    def loops(self, loop: Loop, program: Program) -> list[Loop]:
        """A loop for each band; together they do what `loop` does."""
        size = -(-self.row.extent // (_BANDS * _LEAST_ROWS)) * _LEAST_ROWS
        return [self._band(loop, program, first, min(size, self.row.extent - first))
                for first in range(0, self.row.extent, size)]  # fmt: skip

    def _band(self, loop: Loop, program: Program, first: int, rows: int) -> Loop:
        """Rows first .. first + rows - 1."""
        row = Axis(f"{self.row.name}_from{first}", rows)
        space = tuple(row if axis is self.row else axis for axis in loop.space)
        stages: list[Stage] = []
        for stage in loop.stages:
            inner = inner_axes(stage)
            seen = min(inner[0].extent, first + rows + self.offset) if inner else 0
            axes = {self.row: Index.of(row) + first}
            if inner:
                axes[inner[0]] = Index.of(Axis(f"{inner[0].name}_below{seen}", seen))
            stages.append(_substituted(stage, axes))
            stages += self._zeros(stage, program, Index.of(row) + first, seen)
        return replace(loop, space=space, stages=tuple(stages))

    def _zeros(self, stage: Stage, program: Program, row: Index, seen: int) -> list[Stage]:
        """What is stored to the columns that no row of the band sees."""
        stores = [store for store in stage.stores if program.buffers[store.buffer].role != "local"]
        if not stores or not stage.axes or seen == stage.axes[0].extent:
            return []
        rest = Axis(f"{stage.axes[0].name}_from{seen}", stage.axes[0].extent - seen)
        at = {self.row: row, stage.axes[0]: Index.of(rest) + seen}
        zeros = tuple(
            Store(s.buffer, tuple(part.substitute(at) for part in s.index), const(0.0, s.value.dtype), "store")
            for s in stores
        )
        return [Stage((rest,), (), (), zeros)]


def find_row_bands(loop: Loop, program: Program) -> RowBands | None:
    """The bands of a loop whose every stage is masked along the same row axis; None if there are none, or they do not pay."""
    if loop.schedule != "nest" or loop.sized or len(loop.space) < 2 or not any(stage.reduces for stage in loop.stages):
        return None
    masks: set[tuple[Axis, int] | None] = set()
    for stage in loop.stages:
        if inner_axes(stage):
            masks.add(_mask_of(stage, loop, program))
            if None in masks:
                return None
    mask = masks.pop() if len(masks) == 1 else None
    if mask is None:
        return None
    row, offset = mask
    outer = math.prod(axis.extent for axis in loop.space[: loop.space.index(row)])
    columns = {axis.extent for stage in loop.stages for axis in inner_axes(stage)}
    pays = row.extent >= 2 * _LEAST_ROWS and max(columns) >= _LEAST_COLUMNS and outer > 1 and len(columns) == 1
    pays = pays and outer * row.extent * max(columns) >= _LEAST_ELEMENTS
    return RowBands(row, offset, outer) if pays and offset >= 0 else None


def _mask_of(stage: Stage, loop: Loop, program: Program) -> tuple[Axis, int] | None:
    """(row, offset) where the stage's one inner axis counts up to row + offset: it stores 0 behind that, and adds nothing."""
    inner = inner_axes(stage)
    if len(inner) != 1 or any(store.mode != "store" for store in stage.stores):
        return None
    found = {_reduce_mask(reduce, loop, program) for reduce in stage.reduces}
    for store in stage.stores:
        if program.buffers[store.buffer].role not in ("temp", "local") or inner[0] not in _axes_of(store.index):
            return None
        found.add(zero_value_outside(store.value, program, loop))
    index = found.pop() if len(found) == 1 else None
    rows = [] if index is None else [axis for axis in index.axes if axis is not inner[0]]
    if index is None or not index.is_affine or len(rows) != 1 or rows[0] not in loop.space:
        return None
    if index.coefficient(inner[0]) != -1 or index.coefficient(rows[0]) != 1:
        return None
    return rows[0], index.constant


def _reduce_mask(reduce: Reduce, loop: Loop, program: Program) -> Index | None:
    """Where the index is < 0, the reduction is given what does not change it."""
    if reduce.op == "max":
        return lowest_outside(reduce.value, program, loop)
    return zero_value_outside(reduce.value, program, loop) if reduce.op == "sum" else None


def _axes_of(index: Sequence[Index]) -> frozenset[Axis]:
    return frozenset().union(*(part.axes for part in index))


def _substituted(stage: Stage, mapping: dict[Axis, Index]) -> Stage:
    def axes(old: Sequence[Axis]) -> tuple[Axis, ...]:
        kept = (mapping.get(axis, Index.of(axis)).axis for axis in old)
        return tuple(axis for axis in kept if axis is not None)

    values = iter(substitute(stage.expressions(), mapping))
    reduces = tuple(replace(reduce, value=next(values)) for reduce in stage.reduces)
    stores = tuple(
        replace(store, index=tuple(part.substitute(mapping) for part in store.index), value=next(values))
        for store in stage.stores
    )
    return Stage(axes(stage.axes), axes(stage.reduce_axes), reduces, stores)
