"""One operand's way to shared memory: from memory to registers, and on to one of two buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fusegraph.codegen.cuda.contract_plan import Factor
from fusegraph.codegen.cuda.contract_writer import ContractWriter
from fusegraph.codegen.cuda.nest_plan import LANE, VECTOR
from fusegraph.ir.index import Axis, Index


class Copy:
    """One operand's way to shared memory: from memory to registers (`load`), and on to one of two buffers (`store`).

    A plain load that is affine in the sums walks through memory: its element's number is kept and moved on (`walks`).
    """

    def __init__(self, writer: ContractWriter, factor: Factor, name: str, first: str, outer: int, size: int) -> None:
        self.writer, self.factor, self.name, self.first = writer, factor, name, first
        self.outer, self.extent = outer, size
        tile = writer.tile
        self.chunks = outer * tile.depth // factor.vector
        self.rounds = -(-self.chunks // tile.threads)
        # padding: neighbours along the sums lie in other banks
        self.stride = outer + VECTOR if factor.along == "sums" else outer
        self.size = self.stride * tile.depth
        self.shared = writer.tile_array(f"{name}_parts", 2 * self.size)
        self.next = writer.fresh(f"{name}_next")
        writer.declare(f"{self.next} = cuda.local.array({self.rounds * factor.vector}, {writer.element_type})")
        self.fast = (tile.depth if factor.along == "sums" else outer) // factor.vector
        self.regular = tile.threads % self.fast == 0 and self.chunks % tile.threads == 0
        self.walk: str | None = None
        self.step = 0
        self.read = ""  # where the thread's elements of a step's first column (row) are

    # -- coordinates ----------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> tuple[int, int]:
        """Elements that one chunk has along the outer axis and along the sums."""
        vector = self.factor.vector
        return (1, vector) if self.factor.along == "sums" else (vector, 1)

    def begin(self) -> None:
        """Once, before the loop: where this thread reads and writes."""
        writer, factor = self.writer, self.factor
        outer_step, inner_step = self.steps
        quick, slow = f"{writer.thread} % {self.fast}", f"{writer.thread} // {self.fast}"
        inner, outer = (quick, slow) if factor.along == "sums" else (slow, quick)
        first = f"{self.first} // {outer_step}" if outer_step > 1 else self.first
        self.inner_count = -(-writer.contract.sizes[3] // inner_step)
        self.k = writer.variable(writer.fresh(f"{self.name}_k"), f"uint32({inner})", self.inner_count)
        self.at = writer.variable(
            writer.fresh(f"{self.name}_outer"), f"uint32({first} + {outer})", self.extent // outer_step
        )
        local = writer.fresh(f"{self.name}_to")
        writer.line(f"{local} = uint32({self._shared_place(inner, outer)})")
        self.to = local
        self._choose_walk()
        writer.line(f"for i in range({self.rounds * factor.vector}):\n    {self.next}[i] = {writer.zero}")

    def _shared_place(self, inner: str, outer: str) -> str:
        outer_step, inner_step = self.steps
        along = f"({inner}) * {self.stride * inner_step}"
        return f"{along} + ({outer}) * {outer_step}" if outer_step > 1 else f"{along} + {outer}"

    def _choose_walk(self) -> None:
        """Keep the element's number where it grows by the same amount with every step."""
        writer, factor = self.writer, self.factor
        value = factor.value
        if value.op != "load" or value.attribute.mask or not self.regular:
            return
        self._place(self.k, self.at)
        index = writer.first_of_quad(writer.flat_index(value))
        inside = [atom for atom, _ in index.terms if atom != self.k and self.k in Index(0, ((atom, 1),)).axes]
        outside = [atom for atom, _ in index.terms if atom != self.at and self.at in Index(0, ((atom, 1),)).axes]
        if inside or (self.rounds > 1 and outside) or writer.run_time_indices(index):
            return
        self.step = index.coefficient(self.k) * (writer.tile.depth // self.steps[1])
        threads = writer.tile.threads // self.fast
        self.round_step = threads * index.coefficient(self.at if factor.along == "sums" else self.k)
        self.walk = writer.fresh(f"{self.name}_from")
        writer.line(f"{self.walk} = {writer.printer.narrow(index).source}")

    def _place(self, k: Axis, at: Axis) -> None:
        writer, factor = self.writer, self.factor
        for axis, step, axes in ((at, self.steps[0], factor.outer), (k, self.steps[1], writer.contract.sums)):
            number = Index.of(axis) if step == 1 else Index.of(axis) * step + Index.of(LANE)
            writer.place(axes, number)

    # -- from memory to registers -----------------------------------------------------------------------------------------

    def load(self, start: str | None) -> None:
        """This thread's elements of the part that begins at `start` (the first one: None): zero outside."""
        with self._rounds() as part:
            k, at = self._moved(start, part)
            condition = self._condition(k, at)
            if self.inner_count % (self.writer.tile.depth // self.steps[1]) and start is not None:
                self._clear(part)
            if self.walk:
                with self.writer.guard(condition, not condition):
                    self._load_walking(part)
            else:
                with self.writer.only_where(condition, k, at):
                    self._place(k, at)
                    with self.writer._lanes(self.factor.vector):
                        self.writer.assign(f"{self.next}[{self._slot(part)}]", self.writer.value_text(self.factor))
        if self.walk:
            self.writer.line(f"{self.walk} = uint32({self.walk} + {self.step})")

    def _moved(self, start: str | None, part: str) -> tuple[Axis, Axis]:
        """The chunk's coordinates in this step and round: variables where they differ from the first ones."""
        writer, threads = self.writer, self.writer.tile.threads
        k, at = self.k.name, self.at.name
        if start is not None:
            k += f" + {start}" + (f" // {self.steps[1]}" if self.steps[1] > 1 else "")
        if part != "0" and self.regular:
            more = f" + part * {threads // self.fast}"
            k, at = (k, at + more) if self.factor.along == "sums" else (k + more, at)
        elif part != "0":
            chunk = f"(part * {threads} + {writer.thread})"
            quick, slow = f"{chunk} % {self.fast}", f"{chunk} // {self.fast}"
            first = f"{self.first} // {self.steps[0]}" if self.steps[0] > 1 else self.first
            inner, outer = (quick, slow) if self.factor.along == "sums" else (slow, quick)
            k, at = inner + k[len(self.k.name) :], f"{first} + {outer}"
        return self._variable(k, self.k, "k"), self._variable(at, self.at, "outer")

    def _variable(self, text: str, plain: Axis, name: str) -> Axis:
        writer = self.writer
        if text == plain.name or (self.walk and not self._bounded(plain)):
            return plain
        axis = writer.variable(writer.fresh(name), f"uint32({text})", plain.extent)
        writer.taken.discard(axis.name)
        return axis

    def _bounded(self, axis: Axis) -> bool:
        """Whether a chunk may lie outside along this axis."""
        if axis is self.k:
            return self.inner_count % (self.writer.tile.depth // self.steps[1]) != 0
        return (self.extent // self.steps[0]) % (self.outer // self.steps[0]) != 0

    def _condition(self, k: Axis, at: Axis) -> str:
        parts = [f"{at.name} < {self.extent // self.steps[0]}"] if self._bounded(self.at) else []
        parts += [f"{k.name} < {self.inner_count}"] if self._bounded(self.k) else []
        return " and ".join(parts)

    def _load_walking(self, part: str) -> None:
        buffer = self.writer.names.buffers[self.factor.value.attribute.buffer]
        place = self.walk if part == "0" else f"uint32({self.walk} + part * {self.round_step})"
        if self.factor.vector == 1:
            self.writer.line(f"{self.next}[{part}] = {buffer}[{place}]")
            return
        first = "" if part == "0" else "part * 4 + "
        targets = ", ".join(f"{self.next}[{first}{lane}]" for lane in range(VECTOR))
        self.writer.line(f"{targets} = load4({buffer}, {place})")

    def _clear(self, part: str) -> None:
        if self.factor.vector == 1:
            self.writer.line(f"{self.next}[{part}] = {self.writer.zero}")
            return
        with self.writer.block("for lane in range(4):"):
            self.writer.line(f"{self.next}[{self._slot(part)}] = {self.writer.zero}")

    def _slot(self, part: str) -> str:
        if self.factor.vector == 1:
            return part
        return "lane" if part == "0" else f"{part} * {VECTOR} + lane"

    # -- from registers to shared memory ----------------------------------------------------------------------------------

    def store(self, buffer: int) -> None:
        """The registers into buffer 0 or 1."""
        writer = self.writer
        outer_step, inner_step = self.steps
        base = self.to if buffer == 0 else f"{self.to} + {self.size}"
        with self._rounds() as part:
            place = base
            if part != "0" and self.regular:
                rows = writer.tile.threads // self.fast
                place += f" + part * {rows * (outer_step if self.factor.along == 'sums' else self.stride * inner_step)}"
            elif part != "0":
                chunk = f"(part * {writer.tile.threads} + {writer.thread})"
                quick, slow = f"{chunk} % {self.fast}", f"{chunk} // {self.fast}"
                inner, outer = (quick, slow) if self.factor.along == "sums" else (slow, quick)
                shift = f"{self.size} + " if buffer else ""
                place = f"uint32({shift}{self._shared_place(inner, outer)})"
            self._store_chunk(place, part)

    def _store_chunk(self, place: str, part: str) -> None:
        writer, (outer_step, inner_step) = self.writer, self.steps
        first = "" if part == "0" else "part * 4 + "
        if outer_step > 1:
            values = ", ".join(f"{self.next}[{first}{lane}]" for lane in range(VECTOR))
            writer.line(f"store4({self.shared}, {place}, {values})")
        elif inner_step > 1:
            for lane in range(VECTOR):
                writer.line(
                    f"{self.shared}[{place}{f' + {lane * self.stride}' if lane else ''}] = {self.next}[{first}{lane}]"
                )
        else:
            writer.line(f"{self.shared}[{place}] = {self.next}[{part}]")

    @contextmanager
    def _rounds(self) -> Iterator[str]:
        """The loop over this thread's chunks; gives its number's text."""
        writer, threads = self.writer, self.writer.tile.threads
        level = len(writer.blocks) - 1
        part = "0"
        if self.rounds > 1:
            part = "part"
            writer.open(f"for part in range({self.rounds}):")
        if self.chunks % threads:
            chunk = writer.thread if part == "0" else f"part * {threads} + {writer.thread}"
            writer.open(f"if {chunk} < {self.chunks}:")
        yield part
        writer.close(level)
