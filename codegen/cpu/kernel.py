"""What an emitter gives back: one kernel as a function of a module, and what a caller must hand to it.

    define internal void @<loop.name>(ptr %p0, ..., ptr %pK-1, ptr %scratch, i64 %tid, i64 %nt)

%p<i> is the base address of kernel_buffers(loop)[i] (a local buffer: this thread's own copy). %scratch is 64-byte
aligned memory of the calling thread. A loop over an axis of run-time extent takes the number of rows, i64 %n, as well.
The work is split among tid 0 .. nt - 1; the result does not depend on nt.
"""

from __future__ import annotations

import math

from fusegraph.codegen.cpu.irtext import FunctionBuilder, Module
from fusegraph.ir.loops import Loop
from fusegraph.records import dataclass


@dataclass(frozen=True)
class EmittedKernel:
    """A kernel that stands in a module.

    name           of the function
    buffers        the buffers whose addresses it takes, in order
    scratch_bytes  memory that each thread must give it
    parallel       False: it is called on thread 0 only, with nt = 1
    rows           points of leading axes of the loop's space (in C order) that are shared out: thread k of n does part k
                   of n, for every n that divides them; 0: the work is split in another way
    work           how many times as much it is as is worth a second thread; of a loop over rows: for the most rows
    """

    name: str
    buffers: tuple[str, ...]
    scratch_bytes: int
    parallel: bool
    rows: int = 0
    work: float = math.inf


def kernel_buffers(loop: Loop) -> tuple[str, ...]:
    """The buffers that a kernel takes, each once: those that it reads, then those that it only writes."""
    return tuple(dict.fromkeys(loop.reads() + loop.writes()))


def kernel_function(module: Module, loop: Loop) -> FunctionBuilder:
    """The function of a kernel, with the parameters that every kernel has, added to `module`."""
    pointers = [f"ptr %p{position}" for position in range(len(kernel_buffers(loop)))]
    size = ["i64 %n"] if loop.sized else []
    return module.function(loop.name, [*pointers, "ptr %scratch", "i64 %tid", "i64 %nt", *size])
