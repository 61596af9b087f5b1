"""The example models at reduced, odd sizes, and a training step of each that runs under the PTX interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim
from fusegraph.build import Artifact
from fusegraph.codegen.cuda.step import CudaStep, emit_step
from fusegraph.ir import interpret
from tests.cuda_tools import run_step
from tests.op_sheets import TOLERANCE, compare

Array = np.ndarray[Any, Any]
BATCH, CLASSES, WORDS, WIDTH, SENTENCE = 5, 3, 37, 7, 11


class MLP(nn.Module):
    """Two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(77, 33), nn.ReLU(), nn.Linear(33, 17), nn.ReLU(), nn.Linear(17, CLASSES))

    def forward(self, x: fg.Tensor) -> fg.Tensor:
        """Images (N, 1, 7, 11) to scores."""
        return self.layers(x.flatten(1))


class MiniTorch(nn.Module):
    """Two convolutions, one pooling, two linear layers, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
        self.linear1, self.linear2 = nn.Linear(5 * 2 * 2, 9), nn.Linear(9, CLASSES)
        self.dropout = nn.Dropout(0.25)

    def forward(self, x: fg.Tensor) -> fg.Tensor:
        """Images (N, 1, 9, 9) to scores."""
        x = F.max_pool2d(self.conv2(self.conv1(x).relu()).relu(), 4).flatten(1)
        return self.linear2(self.dropout(self.linear1(x).relu()))


class LeNet(nn.Module):
    """Convolution and pooling twice, then three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 3, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 5, 3), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.classifier = nn.Sequential(
            nn.Linear(5 * 2 * 2, 11), nn.ReLU(), nn.Linear(11, 9), nn.ReLU(), nn.Linear(9, CLASSES)
        )

    def forward(self, x: fg.Tensor) -> fg.Tensor:
        """Images (N, 1, 13, 13) to scores."""
        return self.classifier(self.features(x).flatten(1))


class Bag(nn.Module):
    """The mean of a sentence's word vectors, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.output = nn.Linear(WIDTH, 2)

    def forward(self, ids: fg.Tensor, lengths: fg.Tensor) -> fg.Tensor:
        """Token ids (N, W) and lengths (N,) to scores."""
        return self.output(F.masked_mean(self.embedding(ids), lengths, 1))


class Kim(nn.Module):
    """Detectors of 3, 4 and 5 words, the strongest answer of each over the sentence, dropout; from ids or from vectors."""

    def __init__(self, vectors: bool = False) -> None:
        super().__init__()
        self.embedding = None if vectors else nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.convolutions = nn.ModuleList([nn.Conv1d(WIDTH, 9, width) for width in (3, 4, 5)])
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(27, 2)

    def forward(self, x: fg.Tensor) -> fg.Tensor:
        """Token ids (N, W) or word vectors (N, W, WIDTH) to scores."""
        words = (x if self.embedding is None else self.embedding(x)).transpose(1, 2)
        found = fg.cat([convolution(words).relu().amax(2) for convolution in self.convolutions], 1)
        return self.output(self.dropout(found))


class TransformerBlock(nn.Module):
    """Causal self-attention and a feed-forward part, each behind a layer norm and beside a residual connection."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(width, 29), nn.GELU(), nn.Linear(29, width))

    def forward(self, x: fg.Tensor) -> fg.Tensor:
        """Sequences (N, L, width) to sequences of the same shape."""
        seen = self.norm1(x)
        mask = fg.triu(fg.ones((x.shape[1], x.shape[1]), dtype="bool"), 1)
        x = x + self.attention(seen, seen, seen, attn_mask=mask, need_weights=False)[0]
        return x + self.feed_forward(self.norm2(x))


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
    "mlp": Small(MLP, _images(7, 11)),
    "minitorch": Small(MiniTorch, _images(9, 9)),
    "lenet": Small(LeNet, _images(13, 13)),
    "bag": Small(Bag, _sentences),
    "kim": Small(Kim, _padded),
    "kim_vectors": Small(lambda: Kim(vectors=True), _vectors),
    "transformer": Small(TransformerBlock, _sequences, F.mse_loss),
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
