"""A step in the memory of a device: its kernels, its buffers, its graphs; and one call of it.

A call puts the inputs into pinned memory and launches one CUDA graph: copies in, all kernels, copies out. Parameters and states
that are resident (mirrors.py) are read and written where they lie. Everything that can fail for want of memory or because of
what the caller gave happens before the first kernel; results reach the caller's arrays after the last one.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusegraph.errors import DeviceError
from fusegraph.ir.loops import Buffer
from fusegraph.runtime.cuda.device import Device
from fusegraph.runtime.cuda.graphs import Graphs
from fusegraph.runtime.cuda.memory import Blocks
from fusegraph.runtime.cuda.mirrors import Mirror, fetch, find, mirror_of
from fusegraph.runtime.cuda.plan import CudaPlan
from fusegraph.runtime.cuda.residency import session
from fusegraph.runtime.executable import Slot
from fusegraph.runtime.guards import check_computed, check_guard

Array = np.ndarray[Any, Any]
STAYS_FROM = 64 * 1024  # bytes: an output of this size is not copied back before somebody looks at it


class LoadedStep:
    """A plan on a device. Every method is called under `device.using`."""

    def __init__(self, device: Device, plan: CudaPlan) -> None:
        self.device, self.plan = device, plan
        self.slots = {slot.name: slot for slot in plan.layout.slots}
        self.outputs = list(dict.fromkeys(plan.layout.outputs))
        self.blocks = Blocks(device, {name: nbytes_of(slot) for name, slot in self.slots.items()})
        self.graphs = Graphs(device, plan, self.blocks)
        self.last: Call | None = None  # without the caller's arrays
        layout = plan.layout
        self._guards = [(guard, _buffer(self.slots[guard.buffer])) for guard in layout.guards]
        self._looked_at = {guard.buffer for guard in layout.guards} | {n for c in layout.checks for n in c.inputs}
        device.hold(self)
        weakref.finalize(self, _give_back, device, self.graphs, self.blocks).atexit = False

    def close(self) -> None:
        """Give everything back: the device is being closed."""
        self.graphs.close()
        self.blocks.close()

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See CudaExecutable.run."""
        arrays = dict(zip(self.plan.layout.inputs, inputs, strict=True))
        self.check(arrays)
        call = Call(self, arrays)
        self.graphs.reserve(call)
        try:
            call.transfer()
            self.graphs.launch(call)
            call.finish()
        except BaseException:
            self.drain()
            raise
        results = call.results()
        call.forget()
        self.last = call
        return results

    def drain(self) -> None:
        """After an error: nothing that is still queued may read or write memory of the caller's."""
        try:
            self.device.driver.synchronise()
        except DeviceError:
            return  # the device is lost: it does nothing any more

    def check(self, arrays: dict[str, Array]) -> None:
        """Raise IndexRangeError for an index out of range (indices that only the device has are copied back to look)."""
        fetch([m for name in self._looked_at if (m := find(arrays[name])) is not None])
        for guard, buffer in self._guards:
            check_guard(guard, buffer, arrays[guard.buffer])
        for check in self.plan.layout.checks:
            check_computed(check, arrays)


def _buffer(slot: Slot) -> Buffer:
    return Buffer(slot.name, slot.shape, np.dtype(slot.dtype), slot.role)


def _give_back(device: Device, graphs: Graphs, blocks: Blocks) -> None:
    device.discard(graphs.close)
    device.discard(blocks.close)


