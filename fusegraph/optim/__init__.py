"""Optimizers and learning-rate schedules, with the arguments and the arithmetic of torch.optim."""

from __future__ import annotations

from fusegraph.optim import lr_scheduler
from fusegraph.optim.adam import Adam, AdamW
from fusegraph.optim.adaptive import Adagrad, RMSprop
from fusegraph.optim.optimizer import Optimizer, ParamGroup
from fusegraph.optim.sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Optimizer", "ParamGroup", "RMSprop", "lr_scheduler"]
