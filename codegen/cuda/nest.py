"""Writes plain loop nests as CUDA kernels, the way that nest_plan has chosen.

The text of a map, one thread a group of four elements:                and of a row kernel, one warp a row:

    quad = uint32(cuda.blockIdx.x * 256 + cuda.threadIdx.x)               member = uint32(thread % 32)
    while quad < 12544:                                                   largest = float32(-math.inf)
        x_4 = load4(x, uint32(quad * 4))                                  for slot in range(4):
        for lane in range(4):                                                 ...
            out_4[lane] = relu(x_4[lane])                                 largest = team_max_32(largest)
        store4(out, uint32(quad * 4), out_4[0], ...)

Rows that several stages read are kept in registers (`x_row`): memory is read once.
"""

from __future__ import annotations

from dataclasses import replace

from fusegraph.codegen.cuda.kernel import CudaKernel
from fusegraph.codegen.cuda.nest_column import ColumnWriter
from fusegraph.codegen.cuda.nest_map import MapWriter, ThreadWriter
from fusegraph.codegen.cuda.nest_plan import WARP, NestPlan, plan_nest
from fusegraph.codegen.cuda.nest_row import RowWriter
from fusegraph.codegen.cuda.nest_rows import on_chip, private_temps
from fusegraph.codegen.cuda.nest_writer import NestWriter
from fusegraph.codegen.python_names import ProgramNames
from fusegraph.ir.loops import Loop, Program

__all__ = ["NestWriter", "emit_nest"]

_WRITERS: dict[str, type[NestWriter]] = {
    "map": MapWriter,
    "thread": ThreadWriter,
    "row": RowWriter,
    "column": ColumnWriter,
}


def emit_nest(loop: Loop, program: Program, names: ProgramNames) -> CudaKernel:
    """The kernel of a loop of schedule "nest" (or of any loop without "add" stores)."""
    plan = on_chip(plan_nest(loop, program.buffers), program.buffers, private_temps(loop, program))
    writer = _WRITERS[plan.kind](plan, names)
    if plan.points:
        writer.write()
    kernel = writer.finish((plan.blocks, 1, 1), (plan.block, 1, 1), _how(plan), plan.hidden)
    return replace(kernel, kind="map" if plan.kind in ("map", "thread") else "team")


def _how(plan: NestPlan) -> str:
    if plan.kind == "map":
        return f"{'four elements' if plan.vector > 1 else 'an element'} a thread"
    if plan.kind == "thread":
        return "a point a thread"
    threads = f"{plan.team} threads" if plan.team != WARP or plan.kind == "column" else "a warp"
    return f"{threads} a {plan.kind}" + (f", {plan.teams} a block" if plan.teams > 1 else "")
