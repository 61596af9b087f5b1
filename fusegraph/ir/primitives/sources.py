"""Sources: values made from nothing but parameters (and, for random bits, two counters)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fusegraph.dtypes import SUPPORTED, DType, as_dtype
from fusegraph.errors import DTypeError
from fusegraph.ir.primitives.base import Array, Params, Primitive, Shape, register, require


def _infer_constant(inputs: Any, params: Params) -> tuple[Shape, DType]:
    return (), as_dtype(params["dtype"])


def _infer_iota(inputs: Any, params: Params) -> tuple[Shape, DType]:
    return (params["size"],), as_dtype(params["dtype"])


def _infer_random(inputs: Any, params: Params) -> tuple[Shape, DType]:
    key, counter = inputs
    for name, value in (("key", key), ("counter", counter)):
        require(
            value.shape == () and value.dtype == SUPPORTED["uint32"],
            f"random_bits: the {name} must be a 0-d uint32, got {value.dtype.name}{list(value.shape)}",
            DTypeError,
        )
    return params["shape"], SUPPORTED["uint32"]


PHILOX_MULTIPLIER = 0xD256D193
PHILOX_WEYL = 0x9E3779B9
PHILOX_ROUNDS = 10
_PHILOX_BLOCK = 1 << 14  # elements at a time: four times as fast as all at once


def philox(key: int, counter: int, shape: Shape) -> Array:
    """Word 0 of Philox-2x32-10 for counter words (element's number in C order, `counter`) under `key`.

    Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011). A function of its arguments alone, so
    the numbers are the same eager and compiled, and on any number of threads.
    """
    bits = np.empty(math.prod(shape), np.uint32)
    for start in range(0, bits.size, _PHILOX_BLOCK):
        _philox_block(key, counter, start, bits[start : start + _PHILOX_BLOCK])
    return bits.reshape(shape)


def _philox_block(key: int, counter: int, start: int, bits: Array) -> None:
    word = np.uint64(0xFFFFFFFF)
    low = np.arange(start, start + bits.size, dtype=np.uint64) & word
    high = np.full(bits.size, counter, np.uint64)
    for round_ in range(PHILOX_ROUNDS):
        high ^= np.uint64((key + round_ * PHILOX_WEYL) & 0xFFFFFFFF)
        low *= np.uint64(PHILOX_MULTIPLIER)
        product = low
        low = product >> np.uint64(32)
        low ^= high
        high = np.bitwise_and(product, word, out=high)
    bits[:] = low


register(
    Primitive(
        "constant",
        "source",
        _infer_constant,
        lambda value, dtype: np.asarray(value, SUPPORTED[dtype]),
        samples=lambda rng: [((), {"value": 1.5, "dtype": "float32"}), ((), {"value": 3, "dtype": "int64"})],
    )
)
register(
    Primitive(
        "iota",
        "source",
        _infer_iota,
        lambda size, dtype: np.arange(size, dtype=SUPPORTED[dtype]),
        samples=lambda rng: [
            ((), {"size": 7, "dtype": "int64"}),
            ((), {"size": 33, "dtype": "float32"}),
            ((), {"size": 0, "dtype": "int32"}),
        ],
    )
)
register(
    Primitive(
        "random_bits",
        "source",
        _infer_random,
        lambda key, counter, shape: philox(int(key), int(counter), shape),
        cost="transcendental",
        traits=frozenset({"random"}),
        samples=lambda rng: [((np.uint32(7), np.uint32(3)), {"shape": shape}) for shape in ((), (5,), (3, 37), (0,))],
    )
)
