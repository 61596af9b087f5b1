"""The memories of a launch: global arrays with guard gaps, shared memory a block, local frames a thread.

Every memory takes int64 addresses relative to its window and answers raw unsigned elements of shape (lanes, count).
Out-of-bounds, misaligned and uninitialised accesses are errors; races are left to `ordering`, traffic to `counters`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .counters import Counters
from .errors import GlobalRace, LaunchError, Misaligned, OutOfBounds, SharedRace, Uninitialised
from .ir import DTYPES, RAW, Variable
from .lanes import POISON, Lanes, Sel
from .ordering import Clock, RaceDetector

GLOBAL_BASE = 0x10_0000_0000
LOCAL_WINDOW = 0x7E00_0000_0000
SHARED_WINDOW = 0x7F00_0000_0000
ALIGN = 256
GAP = 256  # bytes that belong to nobody between two global arrays
SHARED_GAP = 128  # the same between shared variables; a multiple of the banks, so that conflicts do not change
DEFINED = {1: 0x01, 2: 0x0101, 4: 0x01010101, 8: 0x0101010101010101}  # flags of elements whose bytes are all defined
STATIC_SHARED_LIMIT = 48 * 1024
SHARED_LIMIT = 227 * 1024


@dataclass(frozen=True)
class Placed:
    """An array argument that begins `offset` bytes after an aligned address, as a view into a larger array does.

    defined: for each byte whether something was written to it; reading others is an error. None: all were. Updated.
    """

    array: np.ndarray
    offset: int = 0
    name: str = ""
    defined: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not self.array.flags.c_contiguous:
            shape, strides = self.array.shape, self.array.strides
            raise LaunchError(f"array arguments must be C-contiguous, not {shape} with strides {strides}")


def _host_span(array: np.ndarray) -> tuple[int, int]:
    """Where a C-contiguous array lies in the host's memory."""
    start = array.__array_interface__["data"][0]
    return start, start + array.nbytes


def _overlapping(arrays: Sequence[Placed]) -> list[list[int]]:
    """The numbers of the arrays, in groups that share memory; groups in the order of their first member."""
    groups: list[list[int]] = []
    end = -1
    for k in sorted(range(len(arrays)), key=lambda k: (_host_span(arrays[k].array), k)):
        start, stop = _host_span(arrays[k].array)
        if start < end and stop > start:
            groups[-1].append(k)
        else:
            groups.append([k])
        end = max(end, stop)
    return sorted((sorted(group) for group in groups), key=lambda group: group[0])


def _describe(group: list[Placed]) -> str:
    """Arguments that share a region, in words."""
    return " and ".join(f"{p.name} ({p.array.dtype.name}{list(p.array.shape)}, {p.array.nbytes} bytes)" for p in group)


