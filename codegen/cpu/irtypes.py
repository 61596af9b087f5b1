"""Types, constants and whole modules of LLVM IR, as text."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence

FAST_MATH = "contract nsz arcp reassoc"
"""Flags for arithmetic that may be re-associated. Never nnan/ninf: NaN and inf behave as in numpy."""

_ELEMENT_BYTES = {"float": 4, "double": 8, "i64": 8, "i32": 4, "i16": 2, "i8": 1, "i1": 1, "ptr": 8, "half": 2}


def element_bytes(element: str) -> int:
    """Size in bytes of a scalar type as it lies in memory; i1 is stored as one byte."""
    return _ELEMENT_BYTES[element]


def float_const(value: float, element: str) -> str:
    """The exact hexadecimal text of a constant of type ``float`` or ``double`` (inf and NaN included).

    A ``float`` constant is rounded to the nearest float first; one that overflows becomes inf.
    """
    if element == "float":
        value = _round_to_float(float(value))
    elif element != "double":
        raise ValueError(f"float_const: the element type must be float or double, not {element!r}")
    if math.isnan(value):
        return "0x7FF8000000000000"
    return f"0x{struct.unpack('<Q', struct.pack('<d', float(value)))[0]:016X}"


def _round_to_float(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def int_const(value: int | bool, element: str) -> str:
    """The text of an integer or boolean constant (``i1`` gives true/false)."""
    return ("true" if value else "false") if element == "i1" else str(int(value))


def function_attributes(vector_bits: int) -> str:
    """Attributes that make the code generator use vectors of this width (bits), and no wider or narrower ones."""
    return f'nounwind "min-legal-vector-width"="{vector_bits}" "prefer-vector-width"="{vector_bits}"'


def natural_alignment(type_: str) -> int:
    """The alignment of a type in bytes: of a vector, that of its elements."""
    element = type_.rstrip(">").split(" x ")[-1].strip()
    return element_bytes(element)


def module_text(
    globals_: Mapping[str, str], functions: Sequence[str], declarations: Sequence[str], metadata: Sequence[str]
) -> str:
    """The text of a module from the texts of what it consists of; `globals_`: definitions by name."""
    constants = [f"{'@' + name} = {definition}" for name, definition in globals_.items()]
    sections = ["\n".join(part) for part in (constants, functions, declarations, metadata) if part]
    return "\n\n".join(sections) + "\n"
