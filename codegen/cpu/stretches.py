"""Kernels that a thread runs together, block of rows by block of rows.

    for block of this thread's rows:          instead of      all rows: k0
        k0 on the block                                       a barrier
        k1 on the block                                       all rows: k1

What k0 wrote or read is still in a cache when k1 reads it, and there is no barrier between the two. A normalisation with the
gradients of its weights, say: a row kernel, and sums over blocks of rows. Or attention: scores, softmax and the products with
the values, head by head. It is legal where a block of rows of one kernel touches, of everything that another one writes (or
writes of what another one touches), only the same block of rows (see row_blocks.py).

What no kernel outside of a stretch reads does not lie in memory at all, but a block of it in each thread's workspace: the
scores of one head. Kernels find it where its block would begin: they are given an address that is so much lower.

Kernels are called as by one thread of many: thread k of n does block k of n. The results are the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fusegraph.codegen.cpu.kernel import EmittedKernel
from fusegraph.codegen.cpu.row_blocks import Parts, blocks_of_buffers, is_one_run
from fusegraph.ir.loops import Program
from fusegraph.records import dataclass

_MOST_BLOCKS = 256
_LEAST_BLOCKS = 16  # so that a few threads can share them evenly
_BLOCK_BYTES = 512 << 10  # of everything that a block touches: about what a second-level cache holds
_LEAST_GAIN = 1 << 20  # bytes that several kernels touch; less than this is in a cache anyway
_MOST_OWN_BYTES = 256 << 10  # of a buffer's block in a workspace


@dataclass(frozen=True)
class Stretch:
    """Kernels number first .. last - 1, run together in so many blocks.

    own: buffers that nothing else touches, of which each thread has the block that it works on.
    """

    first: int
    last: int
    blocks: int
    own: tuple[str, ...] = ()

    def kernels(self) -> range:
        """Their numbers."""
        return range(self.first, self.last)


def find_stretches(program: Program, kernels: Sequence[EmittedKernel]) -> tuple[Stretch, ...]:
    """The stretches of a program that pay, from the front, each as long as possible."""
    return _Finder(program, kernels).find()


class _Finder:
    def __init__(self, program: Program, kernels: Sequence[EmittedKernel]) -> None:
        self._program, self._kernels = program, kernels
        self._known: dict[tuple[int, int], dict[str, Parts]] = {}
        self._writes = [frozenset(loop.writes()) for loop in program.loops]
        self._touches = [
            frozenset(name for name in kernel.buffers if program.buffers[name].role != "local") for kernel in kernels
        ]

    def find(self) -> tuple[Stretch, ...]:
        """From the front, each as long as possible."""
        found, first = [], 0
        while first < len(self._kernels):
            last, blocks = first + 1, 0
            while last < len(self._kernels) and (more := self._blocks(first, last + 1)):
                last, blocks = last + 1, more
            stretch = self._stretch(first, last, blocks) if blocks else None
            if stretch is not None:
                found.append(stretch)
            first = last if stretch is not None else first + 1
        return tuple(found)

    def _parts(self, number: int, blocks: int) -> dict[str, Parts]:
        """Where the blocks of what kernel `number` touches lie."""
        key = number, blocks
        if key not in self._known:
            self._known[key] = blocks_of_buffers(self._program.loops[number], blocks, self._program.buffers)
        return self._known[key]

    def _blocks(self, first: int, last: int) -> int:
        """The largest number of blocks in which kernels first .. last - 1 may run together; 0 if there is none."""
        common = math.gcd(*(kernel.rows for kernel in self._kernels[first:last]))
        if common < _LEAST_BLOCKS or any(kernel.rows == 0 for kernel in self._kernels[first:last]):
            return 0
        shared = self._written_by_one_touched_by_others(first, last)
        counts = (n for n in range(min(common, _MOST_BLOCKS), _LEAST_BLOCKS - 1, -1) if common % n == 0)
        return next((n for n in counts if all(self._agree(first, last, n, name) for name in shared)), 0)

    def _written_by_one_touched_by_others(self, first: int, last: int) -> set[str]:
        numbers = range(first, last)
        written = {name for number in numbers for name in self._writes[number]}
        return {name for name in written if sum(name in self._touches[number] for number in numbers) > 1}

    def _agree(self, first: int, last: int, blocks: int, name: str) -> bool:
        """Whether no kernel's block touches what another block of another one does of a buffer."""
        numbers = [number for number in range(first, last) if name in self._touches[number]]
        places = {self._parts(number, blocks).get(name) for number in numbers}
        return len(places) == 1 and None not in places

    def _stretch(self, first: int, last: int, blocks: int) -> Stretch | None:
        """The stretch, if what its kernels share is more than caches keep, and a block of it is not."""
        numbers, buffers = range(first, last), self._program.buffers
        touched = {name for number in numbers for name in self._parts(number, blocks) if buffers[name].role != "local"}
        shared = {name for name in touched if sum(name in self._touches[number] for number in numbers) > 1}
        total, gain = (sum(buffers[name].nbytes for name in names) for names in (touched, shared))
        if gain < _LEAST_GAIN or total / blocks > _BLOCK_BYTES:
            return None
        return Stretch(first, last, blocks, self._own(first, last, blocks))

    def _own(self, first: int, last: int, blocks: int) -> tuple[str, ...]:
        """The temps of which a thread needs no more than the block that it works on."""
        numbers = range(first, last)
        others = {name for n, touched in enumerate(self._touches) if n not in numbers for name in touched}
        written = dict.fromkeys(name for number in numbers for name in self._program.loops[number].writes())
        return tuple(name for name in written if name not in others and self._is_own(name, numbers, blocks))

    def _is_own(self, name: str, numbers: range, blocks: int) -> bool:
        buffer = self._program.buffers[name]
        if buffer.role != "temp" or buffer.nbytes > blocks * _MOST_OWN_BYTES:
            return False
        touching = [self._parts(number, blocks).get(name) for number in numbers if name in self._touches[number]]
        return all(parts is not None and is_one_run(parts, blocks, buffer) for parts in touching)
