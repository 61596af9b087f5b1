"""One program for many sizes of a leading axis: against the program of each size alone, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from benchmarks.models import MODELS, make_step
from fusegraph import nn
from fusegraph.errors import CompilerError, IndexRangeError, OptionError
from fusegraph.runtime.executable import NativeStep
from fusegraph.runtime.sized import SizedStep

Array = np.ndarray[Any, Any]
SIZES = [33, 17, 1, 2, 33, 7, 16, 3, 32, 17, 33]


@pytest.fixture(autouse=True)
def _no_disk_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEGRAPH_CACHE_SIZE_MB", "0")


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with every native compilation."""
    made: list[str] = []
    first = NativeStep.__init__

    def init(self: NativeStep, code: Any, layout: Any, shapes: Any = None) -> None:
        made.append(layout.kernels[0] if layout.kernels else "")
        first(self, code, layout, shapes)

    monkeypatch.setattr(NativeStep, "__init__", init)
    return made


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = fg.get_num_threads()
    yield fg.set_num_threads
    fg.set_num_threads(before)


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape, np.float32)


def is_sized(compiled: Any) -> bool:
    """Whether the last call ran a program for many sizes."""
    return isinstance(compiled._last.artifact.executable, SizedStep)


# -- training -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "optimizer"), [("mlp", "sgd"), ("bag", "adam"), ("transformer", "sgd")])
def test_training_with_changing_batches(name: str, optimizer: str, compilations: list[str]):
    batches = [MODELS[name].inputs(n, np.random.default_rng(n)) for n in SIZES]
    sized = make_step(name, optimizer=optimizer)
    step = fg.compile(sized.step)
    losses = []
    for number, batch in enumerate(batches):
        losses.append(float(step(*batch).numpy()))
        assert len(compilations) == min(number + 1, 2), (number, step.reasons)
        assert is_sized(step) == (batch[0].shape[0] != SIZES[0])
    plain = make_step(name, optimizer=optimizer)
    one_each = fg.compile(plain.step, dynamic=False)
    expected = [float(one_each(*batch).numpy()) for batch in batches]
    np.testing.assert_allclose(losses, expected, rtol=2e-5, atol=1e-6)
    for mine, other in zip(sized.model.parameters(), plain.model.parameters(), strict=True):
        scale = max(float(np.abs(other._value).max()), 1e-6)
        assert np.abs(mine._value - other._value).max() <= 2e-5 * scale
    assert "axis 0 at run time, up to 33" in step.reasons[1]
    assert step.reasons[2].endswith("axis 0 at run time, up to 33, without compilation")


@pytest.mark.parametrize("name", ["mlp", "bag"])
def test_the_same_bits_for_the_same_size_and_threads(name: str, threads: Callable[[int], None]):
    found: dict[int, list[list[Any]]] = {1: [], 3: [], 8: []}  # by the number of threads
    for order in ([20, 9, 13], [20, 13, 9, 13]):
        fg.manual_seed(1)
        model = MODELS[name].network()

        @fg.compile
        def gradients(*arrays: Any, model: Any = model) -> Any:
            loss = F.cross_entropy(model(*map(fg.as_tensor, arrays[:-1])), arrays[-1])
            return loss, fg.autograd.grad(loss, list(model.parameters()))

        for count, results in found.items():
            threads(count)
            for n in order:
                result = leaves(gradients(*MODELS[name].inputs(n, np.random.default_rng(n))))
                if n == 13:
                    results.append(result)
    for first, *others in found.values():
        assert len(others) == 2
        for other in others:
            for mine, its in zip(first, other, strict=True):
                np.testing.assert_array_equal(mine, its)


def test_a_compiled_model_with_gradients_outside(compilations: list[str]):
    fg.manual_seed(3)
    model = nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 5))
    fast = fg.compile(model)
    for number, n in enumerate([24, 11, 2, 5, 24, 23, 1]):
        x, y = numbers(n, 12), np.arange(n) % 5
        grads = []
        for run in (fast, model):
            for p in model.parameters():
                p.grad = None
            given = fg.tensor(x, requires_grad=True)
            F.cross_entropy(run(given), y).backward()
            grads.append([given.grad.numpy(), *(p.grad.numpy() for p in model.parameters())])
        for mine, other in zip(*grads, strict=True):
            assert mine.shape == other.shape
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)
        assert len(compilations) <= (2 if number == 0 else 4) or n == 1  # rewrites leave out sums over one row


