"""Optimizers and learning-rate schedules, with the arguments and the arithmetic of torch.optim."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusegraph.optim.adam import Adam, AdamW
from fusegraph.optim.adaptive import Adagrad, RMSprop
from fusegraph.optim.optimizer import Optimizer, ParamGroup
from fusegraph.optim.sgd import SGD

if TYPE_CHECKING:
    from fusegraph.optim import lr_scheduler

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Optimizer", "ParamGroup", "RMSprop", "lr_scheduler"]


def __getattr__(name: str) -> Any:
    """The schedules are imported when they are first asked for: most programs start without."""
    if name == "lr_scheduler":
        from importlib import import_module

        return import_module("fusegraph.optim.lr_scheduler")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
