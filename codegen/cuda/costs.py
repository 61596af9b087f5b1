"""What the launches of a step cost: blocks, threads, and the bytes that they have to move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fusegraph.codegen.cuda.kernel import CudaKernel
from fusegraph.codegen.cuda.nest_plan import extent, stage_axes
from fusegraph.ir.loops import Loop, Program
from fusegraph.ir.scalar import indirect_values, walk


@dataclass(frozen=True)
class LaunchCost:
    """One launch. read, written: bytes of global memory, each element of a buffer counted once a loop (of a gathered buffer, no
    more elements than are asked for)."""

    kernel: str
    loops: tuple[str, ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    read: int
    written: int

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


def launch_costs(program: Program, kernels: Sequence[CudaKernel]) -> tuple[LaunchCost, ...]:
    """The cost of launching each of `kernels` once."""
    loops = {loop.name: loop for loop in program.loops}
    return tuple(_cost(kernel, [loops[name] for name in kernel.loops], program) for kernel in kernels)


def _cost(kernel: CudaKernel, loops: list[Loop], program: Program) -> LaunchCost:
    read = written = 0
    for loop in loops:
        loaded, stored = _touched(loop)
        read += sum(_bytes(name, count, program) for name, count in loaded.items() if name in kernel.buffers)
        written += sum(_bytes(name, count, program) for name, count in stored.items() if name in kernel.buffers)
    return LaunchCost(kernel.name, kernel.loops, kernel.grid, kernel.block, kernel.shared_bytes, read, written)


def _bytes(name: str, count: int, program: Program) -> int:
    buffer = program.buffers[name]
    return min(buffer.size, count) * buffer.dtype.itemsize


def _touched(loop: Loop) -> tuple[dict[str, int], dict[str, int]]:
    """How many elements the loop asks for of each buffer, and how many it stores."""
    loaded: dict[str, int] = {}
    stored: dict[str, int] = {}
    for stage in loop.stages:
        points = loop.points() * extent(stage_axes(stage))
        indices = [value for store in stage.stores for index in store.index for value in indirect_values(index)]
        for node in walk(stage.expressions() + indices):
            if node.op == "load":
                loaded[node.attribute.buffer] = loaded.get(node.attribute.buffer, 0) + points
        for store in stage.stores:
            stored[store.buffer] = stored.get(store.buffer, 0) + points
            if store.mode == "add":
                loaded[store.buffer] = loaded.get(store.buffer, 0) + points
    return loaded, stored


def describe(costs: Sequence[LaunchCost]) -> str:
    """A table of launches, and their sums."""
    rows = [("kernel", "blocks", "threads", "read", "written")]
    rows += [(c.kernel, _times(c.grid), _times(c.block), str(c.read), str(c.written)) for c in costs]
    total = f"{len(costs)} launches"
    rows.append((total, "", "", str(sum(c.read for c in costs)), str(sum(c.written for c in costs))))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _times(dims: tuple[int, int, int]) -> str:
    return " x ".join(str(n) for n in dims if n > 1) or "1"
