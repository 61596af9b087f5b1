"""What an emitter of CUDA kernels gives back."""

from __future__ import annotations

from dataclasses import dataclass

from fusegraph.codegen.cuda.helpers import Helper


@dataclass(frozen=True)
class CudaKernel:
    """One kernel. buffers: its arguments in order, names in the program, each a pointer to the first element.

    grid, block: threads to launch (x, y, z); how: in words, what a thread, warp or block does.
    shared_bytes: static shared memory of a block.
    kind: kernels of one kind may share a launch ("" for those that need one alone); loops: names of the loops that it does.
    """

    name: str
    buffers: tuple[str, ...]
    source: str
    helpers: frozenset[Helper]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    how: str
    shared_bytes: int = 0
    kind: str = ""
    loops: tuple[str, ...] = ()

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.block[0] * self.block[1] * self.block[2]
