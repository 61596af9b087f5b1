"""Gradients of convolutions below a maximum over many positions: scatters of rows instead of dense products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn
from fusegraph.ir import Graph, interpret
from fusegraph.passes import run_pipeline
from fusegraph.trace import tracing

Array = np.ndarray[Any, Any]
CONVOLUTION_GRADIENTS = {"conv_input_grad", "conv_weight_grad"}


class Detectors(nn.Module):
    """A convolution in one or two dimensions, and the strongest answer of each detector."""

    def __init__(self, convolution: Any, strongest: Callable[[Any], Any]) -> None:
        super().__init__()
        self.convolution, self.strongest = convolution, strongest

    def forward(self, x: Any) -> Any:
        return self.strongest(self.convolution(x).relu())


def amax(x: Any) -> Any:
    return x.amax(tuple(range(2, x.ndim)))


def max_of_dim(x: Any) -> Any:
    return x.max(2).values


def flat_max(x: Any) -> Any:
    return x.flatten(2).max(2).values


CASES: dict[str, tuple[Callable[[], Any], tuple[int, ...], Callable[[Any], Any]]] = {
    "over time, equal shares": (lambda: nn.Conv1d(6, 5, 3), (4, 6, 23), amax),
    "over time, the first": (lambda: nn.Conv1d(6, 5, 3), (4, 6, 23), max_of_dim),
    "stride and dilation": (lambda: nn.Conv1d(3, 4, 3, stride=2, dilation=2), (3, 3, 40), amax),
    "images": (lambda: nn.Conv2d(3, 4, (2, 3), stride=(1, 2)), (2, 3, 9, 12), amax),
    "images, the first": (lambda: nn.Conv2d(2, 3, 3), (2, 2, 8, 9), flat_max),
    "one channel": (lambda: nn.Conv1d(1, 2, 4), (2, 1, 30), amax),
    "one detector": (lambda: nn.Conv1d(4, 1, 1), (3, 4, 17), amax),
}


def gradients(case: str) -> tuple[Any, list[Array], Any]:
    """A function of (x, cotangent) that gives the value and all gradients; its arguments; its compiled form."""
    make, shape, strongest = CASES[case]
    fg.manual_seed(0)
    model = Detectors(make(), strongest)
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape).astype(np.float32)
    x[0] = 0.25  # all windows answer alike: ties
    cotangent = rng.standard_normal(model(x).shape).astype(np.float32)

    def function(x: Any, cotangent: Any) -> Any:
        x = x.detach().requires_grad_()
        value = model(x)
        return value, *fg.autograd.grad(value, [x, *model.parameters()], cotangent)

    return function, [x, cotangent], fg.compile(function)


def traced(function: Any, *arrays: Array) -> Graph:
    """The graph of a call, as it was before any pass."""
    with tracing() as trace:
        symbols = [trace.argument(f"arg{i}", fg.as_tensor(array)) for i, array in enumerate(arrays)]
        results = function(*symbols)
        return trace.builder.finish([result._value for result in results], [], "gradients")


@pytest.mark.parametrize("case", CASES)
def test_same_gradients_without_dense_products(case: str) -> None:
    function, arrays, compiled = gradients(case)
    expected = function(*map(fg.tensor, arrays))
    for value, wanted in zip(compiled(*arrays), expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=2e-5, atol=2e-5 * float(np.abs(wanted).max()))
    optimized = run_pipeline(traced(function, *arrays))
    assert not CONVOLUTION_GRADIENTS & {node.op for node in optimized.nodes}


@pytest.mark.parametrize("case", CASES)
def test_the_pass_alone_in_float64(case: str) -> None:
    """The graphs with and without the pass give the same, by the numpy interpreter."""
    function, arrays, _ = gradients(case)
    graph = traced(function, *arrays)
    rng = np.random.default_rng(2)
    inputs = [np.asarray(rng.standard_normal(node.shape), node.dtype) for node in graph.inputs]
    plain, sparse = (
        interpret.run(run_pipeline(graph, disable=disable, verify=True), inputs)[0]
        for disable in (["sparse_cotangents"], [])
    )
    for a, b in zip(plain, sparse, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * float(np.abs(a).max()))


@pytest.mark.parametrize(
    "model",
    [
        Detectors(nn.Conv1d(3, 2, 3, padding=1), amax),  # zeros around: dense products
        Detectors(nn.Conv1d(4, 2, 3, groups=2), amax),
        Detectors(nn.Conv1d(3, 2, 3), lambda x: F.max_pool1d(x, 2)),  # a winner in two: not rare enough
        Detectors(nn.Conv1d(3, 2, 3), lambda x: x.mean(2)),
    ],
    ids=["padding", "groups", "small windows", "mean"],
)
def test_others_stay_dense(model: Any) -> None:
    x = np.random.default_rng(0).standard_normal((2, model.convolution.in_channels, 22)).astype(np.float32)

    def loss_gradient(x: Any) -> Any:
        return fg.autograd.grad(model(x).sum(), list(model.parameters()))

    assert "conv_weight_grad" in {node.op for node in run_pipeline(traced(loss_gradient, x)).nodes}


def test_exact_and_other_backends() -> None:
    """exact=True keeps the dense products; every backend gives the same numbers."""
    function, arrays, compiled = gradients("over time, equal shares")
    exact = run_pipeline(traced(function, *arrays), exact=True)
    assert {node.op for node in exact.nodes} >= CONVOLUTION_GRADIENTS
    expected = compiled(*arrays)
    for backend in ("python", "reference"):
        for value, wanted in zip(fg.compile(function, backend=backend)(*arrays), expected, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=2e-5, atol=2e-5 * float(np.abs(wanted).max()))


def test_threads_do_not_change_a_bit() -> None:
    _, arrays, compiled = gradients("images")
    results = []
    for threads in (1, 2, 3):
        fg.set_num_threads(threads)
        results.append([np.array(value) for value in compiled(*arrays)])
    fg.set_num_threads(2)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
