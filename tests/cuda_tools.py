"""Run emitted CUDA steps under the PTX interpreter, and the steps that the CUDA tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim
from fusegraph.build import Artifact, Options, ReferenceExecutable
from fusegraph.codegen.cuda.kernel import CudaKernel
from fusegraph.codegen.cuda.step import ARENA, CudaStep, Launch, emit_step
from fusegraph.ir import interpret
from fusegraph.ir.graph import Graph
from fusegraph.runtime.cuda_compile import DEFAULT_TARGET
from tests.cuda_ptx import StepPtx, interpreter
from tests.op_sheets import Sheet, compare

Array = np.ndarray[Any, Any]
POISON = 0xA5  # what the arena is filled with


def artifact_of(graph: Graph, fuse: bool = True) -> Artifact:
    """The graph with its passes and fusion, not built."""
    return Artifact(graph, Options("cpu", fuse=fuse), ReferenceExecutable(graph))


def run_step(step: CudaStep, inputs: Sequence[Array], target: str = DEFAULT_TARGET) -> list[Array]:
    """All launches under the interpreter. `inputs` in the order of the program's; states change in place.

    Temps lie in one arena as on the device. Reading a byte of one that no launch has written is an error.
    """
    memory, ptx = StepMemory(step, inputs), StepPtx(step, target)
    for launch in step.launches:
        kernel = step.kernel(launch.kernel)
        arguments = memory.arguments(kernel, launch)
        interpreter(ptx.ptx(kernel)).launch(launch.grid, launch.block, arguments, traffic=False)
    return [memory.arrays[name] for name in step.program.outputs]


def sheet_mismatches(sheet: Sheet, *, fuse: bool = True, exact: bool = False, elementwise: bool = False) -> list[str]:
    """Which operations of a sheet give something else in emitted kernels than in the numpy reference."""
    step = emit_step(artifact_of(sheet.graph, fuse).fused[0], exact)
    inputs = [array.copy() for array in sheet.arrays]
    got = run_step(step, inputs)
    for before, after in zip(sheet.arrays, inputs, strict=True):
        np.testing.assert_array_equal(before, after, "an input was overwritten")
    wanted = interpret.run(sheet.graph, sheet.arrays)[0]
    return compare([g.reshape(w.shape) for g, w in zip(got, wanted, strict=True)], wanted, sheet.labels, elementwise)


class StepMemory:
    """The arrays and the arena of one run of a step, for launches under the interpreter."""

    def __init__(self, step: CudaStep, inputs: Sequence[Array]) -> None:
        program = self.program = step.program
        self.step = step
        self.arrays = dict(zip(program.inputs, inputs, strict=True))
        for name in program.outputs:
            self.arrays.setdefault(name, np.zeros(program.buffers[name].shape, program.buffers[name].dtype))
        self.flat = {name: array.reshape(-1).view(np.uint8) for name, array in self.arrays.items()}
        self.flat[ARENA] = np.full(step.memory.arena_bytes, POISON, np.uint8)
        self.defined = {ARENA: np.zeros(step.memory.arena_bytes, bool)}
        fresh = (name for name in program.outputs if name not in program.inputs)
        self.defined |= {name: np.zeros(self.arrays[name].nbytes, bool) for name in fresh}
        written = {name for loop in program.loops for name in loop.writes()}
        self.constant = {name for name in self.arrays if name not in written}
        self.born: set[str] = set()

    def arguments(self, kernel: CudaKernel, launch: Launch) -> list[Any]:
        """What the kernel gets: views of the memory, and which of their bytes are defined."""
        from tests.ptx import Placed

        self._forget(kernel, launch)
        found = []
        kinds = self.step.types(kernel)
        for name, kind, (base, offset) in zip(kernel.buffers, kinds, launch.arguments, strict=True):
            end = offset + self.step.in_memory.buffers[name].nbytes
            array = self.flat[base][offset:end].view("uint16" if name in self.step.narrow else kind)
            if base in self.constant:
                array.flags.writeable = False
            defined = self.defined[base][offset:end] if base in self.defined else None
            found.append(Placed(array, offset % 256, name, defined))
        return found

    def _forget(self, kernel: CudaKernel, launch: Launch) -> None:
        """A temp that is used for the first time is undefined, whatever lay there, but for temps whose place it takes over."""
        spans = {
            name: (offset, offset + self.step.in_memory.buffers[name].nbytes)
            for name, (base, offset) in zip(kernel.buffers, launch.arguments, strict=True)
            if base == ARENA and self.step.memory.arena[name] == offset
        }
        for name, (start, end) in spans.items():
            others = [span for other, span in spans.items() if other != name]
            if name not in self.born and not any(start < stop and begin < end for begin, stop in others):
                self.defined[ARENA][start:end] = False
        self.born.update(spans)


def mnist_artifact(rows: int = 8) -> Artifact:
    """Forward, backward and update of a small MNIST network as one graph."""
    model = nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def step(x: fg.Tensor, y: fg.Tensor) -> fg.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return compiled_artifact(step, np.zeros((rows, 784), np.float32), np.zeros(rows, np.int64))


def compiled_artifact(function: Callable[..., Any], *arguments: Any) -> Artifact:
    """What compiling `function` for these arguments gives."""
    artifact: Artifact = fg.compile(function).compiled_for(*arguments).artifact
    return artifact


def step_of(graph: Graph, **options: Any) -> CudaStep:
    """The CUDA step of a graph."""
    return emit_step(artifact_of(graph).fused[0], **options)
