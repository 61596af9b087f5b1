"""When each kernel of a step begins and ends, for profiling: notes in a step that is compiled for it alone.

The table has one more entry behind the others: the address of int64 stamps [thread][kernel][ARRIVED, BEGUN, ENDED]. Between
ARRIVED and BEGUN a thread waits at a barrier, if the kernel has one before it.
"""

from __future__ import annotations

from fusegraph.codegen.cpu.irtext import FunctionBuilder

ARRIVED, BEGUN, ENDED = 0, 1, 2
STAMPS = 3


class StepClock:
    """Emits the notes of a driver. `clock`: an intrinsic that gives an i64; `entry`: where in the table the address stands."""

    def __init__(self, fn: FunctionBuilder, clock: str, entry: int, kernels: int) -> None:
        self._fn, self._clock = fn, clock
        fn.declare(clock, f"declare i64 @{clock}()")
        base = fn.load("ptr", fn.gep("%table", entry, "ptr"))
        self._mine = fn.gep(base, fn.op(f"mul i64 %tid, {kernels * STAMPS}"), "i64")

    def note(self, kernel: int, what: int) -> None:
        """Store the time."""
        fn = self._fn
        now = fn.op(f"call i64 @{self._clock}()")
        fn.store("i64", now, fn.gep(self._mine, kernel * STAMPS + what, "i64"))
