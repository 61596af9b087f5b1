"""DLPack capsules in plain ctypes: taking one apart, and making one."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusegraph.errors import DTypeError, UnsupportedError

CPU, CUDA = 1, 2  # kDLCPU, kDLCUDA
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_KINDS = {code: kind for kind, code in _CODES.items()}
_NAME, _USED = b"dltensor", b"used_dltensor"  # kept alive by this module, as capsules hold pointers to them


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("number", ctypes.c_int32)]


class _Type(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Array(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("type", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    _fields_ = [("array", _Array), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_api = ctypes.pythonapi
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(("PyCapsule_New", _api))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
_raw_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_raw_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", _api))


@dataclass(frozen=True)
class View:
    """What a capsule describes. strides: in bytes, None for C order."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...] | None
    device: tuple[int, int]


class Taken:
    """A capsule's contents, owned by this process's side: given back to the producer when this object dies."""

    def __init__(self, capsule: Any) -> None:
        """Raises UnsupportedError if the capsule is used up, or of a kind that is not known."""
        if not _valid(capsule, _NAME):
            raise UnsupportedError("not a DLPack capsule called 'dltensor', or one that has been used")
        self._address = _pointer(capsule, _NAME)
        _rename(capsule, _USED)
        self._managed = _Managed.from_address(self._address)

    def view(self) -> View:
        """What it describes. Raises DTypeError for an element type that NumPy has not."""
        array, kind = self._managed.array, self._managed.array.type
        if kind.lanes != 1 or kind.code not in _KINDS:
            raise DTypeError(f"a DLPack array of type code {kind.code} with {kind.lanes} lanes is not supported")
        letter = _KINDS[kind.code]
        dtype = np.dtype(bool if letter == "b" else f"{letter}{kind.bits // 8}")
        shape = tuple(array.shape[i] for i in range(array.ndim))
        strides = tuple(array.strides[i] * dtype.itemsize for i in range(array.ndim)) if array.strides else None
        address = (array.data or 0) + array.offset
        return View(address, shape, dtype, strides, (array.device.kind, array.device.number))

    def __del__(self) -> None:
        managed = getattr(self, "_managed", None)  # None: the capsule was refused
        if managed is not None and managed.deleter:
            _Deleter(managed.deleter)(self._address)


_given: dict[int, tuple[Any, ...]] = {}  # what must live until a consumer calls the deleter, by address


def _delete(address: int) -> None:
    _given.pop(address, None)


def _destroy(capsule: int) -> None:
    """A capsule that nobody has taken dies."""
    if _raw_valid(capsule, _NAME):
        _delete(_raw_pointer(capsule, _NAME))


_delete_c, _destroy_c = _Deleter(_delete), _Destructor(_destroy)


def capsule(address: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: tuple[int, int], owner: Any) -> Any:
    """A capsule for memory in C order; `owner` lives as long as the consumer needs the memory."""
    extents = (ctypes.c_int64 * max(len(shape), 1))(*shape)
    kind = _Type(_CODES[dtype.kind], 8 * dtype.itemsize, 1)
    array = _Array(
        address, _Device(*device), len(shape), kind, ctypes.cast(extents, ctypes.POINTER(ctypes.c_int64)), None, 0
    )
    managed = _Managed(array, None, ctypes.cast(_delete_c, ctypes.c_void_p))
    place = ctypes.addressof(managed)
    _given[place] = (managed, extents, owner)
    return _new(place, _NAME, ctypes.cast(_destroy_c, ctypes.c_void_p))
