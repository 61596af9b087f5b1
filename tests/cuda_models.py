"""The example models at reduced, odd sizes, and a training step of each that runs under the PTX interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fusegraph as fg
import fusegraph.functional as F
from benchmarks.models import MLP, Bag, KimCNN, LeNet, MiniTorch, TransformerBlock
from fusegraph import nn, optim
from fusegraph.build import Artifact
from fusegraph.codegen.cuda.step import CudaStep, emit_step
from fusegraph.ir import interpret
from tests.cuda_tools import run_step
from tests.op_sheets import TOLERANCE, compare

Array = np.ndarray[Any, Any]
BATCH, CLASSES, WORDS, WIDTH, SENTENCE = 5, 3, 37, 7, 11


# -- inputs -------------------------------------------------------------------------------------------------------------

Inputs = Callable[[np.random.Generator], tuple[Array, ...]]


def _images(height: int, width: int) -> Inputs:
    return lambda rng: (
        rng.standard_normal((BATCH, 1, height, width), np.float32),
        rng.integers(0, CLASSES, BATCH),
    )


def _sentences(rng: np.random.Generator) -> tuple[Array, ...]:
    lengths = rng.integers(5, SENTENCE + 1, BATCH)
    ids = np.where(np.arange(SENTENCE) < lengths[:, None], rng.integers(1, WORDS, (BATCH, SENTENCE)), 0)
    return ids, lengths, rng.integers(0, 2, BATCH)


def _padded(rng: np.random.Generator) -> tuple[Array, ...]:
    ids, _, labels = _sentences(rng)
    return ids, labels


def _vectors(rng: np.random.Generator) -> tuple[Array, ...]:
    return rng.standard_normal((BATCH, SENTENCE, WIDTH), np.float32), rng.integers(0, 2, BATCH)


def _sequences(rng: np.random.Generator) -> tuple[Array, ...]:
    x, y = (rng.standard_normal((3, 7, 12), np.float32) for _ in range(2))
    return x, y


@dataclass(frozen=True)
class Small:
    """A network, what it is trained on, and how."""

    network: Callable[[], nn.Module]
    inputs: Inputs
    loss: Callable[..., fg.Tensor] = F.cross_entropy


SMALL: dict[str, Small] = {
    "mlp": Small(lambda: MLP((77, 33, 17, CLASSES)), _images(7, 11)),
    "minitorch": Small(lambda: MiniTorch(maps=(3, 5), sizes=(5 * 2 * 2, 9, CLASSES)), _images(9, 9)),
    "lenet": Small(lambda: LeNet((3, 5), 3, (5 * 2 * 2, 11, 9, CLASSES)), _images(13, 13)),
    "bag": Small(lambda: Bag(WORDS, WIDTH), _sentences),
    "kim": Small(lambda: KimCNN(9, words=WORDS, width=WIDTH), _padded),
    "kim_vectors": Small(lambda: KimCNN(9, words=None, width=WIDTH), _vectors),
    "transformer": Small(lambda: TransformerBlock(12, 3, 29), _sequences, F.mse_loss),
}

# Adam divides a gradient by its own size. Where one is 0 but for rounding (that of the keys' bias in attention) the usual
# 1e-8 would leave noise of size 1; with this one an error in the gradient is an error of the same size in the update.
ADAM_EPS = 1e-2
OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "sgd": lambda parameters: optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adam": lambda parameters: optim.Adam(parameters, lr=1e-2, eps=ADAM_EPS),
}


# -- running --------------------------------------------------------------------------------------------------------------


@dataclass
class Emulated:
    """Runs the emitted kernels of a graph, and compares all outputs and states with the numpy reference at each run."""

    artifact: Artifact
    step: CudaStep
    tolerance: Mapping[str, float] = field(default_factory=lambda: TOLERANCE)
    problems: list[str] = field(default_factory=list)
    runs: int = 0

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs; states change in place, as emitted code left them."""
        graph = self.artifact.graph
        outputs, updates = interpret.run(graph, [array.copy() for array in inputs])
        places = [graph.inputs.index(old) for old, _ in graph.updates]
        got = [g.reshape(w.shape) for g, w in zip(run_step(self.step, inputs), outputs, strict=True)]
        labels = [f"run {self.runs}, output {node}" for node in graph.outputs]
        labels += [f"run {self.runs}, state {old.params.get('name', old)}" for old, _ in graph.updates]
        self.problems += compare(
            [*got, *(inputs[i] for i in places)], [*outputs, *updates], labels, tolerance=self.tolerance
        )
        self.runs += 1
        return got


def emulated(name: str, optimizer: str, *, fuse: bool = True, exact: bool = False) -> tuple[Any, Emulated]:
    """The compiled training step of a small model, and what runs it."""
    small = SMALL[name]
    fg.manual_seed(0)
    model = small.network()
    opt = OPTIMIZERS[optimizer](model.parameters())

    def step(*arrays: Any) -> fg.Tensor:
        *inputs, target = arrays
        opt.zero_grad()
        loss = small.loss(model(*map(fg.as_tensor, inputs)), target)
        loss.backward()
        opt.step()
        return loss

    compiled = fg.compile(step, backend="reference", fuse=fuse, exact=exact)
    artifact = compiled.compiled_for(*next(batches(name))).artifact
    artifact.executable = Emulated(artifact, emit_step(artifact.fused[0], exact))
    return compiled, artifact.executable


def batches(name: str, count: int = 1) -> Iterator[tuple[Array, ...]]:
    """`count` batches of random inputs, the same each time."""
    rng = np.random.default_rng(1)
    for _ in range(count):
        yield SMALL[name].inputs(rng)
