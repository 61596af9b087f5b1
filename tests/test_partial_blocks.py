"""One program for many numbers of images: blocks of images of which the last is partly filled, against a program of each size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from benchmarks.models import MODELS, make_step
from fusegraph import nn
from fusegraph.codegen.cpu.partial_blocks import PartialBlocks, partly_filled
from fusegraph.runtime.sized import SizedStep

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def _no_disk_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEGRAPH_CACHE_SIZE_MB", "0")


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = fg.get_num_threads()
    yield fg.set_num_threads
    fg.set_num_threads(before)


def numbers(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(dtype)


def is_sized(compiled: Any) -> bool:
    """Whether the last call ran a program for many sizes."""
    return isinstance(compiled._last.artifact.executable, SizedStep)


def blocks(compiled: Any) -> PartialBlocks | None:
    """How images lie in memory in the program of the last call."""
    return partly_filled(compiled._last.artifact.fused[0], 256)


class Strided(nn.Module):
    """Convolutions without pooling, read by weight gradients right away; a batch norm, a branch, a mean over pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.conv3 = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.out = nn.Linear(16, 10)

    def forward(self, x: fg.Tensor) -> fg.Tensor:
        x = self.norm(self.conv1(x)).relu()
        x = self.conv2(x).relu()
        return self.out((self.conv3(x) + x).tanh().mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {name: MODELS[name].network for name in ("lenet", "minitorch", "kim")}
NETWORKS["strided"] = Strided


def gradients_of(name: str) -> tuple[Callable[..., Any], nn.Module]:
    """Loss, result, and the gradients of all parameters, as a function of a batch."""
    fg.manual_seed(1)
    model = NETWORKS[name]()
    if name != "strided":
        model.eval()  # no dropout
    parameters = list(model.parameters())

    def function(*arrays: Any) -> Any:
        result = model(*map(fg.as_tensor, arrays[:-1]))
        loss = F.cross_entropy(result, arrays[-1])
        return (loss, result, *fg.autograd.grad(loss, parameters))

    return function, model


@pytest.mark.parametrize("name", NETWORKS)
def test_losses_results_and_gradients(name: str, threads: Callable[[int], None]):
    make = MODELS[name if name in MODELS else "lenet"].inputs
    function, _ = gradients_of(name)
    compiled, alone = fg.compile(function), fg.compile(function, dynamic=False)
    sizes = [35, 33, 5]
    for n in sizes:
        batch = make(n, np.random.default_rng(n))
        expected = [value.detach().numpy() for value in alone(*batch)]
        runs = []
        for count in (1, 3, 8) if n in (33, 5) else (2,):
            threads(count)
            runs.append([value.detach().numpy() for value in compiled(*batch)])
            assert is_sized(compiled) == (n != sizes[0]), compiled.reasons
        for got, other in zip(runs[0], expected, strict=True):
            assert got.shape == other.shape
            np.testing.assert_allclose(got, other, rtol=2e-4, atol=2e-5 * max(1e-2, float(np.abs(other).max())))
        for run in runs[1:]:
            for got, other in zip(run, runs[0], strict=True):
                np.testing.assert_array_equal(got, other)
    assert blocks(compiled) is not None


@pytest.mark.parametrize("name", ["minitorch", "kim"])
def test_training_with_dropout_draws_the_same_numbers(name: str):
    losses = []
    for dynamic in (None, False):
        training = make_step(name, optimizer="adam")
        step = fg.compile(training.step, dynamic=dynamic)
        batches = [MODELS[name].inputs(n, np.random.default_rng(n)) for n in (20, 17, 8, 1, 20, 3)]
        losses.append([float(step(*batch).numpy()) for batch in batches])
        losses[-1] += [float(np.abs(p._value).sum()) for p in training.model.parameters()]
    np.testing.assert_allclose(*losses, rtol=2e-5)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "images in and out": lambda x, w: F.conv2d(x, w, padding=1).relu(),
    "sums over images": lambda x, w: (lambda y: (y.sum(0), y.exp().mean((0, 2, 3)), y.amax(0), y.amin((0, 2, 3))))(
        F.max_pool2d(F.conv2d(x, w), 2)
    ),
    "products over images": lambda x, w: (lambda y: y.T @ y)(F.conv2d(x, w).relu().flatten(1)),
    "an argument beside": lambda x, w: F.conv2d(x, w) / F.conv2d(x * x + 1e-3, w.abs()).sum((2, 3), keepdim=True).log(),
    "two results": lambda x, w: (F.conv2d(x, w, stride=2, padding=1), F.conv2d(x, w).sum((1, 2, 3)) * 2),
}


