"""Prints loop programs as readable Python: what `dump` shows for every target, and what backend="numba" compiles.

The text runs as it stands with numpy alone (slowly), and compiled by numba; both give what the loop program means.
"""

from __future__ import annotations

from fusegraph.codegen.python_helpers import helpers_source
from fusegraph.codegen.python_kernel import KernelSource, signature, write_kernel
from fusegraph.codegen.python_layout import INDENT, WIDTH, bracketed
from fusegraph.codegen.python_names import ProgramNames
from fusegraph.ir.loops import Loop, Program

_ROLES = ("input", "state", "output", "temp", "local")


def print_loop_source(loop: Loop, program: Program) -> str:
    """One kernel as a Python function: `def <name>(<a flat array a buffer>):`, without the helpers that it calls.

    Parameters stand in the order of `kernel_buffers(loop)`: buffers that it reads, then those that it writes.
    """
    known = program if any(other is loop for other in program.loops) else program.with_loops((loop,))
    return write_kernel(loop, ProgramNames(known)).source


def print_program_source(program: Program) -> str:
    """A whole Python module: helpers, one function a kernel, and `step`, which calls the kernels in order.

    `step` takes every buffer of the program as a flat array, in the order of `step_parameters(program)`.
    """
    names = ProgramNames(program)
    kernels = [write_kernel(loop, names) for loop in program.loops]
    return assemble_module(program, names, kernels)


def step_parameters(program: Program) -> tuple[str, ...]:
    """Buffers in the order of the parameters of `step`: inputs, states, outputs, then temporary memory."""
    first = [name for name in program.inputs if name in program.buffers]
    ordered = sorted(program.buffers.values(), key=lambda buffer: _ROLES.index(buffer.role))
    return tuple(dict.fromkeys(first + [buffer.name for buffer in ordered]))


def assemble_module(program: Program, names: ProgramNames, kernels: list[KernelSource]) -> str:
    """The module's text from its kernels' texts."""
    helpers = helpers_source(helper for kernel in kernels for helper in kernel.helpers)
    functions = [*helpers, *(kernel.source for kernel in kernels), _step_source(program, names, kernels)]
    imports = ("import math\n\n" if any("math." in text for text in functions) else "") + "import numpy as np"
    return "\n\n\n".join([f"{program_header(program, names)}\n\n{imports}", *functions]) + "\n"


def program_header(program: Program, names: ProgramNames) -> str:
    """A comment: the program's name, its size, and its buffers."""
    lines = [f"# Program {program.name}: {_count(len(program.loops), 'kernel')}, {len(program.buffers)} buffers.", "#"]
    rows = [(names.buffers[name], program.buffers[name]) for name in step_parameters(program)]
    width = max((len(name) for name, _ in rows), default=0)
    for name, buffer in rows:
        shape = ", ".join(map(str, buffer.shape))
        renamed = f"  ({buffer.name})" if name != buffer.name else ""
        lines.append(f"# {buffer.role:6}  {name:{width}}  {buffer.dtype.name}[{shape}]{renamed}")
    for guard in program.guards:
        allowed = f", or {guard.allow}" if guard.allow is not None else ""
        lines.append(f"# checked before: {guard.low} <= {names.buffers[guard.buffer]} < {guard.high}{allowed}")
    return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _step_source(program: Program, names: ProgramNames, kernels: list[KernelSource]) -> str:
    parameters = [names.buffers[name] for name in step_parameters(program)]
    lines = signature("step", parameters)
    lines.append(f'    """{program.name}: {_count(len(kernels), "kernel")}, in order, on flat arrays."""')
    for kernel in kernels:
        call = bracketed(f"{kernel.name}(", [names.buffers[buffer] for buffer in kernel.buffers], ")", WIDTH - INDENT)
        lines += [" " * INDENT + line for line in call]
    return "\n".join(lines)
