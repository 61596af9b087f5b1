"""Running a compiled step: the table of addresses, the arena, and the call.

A `StepLayout` says, in plain data that a cache file can hold, what a step's native code expects. `NativeStep` is loaded code
with its memory: `run(inputs)` fills the table, calls, and gives the outputs.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fusegraph.errors import CompilerError
from fusegraph.ir.loops import Buffer, Check, Guard
from fusegraph.runtime import llvm
from fusegraph.runtime.guards import check_computed, check_guard
from fusegraph.runtime.memory import CACHE_LINE, Arena, aligned_empty
from fusegraph.runtime.pool import default_pool
from fusegraph.runtime.threads import get_num_threads
from fusegraph.runtime.threads_choice import ThreadChoice

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Slot:
    """One address of the table: a buffer of this role, shape and dtype."""

    name: str
    role: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class StepLayout:
    """What native code expects. `inputs`: names in argument order; `outputs`: names in result order."""

    slots: tuple[Slot, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    guards: tuple[Guard, ...]
    arena_bytes: int
    workspace_bytes: int
    kernels: tuple[str, ...]
    barriers: int
    unshared_bytes: int
    checks: tuple[Check, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> StepLayout:
        """From JSON data. Raises KeyError or TypeError when it is not a layout."""
        slots = tuple(Slot(s["name"], s["role"], tuple(s["shape"]), s["dtype"]) for s in data["slots"])
        guards = tuple(Guard(**guard) for guard in data["guards"])
        rest = {key: data[key] for key in ("arena_bytes", "workspace_bytes", "barriers", "unshared_bytes")}
        checks = tuple(Check(**{**check, "inputs": tuple(check["inputs"])}) for check in data["checks"])
        return StepLayout(slots, tuple(data["inputs"]), tuple(data["outputs"]), guards, kernels=tuple(data["kernels"]), checks=checks, **rest)


TABLE_FIRST, TABLE_ERROR = 3, 2


def address_of(array: Array) -> int:
    """The address of an array's first element."""
    return array.ctypes.data  # type: ignore[no-any-return]


class NativeStep:
    """Native code of a step with its memory. One call at a time: concurrent callers wait for each other."""

    def __init__(self, code: bytes, layout: StepLayout) -> None:
        self.layout = layout
        self.code = llvm.load(code, ("step",))
        self.arena = Arena(layout.arena_bytes)
        self._lock = threading.Lock()
        self._table = aligned_empty(TABLE_FIRST + len(layout.slots), np.int64)
        self._table[:] = 0
        self._table[0] = self.arena.address
        self._pointer = address_of(self._table)
        place = {slot.name: TABLE_FIRST + i for i, slot in enumerate(layout.slots)}
        slots = {slot.name: slot for slot in layout.slots}
        self._input_places = [place[name] for name in layout.inputs]
        made = [slot for slot in layout.slots if slot.role == "output"]
        self._outputs = [(place[slot.name], slot.shape, np.dtype(slot.dtype)) for slot in made]
        order = [slot.name for slot in made]
        self._result_order = [order.index(name) for name in layout.outputs]
        self._slots = slots
        self._bound: list[Array | None] = [None] * len(layout.inputs)
        self.choice = ThreadChoice(default_pool().bind(self.code.address("step"), owner=self.code))
        self._workspace: Arena | None = None
        self._workspace_threads = 0

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run the step on arrays in the order of `layout.inputs` (C-contiguous, of the right types); states change in place.

        Raises IndexRangeError when an index argument is out of range; nothing has been changed then.
        """
        table, bound = self._table, self._bound
        with self._lock:
            for check in self.layout.checks:
                check_computed(check, dict(zip(self.layout.inputs, inputs, strict=True)))
            for i, array in enumerate(inputs):
                if array is not bound[i]:
                    table[self._input_places[i]] = array.ctypes.data
                    bound[i] = array
            results = []
            for place, shape, dtype in self._outputs:
                made = np.empty(shape, dtype)
                table[place] = made.ctypes.data
                results.append(made)
            if self._workspace_threads != get_num_threads():
                self._grow(get_num_threads())
            self.choice.call(self._pointer)
            if self.layout.guards and table[TABLE_ERROR]:
                table[TABLE_ERROR] = 0
                self._explain_guard(inputs)
        return [results[i] for i in self._result_order]

    def _explain_guard(self, inputs: Sequence[Array]) -> None:
        """Raise the IndexRangeError that the native check found."""
        arrays = dict(zip(self.layout.inputs, inputs, strict=True))
        for guard in self.layout.guards:
            slot = self._slots[guard.buffer]
            check_guard(guard, Buffer(slot.name, slot.shape, np.dtype(slot.dtype), slot.role), arrays[guard.buffer])
        raise CompilerError("a check of an index argument failed in native code, but not in numpy")

    def _grow(self, threads: int) -> None:
        """A workspace for each thread."""
        self._workspace = Arena(self.layout.workspace_bytes * max(threads, 1) + CACHE_LINE)
        self._workspace_threads = threads
        self._table[1] = self._workspace.address
