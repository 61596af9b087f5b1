"""Random networks, trained for three compiled steps: losses, scores, gradients, parameters and running statistics.

The truth is the eager result in float64. How far float32 may be from it is measured: by the eager result in float32, and by
the truth for inputs and parameters that are moved by a rounding error. To see a failure again:

    python -m tests.test_random_networks 7 [8 ...]      these seeds
    python -m tests.test_random_networks 1000-2000      all of a range
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph.runtime.threads import ThreadSetting
from tests.random_networks import Array, RandomNetwork

Results = dict[str, Array]
ROUNDING = 2.0**-23
STEPS = 3
SEEDS = range(10)


def trained(seed: int, dtype: str, wrap: Callable[[Any], Any], moved: int = 0) -> Results:
    """What three steps give. `moved`: with inputs and parameters that are wrong by up to a rounding error, other ones for each."""
    fg.manual_seed(seed)
    network = RandomNetwork(seed)
    data = network.batches(1 if network.coarse else STEPS)  # an update leaves no multiples of 1/4
    if dtype == "float64":
        network.double()
    noise = np.random.default_rng(moved)

    def number(x: Array) -> Any:
        if x.dtype.kind != "f":
            return fg.as_tensor(x)
        x = x.astype(dtype)
        return fg.as_tensor(x * (1 + noise.uniform(-ROUNDING, ROUNDING, x.shape)).astype(dtype) if moved else x)

    for parameter in network.parameters() if moved else ():
        with fg.no_grad():
            parameter.copy_(number(parameter.detach().numpy().copy()))
    step = wrap(training_step(network))
    results: Results = {}
    for i, (x, y) in enumerate(data):
        x = number(x).detach()
        x.requires_grad_(x.dtype.name == dtype)
        for name, value in step(x, fg.as_tensor(y)).items():
            results[f"{name} of step {i}"] = value.detach().numpy().copy()
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        results[name] = value.detach().numpy().copy()
    return results


def training_step(network: RandomNetwork) -> Callable[[Any, Any], dict[str, Any]]:
    """A step of the network's optimizer. Gives the loss, the scores, and the gradient of the input if that has one."""
    optimizer = network.optimizer()

    def step(x: Any, y: Any) -> dict[str, Any]:
        optimizer.zero_grad()
        scores = network(x)
        loss = F.cross_entropy(scores, y)
        found = {"loss": loss, "scores": scores}
        if x.requires_grad:
            (found["gradient"],) = fg.autograd.grad(loss, [x], retain_graph=True)
        loss.backward()
        optimizer.step()
        return found

    return step


def tolerances(seed: int, truth: Results) -> dict[str, float]:
    """For each result the largest difference that rounding explains."""
    others = [trained(seed, "float32", lambda step: step)]
    if not RandomNetwork(seed).coarse:  # there rounding would break the ties
        others += [trained(seed, "float64", lambda step: step, moved) for moved in (1, 2)]
    return {
        name: 2e-7 + 32 * ROUNDING * largest(value) + 20 * max(largest(other[name] - value) for other in others)
        for name, value in truth.items()
    }


def largest(x: Array) -> float:
    return float(np.abs(x).max(initial=0.0))


def faults(seed: int) -> list[str]:
    """What is wrong with the compiled steps of a network, on one thread and on three."""
    truth = trained(seed, "float64", lambda step: step)
    allowed = tolerances(seed, truth)
    found: list[str] = []
    first: Results = {}
    for threads in (1, 3):
        fg.set_num_threads(threads)
        results = trained(seed, "float32", fg.compile)
        if results.keys() != truth.keys():
            found.append(f"results {sorted(results)} instead of {sorted(truth)}")
            continue
        for name, value in results.items():
            error = largest(value - truth[name])
            if not error <= allowed[name]:
                found.append(
                    f"{name} {value.shape}: off by {error:.3g}, allowed {allowed[name]:.3g}, {threads} threads"
                )
            if first and value.tobytes() != first[name].tobytes():
                found.append(f"{name} {value.shape}: other bits on {threads} threads")
        first = first or results
    return found


@pytest.fixture(autouse=True)
def _thread_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was set before is set again afterwards."""
    monkeypatch.setattr(ThreadSetting, "count", ThreadSetting.count)
    monkeypatch.setattr(ThreadSetting, "version", ThreadSetting.version)


@pytest.mark.parametrize("seed", SEEDS)
def test_compiled_training_is_right(seed):
    found = faults(seed)
    assert not found, "\n".join((repr(RandomNetwork(seed)), *found))


def test_the_same_seed_gives_the_same_network():
    first, second = RandomNetwork(5), RandomNetwork(5)
    assert repr(first) == repr(second)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())
    for (x, y), (x2, y2) in zip(first.batches(2), second.batches(2), strict=True):
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(y, y2)


def main(arguments: list[str]) -> int:
    """Check the seeds (7, or 10-20) that the command line names; the number of networks that fail."""
    failed = 0
    for argument in arguments:
        low, _, high = argument.partition("-")
        for seed in range(int(low), int(high or low) + 1):
            found = faults(seed)
            failed += bool(found)
            if found:
                print(RandomNetwork(seed), *found, sep="\n    ", flush=True)
    print(f"{failed} networks failed")
    return failed


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
