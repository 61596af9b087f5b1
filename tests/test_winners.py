"""Gradients of convolutions below max-pooling, which run over the winners of the windows alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"padding": 2},
    "windows of 3 x 3, strided": {"image": 17, "kernel": (3, 3), "channels": 48, "pool": 3, "stride": 2, "padding": 1},
    "dilated": {"image": 16, "kernel": (3, 3), "channels": 64, "dilation": 2, "padding": 2},
    "channels that fill no vector": {"images": 3, "channels": 33, "image": 14},
    "one row of taps": {"kernel": (1, 7), "channels": 64, "image": 16, "padding": (0, 3)},
    "windows of 2 x 3": {"image": 16, "pool": (2, 3), "kernel": (5, 5)},
    "two images": {"images": 2},
    "many maps": {"maps": 40, "padding": 1},
    "many maps, rows that fill no vector": {"maps": 60, "channels": 21, "kernel": (4, 2), "pool": (2, 4), "image": 13},
}


def _arrays(
    dtype: str, images: int = 9, channels: int = 32, image: int = 12, kernel: tuple[int, int] = (5, 5), maps: int = 6
) -> list[Any]:
    rng = np.random.default_rng(0)
    shapes = [(images, 3, image, image), (channels, 3, 3, 3), (maps, channels, *kernel), (maps,)]
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def _network(pool: Any = 2, **conv: Any) -> Any:
    def value(x: Any, w1: Any, w2: Any, b: Any) -> Any:
        hidden = F.relu(F.conv2d(x, w1, padding=1))
        pooled = F.max_pool2d(F.relu(F.conv2d(hidden, w2, b, **conv)), pool)
        return (pooled * pooled).sum()

    return value


def _gradients(value: Any, arrays: list[Any], **options: Any) -> tuple[list[np.ndarray], list[str]]:
    @fg.compile(**options)
    def step(*given: Any) -> Any:
        learned = [part.detach().requires_grad_() for part in given]
        return fg.autograd.grad(value(*learned), learned)

    made = [np.asarray(part.detach()) for part in step(*map(fg.tensor, arrays))]
    assert step._last is not None
    return made, [loop.name for loop in step._last.artifact.fused[0].loops]


def _split(case: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    shapes = {key: case[key] for key in ("images", "channels", "image", "kernel", "maps") if key in case}
    return shapes, {key: value for key, value in case.items() if key not in shapes}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_all_products(name: str, dtype: str) -> None:
    shapes, options = _split(CASES[name])
    arrays, value = _arrays(dtype, **shapes), _network(**options)
    made, loops = _gradients(value, arrays)
    assert any("weight_grad" in loop and loop.endswith("_winners") for loop in loops)
    exact, all_products = _gradients(value, [array.astype("float64") for array in arrays], backend="reference")
    assert not any(loop.endswith("_winners") for loop in all_products)
    for mine, right in zip(made, exact, strict=True):
        limit = (1e-13 if dtype == "float64" else 3e-6) * np.abs(right).max()
        np.testing.assert_allclose(mine, right, rtol=0, atol=limit)


def test_both_gradients_run_over_winners_where_that_pays() -> None:
    _, loops = _gradients(_network(), _arrays("float32"))
    assert sum(loop.endswith("_winners") for loop in loops) == 3  # their values and places, the weight's, the input's
    _, loops = _gradients(_network(), _arrays("float32", images=2))
    assert not any("input_grad" in loop and loop.endswith("_winners") for loop in loops)  # threads share images
    _, loops = _gradients(_network(), _arrays("float32", channels=4))
    assert not any(loop.endswith("_winners") for loop in loops)  # short rows
    for options in ({"exact": True}, {"fuse": False}):
        _, loops = _gradients(_network(), _arrays("float32"), **options)
        assert not any(loop.endswith("_winners") for loop in loops)


@pytest.mark.parametrize("name", ["plain", "padded", "one row of taps", "many maps"])
def test_results_do_not_depend_on_the_number_of_threads(name: str) -> None:
    shapes, options = _split(CASES[name])
    arrays, before, found = _arrays("float32", **shapes), fg.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            fg.set_num_threads(threads)
            found.append(_gradients(_network(**options), arrays)[0])
    finally:
        fg.set_num_threads(before)
    for other in found[1:]:
        for mine, one in zip(other, found[0], strict=True):
            assert mine.tobytes() == one.tobytes()


def test_a_cotangent_that_is_not_finite_reaches_the_same_gradients() -> None:
    arrays = [*_arrays("float32"), np.ones((9, 6, 4, 4), np.float32)]
    arrays[4][4, 2, 1, 3], arrays[4][6, 1, 0, 0] = np.nan, np.inf

    def value(x: Any, w1: Any, w2: Any, b: Any, factors: Any) -> Any:
        hidden = F.relu(F.conv2d(x, w1, padding=1))
        return (F.max_pool2d(F.conv2d(hidden, w2, b), 2) * factors).sum()

    made, loops = _gradients(value, arrays)
    right, _ = _gradients(value, arrays, backend="reference")
    assert sum(loop.endswith("_winners") for loop in loops) == 3
    for mine, other in zip(made, right, strict=True):
        assert np.array_equal(np.isfinite(mine), np.isfinite(other)) and not np.isfinite(made[2]).all()


def test_a_nan_in_the_image_spoils_no_other_image() -> None:
    """Relu's gradient is zero at a NaN; what a zero multiplies is left out."""
    arrays = _arrays("float32")
    arrays[0][4, 0, 5, 5] = np.nan
    made, _ = _gradients(_network(), arrays)
    others = [n for n in range(9) if n != 4]
    assert np.isfinite(made[0][others]).all() and np.abs(made[0][others]).max() > 0


def test_windows_without_a_positive_value_give_nothing() -> None:
    arrays = _arrays("float32")
    arrays[3][:] = -1e4
    for gradient in _gradients(_network(), arrays)[0]:
        assert not gradient.any()


def test_weights_that_are_updated_in_place_were_read_before() -> None:
    """The input's gradient reads a copy of the weights; the update must not come first."""
    arrays = _arrays("float32")
    results = []
    for backend in ("cpu", "reference"):
        weights = [fg.tensor(array.copy(), requires_grad=True) for array in arrays[1:]]
        optimizer = fg.optim.SGD(weights, lr=1e-4, momentum=0.9)

        @fg.compile(backend=backend)
        def step(x: Any, weights: Any = weights, optimizer: Any = optimizer) -> Any:
            optimizer.zero_grad()
            loss = _network()(x, *weights) / 1e3
            loss.backward()
            optimizer.step()
            return loss

        for _ in range(3):
            step(fg.tensor(arrays[0]))
        results.append([np.asarray(weight.detach()) for weight in weights])
    for mine, right in zip(*results, strict=True):
        np.testing.assert_allclose(mine, right, rtol=0, atol=1e-5 * np.abs(right).max())
