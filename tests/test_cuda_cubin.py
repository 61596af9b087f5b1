"""What ptxas makes of the kernels of all example steps, without a GPU: spills, stack, registers, shared memory."""

from __future__ import annotations

from typing import Any

import pytest

import fusegraph as fg
from benchmarks.models import MODELS, make_step
from fusegraph.codegen.cuda.step import emit_step
from fusegraph.runtime import cuda_compile
from fusegraph.runtime.cuda_compile import Resources, assemble, capability
from tests.cuda_ptx import StepPtx

pytestmark = pytest.mark.skipif(
    bool(cuda_compile.missing()) or cuda_compile.tool_folder() is None,
    reason=f"ptxas is not there: {cuda_compile.missing() or 'no nvidia-cuda-nvcc wheel'}",
)
TARGETS = ("sm_75", "sm_80", "sm_90", "sm_100")
REGISTER_FILE, STATIC_SHARED = 65536, 48 * 1024  # of a multiprocessor; of a block
CEILING = {"product": 128, "other": 64}  # registers of a thread. These numbers may only fall.


def needs_of(name: str, optimizer: str, targets: tuple[str, ...]) -> dict[tuple[str, str], tuple[Any, Resources]]:
    """(target, kernel) -> the kernel and what it needs, of a model's training step at its usual batch size."""
    training = make_step(name, optimizer=optimizer)
    program = fg.compile(training.step, backend="reference").compiled_for(*next(training.batches(1))).artifact.fused[0]
    steps = {target: emit_step(program, capability=capability(target)) for target in targets}
    texts = {target: {kernel.source for kernel in step.kernels} for target, step in steps.items()}
    found = {}
    for target, step in steps.items():
        ptx = StepPtx(step, target)
        for kernel in step.kernels:
            also = [other for other in targets if kernel.source in texts[other]]
            found[target, kernel.name] = kernel, assemble(ptx.ptx(kernel, also), target)[1]
    return found


def check(found: dict[tuple[str, str], tuple[Any, Resources]]) -> None:
    """Nothing is spilled, and enough blocks fit on a multiprocessor."""
    problems = []
    for (target, name), (kernel, needs) in found.items():
        kind = "product" if "outputs a block" in kernel.how else "other"
        if needs.spills or needs.stack:
            problems.append(f"{target} {name}: {needs.spills} bytes spilled, {needs.stack} bytes of stack")
        if not 0 < needs.registers <= CEILING[kind] or needs.registers * kernel.threads > REGISTER_FILE:
            problems.append(f"{target} {name} ({kernel.how}): {needs.registers} registers, {kernel.threads} threads")
        if needs.shared != kernel.shared_bytes or needs.shared > STATIC_SHARED:
            problems.append(f"{target} {name}: {needs.shared} bytes of shared memory, not {kernel.shared_bytes}")
    assert problems == []


@pytest.mark.parametrize("name", sorted(MODELS))
def test_training_step(name: str) -> None:
    """Forward, backward and update with momentum. One model for all generations of cards."""
    check(needs_of(name, "sgd", TARGETS if name == "minitorch" else ("sm_90",)))


def test_training_step_with_adam() -> None:
    """Only the kernels of the update are others."""
    check(needs_of("bag", "adam", ("sm_90",)))
