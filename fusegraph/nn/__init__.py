"""Modules: layers with parameters, under the names and with the initial values of torch.nn."""

from __future__ import annotations

from fusegraph.nn import activation, attention, containers, init, layers, loss, norm, pooling, utils
from fusegraph.nn.activation import *  # noqa: F403
from fusegraph.nn.attention import *  # noqa: F403
from fusegraph.nn.containers import *  # noqa: F403
from fusegraph.nn.layers import *  # noqa: F403
from fusegraph.nn.loss import *  # noqa: F403
from fusegraph.nn.module import Module
from fusegraph.nn.norm import *  # noqa: F403
from fusegraph.nn.parameter import Parameter
from fusegraph.nn.pooling import *  # noqa: F403

__all__ = [
    "Module",
    "Parameter",
    "init",
    "utils",
    *(name for file in (activation, attention, containers, layers, loss, norm, pooling) for name in file.__all__),
]
