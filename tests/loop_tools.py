"""Compile one Loop for the CPU and run it on numpy arrays: for the tests of every emitter.

    arrays = run_loop(loop, {"x": Buffer(...), "y": Buffer(...)}, {"x": x}, nt=3)
    arrays["y"]

Each buffer lies in its own memory, by default so that its last byte is the last of a page with a protected page
behind it: a kernel that reads past the end stops the test run. Output memory is filled with a pattern before the run;
the bytes before and behind a buffer are checked afterwards.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fusegraph.codegen.cpu.irtext import Module
from fusegraph.codegen.cpu.kernel import EmittedKernel
from fusegraph.ir.loops import Buffer, Loop, Program
from fusegraph.runtime import llvm

Array = np.ndarray[Any, Any]
_PATTERN = 0xA5
_PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)


class GuardedMemory:
    """`nbytes` bytes of memory that end at a protected page (`at_end`), or start 64-byte aligned."""

    def __init__(self, nbytes: int, at_end: bool) -> None:
        size = -(-max(nbytes, 1) // _PAGE) * _PAGE
        self._map = mmap.mmap(-1, size + _PAGE)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._bytes = np.frombuffer(self._map, np.uint8, size)
        self._bytes[:] = _PATTERN
        self.start = size - nbytes if at_end else 0
        self.nbytes = nbytes
        protected = _libc.mprotect(ctypes.c_void_p(self._base + size), ctypes.c_size_t(_PAGE), 0)
        assert protected == 0, "mprotect failed"

    @property
    def address(self) -> int:
        """Where the buffer starts."""
        return self._base + self.start

    def array(self, dtype: Any, shape: tuple[int, ...]) -> Array:
        """The buffer as an array (a view)."""
        return self._bytes[self.start : self.start + self.nbytes].view(dtype).reshape(shape)

    def check(self, name: str) -> None:
        """Fail unless the bytes around the buffer still hold the pattern."""
        around = (self._bytes[: self.start], self._bytes[self.start + self.nbytes :])
        assert all((part == _PATTERN).all() for part in around), f"the kernel wrote outside of buffer {name!r}"


def one_loop_program(loop: Loop, buffers: Mapping[str, Buffer]) -> Program:
    """A program of this loop alone."""
    inputs = tuple(name for name, buffer in buffers.items() if buffer.role in ("input", "state"))
    outputs = tuple(name for name, buffer in buffers.items() if buffer.role == "output")
    return Program("test", dict(buffers), (loop,), inputs, outputs)


def default_emitter(
    module: Module, loop: Loop, program: Program, vector_bits: int, exact: bool = False
) -> EmittedKernel:
    """The emitter of the loop's schedule (a contraction runs as a plain nest)."""
    if loop.schedule == "scatter":
        from fusegraph.codegen.cpu.scatter import emit_scatter

        return emit_scatter(module, loop, program, vector_bits, exact=exact)
    from fusegraph.codegen.cpu.nest import emit_nest

    return emit_nest(module, loop, program, vector_bits, exact=exact)


class CompiledLoop:
    """One loop as native code: `text` is its IR, `kernel` what the emitter said about it."""

    def __init__(
        self,
        loop: Loop,
        buffers: Mapping[str, Buffer],
        *,
        vector_bits: int | None = None,
        exact: bool = False,
        emit: Callable[..., EmittedKernel] | None = None,
    ) -> None:
        bits = vector_bits or llvm.target().vector_bits
        module = Module(vector_bits=bits)
        program = one_loop_program(loop, buffers)
        self.buffers = dict(buffers)
        self.kernel = (emit or default_emitter)(module, loop, program, bits, exact=exact)
        self._add_entry(module)
        self.text = module.text()
        self.times = llvm.CompileTimes()
        self._code = llvm.load(llvm.compile_ir(self.text, times=self.times), ["run"])
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        self._run = prototype(self._code.address("run"))

    def _add_entry(self, module: Module) -> None:
        fn = module.function("run", ["ptr %table", "ptr %scratch", "i64 %tid", "i64 %nt"], linkage="")
        pointers = [fn.load("ptr", fn.gep("%table", slot, "ptr")) for slot in range(len(self.kernel.buffers))]
        args = [("ptr", pointer) for pointer in pointers]
        fn.call("void", self.kernel.name, [*args, ("ptr", "%scratch"), ("i64", "%tid"), ("i64", "%nt")])

    def call(self, addresses: Mapping[str, int], scratch: int, tid: int = 0, nt: int = 1) -> None:
        """One thread's share, on buffers at `addresses`."""
        table = (ctypes.c_void_p * max(1, len(self.kernel.buffers)))(*(addresses[name] for name in self.kernel.buffers))
        self._run(table, scratch, tid, nt)

    def run(self, arrays: Mapping[str, Array], nt: int = 1, at_end: bool = True) -> dict[str, Array]:
        """Run all threads' shares, one after the other; gives every buffer's content (copies)."""
        threads = nt if self.kernel.parallel else 1
        memory = {name: GuardedMemory(self.buffers[name].nbytes, at_end) for name in self.kernel.buffers}
        for name, part in memory.items():
            if name in arrays:
                buffer = self.buffers[name]
                value = np.asarray(arrays[name])
                assert value.dtype == buffer.dtype and value.shape == buffer.shape, (
                    f"{name}: {value.dtype}{value.shape}"
                )
                part.array(buffer.dtype, buffer.shape)[...] = value
        scratch = GuardedMemory(-(-self.kernel.scratch_bytes // 64) * 64, False)
        addresses = {name: part.address for name, part in memory.items()}
        for tid in range(threads):
            self.call(addresses, scratch.address, tid, threads)
        scratch.check("scratch")
        for name, part in memory.items():
            part.check(name)
        return {
            name: part.array(self.buffers[name].dtype, self.buffers[name].shape).copy() for name, part in memory.items()
        }


def run_loop(
    loop: Loop,
    program_buffers: Mapping[str, Buffer],
    arrays: Mapping[str, Array],
    nt: int = 1,
    *,
    vector_bits: int | None = None,
    exact: bool = False,
    emit: Callable[..., EmittedKernel] | None = None,
    at_end: bool = True,
) -> dict[str, Array]:
    """Compile `loop` and run it on `arrays` (inputs, states; outputs may be left out). Gives every buffer's content."""
    compiled = CompiledLoop(loop, program_buffers, vector_bits=vector_bits, exact=exact, emit=emit)
    return compiled.run(arrays, nt, at_end)
