"""A GPU's driver in host memory, which finds what a GPU would not tell. Kernels run by the PTX interpreter (tests/ptx).

Work is queued, and done when the stream is waited for. Found: host memory that changes between the queueing of a copy and the
copy; results that are read too early (they hold rubbish until then); memory, kernels and graphs used after they were freed,
freed twice, or never; allocation while a graph is recorded; calls by a thread without the context. Failures can be injected.
"""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from fusegraph.errors import DeviceError

Array = np.ndarray[Any, Any]
RUBBISH_DEVICE, RUBBISH_HOST = 0xA5, 0xCB
ALIGN = 256


class Misuse(AssertionError):
    """The runtime has done what it must not do."""


class Block:
    """Memory of an address range."""

    def __init__(self, nbytes: int, fill: int) -> None:
        whole = np.full(nbytes + ALIGN, fill, np.uint8)
        start = -whole.ctypes.data % ALIGN
        self.bytes = whole[start : start + nbytes]
        self.address = int(self.bytes.ctypes.data)


@lru_cache(maxsize=1024)
def parsed(text: str) -> Any:
    """A PtxKernel: parsed once, launched often."""
    from tests.ptx import PtxKernel

    return PtxKernel(text)


class Kernel:
    """A loaded kernel."""

    def __init__(self, text: str, entry: str) -> None:
        self.entry, self.live = entry, True
        self.code = parsed(text)
        self.cell = _smallest_access(self.code)


class Graph:
    """Recorded work."""

    def __init__(self, work: list[tuple[Any, ...]]) -> None:
        self.work, self.live = work, True


