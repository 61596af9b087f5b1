"""The workloads: names, sizes, inputs and initial weights. numpy only, so that every system starts from the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

VOCABULARY, WIDTH, SENTENCE = 10_000, 50, 52  # words known, size of a word vector, length of a padded sentence
MAPS, WORDS_SEEN = 100, (3, 4, 5)  # detectors of each width in the sentence network
CLASSES = 10
SEQUENCE, MODEL_WIDTH, HEADS = 64, 128, 4  # of the transformer block
TOKENS, FEATURES, HIDDEN, GATED = 512, 256, 1024, 704  # of the feed-forward layers: GELU's hidden width, SwiGLU's
LEARNING_RATE = {"sgd": 0.05, "momentum": 0.01, "adam": 1e-3}
MOMENTUM = 0.9
ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-8
BATCHES = 4  # different batches that a run goes round


@dataclass(frozen=True)
class Case:
    """One workload.

    `network` names its definition in networks.py and jax_jit.py. `kind`: "train" (forward, backward and update of a network),
    "infer" (a network's forward pass), "forward" (a function of the inputs) or "gradient" (its value and the gradients of all
    inputs of numbers but the last, which is the cotangent of the value). `shape` is the size of a function's first input.
    `flops` is the work of one step, where products of matrices dominate it; `nbytes` is what must move through memory at
    least, where that does.
    """

    name: str
    title: str
    network: str
    kind: str = "train"
    batch: int = 1
    optimizer: str = "momentum"
    shape: tuple[int, ...] = ()
    quick: bool = True
    flops: float = 0.0
    nbytes: float = 0.0

    def parameters(self, seed: int = 0) -> dict[str, Array]:
        """Initial weights (float32) by name; the same for the same seed."""
        rng = np.random.default_rng(seed)
        return {name: _initial(name, shape, rng) for name, shape in PARAMETERS.get(self.network, {}).items()}

    def batches(self, count: int = BATCHES, seed: int = 1) -> list[tuple[Array, ...]]:
        """`count` tuples of inputs, the target (or the cotangent) last."""
        rng = np.random.default_rng(seed)
        return [tuple(INPUTS[self.network](self, rng)) for _ in range(count)]


def _initial(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if "norm" in name:
        return np.ones(shape, np.float32) if name.endswith("weight") else np.zeros(shape, np.float32)
    if "embedding" in name:
        table = rng.standard_normal(shape, np.float32)
        table[0] = 0  # the word that fills up sentences
        return table
    bound = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.05
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _conv(name: str, inputs: int, outputs: int, *kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs, *kernel), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


PARAMETERS: dict[str, dict[str, tuple[int, ...]]] = {
    "mlp": {**_linear("linear1", 784, 256), **_linear("linear2", 256, 128), **_linear("linear3", 128, CLASSES)},
    "tiny": {**_linear("linear1", 2, 10), **_linear("linear2", 10, 10), **_linear("linear3", 10, 1)},
    "minitorch": {
        **_conv("conv1", 1, 4, 3, 3), **_conv("conv2", 4, 8, 3, 3),
        **_linear("linear1", 8 * 7 * 7, 64), **_linear("linear2", 64, CLASSES),
    },
    "lenet": {
        **_conv("conv1", 1, 6, 5, 5), **_conv("conv2", 6, 16, 5, 5), **_linear("linear1", 16 * 5 * 5, 120),
        **_linear("linear2", 120, 84), **_linear("linear3", 84, CLASSES),
    },
    "lenetwide": {
        **_conv("conv1", 1, 32, 5, 5), **_conv("conv2", 32, 64, 5, 5), **_linear("linear1", 64 * 5 * 5, 120),
        **_linear("linear2", 120, 84), **_linear("linear3", 84, CLASSES),
    },
    "gelu": {**_linear("widen", FEATURES, HIDDEN), **_linear("narrow", HIDDEN, FEATURES)},
    "swiglu": {**_linear("gate", FEATURES, GATED), **_linear("widen", FEATURES, GATED), **_linear("narrow", GATED, FEATURES)},
    "bag": {"embedding.weight": (VOCABULARY, WIDTH), **_linear("output", WIDTH, 2)},
    "kim": {
        "embedding.weight": (VOCABULARY, WIDTH),
        **{key: shape for i, width in enumerate(WORDS_SEEN) for key, shape in _conv(f"conv{i}", WIDTH, MAPS, width).items()},
        **_linear("output", len(WORDS_SEEN) * MAPS, 2),
    },
    "kimvectors": {
        **{key: shape for i, width in enumerate(WORDS_SEEN) for key, shape in _conv(f"conv{i}", WIDTH, MAPS, width).items()},
        **_linear("output", len(WORDS_SEEN) * MAPS, 2),
    },
    "transformer": {
        **_norm("norm1", MODEL_WIDTH), **_linear("qkv", MODEL_WIDTH, 3 * MODEL_WIDTH),
        **_linear("project", MODEL_WIDTH, MODEL_WIDTH), **_norm("norm2", MODEL_WIDTH),
        **_linear("widen", MODEL_WIDTH, 4 * MODEL_WIDTH), **_linear("narrow", 4 * MODEL_WIDTH, MODEL_WIDTH),
    },
}  # fmt: skip


# -- inputs -----------------------------------------------------------------------------------------------------------


def _images(case: Case, rng: np.random.Generator) -> Iterator[Array]:
    yield rng.standard_normal((case.batch, 1, 28, 28), np.float32)
    yield rng.integers(0, CLASSES, case.batch)


def _points(case: Case, rng: np.random.Generator) -> Iterator[Array]:
    points = rng.random((case.batch, 2), np.float32)
    yield points
    yield (points[:, :1] < points[:, 1:]).astype(np.float32)


def _ids(case: Case, rng: np.random.Generator) -> tuple[Array, Array]:
    lengths = rng.integers(5, SENTENCE + 1, case.batch)
    words = rng.integers(1, VOCABULARY, (case.batch, SENTENCE))
    return np.where(np.arange(SENTENCE) < lengths[:, None], words, 0), lengths


def _sentences_with_lengths(case: Case, rng: np.random.Generator) -> Iterator[Array]:
    ids, lengths = _ids(case, rng)
    yield ids
    yield lengths.astype(np.float32)
    yield rng.integers(0, 2, case.batch)


def _sentences(case: Case, rng: np.random.Generator) -> Iterator[Array]:
    yield _ids(case, rng)[0]
    yield rng.integers(0, 2, case.batch)


def _vectors(case: Case, rng: np.random.Generator) -> Iterator[Array]:
    yield rng.standard_normal((case.batch, SENTENCE, WIDTH), np.float32)
    yield rng.integers(0, 2, case.batch)


def _tokens(case: Case, rng: np.random.Generator) -> Iterator[Array]:
    for _ in range(2):
        yield rng.standard_normal((case.batch, FEATURES), np.float32)


def _sequences(case: Case, rng: np.random.Generator) -> Iterator[Array]:
    for _ in range(2):
        yield rng.standard_normal((case.batch, SEQUENCE, MODEL_WIDTH), np.float32)


def _arrays(case: Case, rng: np.random.Generator) -> Iterator[Array]:
    yield rng.standard_normal(case.shape, np.float32)
    channels = case.shape[1:2] if case.network == "batchnorm" else case.shape[-1:]
    if case.network in ("layernorm", "rmsnorm", "batchnorm"):
        yield 1 + 0.1 * rng.standard_normal(channels, np.float32)
    if case.network in ("layernorm", "batchnorm"):
        yield 0.1 * rng.standard_normal(channels, np.float32)
    if case.network == "crossentropy":
        yield rng.integers(0, case.shape[-1], case.shape[0])
    if case.kind == "gradient":
        yield rng.standard_normal(() if case.network == "crossentropy" else case.shape, np.float32)


INPUTS: dict[str, Callable[[Case, np.random.Generator], Iterator[Array]]] = {
    "mlp": _images, "tiny": _points, "minitorch": _images, "lenet": _images, "lenetwide": _images,
    "bag": _sentences_with_lengths, "kim": _sentences, "kimvectors": _vectors, "transformer": _sequences, "gelu": _tokens,
    "swiglu": _tokens, "chain": _arrays, "softmax": _arrays, "crossentropy": _arrays, "layernorm": _arrays,
    "rmsnorm": _arrays, "batchnorm": _arrays,
}  # fmt: skip


# -- the list ---------------------------------------------------------------------------------------------------------


def _training(
    network: str, title: str, batches: tuple[int, ...], optimizer: str, quick: int, suffix: str = ""
) -> list[Case]:
    return [
        Case(f"{network}-{n}{suffix}", f"{title}, batch {n}", network, "train", n, optimizer, quick=n == quick,
             flops=n * TRAINING_FLOPS.get(network, 0.0))
        for n in batches
    ]  # fmt: skip


def _functions(network: str, title: str, shape: tuple[int, ...], quick: bool = True) -> list[Case]:
    size = 4.0 * np.prod(shape)
    return [
        Case(network, f"{title}, forward", network, "forward", shape=shape, quick=quick, nbytes=2 * size),
        Case(f"{network}-grad", f"{title}, forward and backward", network, "gradient", shape=shape, quick=quick,
             nbytes=4 * size),
    ]  # fmt: skip


def _function(network: str, title: str, shape: tuple[int, ...], passes: float) -> Case:
    """Forward and backward of a function that goes `passes` times over its input."""
    nbytes = 4.0 * passes * np.prod(shape)
    return Case(
        f"{network}-grad",
        f"{title}, forward and backward",
        network,
        "gradient",
        shape=shape,
        quick=False,
        nbytes=nbytes,
    )


def _dense_flops(*sizes: int) -> float:
    """Forward, weight gradients and input gradients (but the first layer's) of linear layers, for one sample."""
    products = [2.0 * a * b for a, b in zip(sizes, sizes[1:])]
    return 3 * sum(products) - products[0]


TRAINING_FLOPS = {
    "mlp": _dense_flops(784, 256, 128, CLASSES),
    "minitorch": 2.0 * 784 * 36 * (2 + 3 * 8) + _dense_flops(392, 64, CLASSES) + 2 * 392 * 64,
    "lenet": 2.0 * 784 * 150 * 2 + 3 * 2.0 * 100 * 2400 + _dense_flops(400, 120, 84, CLASSES) + 2 * 400 * 120,
    "lenetwide": 2.0 * 784 * 32 * 25 * 2
    + 3 * 2.0 * 100 * 64 * 800
    + _dense_flops(1600, 120, 84, CLASSES)
    + 2 * 1600 * 120,
    "gelu": 5 * 2.0 * FEATURES * HIDDEN,
    "swiglu": 7 * 2.0 * FEATURES * GATED,
    "kim": 3 * 2.0 * WIDTH * MAPS * sum(w * (SENTENCE - w + 1) for w in WORDS_SEEN),
    "kimvectors": 2 * 2.0 * WIDTH * MAPS * sum(w * (SENTENCE - w + 1) for w in WORDS_SEEN),
    "transformer": 3 * 2.0 * SEQUENCE * (12 * MODEL_WIDTH**2 + 2 * SEQUENCE * MODEL_WIDTH),
}

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        *_training("mlp", "MLP 784-256-128-10, momentum", (16, 64, 256, 1024), "momentum", 64),
        *_training("mlp", "MLP 784-256-128-10, Adam", (16, 64, 256), "adam", 0, "-adam"),
        *_training("minitorch", "MiniTorch MNIST, SGD", (16, 128), "sgd", 16),
        *_training("lenet", "LeNet, momentum", (16, 64, 256), "momentum", 64),
        *_training("lenetwide", "LeNet with 32 and 64 maps, momentum", (16, 64), "momentum", 16),
        *_training("bag", "Bag of embeddings, SGD", (32, 256), "sgd", 32),
        *_training("bag", "Bag of embeddings, Adam", (32, 256), "adam", 0, "-adam"),
        *_training("kim", "Kim CNN from ids, SGD", (10, 32, 64), "sgd", 32),
        *_training("kimvectors", "Kim CNN from vectors, SGD", (10, 32, 64), "sgd", 0),
        *_training("transformer", "Transformer block 8x64x128, momentum", (8,), "momentum", 8),
        Case(
            "transformer-1-infer",
            "Transformer block 1x64x128, forward",
            "transformer",
            "infer",
            1,
            flops=TRAINING_FLOPS["transformer"] / 3,
        ),
        *_training("gelu", "GELU layer 256-1024-256, momentum", (TOKENS,), "momentum", TOKENS),
        *_training("swiglu", "SwiGLU layer 256-704-256, momentum", (TOKENS,), "momentum", 0),
        *_functions("chain", "20 operations on 4 Mi numbers", (4096, 1024)),
        *_functions("softmax", "Softmax 4096x1024", (4096, 1024)),
        _function("crossentropy", "Cross-entropy 4096x1000", (4096, 1000), 2),
        *_functions("layernorm", "Layer norm 4096x512", (4096, 512)),
        *_functions("rmsnorm", "RMS norm 4096x512", (4096, 512), quick=False),
        _function("batchnorm", "Batch norm and relu 64x32x28x28", (64, 32, 28, 28), 5),
        *_training("tiny", "MLP 2-10-10-1, SGD", (50,), "sgd", 50),
    )
}
