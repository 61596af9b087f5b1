"""Modules: layers with parameters, under the names and with the initial values of torch.nn."""

from __future__ import annotations

from fusegraph.nn import init, utils
from fusegraph.nn.activation import *  # noqa: F403
from fusegraph.nn.attention import *  # noqa: F403
from fusegraph.nn.containers import ModuleDict, ModuleList, ParameterDict, ParameterList, Sequential
from fusegraph.nn.layers import *  # noqa: F403
from fusegraph.nn.loss import *  # noqa: F403
from fusegraph.nn.module import LoadResult, Module, Parameter
from fusegraph.nn.norm import *  # noqa: F403
from fusegraph.nn.pooling import *  # noqa: F403
