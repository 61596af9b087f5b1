"""Several small loops in one launch: a range of blocks for each.

    if block < 15:              the update of one parameter
    elif block < 16:            of another

A launch costs as much time as some ten thousand elements. Loops that do not wait for each other, and have blocks of the same
size (or smaller ones without barriers), are launched together: above all the updates of an optimizer. This is decided before
temps get their memory, so that none lies where another loop of the launch reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fusegraph.codegen.cuda.kernel import CudaKernel
from fusegraph.codegen.cuda.nest_plan import WARP
from fusegraph.ir.loops import Loop

MOST_LOOPS = 24
MOST_POINTERS = 64  # 512 bytes of the 4 KB that a kernel's parameters may take
MOST_SHARED = 24 * 1024  # bytes; shared arrays of different loops lie side by side
LARGE = 256  # blocks above which a kernel is not burdened with another kind's registers, or with idle threads
_BLOCK = "block_number"  # the number of a block within its loop; reserved (names.py)


@dataclass(frozen=True)
class Work:
    """A loop and its kernel."""

    loop: Loop
    kernel: CudaKernel

    def waits_for(self, other: Work) -> bool:
        """Whether the order of the two matters."""
        reads, writes = set(self.loop.reads()), set(self.loop.writes())
        return bool((reads | writes) & set(other.loop.writes()) or writes & set(other.loop.reads()))

    @property
    def has_barriers(self) -> bool:
        """Whether all threads of a block have to take part."""
        wide = any(kind.startswith("team_") and int(kind.rpartition("_")[2]) > WARP for kind, _ in self.kernel.helpers)
        return wide or "syncthreads" in self.kernel.source


def in_batches(works: Sequence[Work]) -> list[list[Work]]:
    """`works` in an order that gives the same results, those together that one launch does."""
    early = _earliest(works)
    flat = [work for batch in early for work in batch]
    late = [
        batch[::-1] for batch in reversed(_earliest(flat[::-1]))
    ]  # whether two wait for each other has no direction
    return late if len(late) < len(early) else early


def _earliest(works: Sequence[Work]) -> list[list[Work]]:
    """Each work in the first batch that it may be in."""
    batches: list[list[Work]] = []
    for work in works:
        place = None
        for number in range(len(batches) - 1, -1, -1):
            if any(work.waits_for(other) for other in batches[number]):
                break
            if _fits(batches[number], work):
                place = number
        if place is None:
            batches.append([work])
        else:
            batches[place].append(work)
    return batches


def _fits(batch: list[Work], work: Work) -> bool:
    """Whether a launch can do `work` too: blocks that go together, and not too much of anything."""
    works = [*batch, work]
    kernels = [other.kernel for other in works]
    widest = max(kernel.threads for kernel in kernels)
    if not all(kernel.kind for kernel in kernels):
        return False
    if any(other.kernel.threads < widest and other.has_barriers for other in works):
        return False
    alike = len({(kernel.kind, kernel.threads) for kernel in kernels}) == 1
    if not alike and any(kernel.grid[0] > LARGE for kernel in kernels):
        return False
    pointers = {name for kernel in kernels for name in kernel.buffers}
    shared = sum(kernel.shared_bytes for kernel in kernels)
    return len(kernels) <= MOST_LOOPS and len(pointers) <= MOST_POINTERS and shared <= MOST_SHARED


def one_kernel(kernels: Sequence[CudaKernel], name: str, parameters: dict[str, str]) -> CudaKernel:
    """A kernel that does the work of several. parameters: Python's names for buffers."""
    if len(kernels) == 1:
        return kernels[0]
    buffers = tuple(dict.fromkeys(buffer for kernel in kernels for buffer in kernel.buffers))
    threads = max(kernel.threads for kernel in kernels)
    parts, lines, first = [], [], 0
    for kernel in kernels:
        parts.append(_as_part(kernel))
        last = first + kernel.grid[0]
        arguments = ", ".join(parameters[buffer] for buffer in kernel.buffers)
        number = f"uint32(block - {first})" if first else "block"
        head = f"{'elif' if first else 'if'} block < {last}:" if last < sum(k.grid[0] for k in kernels) else "else:"
        call = f"{_part_name(kernel)}({number}, {arguments})"
        idle = kernel.threads < threads
        lines += [f"    {head}"]
        lines += (
            [f"        if cuda.threadIdx.x < {kernel.threads}:", f"            {call}"] if idle else [f"        {call}"]
        )
        first = last
    how = f"{len(kernels)} loops in one launch, a range of blocks each"
    text = f'    """{how}: {", ".join(kernel.name for kernel in kernels)}.\n\n'
    text += f'    {first} blocks of {threads} threads\n    """\n'
    signature = f"def {name}({', '.join(parameters[buffer] for buffer in buffers)}):\n"
    main = signature + text + "    block = uint32(cuda.blockIdx.x)\n" + "\n".join(lines)
    return replace(
        kernels[0],
        name=name,
        buffers=buffers,
        source="\n\n\n".join([*parts, main]),
        helpers=frozenset().union(*(kernel.helpers for kernel in kernels)),
        grid=(first, 1, 1),
        block=(threads, 1, 1),
        how=how,
        shared_bytes=sum(kernel.shared_bytes for kernel in kernels),
        loops=tuple(loop for kernel in kernels for loop in kernel.loops),
    )


def _part_name(kernel: CudaKernel) -> str:
    return f"{kernel.name}_part"


def _as_part(kernel: CudaKernel) -> str:
    """A kernel's text as a device function that is told the number of its block."""
    text = kernel.source.replace(f"def {kernel.name}(", f"def {_part_name(kernel)}({_BLOCK}, ", 1)
    return "@cuda.jit(device=True, forceinline=True)\n" + text.replace("cuda.blockIdx.x", _BLOCK)
