"""fusegraph: the whole step is one compiled function. Not compiled and in float64 it is the reference for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fusegraph as fg
from benchmarks.systems import Array, Session
from benchmarks.systems.cases import BATCHES, Case
from benchmarks.systems.networks import NETWORKS, Framework, function_of, loss_of, optimizer_of

FRAMEWORK = Framework(fg, fg.nn, fg.functional, fg.optim)


def version() -> str:
    """What is measured."""
    return f"fusegraph {fg.__version__}"


def prepare(
    case: Case, variant: str, threads: int, dtype: str, weights: dict[str, Array], batches: list[Any], **options: Any
) -> Session:
    """`variant`: "compiled" (with `options` of fusegraph.compile), "numba" (a numba kernel for every value, as MiniTorch has) or "eager".

    The process is bound to `threads` cores, hence they need not be set here.
    """
    make = {"train": _training, "infer": _inference}.get(case.kind, _function)
    step, parameters = make(case, dtype, weights)
    if variant == "compiled":
        step = fg.compile(step, **options)
    if variant == "numba":
        step = fg.compile(step, backend="numba", fuse=False)
    data = [tuple(fg.tensor(a.astype(dtype) if a.dtype.kind == "f" else a) for a in batch) for batch in batches]

    def values(result: Any) -> list[Array]:
        return [np.asarray(value.detach()) for value in (result if isinstance(result, tuple) else (result,))]

    return Session(lambda number: step(*data[number % BATCHES]), lambda result: None, values, parameters)


def _network(case: Case, dtype: str, weights: dict[str, Array]) -> Any:
    model = NETWORKS[case.network](FRAMEWORK).to(dtype)
    model.load_state_dict({name: value.astype(dtype) for name, value in weights.items()})
    return model


def _inference(case: Case, dtype: str, weights: dict[str, Array]) -> tuple[Callable[..., Any], Callable[[], Any]]:
    model = _network(case, dtype, weights)

    def infer(*arrays: Any) -> Any:
        with fg.no_grad():
            return model(*arrays[:-1])

    return infer, dict


def _training(case: Case, dtype: str, weights: dict[str, Array]) -> tuple[Callable[..., Any], Callable[[], Any]]:
    model = _network(case, dtype, weights)
    optimizer = optimizer_of(FRAMEWORK, case, model.parameters())
    loss_function = loss_of(FRAMEWORK, case)

    def train(*arrays: Any) -> Any:
        *inputs, target = arrays
        optimizer.zero_grad()
        loss = loss_function(model(*inputs), target)
        loss.backward()
        optimizer.step()
        return loss

    return train, lambda: {name: np.array(value.detach()) for name, value in model.state_dict().items()}


def _function(case: Case, dtype: str, weights: dict[str, Array]) -> tuple[Callable[..., Any], Callable[[], Any]]:
    function = function_of(FRAMEWORK, case)
    if case.kind == "forward":
        return function, dict

    def with_gradients(*arrays: Any) -> Any:
        inputs = [array.detach() for array in arrays[:-1]]
        learned = [array.requires_grad_() for array in inputs if array.is_floating_point()]
        value = function(*inputs)
        return value, *fg.autograd.grad(value, learned, arrays[-1])

    return with_gradients, dict
