"""Passes on traced training steps: what becomes of the graph, and that a step computes the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim
from fusegraph.ir import Graph, interpret, verify
from fusegraph.passes import run_pipeline
from fusegraph.trace import tracing
from tests.compile_tools import training_step

Array = np.ndarray[Any, Any]


def trace_step(function: Callable[..., Any], *args: Array) -> tuple[Graph, list[Array]]:
    """The graph of one call, with what it assigns as updates; and arrays for the graph's inputs."""
    with tracing() as trace:
        symbols = [trace.argument(f"arg{i}", fg.as_tensor(array)) for i, array in enumerate(args)]
        result = function(*symbols)
        updates = [(c.input, c.value._value) for c in trace.captured.values() if c.assigned]
        graph = trace.builder.finish([result._value], updates, "step")
        arrays = {c.input: c.tensor._value for c in trace.captured.values()}
    arrays.update(zip((symbol._value for symbol in symbols), args, strict=True))
    return verify(graph), [np.asarray(arrays[node]) for node in graph.inputs]


def counts(graph: Graph) -> Counter[str]:
    """How often each primitive occurs."""
    return Counter(node.op for node in graph.nodes)


def check_same(graph: Graph, optimized: Graph, arrays: list[Array], tolerance: float) -> None:
    """Both graphs give the same outputs and updates."""
    wanted, got = interpret.run(graph, arrays), interpret.run(optimized, arrays)
    new = {old.name: value for (old, _), value in zip(optimized.updates, got[1], strict=True)}
    before = dict(zip((node.name for node in graph.inputs), arrays, strict=True))
    pairs = list(zip(wanted[0], got[0], strict=True))
    pairs += [(x, new.get(old.name, before[old.name])) for (old, _), x in zip(graph.updates, wanted[1], strict=True)]
    for x, y in pairs:
        scale = max(1.0, float(np.abs(x).max(initial=0)))
        np.testing.assert_allclose(y, x, rtol=0, atol=tolerance * scale)


def mlp(hidden: int = 1) -> nn.Module:
    """784 - 256 - ... - 10 with relu."""
    layers: list[Any] = [nn.Linear(784, 256), nn.ReLU()]
    for _ in range(hidden):
        layers += [nn.Linear(256, 256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 10))


def digits(count: int = 64) -> tuple[Array, Array]:
    """Random images and labels, one of them ignored."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, count)
    labels[3] = -100
    return rng.random((count, 784)).astype(np.float32), labels


def test_mlp_with_cross_entropy_and_sgd() -> None:
    model = mlp()
    graph, arrays = trace_step(training_step(model, optim.SGD(model.parameters(), lr=0.05)), *digits())
    assert counts(graph)["put_along_add"] == 1
    optimized = run_pipeline(graph, verify=True)
    found = counts(optimized)
    assert found["put_along_add"] == found["put_add"] == 0
    assert found["exp"] == found["log"] == 1
    assert found["matmul"] == 8, "three forward, three for weights, two for activations"
    assert found["sum"] == 6, "softmax, loss and its count, three biases: none over the one-hot gradient"
    assert all(new.op == "sub" for _, new in optimized.updates)
    for old, new in optimized.updates:
        _, product = new.inputs
        assert product.op == "mul", "the update of a weight reads its gradient in the weight's own layout"
        assert {x.op for x in product.inputs} <= {"expand", "matmul", "sum"}, old.name
    check_same(graph, optimized, arrays, 2e-6)


def test_relu_masks_come_from_outputs() -> None:
    model = mlp()
    graph, _ = trace_step(training_step(model, optim.SGD(model.parameters(), lr=0.05)), *digits())
    optimized = run_pipeline(graph)
    masks = [node for node in optimized.nodes if node.op == "gt"]
    assert masks and all(mask.inputs[0].op == "relu" for mask in masks)


class TextNet(nn.Module):
    """Mean of embeddings, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, 16)
        self.fc = nn.Linear(16, 2)

    def forward(self, ids: Any) -> Any:
        return self.fc(self.table(ids).mean(1))


def tokens() -> tuple[Array, Array]:
    """Token ids (some occur more than once) and labels."""
    rng = np.random.default_rng(1)
    return rng.integers(0, 50, (8, 12)), rng.integers(0, 2, 8)


def test_plain_sgd_on_an_embedding_is_sparse() -> None:
    model = TextNet()
    graph, arrays = trace_step(training_step(model, optim.SGD(model.parameters(), lr=0.1)), *tokens())
    optimized = run_pipeline(graph, verify=True)
    table = next(node for node in optimized.inputs if node.shape == (1000, 16))
    (update,) = (new for old, new in optimized.updates if old is table)
    assert update.op == "put_add" and update.inputs[0] is table
    assert not any(node.shape == (1000, 16) for node in optimized.nodes if node not in (table, update))
    check_same(graph, optimized, arrays, 2e-6)


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"weight_decay": 0.1}, {"momentum": 0.9, "nesterov": True}])
def test_other_sgd_on_an_embedding_computes_the_same(options: dict[str, Any]) -> None:
    model = TextNet()
    opt = optim.SGD(model.parameters(), lr=0.1, **options)
    graph, arrays = trace_step(training_step(model, opt), *tokens())
    check_same(graph, run_pipeline(graph, verify=True), arrays, 2e-6)


