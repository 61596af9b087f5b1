"""What results are compared with: finite differences, torch, and the eager run of a traced function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import fusegraph as fg
from fusegraph.ir import parse, verify
from fusegraph.ir.graph import Graph
from fusegraph.ir.interpret import run
from fusegraph.tensor import Tensor
from fusegraph.trace import tracing

Array = np.ndarray[Any, Any]

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


def assert_close(actual: Any, expected: Any, tolerance: float, what: str = "") -> None:
    """Equal shape, NaN and infinities in the same places, and all else within `tolerance` of the largest magnitude
    (at least 1).
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    if actual.dtype.kind != "f":
        np.testing.assert_array_equal(actual, expected, what)
        return
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite], what)
    scale = max(1.0, float(np.abs(expected[finite]).max(initial=0.0)))
    np.testing.assert_allclose(actual[finite], expected[finite], rtol=0, atol=tolerance * scale, err_msg=what)


def leaves(arrays: Sequence[Array]) -> list[Tensor]:
    """Tensors that share the arrays' memory; floating point ones require a gradient."""
    return [fg.from_numpy(a).detach().requires_grad_(a.dtype.kind == "f") for a in arrays]


def flat_outputs(result: Any) -> list[Any]:
    """The tensors in a result that is a tensor or a nest of tuples and lists."""
    if isinstance(result, (tuple, list)):
        return [part for item in result for part in flat_outputs(item)]
    return [] if result is None else [result]


def same_as_torch(
    ours: Callable[..., Any], theirs: Callable[..., Any], arrays: Sequence[Array], tolerance: float | None = None
) -> None:
    """Values, dtypes and gradients (of a random weighted sum of all outputs) of two functions of the same arrays."""
    import torch

    if tolerance is None:
        tolerance = (
            max(TOLERANCE[a.dtype.name] for a in arrays if a.dtype.kind == "f")
            if any(a.dtype.kind == "f" for a in arrays)
            else 0.0
        )
    xs = leaves(arrays)
    ys = [torch.tensor(np.array(a, order="C"), requires_grad=a.dtype.kind == "f") for a in arrays]
    outs, wanted = flat_outputs(ours(*xs)), flat_outputs(theirs(*ys))
    assert len(outs) == len(wanted)
    rng = np.random.default_rng(1)
    total: Any = 0.0
    expected_total: Any = 0.0
    for number, (out, want) in enumerate(zip(outs, wanted, strict=True)):
        assert out.dtype.name == str(want.dtype).removeprefix("torch."), (
            f"output {number}: {out.dtype} against {want.dtype}"
        )
        assert_close(out.detach().numpy(), want.detach().numpy(), tolerance, f"output {number}")
        assert out.requires_grad == want.requires_grad, (
            f"output {number}: requires_grad {out.requires_grad} against {want.requires_grad}"
        )
        if want.requires_grad:
            weight = rng.uniform(0.5, 1.5, want.shape).astype(want.detach().numpy().dtype)
            total = total + (out * weight).sum()
            expected_total = expected_total + (want * torch.tensor(weight)).sum()
    if isinstance(expected_total, float):
        return
    total.backward()
    expected_total.backward()
    for number, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if y.requires_grad:
            want = np.zeros(y.shape) if y.grad is None else y.grad.numpy()
            got = np.zeros(x.shape) if x.grad is None else x.grad.detach().numpy()
            assert_close(got, want, tolerance, f"gradient of input {number}")


def directional(
    function: Callable[[list[Array]], float], arrays: Sequence[Array], directions: Sequence[Array], step: float = 1e-5
) -> float:
    """The derivative of a number along `directions`, by central differences of fourth order."""

    def at(t: float) -> float:
        return function([a + t * d if a.dtype.kind == "f" else a for a, d in zip(arrays, directions, strict=True)])

    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)


def check_gradients(
    function: Callable[..., Tensor], arrays: Sequence[Array], order: int = 2, tolerance: float = 1e-6
) -> None:
    """Gradients of a function of float64 arrays against finite differences; with `order` 2, gradients of gradients too.

    Along random directions, which every element takes part in.
    """
    rng = np.random.default_rng(2)

    def scalar(*xs: Tensor) -> Tensor:
        out = function(*xs)
        return (out * np.random.default_rng(3).uniform(0.5, 1.5, out.shape)).sum()

    def slope(*xs: Tensor) -> Tensor:
        grads = fg.autograd.grad(scalar(*xs), [x for x in xs if x.requires_grad], create_graph=True, allow_unused=True)
        weights = np.random.default_rng(4)
        total: Any = fg.zeros((), dtype="float64")
        for g in grads:
            if g is not None:
                total = total + (g * weights.uniform(0.5, 1.5, g.shape)).sum()
        return total

    for level in (scalar, slope)[:order]:
        xs = leaves(arrays)
        value = level(*xs)
        floats = [x for x in xs if x.requires_grad]
        if not value.requires_grad:  # a function that is linear has no second derivative
            grads: Any = [None] * len(floats)
        else:
            grads = fg.autograd.grad(value, floats, allow_unused=True)
        for _ in range(3):
            directions = [rng.uniform(-1, 1, a.shape) if a.dtype.kind == "f" else np.zeros((), a.dtype) for a in arrays]
            chosen = [d for d, a in zip(directions, arrays, strict=True) if a.dtype.kind == "f"]
            exact = sum(
                float((g.detach().numpy() * d).sum()) for g, d in zip(grads, chosen, strict=True) if g is not None
            )
            found = directional(
                lambda moved, level=level: float(level(*leaves(moved)).detach().numpy()), arrays, directions
            )
            assert abs(exact - found) <= tolerance * max(1.0, abs(found)), f"{level.__name__}: {exact} against {found}"


class Traced:
    """A function traced once, that can be run by the numpy interpreter, updates and all."""

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Tensor]) -> None:
        with tracing() as trace:
            symbols = [trace.argument(f"argument{i}", x) for i, x in enumerate(arguments)]
            results = flat_outputs(function(*symbols))
            outputs = [trace.lift(r)._value for r in results]
        self.grads_before = trace.grads_before
        for tensor, before in trace.grads_before.values():
            tensor.grad = before
        self.trace = trace
        self.arguments = [s._value for s in symbols]
        self.assigned = [c for c in trace.captured.values() if c.assigned]
        updates = [(c.input, c.value._value) for c in self.assigned]
        self.graph: Graph = verify(trace.builder.finish(outputs, updates, "step"))
        assert parse(str(self.graph)) == self.graph, "the text form does not round trip"

    def __call__(self, *arguments: Tensor) -> list[Array]:
        """Outputs; captured tensors that the function assigns are updated."""
        values = {c.input: c.tensor._value for c in self.trace.captured.values()}
        values.update({node: x._value for node, x in zip(self.arguments, arguments, strict=True)})
        outputs, updates = run(self.graph, [values[node] for node in self.graph.inputs])
        for captured, value in zip(self.assigned, updates, strict=True):
            np.copyto(captured.tensor._value, value)
        return outputs


def snapshot(tensors: Sequence[Tensor]) -> list[Array]:
    """Copies of what the tensors hold."""
    return [t._value.copy() for t in tensors]


def restore(tensors: Sequence[Tensor], arrays: Sequence[Array]) -> None:
    """Put copies back."""
    for t, a in zip(tensors, arrays, strict=True):
        np.copyto(t._value, a)
