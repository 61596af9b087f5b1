"""Products of matrices and convolutions as tiled kernels (contract_plan.py says which axis plays which role).

Two ways to write the same tile:

- `readable`: the lecture's kernel, one output a thread. A block of 16 x 16 threads copies a 16 x 16 part of each operand to
  shared memory, waits, adds up 16 products, waits. Guards at the edges make it right for any size: the oracle of the other one.
- the register tile: a thread makes 8 x 8 (or 4 x 4, 4 x 1) outputs, so that each element it reads from shared memory is used 8
  times. Operands are read by 128 bits where neighbours allow it; two buffers, so that the next part is on its way from memory
  while the present one is multiplied, and one barrier a step is enough.

Operands may be any expression of loads with masks (padding of a convolution: implicit GEMM), outputs any stages of stores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fusegraph.codegen.cuda.contract_plan import ContractPlan, Factor, plan_contract
from fusegraph.codegen.cuda.helpers import helper_name
from fusegraph.codegen.cuda.kernel import CudaKernel
from fusegraph.codegen.cuda.nest import NestWriter
from fusegraph.codegen.cuda.nest_plan import LANE, VECTOR, NestPlan
from fusegraph.codegen.cuda.ops import cast_text
from fusegraph.codegen.python_names import ProgramNames
from fusegraph.ir.index import Axis, Index, unflatten_index
from fusegraph.ir.loops import Loop, Program


def emit_contract(
    loop: Loop,
    program: Program,
    names: ProgramNames,
    readable: bool = False,
    capability: tuple[int, int] = (9, 0),
    precision: str = "float32",
) -> CudaKernel | None:
    """The kernel of a loop of schedule "contract"; None where it has to run as a plain nest."""
    plan = plan_contract(loop, program.buffers, readable)
    if plan is None:
        return None
    writer = ReadableWriter(plan, names) if plan.tile.tall == plan.tile.wide == 1 else RegisterWriter(plan, names)
    writer.write()
    tile = plan.tile
    how = f"{tile.rows} x {tile.columns} outputs a block, {tile.tall} x {tile.wide} a thread"
    return writer.finish(plan.grid, (tile.threads, 1, 1), how)


class ContractWriter(NestWriter):
    """What both ways share: coordinates, the copy of one operand, the epilogue."""

    def __init__(self, plan: ContractPlan, names: ProgramNames) -> None:
        super().__init__(NestPlan(plan.loop, "thread", plan.loop.points()), names)
        self.contract, self.tile = plan, plan.tile
        self.sum_type = plan.loop.stages[0].reduces[0].dtype
        self.element_type = self.sum_type.name
        self.zero = f"{self.element_type}(0.0)"

    def place(self, axes: tuple[Axis, ...], number: Index) -> None:
        """These axes, flattened, are `number`."""
        self.set_places(dict(zip(axes, unflatten_index(number, [a.extent for a in axes]), strict=True)), anew=True)

    def variable(self, name: str, value: str, extent: int) -> Axis:
        """`name = value`: a variable of the thread in the innermost open block, as an axis."""
        axis = Axis(name, max(extent, 2))
        self.line(f"{name} = {value}")
        self.axis_names[axis], self.axis_levels[axis] = name, len(self.blocks) - 1
        return axis

    def open_block(self) -> None:
        """Which tile the block makes."""
        batch = self.contract.sizes[0]
        self.thread = self.fresh("thread")
        self.line(f"{self.thread} = uint32(cuda.threadIdx.x)")
        if batch > 1:
            axis = self.variable(self.fresh("batch"), "uint32(cuda.blockIdx.z)", batch)
            self.place(self.contract.batch, Index.of(axis))
        else:
            self.place(self.contract.batch, Index())
        self.space_level = 0

    @contextmanager
    def only_where(self, condition: str, *axes: Axis) -> Iterator[None]:
        """`if condition:` about these variables; what depends on them is not computed outside of it."""
        before = {axis: self.axis_levels[axis] for axis in axes}
        with self.guard(condition, not condition):
            self.axis_levels.update(dict.fromkeys(axes, len(self.blocks) - 1))
            self._views.clear()
            yield
        self.axis_levels.update(before)
        self._views.clear()

    def value_text(self, factor: Factor) -> str:
        """The text of a factor at the present point, as an element of the sum's type."""
        self.stage_writes = ()
        (text,) = self.evaluate([factor.value])
        return cast_text(factor.value.dtype, text, self.loop.stages[0].reduces[0].dtype).source

    def inside(self, *bounds: tuple[str, int, int]) -> str:
        """Conditions `name < size`; none where `size` is a multiple of the tile's step."""
        return " and ".join(f"{name} < {size}" for name, size, step in bounds if size % step)


