"""Whole training steps of the model zoo, compiled: beside the eager run, and what they cost."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
from benchmarks.models import MODELS, OPTIMIZERS, Training, make_step
from fusegraph.runtime.threads import ThreadSetting

BATCH, STEPS = 7, 20
NAMES = sorted(MODELS)
# With seed 0 two words of "kim" answer a detector equally to 1e-7 in step 9: rounding decides which of them learns.
SEED = {"kim": 1}

# Kernels and barriers of forward + backward + update of one step. These numbers may only fall.
MOST_KERNELS = {
    "mlp": {"sgd": 13, "adam": 13},
    # below pooling, weights' gradients run over the winners of windows, which are listed first beside a copy of the image:
    # three kernels and two barriers more, a third of the time
    "minitorch": {"sgd": 22, "adam": 22},
    "lenet": {
        "sgd": 28,
        "adam": 28,
    },  # a bias before pooling sums up where the maxima are: one kernel more, a third less read
    "bag": {"sgd": 11, "adam": 11},
    # its convolutions' gradients are scatters with zeroed targets: more kernels, a fifth of the time
    "kim": {"sgd": 36, "adam": 37},
    "transformer": {"sgd": 30, "adam": 30},
}
MOST_BARRIERS = {"mlp": 4, "minitorch": 10, "lenet": 14, "bag": 4, "kim": 25, "transformer": 20}


def train(training: Training, step: Any, steps: int = STEPS) -> list[float]:
    """The losses of the first steps; the rate is halved half-way."""
    losses = []
    for number, arrays in enumerate(training.batches(steps)):
        if number == steps // 2:
            group = training.optimizer.param_groups[0]
            group["lr"] = group["lr"] / 2
        losses.append(float(step(*arrays).item()))
    return losses


def new(name: str, optimizer: str, dtype: str = "float32") -> Training:
    """A small step of the model, with the same parameters each time."""
    return make_step(name, BATCH, optimizer, SEED.get(name, 0), dtype)


@functools.cache
def eager_run(name: str, optimizer: str) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses and final parameters of the uncompiled step."""
    training = new(name, optimizer)
    losses = train(training, training.step)
    return losses, {key: np.array(value.detach()) for key, value in training.model.state_dict().items()}


def largest_difference(losses: list[float], wanted: list[float]) -> float:
    """Relative to each loss."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, wanted, strict=True))


@pytest.fixture
def free_threads() -> Iterator[None]:
    """The thread setting as it was."""
    count = ThreadSetting.count
    yield
    ThreadSetting.count = count
    ThreadSetting.version += 1


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("name", NAMES)
def test_step(name: str, optimizer: str, record_property: Any) -> None:
    """The eager run's losses and parameters, one compilation, one native call a step, no more kernels than before."""
    training = new(name, optimizer)
    step = fg.compile(training.step)
    version = step.compiled_for(*next(training.batches(1)))
    assert version.backward is None, "forward, backward and update are one program"
    native = version.artifact.executable
    calls: list[int] = []
    inner = native.choice._step
    native.choice._step = lambda *args: calls.append(1) or inner(*args)

    losses = train(training, step)
    assert len(calls) == STEPS, "exactly one native call a step"
    assert step.reasons == ["first call"], "a changed rate is no reason to compile again"

    wanted, parameters = eager_run(name, optimizer)
    assert largest_difference(losses, wanted) <= 1e-5
    for key, value in training.model.state_dict().items():
        got, scale = np.asarray(value.detach()), max(1e-3, float(np.abs(parameters[key]).max()))
        if optimizer == "sgd":  # Adam divides what is left of gradients that cancel by its own size
            assert np.abs(got - parameters[key]).max() <= 1e-4 * scale, key
    check_cost(native.layout, name, optimizer, record_property)


def check_cost(layout: Any, name: str, optimizer: str, record_property: Any) -> None:
    """Print and record what a step costs; kernels and barriers may only fall."""
    kernels = len(layout.kernels)
    print(f"{name}, {optimizer}: {kernels} kernels, {layout.barriers} barriers, arena {layout.arena_bytes:,} bytes")
    for key, value in (("kernels", kernels), ("barriers", layout.barriers), ("arena_bytes", layout.arena_bytes)):
        record_property(key, value)
    assert kernels <= MOST_KERNELS[name][optimizer], list(layout.kernels)
    assert layout.barriers <= MOST_BARRIERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_step_in_float64(name: str) -> None:
    """No more than rounding lies between the eager and the compiled step: in float64 they are as good as equal."""
    eager, traced = new(name, "adam", "float64"), new(name, "adam", "float64")
    fg.manual_seed(3)
    wanted = train(eager, eager.step, 6)
    fg.manual_seed(3)
    assert largest_difference(train(traced, fg.compile(traced.step), 6), wanted) <= 1e-12


@pytest.mark.parametrize("name", ["bag", "minitorch"])
def test_step_with_numba(name: str) -> None:
    """The readable source, compiled by numba."""
    training = new(name, "adam")
    losses = train(training, fg.compile(training.step, backend="numba"))
    assert largest_difference(losses, eager_run(name, "adam")[0]) <= 1e-5


@pytest.mark.parametrize("name", ["lenet", "transformer"])
def test_unfused_step(name: str) -> None:
    """Every value that is kept has a kernel of its own: the same losses, with more kernels."""
    training = new(name, "sgd")
    step = fg.compile(training.step, fuse=False)
    assert largest_difference(train(training, step), eager_run(name, "sgd")[0]) <= 1e-5
    assert len(step.compiled_for().artifact.executable.layout.kernels) > MOST_KERNELS[name]["sgd"]


@pytest.mark.parametrize("name", ["minitorch", "transformer"])
def test_any_number_of_threads_gives_the_same_losses(name: str, free_threads: None) -> None:
    """Bit for bit: no sum is ordered by the threads that share it."""
    runs = []
    for count in (1, 2, 3):
        fg.set_num_threads(count)
        training = make_step(name, 16, "sgd")
        runs.append(train(training, fg.compile(training.step), 8))
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("name", ["lenet", "kim"])
def test_compiled_model_under_backward(name: str) -> None:
    """A compiled forward and a compiled backward, with the loss and the update between and after them eager."""
    training = new(name, "sgd")
    model = fg.compile(training.model)

    def step(*arrays: Any) -> fg.Tensor:
        *inputs, target = arrays
        training.optimizer.zero_grad()
        loss = MODELS[name].loss(model(*map(fg.as_tensor, inputs)), target)
        loss.backward()
        training.optimizer.step()
        return loss

    assert largest_difference(train(training, step, STEPS), eager_run(name, "sgd")[0]) <= 1e-5
    assert model.reasons == ["first call"]
    assert model.compiled_for().backward is not None
