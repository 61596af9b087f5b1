"""Names in emitted CUDA modules: those of the Python printer, and none that the CUDA text itself uses."""

from __future__ import annotations

from types import MappingProxyType

from fusegraph.codegen.cuda.helpers import HELPER_NAMES
from fusegraph.codegen.cuda.intrinsics import INTRINSICS
from fusegraph.codegen.cuda.storage import Narrow
from fusegraph.codegen.python_names import ProgramNames, identifier, unused
from fusegraph.dtypes import SUPPORTED
from fusegraph.ir.loops import Program

RESERVED = HELPER_NAMES | set(SUPPORTED) | {"cuda", "math", "libdevice", "uint64", "block_number", *INTRINSICS}
_VARIABLES = {"lane", "slot", "part"}  # loop variables with fixed names


class CudaNames(ProgramNames):
    """One name for each buffer and each kernel of a program, all different.

    exact: how their text computes (ops.py); narrow: buffers that are kept in 16 bits (storage.py).
    """

    exact = False

    @staticmethod
    def _take(text: str, taken: set[str]) -> str:
        name = identifier(text)
        name = unused(f"{name}_" if name.startswith("team_") else name, taken | RESERVED | _VARIABLES)
        taken.add(name)
        return name


def cuda_names(program: Program, exact: bool = False, narrow: Narrow = MappingProxyType({})) -> CudaNames:
    """Names for `program`."""
    names = CudaNames(program)
    names.exact, names.narrow = exact, narrow
    return names
