"""The machine code (SASS) of the hot loops of products: what the multiprocessors would spend their time on. No GPU is needed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fusegraph.codegen.cuda.contract_plan import Tile
from fusegraph.ir import GraphBuilder
from fusegraph.ir.graph import Graph
from fusegraph.runtime import cuda_compile
from fusegraph.runtime.cuda_compile import Resources, assemble, capability, disassemble, loops
from tests.cuda_ptx import StepPtx
from tests.cuda_tools import step_of

F32 = np.dtype(np.float32)
TARGETS = ("sm_75", "sm_80", "sm_90", "sm_100")
# rows, sums, columns: whole tiles (guards belong to the edges, not to the rate of the inner loop); those of docs/cuda_matmul.py
SIZES = (128, 256, 256)
LARGE = Tile(128, 128, 8, 8, 8)


def _absent() -> str:
    """Why there is no disassembly here; "" if there is."""
    folder = cuda_compile.tool_folder()
    if cuda_compile.missing() or folder is None:
        return cuda_compile.missing() or "no nvidia-cuda-nvcc wheel"
    return "" if (folder / "nvdisasm").exists() else "no nvidia-cuda-nvdisasm wheel"


pytestmark = pytest.mark.skipif(bool(_absent()), reason=f"kernels cannot be disassembled: {_absent()}")


def dense(layout: str, sizes: tuple[int, int, int] = SIZES) -> Graph:
    """relu(x @ w + bias); layout: N or T for each operand, T where it lies transposed in memory."""
    rows, sums, columns = sizes
    builder = GraphBuilder()
    x = builder.input("x", (rows, sums) if layout[0] == "N" else (sums, rows), F32)
    w = builder.input("w", (sums, columns) if layout[1] == "N" else (columns, sums), F32)
    bias = builder.input("bias", (1, columns), F32)
    factors = [
        builder.add("permute", (node,), {"axes": (1, 0)}) if side == "T" else node
        for node, side in zip((x, w), layout, strict=True)
    ]
    product = builder.add("matmul", factors, {})
    wide = builder.add("expand", (bias,), {"shape": (rows, columns)})
    return builder.finish([builder.add("relu", (builder.add("add", (product, wide), {}),), {})], name="dense")


def main_loop(graph: Graph, target: str, **options: str) -> tuple[Counter[str], Resources]:
    """How often each opcode stands in the kernel's longest loop; what the kernel needs."""
    steps = {card: step_of(graph, capability=capability(card), **options) for card in TARGETS}
    (kernel,) = steps[target].kernels  # bias and relu are to be part of the product's kernel
    also = [card for card, step in steps.items() if step.kernels[0].source == kernel.source]
    cubin, needs = assemble(StepPtx(steps[target], target).ptx(kernel, also), target)
    return Counter(loops(disassemble(cubin))[-1]), needs


def part(opcodes: Counter[str], *starts: str) -> int:
    """Instructions whose opcode begins so."""
    return sum(count for opcode, count in opcodes.items() if opcode.startswith(starts))


def vectors(opcodes: Counter[str], start: str) -> int:
    """Instructions of 128 bits whose opcode begins so."""
    return sum(count for opcode, count in opcodes.items() if opcode.startswith(start) and ".128" in opcode)


@pytest.fixture
def large_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tile of large products, though these are small."""
    monkeypatch.setattr("fusegraph.codegen.cuda.contract_plan.choose_tile", lambda *sizes: LARGE)


@pytest.mark.usefixtures("large_tile")
@pytest.mark.parametrize("layout", ["NN", "NT", "TN"])
@pytest.mark.parametrize("target", TARGETS)
def test_main_loop_of_the_register_tile(layout: str, target: str) -> None:
    """nvcc's own kernel has 512 FFMA among 562 instructions."""
    opcodes, needs = main_loop(dense(layout), target)
    assert (needs.spills, needs.stack) == (0, 0) and needs.registers <= 128
    steps = part(opcodes, "FFMA") // 512  # of 8 sums each
    assert part(opcodes, "FFMA") == 512 * steps and steps >= 2
    assert part(opcodes, "FFMA") / opcodes.total() >= (0.90 if target in ("sm_80", "sm_90") else 0.88)
    assert vectors(opcodes, "LDS") == 32 * steps
    assert part(opcodes, "LDS") <= 34 * steps  # ptxas puts a few LDS without effect beside cp.async
    assert part(opcodes, "DADD", "DMUL", "DFMA", "F2F") == 0
    # operands come by 128 bits: where neighbours stay neighbours in shared memory without a detour through registers
    at_once = 0 if target == "sm_75" else (layout[0] == "T") + (layout[1] == "N")
    assert vectors(opcodes, "LDGSTS") == part(opcodes, "LDGSTS") == at_once * steps
    assert vectors(opcodes, "LDG.E") == part(opcodes, "LDG.E") == (2 - at_once) * steps


@pytest.mark.parametrize("target", TARGETS[1:])
def test_main_loop_on_tensor_cores(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The large tile: a step of 8 sums takes 16 HMMA a warp, for 24 elements that are read and rounded."""
    large = Tile(128, 128, 16, 8, 8)
    monkeypatch.setattr("fusegraph.codegen.cuda.contract_plan.choose_tile", lambda *sizes: large)
    opcodes, needs = main_loop(dense("NN"), target, precision="tf32")
    assert (needs.spills, needs.stack) == (0, 0) and needs.registers <= 128 and needs.shared <= 48 * 1024
    steps = part(opcodes, "HMMA") // 16
    assert part(opcodes, "HMMA.1688.F32.TF32") == 16 * steps and steps >= 2
    assert vectors(opcodes, "LDGSTS") == part(opcodes, "LDGSTS") > 0 == part(opcodes, "LDG.E")
    assert part(opcodes, "FFMA", "DADD", "DMUL", "DFMA", "F2F.F64", "LDL", "STL") == 0
