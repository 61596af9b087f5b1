"""A PTX interpreter for tests: runs the kernels that numba-cuda compiles, without a GPU, and finds what is wrong.

All threads of the grid run at once, one numpy lane each. Accesses out of bounds, misaligned or to uninitialised
memory, races, divergent barriers and endless loops are errors (`errors`); the traffic is counted (`counters`).

>>> from ptx import PtxKernel, compile_ptx
>>> counters = PtxKernel(compile_ptx(kernel, signature)).launch(grid, block, [out, x, n], dynamic_shared=0)
"""

from __future__ import annotations

from .compile import compile_ptx
from .counters import Counters, GlobalTraffic, SharedTraffic
from .errors import (
    ArithmeticFault,
    BudgetExceeded,
    DivergentBarrier,
    DivergentWarp,
    GlobalRace,
    LaunchError,
    Misaligned,
    OutOfBounds,
    ParseError,
    PtxError,
    SharedRace,
    Trap,
    Uninitialised,
    UnsupportedInstruction,
)
from .kernel import PtxKernel
from .memory import Placed

__all__ = [
    "ArithmeticFault",
    "BudgetExceeded",
    "Counters",
    "DivergentBarrier",
    "DivergentWarp",
    "GlobalRace",
    "GlobalTraffic",
    "LaunchError",
    "Misaligned",
    "OutOfBounds",
    "ParseError",
    "Placed",
    "PtxError",
    "PtxKernel",
    "SharedRace",
    "SharedTraffic",
    "Trap",
    "Uninitialised",
    "UnsupportedInstruction",
    "compile_ptx",
]
