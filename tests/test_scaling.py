"""Deep and wide graphs compile: nothing goes down a long graph by recursion, and work does not explode. No time is asserted."""

import numpy as np
import pytest

import fusegraph as fg
from fusegraph import nn, optim
from fusegraph.build import step_code
from fusegraph.passes.roots import MAX_DEPTH

X = np.linspace(-1, 1, 64, dtype=np.float32)


def agree(function, *arrays, rtol=1e-5):
    """Compiled and eager results agree; gives the compiled function."""
    compiled = fg.compile(function)
    got, expected = compiled(*arrays), function(*map(fg.as_tensor, arrays))
    got, expected = (list(r) if isinstance(r, (list, tuple)) else [r] for r in (got, expected))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=rtol, atol=1e-6)
    return compiled


def program_of(compiled):
    return compiled.compiled_for().artifact.fused[0]


def alternating(x, length):
    for i in range(length):
        x = (x * 1.001).tanh() if i % 2 else x + 0.1
    return x


@pytest.mark.parametrize("length", [240, 260, 5000])  # around one body, and far beyond
def test_a_chain_of_cheap_operations(length):
    def f(x, y):
        for i in range(length):
            x = x * y if i % 2 else x + y
        return x

    agree(f, X, np.full(64, 0.5, np.float32))


def test_a_long_chain_and_its_gradient():
    value_and_grad = fg.value_and_grad(lambda x: alternating(x, 1000).sum())
    agree(lambda x: value_and_grad(x), X)


def test_no_body_is_deeper_than_the_limit():
    compiled = agree(lambda x: alternating(x, 2000), X)
    for loop in program_of(compiled).loops:
        for stage in loop.stages:
            assert all(expression.depth <= 2 * MAX_DEPTH for expression in stage.expressions())


def test_a_chain_of_views():
    def f(x):
        for i in range(400):
            x = fg.cat([x[1:], x[:1] * 0.5]) if i % 2 else x.flip(0)
        return x

    agree(f, X)


def test_a_chain_of_reductions():
    def f(x):
        for _ in range(150):
            x = x - x.mean(1, keepdim=True) * 0.5
        return x

    agree(f, np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32), rtol=1e-4)


def test_many_results_of_one_input():
    agree(lambda x: [(x + float(i)).sin() for i in range(150)], X)


def test_many_sums_of_one_input():
    agree(lambda x: sum((x * float(i)).cos().exp().sum() for i in range(150)), X, rtol=1e-4)


def test_two_hundred_layers():
    fg.manual_seed(0)
    model = nn.Sequential(*[part for _ in range(200) for part in (nn.Linear(64, 64), nn.ReLU())])
    opt = optim.SGD(model.parameters(), lr=0.01)

    @fg.compile
    def step(x, y):
        opt.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        opt.step()
        return loss

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 8, 64)).astype(np.float32)
    eager = ((model(fg.as_tensor(x)) - fg.as_tensor(y)) ** 2).mean().item()
    assert step(x, y).item() == pytest.approx(eager, rel=1e-5)
    code = step_code(step.compiled_for().artifact)
    assert (
        len(code.kernels) >= 400 and len({kernel.name for kernel in code.kernels}) <= 40
    )  # equal layers share kernels
