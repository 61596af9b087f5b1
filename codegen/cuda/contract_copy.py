"""The two ways of an operand to shared memory.

StagedCopy   memory -> registers -> shared memory: for any expression, any type, any card
AsyncCopy    memory -> shared memory at once (cp.async, compute capability 8.0): for plain loads of 32-bit elements, with
             zeros where a mask fails or outside of the edges
"""

from __future__ import annotations

from collections import Counter

from fusegraph.codegen.cuda.contract_layout import Layout
from fusegraph.codegen.cuda.contract_operand import Operand, join
from fusegraph.codegen.cuda.contract_plan import Factor
from fusegraph.codegen.cuda.contract_writer import ContractWriter
from fusegraph.codegen.cuda.nest_plan import VECTOR
from fusegraph.codegen.python_layout import line_width
from fusegraph.codegen.python_text import AND


class StagedCopy(Operand):
    """`load` fetches a part to registers, `store` puts it into a buffer."""

    def begin(self) -> None:
        """As for any operand; and the registers."""
        writer, vector = self.writer, self.factor.vector
        super().begin()
        self.next = writer.fresh(f"{self.name}_next")
        writer.declare(f"{self.next} = cuda.local.array({self.rounds * vector}, {writer.element_type})")
        writer.line(f"for i in range({self.rounds * vector}):\n    {self.next}[i] = {writer.zero}")

    def load(self, start: str) -> None:
        """This thread's elements of the part that begins at `start` ("": the first): zero outside."""
        writer = self.writer
        with self.each_round():
            k, at = self.coordinates(start)
            condition = self.condition(k, at)
            if self.bounded(self.k) and start:
                self._clear()
            if self.walk:
                with writer.guard(condition, not condition):
                    self._load_walking()
            else:
                with writer.only_where(condition, k, at):
                    self.place(k, at)
                    with writer._lanes(self.factor.vector):
                        writer.assign(f"{self.next}[{self._register('lane')}]", writer.value_text(self.factor))
        self.move_on()

    def _register(self, lane: str | int) -> str:
        """Where in the registers the present chunk's element is."""
        if self.factor.vector == 1:
            return "part" if self.rounds > 1 else "0"
        return join(f"part * {VECTOR}", "" if lane == 0 else str(lane)) if self.rounds > 1 else str(lane)

    def _quad(self) -> str:
        return ", ".join(f"{self.next}[{self._register(lane)}]" for lane in range(VECTOR))

    def _load_walking(self) -> None:
        writer = self.writer
        buffer = writer.names.buffers[self.factor.value.attribute.buffer]
        if self.factor.vector == 1:
            writer.line(f"{self.next}[{self._register(0)}] = {buffer}[{self.source()}]")
        else:
            value = f"load4({buffer}, {self.source()})"
            text = f"{self._quad()} = {value}"
            fits = len(text) <= line_width(len(writer.blocks) - 1)
            writer.line(text if fits else f"(\n    {self._quad()},\n) = {value}")

    def _clear(self) -> None:
        writer = self.writer
        if self.factor.vector == 1:
            writer.line(f"{self.next}[{self._register(0)}] = {writer.zero}")
            return
        with writer.block("for lane in range(4):"):
            writer.line(f"{self.next}[{self._register('lane')}] = {writer.zero}")

    def store(self, buffer: int) -> None:
        """The registers into a buffer."""
        writer = self.writer
        with self.each_round():
            place = self.target(buffer)
            if self.factor.vector == 1:
                writer.line(f"{self.shared}[{place}] = {self.next}[{self._register(0)}]")
            elif self.layout.neighbours == self.factor.along:
                writer.line(f"store4({self.shared}, {place}, {self._quad()})")
            else:
                step = self.layout.k_step if self.factor.along == "sums" else self.layout.outer_step
                for lane in range(VECTOR):
                    more = f" + {lane * step}" if lane else ""
                    writer.line(f"{self.shared}[{place}{more}] = {self.next}[{self._register(lane)}]")


class AsyncCopy(Operand):
    """`issue` begins the copy of a part into a buffer."""

    asynchronous = True

    def issue(self, start: str, buffer: int) -> None:
        """Begin the copy of the part that starts at `start` ("": the first) into a buffer."""
        writer, vector = self.writer, self.factor.vector
        source = writer.names.buffers[self.factor.value.attribute.buffer]
        with self.each_round():
            k, at = self.coordinates(start)
            condition = self.condition(k, at)
            if self.walk:
                index = self.source()
            else:
                self.place(k, at)
                index, mask = self._position()
                condition = " and ".join(part for part in (condition, mask) if part)
            arguments = [self.shared, f"uint32({self.target(buffer)})", source, index, condition]
            writer.call(f"copy{vector}_async{'_where' if condition else ''}", [part for part in arguments if part])
        self.move_on()

    def _position(self) -> tuple[str, str]:
        """The element's number at the present point, and the condition that its mask holds ("" without a mask)."""
        writer, value = self.writer, self.factor.value
        writer.stage_writes = ()
        flat = writer.flat_index(value)
        mask = ""
        if value.attribute.mask:
            (text,) = writer.evaluate([writer.mask_value(value.attribute.mask)])
            mask = text.at_least(AND)
        if self.factor.vector > 1:
            return writer.printer.narrow(writer.first_of_quad(flat)).source, mask
        return writer.position(flat, Counter()), mask


def may_copy_at_once(writer: ContractWriter, factor: Factor, layout: Layout) -> bool:
    """Whether cp.async serves: a plain load of elements of 32 bits in memory whose place depends on no run-time index.

    Four neighbours that part in shared memory go through registers: one load of 128 bits and four stores take fewer
    instructions than four copies, each with its addresses (main loop on sm_80: 90.6 % FFMA against 89.0 %).
    """
    value = factor.value
    if value.op != "load" or value.dtype.name != "float32" or writer.reduce.dtype.name != "float32":
        return False
    if value.attribute.buffer in writer.names.narrow:
        return False
    if factor.vector > 1 and factor.along != layout.neighbours:
        return False
    indices = [*value.attribute.index, *(condition.index for condition in value.attribute.mask)]
    return not any(writer.run_time_indices(index) for index in indices)
