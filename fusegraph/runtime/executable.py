"""Running a compiled step: the table of addresses, the arena, and the call.

A `StepLayout` says, in plain data that a cache file can hold, what a step's native code expects. `NativeStep` is loaded code
with its memory: `run(inputs)` fills the table, calls, and gives the outputs.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np

from fusegraph.errors import CompilerError
from fusegraph.ir.guard import Check, Guard
from fusegraph.records import dataclass
from fusegraph.runtime.memory import CACHE_LINE, Arena
from fusegraph.runtime.object_loader import load
from fusegraph.runtime.outputs import output_memory
from fusegraph.runtime.pool import default_pool
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
    """What native code expects. `inputs`: names in argument order; `outputs`: names in result order.

    data_field: the table has addresses of array objects, where the data's address stands so many bytes in; None: it has that.
    """

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
    data_field: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> StepLayout:
        """From JSON data. Raises KeyError or TypeError when it is not a layout."""
        slots = tuple(Slot(s["name"], s["role"], tuple(s["shape"]), s["dtype"]) for s in data["slots"])
        guards = tuple(Guard(**guard) for guard in data["guards"])
        rest = {
            key: data[key] for key in ("arena_bytes", "workspace_bytes", "barriers", "unshared_bytes", "data_field")
        }
        checks = tuple(Check(**{**check, "inputs": tuple(check["inputs"])}) for check in data["checks"])
        return StepLayout(
            slots,
            tuple(data["inputs"]),
            tuple(data["outputs"]),
            guards,
            kernels=tuple(data["kernels"]),
            checks=checks,
            **rest,
        )


TABLE_ARENA, TABLE_WORKSPACE, TABLE_ERROR, TABLE_SIZE, TABLE_FIRST = 0, 1, 2, 3, 4  # as in codegen.cpu.step


def address_of(array: Array) -> int:
    """The address of an array's first element."""
    return array.ctypes.data  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def data_field() -> int | None:
    """Where, in an array object, its data's address stands (part of numpy's binary interface); None where id() is no address.

    With it native code takes array objects: `array.ctypes.data` alone would take longer than the rest of a small call.
    """
    field = object.__basicsize__  # right behind the object's head
    probe = np.zeros(3, np.int64)
    if sys.implementation.name != "cpython":
        return None
    known = all(
        ctypes.c_size_t.from_address(id(array) + field).value == address_of(array) for array in (probe, probe[1:])
    )
    return field if known else None


