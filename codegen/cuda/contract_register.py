"""The register tile: a thread makes tall x wide outputs, so that what it reads from shared memory is used several times."""

from __future__ import annotations

from dataclasses import replace

from fusegraph.codegen.cuda.contract_layout import Columns, Layout
from fusegraph.codegen.cuda.contract_plan import Factor, Tile
from fusegraph.codegen.cuda.contract_tiled import Copy, TiledWriter
from fusegraph.codegen.cuda.helpers import helper_name
from fusegraph.codegen.cuda.nest_plan import LANE, VECTOR
from fusegraph.ir.index import Axis, Index


class RegisterWriter(TiledWriter):
    """tall x wide outputs a thread."""

    shared_limit = 40 * 1024  # a third buffer of the large tile would only make its unrolled loop longer

    def begin_outputs(self) -> None:
        """The thread's outputs, all zero."""
        tile = self.tile
        across, count = tile.columns // tile.wide, tile.tall * tile.wide
        self.total = self.fresh("total")
        self.declare(f"{self.total} = cuda.local.array({count}, {self.element_type})")
        self.x, self.y = self.fresh("x"), self.fresh("y")
        kind = f"outer_product_{tile.tall}x{tile.wide}_{tile.rows}x{tile.columns}"
        self.helper = helper_name(kind, self.reduce.dtype)
        self.helpers.add((kind, self.reduce.dtype))
        self.line(f"{self.x} = uint32({self.thread} % {across})\n{self.y} = uint32({self.thread} // {across})")
        self.line(f"for i in range({count}):\n    {self.total}[i] = {self.zero}")
        self._reads: dict[str, str] = {}

    def pipeline_tile(self) -> Tile:
        """Steps of 16 for the large tile: with steps of 8 its main loop has 89.6 to 90.6 % FFMA, so 91.1 to 91.8 %."""
        return (
            replace(self.tile, depth=max(self.tile.depth, 16)) if self.tile.tall == self.tile.wide == 8 else self.tile
        )

    # -- the main loop --------------------------------------------------------------------------------------------------

    def layout(self, factor: Factor, outer: int) -> Layout:
        """Columns; padded where neighbours of memory do not stay neighbours."""
        return Columns(self.tile.depth, outer, VECTOR if factor.along == "sums" else 0)

    def read_from(self, copy: Copy) -> None:
        """Where the thread's elements of the first column (row) are."""
        thread, count = (self.y, self.tile.tall) if copy.name == "left" else (self.x, self.tile.wide)
        width = min(count, VECTOR)
        self._reads[copy.name] = read = self.fresh(f"{copy.name}_read")
        self.line(f"{read} = uint32({thread} * {width})" if width > 1 else f"{read} = {thread}")

    def multiply(self, left: Copy, right: Copy, buffer: int) -> None:
        """depth times: read a column of the left part and a row of the right one, add their outer product."""
        for step in range(self.tile.depth):
            places = [
                f"{self._reads[copy.name]} + {buffer * copy.layout.size + step * copy.layout.k_step}"
                for copy in (left, right)
            ]
            places = [place.removesuffix(" + 0") for place in places]
            self.line(f"{self.helper}({self.total}, {left.shared}, {places[0]}, {right.shared}, {places[1]})")

    # -- the outputs ----------------------------------------------------------------------------------------------------

    def write_tile(self) -> None:
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
                self.store_singly(row, first, width)
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


def pieces(count: int) -> int:
    """In how many groups of (up to) four a thread's rows or columns lie."""
    return count // VECTOR if count % VECTOR == 0 else count
