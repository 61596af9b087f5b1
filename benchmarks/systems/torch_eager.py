"""torch as it is usually written: eager, or with the model compiled, or with channels-last tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.systems import Array, Session
from benchmarks.systems.cases import BATCHES, Case
from benchmarks.systems.networks import NETWORKS, Framework, function_of, loss_of, optimizer_of

FRAMEWORK = Framework(torch, torch.nn, torch.nn.functional, torch.optim)


def version() -> str:
    """What is measured."""
    return f"torch {torch.__version__}"


def values(result: Any) -> list[Array]:
    """Results of a step as numpy arrays."""
    return [value.detach().numpy() for value in (result if isinstance(result, tuple) else (result,))]


def prepare(
    case: Case, variant: str, threads: int, dtype: str, weights: dict[str, Array], batches: list[Any]
) -> Session:
    """`variant`: "eager", "model" (the model, or the function, goes through torch.compile) or "channels_last"."""
    torch.set_num_threads(threads)
    data = [tuple(torch.from_numpy(array) for array in batch) for batch in batches]
    if case.kind == "train":
        if variant == "channels_last":
            if data[0][0].ndim != 4:
                raise NotImplementedError("the inputs are not images")
            data = [(images.to(memory_format=torch.channels_last), *rest) for images, *rest in data]
        step, parameters = _training(case, variant, weights)
    elif case.kind == "infer":
        step, parameters = inference(case, variant, weights), dict
    else:
        step, parameters = _function(case, variant), dict
    return Session(lambda number: step(*data[number % BATCHES]), lambda result: None, values, parameters)


def _network(case: Case, weights: dict[str, Array]) -> Any:
    model = NETWORKS[case.network](FRAMEWORK)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return model


def inference(case: Case, variant: str, weights: dict[str, Array]) -> Callable[..., Any]:
    """The forward pass of a network, without gradients."""
    if variant == "channels_last":
        raise NotImplementedError("the inputs are not images")
    model = _network(case, weights).eval()
    forward = torch.compile(model) if variant == "model" else model
    return torch.inference_mode()(lambda *arrays: forward(*arrays[:-1]))


def _training(case: Case, variant: str, weights: dict[str, Array]) -> tuple[Callable[..., Any], Callable[[], Any]]:
    model = _network(case, weights)
    if variant == "channels_last":
        model.to(memory_format=torch.channels_last)
    optimizer = optimizer_of(FRAMEWORK, case, model.parameters(), fused=True)
    loss_function = loss_of(FRAMEWORK, case)

    def loss_of_model(*arrays: Any) -> Any:
        return loss_function(model(*arrays[:-1]), arrays[-1])

    forward = torch.compile(loss_of_model) if variant == "model" else loss_of_model

    def train(*arrays: Any) -> Any:
        optimizer.zero_grad()
        loss = forward(*arrays)
        loss.backward()
        optimizer.step()
        return loss

    return train, lambda: {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


def _function(case: Case, variant: str) -> Callable[..., Any]:
    if variant == "channels_last":
        raise NotImplementedError("the inputs are not images")
    function = function_of(FRAMEWORK, case)
    if variant == "model":
        function = torch.compile(function)
    if case.kind == "forward":
        return torch.no_grad()(function)

    def with_gradients(*arrays: Any) -> Any:
        inputs = [array.detach() for array in arrays[:-1]]
        learned = [array.requires_grad_() for array in inputs if array.is_floating_point()]
        value = function(*inputs)
        return value, *torch.autograd.grad(value, learned, arrays[-1])

    return with_gradients
