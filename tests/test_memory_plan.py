"""The memory plan: what is alive at once never shares bytes, except element for element."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fusion_graphs import random_arrays, random_graph
from program_checker import ProgramError, run_checked

from fusegraph.codegen import memory
from fusegraph.codegen.memory import ALIGN, plan_memory
from fusegraph.ir.loops import Program
from fusegraph.ir.scalar import walk
from fusegraph.ir.text import parse
from fusegraph.passes.fuse import fuse


def lifetimes(program: Program) -> dict[str, tuple[int, int]]:
    """For each temp its first and last kernel."""
    found: dict[str, tuple[int, int]] = {}
    for number, loop in enumerate(program.loops):
        for name in (*loop.reads(), *loop.writes()):
            if program.buffers[name].role == "temp":
                found[name] = (found.get(name, (number, number))[0], number)
    return found


def element_for_element(program: Program, number: int, born: str, dying: str) -> bool:
    """Whether kernel `number` reads `dying` at no other element than the one where it writes `born`."""
    loop = program.loops[number]
    stores = [store for stage in loop.stages for store in stage.stores if store.buffer == born]
    read = {
        expr.attribute.index
        for stage in loop.stages
        for expr in walk(stage.expressions())
        if expr.op == "load" and expr.attribute.buffer == dying
    }
    return loop.schedule != "scatter" and [store.index for store in stores] == [*read]


def check_plan(program: Program) -> None:
    """Every rule of a plan."""
    plan, alive = plan_memory(program), lifetimes(program)
    assert set(plan.arena) == set(alive)
    for name, offset in plan.arena.items():
        assert offset % ALIGN == 0 and offset + program.buffers[name].nbytes <= plan.arena_bytes
    for a, b in itertools.combinations(alive, 2):
        apart = (
            plan.arena[a] + program.buffers[a].nbytes <= plan.arena[b]
            or plan.arena[b] + program.buffers[b].nbytes <= plan.arena[a]
        )
        (a_first, a_last), (b_first, b_last) = alive[a], alive[b]
        if apart or a_last < b_first or b_last < a_first:
            continue
        dying, born, at = (a, b, b_first) if a_last == b_first else (b, a, a_first)
        assert alive[dying][1] == alive[born][0] == at, f"{a} and {b} are alive at once, and share bytes"
        assert plan.arena[a] == plan.arena[b] and element_for_element(program, at, born, dying), (
            f"{dying} is overwritten by {born}"
        )
    local = [name for name, buffer in program.buffers.items() if buffer.role == "local"]
    ends = sorted((plan.locals[name], plan.locals[name] + program.buffers[name].nbytes) for name in local)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))
    assert all(end <= plan.local_bytes for _, end in ends)
    assert plan.arena_bytes <= plan.unshared_bytes
    assert set(plan.externals) == {
        name for name, buffer in program.buffers.items() if buffer.role in ("input", "state", "output")
    }


@pytest.mark.parametrize("block", range(8))
def test_plans_of_random_programs(block: int) -> None:
    for seed in range(3000 + block * 40, 3040 + block * 40):
        for merge in (False, True):
            check_plan(fuse(random_graph(seed, steps=20), merge=merge)[0])


TWO_ALIVE = """graph g(x: float64[4,4]) {
  %1 = matmul(%x, %x) : float64[4,4]
  %2 = permute(%1; axes=(1, 0)) : float64[4,4]
  %3 = tanh(%2) : float64[4,4]
  %4 = matmul(%3, %1) : float64[4,4]
  return %4
}"""


def test_a_chain_of_maps_uses_one_piece_of_memory() -> None:
    text = """graph g(x: float64[64,64]) {
      %1 = matmul(%x, %x) : float64[64,64]
      %2 = tanh(%1) : float64[64,64]
      %3 = matmul(%2, %x) : float64[64,64]
      return %3
    }"""
    plan = plan_memory(fuse(parse(text), merge=False)[0])
    assert set(plan.arena) == {"matmul", "tanh"}
    assert plan.arena["matmul"] == plan.arena["tanh"] and plan.arena_bytes == 64 * 64 * 8


def test_a_transposed_read_is_not_overwritten() -> None:
    text = """graph g(x: float64[64,64]) {
      %1 = matmul(%x, %x) : float64[64,64]
      %2 = permute(%1; axes=(1, 0)) : float64[64,64]
      %3 = tanh(%2) : float64[64,64]
      %4 = matmul(%3, %x) : float64[64,64]
      return %4
    }"""
    program = fuse(parse(text), merge=False)[0]
    plan = plan_memory(program)
    assert len(set(plan.arena.values())) == len(plan.arena)
    check_plan(program)


def test_a_program_without_temps() -> None:
    program = fuse(
        parse("""graph g(x: float64[3]) {
      %1 = exp(%x) : float64[3]
      return %1
    }""")
    )[0]
    plan = plan_memory(program)
    assert plan.arena == {} and plan.arena_bytes == 0


def test_the_checker_finds_memory_that_is_shared_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that puts everything at the same place is noticed when the program runs."""
    graph = parse(TWO_ALIVE)
    program, _ = fuse(graph, merge=False)
    arrays = random_arrays(graph, 0, whole=False)
    run_checked(program, arrays)
    real = memory.plan_offsets
    monkeypatch.setattr(
        memory, "plan_offsets", lambda intervals, align: ([0] * len(intervals), real(intervals, align)[1])
    )
    assert len(plan_memory(program).arena) > 1
    with pytest.raises(ProgramError, match="overwritten|touched by another"):
        run_checked(program, [np.array(array) for array in arrays])
