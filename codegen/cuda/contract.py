"""Products of matrices and convolutions as tiled kernels (contract_plan.py says which axis plays which role).

Three ways to write the same tile:

- contract_readable.py: the lecture's kernel, one output a thread. A block of 16 x 16 threads copies a 16 x 16 part of each operand
  to shared memory, waits, adds up 16 products, waits. Guards at the edges make it right for any size: the oracle of the others.
- contract_register.py: a thread makes 8 x 8 (or 4 x 4, 4 x 1) outputs, so that each element it reads from shared memory is used
  8 times. Operands are read by 128 bits where neighbours allow it.
- contract_mma.py: a warp multiplies on tensor cores, operands rounded to tf32.

The last two share the way of the operands to shared memory (contract_operand.py, contract_copy.py, contract_layout.py) and the
main loop (contract_tiled.py): the next parts are on their way from memory while the present ones are multiplied.
Operands may be any expression of loads with masks (padding of a convolution: implicit GEMM), outputs any stages of stores.
docs/cuda-matmul.md shows them side by side.
"""

from __future__ import annotations

from fusegraph.codegen.cuda.contract_mma import MmaWriter
from fusegraph.codegen.cuda.contract_plan import plan_contract
from fusegraph.codegen.cuda.contract_readable import ReadableWriter
from fusegraph.codegen.cuda.contract_register import RegisterWriter
from fusegraph.codegen.cuda.contract_writer import ContractWriter
from fusegraph.codegen.cuda.kernel import CudaKernel
from fusegraph.codegen.python_names import ProgramNames
from fusegraph.ir.loops import Loop, Program

AMPERE = (8, 0)  # the compute capability from which on there are cp.async and tf32


def emit_contract(
    loop: Loop,
    program: Program,
    names: ProgramNames,
    readable: bool = False,
    capability: tuple[int, int] = (9, 0),
    precision: str = "float32",
) -> CudaKernel | None:
    """The kernel of a loop of schedule "contract"; None where it has to run as a plain nest.

    precision: "tf32" for products of float32 on tensor cores, where the card has them; everything else stays as it is.
    """
    plan = plan_contract(loop, program.buffers, readable, precision == "tf32" and capability >= AMPERE)
    if plan is None:
        return None
    writer: ContractWriter
    if plan.tensor:
        writer = MmaWriter(plan, names, at_once=True)
    elif plan.tile.tall == plan.tile.wide == 1:
        writer = ReadableWriter(plan, names)
    else:
        writer = RegisterWriter(plan, names, at_once=capability >= AMPERE)
    writer.write()
    tile = plan.tile
    how = f"{tile.rows} x {tile.columns} outputs a block, {tile.tall} x {tile.wide} a thread"
    return writer.finish(plan.grid, (tile.threads, 1, 1), how + (", tf32 on tensor cores" if plan.tensor else ""))
