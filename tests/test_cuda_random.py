"""Random op graphs as emitted CUDA kernels, forward and with gradients, under the PTX interpreter beside the numpy reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

import fusegraph as fg
from fusegraph.build import Artifact
from fusegraph.codegen.cuda.step import emit_step
from fusegraph.ir import emit, interpret
from fusegraph.ir.graph import Graph
from fusegraph.runtime import cuda_compile
from tests.cuda_models import Emulated
from tests.cuda_tools import artifact_of
from tests.random_graphs import random_graph

pytestmark = pytest.mark.skipif(
    bool(cuda_compile.missing()), reason=f"kernels cannot be compiled: {cuda_compile.missing()}"
)
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}  # a chain of up to 20 operations, each with its rounding


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


def emulated(artifact: Artifact, exact: bool = False) -> Emulated:
    """Runs the artifact's kernels, and compares."""
    return Emulated(artifact, emit_step(artifact.fused[0], exact), TOLERANCE)


@pytest.mark.parametrize("seed", range(8))
def test_random_graphs(seed: int) -> None:
    """Every third with sums in a fixed order; every fourth not fused."""
    graph, arrays = random_graph(5000 + seed, 18, dtype=("float32", "float64")[seed % 2])
    emulator = emulated(artifact_of(graph, fuse=seed % 4 != 3), exact=seed % 3 == 2)
    emulator.run([array.copy() for array in arrays])
    assert emulator.problems == []


def with_gradients(graph: Graph) -> Callable[..., list[fg.Tensor]]:
    """A function that does what the graph does, and gives the gradients of a weighted sum of its outputs too."""
    rng = np.random.default_rng(4)
    weights = {node: rng.uniform(0.5, 1.5, node.shape).astype(node.dtype) for node in graph.outputs}

    def function(*inputs: fg.Tensor) -> list[fg.Tensor]:
        leaves = [x.detach().requires_grad_() if x.dtype.kind == "f" else x for x in inputs]
        values = dict(zip(graph.inputs, leaves, strict=True))
        for node in graph.nodes:
            if node.op != "input":
                operands = [values[x] for x in node.inputs]
                made = (
                    emit.bind(node.op, *operands, **node.params)
                    if operands
                    else interpret.apply(node.op, (), node.params)
                )
                values[node] = fg.as_tensor(made)
        outputs = [values[node] for node in graph.outputs]
        learned = [node for node in graph.outputs if node.dtype.kind == "f" and values[node].requires_grad]
        total = sum((values[node] * fg.as_tensor(weights[node])).sum() for node in learned)
        wanted = [x for x in leaves if x.requires_grad]
        grads = fg.autograd.grad(total, wanted, allow_unused=True) if learned else []
        return [*outputs, *(g for g in grads if g is not None)]

    return function


@pytest.mark.parametrize("seed", range(6))
def test_gradients_of_random_graphs(seed: int) -> None:
    graph, arrays = random_graph(7000 + seed, 12, dtype="float64")
    compiled = fg.compile(with_gradients(graph), backend="reference")
    artifact = compiled.compiled_for(*arrays).artifact
    artifact.executable = emulator = emulated(artifact)
    assert len(compiled(*arrays)) > len(graph.outputs), "there are gradients"
    assert emulator.problems == []
