"""Loops that share a launch: none reads or writes what another one writes, and results come in an order that is right."""

from __future__ import annotations

import random

import numpy as np
import pytest

from benchmarks.models import make_step
from fusegraph.codegen.cuda.batches import MOST_LOOPS, MOST_POINTERS, Work, in_batches
from fusegraph.codegen.cuda.kernel import CudaKernel
from fusegraph.codegen.cuda.step import CudaStep, emit_step
from fusegraph.dtypes import float32
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Loop, Stage, Store
from fusegraph.ir.scalar import load, op
from fusegraph.runtime import cuda_compile
from tests.cuda_traffic import check, cuda_artifact, random_inputs
from tests.test_cuda_budget import optimizer_step

needs_wheels = pytest.mark.skipif(
    bool(cuda_compile.missing()), reason=f"kernels cannot be compiled: {cuda_compile.missing()}"
)


def work(number: int, reads: list[str], written: str, kind: str = "map", threads: int = 256, text: str = "") -> Work:
    axis = Axis(f"i{number}", 8)
    values = [load(name, (Index.of(axis),), float32) for name in reads]
    total = values[0]
    for value in values[1:]:
        total = op("add", total, value)
    loop = Loop(f"k{number}", (axis,), (Stage(stores=(Store(written, (Index.of(axis),), total),)),))
    buffers = (*dict.fromkeys([*reads, written]),)
    return Work(
        loop, CudaKernel(loop.name, buffers, text, frozenset(), (1, 1, 1), (threads, 1, 1), "", 0, kind, (loop.name,))
    )


def test_batches_of_random_programs_keep_every_dependency() -> None:
    """Any two loops of which one writes what the other touches stay in their order, in different launches."""
    draw = random.Random(0)
    for _ in range(60):
        names = [f"b{i}" for i in range(draw.randint(3, 12))]
        works = [
            work(i, draw.sample(names, draw.randint(1, 2)), draw.choice(names), draw.choice(["map", "team", ""]))
            for i in range(draw.randint(1, 14))
        ]
        batches = in_batches(works)
        place = {w.kernel.name: number for number, batch in enumerate(batches) for w in batch}
        assert sorted(place) == sorted(w.kernel.name for w in works)
        for i, early in enumerate(works):
            for late in works[i + 1 :]:
                if early.waits_for(late):
                    assert place[early.kernel.name] < place[late.kernel.name]
        assert all(len(batch) == 1 for batch in batches if not batch[0].kernel.kind)


def test_independent_loops_share_a_launch_up_to_a_number() -> None:
    works = [work(i, [f"x{i}"], f"y{i}") for i in range(MOST_LOOPS + 3)]
    sizes = [len(batch) for batch in in_batches(works)]
    assert sorted(sizes) == [3, MOST_LOOPS]
    many = [work(i, [f"x{i}", f"z{i}"], f"y{i}") for i in range(MOST_LOOPS)]
    assert all(len({b for w in batch for b in w.kernel.buffers}) <= MOST_POINTERS for batch in in_batches(many))


def test_kernels_with_barriers_need_all_threads_of_a_block() -> None:
    plain, barrier = work(0, ["a"], "b", threads=128), work(1, ["c"], "d", threads=64, text="cuda.syncthreads()")
    assert len(in_batches([plain, barrier])) == 2
    assert len(in_batches([plain, work(1, ["c"], "d", threads=64)])) == 1


@pytest.mark.parametrize("name", ["lenet", "kim", "bag"])
def test_temps_of_a_launch_do_not_share_memory(name: str) -> None:
    """Where one loop of a launch writes, no other one reads or writes: also not another temp at the same bytes."""
    training = make_step(name)
    (arrays,) = training.batches(1)
    step = emit_step(cuda_artifact(training.step, *arrays).fused[0])
    assert any(len(kernel.loops) > 1 for kernel in step.kernels)
    for kernel in step.kernels:
        parts = [spans(step, name) for name in kernel.loops]
        for i, (reads, writes) in enumerate(parts):
            for j, (others_read, others_written) in enumerate(parts):
                if i != j:
                    assert not overlap(writes, others_read) and not overlap(writes, others_written)
                    assert not overlap(reads, others_written)


def spans(step: CudaStep, name: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """What a loop reads and writes of the arena."""
    loop = next(loop for loop in step.program.loops if loop.name == name)
    used = {buffer for kernel in step.kernels for buffer in kernel.buffers}

    def of(names: tuple[str, ...]) -> list[tuple[int, int]]:
        arena = step.memory.arena
        return [(arena[n], arena[n] + step.program.buffers[n].nbytes) for n in names if n in arena and n in used]

    return of(loop.reads()), of(loop.writes())


def overlap(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> bool:
    return any(a < d and c < b for a, b in some for c, d in others)


@needs_wheels
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_updates_of_many_parameters_are_right(name: str) -> None:
    """Seven parameters of odd sizes, 1 and 0 elements among them."""
    artifact = optimizer_step(name, ((31, 5), (401,), (3, 7), (1,), (64, 64), (2, 3, 4), (0, 4)))
    inputs = [np.asarray(np.abs(value)) for value in random_inputs(artifact)]
    launches = check(artifact, inputs)
    assert len(launches) <= (1 if name == "sgd" else 2)
    merged = max(launches, key=lambda launch: len(launch.kernel.loops))
    assert len(merged.kernel.loops) >= 4
    assert not any(instruction.opcode == "call" for instruction in merged.counters.code)
