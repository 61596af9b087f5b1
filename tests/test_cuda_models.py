"""Training steps of all example models by emitted CUDA kernels, run by the PTX interpreter beside the numpy reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fusegraph.runtime import cuda_compile
from tests.cuda_models import OPTIMIZERS, SMALL, batches, emulated

pytestmark = pytest.mark.skipif(
    bool(cuda_compile.missing()), reason=f"kernels cannot be compiled: {cuda_compile.missing()}"
)


def check_training(name: str, optimizer: str, steps: int, **options: Any) -> None:
    """Some steps; after each, all outputs and states are as the reference has them, from the same states before it."""
    step, emulator = emulated(name, optimizer, **options)
    losses = [float(step(*arrays).item()) for arrays in batches(name, steps)]
    assert emulator.problems == []
    assert emulator.runs == steps and all(np.isfinite(losses)) and len(set(losses)) == steps


@pytest.mark.parametrize(
    ("name", "optimizer"),
    # Adam's update is the same kernel for every model: two of them have it
    [(name, o) for name in SMALL for o in OPTIMIZERS if o == "sgd" or name in ("mlp", "bag")],
)
def test_training_steps(name: str, optimizer: str) -> None:
    """Forward, backward and update in one step, twice."""
    check_training(name, optimizer, 2)


@pytest.mark.parametrize("name", ["bag", "kim", "transformer"])
def test_exact_training_steps(name: str) -> None:
    """Sums in a fixed order, scatters without atomics."""
    check_training(name, "sgd", 2, exact=True)


@pytest.mark.parametrize("name", ["minitorch", "bag"])
def test_unfused_training_steps(name: str) -> None:
    """Every value that is kept has a kernel of its own."""
    check_training(name, "sgd", 2, fuse=False)
