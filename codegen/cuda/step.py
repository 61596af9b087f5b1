"""A whole program as CUDA kernels and a list of launches.

Every kernel takes one pointer a buffer. Buffers that live through a step only (temps) lie in one arena, at the offsets of the
memory plan that the CPU uses too; all others have memory of their own. Launches run one after the other in one stream, so a
kernel sees all that those before it wrote.
"""

from __future__ import annotations

from dataclasses import dataclass

from fusegraph.codegen.cuda.contract import AMPERE, emit_contract
from fusegraph.codegen.cuda.contract_split import split_products
from fusegraph.codegen.cuda.helpers import helpers_source
from fusegraph.codegen.cuda.intrinsics import import_line
from fusegraph.codegen.cuda.kernel import CudaKernel
from fusegraph.codegen.cuda.names import cuda_names
from fusegraph.codegen.cuda.nest import emit_nest
from fusegraph.codegen.cuda.rewrite import prepare
from fusegraph.codegen.cuda.scatter import emit_scatter
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
    """program: what the kernels compute (locals made temps, long sums split). source: one module with all kernels."""

    program: Program
    kernels: tuple[CudaKernel, ...]
    launches: tuple[Launch, ...]
    memory: MemoryPlan
    source: str

    def kernel(self, name: str) -> CudaKernel:
        """The kernel called `name`."""
        return next(kernel for kernel in self.kernels if kernel.name == name)

    def types(self, kernel: CudaKernel) -> tuple[str, ...]:
        """Element types of a kernel's pointers, as they stand in memory."""
        dtypes = (self.program.buffers[name].dtype for name in kernel.buffers)
        return tuple("uint8" if dtype.kind == "b" else dtype.name for dtype in dtypes)


def emit_step(
    program: Program,
    exact: bool = False,
    readable: bool = False,
    *,
    capability: tuple[int, int] = (9, 0),
    precision: str = "float32",
) -> CudaStep:
    """All kernels of `program`. readable: products by the plain shared-memory tile, one output a thread.

    capability: what the kernels may use; precision: how products are computed (contract.py).
    Raises UnsupportedError where a buffer has 2**31 elements or more.
    """
    program = prepare(program, exact)
    if not readable and not exact:
        program = split_products(program, precision == "tf32" and capability >= AMPERE)
    names = cuda_names(program)
    kernels = tuple(emit_kernel(loop, program, names, exact, readable, capability, precision) for loop in program.loops)
    memory = plan_memory(program, in_place=_one_thread_an_element)
    launches = tuple(
        _launch(kernel, memory) for kernel, loop in zip(kernels, program.loops, strict=True) if loop.points()
    )
    return CudaStep(program, kernels, launches, memory, module_source(program, names, kernels))


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
    """Where there are sums, all threads of a team read what one of them writes: not in the same memory."""
    return not any(stage.reduces for stage in loop.stages)


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