class NativeStep:
    """Native code of a step with its memory. One call at a time: concurrent callers wait for each other.

    `shapes`: of the outputs, where they are to differ from the layout's (by axes of size 1, say).

    table, pointer, lock   what the code reads, where it is, and who may fill it
    input_places, outputs  places in the table: of inputs; of outputs, with shape and dtype
    memories               where large outputs get their memory from; None for small ones
    twice                  for each result which of the outputs it is, whether that was given out before, its shape; None: each once
    entry, address_of      what stands in the table for an array: Python text, and the function that it calls
    held                   see `run`
    size, constants        see runtime/sized.py
    """

    size = 0
    constants: Sequence[Array] = ()

    def __init__(
        self, code: bytes | Sequence[bytes], layout: StepLayout, shapes: Sequence[tuple[int, ...]] | None = None
    ) -> None:
        self.layout, self._room = layout, 0
        self.code = load(code, ("step",))
        self.arena = Arena(layout.arena_bytes)
        self.lock = threading.Lock()
        words = (ctypes.c_int64 * (TABLE_FIRST + len(layout.slots)))()
        self.pointer = ctypes.addressof(words)
        self.table = memoryview(words).cast("B").cast("q")  # a store takes half of the time
        self.table[TABLE_ARENA] = self.arena.address
        by_address = layout.data_field is None
        self.entry = "address_of({})" if by_address else "id({})"
        self.address_of: Callable[[Any], int] = address_of if by_address else id
        self._slots = {slot.name: slot for slot in layout.slots}
        self._place_arguments(shapes)
        self._workspace: Arena | None = None
        self.bound = default_pool().bind(self.code.address("step"), owner=self.code)
        self.choice = ThreadChoice(self.bound, prepare=self._grow)
        _steps.add(self)

    def _place_arguments(self, shapes: Sequence[tuple[int, ...]] | None) -> None:
        """Where inputs and outputs stand in the table."""
        layout = self.layout
        place = {slot.name: TABLE_FIRST + i for i, slot in enumerate(layout.slots)}
        self.input_places = [place[name] for name in layout.inputs]
        wanted = shapes or [self._slots[name].shape for name in layout.outputs]
        self.outputs, self.twice = _outputs_of(layout, wanted, place)
        self.memories = [output_memory(shape, dtype) for _, shape, dtype in self.outputs]
        self.held: Sequence[Array] = ()

    def run(self, inputs: Sequence[Array], held: Sequence[Array] = ()) -> list[Array]:
        """Run the step on arrays in the order of `layout.inputs` (C-contiguous, of the right types); states change in place.

        held: the last inputs, if they are the same arrays as in most calls: their addresses are taken when another sequence
        object than in the last call is given. The outputs are arrays that nobody else has.
        Raises IndexRangeError when an index argument is out of range; nothing has been changed then.
        """
        if self.layout.checks:
            self._check([*inputs, *held])
        table = self.table
        with self.lock:
            if held is not self.held:
                self.hold(held)
            for place, array in zip(self.input_places, inputs):  # held ones follow
                table[place] = self.address_of(array)
            results = self.new_outputs()
            for (place, _, _), made in zip(self.outputs, results):
                table[place] = self.address_of(made)
            self.choice.call(self.pointer)
            if table[TABLE_ERROR]:
                self.explain_guard([*inputs, *held])
        if self.twice is not None:
            results = [results[i].copy().reshape(shape) if again else results[i] for i, again, shape in self.twice]
        return results

    def new_outputs(self) -> list[Array]:
        """Arrays for the outputs, as the code needs them: large ones start at a cache line. Under the lock."""
        return [
            np.empty(shape, dtype) if memory is None else memory.make()
            for (_, shape, dtype), memory in zip(self.outputs, self.memories)
        ]

    def input_dtype(self, number: int) -> np.dtype[Any]:
        """What the array given as that input must hold."""
        return np.dtype(self._slots[self.layout.inputs[number]].dtype)

    def hold(self, held: Sequence[Array]) -> None:
        """Put `held` into the table, as the last inputs. Under the lock."""
        first = len(self.input_places) - len(held)
        for place, array in zip(self.input_places[first:], held, strict=True):
            self.table[place] = self.address_of(array)
        self.held = held

    def _check(self, inputs: Sequence[Array]) -> None:
        from fusegraph.runtime.guards import check_computed

        arrays = dict(zip(self.layout.inputs, [*inputs, *self.constants], strict=True))
        for check in self.layout.checks:
            check_computed(check, arrays)

    def explain_guard(self, inputs: Sequence[Array]) -> None:
        """Raise the IndexRangeError that the native check found. Under the lock."""
        self.table[TABLE_ERROR] = 0
        from fusegraph.ir.loops import Buffer
        from fusegraph.runtime.guards import check_guard

        arrays = dict(zip(self.layout.inputs, [*inputs, *self.constants], strict=True))
        for guard in self.layout.guards:
            slot, array = self._slots[guard.buffer], arrays[guard.buffer]
            shape = (array.size // math.prod(slot.shape[1:]), *slot.shape[1:]) if self.size else slot.shape
            check_guard(guard, Buffer(slot.name, shape, np.dtype(slot.dtype), slot.role), array)
        raise CompilerError("a check of an index argument failed in native code, but not in numpy")

    def _grow(self, threads: int) -> None:
        """A workspace for each thread (called before a step first runs on so many)."""
        self._workspace = Arena(self.layout.workspace_bytes * threads + CACHE_LINE)
        self._room = threads
        self.table[TABLE_WORKSPACE] = self._workspace.address

    def workspace_for(self, threads: int) -> Arena:
        """Memory for so many threads, made anew only if there is less so far."""
        if self._workspace is None or self._room < threads:
            self._grow(threads)
        assert self._workspace is not None
        return self._workspace

    def _after_fork(self) -> None:
        if self.lock.locked():  # by a thread that the child does not have
            self.lock.release()


def _outputs_of(
    layout: StepLayout, shapes: Sequence[tuple[int, ...]], place: dict[str, int]
) -> tuple[list[tuple[int, tuple[int, ...], np.dtype[Any]]], list[tuple[int, bool, tuple[int, ...]]] | None]:
    """(place, shape, dtype) of every output once; for each result (which of them, whether given out before, shape), if any was."""
    dtypes = {slot.name: np.dtype(slot.dtype) for slot in layout.slots}
    first: dict[str, int] = {}
    results = [
        (first.setdefault(name, len(first)), name in layout.outputs[:i], tuple(shapes[i]))
        for i, name in enumerate(layout.outputs)
    ]
    made = [(place[name], tuple(shapes[layout.outputs.index(name)]), dtypes[name]) for name in first]
    return made, results if len(made) < len(results) else None


_steps: weakref.WeakSet[NativeStep] = weakref.WeakSet()


def _after_fork() -> None:
    for step in list(_steps):
        step._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
