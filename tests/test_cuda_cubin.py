"""What ptxas makes of emitted kernels, without a GPU: spills, stack, registers."""

from __future__ import annotations

import pytest

from fusegraph.codegen.cuda.step import emit_step
from fusegraph.ir.loops import Program
from fusegraph.runtime import cuda_compile
from fusegraph.runtime.cuda_compile import CudaModule, assemble, capability
from tests.cuda_tools import mnist_artifact

pytestmark = pytest.mark.skipif(
    bool(cuda_compile.missing()) or cuda_compile.tool_folder() is None,
    reason=f"ptxas is not there: {cuda_compile.missing() or 'no nvidia-cuda-nvcc wheel'}",
)
CEILING = 64  # registers: a block of 1024 threads still fits


@pytest.fixture(scope="module")
def mnist() -> Program:
    """A training step."""
    return mnist_artifact().fused[0]


@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_90", "sm_100"])
def test_mnist_step(mnist: Program, target: str) -> None:
    step = emit_step(mnist, capability=capability(target))
    module = CudaModule(step, target)
    for kernel in step.kernels:
        _, needs = assemble(module.ptx(kernel.name), target)
        assert (needs.spills, needs.stack) == (0, 0), kernel.name
        assert 0 < needs.registers <= CEILING, kernel.name
        assert needs.shared == kernel.shared_bytes, kernel.name
