"""Python names for a program's buffers and kernels, and for the variables of a kernel."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Mapping
from types import MappingProxyType

from fusegraph.codegen.python_helpers import HELPER_NAMES
from fusegraph.errors import CompilerError
from fusegraph.ir.loops import Buffer, Loop, Program

RESERVED = HELPER_NAMES | {"np", "math", "step"} | set(keyword.kwlist) | set(dir(builtins))


def identifier(text: str) -> str:
    """`text` as a Python identifier: fc.weight -> fc_weight."""
    name = re.sub(r"\W", "_", text, flags=re.ASCII) or "unnamed"
    return f"_{name}" if name[0].isdigit() else name


def unused(name: str, taken: set[str] | frozenset[str]) -> str:
    """`name`, or `name_2`, `name_3`, ... : the first that is not taken. A reserved name gets an underscore: max_."""
    candidate, number = f"{name}_" if name in RESERVED else name, 1
    while candidate in taken or candidate in RESERVED:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def axis_name(name: str, taken: set[str]) -> str:
    """A short name for an axis, without the number that its program needs: n13 is n, or n2; i13 is i, or j."""
    stem = identifier(name).rstrip("0123456789") or identifier(name)
    letters = "ijkmnpqrstuvw" if stem == "i" else ""
    candidates = [stem, *letters, *(f"{stem}{number}" for number in range(2, len(taken) + 3))]
    return next(candidate for candidate in candidates if candidate not in taken and candidate not in RESERVED)


def kernel_buffers(loop: Loop) -> tuple[str, ...]:
    """The buffers that `loop` takes, in the order of its parameters: those that it reads, then those that it writes."""
    return tuple(dict.fromkeys(loop.reads() + loop.writes()))


class ProgramNames:
    """One Python name for each buffer and each kernel of `program`, all different.

    Raises CompilerError when two kernels have the same name. narrow: buffers whose elements are of another type in memory.
    """

    narrow: Mapping[str, str] = MappingProxyType({})

    def __init__(self, program: Program) -> None:
        self.program = program
        taken: set[str] = set()
        self.kernels: dict[str, str] = {}
        for loop in program.loops:
            if loop.name in self.kernels:
                raise CompilerError(f"program {program.name}: two kernels are called {loop.name!r}")
            self.kernels[loop.name] = self._take(loop.name, taken)
        self.buffers = {name: self._take(name, taken) for name in program.buffers}

    @staticmethod
    def _take(text: str, taken: set[str]) -> str:
        name = unused(identifier(text), taken)
        taken.add(name)
        return name

    def buffer(self, name: str) -> Buffer:
        """The buffer called `name`. Raises CompilerError when the program has none."""
        if name not in self.program.buffers:
            raise CompilerError(f"program {self.program.name} has no buffer {name!r}")
        return self.program.buffers[name]
