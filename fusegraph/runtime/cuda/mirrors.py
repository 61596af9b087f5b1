"""Host arrays with a copy in device memory: parameters, optimizer state, outputs that stay on the GPU.

A mirror is found by its array. `current`: the device holds what the host holds, or newer; `newer`: the host's values are old.
Who looks at the array of a tensor whose device copy is newer gets it copied back first (see residency.py).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fusegraph.errors import DeviceError
from fusegraph.runtime.cuda.device import Device

Array = np.ndarray[Any, Any]
_of_array: dict[int, Mirror] = {}


class Looks:
    """Counts how often values of state on the device were looked at, or replaced: what was known of it may be wrong."""

    count = 0


looks = Looks()


def _nobody() -> None:
    return None


class Mirror:
    """Device memory that stands for an array. `owner`: keeps foreign memory alive; None: the memory is the mirror's own.

    fixed: the address is worth recording in a graph (state; not an output, which is another array at each call).
    """

    def __init__(self, device: Device, array: Array, address: int, owner: Any = None, fixed: bool = True) -> None:
        self.device, self.address, self.nbytes = device, address, array.nbytes
        self.current = self.newer = False
        self.owner, self.fixed = owner, fixed
        self._released = False
        self.watcher: Callable[[], Any] = _nobody  # the tensor that is watched, if it still lives
        key = id(array)
        self._array = weakref.ref(array, lambda _: self._forget(key))
        _of_array[key] = self
        device.hold(self)

    @property
    def array(self) -> Array:
        """The host array."""
        array = self._array()
        assert array is not None
        return array

    def _forget(self, key: int) -> None:
        """The array is gone (called by the garbage collector, in the middle of anything)."""
        if _of_array.get(key) is self:
            del _of_array[key]
        if self.owner is None and not self._released:
            address, nbytes, device = self.address, self.nbytes, self.device
            device.discard(lambda: device.release(address, nbytes))
        self._released, self.owner = True, None

    def upload(self) -> None:
        """Queue: host to device, unless the device is current. The array must not change until the stream is through."""
        if not self.current and self.nbytes:
            self.device.driver.copy_in(self.address, address_of(self.array), self.nbytes)

    def drop(self) -> None:
        """The array has no copy on the device any more."""
        array = self._array()
        if array is not None:
            self._forget(id(array))

    def close(self) -> None:
        """Copy back what is newer, and give the memory back: the device is being closed."""
        array = self._array()
        if array is None:
            return
        fetch([self])
        self.current = False
        from fusegraph.runtime.cuda.residency import unwatch

        if (tensor := self.watcher()) is not None:
            unwatch(tensor)
        self._forget(id(array))


def address_of(array: Array) -> int:
    """The address of an array's first element."""
    return array.ctypes.data  # type: ignore[no-any-return]


def owner_of(array: Array) -> Array:
    """The array that mirrors are kept for: that whose memory `array` shows, all of it, in another shape."""
    base = array.base
    while isinstance(base, np.ndarray) and base.nbytes == array.nbytes and base.dtype == array.dtype:
        array, base = base, base.base
    return array


def find(array: Array) -> Mirror | None:
    """The mirror of an array (or of what it is a reshaped view of), if it has one."""
    return _of_array.get(id(owner_of(array)))


def mirror_of(device: Device, array: Array) -> Mirror:
    """The mirror of an array on this device, made if need be; nothing is copied. Raises DeviceError if there is no room."""
    known = find(array)
    if known is not None and known.device is device and (known.current or known.owner is None):
        return known
    if known is not None:
        fetch([known])  # raises DeviceError if its device is lost, and the values with it
        known.drop()  # of a device that is gone, or foreign memory that the host's values must not be written to
    return Mirror(device, owner_of(array), device.alloc(array.nbytes))


def fetch(mirrors: Iterable[Mirror]) -> None:
    """Copy back what is newer on the device. Raises DeviceError if the device is lost, and the values with it."""
    stale = [mirror for mirror in mirrors if mirror.newer]
    if not stale:
        return
    device = stale[0].device
    try:
        with device.using() as driver:
            for mirror in stale:
                if mirror.nbytes:
                    driver.copy_out(address_of(mirror.array), mirror.address, mirror.nbytes)
            driver.synchronise()
    except DeviceError as error:
        shapes = ", ".join(f"{m.array.dtype.name}{list(m.array.shape)}" for m in stale[:3])
        raise DeviceError(
            f"values of {len(stale)} tensor(s) ({shapes}) were on the GPU and cannot be read any more: {error}; load the last "
            "checkpoint in a new process",
            lost=True,
        ) from None
    for mirror in stale:
        mirror.newer = False
