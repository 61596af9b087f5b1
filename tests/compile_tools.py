"""What the tests of `fusegraph.compile` share: backends, small networks and data, and runs that are done eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim

BACKENDS = ("python", "reference", "cpu")
Wrap = Callable[[Any], Any]

RNG = np.random.default_rng(7)
X = RNG.normal(size=(6, 4)).astype(np.float32)
Y = np.array([0, 1, 2, 0, 1, 2])
IMAGES = RNG.normal(size=(4, 2, 6, 6)).astype(np.float32)


def eager(function: Any) -> Any:
    """The function as it is."""
    return function


def wrap(backend: str, **options: Any) -> Wrap:
    """`fg.compile` for a backend."""
    return lambda function: fg.compile(function, backend=backend, **options)


def mlp(seed: int = 1) -> nn.Sequential:
    """Four numbers to three classes."""
    fg.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def training_step(
    model: Callable[[Any], Any], optimizer: optim.Optimizer, loss: Callable[[Any, Any], Any] = F.cross_entropy
) -> Callable[[Any, Any], Any]:
    """`step(x, y)`, to be compiled or run as it is: forward, loss, backward and update; gives the loss."""

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        optimizer.step()
        return value

    return step


def as_numbers(value: Any) -> list[np.ndarray[Any, Any]]:
    """Tensors, arrays and numbers of a nest, as arrays."""
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in as_numbers(item)]
    if isinstance(value, dict):
        return [part for item in value.values() for part in as_numbers(item)]
    if isinstance(value, fg.Tensor):
        return [np.array(value.detach().numpy())]
    return [] if value is None else [np.asarray(value)]


def agree(run: Callable[[Wrap], Any], backend: str, tolerance: float = 1e-5, **options: Any) -> None:
    """`run(wrap)` gives the same numbers eager and compiled: relative, plus as much of each result's largest element."""
    wanted = as_numbers(run(eager))
    got = as_numbers(run(wrap(backend, **options)))
    assert len(got) == len(wanted)
    for number, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype, f"result {number}: {a.dtype}{a.shape} for {b.dtype}{b.shape}"
        scale = float(np.abs(b[np.isfinite(b)]).max()) if np.isfinite(b).any() else 1.0
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale, err_msg=f"result {number}")
