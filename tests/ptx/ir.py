"""The parsed form of a PTX kernel: types, operands, instructions, variables."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "pred": "bool",
        "b8": "u1", "u8": "u1", "s8": "i1",
        "b16": "u2", "u16": "u2", "s16": "i2", "f16": "f2", "bf16": "u2",
        "b32": "u4", "u32": "u4", "s32": "i4", "f32": "f4", "f16x2": "u4", "bf16x2": "u4", "tf32": "u4",
        "b64": "u8", "u64": "u8", "s64": "i8", "f64": "f8",
    }.items()
}  # fmt: skip
RAW: dict[int, np.dtype] = {1: np.dtype("u1"), 2: np.dtype("u2"), 4: np.dtype("u4"), 8: np.dtype("u8")}


@dataclass(frozen=True)
class Reg:
    """A register (or special register) by its name, made unique over scopes; negated for a predicate written !p."""

    name: str
    negated: bool = False


@dataclass(frozen=True)
class Imm:
    """An integer literal, or a floating one given by its value."""

    value: int | float


@dataclass(frozen=True)
class FloatBits:
    """0fXXXXXXXX or 0dXXXXXXXXXXXXXXXX: the bits of a float, and its width in bytes."""

    bits: int
    size: int


@dataclass(frozen=True)
class Symbol:
    """A label, a variable or a parameter."""

    name: str


@dataclass(frozen=True)
class Vector:
    """{a, b, ...}."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Address:
    """[base + offset]."""

    base: Reg | Symbol | Imm
    offset: int = 0


@dataclass(frozen=True)
class Pair:
    """a|b, the two results of setp and shfl."""

    first: Operand
    second: Operand


Operand = Reg | Imm | FloatBits | Symbol | Vector | Address | Pair


@dataclass(frozen=True)
class Instr:
    """One instruction: opcode, dotted modifiers, operands, guard predicate, and where it stands in the text."""

    opcode: str
    mods: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Reg | None
    line: int
    text: str

    @property
    def type(self) -> str:
        """The last type among the modifiers (b32 where there is none)."""
        return next((m for m in reversed(self.mods) if m in DTYPES), "b32")

    @property
    def dtype(self) -> np.dtype:
        """The numpy dtype of `type`."""
        return DTYPES[self.type]

    def has(self, *mods: str) -> bool:
        """True where any of the modifiers is present."""
        return any(m in self.mods for m in mods)


@dataclass(frozen=True)
class Variable:
    """A .shared, .local, .global or .const variable; `count` None marks the extern dynamic shared array."""

    name: str
    space: str
    align: int
    type: str
    count: int | None
    init: tuple[int | float, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes, 0 for the dynamic array."""
        return (self.count or 0) * DTYPES[self.type].itemsize


@dataclass(frozen=True)
class Param:
    """A kernel parameter."""

    name: str
    type: str
    count: int = 1


@dataclass
class Entry:
    """One .entry: parameters, registers, variables in scope, code and labels (name to index into the code)."""

    name: str
    params: tuple[Param, ...]
    registers: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    code: list[Instr] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    max_threads: int = 1024

    @property
    def title(self) -> str:
        """The name without numba's mangling (_ZN, then each part after its length, then ABI tags)."""
        rest, found = self.name[3:] if self.name.startswith("_ZN") else "", self.name
        while match := re.match(r"(\d+)", rest):
            end = match.end() + int(match.group(1))
            found, rest = rest[match.end() : end], rest[end:]
        return found


def operand_registers(operand: Operand) -> list[str]:
    """Names of all registers in an operand."""
    if isinstance(operand, Reg):
        return [operand.name]
    if isinstance(operand, Vector):
        return [name for item in operand.items for name in operand_registers(item)]
    if isinstance(operand, Address):
        return operand_registers(operand.base)
    if isinstance(operand, Pair):
        return operand_registers(operand.first) + operand_registers(operand.second)
    return []
