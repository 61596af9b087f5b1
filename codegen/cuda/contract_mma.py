"""Products on tensor cores: operands rounded to tf32 (10 bits of mantissa), products and sums in float32.

A warp makes tall x wide pieces of 16 x 8 outputs with mma.sync.m16n8k8. Parts lie in shared memory as they lie in memory, so
that they are copied by 128 bits in every layout; groups are exchanged (swizzled) so that a warp's reads meet in no bank.
"""

from __future__ import annotations

from fusegraph.codegen.cuda.contract_helpers import TENSOR_PRODUCT
from fusegraph.codegen.cuda.contract_layout import Layout, SwizzledColumns, SwizzledRows
from fusegraph.codegen.cuda.contract_plan import Factor
from fusegraph.codegen.cuda.contract_tiled import Copy, TiledWriter
from fusegraph.codegen.cuda.helpers import helper_name
from fusegraph.ir.index import Index


class MmaWriter(TiledWriter):
    """tile.tall x tile.wide outputs a thread: pairs of rows and of columns in each piece of 16 x 8."""

    def begin_outputs(self) -> None:
        """Which warp and which thread of it; all outputs zero."""
        tile = self.tile
        self.tall, self.wide = tile.tall // 2, tile.wide // 2  # pieces
        self.warp_rows, self.warp_columns = 16 * self.tall, 8 * self.wide
        count = tile.tall * tile.wide
        self.total = self.fresh("total")
        self.declare(f"{self.total} = cuda.local.array({count}, {self.element_type})")
        self.group, self.quad, self.warp = (self.fresh(name) for name in ("group", "quad_lane", "warp"))
        self.line(
            f"{self.group} = uint32({self.thread} % 32 // 4)\n{self.quad} = uint32({self.thread} % 4)\n"
            f"{self.warp} = uint32({self.thread} // 32)"
        )
        across = tile.columns // self.warp_columns
        self.row, self.column = self.fresh("warp_row"), self.fresh("warp_column")
        self.line(f"{self.row} = uint32({self.warp} // {across} * {self.warp_rows})")
        self.line(f"{self.column} = uint32({self.warp} % {across} * {self.warp_columns})")
        self.line(f"for i in range({count}):\n    {self.total}[i] = {self.zero}")
        self._reads: dict[str, str] = {}

    # -- the main loop --------------------------------------------------------------------------------------------------

    def layout(self, factor: Factor, outer: int) -> Layout:
        """As in memory."""
        return (SwizzledRows if factor.along == "sums" else SwizzledColumns)(self.tile.depth, outer)

    def read_from(self, copy: Copy) -> None:
        """Where the thread's elements are, for each exchange of groups."""
        base = self.row if copy.name == "left" else self.column
        blocks = 2 * self.tall if copy.name == "left" else self.wide
        if isinstance(copy.layout, SwizzledRows):
            swap = f"{self.group} // 2 % 4 * 4"
            places = [f"({base} + {self.group}) * 16 + ({4 * n} ^ {swap}) + {self.quad}" for n in range(4)]
        else:
            places = [
                f"{self.quad} * {copy.layout.outer} + (({base} // 8 + {n}) ^ {self.quad}) * 8 + {self.group}"
                for n in range(min(blocks, 4))
            ]
        self._reads[copy.name] = read = self.fresh(f"{copy.name}_read")
        self.declare(f"{read} = cuda.local.array({len(places)}, uint32)")
        self.line("\n".join(f"{read}[{n}] = uint32({place})" for n, place in enumerate(places)))

    def multiply(self, left: Copy, right: Copy, buffer: int) -> None:
        """depth / 8 times: a tensor core's step."""
        tile = self.tile
        kinds = ["rows" if isinstance(copy.layout, SwizzledRows) else "columns" for copy in (left, right)]
        kind = f"{TENSOR_PRODUCT}{'_'.join(kinds)}_{self.tall}x{self.wide}_{tile.rows}x{tile.columns}"
        self.helpers.add((kind, self.reduce.dtype))
        operands = [f"{copy.shared}, {self._reads[copy.name]}, {buffer * copy.layout.size}" for copy in (left, right)]
        for step in range(tile.depth // 8):
            self.call(helper_name(kind, self.reduce.dtype), [self.total, *operands, str(step)])

    # -- the outputs ----------------------------------------------------------------------------------------------------

    def write_tile(self) -> None:
        """Two neighbours at a time; the rest move up, so that registers are never indexed by a variable."""
        outputs = self.tile.tall * self.tile.wide
        with self.block(f"for part in range({outputs // 2}):"):
            place = f"{self.row_start.name} + {self.row} + part // {2 * self.wide} * 16 + part % 2 * 8 + {self.group}"
            row = self.variable(self.fresh("row"), f"uint32({place})", self.contract.sizes[1])
            shift = f" + part // 2 % {self.wide} * 8" if self.wide > 1 else ""
            first = f"{self.column_start.name} + {self.column}{shift} + {self.quad} * 2"
            self.place(self.contract.rows, Index.of(row))
            self.store_singly(row, first, 2)
            if outputs > 2:
                with self.block(f"for i in range({outputs - 2}):"):
                    self.line(f"{self.total}[i] = {self.total}[i + 2]")
