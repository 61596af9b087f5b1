"""Run emitted CUDA steps under the PTX interpreter, and the steps that the CUDA tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim
from fusegraph.build import Artifact, Options, ReferenceExecutable
from fusegraph.codegen.cuda.step import ARENA, CudaStep, emit_step
from fusegraph.ir.graph import Graph
from fusegraph.runtime.cuda_compile import CudaModule

Array = np.ndarray[Any, Any]


def artifact_of(graph: Graph, fuse: bool = True) -> Artifact:
    """The graph with its passes and fusion, not built."""
    return Artifact(graph, Options("cpu", fuse=fuse), ReferenceExecutable(graph))


def run_step(step: CudaStep, inputs: Sequence[Array]) -> list[Array]:
    """All launches under the interpreter. `inputs` in the order of the program's; states change in place."""
    from tests.ptx import PtxKernel

    program, module = step.program, CudaModule(step)
    memory = dict(zip(program.inputs, inputs, strict=True))
    for name in program.outputs:
        memory.setdefault(name, np.zeros(program.buffers[name].shape, program.buffers[name].dtype))
    flat = {name: array.reshape(-1).view(np.uint8) for name, array in memory.items()}
    flat[ARENA] = np.full(step.memory.arena_bytes, 0xA5, np.uint8)
    for launch in step.launches:
        kernel = step.kernel(launch.kernel)
        parts = [
            flat[base][offset : offset + program.buffers[name].nbytes]
            for name, (base, offset) in zip(kernel.buffers, launch.arguments, strict=True)
        ]
        copies = [part.copy().view(kind) for part, kind in zip(parts, step.types(kernel), strict=True)]
        PtxKernel(module.ptx(kernel.name)).launch(launch.grid, launch.block, copies)
        loop = program.loops[step.kernels.index(kernel)]
        for name, part, copy in zip(kernel.buffers, parts, copies, strict=True):
            if name in loop.writes():
                part[:] = copy.view(np.uint8)
    return [memory[name] for name in program.outputs]


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
