"""tinygrad: the whole step in one TinyJit, which records at the second call and replays from the third on.

Its CPU backend compiles with clang. Where there is none on the path, the one in the package ziglang is used, if installed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.systems import Array, Session
from benchmarks.systems.cases import ADAM_BETAS, ADAM_EPS, BATCHES, HEADS, LEARNING_RATE, MOMENTUM, WORDS_SEEN, Case
from benchmarks.systems.networks import REGRESSIONS, chain


def _choose_compiler() -> None:
    """Let CC name a clang. A script does it, because tinygrad takes CC for one word."""
    package = find_spec("ziglang")
    if "CC" in os.environ or shutil.which("clang") or package is None or package.origin is None:
        return
    script = Path(tempfile.mkdtemp(prefix="fusegraph-bench-cc-")) / "clang"
    script.write_text(f'#!/bin/sh\nexec "{Path(package.origin).parent}/zig" clang "$@"\n')
    script.chmod(0o755)
    os.environ["CC"] = str(script)


os.environ["DEV"] = "CPU"
os.environ["NUM_CPU_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
_choose_compiler()

from tinygrad import Tensor, TinyJit, dtypes  # noqa: E402

Parameters = dict[str, Any]
TENSORS = SimpleNamespace(exp=Tensor.exp, tanh=Tensor.tanh, sqrt=Tensor.sqrt, sigmoid=Tensor.sigmoid, relu=Tensor.relu)


def version() -> str:
    """What is measured."""
    return f"tinygrad {version_of('tinygrad')}"


def prepare(
    case: Case, variant: str, threads: int, dtype: str, weights: dict[str, Array], batches: list[Any]
) -> Session:
    """The number of threads has been set by the environment."""
    data = [tuple(Tensor(_narrow(array)).realize() for array in batch) for batch in batches]
    if case.kind == "train":
        step, parameters = _training(case, weights)
    else:
        step, parameters = _inference(case, weights) if case.kind == "infer" else _function(case), dict

    def values(result: Any) -> list[Array]:
        return [value.numpy().copy() for value in (result if isinstance(result, tuple) else (result,))]

    return Session(lambda number: step(*data[number % BATCHES]), lambda result: None, values, parameters)


def _narrow(array: Array) -> Array:
    return array.astype(np.int32) if array.dtype.kind == "i" else array


def _training(case: Case, weights: dict[str, Array]) -> tuple[Callable[..., Any], Callable[[], Any]]:
    parameters = {name: Tensor(value.copy()).realize() for name, value in weights.items()}
    network, loss_function, update = (
        NETWORKS[case.network],
        LOSSES.get(case.network, cross_entropy),
        UPDATES[case.optimizer],
    )
    moments = [
        [Tensor.zeros(*p.shape).contiguous().realize() for p in parameters.values()]
        for _ in range(MOMENTS[case.optimizer])
    ]
    count = Tensor.zeros(1).contiguous().realize()

    @TinyJit
    def train(*arrays: Any) -> Any:
        loss = loss_function(network(parameters, *arrays[:-1]), arrays[-1])
        gradients = loss.gradient(*parameters.values())
        changed = update(list(parameters.values()), gradients, moments, count)
        Tensor.realize(loss, *changed)
        return loss

    return train, lambda: {name: value.numpy().copy() for name, value in parameters.items()}


def _sgd(parameters: list[Any], gradients: list[Any], moments: list[list[Any]], count: Any) -> list[Any]:
    return [p.assign(p - LEARNING_RATE["sgd"] * g) for p, g in zip(parameters, gradients)]


def _momentum(parameters: list[Any], gradients: list[Any], moments: list[list[Any]], count: Any) -> list[Any]:
    (velocities,) = moments
    for velocity, gradient in zip(velocities, gradients):
        velocity.assign(MOMENTUM * velocity + gradient)
    return velocities + [p.assign(p - LEARNING_RATE["momentum"] * v) for p, v in zip(parameters, velocities)]


def _adam(parameters: list[Any], gradients: list[Any], moments: list[list[Any]], count: Any) -> list[Any]:
    (first, second), (means, squares) = ADAM_BETAS, moments
    count.assign(count + 1)
    rate, spread = LEARNING_RATE["adam"] / (1 - first**count), (1 - second**count).sqrt()
    for parameter, gradient, mean, square in zip(parameters, gradients, means, squares):
        mean.assign(first * mean + (1 - first) * gradient)
        square.assign(second * square + (1 - second) * gradient * gradient)
        parameter.assign(parameter - rate * mean / (square.sqrt() / spread + ADAM_EPS))
    return [count, *means, *squares, *parameters]


UPDATES: dict[str, Callable[..., list[Any]]] = {"sgd": _sgd, "momentum": _momentum, "adam": _adam}
MOMENTS = {"sgd": 0, "momentum": 1, "adam": 2}


def _inference(case: Case, weights: dict[str, Array]) -> Callable[..., Any]:
    parameters = {name: Tensor(value.copy()).realize() for name, value in weights.items()}
    network = NETWORKS[case.network]
    forward = TinyJit(lambda *arrays: network(parameters, *arrays).realize())
    return lambda *arrays: forward(*arrays[:-1])


def _function(case: Case) -> Callable[..., Any]:
    function = FUNCTIONS[case.network]
    if case.kind == "forward":
        return TinyJit(lambda *arrays: function(*arrays).realize())

    @TinyJit
    def with_gradients(*arrays: Any) -> Any:
        value = function(*arrays[:-1])
        learned = [array for array in arrays[:-1] if dtypes.is_float(array.dtype)]
        gradients = value.gradient(*learned, gradient=arrays[-1])
        Tensor.realize(value, *gradients)
        return value, *gradients

    return with_gradients


def cross_entropy(scores: Any, labels: Any) -> Any:
    """Mean over the batch, of scores (N, C) and labels (N,)."""
    return scores.sparse_categorical_crossentropy(labels)


LOSSES: dict[str, Callable[..., Any]] = {
    "tiny": lambda scores, target: scores.binary_crossentropy_logits(target),
    **dict.fromkeys(REGRESSIONS, lambda output, target: (output - target).square().mean()),
}


def linear(p: Parameters, name: str, x: Any) -> Any:
    """x @ weight.T + bias"""
    return x.linear(p[f"{name}.weight"].transpose(), p[f"{name}.bias"])


def conv(p: Parameters, name: str, x: Any, padding: int = 0) -> Any:
    """Convolution of (N, C, ...) with padding on both sides of each axis."""
    return x.conv2d(p[f"{name}.weight"], p[f"{name}.bias"], padding=padding)


def norm(p: Parameters, name: str, x: Any) -> Any:
    """Layer norm over the last axis."""
    return x.layernorm(eps=1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def batch_norm_relu(x: Any, weight: Any, bias: Any) -> Any:
    """Of (N, C, H, W) by the batch's own mean and variance."""
    centred = x - x.mean((0, 2, 3), keepdim=True)
    spread = (centred.square().mean((0, 2, 3)) + 1e-5).rsqrt()
    return x.batchnorm(weight, bias, x.mean((0, 2, 3)), spread).relu()


