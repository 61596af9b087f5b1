"""The calls of a step's kernels, and the barriers between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from fusegraph.codegen.cpu.barriers import barriers_before
from fusegraph.codegen.cpu.irtext import FunctionBuilder
from fusegraph.codegen.cpu.kernel import EmittedKernel
from fusegraph.codegen.cpu.nest import thread_share
from fusegraph.codegen.cpu.run_time import SIZE
from fusegraph.codegen.cpu.step_clock import ARRIVED, BEGUN, ENDED, StepClock
from fusegraph.codegen.cpu.stretches import Stretch
from fusegraph.codegen.memory import MemoryPlan
from fusegraph.ir.loops import Loop, Program


def call_kernels(
    fn: FunctionBuilder,
    program: Program,
    memory: MemoryPlan,
    kernels: Sequence[EmittedKernel],
    stretches: Sequence[Stretch],
    address: Mapping[str, str],
    scratch: str,
    stamps: StepClock | None = None,
) -> int:
    """Calls in order, with the barriers between them; gives how many there are."""
    calls = [_Call(kernel, loop, address, scratch) for kernel, loop in zip(kernels, program.loops, strict=True)]
    whole = {stretch.first: stretch for stretch in stretches}
    rest = {number for stretch in stretches for number in stretch.kernels()[1:]}
    met = 0
    counts = barriers_before(program, kernels, memory, stretches)
    for number, (loop, kernel, count) in enumerate(zip(program.loops, kernels, counts, strict=True)):
        if number in rest:
            continue
        if stamps is not None:
            stamps.note(number, ARRIVED)
        if count > met:
            fn.emit("call void @fg_barrier(ptr %ctl, i64 %nt)")
        met = count
        if stamps is not None:
            stamps.note(number, BEGUN)
        if stretch := whole.get(number):
            _in_blocks(fn, stretch, program, calls)
        else:
            fn.comment(loop.name)
            calls[number].write_whole(fn, kernel.parallel)
        if stamps is not None:
            stamps.note(number, ENDED)
    return met


class _Call:
    """A call of a kernel, but for which part of the work it is to do."""

    def __init__(self, kernel: EmittedKernel, loop: Loop, address: Mapping[str, str], scratch: str) -> None:
        self._kernel, self._address, self._scratch = kernel, address, scratch
        self._end = f", i64 {SIZE})" if loop.sized else ")"

    def write_whole(self, fn: FunctionBuilder, parallel: bool) -> None:
        """This thread's part, or all of it by thread 0."""
        if parallel:
            self.write(fn, "%tid", "%nt")
        else:
            with fn.if_(fn.compare("eq", "i64", "%tid", 0)):
                self.write(fn, 0, 1)

    def write(
        self,
        fn: FunctionBuilder,
        part: str | int,
        parts: str | int,
        elsewhere: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """The part that thread `part` of `parts` would do. elsewhere: buffers whose address is another one for that part."""
        pointers = [*(elsewhere.get(name, self._address[name]) for name in self._kernel.buffers), self._scratch]
        places = ", ".join(f"ptr {pointer}" for pointer in pointers)
        fn.emit(f"call void @{self._kernel.name}({places}, i64 {part}, i64 {parts}{self._end}")

    def starts(self, fn: FunctionBuilder, own: Mapping[str, int], part: str) -> dict[str, str]:
        """Where buffers would begin of which block number `part`, of so many bytes, lies at the buffer's address."""
        mine = {name: fn.affine([(-nbytes, part)]) for name, nbytes in own.items() if name in self._kernel.buffers}
        return {  # not inbounds: there is nothing at the beginning
            name: fn.op(f"getelementptr i8, ptr {self._address[name]}, i64 {offset}", "p")
            for name, offset in mine.items()
        }


def _in_blocks(fn: FunctionBuilder, stretch: Stretch, program: Program, calls: Sequence[_Call]) -> None:
    """Block by block of this thread's share, all kernels of the stretch."""
    for number in stretch.kernels():
        fn.comment(program.loops[number].name)
    fn.comment(f"together, for each of {stretch.blocks} blocks of rows")
    own = {name: program.buffers[name].nbytes // stretch.blocks for name in stretch.own}
    low, high = thread_share(fn, stretch.blocks, parallel=True)
    with fn.loop(low, high) as loop:
        for number in stretch.kernels():
            call = calls[number]
            call.write(fn, loop.index, stretch.blocks, call.starts(fn, own, loop.index))
