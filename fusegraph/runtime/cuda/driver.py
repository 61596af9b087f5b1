"""What the runtime needs of a GPU's driver: one thin protocol.

The real driver is `NvidiaDriver` (bindings.py). The tests run whole trainings over an emulated one, which keeps device memory in
host arrays and finds what a GPU would not tell: missing synchronisation, memory used after it was freed, leaks.

Addresses are plain integers. All work is queued on one stream and happens in the order in which it was queued.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

Dim3 = tuple[int, int, int]


class Driver(Protocol):
    """One GPU, one stream. Every method raises DeviceError for what the driver reports."""

    image_kind: str
    """"cubin" or "ptx": what `load` takes (part of cache keys)."""

    def name(self) -> str:
        """The card's name."""
        ...

    def capability(self) -> tuple[int, int]:
        """Compute capability, (9, 0) for sm_90."""
        ...

    def memory(self) -> tuple[int, int]:
        """(free, all) bytes of device memory."""
        ...

    def make_current(self) -> None:
        """To be called by a thread before any of the methods below."""
        ...

    def image(self, ptx: str, target: str) -> bytes:
        """What `load` takes, from a kernel's PTX."""
        ...

    def load(self, image: bytes, entry: str) -> Any:
        """A kernel, ready to be launched."""
        ...

    def unload(self, kernel: Any) -> None:
        """Give a kernel's memory back."""
        ...

    def alloc(self, nbytes: int) -> int:
        """The address of new device memory (a multiple of 256)."""
        ...

    def free(self, address: int) -> None:
        """Give back memory of `alloc`."""
        ...

    def alloc_host(self, nbytes: int) -> int:
        """The address of new pinned host memory."""
        ...

    def free_host(self, address: int) -> None:
        """Give back memory of `alloc_host`."""
        ...

    def memset(self, address: int, value: int, nbytes: int) -> None:
        """Queue: fill device memory with a byte."""
        ...

    def copy_in(self, device: int, host: int, nbytes: int) -> None:
        """Queue: host to device. The host memory must stay as it is until `synchronise`."""
        ...

    def copy_out(self, host: int, device: int, nbytes: int) -> None:
        """Queue: device to host. The host memory holds it after `synchronise`."""
        ...

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Queue: device to device."""
        ...

    def launch(self, kernel: Any, grid: Dim3, block: Dim3, arguments: Any) -> None:
        """Queue a kernel; `arguments` as `arguments()` has made them."""
        ...

    def arguments(self, addresses: Sequence[int]) -> Any:
        """A kernel's pointers in the form that `launch` takes, good for many launches."""
        ...

    def begin_capture(self) -> bool:
        """From now on record what is queued, do not run it. False where the driver has no graphs."""
        ...

    def end_capture(self) -> Any:
        """A graph of what was recorded, ready to be launched. Raises DeviceError if something in it cannot run."""
        ...

    def abandon_capture(self) -> None:
        """Leave off recording, after an error."""
        ...

    def launch_graph(self, graph: Any) -> None:
        """Queue all of a graph."""
        ...

    def free_graph(self, graph: Any) -> None:
        """Give a graph's memory back."""
        ...

    def synchronise(self) -> None:
        """Wait until all that was queued is done. Raises DeviceError for an error in any of it."""
        ...

    def wait_for(self, stream: int) -> None:
        """Queue: wait for what another library has queued on its stream (1 and 2: the default streams)."""
        ...

    def elapsed_ms(self, queue: Callable[[], None]) -> float:
        """The GPU's time for what `queue()` queues."""
        ...
