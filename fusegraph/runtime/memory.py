"""Aligned arrays, the arena of a compiled step and the placement of its buffers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fusegraph.errors import OptionError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

CACHE_LINE = 64
PAGE = 4096
_PAGE_ALIGNED_FROM = 1 << 20  # bytes; below this an aligned page would waste more than it gives


def _check_align(align: int) -> None:
    if align < 1 or align & (align - 1):
        raise OptionError(f"alignment must be a power of two, not {align}")


def _aligned_bytes(nbytes: int, align: int, zero: bool) -> np.ndarray:
    block = (np.zeros if zero else np.empty)(nbytes + align, np.uint8)
    start = -block.ctypes.data % align
    return block[start : start + nbytes]


def aligned_empty(shape: int | Sequence[int], dtype: DTypeLike, align: int = CACHE_LINE) -> np.ndarray:
    """An uninitialised C-contiguous array whose data starts at a multiple of `align` bytes.

    Raises OptionError if `align` is not a power of two, a size is negative or the dtype holds Python objects.
    """
    _check_align(align)
    sizes = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    kind = np.dtype(dtype)
    if any(size < 0 for size in sizes) or kind.hasobject:
        raise OptionError(f"cannot allocate an aligned array of shape {sizes} and dtype {kind}")
    nbytes = math.prod(int(size) for size in sizes) * kind.itemsize
    return _aligned_bytes(nbytes, align, zero=False).view(kind).reshape(sizes)


class Arena:
    """One zero-initialised block that all intermediate buffers of a step live in.

    Cache-line aligned; from 1 MB on page aligned. The memory lives as long as this instance or a view of it.
    """

    def __init__(self, nbytes: int) -> None:
        if nbytes < 0:
            raise OptionError(f"an arena needs a size of 0 bytes or more, not {nbytes}")
        align = PAGE if nbytes >= _PAGE_ALIGNED_FROM else CACHE_LINE
        # at least a byte: numpy does not advance the address of an empty slice
        self._bytes = _aligned_bytes(max(nbytes, 1), align, zero=True)
        self.nbytes = nbytes
        self.address: int = self._bytes.ctypes.data

    def view(self, offset: int, shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
        """The bytes at `offset` as an array (shared, not copied). Raises OptionError if it does not fit."""
        kind = np.dtype(dtype)
        end = offset + math.prod(shape) * kind.itemsize
        if offset < 0 or end > self.nbytes:
            raise OptionError(f"bytes {offset}..{end} lie outside of an arena of {self.nbytes} bytes")
        return self._bytes[offset:end].view(kind).reshape(tuple(shape))

    def __repr__(self) -> str:
        return f"Arena({self.nbytes} bytes at {self.address:#x})"


class Interval(NamedTuple):
    """A buffer: bytes, and the first and last step (inclusive) at which it must hold its value."""

    size: int
    first: int
    last: int


def max_live(intervals: Sequence[Interval], align: int = CACHE_LINE) -> int:
    """The most bytes alive at one step: no placement can have a lower peak."""
    change: dict[int, int] = {}
    for size, first, last in intervals:
        rounded = _round_up(size, align)
        change[first] = change.get(first, 0) + rounded
        change[last + 1] = change.get(last + 1, 0) - rounded
    live = peak = 0
    for step in sorted(change):
        live += change[step]
        peak = max(peak, live)
    return peak


def plan_offsets(intervals: Sequence[Interval], align: int = CACHE_LINE) -> tuple[list[int], int]:
    """Place buffers in one block: two that live at the same step never share a byte.

    Returns the offset of each interval (multiples of `align`) and the size of the block. Deterministic. Tries a few
    orders, each with best fit (smallest gap that holds the buffer), keeps the lowest peak, and stops at the lower bound
    `max_live`. A buffer of 0 bytes lies at offset 0. Raises OptionError for a negative size or last < first.
    """
    _check_align(align)
    items = [Interval(*item) for item in intervals]
    for number, item in enumerate(items):
        if item.size < 0 or item.last < item.first:
            raise OptionError(f"interval {number} is not valid: {item}")
    bound = max_live(items, align)
    best: tuple[list[int], int] = ([0] * len(items), 0)
    for attempt, key in enumerate(_ORDERS):
        order = sorted((i for i, item in enumerate(items) if item.size), key=lambda i: (*key(items[i]), i))
        plan = _best_fit(items, order, align)
        if attempt == 0 or plan[1] < best[1]:
            best = plan
        if best[1] == bound:
            break
    return best


# Big ones first is the best single order on training steps; the others find what it misses.
_ORDERS: tuple[Any, ...] = (
    lambda item: (-item.size, item.first),
    lambda item: (item.first, -item.size),
    lambda item: (-item.size * (item.last - item.first + 1), item.first),
    lambda item: (item.first - item.last, -item.size),
    lambda item: (-item.last, -item.size),
)


def _round_up(size: int, align: int) -> int:
    return (size + align - 1) & -align


def _best_fit(items: Sequence[Interval], order: Sequence[int], align: int) -> tuple[list[int], int]:
    from bisect import insort  # a warm start places nothing

    offsets = [0] * len(items)
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last; sorted by offset
    peak = 0
    for index in order:
        size, first, last = items[index]
        size = _round_up(size, align)
        offset = _smallest_gap(placed, size, first, last)
        offsets[index] = offset
        insort(placed, (offset, offset + size, first, last))
        peak = max(peak, offset + size)
    return offsets, peak


def _smallest_gap(placed: Sequence[tuple[int, int, int, int]], size: int, first: int, last: int) -> int:
    """Offset of the smallest gap that holds `size` bytes between the placed buffers alive in first..last."""
    top = 0
    best_offset, best_gap = -1, 0
    for offset, end, other_first, other_last in placed:
        if other_first > last or other_last < first:
            continue
        gap = offset - top
        if gap >= size and (best_offset < 0 or gap < best_gap):
            best_offset, best_gap = top, gap
        top = max(top, end)
    return best_offset if best_offset >= 0 else top
