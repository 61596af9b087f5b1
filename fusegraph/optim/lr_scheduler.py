"""Schedules of the learning rate. `step()` is called after the optimizer's; a compiled step is not traced again by it.

Each schedule gives the rate of a group as a function of the number of steps taken so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from fusegraph.errors import OptionError, StateError
from fusegraph.optim.optimizer import Optimizer, ParamGroup
from fusegraph.tensor import user_error

__all__ = [
    "ConstantLR",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]


class LRScheduler:
    """Base of all schedules. A class gives `_rate(group's first rate, group's number, steps)`."""

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        if not isinstance(optimizer, Optimizer):
            raise user_error(OptionError, f"a schedule takes an optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            if last_epoch == -1:
                group["initial_lr"] = group["lr"]
            elif "initial_lr" not in group:
                raise user_error(
                    OptionError, "last_epoch was given, but the optimizer's groups have no 'initial_lr' to go on from"
                )
        self.base_lrs = [float(group["initial_lr"]) for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self.step()

    def _rate(self, base: float, number: int, steps: int) -> float:
        raise NotImplementedError

    def step(self) -> None:
        """One step (an epoch, or a batch) further: sets every group's rate."""
        self.last_epoch += 1
        self._apply()

    def _apply(self) -> None:
        for number, (group, base) in enumerate(zip(self.optimizer.param_groups, self.base_lrs, strict=True)):
            group["lr"] = self._rate(base, number, self.last_epoch)

    def get_last_lr(self) -> list[float]:
        """The rates that are set now, one a group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands."""
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where a saved schedule stood. Raises StateError when it had other groups."""
        if set(state_dict) < {"last_epoch", "base_lrs"} or len(state_dict["base_lrs"]) != len(self.base_lrs):
            raise StateError(f"a schedule for {len(self.base_lrs)} groups cannot go on from {state_dict!r}")
        self.last_epoch, self.base_lrs = int(state_dict["last_epoch"]), [float(rate) for rate in state_dict["base_lrs"]]
        self._apply()


class LambdaLR(LRScheduler):
    """The first rate times `lr_lambda(steps)`; one function, or one a group."""

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        count = len(optimizer.param_groups)
        self.lr_lambdas = [lr_lambda] * count if callable(lr_lambda) else list(lr_lambda)
        if len(self.lr_lambdas) != count:
            raise user_error(OptionError, f"LambdaLR: {len(self.lr_lambdas)} functions for {count} groups")
        super().__init__(optimizer, last_epoch)

    def _rate(self, base: float, number: int, steps: int) -> float:
        return base * self.lr_lambdas[number](steps)


class StepLR(LRScheduler):
    """Times gamma every `step_size` steps."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1) -> None:
        if step_size < 1:
            raise user_error(OptionError, f"StepLR: step_size must be at least 1, got {step_size}")
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer, last_epoch)

    def _rate(self, base: float, number: int, steps: int) -> float:
        return float(base * self.gamma ** (steps // self.step_size))


class MultiStepLR(LRScheduler):
    """Times gamma at each of the `milestones`."""

    def __init__(
        self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer, last_epoch)

    def _rate(self, base: float, number: int, steps: int) -> float:
        from bisect import bisect_right

        return float(base * self.gamma ** bisect_right(self.milestones, steps))


class ExponentialLR(LRScheduler):
    """Times gamma at every step."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def _rate(self, base: float, number: int, steps: int) -> float:
        return float(base * self.gamma**steps)


class ConstantLR(LRScheduler):
    """Times `factor` for the first `total_iters` steps."""

    def __init__(self, optimizer: Optimizer, factor: float = 1 / 3, total_iters: int = 5, last_epoch: int = -1) -> None:
        self.factor, self.total_iters = factor, total_iters
        super().__init__(optimizer, last_epoch)

    def _rate(self, base: float, number: int, steps: int) -> float:
        return base * (self.factor if steps < self.total_iters else 1.0)


class LinearLR(LRScheduler):
    """From start_factor to end_factor in `total_iters` equal steps: a linear warm-up."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if not 0.0 < start_factor <= 1.0 or not 0.0 <= end_factor <= 1.0:
            raise user_error(
                OptionError,
                f"LinearLR: start_factor must be in (0, 1] and end_factor in [0, 1], got {start_factor}, {end_factor}",
            )
        self.start_factor, self.end_factor, self.total_iters = start_factor, end_factor, total_iters
        super().__init__(optimizer, last_epoch)

    def _rate(self, base: float, number: int, steps: int) -> float:
        done = min(steps, self.total_iters) / self.total_iters if self.total_iters else 1.0
        return base * (self.start_factor + (self.end_factor - self.start_factor) * done)


class CosineAnnealingLR(LRScheduler):
    """From the first rate to `eta_min` along half a cosine wave of T_max steps (Loshchilov and Hutter, ICLR 2017)."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> None:
        if T_max < 1:
            raise user_error(OptionError, f"CosineAnnealingLR: T_max must be at least 1, got {T_max}")
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer, last_epoch)

    def _rate(self, base: float, number: int, steps: int) -> float:
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * steps / self.T_max)) / 2


class SequentialLR(LRScheduler):
    """One schedule after the other: the next begins, at its own step 0, at each of the `milestones`."""

    def __init__(
        self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], milestones: Sequence[int], last_epoch: int = -1
    ) -> None:
        if not schedulers or len(milestones) != len(schedulers) - 1:
            raise user_error(
                OptionError,
                f"SequentialLR: {len(schedulers)} schedules need {max(len(schedulers) - 1, 0)} milestones, "
                f"got {len(milestones)}",
            )
        if any(scheduler.optimizer is not optimizer for scheduler in schedulers):
            raise user_error(OptionError, "SequentialLR: all schedules must belong to the same optimizer")
        self.schedulers, self.milestones = list(schedulers), list(milestones)
        for scheduler in self.schedulers:  # building them has moved the rate
            scheduler.base_lrs = [self.schedulers[0].base_lrs[i] for i in range(len(scheduler.base_lrs))]
        for group, base in zip(optimizer.param_groups, self.schedulers[0].base_lrs, strict=True):
            group["lr"] = group["initial_lr"] = base
        super().__init__(optimizer, last_epoch)

    def _rate(self, base: float, number: int, steps: int) -> float:
        from bisect import bisect_right

        index = bisect_right(self.milestones, steps)
        begin = self.milestones[index - 1] if index else 0
        return self.schedulers[index]._rate(base, number, steps - begin)


class OneCycleLR(LRScheduler):
    """Up from max_lr / div_factor to max_lr, then down to that / final_div_factor, in `total_steps` steps (Smith,
    2018).

    With cycle_momentum the momentum (or Adam's first beta) goes the other way.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        last_epoch: int = -1,
    ) -> None:
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise user_error(OptionError, "OneCycleLR: give total_steps, or epochs and steps_per_epoch")
            total_steps = epochs * steps_per_epoch
        if total_steps < 1 or not 0.0 <= pct_start <= 1.0 or anneal_strategy not in ("cos", "linear"):
            raise user_error(
                OptionError,
                f"OneCycleLR: total_steps {total_steps}, pct_start {pct_start} or anneal_strategy {anneal_strategy!r} "
                "is not allowed",
            )
        groups = optimizer.param_groups
        self.max_lrs = list(max_lr) if isinstance(max_lr, Sequence) else [max_lr] * len(groups)
        if cycle_momentum and not all(
            "betas" in group or ("momentum" in group and group.uses("momentum")) for group in groups
        ):
            raise user_error(OptionError, "OneCycleLR: cycle_momentum needs an optimizer with momentum or betas")
        self.total_steps, self.pct_start, self.anneal_strategy = total_steps, pct_start, anneal_strategy
        self.cycle_momentum, self.base_momentum, self.max_momentum = cycle_momentum, base_momentum, max_momentum
        self.div_factor, self.final_div_factor = div_factor, final_div_factor
        super().__init__(optimizer, last_epoch)

    def _between(self, start: float, end: float, done: float) -> float:
        return start + (end - start) * (
            done if self.anneal_strategy == "linear" else (1 - math.cos(math.pi * done)) / 2
        )

    def _cycle(self, steps: int, first: float, top: float, last: float) -> float:
        if steps > self.total_steps:
            raise user_error(OptionError, f"OneCycleLR: step {steps} of a schedule of {self.total_steps}")
        peak = self.pct_start * self.total_steps - 1
        if steps <= peak:
            return self._between(first, top, steps / peak if peak else 1.0)
        rest = self.total_steps - 1 - peak
        return self._between(top, last, (steps - peak) / rest if rest else 1.0)

    def _rate(self, base: float, number: int, steps: int) -> float:
        top = self.max_lrs[number]
        first = top / self.div_factor
        return self._cycle(steps, first, top, first / self.final_div_factor)

    def _apply(self) -> None:
        super()._apply()
        if self.cycle_momentum:
            momentum = self._cycle(self.last_epoch, self.max_momentum, self.base_momentum, self.max_momentum)
            for group in self.optimizer.param_groups:
                _set_momentum(group, momentum)


def _set_momentum(group: ParamGroup, momentum: float) -> None:
    if "betas" in group:
        group["betas"] = (momentum, group["betas"][1])
    else:
        group["momentum"] = momentum


class ReduceLROnPlateau:
    """Times `factor` when `metric` has not become better for more than `patience` calls of `step(metric)`."""

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        if mode not in ("min", "max") or not 0.0 < factor < 1.0:
            raise user_error(
                OptionError,
                f"ReduceLROnPlateau: mode must be 'min' or 'max' and factor in (0, 1), got {mode!r}, {factor}",
            )
        self.optimizer, self.mode, self.factor, self.patience = optimizer, mode, factor, patience
        self.threshold, self.cooldown, self.min_lr, self.eps = threshold, cooldown, min_lr, eps
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = 0

    def _better(self, metric: float) -> bool:
        if self.mode == "min":
            return metric < self.best * (1.0 - self.threshold)
        return metric > self.best * (1.0 + self.threshold)

    def step(self, metrics: Any) -> None:
        """Take note of `metrics` (a number) and lower the rates when there is no progress."""
        metric = float(metrics)
        if self._better(metric):
            self.best, self.num_bad_epochs = metric, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter, self.num_bad_epochs = self.cooldown_counter - 1, 0
        if self.num_bad_epochs > self.patience:
            for group in self.optimizer.param_groups:
                new = max(group["lr"] * self.factor, self.min_lr)
                if group["lr"] - new > self.eps:
                    group["lr"] = new
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def get_last_lr(self) -> list[float]:
        """The rates that are set now, one a group."""
        return [group["lr"] for group in self.optimizer.param_groups]
