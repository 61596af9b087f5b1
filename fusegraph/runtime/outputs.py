"""Arrays for the results of a step. Large ones start at a cache line, and their memory serves again when nobody holds them.

A fresh array of megabytes costs more than a kernel that fills it: the system clears every page when it is first touched.
A result is a view of a block that is kept here; while a view of it, or anything made of one (a slice, a memoryview, a DLPack
capsule), is alive, it holds a reference to the block, and the block stays as it is.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from fusegraph.runtime.memory import CACHE_LINE

Array = np.ndarray[Any, Any]

REUSED_FROM = 128 * 1024  # bytes; up to here memory comes from lists of freed pieces, touched already
KEPT = 2  # blocks: a loop that keeps the last call's result during the next one needs two


def _reuses() -> bool:
    """Whether reference counts can be relied on: without the lock of the interpreter other threads change them meanwhile."""
    return sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()


class OutputMemory:
    """Makes the arrays for one output of a step. `make()` gives one (C-contiguous, uninitialised) that nobody else has.

    Call it under the step's lock. The last `KEPT` blocks live as long as this instance.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._shape, self._dtype = shape, dtype
        self._reuses = _reuses()
        self._nbytes = math.prod(shape) * dtype.itemsize
        self._blocks: list[tuple[Array, int]] = []

    def make(self) -> Array:
        """An array; its content is arbitrary."""
        for number in range(len(self._blocks)) if self._reuses else ():
            if _references(self._blocks, number) == _UNUSED:
                block, start = self._blocks[number]
                break
        else:
            block = np.empty(self._nbytes + CACHE_LINE, np.uint8)
            start = -block.ctypes.data % CACHE_LINE
            if self._reuses:
                self._blocks = [*self._blocks[1 - KEPT :], (block, start)]
        return np.ndarray(self._shape, self._dtype, block, start)


def _references(blocks: list[tuple[Array, int]], number: int) -> int:
    """References to a block, those of this very question among them."""
    block = blocks[number][0]
    return sys.getrefcount(block)


def output_memory(shape: tuple[int, ...], dtype: np.dtype[Any]) -> OutputMemory | None:
    """Memory for an output of this size; None where any fresh array is as good."""
    return OutputMemory(shape, dtype) if math.prod(shape) * dtype.itemsize >= REUSED_FROM else None


_UNUSED = _references([(np.empty(0, np.uint8), 0)], 0)  # of a block that nobody else holds
