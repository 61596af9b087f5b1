"""Arrays of other libraries on the GPU: `__cuda_array_interface__` and DLPack (kDLCUDA), in both directions, without the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusegraph.tensor import Tensor


def cuda_array_interface(tensor: Tensor) -> dict[str, Any]:
    """Version 3 of the interface. Raises AttributeError where the tensor is not on the device."""
    from fusegraph.runtime.cuda.mirrors import find
    from fusegraph.runtime.cuda.residency import raw

    array = raw(tensor)
    mirror = find(array)
    if mirror is None or not mirror.current:
        raise AttributeError("the tensor is not on the GPU")
    return {
        "shape": array.shape,
        "typestr": array.dtype.str,
        "data": (mirror.address, False),
        "strides": None,
        "version": 3,
    }
