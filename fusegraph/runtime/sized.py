"""Steps whose code serves every number of rows up to the one that its memory is laid out for.

A `SizedStep` is such a step for one number of rows: a table of its own, and the code, the arena and the lock of the others.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusegraph.runtime.executable import TABLE_ARENA, TABLE_FIRST, TABLE_SIZE, TABLE_WORKSPACE, NativeStep, _steps
from fusegraph.runtime.threads_choice import ThreadChoice

Array = np.ndarray[Any, Any]


class SizedStep(NativeStep):
    """`step`, which is never run itself, for calls with `size` rows. One call of all sizes at a time.

    constants  arrays of what the function computes from the number of rows (1 / n, say): the last inputs of the code
    shapes     of the outputs
    """

    def __init__(
        self, step: NativeStep, size: int, constants: Sequence[Array], shapes: Sequence[tuple[int, ...]]
    ) -> None:
        layout = step.layout
        self.layout, self.code, self.arena, self.lock = layout, step.code, step.arena, step.lock
        self.entry, self.address_of, self._slots = step.entry, step.address_of, step._slots
        self.size, self.constants, self._step = size, tuple(constants), step
        words = (ctypes.c_int64 * (TABLE_FIRST + len(layout.slots)))()
        self.pointer = ctypes.addressof(words)
        self.table = memoryview(words).cast("B").cast("q")
        self.table[TABLE_ARENA], self.table[TABLE_SIZE] = self.arena.address, size
        self._place_arguments(shapes)
        given = len(self.input_places) - len(self.constants)
        for place, array in zip(self.input_places[given:], self.constants, strict=True):
            self.table[place] = self.address_of(array)
        self.input_places = self.input_places[:given]
        self.choice = ThreadChoice(step.bound, prepare=self._grow)
        _steps.add(self)

    def _grow(self, threads: int) -> None:
        self._workspace = self._step.workspace_for(threads)
        self.table[TABLE_WORKSPACE] = self._workspace.address
