"""The main loop of the tiles: parts of both operands on their way to shared memory while the present ones are multiplied.

Double buffering, for operands that go through registers, a step:      The pipeline, where cp.async serves, a step:
    fetch the next parts into registers                                    wait for the oldest copy; barrier
    multiply those in this buffer                                          begin to copy the part two steps ahead
    registers into the other buffer; barrier                               multiply those in this buffer

Either way one barrier a step is enough: the buffer that is written was read a step before. In the pipeline an operand that
cannot be copied at once goes through registers as before, one step ahead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from fusegraph.codegen.cuda.contract_copy import AsyncCopy, StagedCopy, may_copy_at_once
from fusegraph.codegen.cuda.contract_layout import Layout
from fusegraph.codegen.cuda.contract_plan import ContractPlan, Factor, Tile
from fusegraph.codegen.cuda.contract_writer import ContractWriter
from fusegraph.codegen.python_names import ProgramNames
from fusegraph.ir.index import Axis, Index

MOST_BUFFERS = 3  # of the pipeline: two parts on their way while one is multiplied
Copy = StagedCopy | AsyncCopy


class TiledWriter(ContractWriter):
    """Subclasses say how shared memory is laid out, and what a thread multiplies and stores."""

    shared_limit = 48 * 1024  # bytes of static shared memory that every card has

    def __init__(self, plan: ContractPlan, names: ProgramNames, at_once: bool) -> None:
        super().__init__(plan, names)
        self.at_once = at_once  # cp.async may be used
        self.total = ""

    def begin_outputs(self) -> None:
        """Which outputs the thread makes, and their accumulators `total`."""
        raise NotImplementedError

    def layout(self, factor: Factor, outer: int) -> Layout:
        """How a factor's part lies in shared memory."""
        raise NotImplementedError

    def read_from(self, copy: Copy) -> None:
        """Where this thread reads a part."""
        raise NotImplementedError

    def multiply(self, left: Copy, right: Copy, buffer: int) -> None:
        """Add the products of the parts in a buffer to `total`."""
        raise NotImplementedError

    def write_tile(self) -> None:
        """The stages behind the sum, for all outputs of the thread."""
        raise NotImplementedError

    def pipeline_tile(self) -> Tile:
        """The tile, where the pipeline runs it: waiting takes instructions, so a step should be long."""
        return self.tile

    def write(self) -> None:
        """Everything below the signature."""
        self.open_block()
        tile = self.tile
        self.begin_outputs()
        self.row_start = self.variable(self.fresh("first_row"), f"uint32(cuda.blockIdx.y * {tile.rows})", 1)
        self.column_start = self.variable(self.fresh("first_column"), f"uint32(cuda.blockIdx.x * {tile.columns})", 1)
        left, right = self._copies()
        for copy in (left, right):
            copy.begin()
            self.read_from(copy)
        if isinstance(left, StagedCopy) and isinstance(right, StagedCopy):
            self._double_buffering(left, right)
        else:
            self._pipeline(left, right)
        self.write_tile()

    def _copies(self) -> tuple[Copy, Copy]:
        """How each operand comes to shared memory; sets the number of steps, and of buffers."""
        plan = self.contract
        sides = (
            (plan.left, "left", self.row_start.name, plan.sizes[1], self.tile.rows),
            (plan.right, "right", self.column_start.name, plan.sizes[2], self.tile.columns),
        )
        at_once = [self.at_once and may_copy_at_once(self, side[0], self.layout(side[0], side[4])) for side in sides]
        if any(at_once):
            self.tile = self.pipeline_tile()
        layouts = [self.layout(side[0], side[4]) for side in sides]
        self.steps = -(-plan.sizes[3] // self.tile.depth)
        self.buffers = self._how_many_buffers(layouts) if any(at_once) else 2
        left, right = (
            (AsyncCopy if fast else StagedCopy)(self, *side[:4], layout, self.buffers)
            for side, layout, fast in zip(sides, layouts, at_once, strict=True)
        )
        return left, right

    def _how_many_buffers(self, layouts: list[Layout]) -> int:
        """As many as fit, and as there are steps; two at least."""
        fitting = self.shared_limit // (self.reduce.dtype.itemsize * sum(layout.size for layout in layouts))
        return max(2, min(MOST_BUFFERS, fitting, self.steps))

    # -- double buffering -------------------------------------------------------------------------------------------------

    def _double_buffering(self, left: StagedCopy, right: StagedCopy) -> None:
        start, sums = self.fresh("start"), self.contract.sizes[3]
        for copy in (left, right):
            copy.load("")
            copy.store(0)
        self.line(f"cuda.syncthreads()\n{start} = uint32(0)")
        with self.block(f"while {start} < uint32({sums}):"):
            self._exchange(left, right, start, 0)
            with self.guard(f"{start} < uint32({sums})", self.steps % 2 == 0):
                self._exchange(left, right, start, 1)

    def _exchange(self, left: StagedCopy, right: StagedCopy, start: str, buffer: int) -> None:
        """Fetch the next parts, multiply those in `buffer`, put the next ones into the other buffer."""
        self.line(f"{start} = uint32({start} + {self.tile.depth})")
        with self.guard(f"{start} < uint32({self.contract.sizes[3]})"):
            for copy in (left, right):
                copy.load(start)
        self.multiply(left, right, buffer)
        for copy in (left, right):
            copy.store(1 - buffer)
        self.line("cuda.syncthreads()")

    # -- the pipeline -----------------------------------------------------------------------------------------------------

    def _pipeline(self, left: Copy, right: Copy) -> None:
        start, sums, depth = self.fresh("start"), self.contract.sizes[3], self.tile.depth
        for part in range(self.buffers - 1):
            if part < self.steps:
                self._issue(left, right, str(part * depth) if part else "", part)
            self.line("commit_copies()")
        for copy in (left, right):
            if isinstance(copy, StagedCopy):
                copy.load("")
                copy.store(0)
        self.line(f"{start} = uint32(0)")
        if self.steps <= self.buffers:
            for part in range(self.steps):
                self._advance(left, right, start, part)
            return
        with self.block(f"while {start} < uint32({sums}):"):
            for part in range(self.buffers):
                self._advance(left, right, start, part)
                if part < self.buffers - 1 and self.steps % self.buffers:
                    self.line(f"if {start} >= uint32({sums - (part + 1) * depth}):\n    break")
            self.line(f"{start} = uint32({start} + {self.buffers * depth})")

    def _advance(self, left: Copy, right: Copy, start: str, part: int) -> None:
        """One step: the operands' parts of the sums from start + part * depth on lie in buffer `part`."""
        depth, buffers = self.tile.depth, self.buffers
        self.line("wait_older_copies()" if buffers > 2 else "wait_copies()")
        self.line("cuda.syncthreads()")
        ahead = part + buffers - 1
        if self.steps > ahead:
            with self._where_left(start, ahead):
                self._issue(left, right, f"{start} + {ahead * depth}", ahead % buffers)
        self.line("commit_copies()")
        staged = [copy for copy in (left, right) if isinstance(copy, StagedCopy) and self.steps > part + 1]
        if staged:
            with self._where_left(start, part + 1):
                for copy in staged:
                    copy.load(f"{start} + {(part + 1) * depth}")
        self.multiply(left, right, part)
        for copy in staged:
            copy.store((part + 1) % buffers)

    def _where_left(self, start: str, steps: int) -> AbstractContextManager[None]:
        """Where the sums go on `steps` steps behind `start`."""
        always = self.steps <= self.buffers or (self.steps % self.buffers == 0 and steps < self.buffers)
        return self.guard(f"{start} < uint32({self.contract.sizes[3] - steps * self.tile.depth})", always)

    def _issue(self, left: Copy, right: Copy, start: str, buffer: int) -> None:
        for copy in (left, right):
            if isinstance(copy, AsyncCopy):
                copy.issue(start, buffer)

    # -- outputs --------------------------------------------------------------------------------------------------------

    def store_singly(self, row: Axis, first: str, width: int) -> None:
        """The stages behind the sum for `width` neighbours of a row, the first in column `first` (a text), one by one."""
        _, rows, columns, _ = self.contract.sizes
        with self.lane_loop(width) as lane:
            text = f"uint32({first} + {lane})" if lane else f"uint32({first})"
            column = self.variable(self.fresh("column"), text, columns)
            condition = self.inside((row.name, rows, self.tile.rows), (column.name, columns, self.tile.columns))
            with self.only_where(condition, row, column):
                self.place(self.contract.columns, Index.of(column))
                self.write_outputs(1, f"{self.total}[{lane or 0}]")

    @contextmanager
    def lane_loop(self, width: int) -> Iterator[str]:
        """A loop over `width` outputs; gives its variable, "" where there is one only."""
        if width == 1:
            yield ""
            return
        with self.block(f"for lane in range({width}):"):
            yield "lane"
