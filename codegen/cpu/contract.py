"""The emitter for loops of schedule "contract": matrix products and convolutions, register-blocked.

`emit_contract` reads the operands' index maps (contract_plan), picks a way to run the loop (gemm_plan) and writes it
into a module (gemm). Where none fits it gives None, and the loop runs as a plain nest.
"""

from __future__ import annotations

from fusegraph.codegen.cpu.contract_plan import normal_form
from fusegraph.codegen.cpu.gemm import emit_gemm
from fusegraph.codegen.cpu.gemm_plan import GemmPlan, plan_gemm
from fusegraph.codegen.cpu.irtext import Module
from fusegraph.codegen.cpu.kernel import EmittedKernel
from fusegraph.ir.loops import Loop, Program

__all__ = ["emit_contract", "plan_contract"]


def plan_contract(loop: Loop, program: Program, vector_bits: int, exact: bool = False) -> GemmPlan | None:
    """How `loop` would run, or None if it has to run as a plain nest."""
    normal = normal_form(loop, program)
    return None if normal is None else plan_gemm(normal, program, vector_bits, exact)


def emit_contract(
    module: Module, loop: Loop, program: Program, vector_bits: int, exact: bool = False
) -> EmittedKernel | None:
    """Write the kernel of `loop` (schedule "contract") into `module`; None if it has to run as a plain nest.

    `exact=True`: sums run in the loop's own order, without fused multiply-add.
    """
    plan = plan_contract(loop, program, vector_bits, exact)
    return None if plan is None else emit_gemm(module, plan, exact)
