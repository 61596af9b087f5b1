"""What ptxas makes of emitted kernels, without a GPU: spills, stack, registers, the GEMM's instructions."""

from __future__ import annotations

import pytest

from fusegraph.codegen.cuda.contract_plan import Tile
from fusegraph.codegen.cuda.step import CudaStep, emit_step
from fusegraph.errors import UnsupportedError
from fusegraph.runtime import cuda_compile
from fusegraph.runtime.cuda_compile import CudaModule, assemble, disassemble, loops
from tests.cuda_tools import mnist_artifact, step_of
from tests.test_cuda_emit import product

pytestmark = pytest.mark.skipif(
    bool(cuda_compile.missing()) or cuda_compile.tool_folder() is None,
    reason=f"ptxas is not there: {cuda_compile.missing() or 'no nvidia-cuda-nvcc wheel'}",
)
CEILING = 64  # registers: a block of 1024 threads still fits


@pytest.fixture(scope="module")
def mnist() -> CudaStep:
    """The kernels of a training step."""
    return emit_step(mnist_artifact().fused[0])


@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_90", "sm_100"])
def test_mnist_step(mnist: CudaStep, target: str) -> None:
    module = CudaModule(mnist, target)
    for kernel in mnist.kernels:
        _, needs = assemble(module.ptx(kernel.name), target)
        assert (needs.spills, needs.stack) == (0, 0), kernel.name
        assert 0 < needs.registers <= CEILING, kernel.name
        assert needs.shared == kernel.shared_bytes, kernel.name


def test_main_loop_of_the_large_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """90 % of the main loop's instructions are FFMA (nvcc's own kernel: 512 of 562), at most 128 registers."""
    monkeypatch.setattr("fusegraph.codegen.cuda.contract_plan.choose_tile", lambda *sizes: Tile(128, 128, 8, 8, 8))
    step = step_of(product((256, 64), (64, 128)))
    cubin, needs = assemble(CudaModule(step).ptx(step.kernels[0].name))
    assert (needs.spills, needs.stack) == (0, 0) and needs.registers <= 128
    try:
        main = loops(disassemble(cubin))[-1]
    except UnsupportedError as error:
        pytest.skip(str(error))
    assert main.count("FFMA") == 1024
    assert main.count("FFMA") / len(main) >= 0.90
    assert main.count("LDS.128") == 64 and main.count("LDG.E.128") == 4
    assert not [opcode for opcode in main if opcode.startswith(("DADD", "DMUL", "DFMA", "F2F"))]
