"""The lecture's kernel: one output a thread, 16 x 16 of them a block.

Guards at the edges make it right for any size. It is there to be read, and as the oracle of the faster ones.
"""

from __future__ import annotations

from fusegraph.codegen.cuda.contract_plan import Factor
from fusegraph.codegen.cuda.contract_writer import ContractWriter
from fusegraph.ir.index import Axis, Index


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
            self.accumulators[self.reduce.name] = (total, 0)
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
