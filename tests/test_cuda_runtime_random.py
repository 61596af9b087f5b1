"""Random walks of a training on the GPU and on the CPU side by side: steps, looks, changes, held arrays, reloads, other functions."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from tests.cuda_runtime_tools import Training, agree, batches, emulated, needs_wheels

pytestmark = needs_wheels
Rng = np.random.Generator


class Walk:
    """One side of the walk. Every action takes the same random numbers on both sides, and gives what can be compared."""

    def __init__(self, backend: str) -> None:
        self.training = Training("mlp", backend, "adam")
        self.names = [name for name, _ in self.training.model.named_parameters()]
        self.parameters = dict(self.training.model.named_parameters())
        self.held: list[Any] = []
        self.saved = self.training.state()
        self.host = fg.compile(lambda x: self.training.model(x), backend="cpu")
        self.model = fg.compile(self.training.model, backend=backend)
        self.data = batches("mlp", 4) + batches("mlp", 1, rows=9)

    def chosen(self, rng: Rng) -> Any:
        """One of the parameters."""
        return self.parameters[self.names[int(rng.integers(len(self.names)))]]

    def batch(self, rng: Rng) -> Any:
        """One of the batches, mostly of the usual size."""
        return self.data[int(rng.choice(5, p=[0.24, 0.24, 0.24, 0.24, 0.04]))]

    def step(self, rng: Rng) -> Any:
        return self.training.step(*self.batch(rng)).numpy()

    def look(self, rng: Rng) -> Any:
        return self.chosen(rng).detach().numpy().copy()

    def hold(self, rng: Rng) -> Any:
        self.held.append(self.chosen(rng).detach().numpy())

    def let_go(self, rng: Rng) -> Any:
        self.held.clear()

    def look_at_held(self, rng: Rng) -> Any:
        return self.held[-1].copy() if self.held else None

    def change_held(self, rng: Rng) -> Any:
        scale = 1 + 0.1 * rng.random()
        if self.held:
            self.held[-1] *= np.float32(scale)

    def change(self, rng: Rng) -> Any:
        values = self.chosen(rng).detach().numpy()
        values.flat[int(rng.integers(values.size))] += np.float32(0.01)

    def assign(self, rng: Rng) -> Any:
        parameter = self.chosen(rng)
        with fg.no_grad():
            parameter.copy_(parameter * 0.95)

    def save(self, rng: Rng) -> Any:
        self.saved = self.training.state()

    def load(self, rng: Rng) -> Any:
        self.training.model.load_state_dict(self.saved)

    def evaluate(self, rng: Rng) -> Any:
        with fg.no_grad():
            return self.training.scores(self.batch(rng)[0]).numpy()

    def evaluate_on_the_host(self, rng: Rng) -> Any:
        with fg.no_grad():
            return self.host(self.batch(rng)[0]).numpy()

    def step_outside(self, rng: Rng) -> Any:
        x, y = self.batch(rng)
        self.training.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), fg.tensor(y))
        loss.backward()
        self.training.optimizer.step()
        return loss.detach().numpy()

    def another_rate(self, rng: Rng) -> Any:
        self.training.optimizer.param_groups[0]["lr"] = float(rng.choice([0.01, 0.02]))

    def collect(self, rng: Rng) -> Any:
        gc.collect()


ACTIONS: dict[Callable[[Walk, Rng], Any], int] = {
    Walk.step: 14,
    Walk.look: 2,
    Walk.hold: 2,
    Walk.let_go: 2,
    Walk.look_at_held: 2,
    Walk.change_held: 1,
    Walk.change: 2,
    Walk.assign: 2,
    Walk.save: 1,
    Walk.load: 1,
    Walk.evaluate: 3,
    Walk.evaluate_on_the_host: 2,
    Walk.step_outside: 1,
    Walk.another_rate: 1,
    Walk.collect: 1,
}


@pytest.mark.parametrize("seed", range(2))
def test_a_random_walk(seed: int) -> None:
    weights = np.array(list(ACTIONS.values()), float)
    order = np.random.default_rng(seed).choice(len(ACTIONS), 45, p=weights / weights.sum())
    walked: list[str] = []
    with emulated(graphs=seed != 3):
        sides = [Walk("cpu"), Walk("cuda")]
        for number, place in enumerate(order):
            action = list(ACTIONS)[place]
            walked.append(action.__name__)
            wanted, got = (action(side, np.random.default_rng([seed, number])) for side in sides)
            if wanted is not None:
                np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-5, err_msg=" ".join(walked))
        agree_loosely(sides[1].training.state(), sides[0].training.state())
        sides.clear()


def agree_loosely(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Dozens of steps of Adam, which divides by small numbers, tell sums in another order apart by more than one does."""
    for name, value in wanted.items():
        np.testing.assert_allclose(
            got[name], value, rtol=0, atol=2e-4 * max(float(np.abs(value).max()), 0.1), err_msg=name
        )


def test_the_walks_compare_something() -> None:
    """A side that misses one change is told apart."""
    with emulated():
        sides = [Walk("cpu"), Walk("cuda")]
        for side in sides:
            for number in range(3):
                side.step(np.random.default_rng(number))
        sides[0].change_held(np.random.default_rng(0))
        agree(sides[1].training.state(), sides[0].training.state())
        sides[0].assign(np.random.default_rng(0))
        with pytest.raises(AssertionError):
            agree_loosely(sides[1].training.state(), sides[0].training.state())
        sides.clear()
