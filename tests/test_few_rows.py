"""Products of few rows in a program for many sizes: a kernel of their own, with vectors along the rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from benchmarks.models import MODELS, make_step
from fusegraph import nn
from fusegraph.codegen.cpu.few_rows import FewRows
from fusegraph.codegen.cpu.step import in_memory

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def _no_disk_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEGRAPH_CACHE_SIZE_MB", "0")


@pytest.fixture
def _threads_as_before() -> Iterator[None]:
    before = fg.get_num_threads()
    yield
    fg.set_num_threads(before)


def numbers(*shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def few_of(compiled: Any) -> list[FewRows]:
    """The products with a kernel for few rows in the program of the last call."""
    return list(in_memory(compiled._last.artifact.fused[0], 256, exact=False).few.values())


def layers(x: Any, a: Any, b: Any) -> Any:
    hidden = (x @ a.T).relu()
    return hidden, F.softmax(hidden @ b.T, 1), hidden.sum(0)


@pytest.mark.usefixtures("_threads_as_before")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layers_of_few_rows_and_of_many(dtype: Any):
    compiled = fg.compile(layers)
    a, b = numbers(200, 300, dtype=dtype), numbers(150, 200, dtype=dtype)
    for n in [61, 60, 48, 47, 33, 16, 15, 1, 5]:
        x = numbers(n, 300, dtype=dtype)
        hidden = np.maximum(x @ a.T, 0)
        expected = (hidden, F.softmax(fg.as_tensor(hidden @ b.T), 1).numpy(), hidden.sum(0))
        runs = []
        for count in (1, 3, 8):
            fg.set_num_threads(count)
            runs.append([value.numpy() for value in compiled(x, a, b)])
        for got, other in zip(runs[0], expected, strict=True):
            assert got.shape == other.shape
            np.testing.assert_allclose(got, other, rtol=1e-4, atol=1e-4 * float(np.abs(other).max()))
        for run in runs[1:]:
            for got, other in zip(run, runs[0], strict=True):
                np.testing.assert_array_equal(got, other)
    found = few_of(compiled)
    assert found or dtype == np.float64
    assert all(made.limit % made.size == 0 for made in found)


def test_rows_behind_the_last_one_are_neither_read_nor_written():
    compiled = fg.compile(layers)
    a, b = numbers(200, 300), numbers(150, 200)
    for n in [40, 39, 9, 17, 31]:
        room = np.full((n + 64, 300), np.nan, np.float32)
        room[:n] = numbers(n, 300)
        hidden, _, total = (value.numpy() for value in compiled(room[:n], a, b))
        np.testing.assert_allclose(hidden, np.maximum(room[:n] @ a.T, 0), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(total, np.maximum(room[:n] @ a.T, 0).sum(0), rtol=1e-4, atol=1e-2)
        assert np.isnan(room[n:]).all()
    assert few_of(compiled)


def test_training_goes_on_as_in_programs_of_one_size():
    parameters = []
    for dynamic in (None, False):
        training = make_step("mlp", optimizer="adam")
        step = fg.compile(training.step, dynamic=dynamic)
        for n in [40, 39, 16, 7, 33, 1, 40]:
            step(*MODELS["mlp"].inputs(n, np.random.default_rng(n)))
        if dynamic is None:
            assert len(few_of(step)) == 0  # the last call had a program of its own
        parameters.append([p._value for p in training.model.parameters()])
    for mine, other in zip(*parameters, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=2e-5 * float(np.abs(other).max()))


def test_layers_behind_convolutions():
    fg.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 200), nn.Tanh(), nn.Linear(200, 150)
    )
    parameters = list(model.parameters())

    def gradients(x: Any) -> Any:
        result = model(x)
        return (result, *fg.autograd.grad((result * result).mean(), parameters))

    compiled, alone = fg.compile(gradients), fg.compile(gradients, dynamic=False)
    for n in [40, 38, 16, 11]:
        x = numbers(n, 1, 12, 12)
        for got, other in zip(compiled(x), alone(x), strict=True):
            got, other = got.detach().numpy(), other.detach().numpy()
            np.testing.assert_allclose(got, other, rtol=1e-3, atol=2e-5 * float(np.abs(other).max()))
    assert few_of(compiled)


def test_small_products_and_exact_ones_have_one_kernel():
    for function, options in ((lambda x, w: x @ w.T, {}), (layers, {"exact": True})):
        compiled = fg.compile(function, **options)
        weights = [numbers(20, 300)] if not options else [numbers(200, 300), numbers(150, 200)]
        for n in [30, 20]:
            compiled(numbers(n, 300), *weights)
        placed = in_memory(compiled._last.artifact.fused[0], 256, exact=bool(options))
        assert not placed.few