def words(p: Parameters, ids: Any) -> Any:
    """Word vectors (N, W, width); word 0 gets no gradient."""
    return p["embedding.weight"][ids] * (ids != 0).unsqueeze(-1)


def _mlp(p: Parameters, x: Any) -> Any:
    return linear(p, "linear3", linear(p, "linear2", linear(p, "linear1", x.flatten(1)).relu()).relu())


def _minitorch(p: Parameters, x: Any) -> Any:
    x = conv(p, "conv2", conv(p, "conv1", x, 1).relu(), 1).relu().max_pool2d((4, 4)).flatten(1)
    return linear(p, "linear2", linear(p, "linear1", x).relu())


def _lenet(p: Parameters, x: Any) -> Any:
    x = conv(p, "conv1", x, 2).relu().max_pool2d((2, 2))
    return _mlp(p, conv(p, "conv2", x).relu().max_pool2d((2, 2)))


def _bag(p: Parameters, ids: Any, lengths: Any) -> Any:
    return linear(p, "output", words(p, ids).sum(1) / lengths.unsqueeze(1))


def _kim(p: Parameters, ids: Any) -> Any:
    return _kim_vectors(p, words(p, ids))


def _kim_vectors(p: Parameters, x: Any) -> Any:
    x = x.transpose(1, 2)
    found = [conv(p, f"conv{i}", x).relu().max(2) for i in range(len(WORDS_SEEN))]
    return linear(p, "output", found[0].cat(*found[1:], dim=1))


def _transformer(p: Parameters, x: Any) -> Any:
    n, length, width = x.shape
    parts = linear(p, "qkv", norm(p, "norm1", x)).reshape(n, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
    seen = parts[0].scaled_dot_product_attention(parts[1], parts[2], is_causal=True)
    x = x + linear(p, "project", seen.transpose(1, 2).reshape(n, length, width))
    return x + linear(p, "narrow", linear(p, "widen", norm(p, "norm2", x)).gelu("none"))


def _gelu(p: Parameters, x: Any) -> Any:
    return linear(p, "narrow", linear(p, "widen", x).gelu("none"))


def _swiglu(p: Parameters, x: Any) -> Any:
    return linear(p, "narrow", linear(p, "gate", x).silu() * linear(p, "widen", x))


NETWORKS: dict[str, Callable[..., Any]] = {
    "mlp": _mlp, "tiny": _mlp, "minitorch": _minitorch, "lenet": _lenet, "lenetwide": _lenet, "bag": _bag, "kim": _kim,
    "kimvectors": _kim_vectors, "transformer": _transformer, "gelu": _gelu, "swiglu": _swiglu,
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "chain": lambda x: chain(TENSORS, x), "softmax": lambda x: x.softmax(),
    "layernorm": lambda x, weight, bias: x.layernorm(eps=1e-5) * weight + bias,
    "crossentropy": cross_entropy, "batchnorm": batch_norm_relu,
    "rmsnorm": lambda x, weight: x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight,
}  # fmt: skip
