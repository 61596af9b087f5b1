"""Pointers to elements of 16 bits that kernels see as float32. Imports numba-cuda.

x[i] and load4 widen what they read, x[i] = value and store4 round to nearest, ties to even. Beyond the largest float16 (65504)
that gives an infinity; infinities and NaN stay what they are. bfloat16 has the range of float32.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba.cuda import types
from numba.cuda.datamodel import PrimitiveModel
from numba.cuda.extending import lower_builtin
from numba.cuda.models import register_model

AMPERE = (8, 0)
_INT16, _INT32, _FLOAT, _HALF = ir.IntType(16), ir.IntType(32), ir.FloatType(), ir.HalfType()


class NarrowPointer(types.CPointer):
    """kind: "float16" or "bfloat16"; instruction: whether the card rounds to bfloat16 by one instruction."""

    def __init__(self, kind: str, instruction: bool) -> None:
        super().__init__(types.float32)
        self.kind, self.instruction = kind, instruction
        self.name = f"{kind}{'' if instruction else '_by_integers'}*"

    @property
    def key(self) -> tuple[str, bool]:
        """What tells it from others."""
        return self.kind, self.instruction


@register_model(NarrowPointer)
class _NarrowPointerModel(PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _INT16.as_pointer())


def pointer_type(kind: str, capability: tuple[int, int]) -> types.CPointer:
    """The type of a pointer to elements that are `kind` in memory."""
    if kind == "float16":
        return NarrowPointer(kind, True)
    return NarrowPointer(kind, capability >= AMPERE) if kind == "bfloat16" else types.CPointer(getattr(types, kind))


def widened(builder: Any, pointer: Any, value: Any) -> Any:
    """An element as it lies behind a pointer of this type, as a value."""
    if not isinstance(pointer, NarrowPointer):
        return value
    if pointer.kind == "float16":
        return builder.fpext(builder.bitcast(value, _HALF), _FLOAT)
    return builder.bitcast(builder.shl(builder.zext(value, _INT32), _INT32(16)), _FLOAT)


def narrowed(builder: Any, pointer: Any, value: Any) -> Any:
    """A value as it lies behind a pointer of this type."""
    if not isinstance(pointer, NarrowPointer):
        return value
    if pointer.kind == "float16":
        return builder.bitcast(builder.fptrunc(value, _HALF), _INT16)
    if pointer.instruction:
        kind = ir.FunctionType(_INT16, [_FLOAT])
        return builder.call(ir.InlineAsm(kind, "cvt.rn.bf16.f32 $0, $1;", "=h,f"), [value])
    bits = builder.bitcast(value, _INT32)
    last = builder.and_(builder.lshr(bits, _INT32(16)), _INT32(1))  # ties to even
    rounded = builder.lshr(builder.add(builder.add(bits, _INT32(0x7FFF)), last), _INT32(16))
    nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(nan, _INT32(0x7FFF), rounded), _INT16)


@lower_builtin(operator.getitem, NarrowPointer, types.Integer)
def _get(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return widened(builder, signature.args[0], builder.load(builder.gep(args[0], [args[1]])))


@lower_builtin(operator.setitem, NarrowPointer, types.Integer, types.Float)
def _set(context: Any, builder: Any, signature: Any, args: Any) -> None:
    builder.store(narrowed(builder, signature.args[0], args[2]), builder.gep(args[0], [args[1]]))