class Call:
    """Where the buffers of one call lie.

    addresses  of buffers that are somewhere else than in the step's own memory, by name
    staged     inputs that go through pinned memory; copied: those that another place of the device has
    back       outputs (and states that are arguments) that the graph copies to pinned memory
    """

    def __init__(self, loaded: LoadedStep, arrays: dict[str, Array]) -> None:
        self.loaded, self.arrays = loaded, arrays
        self.addresses: dict[str, int] = {}
        self.staged: list[str] = []
        self.copied: dict[str, Mirror] = {}
        self.mirrors: dict[str, Mirror] = {}
        for name, array in arrays.items():
            self._place(name, array)
        states = [name for name in self.staged if name in loaded.plan.written]
        layout = loaded.plan.layout
        self.stay = tuple(name for name in loaded.outputs if self._stays(name, layout.outputs))
        self.back = (*states, *(name for name in loaded.outputs if name not in self.stay))
        self.made = {
            name: np.empty(loaded.slots[name].shape, np.dtype(loaded.slots[name].dtype)) for name in loaded.outputs
        }
        self.staying: dict[str, Mirror] = {}
        for name in self.stay:
            array = self.made[name]
            self.staying[name] = Mirror(loaded.device, array, loaded.device.alloc(array.nbytes), fixed=False)
        self.arena = loaded.device.arena(layout.arena_bytes)
        self.moves_more = bool(self.stay or self.copied)  # than the graph does

    def _place(self, name: str, array: Array) -> None:
        device, written = self.loaded.device, name in self.loaded.plan.written
        captured = session.active and id(array) in session.captured and array.flags.c_contiguous
        mirror = mirror_of(device, array) if captured else find(array)
        if mirror is None or mirror.device is not device or not (captured or mirror.current):
            if array.nbytes:
                self.staged.append(name)
        elif mirror.fixed or written:
            self.mirrors[name] = mirror
            self.addresses[name] = mirror.address
        else:
            self.copied[name] = mirror

    def _stays(self, name: str, results: Sequence[str]) -> bool:
        large = nbytes_of(self.loaded.slots[name]) >= STAYS_FROM
        return session.active and session.lazy and large and results.count(name) == 1

    @property
    def key(self) -> tuple[Any, ...]:
        """What a graph of this call depends on."""
        return (self.arena, tuple(self.addresses.items()), tuple(self.staged), self.back)

    def transfer(self) -> None:
        """Fill the pinned memory; queue what is not part of the graph: uploads of states that the host has changed."""
        blocks, driver = self.loaded.blocks, self.loaded.device.driver
        for name in self.staged:
            np.copyto(
                blocks.pinned(name, self.loaded.slots[name]), self.arrays[name].reshape(self.loaded.slots[name].shape)
            )
        for mirror in self.mirrors.values():
            mirror.upload()
        for name, mirror in self.copied.items():
            driver.copy(blocks.device_address(name), mirror.address, mirror.nbytes)

    def finish(self) -> None:
        """Wait; from then on the device's values are the right ones."""
        driver, written = self.loaded.device.driver, self.loaded.plan.written
        for name, mirror in self.staying.items():
            driver.copy(mirror.address, self.loaded.blocks.device_address(name), mirror.nbytes)
        driver.synchronise()
        for name, mirror in self.mirrors.items():
            mirror.current = True
            mirror.newer |= name in written
        for mirror in self.staying.values():
            mirror.current = mirror.newer = True

    def forget(self) -> None:
        """Let go of all arrays: the call is over."""
        self.arrays, self.made, self.staying, self.mirrors, self.copied = {}, {}, {}, {}, {}
        del self.loaded  # which keeps this

    def results(self) -> list[Array]:
        """The outputs in the graph's order, each an array of its own."""
        blocks, slots = self.loaded.blocks, self.loaded.slots
        for name in self.back:
            target = self.made[name] if name in self.made else self.arrays[name]
            if target.nbytes:
                np.copyto(target, blocks.pinned(name, slots[name]).reshape(target.shape))
        names = self.loaded.plan.layout.outputs
        return [self.made[name].copy() if name in names[:i] else self.made[name] for i, name in enumerate(names)]


def nbytes_of(slot: Slot) -> int:
    """Bytes of a buffer."""
    return int(np.prod(slot.shape, dtype=np.int64)) * np.dtype(slot.dtype).itemsize
