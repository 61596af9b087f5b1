"""Kernels that a thread runs together, block of rows by block of rows.

    for block of this thread's rows:          instead of      all rows: k0
        k0 on the block                                       a barrier
        k1 on the block                                       all rows: k1

What k0 wrote or read is still in a cache when k1 reads it, and there is no barrier between the two. A normalisation with the
gradients of its weights, say: a row kernel, and sums over blocks of rows. It is legal where a block of rows of one kernel
touches, of everything that another one writes (or writes of what another one touches), only the same block of rows.

Kernels are called as by one thread of many: thread k of n does block k of n. The results are the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fusegraph.codegen.cpu.kernel import EmittedKernel
from fusegraph.ir.loops import Program
from fusegraph.records import dataclass

_MOST_BLOCKS = 256
_LEAST_BLOCKS = 16  # so that a few threads can share them evenly
_BLOCK_BYTES = 51200 << 10  # of everything that a block touches: about what a second-level cache holds
_LEAST_GAIN = 1 << 20  # bytes that several kernels touch; less than this is in a cache anyway


@dataclass(frozen=True)
class Stretch:
    """Kernels number first .. last - 1, run together in so many blocks."""

    first: int
    last: int
    blocks: int

    def kernels(self) -> range:
        """Their numbers."""
        return range(self.first, self.last)


def find_stretches(program: Program, kernels: Sequence[EmittedKernel]) -> tuple[Stretch, ...]:
    """The stretches of a program that pay, from the front, each as long as possible."""
    found, first = [], 0
    while first < len(kernels):
        last = first + 1
        while last < len(kernels) and _fits(program, kernels, first, last):
            last += 1
        stretch = _worth_it(program, kernels, first, last) if last > first + 1 else None
        if stretch is not None:
            found.append(stretch)
        first = last if stretch is not None else first + 1
    return tuple(found)


def _fits(program: Program, kernels: Sequence[EmittedKernel], first: int, number: int) -> bool:
    """Whether kernel `number` may run together with those from `first` on."""
    kernel = kernels[number]
    if kernel.rows is None:
        return False
    mine = set(program.loops[number].writes())
    for other in range(first, number):
        rows = kernels[other].rows
        if rows is None:
            return False
        theirs = set(program.loops[other].writes())
        both = set(kernels[other].buffers) & set(kernel.buffers)
        # (what is in a thread's own memory is of no use to another block, and is not shared by kernels)
        if any(not _is_local(kernels[n], name) for name in both & (mine | theirs) for n in (other, number)):
            return False
    return _blocks(kernels[first : number + 1]) >= _LEAST_BLOCKS


def _is_local(kernel: EmittedKernel, name: str) -> bool:
    return kernel.rows is not None and kernel.buffers.index(name) in kernel.rows.local


def _blocks(kernels: Sequence[EmittedKernel]) -> int:
    """The largest number of blocks that all of them can be cut into."""
    common = math.gcd(*(kernel.rows.rows for kernel in kernels if kernel.rows is not None))
    return next((n for n in range(min(common, _MOST_BLOCKS), 0, -1) if common % n == 0), 0)


def _worth_it(program: Program, kernels: Sequence[EmittedKernel], first: int, last: int) -> Stretch | None:
    """The stretch, if what its kernels share is more than caches keep, and a block of it is not."""
    chosen = kernels[first:last]
    blocks = _blocks(chosen)
    touched = {name for kernel in chosen for name in kernel.buffers if _is_local(kernel, name)}
    shared = {name for name in touched if sum(name in kernel.buffers for kernel in chosen) > 1}
    total, gain = (sum(program.buffers[name].nbytes for name in names) for names in (touched, shared))
    return Stretch(first, last, blocks) if gain >= _LEAST_GAIN and total / blocks <= _BLOCK_BYTES else None
