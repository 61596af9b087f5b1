"""The workloads' networks and functions, written once for frameworks with torch's API.

`Framework` says which: torch, or fusegraph. Parameters have the names of `cases.PARAMETERS`. There is no dropout: systems
draw different random numbers, and what they compute is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.systems.cases import (
    ADAM_BETAS,
    ADAM_EPS,
    CLASSES,
    FEATURES,
    GATED,
    HEADS,
    HIDDEN,
    LEARNING_RATE,
    MAPS,
    MODEL_WIDTH,
    MOMENTUM,
    VOCABULARY,
    WIDTH,
    WORDS_SEEN,
    Case,
)


@dataclass(frozen=True)
class Framework:
    """The modules of a framework that networks are written with: tensors, nn, nn.functional, optim."""

    tensors: Any
    nn: Any
    functional: Any
    optim: Any


def mlp(f: Framework) -> Any:
    """784 - 256 - 128 - 10, rectified."""

    class MLP(f.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear1, self.linear2 = f.nn.Linear(784, 256), f.nn.Linear(256, 128)
            self.linear3 = f.nn.Linear(128, CLASSES)

        def forward(self, x: Any) -> Any:
            return self.linear3(self.linear2(self.linear1(x.flatten(1)).relu()).relu())

    return MLP()


def tiny(f: Framework) -> Any:
    """2 - 10 - 10 - 1, rectified: nothing to compute, so that the cost of a call shows."""

    class Tiny(f.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear1, self.linear2, self.linear3 = f.nn.Linear(2, 10), f.nn.Linear(10, 10), f.nn.Linear(10, 1)

        def forward(self, x: Any) -> Any:
            return self.linear3(self.linear2(self.linear1(x).relu()).relu())

    return Tiny()


def minitorch(f: Framework) -> Any:
    """MiniTorch's network for digits, with padded convolutions."""

    class MiniTorch(f.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = f.nn.Conv2d(1, 4, 3, padding=1), f.nn.Conv2d(4, 8, 3, padding=1)
            self.linear1, self.linear2 = f.nn.Linear(8 * 7 * 7, 64), f.nn.Linear(64, CLASSES)

        def forward(self, x: Any) -> Any:
            x = self.conv2(self.conv1(x).relu()).relu()
            x = f.functional.max_pool2d(x, 4).flatten(1)
            return self.linear2(self.linear1(x).relu())

    return MiniTorch()


def lenet(f: Framework) -> Any:
    """LeNet-5 with rectifiers and max-pooling."""

    class LeNet(f.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = f.nn.Conv2d(1, 6, 5, padding=2), f.nn.Conv2d(6, 16, 5)
            self.linear1, self.linear2 = f.nn.Linear(16 * 5 * 5, 120), f.nn.Linear(120, 84)
            self.linear3 = f.nn.Linear(84, CLASSES)

        def forward(self, x: Any) -> Any:
            x = f.functional.max_pool2d(self.conv1(x).relu(), 2)
            x = f.functional.max_pool2d(self.conv2(x).relu(), 2).flatten(1)
            return self.linear3(self.linear2(self.linear1(x).relu()).relu())

    return LeNet()


def lenet_wide(f: Framework) -> Any:
    """LeNet-5 with 32 and 64 maps."""
    net = lenet(f)
    net.conv1, net.conv2 = f.nn.Conv2d(1, 32, 5, padding=2), f.nn.Conv2d(32, 64, 5)
    net.linear1 = f.nn.Linear(64 * 5 * 5, 120)
    return net


def bag(f: Framework) -> Any:
    """The mean of a sentence's word vectors, and a linear layer. Word 0, which fills up, has a vector of zeros."""

    class Bag(f.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = f.nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
            self.output = f.nn.Linear(WIDTH, 2)

        def forward(self, ids: Any, lengths: Any) -> Any:
            return self.output(self.embedding(ids).sum(1) / lengths.unsqueeze(1))

    return Bag()


def kim(f: Framework) -> Any:
    """Kim (2014): detectors of 3, 4 and 5 words, the strongest answer of each over the sentence."""

    class Kim(f.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = f.nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
            self.conv0, self.conv1, self.conv2 = (f.nn.Conv1d(WIDTH, MAPS, width) for width in WORDS_SEEN)
            self.output = f.nn.Linear(len(WORDS_SEEN) * MAPS, 2)

        def forward(self, ids: Any) -> Any:
            words = self.embedding(ids).transpose(1, 2)
            found = [conv(words).relu().amax(2) for conv in (self.conv0, self.conv1, self.conv2)]
            return self.output(f.tensors.cat(found, 1))

    return Kim()


def kim_vectors(f: Framework) -> Any:
    """Kim (2014) on word vectors that are given, and do not learn."""

    class Kim(f.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv0, self.conv1, self.conv2 = (f.nn.Conv1d(WIDTH, MAPS, width) for width in WORDS_SEEN)
            self.output = f.nn.Linear(len(WORDS_SEEN) * MAPS, 2)

        def forward(self, words: Any) -> Any:
            words = words.transpose(1, 2)
            found = [conv(words).relu().amax(2) for conv in (self.conv0, self.conv1, self.conv2)]
            return self.output(f.tensors.cat(found, 1))

    return Kim()


def gelu_layer(f: Framework) -> Any:
    """The feed-forward part of GPT-2."""

    class GeluLayer(f.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.widen, self.narrow = f.nn.Linear(FEATURES, HIDDEN), f.nn.Linear(HIDDEN, FEATURES)

        def forward(self, x: Any) -> Any:
            return self.narrow(f.functional.gelu(self.widen(x)))

    return GeluLayer()


def swiglu_layer(f: Framework) -> Any:
    """The feed-forward part of Llama (Shazeer, 2020), with biases."""

    class SwigluLayer(f.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.widen = f.nn.Linear(FEATURES, GATED), f.nn.Linear(FEATURES, GATED)
            self.narrow = f.nn.Linear(GATED, FEATURES)

        def forward(self, x: Any) -> Any:
            return self.narrow(f.functional.silu(self.gate(x)) * self.widen(x))

    return SwigluLayer()


def transformer(f: Framework) -> Any:
    """A block of GPT-2: causal self-attention and a feed-forward part, each behind a layer norm, with residual connections."""

    class Block(f.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = f.nn.LayerNorm(MODEL_WIDTH), f.nn.LayerNorm(MODEL_WIDTH)
            self.qkv, self.project = f.nn.Linear(MODEL_WIDTH, 3 * MODEL_WIDTH), f.nn.Linear(MODEL_WIDTH, MODEL_WIDTH)
            self.widen, self.narrow = (
                f.nn.Linear(MODEL_WIDTH, 4 * MODEL_WIDTH),
                f.nn.Linear(4 * MODEL_WIDTH, MODEL_WIDTH),
            )

        def attention(self, x: Any) -> Any:
            n, length, width = x.shape
            parts = self.qkv(x).reshape(n, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
            seen = f.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
            return self.project(seen.transpose(1, 2).reshape(n, length, width))

        def forward(self, x: Any) -> Any:
            x = x + self.attention(self.norm1(x))
            return x + self.narrow(f.functional.gelu(self.widen(self.norm2(x))))

    return Block()


NETWORKS: dict[str, Callable[[Framework], Any]] = {
    "mlp": mlp, "tiny": tiny, "minitorch": minitorch, "lenet": lenet, "lenetwide": lenet_wide, "bag": bag, "kim": kim,
    "kimvectors": kim_vectors, "transformer": transformer, "gelu": gelu_layer, "swiglu": swiglu_layer,
}  # fmt: skip


REGRESSIONS = ("transformer", "gelu", "swiglu")


def loss_of(f: Framework, case: Case) -> Callable[[Any, Any], Any]:
    """The loss, of (output, target)."""
    if case.network == "tiny":
        return f.functional.binary_cross_entropy_with_logits
    return f.functional.mse_loss if case.network in REGRESSIONS else f.functional.cross_entropy


def optimizer_of(f: Framework, case: Case, parameters: Any, **options: Any) -> Any:
    """The optimizer over `parameters`; `options` go to its constructor."""
    rate = LEARNING_RATE[case.optimizer]
    if case.optimizer == "adam":
        return f.optim.Adam(parameters, lr=rate, betas=ADAM_BETAS, eps=ADAM_EPS, **options)
    return f.optim.SGD(parameters, lr=rate, momentum=MOMENTUM if case.optimizer == "momentum" else 0.0, **options)


# -- functions --------------------------------------------------------------------------------------------------------


def chain(tensors: Any, x: Any) -> Any:
    """20 operations on each number. `tensors` has exp, tanh, sigmoid, relu and sqrt; jax.numpy-like modules will do.

    The rectified number is squared, so that the gradient does not jump where rounding decides about a sign.
    """
    y = tensors.tanh(x * 0.5 + 1.0)
    y = tensors.exp(-(y * y - 0.3))
    y = tensors.sigmoid(y * 0.7 + 0.2) * x
    y = tensors.relu(y + 0.1)
    y = tensors.sqrt(y * y + 1.0)
    y = tensors.tanh(y * 1.5) - x
    return -y


def function_of(f: Framework, case: Case) -> Callable[..., Any]:
    """The function that a "forward" or "gradient" workload computes."""
    functional = f.functional
    functions: dict[str, Callable[..., Any]] = {
        "chain": lambda x: chain(f.tensors, x),
        "softmax": lambda x: functional.softmax(x, -1),
        "crossentropy": functional.cross_entropy,
        "layernorm": lambda x, weight, bias: functional.layer_norm(x, case.shape[-1:], weight, bias),
        "rmsnorm": lambda x, weight: functional.rms_norm(x, case.shape[-1:], weight, 1e-5),
        "batchnorm": lambda x, weight, bias: functional.relu(
            functional.batch_norm(x, None, None, weight, bias, training=True)
        ),
    }
    return functions[case.network]