class ReadableWriter(ContractWriter):
    """One output a thread."""

    def write(self) -> None:
        """Everything below the signature."""
        self.open_block()
        tile, (_, rows, columns, sums) = self.tile, self.contract.sizes
        side = tile.depth
        total = self.fresh("total")
        x, y, start = (self.fresh(name) for name in ("x", "y", "start"))
        left, right = (self.shared(name, side * side, self.element_type) for name in ("left", "right"))
        self.line(f"{x} = uint32({self.thread} % {side})\n{y} = uint32({self.thread} // {side})")
        row = self.variable(self.fresh("row"), f"uint32(cuda.blockIdx.y * {side} + {y})", rows)
        column = self.variable(self.fresh("column"), f"uint32(cuda.blockIdx.x * {side} + {x})", columns)
        self.line(f"{total} = {self.zero}\n{start} = uint32(0)")
        with self.block(f"while {start} < {sums}:"):
            self._copy(self.contract.left, left, row, x, start)
            self._copy(self.contract.right, right, column, y, start)
            self.line("cuda.syncthreads()")
            with self.block(f"for step in range({side}):"):
                at_left, at_right = f"uint32({y} * {side} + step)", f"uint32(step * {side} + {x})"
                self.line(f"{total} += {left}[{at_left}] * {right}[{at_right}]")
            self.line(f"cuda.syncthreads()\n{start} = uint32({start} + {side})")
        condition = self.inside((row.name, rows, side), (column.name, columns, side))
        with self.only_where(condition, row, column):
            self.place(self.contract.rows, Index.of(row))
            self.place(self.contract.columns, Index.of(column))
            self.accumulators[self.loop.stages[0].reduces[0].name] = (total, 0)
            for stage in self.loop.stages[1:]:
                self._write_stores(stage, 1)

    def _copy(self, factor: Factor, target: str, outer: Axis, other: str, start: str) -> None:
        """This thread's element of an operand's part: zero outside."""
        sums = self.contract.sizes[3]
        size = self.contract.sizes[1 if factor is self.contract.left else 2]
        inner = self.variable(self.fresh("k"), f"uint32({start} + {other})", sums)
        value = self.fresh("value")
        self.line(f"{value} = {self.zero}")
        condition = self.inside((outer.name, size, self.tile.depth), (inner.name, sums, self.tile.depth))
        with self.only_where(condition, outer, inner):
            self.place(factor.outer, Index.of(outer))
            self.place(self.contract.sums, Index.of(inner))
            self.assign(value, self.value_text(factor))
        self.line(f"{target}[{self.thread}] = {value}")
        self.taken -= {value, inner.name}


