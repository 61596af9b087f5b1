"""What follows the sum of a contraction, evaluated on the accumulators of one tile.

A micro-kernel ends with a tile of accumulators, rows x vectors. For each row the stages after the sum are evaluated on
all of its vectors at once. What does not depend on the row (a bias along the columns) is computed once a tile, what
does not depend on the column (a bias along the rows) once a row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from fusegraph.codegen.cpu.body import Copy, Evaluator, Frame, Position
from fusegraph.codegen.cpu.irtext import FunctionBuilder, Module
from fusegraph.codegen.cpu.nest_canonical import flat_stages, stage_roots
from fusegraph.codegen.cpu.nest_plan import stage_weight
from fusegraph.codegen.cpu.nest_range import mark_exps
from fusegraph.ir.index import Axis
from fusegraph.ir.loops import Loop, Program, Stage
from fusegraph.ir.scalar import acc

__all__ = ["Epilogue", "epilogue_weight"]


def epilogue_weight(stages: Sequence[Stage]) -> float:
    """Instructions of the epilogue of one vector, roughly."""
    return sum(stage_weight(stage) for stage in stages)


_LONG = 30.0  # instructions of an epilogue that is evaluated on all vectors of a row as on one long vector


class Epilogue:
    """Writes the stages after the sum of `loop` into a function that knows the tile's place.

    coordinates   the value of every space axis at the tile's first element
    pointers      the base address of each buffer
    counts        how many lanes of each vector lie inside of the output
    """

    def __init__(
        self, fn: FunctionBuilder, module: Module, loop: Loop, program: Program, pointers: Mapping[str, str],
        coordinates: Mapping[Axis, str], row: Axis | None, column: Axis, lanes: int, counts: Sequence[int], exact: bool,
    ) -> None:  # fmt: skip
        self._e = Evaluator(fn, module, program.buffers, pointers, loop.writes(), exact)
        stages = flat_stages(loop.stages[1:], program.buffers)
        self._stages = stages if exact else mark_exps(stages)
        self._row, self._coordinates = row, coordinates
        reduce = loop.stages[0].reduces[0]
        self._acc = acc(reduce.name, reduce.dtype)
        if len(counts) in (2, 4) and set(counts) == {lanes} and epilogue_weight(self._stages) > _LONG:
            lanes, counts = lanes * len(counts), (lanes * len(counts),)
        self._copies = tuple(
            Copy(coordinates[column], vector * lanes, lanes, count) for vector, count in enumerate(counts)
        )
        self._frame = Frame(column, lanes, True, self._copies)

    @contextlib.contextmanager
    def tile(self) -> Iterator[None]:
        """Around all rows of a tile: what they share is computed here."""
        fixed = {axis: Position(name) for axis, name in self._coordinates.items() if axis is not self._row}
        with self._e.scope(fixed), self._e.framed(self._frame):
            self._hoist()
            yield

    def row(self, position: Position | None, accumulators: Sequence[str]) -> None:
        """Evaluate on the vectors of one row (None: the output has no row axis)."""
        here = {} if position is None or self._row is None else {self._row: position}
        with self._e.scope(here), self._e.point():
            for copy, value in zip(self._copies, self._in_copies(accumulators), strict=True):
                self._e.bind_accumulator(self._acc, copy, value)
            for stage in self._stages:
                self._stage(stage)

    def _in_copies(self, accumulators: Sequence[str]) -> Sequence[str]:
        """The accumulators of a row, put together where one copy holds all of its vectors."""
        parts = list(accumulators)
        while len(parts) > len(self._copies):
            v = self._e.ops(self._copies[0].lanes // len(parts)).of(self._acc.dtype)
            lanes = range(2 * v.lanes)
            parts = [v.shuffle(a, b, lanes) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return parts

    def _hoist(self) -> None:
        for stage in self._stages:
            self._e.hoist(stage_roots(stage), stage.stores)

    def _stage(self, stage: Stage) -> None:
        values = [(store, copy, self._e.vector(store.value, copy)) for copy in self._copies for store in stage.stores]
        for store, copy, value in values:
            self._e.memory.store(store, copy, value)
        self._e.forget_loads(store.buffer for store in stage.stores)
        for store, copy, value in values:
            self._e.forward_store(store, copy, value)
