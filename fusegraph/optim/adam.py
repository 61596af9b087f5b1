"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusegraph import ops
from fusegraph.errors import OptionError
from fusegraph.optim.optimizer import Optimizer, ParamGroup, check_option, step_count, zeros_for
from fusegraph.tensor import Tensor, user_error


class Adam(Optimizer):
    """Steps along the running mean of the gradient, scaled by the root of the running mean of its square (Kingma and
    Ba, ICLR 2015).

    weight_decay is added to the gradient. Arithmetic as torch.optim.Adam; the bias corrections are float64.
    """

    _decoupled = False

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": tuple(betas),
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "maximize": maximize,
            },
        )

    def _check(self, options: Mapping[str, Any]) -> None:
        super()._check(options)
        check_option("eps", options["eps"])
        if len(options["betas"]) != 2:
            raise user_error(OptionError, f"betas must be two numbers, got {options['betas']!r}")
        for beta in options["betas"]:
            check_option("betas", beta, 0.0, 1.0)

    def _new_state(self, group: ParamGroup, param: Tensor) -> dict[str, Tensor]:
        state = {"step": step_count(), "exp_avg": zeros_for(param), "exp_avg_sq": zeros_for(param)}
        if group["amsgrad"]:
            state["max_exp_avg_sq"] = zeros_for(param)
        return state

    def _update(self, group: ParamGroup, params: list[Tensor]) -> None:
        beta1, beta2 = group.tensor("betas")
        for step, members in self._shared_steps(params):
            step.copy_(step + 1.0)
            rate = group.tensor("lr") / (1.0 - beta1**step)
            root = 1.0 / ops.sqrt(1.0 - beta2**step)
            for param in members:
                self._update_one(group, param, rate, root)

    def _update_one(self, group: ParamGroup, param: Tensor, rate: Tensor, root: Tensor) -> None:
        """Update one parameter.

        `rate` is lr / (1 - beta1 ** step), `root` is 1 / sqrt(1 - beta2 ** step), both 0-d float64.
        """
        beta1, beta2 = group.tensor("betas")
        state = self.state[param]
        gradient = self._gradient(group, param, decay=not self._decoupled)
        value: Any = param
        if self._decoupled and group.uses("weight_decay"):
            value = param * (1.0 - group.tensor("lr") * group.tensor("weight_decay"))
        mean = state["exp_avg"] + (gradient - state["exp_avg"]) * (1.0 - beta1)
        square = state["exp_avg_sq"] * beta2 + gradient * gradient * (1.0 - beta2)
        state["exp_avg"].copy_(mean)
        state["exp_avg_sq"].copy_(square)
        if "max_exp_avg_sq" in state:
            square = ops.maximum(state["max_exp_avg_sq"], square)
            state["max_exp_avg_sq"].copy_(square)
        param.copy_(value - rate * mean / (ops.sqrt(square) * root + group["eps"]))


class AdamW(Adam):
    """Adam whose weight_decay shrinks the parameter itself, by the factor 1 - lr * weight_decay (Loshchilov and
    Hutter, ICLR 2019).
    """

    _decoupled = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)
