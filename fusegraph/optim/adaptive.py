"""Adagrad and RMSprop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusegraph import ops
from fusegraph.optim.optimizer import Optimizer, ParamGroup, check_option, step_count, zeros_for
from fusegraph.tensor import Tensor


class Adagrad(Optimizer):
    """Steps along the gradient, scaled by the root of the sum of all its squares (Duchi, Hazan and Singer, JMLR 2011).

    The rate falls as lr / (1 + (step - 1) * lr_decay). weight_decay is added to the gradient. Arithmetic as
    torch.optim.Adagrad.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "lr_decay": lr_decay,
                "weight_decay": weight_decay,
                "initial_accumulator_value": initial_accumulator_value,
                "eps": eps,
                "maximize": maximize,
            },
        )

    def _check(self, options: Mapping[str, Any]) -> None:
        super()._check(options)
        for name in ("lr_decay", "initial_accumulator_value", "eps"):
            check_option(name, options[name])

    def _new_state(self, group: ParamGroup, param: Tensor) -> dict[str, Tensor]:
        return {"step": step_count(), "sum": ops.full(param.shape, group["initial_accumulator_value"], param.dtype)}

    def _update(self, group: ParamGroup, params: list[Tensor]) -> None:
        for step, members in self._shared_steps(params):
            rate = group.tensor("lr") / (1.0 + step * group["lr_decay"])  # the count before this step
            step.copy_(step + 1.0)
            for param in members:
                gradient, held = self._gradient(group, param), self.state[param]["sum"]
                total = held + gradient * gradient
                held.copy_(total)
                param.copy_(param - rate * gradient / (ops.sqrt(total) + group["eps"]))


class RMSprop(Optimizer):
    """Steps along the gradient, scaled by the root of the running mean of its square (Tieleman and Hinton, 2012).

    centered: by the root of the running variance. weight_decay is added to the gradient. Arithmetic as
    torch.optim.RMSprop.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "alpha": alpha,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "centered": centered,
                "maximize": maximize,
            },
        )

    def _check(self, options: Mapping[str, Any]) -> None:
        super()._check(options)
        for name in ("momentum", "alpha", "eps"):
            check_option(name, options[name])

    def _new_state(self, group: ParamGroup, param: Tensor) -> dict[str, Tensor]:
        state = {"square_avg": zeros_for(param)}
        if group.uses("momentum"):
            state["momentum_buffer"] = zeros_for(param)
        if group["centered"]:
            state["grad_avg"] = zeros_for(param)
        return state

    def _update(self, group: ParamGroup, params: list[Tensor]) -> None:
        for param in params:
            param.copy_(
                param - group.tensor("lr") * self._direction(group, self._gradient(group, param), self.state[param])
            )

    def _direction(self, group: ParamGroup, gradient: Tensor, state: dict[str, Tensor]) -> Tensor:
        alpha = group["alpha"]
        square = state["square_avg"] * alpha + gradient * gradient * (1.0 - alpha)
        state["square_avg"].copy_(square)
        spread = square
        if "grad_avg" in state:
            mean = state["grad_avg"] + (gradient - state["grad_avg"]) * (1.0 - alpha)
            state["grad_avg"].copy_(mean)
            spread = square - mean * mean
        scaled = gradient / (ops.sqrt(spread) + group["eps"])
        if "momentum_buffer" not in state:
            return scaled
        new = group.tensor("momentum") * state["momentum_buffer"] + scaled
        state["momentum_buffer"].copy_(new)
        return new
