"""What emitted steps move, counted by the PTX interpreter, and steps made from plain functions, for the tests of CUDA nests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import fusegraph as fg
from fusegraph.build import Artifact
from fusegraph.codegen.cuda.kernel import CudaKernel
from fusegraph.codegen.cuda.step import CudaStep, Launch, emit_step
from fusegraph.ir import interpret
from tests.cuda_ptx import StepPtx, interpreter
from tests.cuda_tools import StepMemory
from tests.op_sheets import compare

Array = np.ndarray[Any, Any]
TARGET = "sm_90"


@dataclass(frozen=True)
class Measured:
    """One launch and what it cost."""

    kernel: CudaKernel
    launch: Launch
    counters: Any

    @property
    def sectors(self) -> int:
        """32-byte sectors that its requests to global memory touched."""
        return int(self.counters.sectors + self.counters.atomic.sectors)


def measure(step: CudaStep, inputs: Sequence[Array]) -> tuple[list[Array], list[Measured]]:
    """Outputs, and every launch with its counters. States change in place."""
    memory, ptx = StepMemory(step, inputs), StepPtx(step, TARGET)
    found = []
    for launch in step.launches:
        kernel = step.kernel(launch.kernel)
        counters = interpreter(ptx.ptx(kernel)).launch(launch.grid, launch.block, memory.arguments(kernel, launch))
        found.append(Measured(kernel, launch, counters))
    return [memory.arrays[name] for name in step.program.outputs], found


def random_inputs(artifact: Artifact, seed: int = 0, whole: int = 2) -> list[Array]:
    """Arrays for a fused program's inputs: normal numbers, whole ones below `whole`."""
    rng = np.random.default_rng(seed)
    buffers = [artifact.fused[0].buffers[name] for name in artifact.fused[0].inputs]
    return [
        np.asarray(rng.standard_normal(b.shape), b.dtype)
        if b.dtype.kind == "f"
        else np.asarray(rng.integers(0, whole, b.shape), b.dtype)
        for b in buffers
    ]


def reference(artifact: Artifact, inputs: Sequence[Array]) -> list[Array]:
    """Outputs by numpy, then the new values of the states."""
    outputs, updates = interpret.run(artifact.graph, [value.copy() for value in inputs])
    return [*outputs, *updates]


def check(artifact: Artifact, inputs: Sequence[Array], **options: Any) -> list[Measured]:
    """Run the step; its outputs and states must be the reference's. Gives its launches."""
    wanted = reference(artifact, inputs)
    copies = [value.copy() for value in inputs]
    got, launches = measure(emit_step(artifact.fused[0], **options), copies)
    places = [artifact.graph.inputs.index(old) for old, _ in artifact.graph.updates]
    got = [*got, *(copies[place] for place in places)]
    pairs = [(g.reshape(w.shape), w) for g, w in zip(got, wanted, strict=True)]
    labels = [f"result {number}" for number in range(len(pairs))]
    assert compare([g for g, _ in pairs], [w for _, w in pairs], labels) == []
    return launches


def cuda_artifact(function: Callable[..., Any], *arguments: Any) -> Artifact:
    """What compiling `function` for CUDA gives, but for a GPU."""
    artifact: Artifact = fg.compile(function, backend="cuda").compiled_for(*arguments).artifact
    return artifact


def check_function(function: Callable[..., Any], *shapes: Any, whole: int = 2, **options: Any) -> list[Measured]:
    """`check` of a function of float32 arrays of these shapes (an array stands for itself: its type is taken)."""
    samples = [np.zeros(shape, np.float32) if isinstance(shape, tuple) else shape for shape in shapes]
    artifact = cuda_artifact(function, *samples)
    return check(artifact, random_inputs(artifact, whole=whole), **options)