@pytest.mark.parametrize("make", [optim.Adam, optim.AdamW, optim.RMSprop], ids=["Adam", "AdamW", "RMSprop"])
def test_adaptive_optimizers_compute_the_same(make: Any) -> None:
    model = mlp()
    graph, arrays = trace_step(training_step(model, make(model.parameters(), lr=1e-3)), *digits())
    optimized = run_pipeline(graph, verify=True)
    assert len(optimized.nodes) < len(graph.nodes)
    check_same(graph, optimized, arrays, 2e-6)


class ConvNet(nn.Module):
    """A small LeNet with batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 5 * 5, 10)

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(self.norm(self.conv(x)).relu(), 2)
        return self.fc(F.dropout(x.flatten(1), 0.25, self.training))


def test_convolutional_net_computes_the_same() -> None:
    rng = np.random.default_rng(2)
    model = ConvNet().double()
    step = training_step(model, optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    graph, arrays = trace_step(step, rng.random((6, 1, 12, 12)), rng.integers(0, 10, 6))
    optimized = run_pipeline(graph, verify=True)
    assert counts(optimized)["put_along_add"] == 0
    check_same(graph, optimized, arrays, 1e-11)


@pytest.mark.parametrize(
    "make, shape, axes",
    [
        (lambda: nn.BatchNorm2d(8), (16, 8, 5, 5), (0, 2, 3)),
        (lambda: nn.LayerNorm(32), (16, 32), (1,)),
        (lambda: nn.RMSNorm(32), (16, 32), (1,)),
    ],
    ids=["BatchNorm2d", "LayerNorm", "RMSNorm"],
)
def test_gradient_of_a_normalisation_needs_few_sums(make: Any, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    model = make().double()
    rng = np.random.default_rng(4)

    def gradient(x: Any, ct: Any) -> Any:
        x = x.requires_grad_()
        (found,) = fg.autograd.grad(model(x), [x], [ct])
        return found

    graph, arrays = trace_step(gradient, rng.standard_normal(shape), rng.standard_normal(shape))
    optimized = run_pipeline(graph, verify=True)
    sums = [node for node in optimized.nodes if node.op == "sum"]
    assert all(node.params["axes"] == axes for node in sums)
    backward = 1 if isinstance(model, nn.RMSNorm) else 2
    assert len(sums) == backward + backward, "as many as in the forward pass: of x and its square, of g and g * x"
    check_same(graph, optimized, arrays, 1e-12)


def test_gradient_of_a_softmax_reads_the_softmax_alone() -> None:
    rng = np.random.default_rng(5)

    def gradient(x: Any, ct: Any) -> Any:
        x = x.requires_grad_()
        out = F.softmax(x, -1)
        (found,) = fg.autograd.grad(out, [x], [ct])
        return out.relu() + found

    graph, arrays = trace_step(gradient, rng.standard_normal((6, 16)), rng.standard_normal((6, 16)))
    optimized = run_pipeline(graph, verify=True)
    (e,) = (node for node in optimized.nodes if node.op == "exp")
    assert sorted(node.op for node in optimized.users()[e]) == ["mul", "sum"]
    check_same(graph, optimized, arrays, 1e-12)


class Block(nn.Module):
    """Attention, layer norm, gelu."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.q, self.k, self.v, self.up = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        h = self.norm(x)
        h = x + F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h), is_causal=True)
        return self.up(F.gelu(h)).transpose(1, 2)


@pytest.mark.parametrize("exact", [False, True])
def test_transformer_block_computes_the_same(exact: bool) -> None:
    rng = np.random.default_rng(3)
    model = Block().double()
    step = training_step(model, optim.AdamW(model.parameters(), lr=1e-3))
    graph, arrays = trace_step(step, rng.standard_normal((3, 7, 8)), rng.integers(0, 5, (3, 7)))
    optimized = run_pipeline(graph, verify=True, exact=exact)
    assert len(optimized.nodes) < len(graph.nodes)
    check_same(graph, optimized, arrays, 1e-11)
    assert run_pipeline(optimized, exact=exact) is optimized


def test_rounds_do_not_grow_with_the_depth_of_a_net() -> None:
    def passes_that_changed_something(layers: int) -> list[str]:
        model = mlp(layers)
        step = training_step(model, optim.SGD(model.parameters(), lr=0.05))
        record: list[tuple[str, Graph]] = []
        run_pipeline(trace_step(step, *digits(4))[0], record=record)
        return [name for name, _ in record]

    assert passes_that_changed_something(60) == passes_that_changed_something(2)
