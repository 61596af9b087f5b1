"""Building and running of contraction loops for tests: matrix products of any layout, and their numpy reference."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np
from loop_tools import GuardedMemory

from fusegraph.codegen.cpu.contract import emit_contract
from fusegraph.codegen.cpu.irtext import Module
from fusegraph.ir.loops import Buffer, Loop, Program
from fusegraph.runtime import llvm


class CompiledLoop:
    """A loop compiled by `emit_contract`; `kernel` is None where it refuses."""

    def __init__(self, loop: Loop, program: Program, vector_bits: int = 0, exact: bool = False) -> None:
        self.loop, self.program = loop, program
        module = Module(vector_bits or llvm.target().vector_bits)
        self.kernel = emit_contract(module, loop, program, module.vector_bits, exact)
        if self.kernel is None:
            return
        self.text = module.text()
        params = [f"ptr %p{i}" for i in range(len(self.kernel.buffers))]
        args = ", ".join([*params, "ptr %scratch", "i64 %tid", "i64 %nt"])
        entry = f"\ndefine void @entry({args}) {{\n  call void @{loop.name}({args})\n  ret void\n}}\n"
        self.code = llvm.load(llvm.compile_ir(self.text + entry), ["entry"])
        kinds = [ctypes.c_void_p] * (len(self.kernel.buffers) + 1) + [ctypes.c_int64] * 2
        self.function = ctypes.CFUNCTYPE(None, *kinds)(self.code.address("entry"))

    def run(self, arrays: Mapping[str, np.ndarray], threads: int = 1) -> dict[str, np.ndarray]:
        """Run every thread's share, one after the other, on copies of `arrays`; gives every buffer's array afterwards.

        Each buffer ends at a protected page. Scratch memory is full of NaN before.
        """
        assert self.kernel is not None
        buffers = self.program.buffers
        memory = {name: GuardedMemory(buffers[name].nbytes, at_end=True) for name in self.kernel.buffers}
        for name, part in memory.items():
            if name in arrays:
                part.array(buffers[name].dtype, buffers[name].shape)[...] = arrays[name]
        for tid in range(threads):
            scratch = GuardedMemory(-(-self.kernel.scratch_bytes // 64) * 64, at_end=True)
            scratch.array(np.uint8, (scratch.nbytes,))[...] = 0xFF
            self.function(*(part.address for part in memory.values()), scratch.address, tid, threads)
            scratch.check("scratch")
        for name, part in memory.items():
            part.check(name)
        return {name: part.array(buffers[name].dtype, buffers[name].shape).copy() for name, part in memory.items()}


def program_of(loop: Loop, buffers: Sequence[Buffer]) -> Program:
    """A program of one loop."""
    return Program("test", {buffer.name: buffer for buffer in buffers}, (loop,), (), ())


def assert_close(found: np.ndarray, expected: np.ndarray, relative: float = 1e-5) -> None:
    """Within `relative` of the largest expected value."""
    assert found.shape == expected.shape
    scale = max(float(np.abs(expected).max(initial=0.0)), 1.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * scale)
