"""Timing the kernels of a native step: in a second step, compiled with notes of the clock, on copies of what the step changes.

The step that runs is not touched: its machine code has no notes, and its parameters keep their values.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fusegraph.errors import UnsupportedError
from fusegraph.records import replace
from fusegraph.runtime import llvm
from fusegraph.runtime.executable import TABLE_ERROR, TABLE_FIRST, TABLE_SIZE, NativeStep, Slot, address_of
from fusegraph.runtime.pool import default_pool
from fusegraph.runtime.threads import get_num_threads

if TYPE_CHECKING:
    from fusegraph.build import Artifact

Array = np.ndarray[Any, Any]
CLOCKS = {"x86_64": "llvm.readcyclecounter", "aarch64": "llvm.readsteadycounter", "arm64": "llvm.readsteadycounter"}


def clock_name() -> str:
    """The LLVM intrinsic for a counter that all cores share and any program may read. Raises UnsupportedError without one."""
    arch = llvm.target().arch
    if arch not in CLOCKS:
        raise UnsupportedError(
            f"backend='cpu' has no clock for {arch}: profile with backend='numba', or use the system's profiler"
        )
    return CLOCKS[arch]


class TimedStep(NativeStep):
    """A step that notes when its kernels begin and end. `stamps`: int64 [thread, kernel, arrived/begun/ended], in ticks."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        from fusegraph.build import compiled_step
        from fusegraph.codegen.cpu.step_clock import STAMPS

        code, layout = compiled_step(artifact, clock_name())
        shapes = [node.shape for node in artifact.source.outputs]
        timed = replace(layout, slots=(*layout.slots, Slot("@clock", "clock", (), "int64")))
        super().__init__(code, timed, shapes)
        self.threads = threads
        self.stamps = np.zeros((threads, len(layout.kernels), STAMPS), np.int64)
        self.table[TABLE_FIRST + len(layout.slots)] = address_of(self.stamps)
        running: Any = artifact.executable
        self.table[TABLE_SIZE] = self.size = running.size
        self.constants = running.constants
        self._grow(threads)
        self._bound = default_pool().bind(self.code.address("step"), owner=self.code)

    def time(self, inputs: Sequence[Array], steps: int, warm_up: int) -> Array:
        """Run `warm_up + steps` times on `inputs` (states change); the stamps of the last `steps`, [step, ...stamps]."""
        if self.layout.checks:
            self._check(inputs)
        found = np.zeros((steps, *self.stamps.shape), np.int64)
        made = self.new_outputs()
        places = [*self.input_places, *(place for place, _, _ in self.outputs)]
        for place, array in zip(places, [*inputs, *self.constants, *made], strict=True):
            self.table[place] = self.address_of(array)
        for step in range(-warm_up, steps):
            self._bound(self.pointer, self.threads)
            if self.table[TABLE_ERROR]:
                self.explain_guard(inputs)
            if step >= 0:
                found[step] = self.stamps
        return found


def time_native(artifact: Artifact, inputs: Sequence[Array], steps: int, warm_up: int, threads: int | None) -> Array:
    """Nanoseconds [step, thread, kernel, arrived/begun/ended] since each step's first stamp.

    threads: how many to use; None: as many as the step has settled on. Raises IndexRangeError as the step does.
    """
    running: Any = artifact.executable
    if threads is None:
        threads = running.choice.threads if isinstance(running, NativeStep) else get_num_threads()
    step = TimedStep(artifact, threads)
    begun, ticks = time.perf_counter_ns(), _ticks()
    stamps = step.time(inputs, steps, warm_up)
    while time.perf_counter_ns() - begun < 2_000_000:  # long enough for the ratio of two clocks
        pass
    factor = (time.perf_counter_ns() - begun) / max(_ticks() - ticks, 1)
    first = stamps.min(axis=(1, 2, 3), keepdims=True) if stamps.size else stamps
    return (stamps - first) * factor


def _ticks() -> int:
    """The counter now, read by native code."""
    import ctypes

    call = ctypes.CFUNCTYPE(ctypes.c_int64)(_clock_code().address("ticks"))
    return int(call())


@lru_cache(maxsize=1)
def _clock_code() -> llvm.LoadedCode:
    name = clock_name()
    text = f"declare i64 @{name}()\ndefine i64 @ticks() {{\n  %t = call i64 @{name}()\n  ret i64 %t\n}}\n"
    return llvm.load(llvm.compile_ir(text), ("ticks",))
