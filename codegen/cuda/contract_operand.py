"""One operand's way to shared memory: which of its elements a thread copies, where from, and where to.

A part has depth x outer elements; a chunk is one of them, or four neighbours. Neighbouring threads copy neighbouring chunks
(`fast` of them), then go on in the other direction; each thread copies `rounds` chunks.
A plain load that is affine in the sums walks through memory: its element's number is kept and moved on (`walk`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fusegraph.codegen.cuda.contract_layout import Layout
from fusegraph.codegen.cuda.contract_plan import Factor
from fusegraph.codegen.cuda.contract_writer import ContractWriter
from fusegraph.codegen.cuda.nest_plan import LANE
from fusegraph.ir.index import Axis, Index


class Operand:
    """The left or right factor. first: the text of the tile's first outer element; extent: how many there are in all."""

    asynchronous = False

    def __init__(
        self, writer: ContractWriter, factor: Factor, name: str, first: str, extent: int, layout: Layout, buffers: int
    ) -> None:
        self.writer, self.factor, self.name, self.first, self.extent = writer, factor, name, first, extent
        self.layout, self.buffers = layout, buffers
        self._spread(writer.tile.threads)
        self.shared = writer.tile_array(f"{name}_parts", buffers * layout.size)
        self.walk: str | None = None
        self.step = 0  # what the walk adds for the next part

    def _spread(self, threads: int) -> None:
        """Chunks over threads. All counts are powers of two."""
        layout, factor = self.layout, self.factor
        self.unit_outer, self.unit_k = (1, factor.vector) if factor.along == "sums" else (factor.vector, 1)
        counts = layout.depth // self.unit_k, layout.outer // self.unit_outer
        whole, self.slow_count = counts if factor.along == "sums" else counts[::-1]
        self.fast = layout.fast(factor.along, factor.vector)
        self.across = threads // self.fast
        self.slow_rounds = max(1, self.slow_count // self.across)
        self.spare = max(1, self.across // self.slow_count)
        self.fast_rounds = max(1, whole // self.fast // self.spare)
        self.rounds = self.slow_rounds * self.fast_rounds
        self.chunks = counts[0] * counts[1]

    # -- once, before the loop ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Where this thread reads and writes."""
        writer, along = self.writer, self.factor.along
        thread = writer.thread
        fast, slow = f"{thread} % {self.fast}", f"{thread} // {self.fast}"
        if self.spare > 1:
            fast += f" + {thread} // {self.fast * self.slow_count} * {self.fast}"
            slow += f" % {self.slow_count}"
        k, outer = (fast, slow) if along == "sums" else (slow, fast)
        first = f"{self.first} // {self.unit_outer}" if self.unit_outer > 1 else self.first
        self.k_count = -(-writer.contract.sizes[3] // self.unit_k)
        self.k = writer.variable(writer.fresh(f"{self.name}_k"), f"uint32({k})", self.k_count)
        self.at = writer.variable(
            writer.fresh(f"{self.name}_outer"), f"uint32({first} + {outer})", self.extent // self.unit_outer
        )
        self.to = writer.fresh(f"{self.name}_to")
        place = self.layout.place(_times(k, self.unit_k), _times(outer, self.unit_outer))
        writer.line(f"{self.to} = uint32({place})")
        self._choose_walk()

    def _choose_walk(self) -> None:
        """Keep the element's number where it grows by the same amount with every part."""
        writer, value = self.writer, self.factor.value
        if value.op != "load" or value.attribute.mask:
            return
        self.place(self.k, self.at)
        index = writer.first_of_quad(writer.flat_index(value))
        moving = {self.k} | ({self.at} if self.rounds > 1 else set())
        bent = [atom for atom, _ in index.terms if atom not in moving and moving & Index(0, ((atom, 1),)).axes]
        if bent or writer.run_time_indices(index):
            return
        along_k, along_outer = index.coefficient(self.k), index.coefficient(self.at)
        self.step = along_k * (self.layout.depth // self.unit_k)
        self._fast_step, self._slow_step = (
            (along_k, along_outer) if self.factor.along == "sums" else (along_outer, along_k)
        )
        self.walk = writer.fresh(f"{self.name}_from")
        writer.line(f"{self.walk} = {writer.printer.narrow(index).source}")

    def place(self, k: Axis, at: Axis) -> None:
        """The axes of the program, at a chunk."""
        for axis, unit, axes in ((at, self.unit_outer, self.factor.outer), (k, self.unit_k, self.writer.contract.sums)):
            number = Index.of(axis) if unit == 1 else Index.of(axis) * unit + Index.of(LANE)
            self.writer.place(axes, number)

    # -- one round ------------------------------------------------------------------------------------------------------

    @contextmanager
    def each_round(self) -> Iterator[None]:
        """The loop over this thread's chunks, with the variable `part`."""
        writer = self.writer
        level = len(writer.blocks) - 1
        if self.rounds > 1:
            writer.open(f"for part in range({self.rounds}):")
        if self.chunks < writer.tile.threads:
            writer.open(f"if {writer.thread} < {self.chunks}:")
        yield
        writer.close(level)

    def shift(self, fast_step: int, slow_step: int) -> str:
        """What the present round adds to a place; each step: what one chunk does in that direction."""
        fast, slow = fast_step * self.fast * self.spare, slow_step * self.across
        parts = []
        if self.slow_rounds > 1:
            parts.append(_times("part" if self.fast_rounds == 1 else f"part % {self.slow_rounds}", slow))
        if self.fast_rounds > 1:
            parts.append(_times("part" if self.slow_rounds == 1 else f"part // {self.slow_rounds}", fast))
        return " + ".join(parts)

    def target(self, buffer: int) -> str:
        """Where the present round's chunk goes, in part `buffer` of the shared array."""
        k, outer = self.unit_k * self.layout.k_step, self.unit_outer * self.layout.outer_step
        steps = (k, outer) if self.factor.along == "sums" else (outer, k)
        return join(self.to, str(buffer * self.layout.size or ""), self.shift(*steps))

    def source(self) -> str:
        """The number of the present round's element, where the operand walks."""
        assert self.walk is not None
        shift = self.shift(self._fast_step, self._slow_step)
        return f"uint32({self.walk} + {shift})" if shift else self.walk

    def coordinates(self, start: str) -> tuple[Axis, Axis]:
        """The chunk's k and outer coordinates in the part that begins at `start` ("": the first) and the present round."""
        if start and self.unit_k > 1:
            start = f"({start}) // {self.unit_k}" if "+" in start else f"{start} // {self.unit_k}"
        k_shift, outer_shift = (
            (self.shift(1, 0), self.shift(0, 1))
            if self.factor.along == "sums"
            else (self.shift(0, 1), self.shift(1, 0))
        )
        k = join(self.k.name, start, _nonzero(k_shift))
        return self._variable(k, self.k, "k"), self._variable(
            join(self.at.name, _nonzero(outer_shift)), self.at, "outer"
        )

    def _variable(self, text: str, plain: Axis, name: str) -> Axis:
        writer = self.writer
        if text == plain.name or (self.walk and not self.bounded(plain)):
            return plain
        axis = writer.variable(writer.fresh(name), f"uint32({text})", plain.extent)
        writer.taken.discard(axis.name)
        return axis

    def bounded(self, axis: Axis) -> bool:
        """Whether a chunk may lie outside along this axis."""
        if axis is self.k:
            return self.k_count % (self.layout.depth // self.unit_k) != 0
        return (self.extent // self.unit_outer) % (self.layout.outer // self.unit_outer) != 0

    def condition(self, k: Axis, at: Axis) -> str:
        """That the chunk lies inside; "" where it always does."""
        parts = [f"{at.name} < {self.extent // self.unit_outer}"] if self.bounded(self.at) else []
        parts += [f"{k.name} < {self.k_count}"] if self.bounded(self.k) else []
        return " and ".join(parts)

    def move_on(self) -> None:
        """To the next part."""
        if self.walk:
            self.writer.line(f"{self.walk} = uint32({self.walk} + {self.step})")


def _times(text: str, factor: int) -> str:
    """text * factor."""
    if factor == 1:
        return text
    return f"{text} * {factor}" if text.isidentifier() or "+" not in text else f"({text}) * {factor}"


def join(*parts: str) -> str:
    """The sum of those that are not empty."""
    return " + ".join(part for part in parts if part)


def _nonzero(shift: str) -> str:
    """Without the terms that are nothing."""
    return " + ".join(term for term in shift.split(" + ") if not term.endswith("* 0"))
