"""The memory of a loaded step: a block on the device and one of pinned host memory, made where they are first needed."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

from fusegraph.runtime.cuda.device import Device
from fusegraph.runtime.executable import Slot

Array = np.ndarray[Any, Any]
ALIGN = 256  # what the driver aligns its own memory to; 128-bit accesses need 16


class Blocks:
    """A device buffer and a pinned buffer for each name; each is made when it is first asked for, and then stays where it is.

    Every method is called under `device.using`.
    """

    def __init__(self, device: Device, sizes: Mapping[str, int]) -> None:
        self.device, self.sizes = device, dict(sizes)
        self._on_device: dict[str, int] = {}
        self._on_host: dict[str, tuple[int, Array]] = {}

    def device_address(self, name: str) -> int:
        """Where the buffer lies on the device. Raises DeviceError if there is no room."""
        if name not in self._on_device:
            self._on_device[name] = self.device.alloc(self.sizes[name])
        return self._on_device[name]

    def pinned(self, name: str, slot: Slot) -> Array:
        """The pinned memory of a buffer, as an array."""
        return self._pinned(name)[1].view(np.dtype(slot.dtype)).reshape(slot.shape)

    def pinned_address(self, name: str) -> int:
        """Where the pinned memory of a buffer lies."""
        return self._pinned(name)[0]

    def _pinned(self, name: str) -> tuple[int, Array]:
        if name not in self._on_host:
            size = self.sizes[name]
            address = self.device.driver.alloc_host(max(size, 1))
            self._on_host[name] = address, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return self._on_host[name]

    def close(self) -> None:
        """Give everything back."""
        for name, address in self._on_device.items():
            self.device.release(address, self.sizes[name])
        for address, _ in self._on_host.values():
            self.device.driver.free_host(address)
        self._on_device.clear()
        self._on_host.clear()