class _Memory:
    """Flat bytes with views of each element size."""

    def __init__(self, lanes: Lanes, nbytes: int) -> None:
        self.lanes = lanes
        self.bytes = np.zeros(-(-nbytes // 16) * 16, np.uint8)
        self.views = {size: self.bytes.view(dtype) for size, dtype in RAW.items()}

    def check_alignment(self, name: str, address: np.ndarray, nbytes: int, sel: Sel) -> None:
        """Raise Misaligned where an address is not a multiple of the access."""
        wrong = address & (nbytes - 1)
        if wrong.any():
            k = int(np.flatnonzero(wrong)[0])
            text = f"misaligned {name} access: {nbytes} bytes at address {int(address[k]):#x}"
            raise self.lanes.fault(Misaligned, text, int(self.lanes.ids(sel)[k]))

    @staticmethod
    def spread(first: np.ndarray, count: int) -> np.ndarray:
        """Element numbers first, first + 1, ... of a vector access, flat."""
        return first if count == 1 else (first[:, None] + np.arange(count)).reshape(-1)


class GlobalMemory(_Memory):
    """All arrays of a launch in one buffer; `finish` copies what was stored back to them."""

    def __init__(self, lanes: Lanes, clock: Clock, counters: Counters) -> None:
        self.arrays: list[tuple[int, Placed]] = []
        self.regions: list[tuple[int, int, list[Placed]]] = []
        self.top = 0
        self.clock, self.counters = clock, counters
        self.lanes = lanes

    def add(self, arrays: Sequence[Placed]) -> list[int]:
        """Reserve space for arrays; returns their addresses. Arrays that overlap on the host overlap here too."""
        addresses = [0] * len(arrays)
        for group in _overlapping(arrays):
            first = min(_host_span(arrays[k].array)[0] for k in group)
            start, end = self.top, self.top
            for k in group:
                placed = arrays[k]
                base = start + placed.offset + _host_span(placed.array)[0] - first
                end = max(end, base + placed.array.nbytes)
                self.arrays.append((base, placed))
                addresses[k] = GLOBAL_BASE + base
            self.regions.append((start + min(arrays[k].offset for k in group), end, [arrays[k] for k in group]))
            self.top = -(-(end + GAP) // ALIGN) * ALIGN
        return addresses

    def freeze(self, races: bool) -> None:
        """Allocate the buffer and copy the arrays in."""
        super().__init__(self.lanes, self.top + GAP)
        for base, placed in self.arrays:
            array = placed.array
            self.bytes[base : base + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._freeze_defined()
        self.starts = np.array([start for start, _, _ in self.regions] or [0], np.int64)
        self.ends = np.array([end for _, end, _ in self.regions] or [0], np.int64)
        writeable = [any(p.array.flags.writeable for p in group) for _, _, group in self.regions]
        self.readonly = ~np.array(writeable or [False])
        self.cell = min(
            [4] + [p.array.itemsize for _, p in self.arrays if p.array.itemsize and p.array.flags.writeable]
        )
        self.races = (
            RaceDetector(self.lanes, self.clock, len(self.bytes) // self.cell, GlobalRace, False) if races else None
        )
        self.counters.watch(len(self.bytes))

    def _freeze_defined(self) -> None:
        """For each byte whether it was written to, seen as elements of each size too; None where all were."""
        self.defined: dict[int, np.ndarray] | None = None
        if all(placed.defined is None for _, placed in self.arrays):
            return
        flags = np.ones(len(self.bytes), bool)
        for base, placed in self.arrays:
            if placed.defined is not None:
                flags[base : base + placed.array.nbytes] = placed.defined
        self.defined = {size: flags.view(dtype) for size, dtype in RAW.items()}

    def finish(self) -> None:
        """Copy the buffer back into the writable arrays."""
        for base, placed in self.arrays:
            if placed.defined is not None and self.defined is not None:
                placed.defined[...] = self.defined[1][base : base + placed.array.nbytes] != 0
            if placed.array.flags.writeable:
                raw = self.bytes[base : base + placed.array.nbytes]
                placed.array.reshape(-1)[...] = raw.view(placed.array.dtype)

    def locate(self, address: np.ndarray, nbytes: int, sel: Sel, store: bool) -> np.ndarray:
        """Offsets into the buffer, after the checks of bounds, alignment and permission."""
        offset = address - GLOBAL_BASE
        self.check_alignment("global", offset, nbytes, sel)
        k = np.searchsorted(self.starts, offset, side="right") - 1
        wrong = (k < 0) | (offset + nbytes > self.ends[k])
        if wrong.any():
            self._out_of_bounds(offset, nbytes, sel, int(np.flatnonzero(wrong)[0]))
        if store and self.readonly[k].any():
            j = int(np.flatnonzero(self.readonly[k])[0])
            name = _describe(self.regions[int(k[j])][2])
            raise self.lanes.fault(OutOfBounds, f"store to read-only {name}", int(self.lanes.ids(sel)[j]))
        return offset

    def _out_of_bounds(self, offset: np.ndarray, nbytes: int, sel: Sel, j: int) -> None:
        at = int(offset[j])
        k = int(np.argmin(np.where(at >= self.starts, at - self.starts, self.starts - at + (1 << 40))))
        base, _, group = self.regions[k]
        text = f"global access out of bounds: {nbytes} bytes at byte {at - base} of {_describe(group)}"
        raise self.lanes.fault(OutOfBounds, text, int(self.lanes.ids(sel)[j]))

    def _log(self, kind: str, offset: np.ndarray, nbytes: int, sel: Sel) -> None:
        if self.races:
            per = max(1, nbytes // self.cell)
            self.races.access(kind, self.spread(offset // self.cell, per), sel, per)

    def load(self, address: np.ndarray, size: int, count: int, sel: Sel) -> np.ndarray:
        """Elements of `size` bytes, shape (lanes, count)."""
        offset = self.locate(address, size * count, sel, False)
        self.counters.count_global("load", offset, size * count, sel)
        self._log("read", offset, size * count, sel)
        cells = self.spread(offset // size, count)
        if self.defined is not None:
            self._check_defined(size, cells, count, sel)
        return self.views[size][cells].reshape(-1, count)

    def _check_defined(self, size: int, cells: np.ndarray, count: int, sel: Sel) -> None:
        assert self.defined is not None
        wrong = self.defined[size][cells] != DEFINED[size]
        if wrong.any():
            k = int(np.flatnonzero(wrong)[0])
            at = int(cells[k]) * size
            start, _, group = self.regions[int(np.searchsorted(self.starts, at, side="right")) - 1]
            text = f"uninitialised global memory read at byte {at - start} of {_describe(group)}"
            raise self.lanes.fault(Uninitialised, text, int(self.lanes.ids(sel)[k // count]))

    def store(self, address: np.ndarray, values: np.ndarray, sel: Sel) -> None:
        """Store raw elements of shape (lanes, count)."""
        size, count = values.itemsize, values.shape[1]
        offset = self.locate(address, size * count, sel, True)
        self.counters.count_global("store", offset, size * count, sel)
        self._log("write", offset, size * count, sel)
        cells = self.spread(offset // size, count)
        self.views[size][cells] = values.reshape(-1)
        if self.defined is not None:
            self.defined[size][cells] = DEFINED[size]

    def atomic_cells(self, address: np.ndarray, size: int, sel: Sel) -> tuple[np.ndarray, np.ndarray]:
        """The view to update and the index of each lane's element, after checks, logged as an atomic access."""
        offset = self.locate(address, size, sel, True)
        self.counters.count_global("atomic", offset, size, sel)
        self._log("atomic", offset, size, sel)
        if self.defined is not None:
            self._check_defined(size, offset // size, 1, sel)
        return self.views[size], offset // size


class SharedMemory(_Memory):
    """One copy a block of all .shared variables, with gaps between them; the dynamic array comes last."""

    def __init__(
        self,
        lanes: Lanes,
        clock: Clock,
        counters: Counters,
        variables: list[Variable],
        dynamic: int,
        cell: int,
        races: bool,
    ) -> None:
        static = sum(v.nbytes for v in variables)
        if static > STATIC_SHARED_LIMIT or static + dynamic > SHARED_LIMIT:
            text = f"{static} bytes of static and {dynamic} of dynamic shared memory"
            raise LaunchError(
                f"{lanes.entry.title}: {text}; the limits are {STATIC_SHARED_LIMIT} and {SHARED_LIMIT} in all"
            )
        spans, top = [], 0
        for variable in sorted(variables, key=lambda v: v.count is None):
            lanes.symbols[variable.name] = top
            nbytes = dynamic if variable.count is None else variable.nbytes
            spans.append((top, nbytes))
            if variable.count is not None:
                top = -(-(top + nbytes + SHARED_GAP) // SHARED_GAP) * SHARED_GAP
        self.stride = -(-(max([a + n for a, n in spans], default=0) + SHARED_GAP) // SHARED_GAP) * SHARED_GAP
        super().__init__(lanes, self.stride * lanes.blocks)
        self.counters, self.cell = counters, cell
        self.valid = np.zeros(self.stride, bool)
        for start, nbytes in spans:
            self.valid[start : start + nbytes] = True
        cells = len(self.bytes) // cell
        self.written = np.zeros(cells, bool)
        self.races = RaceDetector(lanes, clock, cells, SharedRace, True) if races else None

    def locate(self, address: np.ndarray, nbytes: int, sel: Sel) -> np.ndarray:
        """Offsets into the bytes of all blocks, after the checks of bounds and alignment."""
        low, high = int(address.min(initial=0)), int(address.max(initial=0))
        inside = low >= 0 and high + nbytes <= self.stride
        wrong = ~(self.valid[address] & self.valid[address + nbytes - 1]) if inside else None
        if wrong is None or wrong.any():
            if wrong is None:
                wrong = (address < 0) | (address + nbytes > self.stride)
            k = int(np.flatnonzero(wrong)[0])
            text = f"shared access out of bounds: {nbytes} bytes at shared address {int(address[k])}"
            raise self.lanes.fault(OutOfBounds, text, int(self.lanes.ids(sel)[k]))
        self.check_alignment("shared", address, nbytes, sel)
        return self.lanes.block_of[sel] * self.stride + address

    def _log(self, kind: str, offset: np.ndarray, nbytes: int, sel: Sel) -> None:
        per = max(1, nbytes // self.cell)
        cells = self.spread(offset // self.cell, per)
        if kind != "write" and not self.written[cells].all():
            k = int(np.flatnonzero(~self.written[cells])[0]) // per
            text = f"uninitialised shared memory read at shared address {int(offset[k]) % self.stride}"
            raise self.lanes.fault(Uninitialised, text, int(self.lanes.ids(sel)[k]))
        if kind != "read":
            self.written[cells] = True
        if self.races:
            self.races.access(kind, cells, sel, per)

    def load(self, address: np.ndarray, size: int, count: int, sel: Sel) -> np.ndarray:
        """Elements of `size` bytes, shape (lanes, count)."""
        offset = self.locate(address, size * count, sel)
        self.counters.count_shared("load", address, size * count, sel)
        self._log("read", offset, size * count, sel)
        return self.views[size][self.spread(offset // size, count)].reshape(-1, count)

    def store(self, address: np.ndarray, values: np.ndarray, sel: Sel) -> None:
        """Store raw elements of shape (lanes, count)."""
        size, count = values.itemsize, values.shape[1]
        offset = self.locate(address, size * count, sel)
        self.counters.count_shared("store", address, size * count, sel)
        self._log("write", offset, size * count, sel)
        self.views[size][self.spread(offset // size, count)] = values.reshape(-1)

    def expect(self, address: np.ndarray, nbytes: int, sel: Sel) -> None:
        """An asynchronous copy is on its way here: a write from now on, whose data nobody may read before it has landed."""
        offset = self.locate(address, nbytes, sel)
        self._log("write", offset, nbytes, sel)
        per = max(1, nbytes // self.cell)
        self.written[self.spread(offset // self.cell, per)] = False

    def atomic_cells(self, address: np.ndarray, size: int, sel: Sel) -> tuple[np.ndarray, np.ndarray]:
        """As for global memory."""
        offset = self.locate(address, size, sel)
        self.counters.count_shared("atomic", address, size, sel)
        self._log("atomic", offset, size, sel)
        return self.views[size], offset // size


class LocalMemory(_Memory):
    """A frame a thread."""

    def __init__(self, lanes: Lanes, variables: list[Variable]) -> None:
        top = 16  # address 0 belongs to nobody
        for variable in variables:
            top = -(-top // variable.align) * variable.align
            lanes.symbols[variable.name] = top
            top += variable.nbytes
        self.limit = top
        self.stride = -(-top // 16) * 16
        super().__init__(lanes, self.stride * lanes.count)
        self.views[4][:] = POISON[4]

    def locate(self, address: np.ndarray, nbytes: int, sel: Sel) -> np.ndarray:
        """Offsets into the frames of all lanes, after the checks."""
        wrong = (address < 16) | (address + nbytes > self.limit)
        if wrong.any():
            k = int(np.flatnonzero(wrong)[0])
            text = f"local access out of bounds: {nbytes} bytes at local address {int(address[k])}"
            raise self.lanes.fault(OutOfBounds, text, int(self.lanes.ids(sel)[k]))
        self.check_alignment("local", address, nbytes, sel)
        return self.lanes.ids(sel) * self.stride + address

    def load(self, address: np.ndarray, size: int, count: int, sel: Sel) -> np.ndarray:
        """Elements of `size` bytes, shape (lanes, count)."""
        offset = self.locate(address, size * count, sel)
        return self.views[size][self.spread(offset // size, count)].reshape(-1, count)

    def store(self, address: np.ndarray, values: np.ndarray, sel: Sel) -> None:
        """Store raw elements of shape (lanes, count)."""
        size, count = values.itemsize, values.shape[1]
        offset = self.locate(address, size * count, sel)
        self.views[size][self.spread(offset // size, count)] = values.reshape(-1)


def constant_array(variable: Variable) -> np.ndarray:
    """The read-only (for .const) array behind a module variable with an initial value."""
    array = np.zeros(variable.count or 1, DTYPES[variable.type])
    for k, value in enumerate(variable.init or ()):
        array[k] = value
    array.flags.writeable = variable.space != "const"
    return array
