"""Runs a loop program's printed Python source: as it stands, or compiled by numba."""

from __future__ import annotations

import linecache
import threading
import weakref
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import numpy as np

from fusegraph.codegen.memory import plan_memory
from fusegraph.codegen.python import print_program_source, step_parameters
from fusegraph.codegen.python_kernel import KernelSource, write_kernel
from fusegraph.codegen.python_names import ProgramNames
from fusegraph.errors import CompilerError
from fusegraph.ir.loops import Buffer, Program
from fusegraph.runtime.guards import check_guards
from fusegraph.runtime.memory import Arena

Array = np.ndarray[Any, Any]
_numbers = count()


class PythonExecutable:
    """A program as plain Python functions. Slow: the oracle for loop programs.

    source: the module's text. run(arrays) executes one step in place.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.source = print_program_source(program)
        self._parameters = step_parameters(program)
        plan = plan_memory(program)
        arena = Arena(plan.arena_bytes)
        own = [buffer for buffer in program.buffers.values() if buffer.role in ("temp", "local")]
        self._memory = {
            b.name: arena.view(plan.arena[b.name], (b.size,), b.dtype)
            if b.name in plan.arena
            else np.zeros(b.size, b.dtype)
            for b in own
        }
        self._lock = threading.Lock()  # steps share the temporary memory
        self._namespace = self._load()
        self._prepare()

    def run(self, arrays: Mapping[str, Array]) -> None:
        """One step. `arrays`: inputs, states and outputs by buffer name, C-contiguous, of the buffer's dtype and size.

        Raises IndexRangeError (a guard fails) or CompilerError (an array does not fit) before anything is changed.
        """
        flat = {
            name: self._memory[name] if name in self._memory else _flat(self.program.buffers[name], arrays)
            for name in self._parameters
        }
        check_guards(self.program, flat)
        with self._lock, np.errstate(all="ignore"):
            self._namespace["step"](*(flat[name] for name in self._parameters))

    def _load(self) -> dict[str, Any]:
        """The module's functions. Its text is registered so that tracebacks show it."""
        file = f"<fusegraph {self.program.name} {next(_numbers)}>"
        linecache.cache[file] = (len(self.source), None, self.source.splitlines(True), file)
        weakref.finalize(self, linecache.cache.pop, file, None)
        namespace: dict[str, Any] = {"__name__": f"fusegraph_{self.program.name}"}
        exec(compile(self.source, file, "exec"), namespace)
        return namespace

    def _prepare(self) -> None:
        """Make the loaded functions ready to run."""


class NumbaExecutable(PythonExecutable):
    """A program compiled by numba (nopython mode), kernel by kernel, when it is made. numba is imported here.

    kernels: numba's dispatchers, by name.
    """

    def _prepare(self) -> None:
        import numba

        compile_: Callable[..., Any] = numba.njit(error_model="numpy", cache=False)
        functions = [name for name, value in self._namespace.items() if callable(value) and name != "step"]
        for name in functions:
            self._namespace[name] = compile_(self._namespace[name])
        names = ProgramNames(self.program)
        self.kernels: dict[str, Any] = {}
        for loop in self.program.loops:
            kernel: KernelSource = write_kernel(loop, names)
            arguments = (numba.from_dtype(self.program.buffers[buffer].dtype)[::1] for buffer in kernel.buffers)
            self.kernels[kernel.name] = self._namespace[kernel.name]
            self.kernels[kernel.name].compile(tuple(arguments))


def _flat(buffer: Buffer, arrays: Mapping[str, Array]) -> Array:
    """The buffer's array, as one axis, without copying."""
    array = arrays.get(buffer.name)
    if array is None:
        raise CompilerError(f"no array was given for {buffer.role} {buffer.name!r}")
    if array.dtype != buffer.dtype or array.size != buffer.size or not array.flags.c_contiguous:
        wanted, got = f"{buffer.dtype.name}{list(buffer.shape)}", f"{array.dtype.name}{list(array.shape)}"
        raise CompilerError(f"the array for {buffer.role} {buffer.name!r} must be C-contiguous {wanted}, got {got}")
    return array.reshape(-1)
