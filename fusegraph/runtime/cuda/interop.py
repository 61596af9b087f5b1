"""Arrays of other libraries on the GPU (CuPy, PyTorch, numba): taken and given without going over the host.

Taken: `fg.from_dlpack(array)`, or the array itself as an argument of a function compiled for backend="cuda". Given: tensors on the
device have `__cuda_array_interface__`, and DLPack where the consumer asks for the GPU; `DeviceArray(tensor)` offers the GPU only.
Every call of a compiled function waits for the GPU, so what it gives can be read on any stream.

Memory that is given out is for reading: what a consumer writes to a tensor's device memory may be overwritten from the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fusegraph.dtypes import SUPPORTED
from fusegraph.errors import DTypeError, UnsupportedError
from fusegraph.runtime.cuda import dlpack
from fusegraph.runtime.cuda.device import current_device
from fusegraph.runtime.cuda.mirrors import Mirror, find, mirror_of
from fusegraph.runtime.cuda.residency import raw, watch
from fusegraph.tensor import Tensor

LEGACY_STREAM = 1  # how both protocols call CUDA's default stream


def on_gpu(value: Any) -> bool:
    """Whether `value` is another library's array in a GPU's memory."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return False
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[0]) == dlpack.CUDA
    return hasattr(value, "__cuda_array_interface__")


def adopt(value: Any) -> Any:
    """A tensor that shares memory with another library's array on the GPU; anything else as it is.

    Raises UnsupportedError unless the array is in C order and on this process's GPU, DTypeError for an element type that tensors
    cannot have.
    """
    if not on_gpu(value):
        return value
    return _from_dlpack(value) if hasattr(value, "__dlpack_device__") else _from_interface(value)


def _from_dlpack(value: Any) -> Tensor:
    number = int(value.__dlpack_device__()[1])
    if number:
        raise UnsupportedError(f"the array is on GPU {number}; fusegraph uses the first one: set CUDA_VISIBLE_DEVICES")
    taken = dlpack.Taken(value.__dlpack__(stream=LEGACY_STREAM))
    view = taken.view()
    return _shared(view.address, view.shape, view.dtype, view.strides, taken, LEGACY_STREAM)


def _from_interface(value: Any) -> Tensor:
    given = value.__cuda_array_interface__
    if given.get("mask") is not None:
        raise UnsupportedError("a masked array on the GPU: fill it first")
    stream = given.get("stream", LEGACY_STREAM)  # None: nothing to wait for; before version 3 nothing is said
    strides = given.get("strides")
    dtype = np.dtype(given["typestr"])
    shape = tuple(int(extent) for extent in given["shape"])
    return _shared(int(given["data"][0] or 0), shape, dtype, strides, value, stream)


def _shared(
    address: int, shape: tuple[int, ...], dtype: np.dtype[Any], strides: Any, owner: Any, stream: int | None
) -> Tensor:
    if dtype.name not in SUPPORTED:
        raise DTypeError(f"a {dtype.name}{list(shape)} array on the GPU: tensors are one of {', '.join(SUPPORTED)}")
    array = np.empty(shape, dtype)  # untouched, it takes no memory
    if array.size and strides is not None and not _in_order(tuple(strides), array):
        raise UnsupportedError(
            f"a {dtype.name}{list(shape)} array on the GPU that is not in C order (strides {tuple(strides)} bytes): make it "
            "contiguous first"
        )
    device = current_device()
    with device.using() as driver:
        if stream is not None and array.size:
            driver.wait_for(int(stream))
        mirror = Mirror(device, array, address, owner, fixed=False)
        mirror.current = mirror.newer = True
    tensor = Tensor._make(array)
    watch(tensor, mirror)
    return tensor


def _in_order(strides: tuple[int, ...], array: np.ndarray[Any, Any]) -> bool:
    """Whether strides are those of C order, where an axis has more than one element."""
    return all(
        extent == 1 or given == wanted
        for given, wanted, extent in zip(strides, array.strides, array.shape, strict=True)
    )


class DeviceArray:
    """A tensor's memory on the GPU, for other libraries (`torch.from_dlpack`, `cupy.asarray`, ...).

    A tensor that is on the host is sent there. While this object, or what was made of it, lives, so does the memory.
    """

    def __init__(self, tensor: Tensor) -> None:
        """Raises UnsupportedError that says what is missing where there is no GPU."""
        device = current_device()
        with device.using() as driver:
            array = raw(tensor)
            mirror = find(array)
            if mirror is None or mirror.device is not device or not mirror.current:
                array = tensor._value
                if not array.flags.c_contiguous:
                    array = np.ascontiguousarray(array)
                mirror = mirror_of(device, array)
                mirror.upload()
                driver.synchronise()
        self.shape, self.dtype = array.shape, array.dtype
        self._array, self._mirror, self._tensor = array, mirror, tensor

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._mirror.address if self._array.size else 0, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, 0

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        """A capsule; nothing is copied, and the values are there for any stream."""
        return dlpack.capsule(self._mirror.address, self.shape, self.dtype, (dlpack.CUDA, 0), self)


def cuda_array_interface(tensor: Tensor) -> dict[str, Any]:
    """Of a tensor that is on the device. Raises AttributeError for another one."""
    mirror = find(raw(tensor))
    if mirror is None or not mirror.current:
        raise AttributeError("__cuda_array_interface__: the tensor's values are on the host")
    return DeviceArray(tensor).__cuda_array_interface__


def device_capsule(tensor: Tensor) -> Any:
    """A DLPack capsule (kDLCUDA) of a tensor that is on the device."""
    return DeviceArray(tensor).__dlpack__()
