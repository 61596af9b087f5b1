"""torch with the whole step, forward, backward and update, in one torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.systems import Array, Session
from benchmarks.systems.cases import ADAM_BETAS, ADAM_EPS, BATCHES, LEARNING_RATE, MOMENTUM, Case
from benchmarks.systems.networks import NETWORKS, function_of, loss_of
from benchmarks.systems.torch_eager import FRAMEWORK, inference, values, version

__all__ = ["prepare", "version"]


def prepare(
    case: Case, variant: str, threads: int, dtype: str, weights: dict[str, Array], batches: list[Any]
) -> Session:
    """Parameters are a dict of tensors, updated in place by the compiled step."""
    torch.set_num_threads(threads)
    data = [tuple(torch.from_numpy(array) for array in batch) for batch in batches]
    if case.kind == "train":
        step, parameters = _training(case, weights)
    elif case.kind == "infer":
        step, parameters = inference(case, "model", weights), dict
    else:
        step, parameters = _function(case), dict
    return Session(lambda number: step(*data[number % BATCHES]), lambda result: None, values, parameters)


def _training(case: Case, weights: dict[str, Array]) -> tuple[Callable[..., Any], Callable[[], Any]]:
    model = NETWORKS[case.network](FRAMEWORK)
    loss_function, update = loss_of(FRAMEWORK, case), UPDATES[case.optimizer]
    parameters = {name: torch.from_numpy(value.copy()) for name, value in weights.items()}
    state = _new_state(case.optimizer, parameters)

    def loss_of_parameters(parameters: dict[str, Any], *arrays: Any) -> Any:
        return loss_function(torch.func.functional_call(model, parameters, arrays[:-1]), arrays[-1])

    def train(parameters: dict[str, Any], state: dict[str, Any], *arrays: Any) -> Any:
        gradients, loss = torch.func.grad_and_value(loss_of_parameters)(parameters, *arrays)
        with torch.no_grad():
            update(parameters, gradients, state)
        return loss

    compiled = torch.compile(train, fullgraph=True)

    def step(*arrays: Any) -> Any:
        return compiled(parameters, state, *arrays)

    return step, lambda: {name: value.numpy().copy() for name, value in parameters.items()}


def _new_state(optimizer: str, parameters: dict[str, Any]) -> dict[str, Any]:
    if optimizer == "sgd":
        return {}
    moments = {f"1:{name}": torch.zeros_like(value) for name, value in parameters.items()}
    if optimizer == "adam":
        moments |= {f"2:{name}": torch.zeros_like(value) for name, value in parameters.items()}
        moments["count"] = torch.zeros(())
    return moments


def _sgd(parameters: dict[str, Any], gradients: dict[str, Any], state: dict[str, Any]) -> None:
    for name, parameter in parameters.items():
        parameter.sub_(LEARNING_RATE["sgd"] * gradients[name])


def _momentum(parameters: dict[str, Any], gradients: dict[str, Any], state: dict[str, Any]) -> None:
    for name, parameter in parameters.items():
        moment = state[f"1:{name}"]
        moment.mul_(MOMENTUM).add_(gradients[name])
        parameter.sub_(LEARNING_RATE["momentum"] * moment)


def _adam(parameters: dict[str, Any], gradients: dict[str, Any], state: dict[str, Any]) -> None:
    first, second = ADAM_BETAS
    count = state["count"].add_(1)
    rate = LEARNING_RATE["adam"] / (1 - first**count)
    spread = torch.sqrt(1 - second**count)
    for name, parameter in parameters.items():
        gradient, mean, square = gradients[name], state[f"1:{name}"], state[f"2:{name}"]
        mean.mul_(first).add_((1 - first) * gradient)
        square.mul_(second).add_((1 - second) * gradient * gradient)
        parameter.sub_(rate * mean / (square.sqrt() / spread + ADAM_EPS))


UPDATES: dict[str, Callable[..., None]] = {"sgd": _sgd, "momentum": _momentum, "adam": _adam}


def _function(case: Case) -> Callable[..., Any]:
    function = function_of(FRAMEWORK, case)
    if case.kind == "forward":
        return torch.no_grad()(torch.compile(function, fullgraph=True))

    def with_gradients(*arrays: Any) -> Any:
        learned = [array for array in arrays[:-1] if array.is_floating_point()]
        given = arrays[len(learned) : -1]  # labels
        value, pull = torch.func.vjp(lambda *learned: function(*learned, *given), *learned)
        return value, *pull(arrays[-1])

    return torch.compile(with_gradients, fullgraph=True)
