"""Forward and backward of a compiled function as two programs: random functions give the gradients of the eager run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fusion_graphs import random_arrays, random_graph

import fusegraph as fg
from fusegraph.ir import emit, interpret
from fusegraph.ir.graph import Graph, Node


def apply_graph(graph: Graph, tensors: list[Any]) -> list[Any]:
    """The outputs of `graph`, operation by operation, on tensors."""
    values: dict[Node, Any] = dict(zip(graph.inputs, tensors, strict=True))
    for node in graph.nodes:
        if node.op != "input":
            operands = [values[value] for value in node.inputs]
            values[node] = (
                emit.bind(node.op, *operands, **node.params)
                if operands
                else tensors[0].__fg_bind__(node.op, (), dict(node.params))
            )
    return [values[node] for node in graph.outputs]


def gradients(graph: Graph, function: Any, arrays: list[Any]) -> list[Any]:
    """Outputs of `function`, then the gradients of a weighted sum of its float outputs by every float input."""
    tensors = [fg.tensor(array, requires_grad=array.dtype.kind == "f") for array in arrays]
    outputs = function(*tensors)
    used = [out for out in outputs if out.requires_grad]
    seeds = [np.cos(np.arange(out.numel(), dtype=np.float64)).reshape(out.shape) for out in used]
    wanted = [t for t in tensors if t.requires_grad]
    found = fg.autograd.grad(used, wanted, [fg.tensor(seed) for seed in seeds], allow_unused=True) if used else []
    return [
        *outputs,
        *(fg.zeros(*t.shape, dtype=t.dtype) if g is None else g for g, t in zip(found, wanted, strict=False)),
    ]


def compare_gradients(seed: int, backend: str, **options: Any) -> None:
    graph = random_graph(2 * seed + 1)
    arrays = random_arrays(graph, seed, whole=False)
    wanted = gradients(graph, lambda *tensors: apply_graph(graph, list(tensors)), arrays)
    got = gradients(
        graph, fg.compile(lambda *tensors: apply_graph(graph, list(tensors)), backend=backend, **options), arrays
    )
    for number, (a, b) in enumerate(zip(got, wanted, strict=True)):
        a, b = a.detach().numpy(), b.detach().numpy()
        scale = max(1.0, float(np.abs(b).max())) if b.size else 1.0
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9 * scale, err_msg=f"seed {seed}, result {number}")


@pytest.mark.parametrize("block", range(15))
def test_random_functions_have_the_gradients_of_the_eager_run(block: int) -> None:
    for seed in range(block * 6, block * 6 + 6):
        compare_gradients(seed, "python")


@pytest.mark.parametrize("options", [{"fuse": False}, {"disable": ("cse",)}, {"exact": True}])
def test_options(options: dict[str, Any]) -> None:
    for seed in range(200, 206):
        compare_gradients(seed, "python", **options)


def test_what_is_kept_for_the_backward_pass() -> None:
    """The inputs are handed over, cheap values are computed again, the costly one is kept."""

    def f(x: Any, w: Any) -> Any:
        return ((x * 2.0 + 1.0).exp() @ w).relu()

    fast = fg.compile(f, backend="python")
    x, w = (fg.tensor(np.ones((3, 3)), requires_grad=True) for _ in range(2))
    fast(x, w).sum().backward()
    version = fast.compiled_for()
    assert version.joint is not None and version.backward is not None
    kept = [node.op for node in version.joint.saved]
    assert "exp" in kept and "mul" not in kept and "add" not in kept, kept
    assert [version.artifact.source.inputs[i].name for i in version.joint.passed] == ["w"]


def test_the_two_graphs_compute_what_the_whole_does() -> None:
    def f(x: Any) -> Any:
        return fg.where(x > 0.0, x.exp(), x) * x.sum(0, keepdim=True)

    x = fg.tensor(np.linspace(-1, 1, 12).reshape(3, 4), requires_grad=True)
    fast = fg.compile(f, backend="reference")
    out = fast(x)
    version = fast.compiled_for()
    assert version.joint is not None and version.backward is not None
    forward, _ = interpret.run(version.artifact.source, [x.detach().numpy()])
    np.testing.assert_allclose(forward[0], out.detach().numpy())
    seed = np.ones((3, 4))
    kept = [x.detach().numpy() for _ in version.joint.passed] + forward[1:]
    (gradient,), _ = interpret.run(version.backward.source, [*kept, seed])
    (wanted,) = fg.autograd.grad(f(x).sum(), x)
    np.testing.assert_allclose(gradient, wanted.numpy(), rtol=1e-12)
    assert all(node.op != "random_bits" for node in version.backward.source.nodes)


def test_an_updated_input_reaches_the_backward_pass_as_it_was() -> None:
    """The forward program overwrites a scale that its own gradient needs."""
    scale = fg.tensor(np.full(3, 2.0))

    def f(x: Any) -> Any:
        out = (x * scale).sin()
        with fg.no_grad():
            scale.mul_(3.0)
        return out

    x = fg.tensor(np.array([0.1, 0.2, 0.3]), requires_grad=True)
    fast = fg.compile(f, backend="python")
    for factor in (2.0, 6.0):
        x.grad = None
        fast(x).sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), factor * np.cos(factor * x.detach().numpy()))
    np.testing.assert_allclose(scale.numpy(), 18.0)


def test_random_numbers_are_kept_not_drawn_again() -> None:
    fg.manual_seed(1)
    x = fg.tensor(np.ones(50), requires_grad=True)
    fast = fg.compile(lambda v: fg.functional.dropout(v, 0.5) * v, backend="python")
    first, second = fast(x), fast(x)
    for out in (second, first):
        x.grad = None
        out.sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), 2 * out.detach().numpy())
    assert (first.detach().numpy() != second.detach().numpy()).any()