# -- functions ----------------------------------------------------------------------------------------------------------------

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "elementwise": lambda x: (x * 2 + 1).tanh(),
    "softmax": lambda x: F.softmax(x, 1),
    "layer norm": lambda x: F.layer_norm(x, (x.shape[1],)),
    "sums": lambda x: (x.sum(1), x.sum(0), x.sum(), x.mean(), x.amax(0), x.amax(1), x.var(0)),
    "positions in a row": lambda x: (x.argmax(1), x.amin(1)),
    "batch norm": lambda x: (x - x.mean(0)) / (x.var(0) + 1e-5).sqrt(),
    "products": lambda x: (x @ x.T @ x, x.T @ x),
    "views": lambda x: (x.reshape(-1), x.reshape(x.shape[0], -1, 1).transpose(1, 2), fg.cat([x, x * 2], 1)),
    "one row beside": lambda x: x + x.sum(0, keepdim=True),
    "cumulative": lambda x: x.cumsum(1),
    "by size": lambda x: x / x.shape[0] + float(x.shape[0]),
    "several results": lambda x: {"a": x * 3, "n": x.shape[0], "b": [x[:, 0], x.sum()]},
}


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for key in value for leaf in leaves(value[key])]
    if isinstance(value, (list, tuple)):
        return [leaf for part in value for leaf in leaves(part)]
    return [value.detach().numpy() if isinstance(value, fg.Tensor) else value]