@pytest.mark.parametrize(("most", "dtype"), [(40, np.float32), (8, np.float32), (21, np.float64)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_images(name: str, most: int, dtype: Any):
    function = FUNCTIONS[name]
    compiled = fg.compile(function)
    w = numbers(6, 2, 3, 3, dtype=dtype)
    for n in [most, most - 1, 1, most // 2 + 1, 2, most]:
        x = numbers(n, 2, 9, 8, dtype=dtype)
        got, expected = compiled(x, w), function(fg.as_tensor(x), fg.as_tensor(w))
        pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
        for mine, other in pairs:
            assert mine.shape == other.shape
            scale = float(np.abs(other.numpy()).max())
            np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=1e-4, atol=1e-5 * scale)
    assert blocks(compiled) is not None or name == "images in and out"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_what_lies_behind_the_last_image_is_neither_read_nor_written(value: float):
    def function(x: Any, w: Any) -> Any:
        images = F.max_pool2d(F.conv2d(x, w).relu(), 2)
        return images * 2, images.flatten(1).T @ images.flatten(1), 1 / images.sum((0, 2, 3))

    compiled = fg.compile(function)
    w = numbers(5, 2, 3, 3)
    for n in [24, 17, 3, 15]:
        room = np.full((n + 24, 2, 8, 8), value, np.float32)
        room[:n] = numbers(n, 2, 8, 8)
        results = compiled(room[:n], w)
        for got, other in zip(results, function(fg.as_tensor(room[:n].copy()), fg.as_tensor(w)), strict=True):
            np.testing.assert_allclose(got.numpy(), other.numpy(), rtol=1e-4, atol=1e-4)
        assert (room[n:] == value).all() or np.isnan(room[n:]).all()
    assert is_sized(compiled) and blocks(compiled) is not None


def test_an_infinity_in_one_image_stays_there():
    """Images past the last one hold zeros, and 0 * inf would be NaN: nothing of them is added."""

    def function(x: Any, w: Any) -> Any:
        return F.conv2d(F.softmax(x, 1), w).relu().sum((0, 2, 3)), F.conv2d(1 / x, w).amax((1, 2, 3))

    compiled = fg.compile(function)
    w = np.abs(numbers(5, 2, 3, 3))
    for n in [20, 19, 6]:
        x = np.abs(numbers(n, 2, 8, 8)) + 0.1
        x[n // 2, 0, 3, 3] = 0
        for got, other in zip(compiled(x, w), function(fg.as_tensor(x), fg.as_tensor(w)), strict=True):
            np.testing.assert_allclose(got.numpy(), other.numpy(), rtol=1e-4, atol=1e-4)
            assert not np.isnan(got.numpy()).any()


def test_a_full_last_block_uses_the_arrays_of_the_caller():
    compiled = fg.compile(lambda x, w: F.max_pool2d(F.conv2d(x, w).relu(), 2))
    w = numbers(6, 2, 3, 3)
    compiled(numbers(48, 2, 8, 8), w), compiled(numbers(47, 2, 8, 8), w)
    found = blocks(compiled)
    assert found is not None and found.size == 16 and len(found.stand_ins) == 2
    assert "n/16<=3" in str(compiled._last.artifact.in_memory())
