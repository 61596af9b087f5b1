"""Reverse mode: backward, grad, value_and_grad, modes, versions, gradients of gradients, rules of one's own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import ops
from fusegraph.autograd import with_vjp
from fusegraph.errors import GradientError
from fusegraph.trace import tracing
from tests.oracles import Traced, assert_close, check_gradients


def leaf(*values: float) -> fg.Tensor:
    return fg.tensor(list(values), dtype="float64", requires_grad=True)


# -- backward ---


def test_gradients_accumulate() -> None:
    x = leaf(1.0, 2.0)
    for times in (1, 2, 3):
        (x * x).sum().backward()
        np.testing.assert_array_equal(x.grad.numpy(), times * np.array([2.0, 4.0]))
    x.grad = None
    (x * 3).sum().backward()
    assert x.grad.tolist() == [3, 3]


def test_a_value_used_many_times() -> None:
    x = leaf(2.0)
    y = x * x
    (y * y + y + x).sum().backward()
    assert x.grad.item() == 4 * 8 + 4 + 1


def test_deep_graphs_need_no_recursion() -> None:
    x = leaf(1.0)
    y = x
    for _ in range(5000):
        y = y + 1.0
    y.sum().backward()
    assert x.grad.item() == 1.0


def test_gradient_argument() -> None:
    x = leaf(1.0, 2.0, 3.0)
    y = x * x
    with pytest.raises(GradientError, match=r"backward\(\) of a tensor of shape \[3\]: pass `gradient`, or reduce it"):
        y.backward()
    with pytest.raises(GradientError, match=r"the gradient of an output of shape \[3\] has shape \[2\]"):
        y.backward(fg.ones(2))
    assert x.grad is None
    y.backward(fg.tensor([1.0, 0.0, 2.0]))
    assert x.grad.tolist() == [2, 0, 12]


def test_what_has_no_gradient() -> None:
    x = leaf(1.0)
    with pytest.raises(GradientError, match="does not depend on anything that requires a gradient"):
        fg.ones(()).backward()
    with pytest.raises(GradientError, match="does not depend"):
        x.detach().sum().backward()
    with fg.no_grad():
        y = x * 2
    with pytest.raises(GradientError, match="does not depend"):
        y.sum().backward()
    with pytest.raises(GradientError, match="only floating point tensors have gradients, this one is int64"):
        fg.tensor([1, 2]).requires_grad_()
    assert not (x > 0).requires_grad and not x.argmax(0).requires_grad and not x.long().requires_grad


def test_modes() -> None:
    x = leaf(1.0)
    assert fg.is_grad_enabled()
    with fg.no_grad():
        assert not fg.is_grad_enabled() and not (x * 2).requires_grad
        with fg.enable_grad():
            assert (x * 2).requires_grad
        assert not fg.is_grad_enabled()
    assert fg.is_grad_enabled()

    @fg.no_grad()
    def frozen(v: fg.Tensor) -> fg.Tensor:
        return v * 2

    assert not frozen(x).requires_grad and fg.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), fg.no_grad():
        raise ZeroDivisionError
    assert fg.is_grad_enabled()
    with fg.set_grad_enabled(False):
        assert not (x * 2).requires_grad


def test_changed_inputs_are_noticed() -> None:
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    with fg.no_grad():
        x.copy_(x * 2)
    with pytest.raises(GradientError, match="changed in place after it was used"):
        y.backward()
    with pytest.raises(GradientError, match="requires a gradient is overwritten in place"):
        x.copy_(fg.ones(2))


# -- grad ---


def test_grad_of_outputs() -> None:
    x, y, unused = leaf(1.0, 2.0), leaf(3.0, 4.0), leaf(5.0)
    a, b = fg.autograd.grad([(x * y).sum(), x.sum()], [x, y])
    assert a.tolist() == [4, 5] and b.tolist() == [1, 2]
    assert x.grad is None
    with pytest.raises(GradientError, match=r"input 1 of shape \[1\] was not used"):
        fg.autograd.grad(x.sum(), [x, unused])
    assert fg.autograd.grad(x.sum(), [x, unused], allow_unused=True)[1] is None
    middle = x * 2
    (found,) = fg.autograd.grad((middle * middle).sum(), middle)
    assert found.tolist() == [4, 8]
    (weighted,) = fg.autograd.grad(x * x, x, grad_outputs=[fg.tensor([1.0, 10.0])])
    assert weighted.tolist() == [2, 40]


def test_functional_forms() -> None:
    def f(x: Any, y: Any) -> Any:
        return (x * x * y).sum()

    value, gradient = fg.value_and_grad(f)(np.array([1.0, 2.0]), 3.0)
    assert value.item() == 15 and gradient.tolist() == [6, 12]
    both = fg.grad(f, argnums=(0, 1))(leaf(1.0, 2.0), leaf(3.0, 4.0))
    assert both[0].tolist() == [6, 16] and both[1].tolist() == [1, 4]
    tree = fg.grad(lambda p: (p["w"] * 2).sum() + p["b"][0].sum())({"w": np.ones(2), "b": [np.ones(3)]})
    assert tree["w"].tolist() == [2, 2] and tree["b"][0].tolist() == [1, 1, 1]
    gradient, aux = fg.grad(lambda x: (x.sum(), "more"), has_aux=True)(np.ones(2))
    assert aux == "more" and gradient.tolist() == [1, 1]
    second = fg.grad(lambda x: fg.grad(lambda v: (v**3).sum())(x).sum())(np.array([2.0]))
    assert second.tolist() == [12]
    zero = fg.grad(lambda x, y: x.sum(), argnums=(0, 1))(np.ones(2), np.ones(3))
    assert zero[1].tolist() == [0, 0, 0]
    with pytest.raises(GradientError, match="does not depend on anything"):
        fg.grad(lambda x, y: x.sum(), argnums=1)(fg.ones(2), np.ones(3))
    with pytest.raises(GradientError, match="a gradient is taken of a tensor, got NoneType"):
        fg.grad(lambda x: None)(np.ones(2))


def test_third_derivative() -> None:
    x = leaf(0.7)
    y = x.sin()
    for expected in (math.cos(0.7), -math.sin(0.7), -math.cos(0.7)):
        (y,) = fg.autograd.grad(y.sum(), x, create_graph=True)
        assert y.item() == pytest.approx(expected)


def test_hessian_of_a_network(rng: np.random.Generator) -> None:
    check_gradients(
        lambda x, w, b: F.linear(F.gelu(F.linear(x, w, b)), w).softmax(-1),
        [rng.uniform(-1, 1, s) for s in ((3, 4), (4, 4), (4,))],
        tolerance=2e-6,
    )


@pytest.mark.torch
def test_create_graph_accumulates_a_gradient_penalty(torch: Any) -> None:
    x, w = np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([[0.3, -0.4]])
    ours, theirs = fg.tensor(w, requires_grad=True), torch.tensor(w, requires_grad=True)
    for m, weight, data in (
        (fg, ours, fg.tensor(x, requires_grad=True)),
        (torch, theirs, torch.tensor(x, requires_grad=True)),
    ):
        out = m.tanh(data @ weight.T).sum()
        (g,) = m.autograd.grad(out, data, create_graph=True)
        (out + (g.norm(2, -1) - 1).square().mean()).backward()
    assert_close(ours.grad.detach().numpy(), theirs.grad.numpy(), 1e-12)


# -- rules of one's own ---


def test_with_vjp() -> None:
    def straight_through(x: fg.Tensor) -> fg.Tensor:
        return with_vjp(ops.round, [x], lambda ct, out, x: (ct * x * x,))  # (an odd rule, to see that it is used)

    x = leaf(1.4, -2.6)
    y = straight_through(x)
    assert y.tolist() == [1, -3] and y.requires_grad
    (g,) = fg.autograd.grad(y.sum(), x, create_graph=True)
    np.testing.assert_allclose(g.detach().numpy(), [1.4**2, 2.6**2])
    (h,) = fg.autograd.grad(g.sum(), x)
    np.testing.assert_allclose(h.numpy(), [2.8, -5.2])
    with fg.no_grad():
        assert not straight_through(x).requires_grad
    traced = Traced(lambda x: fg.autograd.grad(straight_through(x.requires_grad_()).sum(), x), [x.detach()])
    np.testing.assert_allclose(traced(x)[0], [1.4**2, 2.6**2])


def test_amax_is_exact_for_infinities() -> None:
    x = leaf(-math.inf, -math.inf, 1.0)
    x[:2].amax(0).backward()
    assert x.grad.tolist() == [0.5, 0.5, 0]
    y = leaf(math.inf, 1.0, math.inf)
    out = y.amax()
    assert out.item() == math.inf
    out.backward()
    assert y.grad.tolist() == [0.5, 0, 0.5]
    check_gradients(lambda v: v.amax(1) * v.amin(1), [np.random.default_rng(0).uniform(-1, 1, (3, 5))])


def test_masked_values_do_not_poison_gradients() -> None:
    """NaN and infinities that a mask leaves out have gradient 0, and so has what made them."""
    x = leaf(4.0, 0.0, -1.0)
    for function in (
        lambda v: ops.where(v > 0, v, 0.0).sum(),
        lambda v: ops.where(v > 0, ops.sqrt(ops.where(v > 0, v, 1.0)), 0.0).sum(),
        lambda v: F.masked_mean(v[None], (v.detach() > 0)[None], 1).sum(),
        lambda v: F.masked_max(v[None], (v.detach() > 0)[None], 1).sum(),
    ):
        (g,) = fg.autograd.grad(function(x), x)
        assert np.isfinite(g.numpy()).all() and (g.numpy()[1:] == 0).all()


# -- traced ---


def test_gradients_are_nodes_and_belong_to_the_line_of_their_operation(rng: np.random.Generator) -> None:
    w = fg.tensor(rng.normal(size=(3, 2)), requires_grad=True)
    w.name = "w"

    def f(x: fg.Tensor) -> Any:
        y = x @ w
        loss = y.exp().sum()
        return fg.autograd.grad(loss, [w, x.requires_grad_()] if x.requires_grad else [w])

    x = fg.tensor(rng.normal(size=(4, 3)))
    traced = Traced(f, [x])
    assert [n.name for n in traced.graph.inputs] == ["argument0", "w"]
    lines = {n.location.line for n in traced.graph if n.op == "matmul"}
    assert len(lines) == 1
    assert_close(traced(x)[0], f(x)[0].detach().numpy(), 1e-12)


def test_backward_in_a_trace_remembers_gradients() -> None:
    w = leaf(1.0, 2.0)
    w.grad = fg.tensor([5.0, 5.0], dtype="float64")
    with tracing() as trace:
        (w * 3).sum().backward()
        assert w.grad.is_symbol
    assert trace.grads_before[id(w)][1].tolist() == [5, 5]
    w.grad = None


def test_higher_order_in_a_trace(rng: np.random.Generator) -> None:
    x = fg.tensor(rng.uniform(-1, 1, (3, 4)))

    def penalty(x: fg.Tensor) -> fg.Tensor:
        v = x.detach().requires_grad_()
        (g,) = fg.autograd.grad(F.log_softmax(v, 1).exp().square().sum(), v, create_graph=True)
        (h,) = fg.autograd.grad(g.square().sum(), v)
        return h

    assert_close(Traced(penalty, [x])(x)[0], penalty(x).detach().numpy(), 1e-12)
