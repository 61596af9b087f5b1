"""The register tile: a thread makes tall x wide outputs, so that what it reads from shared memory is used several times.

Two buffers a operand: the next parts are on their way from memory while the present ones are multiplied, and one barrier a
step is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fusegraph.codegen.cuda.contract_copy import Copy
from fusegraph.codegen.cuda.contract_writer import ContractWriter
from fusegraph.codegen.cuda.helpers import helper_name
from fusegraph.codegen.cuda.nest_plan import LANE, VECTOR
from fusegraph.ir.index import Axis, Index


class RegisterWriter(ContractWriter):
    """tall x wide outputs a thread, double buffering."""

    def write(self) -> None:
        """Everything below the signature."""
        copies = self._begin()
        start, sums = self.fresh("start"), self.contract.sizes[3]
        for copy in copies:
            copy.begin()
            self._read_from(copy)
            copy.load(None)
            copy.store(0)
        self.line("cuda.syncthreads()")
        self.line(f"{start} = uint32(0)")
        with self.block(f"while {start} < uint32({sums}):"):
            self._step(copies, start, 0)
            odd = -(-sums // self.tile.depth) % 2 == 1
            with self.guard(f"{start} < uint32({sums})", not odd):
                self._step(copies, start, 1)
        self._epilogue()

    def _begin(self) -> list[Copy]:
        """The thread's outputs, all zero, and both operands' copies."""
        self.open_block()
        tile = self.tile
        across = tile.columns // tile.wide
        self.total = self.fresh("total")
        self.declare(f"{self.total} = cuda.local.array({tile.tall * tile.wide}, {self.element_type})")
        self.x, self.y = self.fresh("x"), self.fresh("y")
        kind = f"outer_product_{tile.tall}x{tile.wide}_{tile.rows}x{tile.columns}"
        self.helper = helper_name(kind, self.reduce.dtype)
        self.helpers.add((kind, self.reduce.dtype))
        self.line(f"{self.x} = uint32({self.thread} % {across})\n{self.y} = uint32({self.thread} // {across})")
        self.row_start = self.variable(self.fresh("first_row"), f"uint32(cuda.blockIdx.y * {tile.rows})", 1)
        self.column_start = self.variable(self.fresh("first_column"), f"uint32(cuda.blockIdx.x * {tile.columns})", 1)
        copies = [
            Copy(self, self.contract.left, "left", self.row_start.name, tile.rows, self.contract.sizes[1]),
            Copy(self, self.contract.right, "right", self.column_start.name, tile.columns, self.contract.sizes[2]),
        ]
        with self.block(f"for i in range({tile.tall * tile.wide}):"):
            self.line(f"{self.total}[i] = {self.zero}")
        return copies

    # -- the main loop --------------------------------------------------------------------------------------------------

    def _read_from(self, copy: Copy) -> None:
        """Where a thread's elements of a column (row) of the first buffer are."""
        thread, count = (self.y, self.tile.tall) if copy.name == "left" else (self.x, self.tile.wide)
        width = min(count, VECTOR)
        copy.read = self.fresh(f"{copy.name}_read")
        self.line(f"{copy.read} = uint32({thread} * {width})" if width > 1 else f"{copy.read} = {thread}")

    def _step(self, copies: list[Copy], start: str, half: int) -> None:
        """Fetch the next parts, multiply those in buffer `half`, put the next ones into the other buffer."""
        self.line(f"{start} = uint32({start} + {self.tile.depth})")
        with self.guard(f"{start} < uint32({self.contract.sizes[3]})"):
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

    # -- the outputs ----------------------------------------------------------------------------------------------------

    def _epilogue(self) -> None:
        """Four outputs (or one) at a time; the rest move up, so that registers are never indexed by a variable."""
        tile, plan = self.tile, self.contract
        width, outputs = min(tile.wide, VECTOR), tile.tall * tile.wide
        with self.block(f"for part in range({outputs // width}):"):
            row = self.variable(self.fresh("row"), f"uint32({self._row_text()})", plan.sizes[1])
            across = pieces(tile.wide)
            shift = f" + part % {across} * {tile.columns // across}" if across > 1 else ""
            own = f"{self.x} * {width}" if width > 1 else self.x
            first = f"{self.column_start.name}{shift} + {own}"
            self.place(plan.rows, Index.of(row))
            if plan.vector > 1:
                self._store_quads(row, first)
            else:
                self._store_singly(row, first, width)
            if outputs > width:
                with self.block(f"for i in range({outputs - width}):"):
                    self.line(f"{self.total}[i] = {self.total}[i + {width}]")

    def _row_text(self) -> str:
        """The row of the `part`-th group of outputs."""
        tile = self.tile
        down, across = pieces(tile.tall), pieces(tile.wide)
        number = "part" if across == 1 else f"part // {across}"
        first = f"{self.row_start.name} + {self.y} * {min(tile.tall, VECTOR)}"
        if down == 1:
            return f"{first} + {number}"
        return f"{first} + part // {across * VECTOR} * {tile.rows // down} + {number} % {VECTOR}"

    def _store_quads(self, row: Axis, first: str) -> None:
        _, rows, columns, _ = self.contract.sizes
        quad = self.variable(self.fresh("quad"), f"uint32(uint32({first}) // 4)", columns // VECTOR)
        condition = self.inside(
            (row.name, rows, self.tile.rows), (quad.name, columns // VECTOR, self.tile.columns // VECTOR)
        )
        with self.only_where(condition, row, quad):
            self.place(self.contract.columns, Index.of(quad) * VECTOR + Index.of(LANE))
            self.write_outputs(VECTOR, f"{self.total}[lane]")

    def _store_singly(self, row: Axis, first: str, width: int) -> None:
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


def pieces(count: int) -> int:
    """In how many groups of (up to) four a thread's rows or columns lie."""
    return count // VECTOR if count % VECTOR == 0 else count
