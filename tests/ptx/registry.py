"""The state that instructions act on, and the table from opcodes to the functions that compile them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .counters import Counters
from .ir import Instr
from .lanes import Action, Lanes
from .memory import GlobalMemory, LocalMemory, SharedMemory
from .ordering import Clock


@dataclass
class Machine:
    """Everything one launch works on."""

    lanes: Lanes
    clock: Clock
    counters: Counters
    globals: GlobalMemory
    shared: SharedMemory
    local: LocalMemory
    params: dict[str, np.ndarray]
    read_registers: frozenset[str]
    copies: list[Any] = field(default_factory=list)  # cp.async issued but not waited for
    running: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # lanes that have not left the kernel
    committed: np.ndarray | None = None  # cp.async groups that each lane has closed


Builder = Callable[[Instr, Machine], Action]
BUILDERS: dict[str, Builder] = {}


def op(*opcodes: str) -> Callable[[Builder], Builder]:
    """Register the compiler of one or several opcodes."""

    def register(builder: Builder) -> Builder:
        for opcode in opcodes:
            BUILDERS[opcode] = builder
        return builder

    return register


def build(instr: Instr, machine: Machine) -> Action:
    """The numpy closure of an instruction; raises UnsupportedInstruction where there is none."""
    builder = BUILDERS.get(instr.opcode)
    if builder is None:
        raise machine.lanes.unsupported(instr)
    return builder(instr, machine)


def elementwise(
    instr: Instr, machine: Machine, function: Callable[..., Any], kinds: str | list[str], out: str | None = None
) -> Action:
    """destination = function(sources...), the sources read as the given PTX types (one for all, or one each)."""
    lanes = machine.lanes
    sources = instr.operands[1:]
    types = [kinds] * len(sources) if isinstance(kinds, str) else kinds
    if len(types) != len(sources):
        raise lanes.unsupported(instr)
    write = lanes.writer(instr.operands[0], out or types[0])
    readers = [lanes.reader(source, kind) for source, kind in zip(sources, types)]
    if len(readers) == 1:
        (first,) = readers
        return lambda sel: write(sel, function(first(sel)))
    if len(readers) == 2:
        first, second = readers
        return lambda sel: write(sel, function(first(sel), second(sel)))
    return lambda sel: write(sel, function(*(read(sel) for read in readers)))