class EmulatedDriver:
    """See fusegraph.runtime.cuda.driver.Driver.

    capacity   bytes of device memory
    refuse     calls that fail from now on without harm: {"alloc": 3} fails the third allocation ("alloc_host", "launch", "load")
    fault      the number of the kernel, counted from now on, that makes an illegal access: the device is lost
    counts     what was done: launches, graphs, allocations, bytes in and out
    """

    image_kind = "emulated"

    def __init__(
        self, capability: tuple[int, int] = (9, 0), capacity: int = 1 << 30, graphs: bool = True, races: bool = False
    ) -> None:
        self._capability, self.capacity, self._graphs, self._races = capability, capacity, graphs, races
        self.device: dict[int, Block] = {}
        self.host: dict[int, Block] = {}
        self.freed: list[Block] = []  # kept, so that no address is used twice
        self.queue: list[tuple[Any, ...]] = []
        self.recording: list[tuple[Any, ...]] | None = None
        self.live_graphs: set[Graph] = set()
        self.live_kernels: set[Kernel] = set()
        self.refuse: dict[str, int] = {}
        self.fault = 0
        self.lost = ""
        self.counts: Counter[str] = Counter()
        self._thread = threading.local()

    # -- checks -------------------------------------------------------------------------------------------------------

    def _enter(self, name: str, recordable: bool = True) -> None:
        if not getattr(self._thread, "current", False):
            raise Misuse(f"{name} by a thread that has not made the context current")
        if self.lost:
            raise DeviceError(f"{name}: {self.lost}", lost=True)
        if not recordable and self.recording is not None:
            raise Misuse(f"{name} while a graph is recorded")
        if name in self.refuse:
            self.refuse[name] -= 1
            if self.refuse[name] <= 0:
                del self.refuse[name]
                raise DeviceError(f"{name}: refused on purpose", out_of_memory=name.startswith("alloc"))

    def _region(self, address: int, nbytes: int, what: str) -> Array:
        """The device memory from an address to the end of its allocation."""
        for block in self.device.values():
            at = address - block.address
            if 0 <= at < max(len(block.bytes), 1):
                if at + nbytes > len(block.bytes):
                    raise Misuse(f"{what}: {nbytes} bytes at {at} of an allocation of {len(block.bytes)}")
                return block.bytes[at:]
        if any(0 <= address - block.address < len(block.bytes) for block in self.freed):
            raise Misuse(f"{what}: device memory that was freed")
        raise Misuse(f"{what}: no device memory at {address:#x}")

    def check_clean(self) -> None:
        """Raise Misuse for whatever was not given back."""
        left = {
            "device memory": self.device,
            "pinned memory": self.host,
            "graphs": self.live_graphs,
            "kernels": self.live_kernels,
            "queued work": self.queue,
        }
        found = [f"{len(things)} of {name}" for name, things in left.items() if things]
        if found:
            raise Misuse(f"not given back: {', '.join(found)}")

    # -- the device ---------------------------------------------------------------------------------------------------

    def name(self) -> str:
        """The card's name."""
        return "emulated GPU"

    def capability(self) -> tuple[int, int]:
        """As given."""
        return self._capability

    def memory(self) -> tuple[int, int]:
        """(free, all) bytes."""
        return self.capacity - sum(len(b.bytes) for b in self.device.values()), self.capacity

    def make_current(self) -> None:
        """This thread may call the rest."""
        self._thread.current = True

    def image(self, ptx: str, target: str) -> bytes:
        """The text itself."""
        assert f".target {target}" in ptx, "compiled for another target"
        return ptx.encode()

    def load(self, image: bytes, entry: str) -> Kernel:
        """Parse it."""
        self._enter("load", recordable=False)
        kernel = Kernel(image.decode(), entry)
        self.live_kernels.add(kernel)
        self.counts["loads"] += 1
        return kernel

    def unload(self, kernel: Kernel) -> None:
        """Must be live, and not queued."""
        self._enter("unload", recordable=False)
        if not kernel.live or any(kernel in work for work in self.queue):
            raise Misuse(f"{kernel.entry} unloaded twice, or while it is queued")
        kernel.live = False
        self.live_kernels.discard(kernel)

    # -- memory -------------------------------------------------------------------------------------------------------

    def alloc(self, nbytes: int) -> int:
        """New device memory, full of rubbish."""
        self._enter("alloc", recordable=False)
        if nbytes <= 0:
            raise Misuse(f"an allocation of {nbytes} bytes")
        if nbytes > self.memory()[0]:
            raise DeviceError("alloc: out of memory", out_of_memory=True)
        block = Block(nbytes, RUBBISH_DEVICE)
        self.device[block.address] = block
        self.counts["allocations"] += 1
        return block.address

    def free(self, address: int) -> None:
        """Must be live, and not in use by what is queued."""
        self._enter("free", recordable=False)
        if self.queue:
            raise Misuse("device memory freed while work is queued")
        if address not in self.device:
            raise Misuse("device memory freed twice, or not at its start")
        self.freed.append(self.device.pop(address))

    def alloc_host(self, nbytes: int) -> int:
        """New pinned memory, full of rubbish."""
        self._enter("alloc_host", recordable=False)
        block = Block(nbytes, RUBBISH_HOST)
        self.host[block.address] = block
        return block.address

    def free_host(self, address: int) -> None:
        """Must be live."""
        self._enter("free_host", recordable=False)
        if self.queue:
            raise Misuse("pinned memory freed while work is queued")
        if address not in self.host:
            raise Misuse("pinned memory freed twice")
        self.freed.append(self.host.pop(address))

    def memset(self, address: int, value: int, nbytes: int) -> None:
        """Queue it."""
        self._enter("memset")
        self._add("memset", address, value, nbytes)

    def copy_in(self, device: int, host: int, nbytes: int) -> None:
        """Queue it, and remember what the host memory holds."""
        self._enter("copy_in")
        self._add("in", device, host, nbytes)

    def copy_out(self, host: int, device: int, nbytes: int) -> None:
        """Queue it; until it is done, the host memory holds rubbish."""
        self._enter("copy_out")
        self._add("out", host, device, nbytes)

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Queue it."""
        self._enter("copy")
        self._add("copy", to, source, nbytes)

    # -- running ------------------------------------------------------------------------------------------------------

    def arguments(self, addresses: Sequence[int]) -> tuple[int, ...]:
        """As they are."""
        return tuple(addresses)

    def launch(self, kernel: Kernel, grid: Any, block: Any, arguments: tuple[int, ...]) -> None:
        """Queue it."""
        self._enter("launch")
        self._add("kernel", kernel, grid, block, arguments)

    def begin_capture(self) -> bool:
        """Record from now on."""
        self._enter("begin_capture", recordable=False)
        if self._graphs:
            self.recording = []
        return self._graphs

    def end_capture(self) -> Graph:
        """What was recorded."""
        self._enter("end_capture")
        if self.recording is None:
            raise Misuse("nothing is recorded")
        graph, self.recording = Graph(self.recording), None
        self.live_graphs.add(graph)
        self.counts["captures"] += 1
        return graph

    def abandon_capture(self) -> None:
        """Forget what was recorded."""
        self.recording = None

    def launch_graph(self, graph: Graph) -> None:
        """Queue all of it."""
        self._enter("launch_graph", recordable=False)
        if not graph.live:
            raise Misuse("a graph launched after it was freed")
        for work in graph.work:
            self._add(*work)
        self.counts["graphs"] += 1

    def free_graph(self, graph: Graph) -> None:
        """Must be live."""
        self._enter("free_graph", recordable=False)
        if not graph.live:
            raise Misuse("a graph freed twice")
        graph.live = False
        self.live_graphs.discard(graph)

    def synchronise(self) -> None:
        """Do all that is queued."""
        self._enter("synchronise", recordable=False)
        work, self.queue = self.queue, []
        for item in work:
            self._perform(item)

    def wait_for(self, stream: int) -> None:
        """Other streams are always through."""
        self._enter("wait_for")
        self.counts["waits"] += 1

    def elapsed_ms(self, queue: Callable[[], None]) -> float:
        """No time worth reporting: one microsecond."""
        queue()
        self.synchronise()
        return 1e-3

    def _add(self, kind: str, *rest: Any) -> None:
        if self.recording is not None:
            self.recording.append((kind, *rest))
            return
        if kind == "in":
            rest = (*rest, ctypes.string_at(rest[1], rest[2]))
        elif kind == "out" and not self._is_read(rest[0], rest[2]):
            ctypes.memset(rest[0], RUBBISH_HOST, rest[2])
        self.queue.append((kind, *rest))

    def _is_read(self, host: int, nbytes: int) -> bool:
        """Whether a copy that is queued will read host memory."""
        return any(work[0] == "in" and work[2] < host + nbytes and host < work[2] + work[3] for work in self.queue)

    def _perform(self, item: tuple[Any, ...]) -> None:
        kind, *rest = item
        if kind == "kernel":
            self._run_kernel(*rest)
        elif kind == "memset":
            address, value, nbytes = rest
            self._region(address, nbytes, "memset")[:nbytes] = value
        elif kind == "in":
            device, host, nbytes, before = rest
            if ctypes.string_at(host, nbytes) != before:
                raise Misuse("host memory was changed while a copy of it was queued")
            self._region(device, nbytes, "copy to the device")[:nbytes] = np.frombuffer(before, np.uint8)
            self.counts["bytes_in"] += nbytes
        elif kind == "out":
            host, device, nbytes = rest
            found = self._region(device, nbytes, "copy to the host")[:nbytes]
            ctypes.memmove(host, found.ctypes.data, nbytes)
            self.counts["bytes_out"] += nbytes
        else:
            to, source, nbytes = rest
            found = self._region(source, nbytes, "copy from")[:nbytes].copy()
            self._region(to, nbytes, "copy to")[:nbytes] = found

    def _run_kernel(self, kernel: Kernel, grid: Any, block: Any, arguments: tuple[int, ...]) -> None:
        if not kernel.live:
            raise Misuse(f"{kernel.entry} runs after it was unloaded")
        if self.fault:
            self.fault -= 1
            if not self.fault:
                self.lost = "an illegal memory access was encountered (on purpose)"
                raise DeviceError(f"synchronise: {self.lost}", lost=True)
        regions = [self._region(address, 0, kernel.entry) for address in arguments]
        views = [region[: len(region) // 8 * 8].view(kernel.cell) for region in regions]
        kernel.code.launch(grid, block, views, races=self._races, traffic=False)
        self.counts["kernels"] += 1


def _smallest_access(kernel: Any) -> str:
    """The type in which the interpreter may look at a kernel's memory: as wide as its smallest access, at most 4 bytes."""
    sizes = [
        instr.dtype.itemsize
        for instr in kernel.entry.code
        if instr.opcode in ("ld", "st", "atom", "red") and not instr.has("shared", "param", "local")
    ]
    return f"u{min([4, *sizes])}"
