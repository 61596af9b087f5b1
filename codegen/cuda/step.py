"""A whole program as CUDA kernels and a list of launches.

Every kernel takes one pointer a buffer. Buffers that live through a step only (temps) lie in one arena, at the offsets of the
memory plan that the CPU uses too; all others have memory of their own. Launches run one after the other in one stream, so a
kernel sees all that those before it wrote. Small loops that do not wait for each other share a launch (batches.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

from fusegraph.codegen.cuda.batches import Work, in_batches, one_kernel
from fusegraph.codegen.cuda.contract import AMPERE, emit_contract
from fusegraph.codegen.cuda.contract_split import split_products
from fusegraph.codegen.cuda.costs import LaunchCost, describe, launch_costs
from fusegraph.codegen.cuda.helpers import helpers_source
from fusegraph.codegen.cuda.intrinsics import import_line
from fusegraph.codegen.cuda.kernel import CudaKernel
from fusegraph.codegen.cuda.names import cuda_names
from fusegraph.codegen.cuda.nest import emit_nest
from fusegraph.codegen.cuda.rewrite import prepare
from fusegraph.codegen.cuda.scatter import emit_scatter
from fusegraph.codegen.cuda.storage import Narrow, as_in_memory, narrow_buffers
from fusegraph.codegen.cuda.writer import memory_type
from fusegraph.codegen.memory import MemoryPlan, plan_memory
from fusegraph.codegen.python import program_header
from fusegraph.codegen.python_names import ProgramNames
from fusegraph.ir.loops import Loop, Program

ARENA = "arena"


@dataclass(frozen=True)
class Launch:
    """One kernel launch. arguments: (base, bytes behind it); a base is ARENA or the name of a buffer with its own memory."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class CudaStep:
    """program: what the kernels compute (locals made temps, long sums split). source: one module with all kernels.

    narrow: buffers that are kept in 16 bits, with the type of their elements.
    """

    program: Program
    kernels: tuple[CudaKernel, ...]
    launches: tuple[Launch, ...]
    memory: MemoryPlan
    source: str
    narrow: Narrow = field(default_factory=dict)

    def kernel(self, name: str) -> CudaKernel:
        """The kernel called `name`."""
        return next(kernel for kernel in self.kernels if kernel.name == name)

    @cached_property
    def in_memory(self) -> Program:
        """The program with types of the size that elements have in memory."""
        return as_in_memory(self.program, self.narrow)

    @cached_property
    def costs(self) -> tuple[LaunchCost, ...]:
        """Blocks, threads and bytes moved of every launch, in order."""
        return launch_costs(self.in_memory, [self.kernel(launch.kernel) for launch in self.launches])

    def describe(self) -> str:
        """The launches as a table: kernel, blocks, threads of a block, bytes read and written."""
        return describe(self.costs)

    def types(self, kernel: CudaKernel) -> tuple[str, ...]:
        """Element types of a kernel's pointers, as they stand in memory."""
        return tuple(self.narrow.get(name) or memory_type(self.program.buffers[name].dtype) for name in kernel.buffers)


def emit_step(
    program: Program,
    exact: bool = False,
    readable: bool = False,
    *,
    capability: tuple[int, int] = (9, 0),
    precision: str = "float32",
) -> CudaStep:
    """All kernels of `program`. readable: products by the plain shared-memory tile, one output a thread.

    capability: what the kernels may use; precision: how products are computed (contract.py), or how their operands are stored
    (storage.py).
    Raises UnsupportedError where a buffer has 2**31 elements or more.
    """
    program = prepare(program, exact)
    if not readable and not exact:
        program = split_products(program, precision == "tf32" and capability >= AMPERE)
    narrow = narrow_buffers(program, precision)
    names = cuda_names(program, exact, narrow)
    kernels = tuple(emit_kernel(loop, program, names, exact, readable, capability, precision) for loop in program.loops)
    works = [Work(loop, kernel) for loop, kernel in zip(program.loops, kernels, strict=True) if loop.points()]
    batches = in_batches(works)
    program = program.with_loops(tuple(work.loop for batch in batches for work in batch))
    memory = plan_memory(as_in_memory(_for_memory(program, batches), narrow), in_place=_one_thread_an_element)
    kernels = _batched(batches, names)
    launches = tuple(_launch(kernel, memory) for kernel in kernels)
    return CudaStep(program, kernels, launches, memory, module_source(program, names, kernels), narrow)


def _batched(batches: list[list[Work]], names: ProgramNames) -> tuple[CudaKernel, ...]:
    """One kernel for each launch."""
    made, taken = [], set(names.kernels.values())
    for batch in batches:
        name = f"{batch[0].kernel.name}_and_{len(batch) - 1}_more"
        while name in taken:
            name += "_"
        made.append(one_kernel([work.kernel for work in batch], name, names.buffers))
    return tuple(made)


def _for_memory(program: Program, batches: list[list[Work]]) -> Program:
    """The program as the memory plan sees it: one loop a launch; temps that live in registers only take no memory."""
    used = {name for batch in batches for work in batch for name in work.kernel.buffers}
    gone = {name for name, b in program.buffers.items() if b.role == "temp" and name not in used}
    buffers = {name: replace(b, shape=(0,)) if name in gone else b for name, b in program.buffers.items()}
    return replace(program, buffers=buffers, loops=tuple(map(_as_one_loop, batches)))


def _as_one_loop(batch: list[Work]) -> Loop:
    loop = batch[0].loop
    if len(batch) == 1:
        return loop
    return replace(loop, schedule="batch", stages=tuple(stage for work in batch for stage in work.loop.stages))


def emit_kernel(
    loop: Loop,
    program: Program,
    names: ProgramNames,
    exact: bool = False,
    readable: bool = False,
    capability: tuple[int, int] = (9, 0),
    precision: str = "float32",
) -> CudaKernel:
    """One loop, by the emitter of its schedule."""
    if loop.schedule == "scatter":
        return emit_scatter(loop, program, names, exact)
    if loop.schedule == "contract":
        made = emit_contract(loop, program, names, readable, capability, precision)
        if made is not None:
            return made
    return emit_nest(loop, program, names)


def _one_thread_an_element(loop: Loop) -> bool:
    """Whether what a loop writes may take over the memory of what it reads, element for element.

    Where there are sums, all threads of a team read what one of them writes; the loops of a batch run at the same time.
    """
    return loop.schedule != "batch" and not any(stage.reduces for stage in loop.stages)


def _launch(kernel: CudaKernel, memory: MemoryPlan) -> Launch:
    arguments = tuple((ARENA, memory.arena[name]) if name in memory.arena else (name, 0) for name in kernel.buffers)
    return Launch(kernel.name, kernel.grid, kernel.block, arguments)


_IMPORTS = """import math

from numba import cuda, float32, float64, int32, int64, uint8, uint32, uint64
from numba.cuda import libdevice"""


def module_source(program: Program, names: ProgramNames, kernels: tuple[CudaKernel, ...]) -> str:
    """The text of a module that numba-cuda can compile: helpers, then the kernels."""
    helpers = helpers_source(helper for kernel in kernels for helper in kernel.helpers)
    parts = [*helpers, *(kernel.source for kernel in kernels)]
    imports = f"{_IMPORTS}\n\n{import_line(' '.join(parts))}"
    parts = [f"{program_header(program, names)}\n\n{imports}", *parts]
    return "\n\n\n".join(parts) + "\n"
