"""What is measured, and how each system does it: one file a system, each with `prepare(case, options) -> Session`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class System:
    """`module.prepare` makes its sessions, with `variant`; `title` heads its column; `package` must be importable."""

    title: str
    module: str
    package: str
    variant: str = ""


SYSTEMS: dict[str, System] = {
    "ours": System("fusegraph", "ours", "fusegraph", "compiled"),
    "torch": System("torch eager", "torch_eager", "torch", "eager"),
    "torch-compile": System("torch.compile", "torch_eager", "torch", "model"),
    "torch-step": System("torch.compile, whole step", "torch_step", "torch"),
    "torch-channels-last": System("torch eager, channels last", "torch_eager", "torch", "channels_last"),
    "jax": System("JAX jit", "jax_jit", "jax"),
    "tinygrad": System("tinygrad", "tinygrad_jit", "tinygrad"),
    "ours-numba": System("a numba kernel an operation", "ours", "numba", "numba"),
    "ours-eager": System("fusegraph, not compiled", "ours", "fusegraph", "eager"),
}
DEFAULT_SYSTEMS = ("ours", "torch", "torch-step", "jax", "tinygrad")
REFERENCE = "ours-eager"  # run in float64: what the others' results are compared with


@dataclass(frozen=True)
class Session:
    """A workload, ready to run in one system.

    step(number)    one step on batch `number % BATCHES`; what it returns may still be on its way
    wait(result)    returns when the result of a step is there
    values(result)  a step's results as numpy arrays: a loss, or a function's value and gradients
    parameters()    the present weights as numpy arrays, by name; empty for functions
    """

    step: Callable[[int], Any]
    wait: Callable[[Any], Any]
    values: Callable[[Any], list[Array]]
    parameters: Callable[[], dict[str, Array]]
