"""The model zoo that tests and benchmarks share: small networks, their losses, and inputs of the right form.

    training = make_step("lenet", batch=64, optimizer="adam")
    step = fg.compile(training.step)
    for arrays in training.batches(20):
        loss = step(*arrays)

A new model is one entry of MODELS. The inputs are random numbers: what is measured here does not depend on the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim

Array = np.ndarray[Any, Any]

WORDS, WIDTH, SENTENCE = 2000, 50, 40  # size of the vocabulary, of a word vector, and of a padded sentence
CLASSES = 10


class MLP(nn.Module):
    """784 - 256 - 128 - 10, rectified."""

    def __init__(self, sizes: Sequence[int] = (784, 256, 128, CLASSES)) -> None:
        super().__init__()
        layers = [layer for width, after in pairwise(sizes) for layer in (nn.Linear(width, after), nn.ReLU())]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: fg.Tensor) -> fg.Tensor:
        """Images (N, 1, 28, 28), or others of sizes[0] elements, to scores (N, sizes[-1])."""
        return self.layers(x.flatten(1))


class MiniTorch(nn.Module):
    """The network of MiniTorch's last module: two small convolutions, one pooling, two linear layers, dropout."""

    def __init__(
        self,
        dropout: float = 0.25,
        maps: tuple[int, int] = (4, 8),
        sizes: tuple[int, int, int] = (8 * 7 * 7, 64, CLASSES),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, maps[0], 3, padding=1)
        self.conv2 = nn.Conv2d(*maps, 3, padding=1)
        self.linear1 = nn.Linear(sizes[0], sizes[1])
        self.linear2 = nn.Linear(sizes[1], sizes[2])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: fg.Tensor) -> fg.Tensor:
        """Images (N, 1, 28, 28), or those that pooling makes sizes[0] elements of, to scores (N, sizes[2])."""
        x = self.conv2(self.conv1(x).relu()).relu()
        x = F.max_pool2d(x, 4).flatten(1)
        return self.linear2(self.dropout(self.linear1(x).relu()))


class LeNet(nn.Module):
    """LeNet-5 with rectifiers and max-pooling, as it is written today."""

    def __init__(
        self,
        maps: tuple[int, int] = (6, 16),
        kernel: int = 5,
        sizes: tuple[int, int, int, int] = (16 * 5 * 5, 120, 84, CLASSES),
    ) -> None:
        super().__init__()
        first, second = nn.Conv2d(1, maps[0], 5, padding=2), nn.Conv2d(*maps, kernel)
        self.features = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2))
        one, two, three = (nn.Linear(width, after) for width, after in pairwise(sizes))
        self.classifier = nn.Sequential(one, nn.ReLU(), two, nn.ReLU(), three)

    def forward(self, x: fg.Tensor) -> fg.Tensor:
        """Images (N, 1, 28, 28), or those that pooling makes sizes[0] elements of, to scores (N, sizes[3])."""
        return self.classifier(self.features(x).flatten(1))


class Bag(nn.Module):
    """A bag of embeddings: the mean of a sentence's word vectors, and a linear layer."""

    def __init__(self, words: int = WORDS, width: int = WIDTH) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width, padding_idx=0)
        self.output = nn.Linear(width, 2)

    def forward(self, ids: fg.Tensor, lengths: fg.Tensor) -> fg.Tensor:
        """Token ids (N, W) and lengths (N,) to scores (N, 2)."""
        return self.output(F.masked_mean(self.embedding(ids), lengths, 1))


class KimCNN(nn.Module):
    """Kim (2014): 100 detectors each of 3, 4 and 5 words, the strongest answer of each over the sentence, dropout.

    words: size of the vocabulary; None for a network that is given word vectors.
    """

    def __init__(self, maps: int = 100, dropout: float = 0.5, words: int | None = WORDS, width: int = WIDTH) -> None:
        super().__init__()
        self.embedding = None if words is None else nn.Embedding(words, width, padding_idx=0)
        self.convolutions = nn.ModuleList([nn.Conv1d(width, maps, span) for span in (3, 4, 5)])
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(3 * maps, 2)

    def forward(self, x: fg.Tensor) -> fg.Tensor:
        """Token ids (N, W) or word vectors (N, W, width) to scores (N, 2)."""
        words = (x if self.embedding is None else self.embedding(x)).transpose(1, 2)
        found = fg.cat([convolution(words).relu().amax(2) for convolution in self.convolutions], 1)
        return self.output(self.dropout(found))


