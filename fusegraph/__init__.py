"""fusegraph: a readable tensor compiler. Forward, backward and update, fused into one native call a step."""

from __future__ import annotations

from fusegraph import autograd, functional, nn, ops, optim
from fusegraph import methods as _methods  # noqa: F401  (gives Tensor its methods)
from fusegraph.autograd import enable_grad, is_grad_enabled, no_grad, set_grad_enabled, value_and_grad
from fusegraph.autograd import grad_of as grad
from fusegraph.compiler import Compiled, compile
from fusegraph.difference import diff
from fusegraph.dtypes import bool_, float32, float64, int32, int64, uint8, uint32
from fusegraph.ir.location import region
from fusegraph.ops.arrange import *  # noqa: F403
from fusegraph.ops.create import *  # noqa: F403
from fusegraph.ops.elementwise import *  # noqa: F403
from fusegraph.ops.index import *  # noqa: F403
from fusegraph.ops.linalg import *  # noqa: F403
from fusegraph.ops.order import *  # noqa: F403
from fusegraph.ops.reduce import *  # noqa: F403
from fusegraph.ops.shape import *  # noqa: F403
from fusegraph.ops.special import *  # noqa: F403
from fusegraph.random import Generator, manual_seed
from fusegraph.runtime.threads import get_num_threads, set_num_threads
from fusegraph.tensor import Tensor, as_tensor, from_dlpack, from_numpy, tensor

__all__ = [
    "Compiled",
    "Generator",
    "Tensor",
    "as_tensor",
    "autograd",
    "bool_",
    "compile",
    "diff",
    "enable_grad",
    "float32",
    "float64",
    "from_dlpack",
    "from_numpy",
    "functional",
    "get_num_threads",
    "grad",
    "int32",
    "int64",
    "is_grad_enabled",
    "manual_seed",
    "nn",
    "no_grad",
    "optim",
    "region",
    "set_grad_enabled",
    "set_num_threads",
    "tensor",
    "uint32",
    "uint8",
    "value_and_grad",
]
__all__ += ops.__all__

__version__ = "0.1.0"
