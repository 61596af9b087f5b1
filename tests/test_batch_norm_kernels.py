"""Batch norm's statistics read a large input once, and its gradient walks through memory in order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F

SHAPE = (64, 8, 32, 36)  # large enough for sums in two steps


def _block(x: Any, weight: Any, bias: Any) -> Any:
    return F.relu(F.batch_norm(x, None, None, weight, bias, training=True))


def _gradients(x: Any, weight: Any, bias: Any, cotangent: Any) -> Any:
    learned = [part.detach().requires_grad_() for part in (x, weight, bias)]
    value = _block(*learned)
    return value, *fg.autograd.grad(value, learned, cotangent)


def _inputs(offset: float = 0.0) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(SHAPE) + offset
    return [x, rng.uniform(0.5, 2, 8), rng.standard_normal(8), rng.standard_normal(SHAPE)]


def _loops(step: Any) -> Any:
    return step._last.artifact.fused[0].loops


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_variance_of_parts_is_as_accurate_as_in_two_passes(offset: float) -> None:
    arrays = [array.astype("float32") for array in _inputs(offset)]
    step = fg.compile(lambda x: x.var((0, 2, 3), correction=0))
    mine = np.asarray(step(fg.tensor(arrays[0])).detach())
    right = arrays[0].astype("float64").var((0, 2, 3))
    np.testing.assert_allclose(mine, right, rtol=2e-5 if offset else 1e-6)
    assert sum("arrays" in loop.reads() or "x" in loop.reads() for loop in _loops(step)) == 1


def test_variance_of_columns() -> None:
    x = np.random.default_rng(1).standard_normal((1 << 16, 5)).astype("float32") + 3
    step = fg.compile(lambda x: x.var(0, correction=0))
    mine = np.asarray(step(fg.tensor(x)).detach())
    np.testing.assert_allclose(mine, x.astype("float64").var(0), rtol=2e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_spoils_its_own_channel(value: float) -> None:
    x = _inputs()[0].astype("float32")
    x[3, 2, 1, 4] = value
    step = fg.compile(lambda x: x.var((0, 2, 3), correction=0))
    assert np.array_equal(np.isnan(np.asarray(step(fg.tensor(x)).detach())), np.arange(8) == 2)


@pytest.mark.parametrize("threads", [1, 3])
def test_gradients_of_a_block(threads: int) -> None:
    arrays, before = _inputs(), fg.get_num_threads()
    step = fg.compile(_gradients)
    try:
        fg.set_num_threads(threads)
        made = step(*(fg.tensor(array.astype("float32")) for array in arrays))
    finally:
        fg.set_num_threads(before)
    right = _gradients(*map(fg.tensor, arrays))
    for mine, other in zip(made, right, strict=True):
        exact = np.asarray(other.detach())
        np.testing.assert_allclose(np.asarray(mine.detach()), exact, rtol=0, atol=4e-6 * np.abs(exact).max())


def test_the_gradient_of_the_input_walks_in_order_and_the_input_is_read_three_times() -> None:
    step = fg.compile(_gradients)
    step(*(fg.tensor(array.astype("float32")) for array in _inputs()))
    reading = [loop for loop in _loops(step) if any(name in loop.reads() for name in ("x", "arrays"))]
    assert len(reading) == 3
    last = reading[-1]
    assert [axis.extent for axis in last.space] == list(SHAPE)