class TransformerBlock(nn.Module):
    """Causal self-attention and a feed-forward part, each behind a layer norm and beside a residual connection."""

    def __init__(self, width: int = 64, heads: int = 4, hidden: int = 256) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: fg.Tensor) -> fg.Tensor:
        """Sequences (N, L, width) to sequences of the same shape."""
        seen = self.norm1(x)
        mask = fg.triu(fg.ones((x.shape[1], x.shape[1]), dtype="bool"), 1)
        x = x + self.attention(seen, seen, seen, attn_mask=mask, need_weights=False)[0]
        return x + self.feed_forward(self.norm2(x))


# -- inputs: (batch, rng) to arrays, the target last ------------------------------------------------------------------


def _images(batch: int, rng: np.random.Generator) -> tuple[Array, ...]:
    return rng.standard_normal((batch, 1, 28, 28), np.float32), rng.integers(0, CLASSES, batch)


def _sentences(batch: int, rng: np.random.Generator) -> tuple[Array, ...]:
    lengths = rng.integers(5, SENTENCE + 1, batch)
    ids = np.where(np.arange(SENTENCE) < lengths[:, None], rng.integers(1, WORDS, (batch, SENTENCE)), 0)
    return ids, lengths, rng.integers(0, 2, batch)


def _padded_sentences(batch: int, rng: np.random.Generator) -> tuple[Array, ...]:
    ids, _, labels = _sentences(batch, rng)
    return ids, labels


def _sequences(batch: int, rng: np.random.Generator) -> tuple[Array, ...]:
    x, y = (rng.standard_normal((batch, 32, 64), np.float32) for _ in range(2))
    return x, y


@dataclass(frozen=True)
class Spec:
    """A network, what it is trained on, how, and a batch size that is usual for it."""

    network: Callable[[], nn.Module]
    inputs: Callable[[int, np.random.Generator], tuple[Array, ...]]
    loss: Callable[..., fg.Tensor] = F.cross_entropy
    batch: int = 64


MODELS: dict[str, Spec] = {
    "mlp": Spec(MLP, _images),
    "minitorch": Spec(MiniTorch, _images),
    "lenet": Spec(LeNet, _images),
    "bag": Spec(Bag, _sentences),
    "kim": Spec(KimCNN, _padded_sentences, batch=50),
    "transformer": Spec(TransformerBlock, _sequences, F.mse_loss, batch=16),
}

OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "sgd": lambda parameters: optim.SGD(parameters, lr=0.01, momentum=0.9),
    "adam": lambda parameters: optim.Adam(parameters, lr=1e-3),
}


@dataclass(frozen=True)
class Training:
    """A network in training. `step(*arrays)` does forward, backward and update, and gives the loss (not compiled)."""

    name: str
    model: nn.Module
    optimizer: optim.Optimizer
    step: Callable[..., fg.Tensor]
    batch: int
    dtype: str = "float32"

    def batches(self, count: int, seed: int = 1) -> Iterator[tuple[Array, ...]]:
        """`count` batches of random inputs, the same for the same seed."""
        rng = np.random.default_rng(seed)
        for _ in range(count):
            arrays = MODELS[self.name].inputs(self.batch, rng)
            yield tuple(a.astype(self.dtype) if a.dtype.kind == "f" else a for a in arrays)


def make_step(
    name: str, batch: int | None = None, optimizer: str = "adam", seed: int = 0, dtype: str = "float32"
) -> Training:
    """Model `name` with new parameters (the same for the same seed) and its training step.

    The default generator is seeded too, so that dropout draws the same numbers in every run that does the same steps.
    """
    spec = MODELS[name]
    fg.manual_seed(seed)
    model = spec.network().to(dtype)
    opt = OPTIMIZERS[optimizer](model.parameters())

    def step(*arrays: Any) -> fg.Tensor:
        *inputs, target = arrays
        opt.zero_grad()
        loss = spec.loss(model(*map(fg.as_tensor, inputs)), target)
        loss.backward()
        opt.step()
        return loss

    return Training(name, model, opt, step, batch or spec.batch, dtype)
