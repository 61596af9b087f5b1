"""Element types: numpy dtypes under the names that users write, and PyTorch's promotion between them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusegraph.errors import DTypeError

DType = np.dtype[Any]

bool_: DType = np.dtype(np.bool_)
uint8: DType = np.dtype(np.uint8)
int32: DType = np.dtype(np.int32)
int64: DType = np.dtype(np.int64)
uint32: DType = np.dtype(np.uint32)
float32: DType = np.dtype(np.float32)
float64: DType = np.dtype(np.float64)

SUPPORTED: dict[str, DType] = {d.name: d for d in (bool_, uint8, int32, int64, uint32, float32, float64)}
_NAMES: dict[DType, str] = {dtype: name for name, dtype in SUPPORTED.items()}

# What an array of another type becomes when it enters (values are kept: every target holds them all, or all that float32 can).
ENTRY_CASTS: dict[str, DType] = {"float16": float32, "int8": int32, "int16": int32, "uint16": int32, "uint64": int64}

_ORDER = ["bool", "uint8", "int32", "uint32", "int64", "float32", "float64"]


def name_of(dtype: DType) -> str:
    """`dtype.name`, which numpy works out anew each time (4 us: half of what tracing an operation takes)."""
    return _NAMES.get(dtype) or dtype.name


def as_dtype(dtype: Any) -> DType:
    """The supported dtype that `dtype` (a numpy dtype, its name, or a Python type) names.

    Raises DTypeError for anything else.
    """
    if dtype is float:
        return float32
    if dtype is int:
        return int64
    try:
        found = SUPPORTED.get(dtype if type(dtype) is str else name_of(np.dtype(dtype)))
        if found is None and type(dtype) is str:  # another of numpy's names: "f4"
            found = SUPPORTED.get(name_of(np.dtype(dtype)))
    except TypeError:
        found = None
    if found is None:
        raise DTypeError(f"dtype {dtype!r} is not supported; use one of {', '.join(SUPPORTED)}")
    return found


def is_float(dtype: DType) -> bool:
    """Whether `dtype` is a floating point type."""
    return dtype.kind == "f"


def is_integer(dtype: DType) -> bool:
    """Whether `dtype` is an integer type (bool is not one)."""
    return dtype.kind in "iu"


def promote(first: DType, second: DType) -> DType:
    """The type of an operation on `first` and `second`: the wider of two; a float wins over an integer (as PyTorch)."""
    if {first.name, second.name} == {"int32", "uint32"}:
        return int64
    return first if _ORDER.index(first.name) >= _ORDER.index(second.name) else second


def scalar_dtype(value: Any, other: DType) -> DType:
    """The type that Python scalar `value` takes beside a tensor of type `other`: scalars are weak, as in PyTorch."""
    if isinstance(value, bool):
        return other
    if isinstance(value, int):
        return other if other.kind != "b" else int64
    return other if is_float(other) else float32
