"""Building and running of contraction loops for tests: matrix products of any layout, and their numpy reference."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np

from fusegraph.codegen.cpu.contract import emit_contract
from fusegraph.codegen.cpu.irtext import Module
from fusegraph.ir.loops import Buffer, Loop, Program
from fusegraph.runtime import llvm

GUARD = 16  # elements beside every buffer that must stay as they are


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
        """Run on copies of `arrays` (those that are missing start as NaN); gives every buffer's array afterwards."""
        assert self.kernel is not None
        guarded = {name: _guarded(self.program.buffers[name], arrays.get(name)) for name in self.program.buffers}
        scratch = np.full(self.kernel.scratch_bytes + 128, 0xFF, np.uint8)
        at = scratch.ctypes.data + (-scratch.ctypes.data) % 64
        for tid in range(threads):
            pointers = [guarded[name].ctypes.data + GUARD * guarded[name].itemsize for name in self.kernel.buffers]
            self.function(*pointers, at, tid, threads)
        used = at - scratch.ctypes.data + self.kernel.scratch_bytes
        assert (scratch[used:] == 0xFF).all(), "wrote past its scratch memory"
        return {name: _inside(self.program.buffers[name], array) for name, array in guarded.items()}


def _guarded(buffer: Buffer, values: np.ndarray | None) -> np.ndarray:
    fill = 0 if buffer.dtype.kind != "f" else np.nan
    array = np.full(buffer.size + 2 * GUARD, fill, buffer.dtype)
    if values is not None:
        array[GUARD : GUARD + buffer.size] = np.asarray(values, buffer.dtype).ravel()
    array[:GUARD] = array[GUARD + buffer.size :] = 7
    return array


def _inside(buffer: Buffer, array: np.ndarray) -> np.ndarray:
    assert (array[:GUARD] == 7).all() and (array[GUARD + buffer.size :] == 7).all(), f"wrote outside of {buffer.name}"
    return array[GUARD : GUARD + buffer.size].reshape(buffer.shape)


def program_of(loop: Loop, buffers: Sequence[Buffer]) -> Program:
    """A program of one loop."""
    return Program("test", {buffer.name: buffer for buffer in buffers}, (loop,), (), ())


def assert_close(found: np.ndarray, expected: np.ndarray, relative: float = 1e-5) -> None:
    """Within `relative` of the largest expected value."""
    assert found.shape == expected.shape
    scale = max(float(np.abs(expected).max(initial=0.0)), 1.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * scale)