class RegisterWriter(ContractWriter):
    """tall x wide outputs a thread, double buffering."""

    def write(self) -> None:
        """Everything below the signature."""
        self.open_block()
        tile, sums = self.tile, self.contract.sizes[3]
        across = tile.columns // tile.wide
        self.total = self.fresh("total")
        self.declare(f"{self.total} = cuda.local.array({tile.tall * tile.wide}, {self.element_type})")
        self.x, self.y, start = (self.fresh(name) for name in ("x", "y", "start"))
        kind = f"outer_product_{tile.tall}x{tile.wide}_{tile.rows}x{tile.columns}"
        self.helper = helper_name(kind, self.sum_type)
        self.helpers.add((kind, self.sum_type))
        self.line(f"{self.x} = uint32({self.thread} % {across})\n{self.y} = uint32({self.thread} // {across})")
        self.row_start = self.variable(self.fresh("first_row"), f"uint32(cuda.blockIdx.y * {tile.rows})", 1)
        self.column_start = self.variable(self.fresh("first_column"), f"uint32(cuda.blockIdx.x * {tile.columns})", 1)
        copies = [
            Copy(self, self.contract.left, "left", self.row_start.name, tile.rows, self.contract.sizes[1]),
            Copy(self, self.contract.right, "right", self.column_start.name, tile.columns, self.contract.sizes[2]),
        ]
        with self.block(f"for i in range({tile.tall * tile.wide}):"):
            self.line(f"{self.total}[i] = {self.zero}")
        for copy, thread, count in zip(copies, (self.y, self.x), (tile.tall, tile.wide), strict=True):
            copy.begin()
            copy.read_from(thread, min(count, VECTOR))
            copy.load(None)
            copy.store(0)
        self.line("cuda.syncthreads()")
        self.line(f"{start} = uint32(0)")
        with self.block(f"while {start} < uint32({sums}):"):
            self._tile_step(copies, start, sums, 0)
            odd = -(-sums // tile.depth) % 2 == 1
            with self.guard(f"{start} < uint32({sums})", not odd):
                self._tile_step(copies, start, sums, 1)
        self._epilogue()

    def _tile_step(self, copies: list[Copy], start: str, sums: int, half: int) -> None:
        """Fetch the next parts, multiply those in buffer `half`, put the next ones into the other buffer."""
        self.line(f"{start} = uint32({start} + {self.tile.depth})")
        with self.guard(f"{start} < uint32({sums})"):
            for copy in copies:
                copy.load(start)
        self._multiply(copies, half)
        for copy in copies:
            copy.store(1 - half)
        self.line("cuda.syncthreads()")

    def _multiply(self, copies: list[Copy], half: int) -> None:
        """depth times: read a column of the left part and a row of the right one, add their outer product."""
        name, left, right = self.helper, *copies
        for step in range(self.tile.depth):
            places = [f"{copy.read} + {half * copy.size + step * copy.stride}" for copy in copies]
            places = [place.removesuffix(" + 0") for place in places]
            self.line(f"{name}({self.total}, {left.shared}, {places[0]}, {right.shared}, {places[1]})")

    def _epilogue(self) -> None:
        """Four outputs (or one) at a time; the rest move up, so that registers are never indexed by a variable."""
        tile, plan = self.tile, self.contract
        _, rows, columns, _ = plan.sizes
        width = min(tile.wide, VECTOR)
        down, right = pieces(tile.tall), pieces(tile.wide)
        count, outputs = tile.tall * tile.wide // width, tile.tall * tile.wide
        with self.block(f"for part in range({count}):"):
            i = "part" if len(right) == 1 else f"part // {len(right)}"
            row_text = f"{self.row_start.name} + {self.y} * {min(tile.tall, VECTOR)} + {i}"
            if len(down) > 1:
                row_text = (
                    (
                        f"{self.row_start.name} + {self.y} * {VECTOR} + {i} // {VECTOR} * {tile.rows // len(down)} + "
                        f"{i} % {VECTOR}"
                    )
                    .replace("part // 2 // 4", "part // 8")
                    .replace("part // 2 % 4", "part // 2 % 4")
                )
            row = self.variable(self.fresh("row"), f"uint32({row_text})", rows)
            shift = f" + part % {len(right)} * {tile.columns // len(right)}" if len(right) > 1 else ""
            first = (
                f"{self.column_start.name}{shift} + {self.x} * {width}"
                if width > 1
                else f"{self.column_start.name} + {self.x}"
            )
            self.place(plan.rows, Index.of(row))
            if plan.vector > 1:
                self._store_quads(row, rows, columns, first)
            else:
                self._store_singly(row, rows, columns, first, width)
            if outputs > width:
                with self.block(f"for i in range({outputs - width}):"):
                    self.line(f"{self.total}[i] = {self.total}[i + {width}]")

    def _store_quads(self, row: Axis, rows: int, columns: int, first: str) -> None:
        quad = self.variable(self.fresh("quad"), f"uint32({first}) // 4", columns // VECTOR)
        self.blocks[-1].items[-1] = f"{quad.name} = uint32(uint32({first}) // 4)"
        condition = self.inside(
            (row.name, rows, self.tile.rows), (quad.name, columns // VECTOR, self.tile.columns // VECTOR)
        )
        with self.only_where(condition, row, quad):
            self.place(self.contract.columns, Index.of(quad) * VECTOR + Index.of(LANE))
            self._write_outputs(VECTOR, f"{self.total}[lane]")

    def _store_singly(self, row: Axis, rows: int, columns: int, first: str, width: int) -> None:
        with self.lane_loop(width) as lane:
            text = f"uint32({first} + {lane})" if lane else f"uint32({first})"
            column = self.variable(self.fresh("column"), text, columns)
            condition = self.inside((row.name, rows, self.tile.rows), (column.name, columns, self.tile.columns))
            with self.only_where(condition, row, column):
                self.place(self.contract.columns, Index.of(column))
                self._write_outputs(1, f"{self.total}[{lane or 0}]")

    @contextmanager
    def lane_loop(self, width: int) -> Iterator[str]:
        """A loop over `width` outputs; gives its variable, "" where there is one only."""
        if width == 1:
            yield ""
            return
        with self.block(f"for lane in range({width}):"):
            yield "lane"

    def _write_outputs(self, vector: int, total: str) -> None:
        reduce = self.loop.stages[0].reduces[0]
        self.accumulators[reduce.name] = (total, len(self.blocks) - (vector == 1))
        for stage in self.loop.stages[1:]:
            self._write_stores(stage, vector)


def pieces(count: int) -> range:
    """The groups of (up to) four that a thread's rows or columns lie in."""
    return range(count // VECTOR if count % VECTOR == 0 else count)


class Copy:
    """One operand's way to shared memory: from memory to registers (`load`), and on to one of two buffers (`store`).

    A plain load that is affine in the sums walks through memory: its element's number is kept and moved on (`walks`).
    """

    def __init__(self, writer: RegisterWriter, factor: Factor, name: str, first: str, outer: int, size: int) -> None:
        self.writer, self.factor, self.name, self.first, self.outer, self.extent = (
            writer,
            factor,
            name,
            first,
            outer,
            size,
        )
        tile = writer.tile
        self.chunks = outer * tile.depth // factor.vector
        self.rounds = -(-self.chunks // tile.threads)
        self.stride = (
            outer + VECTOR if factor.along == "sums" else outer
        )  # padding: neighbours along the sums in other banks
        self.size = self.stride * tile.depth
        self.shared = writer.shared(f"{name}_parts", 2 * self.size, writer.element_type)
        writer.declarations[-1] = (
            f"{self.shared} = cuda.shared.array({2 * self.size}, {writer.element_type}, alignment=16)"
        )
        self.next = writer.fresh(f"{name}_next")
        writer.declare(f"{self.next} = cuda.local.array({self.rounds * factor.vector}, {writer.element_type})")
        self.fast = (tile.depth if factor.along == "sums" else outer) // factor.vector
        self.regular = tile.threads % self.fast == 0 and self.chunks % tile.threads == 0
        self.walk: str | None = None
        self.step = 0

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

    def read_from(self, thread: str, width: int) -> None:
        """Where a thread's elements of a column (row) of the first buffer are."""
        self.read = self.writer.fresh(f"{self.name}_read")
        self.writer.line(f"{self.read} = uint32({thread} * {width})" if width > 1 else f"{self.read} = {thread}")

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
