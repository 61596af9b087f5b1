"""`donate_argnums`: results in the memory of arguments that the caller gave away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn
from fusegraph.donation import GivenAway
from fusegraph.errors import IndexRangeError, OptionError, StateError, UnsupportedError

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def _no_disk_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEGRAPH_CACHE_SIZE_MB", "0")


def numbers(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def step(params: dict[str, Any], x: Any, y: Any) -> Any:
    """One step of gradient descent on a linear layer: new parameters, and the loss."""

    def loss(w: Any, b: Any) -> Any:
        return F.cross_entropy(x @ w + b, y)

    value, (dw, db) = fg.value_and_grad(loss, argnums=(0, 1))(params["w"], params["b"])
    return {"w": params["w"] - 0.1 * dw, "b": params["b"] - 0.1 * db}, value


def start() -> dict[str, Array]:
    return {"w": numbers(5, 3), "b": numbers(3)}


@pytest.mark.parametrize("backend", ["cpu", "reference", "python"])
@pytest.mark.parametrize("wrap", [fg.tensor, np.array])
def test_functional_training(wrap: Any, backend: str):
    x, y = numbers(8, 5), np.arange(8) % 3
    donating, plain = fg.compile(step, donate_argnums=0, backend=backend), fg.compile(step)
    mine, other = {name: wrap(value) for name, value in start().items()}, start()
    memory = {name: np.asarray(value).__array_interface__["data"] for name, value in mine.items()}
    for _ in range(4):
        mine, loss = donating(mine, x, y)
        other, expected = plain(other, x, y)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for name, value in mine.items():
        np.testing.assert_allclose(value.numpy(), other[name].numpy(), rtol=1e-5, atol=1e-6)
        assert value.numpy().__array_interface__["data"] == memory[name]


def test_a_tensor_that_was_given_away_cannot_be_used():
    compiled = fg.compile(lambda a, b: a * b, donate_argnums=0)
    a, b = fg.tensor(numbers(4)), fg.tensor(numbers(4))
    product = compiled(a, b)
    np.testing.assert_allclose(product.numpy(), numbers(4) ** 2, rtol=1e-6)
    np.testing.assert_array_equal(b.numpy(), numbers(4))
    assert isinstance(a, GivenAway) and repr(a) == "Tensor(given away)"
    uses = (a.numpy, lambda: a + 1, lambda: a.shape, lambda: compiled(a, b), lambda: b * a, lambda: np.asarray(a))
    for use in uses:
        with pytest.raises(StateError, match="given away"):
            use()


def test_an_array_holds_the_result():
    compiled = fg.compile(lambda a: a + 1, donate_argnums=(0,))
    a = numbers(3, 4)
    result = compiled(a)
    np.testing.assert_array_equal(a, numbers(3, 4) + 1)
    assert np.shares_memory(a, result.numpy())


def test_views_and_arrays_that_are_not_contiguous():
    compiled = fg.compile(lambda a: a * 2, donate_argnums=0)
    whole = numbers(6, 8)
    for part in (np.s_[2:4], np.s_[:, 3:7], np.s_[::2, ::3]):
        room = whole.copy()
        result = compiled(room[part])
        expected = whole.copy()
        expected[part] *= 2
        np.testing.assert_array_equal(room, expected)
        np.testing.assert_array_equal(result.numpy(), expected[part])


def test_values_that_are_still_read_are_read_first():
    """Each result needs both arguments as they were; a result that is another argument's old value stays what it was."""
    swap = fg.compile(lambda a, b: (b * 1.0, a + b, a.sum(), (a * b)[::-1]), donate_argnums=(0, 1))
    a, b = numbers(50, 7), numbers(50, 7) * 3
    got = swap(fg.tensor(a), fg.tensor(b))
    for one, expected in zip(got, (b, a + b, a.sum(), (a * b)[::-1]), strict=True):
        np.testing.assert_allclose(one.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_what_returns_an_argument_itself_takes_nothing():
    compiled = fg.compile(lambda a, b: (a, b + 1, b + 2), donate_argnums=0)
    a, b = fg.tensor(numbers(4)), fg.tensor(numbers(4))
    same, first, _ = compiled(a, b)
    np.testing.assert_array_equal(same.numpy(), numbers(4))
    np.testing.assert_array_equal(first.numpy(), numbers(4) + 1)
    np.testing.assert_array_equal(b.numpy(), numbers(4))


def test_nothing_fits():
    compiled = fg.compile(lambda a: a.sum(0), donate_argnums=0)
    a = fg.tensor(numbers(4, 2))
    np.testing.assert_allclose(compiled(a).numpy(), numbers(4, 2).sum(0), rtol=1e-6)
    np.testing.assert_array_equal(a.numpy(), numbers(4, 2))


def test_one_array_twice_is_refused():
    compiled = fg.compile(lambda a, b: a * 2 + b, donate_argnums=0)
    compiled(numbers(6), numbers(6))
    for a, b in ((x := numbers(6), x), ((y := numbers(8))[:6], y[2:])):
        before = a.copy()
        with pytest.raises(UnsupportedError, match="shares memory"):
            compiled(a, b)
        np.testing.assert_array_equal(a, before)


def test_memory_that_cannot_be_written():
    compiled = fg.compile(lambda a: a * 2, donate_argnums=0)
    a = numbers(6)
    a.flags.writeable = False
    with pytest.raises(UnsupportedError, match="read-only"):
        compiled(a)


def test_a_parameter_is_not_given_away():
    layer = nn.Linear(3, 2)
    compiled = fg.compile(lambda w: w.detach() * 2, donate_argnums=0)
    before = layer.weight.detach().numpy().copy()
    np.testing.assert_allclose(compiled(layer.weight).numpy(), before * 2)  # takes nothing: a gradient may be asked for
    layer.weight.requires_grad = False
    with pytest.raises(UnsupportedError, match="its module goes on using it"):
        compiled(layer.weight)
    np.testing.assert_array_equal(layer.weight.numpy(), before)
    assert isinstance(layer.weight, nn.Parameter)


def test_a_call_that_fails_changes_nothing():
    compiled = fg.compile(lambda a, y: a - F.cross_entropy(a, y), donate_argnums=0)
    a = fg.tensor(numbers(6, 3))
    with pytest.raises(IndexRangeError, match="label 3"):
        compiled(a, np.array([0, 1, 2, 3, 0, 1]))
    np.testing.assert_array_equal(a.numpy(), numbers(6, 3))
    compiled(a, np.arange(6) % 3)


def test_changing_batches():
    compiled = fg.compile(lambda w, x: w + x.T @ x, donate_argnums=0)
    w, expected = fg.tensor(numbers(4, 4)), numbers(4, 4)
    for n in [9, 7, 3, 9]:
        w = compiled(w, numbers(n, 4))
        expected = expected + numbers(n, 4).T @ numbers(n, 4)
    np.testing.assert_allclose(w.numpy(), expected, rtol=1e-4)


def test_inside_of_another_compiled_function_nothing_is_given_away():
    inner = fg.compile(lambda a: a * 2, donate_argnums=0)
    outer = fg.compile(lambda a: inner(a) + a)
    a = fg.tensor(numbers(5))
    np.testing.assert_allclose(outer(a).numpy(), numbers(5) * 3, rtol=1e-6)
    np.testing.assert_array_equal(a.numpy(), numbers(5))


def test_wrong_options():
    for wrong in (-1, "0", 1.0, (0, "b"), True):
        with pytest.raises(OptionError, match="donate_argnums"):
            fg.compile(lambda a: a, donate_argnums=wrong)
    with pytest.raises(OptionError, match="backend='cuda'"):
        fg.compile(lambda a: a, donate_argnums=0, backend="cuda")
    with pytest.raises(OptionError, match="the call has 1 positional"):
        fg.compile(lambda a: a * 2, donate_argnums=1)(numbers(3))
