"""Which buffers are kept in memory in 16 bits (precision="float16" or "bfloat16").

Those are the temps of float32 that products and convolutions read: they are read many times, tile by tile. A value is rounded
once, when it is stored, and every reader gets the rounded one; all arithmetic, and every sum, is float32. Everything that outlives
a step (parameters, states, inputs, outputs) and every temp that no product reads stays float32.

Kernels are written as if all were float32: what a pointer leads to is known from its type (device_storage.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fusegraph.ir.loops import Loop, Program
from fusegraph.ir.scalar import walk

NARROW = ("float16", "bfloat16")
Narrow = Mapping[str, str]  # buffer -> the type of its elements in memory

_TWO_BYTES = np.dtype(np.float16)


def narrow_buffers(program: Program, precision: str) -> dict[str, str]:
    """The buffers that are kept in 16 bits: operands of products, but for those that are added to where they lie."""
    if precision not in NARROW:
        return {}
    operands = {name for loop in program.loops if loop.schedule == "contract" for name in _operands(loop)}
    stores = (store for loop in program.loops for stage in loop.stages for store in stage.stores)
    sums = {store.buffer for store in stores if store.mode == "add"}
    return {
        name: precision
        for name, buffer in program.buffers.items()
        if name in operands and name not in sums and buffer.role == "temp" and buffer.dtype.name == "float32"
    }


def _operands(loop: Loop) -> set[str]:
    """The buffers that a product's factors are read from."""
    values = [reduce.value for stage in loop.stages for reduce in stage.reduces]
    return {node.attribute.buffer for node in walk(values) if node.op == "load"}


def as_in_memory(program: Program, narrow: Narrow) -> Program:
    """The program with types of the right size: for plans of memory and counts of bytes, not for arithmetic."""
    buffers = {name: replace(b, dtype=_TWO_BYTES) if name in narrow else b for name, b in program.buffers.items()}
    return replace(program, buffers=buffers)
