"""JAX: the whole step in one jit, with the parameters and the optimizer's state donated."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.systems import Array, Session
from benchmarks.systems.cases import ADAM_BETAS, ADAM_EPS, BATCHES, HEADS, LEARNING_RATE, MOMENTUM, WORDS_SEEN, Case
from benchmarks.systems.networks import chain

Parameters = dict[str, Any]
TENSORS = SimpleNamespace(exp=jnp.exp, tanh=jnp.tanh, sqrt=jnp.sqrt, sigmoid=jax.nn.sigmoid, relu=jax.nn.relu)


def version() -> str:
    """What is measured."""
    return f"jax {jax.__version__}"


def prepare(
    case: Case, variant: str, threads: int, dtype: str, weights: dict[str, Array], batches: list[Any]
) -> Session:
    """XLA takes its number of threads from the cores that the process is bound to."""
    data = [tuple(jnp.asarray(array) for array in batch) for batch in batches]
    if case.kind == "train":
        step, parameters = _training(case, weights)
    else:
        step, parameters = _inference(case, weights) if case.kind == "infer" else _function(case), dict

    def values(result: Any) -> list[Array]:
        return [np.asarray(value) for value in (result if isinstance(result, tuple) else (result,))]

    return Session(lambda number: step(*data[number % BATCHES]), jax.block_until_ready, values, parameters)


def _training(case: Case, weights: dict[str, Array]) -> tuple[Callable[..., Any], Callable[[], Any]]:
    network, loss_function, update = (
        NETWORKS[case.network],
        LOSSES.get(case.network, cross_entropy),
        UPDATES[case.optimizer],
    )
    parameters = {name: jnp.array(value) for name, value in weights.items()}
    held = [parameters, _new_state(case.optimizer, parameters)]

    def loss_of(parameters: Parameters, *arrays: Any) -> Any:
        return loss_function(network(parameters, *arrays[:-1]), arrays[-1])

    def train(parameters: Parameters, state: Any, *arrays: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(parameters, *arrays)
        return loss, *update(parameters, gradients, state)

    compiled = jax.jit(train, donate_argnums=(0, 1))

    def step(*arrays: Any) -> Any:
        loss, held[0], held[1] = compiled(held[0], held[1], *arrays)
        return loss

    return step, lambda: {name: np.array(value) for name, value in held[0].items()}


def _inference(case: Case, weights: dict[str, Array]) -> Callable[..., Any]:
    parameters = {name: jnp.array(value) for name, value in weights.items()}
    forward = jax.jit(NETWORKS[case.network])
    return lambda *arrays: forward(parameters, *arrays[:-1])


def _function(case: Case) -> Callable[..., Any]:
    function = FUNCTIONS[case.network]
    if case.kind == "forward":
        return jax.jit(function)

    def with_gradients(*arrays: Any) -> Any:
        learned = [array for array in arrays[:-1] if jnp.issubdtype(array.dtype, jnp.floating)]
        given = arrays[len(learned) : -1]  # labels
        value, pull = jax.vjp(lambda *learned: function(*learned, *given), *learned)
        return value, *pull(arrays[-1])

    return jax.jit(with_gradients)


# -- optimizers -------------------------------------------------------------------------------------------------------


def _new_state(optimizer: str, parameters: Parameters) -> Any:
    zeros = {name: jnp.zeros_like(value) for name, value in parameters.items()}
    if optimizer == "sgd":
        return ()
    return zeros if optimizer == "momentum" else (zeros, jax.tree.map(jnp.zeros_like, zeros), jnp.zeros(()))


def _sgd(parameters: Parameters, gradients: Parameters, state: Any) -> Any:
    return jax.tree.map(lambda p, g: p - LEARNING_RATE["sgd"] * g, parameters, gradients), state


def _momentum(parameters: Parameters, gradients: Parameters, state: Any) -> Any:
    state = jax.tree.map(lambda m, g: MOMENTUM * m + g, state, gradients)
    return jax.tree.map(lambda p, m: p - LEARNING_RATE["momentum"] * m, parameters, state), state


def _adam(parameters: Parameters, gradients: Parameters, state: Any) -> Any:
    (first, second), (mean, square, count) = ADAM_BETAS, state
    count = count + 1
    mean = jax.tree.map(lambda m, g: first * m + (1 - first) * g, mean, gradients)
    square = jax.tree.map(lambda s, g: second * s + (1 - second) * g * g, square, gradients)
    rate, spread = LEARNING_RATE["adam"] / (1 - first**count), jnp.sqrt(1 - second**count)
    parameters = jax.tree.map(
        lambda p, m, s: p - rate * m / (jnp.sqrt(s) / spread + ADAM_EPS), parameters, mean, square
    )
    return parameters, (mean, square, count)


UPDATES: dict[str, Callable[..., Any]] = {"sgd": _sgd, "momentum": _momentum, "adam": _adam}


# -- losses -----------------------------------------------------------------------------------------------------------


def cross_entropy(scores: Any, labels: Any) -> Any:
    """Mean over the batch, of scores (N, C) and labels (N,)."""
    at_label = jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], 1)
    return -jnp.mean(at_label)


def binary_cross_entropy(scores: Any, target: Any) -> Any:
    """Mean of the binary cross-entropy of logits."""
    return jnp.mean(jax.nn.softplus(scores) - scores * target)


def mean_squares(output: Any, target: Any) -> Any:
    """Mean of the squared differences."""
    return jnp.mean((output - target) ** 2)


LOSSES: dict[str, Callable[..., Any]] = {
    "tiny": binary_cross_entropy, "transformer": mean_squares, "gelu": mean_squares, "swiglu": mean_squares,
}  # fmt: skip


# -- networks ---------------------------------------------------------------------------------------------------------


def linear(p: Parameters, name: str, x: Any) -> Any:
    """x @ weight.T + bias"""
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def conv(p: Parameters, name: str, x: Any, padding: int = 0) -> Any:
    """Convolution of (N, C, ...) with padding on both sides of each axis."""
    weight = p[f"{name}.weight"]
    axes = weight.ndim - 2
    y = jax.lax.conv_general_dilated(x, weight, (1,) * axes, [(padding, padding)] * axes)
    return y + p[f"{name}.bias"].reshape(-1, *(1,) * axes)


def max_pool(x: Any, size: int) -> Any:
    """Largest of every size x size window of (N, C, H, W)."""
    window = (1, 1, size, size)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")


def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
    """Over the last axis."""
    mean = x.mean(-1, keepdims=True)
    centred = x - mean
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def rms_norm(x: Any, weight: Any) -> Any:
    """Over the last axis."""
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def batch_norm_relu(x: Any, weight: Any, bias: Any) -> Any:
    """Of (N, C, H, W) by the batch's own mean and variance."""
    centred = x - x.mean((0, 2, 3), keepdims=True)
    scale = jax.lax.rsqrt((centred**2).mean((0, 2, 3), keepdims=True) + 1e-5) * weight[:, None, None]
    return jax.nn.relu(centred * scale + bias[:, None, None])