@pytest.mark.parametrize(("columns", "count"), [(1, 1), (50, 3), (200, 2)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_rows(name: str, columns: int, count: int, threads: Callable[[int], None]):
    threads(count)
    function = FUNCTIONS[name]
    compiled = fg.compile(function)
    for n in [64, 17, 1, 2, 33, 16, 7, 64, 63]:
        x = numbers(n, columns)
        for got, expected in zip(leaves(compiled(x)), leaves(function(fg.as_tensor(x))), strict=True):
            if not isinstance(got, np.ndarray):
                assert got == expected
                continue
            assert got.shape == expected.shape and got.dtype == expected.dtype
            np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", ["elementwise", "softmax", "sums", "layer norm", "batch norm", "by size"])
def test_rows_are_served_by_one_program(name: str, compilations: list[str]):
    compiled = fg.compile(FUNCTIONS[name])
    for n in [64, 17, 2, 33, 16, 7, 64, 63]:
        compiled(numbers(n, 24))
    assert len(compilations) == 2, compiled.reasons


@pytest.mark.parametrize("size", [1000, 4096, 70_000])
def test_one_long_axis(size: int, compilations: list[str]):
    compiled = fg.compile(lambda x: ((x * x).sum(), x.exp(), x.amax()))
    for n in [size, size - 1, 5, 8, size - 100, 333]:
        x = numbers(n)
        total, powers, most = compiled(x)
        np.testing.assert_allclose(total.numpy(), np.sum(x.astype(np.float64) ** 2), rtol=1e-5)
        np.testing.assert_allclose(powers.numpy(), np.exp(x), rtol=1e-6)
        assert most.numpy() == x.max()
    assert len(compilations) == 2, compiled.reasons


def test_what_lies_behind_the_last_row_is_not_touched():
    compiled = fg.compile(lambda x, w: (x @ w).relu().sum(0))
    w = numbers(30, 20)
    for n in [40, 21, 6, 39]:
        room = np.full((n + 40, 30), np.nan, np.float32)
        room[:n] = numbers(n, 30)
        got = compiled(room[:n], w).numpy()
        np.testing.assert_allclose(got, np.maximum(room[:n] @ w, 0).sum(0), rtol=1e-4, atol=1e-3)
        assert np.isnan(room[n:]).all()


def test_exact_and_verified():
    for options in ({"exact": True}, {"verify": True}, {"fuse": False}):
        compiled = fg.compile(lambda x: F.softmax(x, 1).mean(0), **options)
        for n in [20, 9, 20, 13]:
            x = numbers(n, 11)
            np.testing.assert_allclose(compiled(x).numpy(), F.softmax(fg.as_tensor(x), 1).mean(0).numpy(), rtol=1e-5)
        assert is_sized(compiled)


# -- labels and other index arguments -----------------------------------------------------------------------------------------


def test_labels_are_checked_as_far_as_the_rows_of_a_call():
    compiled = fg.compile(lambda x, y: F.cross_entropy(x, y))
    for n in [40, 19, 5, 12]:
        x, y = numbers(n, 7), np.arange(n) % 7
        np.testing.assert_allclose(
            compiled(x, y).numpy(), F.cross_entropy(fg.as_tensor(x), fg.as_tensor(y)).numpy(), rtol=1e-5
        )
        room = np.full(n + 60, 99)
        room[:n] = y
        compiled(x, room[:n])
        bad = y.copy()
        bad[-1] = 7
        with pytest.raises(IndexRangeError, match=rf"label 7 at \[{n - 1}\]"):
            compiled(x, bad)


# -- what is not served -------------------------------------------------------------------------------------------------------


def test_control_flow_that_depends_on_the_size(compilations: list[str]):
    @fg.compile
    def function(x: fg.Tensor) -> fg.Tensor:
        return x.sum(1) if x.shape[0] > 10 else x.amax(1)

    for n in [16, 12, 8, 14, 6, 16]:
        x = numbers(n, 9)
        expected = x.sum(1) if n > 10 else x.max(1)
        np.testing.assert_allclose(function(x).numpy(), expected, rtol=1e-5, atol=1e-5)
    assert len(compilations) == 4  # 16, up to 16, 8, up to 8
    assert "a program of its own, because operation" in function.reasons[2], function.reasons


def test_a_constant_that_does_not_follow_the_size():
    @fg.compile
    def function(x: fg.Tensor) -> fg.Tensor:
        return x * min(x.shape[0], 10) + (3.0 if x.shape[0] == 5 else 2.0)

    for n in [16, 12, 8, 5, 14, 5]:
        x = numbers(n, 4)
        np.testing.assert_allclose(function(x).numpy(), x * min(n, 10) + (3 if n == 5 else 2), rtol=1e-6, atol=1e-6)


def test_rows_that_are_taken_apart_get_a_program_each():
    compiled = fg.compile(lambda x: (x[: x.shape[0] // 2], x.flip(0), x[-1]))
    for n in [16, 12, 8, 16, 9]:
        x = numbers(n, 4)
        half, turned, last = compiled(x)
        np.testing.assert_array_equal(half.numpy(), x[: n // 2])
        np.testing.assert_array_equal(turned.numpy(), x[::-1])
        np.testing.assert_array_equal(last.numpy(), x[-1])


def test_more_rows_than_there_is_memory_for(compilations: list[str]):
    compiled = fg.compile(lambda x: x.sum(0))
    for n in [10, 7, 9, 11, 15, 16, 17, 32, 3]:
        x = numbers(n, 6)
        np.testing.assert_allclose(compiled(x).numpy(), x.sum(0), rtol=1e-5, atol=1e-5)
    assert len(compilations) == 4  # 10, up to 10, up to 16, up to 32
    assert compiled.reasons[-2].endswith("axis 0 at run time, up to 32, without compilation")


def test_another_axis_changes():
    compiled = fg.compile(lambda x: x.sum(0))
    for shape in [(10, 6), (10, 7), (8, 7), (6, 7), (6, 9)]:
        x = numbers(*shape)
        np.testing.assert_allclose(compiled(x).numpy(), x.sum(0), rtol=1e-5, atol=1e-5)
    assert "other axes than the first" in compiled.reasons[-1]


def test_empty_batches():
    compiled = fg.compile(lambda x: (x * 2, x.sum()))
    for n in [8, 0, 5, 0, 3]:
        doubled, total = compiled(numbers(n, 4))
        assert doubled.shape == (n, 4)
        np.testing.assert_allclose(total.numpy(), numbers(n, 4).sum(), rtol=1e-5, atol=1e-5)


# -- the option ---------------------------------------------------------------------------------------------------------------


def test_from_the_first_call_on(compilations: list[str]):
    training = make_step("mlp", optimizer="sgd")
    step = fg.compile(training.step, dynamic=True)
    for n in [20, 32, 5, 1]:
        step(*MODELS["mlp"].inputs(n, np.random.default_rng(n)))
    assert len(compilations) == 1
    assert step.reasons[0] == "first call; axis 0 at run time, up to 32"
    other = make_step("mlp", optimizer="sgd")
    plain = fg.compile(other.step, dynamic=False)
    for n in [20, 32, 5, 1]:
        plain(*MODELS["mlp"].inputs(n, np.random.default_rng(n)))
    for mine, expected in zip(training.model.parameters(), other.model.parameters(), strict=True):
        np.testing.assert_allclose(mine._value, expected._value, rtol=1e-4, atol=1e-6)


def test_never(compilations: list[str]):
    compiled = fg.compile(lambda x: x * 2, dynamic=False)
    for n in [4, 5, 6]:
        compiled(numbers(n, 2))
    assert len(compilations) == 3 and not is_sized(compiled)


def test_wrong_options():
    with pytest.raises(OptionError, match="dynamic is None, True or False"):
        fg.compile(lambda x: x, dynamic="yes")
    with pytest.raises(OptionError, match="of backend='cpu'"):
        fg.compile(lambda x: x, dynamic=True, backend="reference")


def test_dropout_draws_what_the_program_of_the_size_alone_draws():
    results = []
    for dynamic in (None, False):
        fg.manual_seed(5)
        compiled = fg.compile(lambda x: F.dropout(x, 0.5, True), dynamic=dynamic)
        results.append([compiled(np.ones((n, 30), np.float32)).numpy() for n in [12, 7, 1, 9, 12, 7]])
    for mine, other in zip(*results, strict=True):
        np.testing.assert_array_equal(mine, other)


# -- looking inside -----------------------------------------------------------------------------------------------------------


def test_reports_say_that_the_axis_is_known_at_run_time(tmp_path: Any):
    compiled = fg.compile(lambda x: F.softmax(x, 1).sum(0))
    for n in [20, 9, 13]:
        compiled(numbers(n, 8))
    text = str(compiled.explain(numbers(13, 8)))
    assert "up to 20" in text
    compiled.dump(tmp_path, numbers(13, 8))
    assert any("n<=20" in path.read_text() for path in tmp_path.rglob("*.txt"))


def test_profile_of_a_program_for_many_sizes():
    compiled = fg.compile(lambda x, w: (x @ w).relu() / x.shape[0])
    for n in [40, 20]:
        compiled(numbers(n, 30), numbers(30, 16))
    made = compiled.profile(numbers(20, 30), numbers(30, 16), steps=3, warm_up=1)
    assert "relu" in str(made)


def test_the_disk_cache_serves_another_process_start(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FUSEGRAPH_CACHE_SIZE_MB", "64")
    monkeypatch.setenv("FUSEGRAPH_CACHE_DIR", str(tmp_path))
    for number in range(2):
        compiled = fg.compile(lambda x: (x * 2).sum(0) / x.shape[0])
        for n in [20, 9, 13]:
            x = numbers(n, 8)
            np.testing.assert_allclose(compiled(x).numpy(), x.sum(0) * 2 / n, rtol=1e-5, atol=1e-6)
        assert compiled._last.artifact.from_cache == bool(number)
    assert isinstance(compiled._last.artifact.executable, SizedStep)


def test_a_wrong_kernel_is_found_by_verification(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fusegraph.runtime.sized.TABLE_SIZE", 2 + 1)
    compiled = fg.compile(lambda x: x.sum(0), verify=True)
    compiled(numbers(20, 8)), compiled(numbers(9, 8))
    compiled._last.artifact.executable.table[3] = 8
    with pytest.raises(CompilerError, match="sum"):
        compiled(numbers(9, 8))
