"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusegraph import ops
from fusegraph.dtypes import float64
from fusegraph.errors import OptionError
from fusegraph.optim.optimizer import Optimizer, ParamGroup, check_option, step_count, zeros_for
from fusegraph.tensor import Tensor, user_error


class SGD(Optimizer):
    """param -= lr * buffer, where buffer = momentum * buffer + (1 - dampening) * gradient.

    nesterov: the step looks ahead along the buffer. weight_decay is added to the gradient. Arithmetic as
    torch.optim.SGD.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
            },
        )

    def _check(self, options: Mapping[str, Any]) -> None:
        super()._check(options)
        check_option("momentum", options["momentum"])
        if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
            raise user_error(OptionError, "nesterov needs a momentum and no dampening")

    def _new_state(self, group: ParamGroup, param: Tensor) -> dict[str, Tensor]:
        if not group.uses("momentum"):
            return {}
        state = {"momentum_buffer": zeros_for(param)}
        if group["dampening"]:
            state["step"] = step_count()
        return state

    def _update(self, group: ParamGroup, params: list[Tensor]) -> None:
        for param in params:
            direction = self._gradient(group, param)
            if group.uses("momentum"):
                direction = self._with_momentum(group, direction, self.state[param])
            param.copy_(param - group.tensor("lr") * direction)

    def _with_momentum(self, group: ParamGroup, gradient: Tensor, state: dict[str, Tensor]) -> Tensor:
        momentum, buffer = group.tensor("momentum"), state["momentum_buffer"]
        added = gradient
        if "step" in state:  # the first step takes the whole gradient
            later = ops.cast(state["step"] > 0.0, float64)
            added = gradient * (1.0 - group["dampening"] * later)
            state["step"].copy_(state["step"] + 1.0)
        new = momentum * buffer + added
        buffer.copy_(new)
        return gradient + momentum * new if group["nesterov"] else new