def words(p: Parameters, ids: Any) -> Any:
    """Word vectors (N, W, width); word 0 gets no gradient."""
    return p["embedding.weight"][ids] * (ids != 0)[..., None]


def _mlp(p: Parameters, x: Any) -> Any:
    x = jax.nn.relu(linear(p, "linear1", x.reshape(x.shape[0], -1)))
    return linear(p, "linear3", jax.nn.relu(linear(p, "linear2", x)))


def _minitorch(p: Parameters, x: Any) -> Any:
    x = jax.nn.relu(conv(p, "conv2", jax.nn.relu(conv(p, "conv1", x, 1)), 1))
    x = max_pool(x, 4).reshape(x.shape[0], -1)
    return linear(p, "linear2", jax.nn.relu(linear(p, "linear1", x)))


def _lenet(p: Parameters, x: Any) -> Any:
    x = max_pool(jax.nn.relu(conv(p, "conv1", x, 2)), 2)
    x = max_pool(jax.nn.relu(conv(p, "conv2", x)), 2)
    return _mlp(p, x)


def _bag(p: Parameters, ids: Any, lengths: Any) -> Any:
    return linear(p, "output", words(p, ids).sum(1) / lengths[:, None])


def _kim(p: Parameters, ids: Any) -> Any:
    return _kim_vectors(p, words(p, ids))


def _kim_vectors(p: Parameters, x: Any) -> Any:
    x = x.transpose(0, 2, 1)
    found = [jax.nn.relu(conv(p, f"conv{i}", x)).max(2) for i in range(len(WORDS_SEEN))]
    return linear(p, "output", jnp.concatenate(found, 1))


def _attention(p: Parameters, x: Any) -> Any:
    n, length, width = x.shape
    q, k, v = linear(p, "qkv", x).reshape(n, length, 3, HEADS, width // HEADS).transpose(2, 0, 3, 1, 4)
    scores = q @ k.swapaxes(2, 3) / np.float32(np.sqrt(width // HEADS))
    scores = jnp.where(np.tril(np.ones((length, length), bool)), scores, -jnp.inf)
    seen = jax.nn.softmax(scores) @ v
    return linear(p, "project", seen.transpose(0, 2, 1, 3).reshape(n, length, width))


def _transformer(p: Parameters, x: Any) -> Any:
    x = x + _attention(p, layer_norm(x, p["norm1.weight"], p["norm1.bias"]))
    wide = jax.nn.gelu(linear(p, "widen", layer_norm(x, p["norm2.weight"], p["norm2.bias"])), approximate=False)
    return x + linear(p, "narrow", wide)


def _gelu(p: Parameters, x: Any) -> Any:
    return linear(p, "narrow", jax.nn.gelu(linear(p, "widen", x), approximate=False))


def _swiglu(p: Parameters, x: Any) -> Any:
    return linear(p, "narrow", jax.nn.silu(linear(p, "gate", x)) * linear(p, "widen", x))


NETWORKS: dict[str, Callable[..., Any]] = {
    "mlp": _mlp, "tiny": _mlp, "minitorch": _minitorch, "lenet": _lenet, "lenetwide": _lenet, "bag": _bag, "kim": _kim,
    "kimvectors": _kim_vectors, "transformer": _transformer, "gelu": _gelu, "swiglu": _swiglu,
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "chain": lambda x: chain(TENSORS, x), "softmax": jax.nn.softmax, "layernorm": layer_norm,
    "crossentropy": cross_entropy, "rmsnorm": rms_norm, "batchnorm": batch_norm_relu,
}  # fmt: skip
