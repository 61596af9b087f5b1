"""What `memory_budget=` is made of: choices by a schedule and by minimum cuts, `after`; programs of random graphs that fit."""

from __future__ import annotations

import numpy as np
import pytest
from fusion_graphs import random_arrays, random_graph
from program_checker import run_checked

from fusegraph.codegen.memory import plan_memory
from fusegraph.ir import interpret
from fusegraph.ir.graph import Graph
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.ir.text import parse, print_graph
from fusegraph.ir.verify import verify
from fusegraph.ir.verify_loops import verify_program
from fusegraph.passes import run_pipeline
from fusegraph.passes.budget import DoesNotFit, Fitted, within_budget
from fusegraph.passes.evict import NEVER, Shortage, Step, Value, schedule
from fusegraph.passes.fuse import fuse
from fusegraph.passes.recompute import Fused
from fusegraph.passes.saved_values import cuts

# -- random graphs -----------------------------------------------------------------------------------------------------------


def plan_of(graph: Graph, save_memory: bool) -> Fused:
    program, report = fuse(graph, save_memory=save_memory)
    return Fused(graph, program, program, plan_memory(program), report, save_memory)


def smallest(graph: Graph, budget: int) -> Fitted:
    try:
        return within_budget(graph, budget, plan_of)
    except DoesNotFit as failure:
        return failure.best


@pytest.mark.parametrize("block", range(3))
def test_random_graphs_compute_the_same_bits(block: int) -> None:
    """By the reference, and by a run of the program in the memory that the plan gives it."""
    copies = 0
    for seed in range(7000 + block * 24, 7024 + block * 24):
        graph = run_pipeline(random_graph(seed, steps=30))
        arrays = random_arrays(graph, seed, whole=False)
        wanted, updates = interpret.run(graph, [np.array(a) for a in arrays])
        whole = plan_of(graph, False).plan.arena_bytes
        fitted = smallest(graph, whole // 2)
        copies += len(fitted.copies)
        verify(fitted.fused.graph)
        verify_program(fitted.fused.program)
        assert parse(print_graph(fitted.fused.graph)) == fitted.fused.graph
        got, new = interpret.run(fitted.fused.graph, [np.array(a) for a in arrays])
        for a, b in zip([*got, *new], [*wanted, *updates], strict=True):
            np.testing.assert_array_equal(a, b)
        assert fitted.arena_bytes <= whole
        run_checked(fitted.fused.program, [np.array(a) for a in arrays])
    assert copies > 0


# -- the parts ---------------------------------------------------------------------------------------------------------------

LATE = """graph g(x: float64[64,64], w: float64[64,64]) {
  %1 = matmul(%x, %w) : float64[64,64]
  %2 = exp(%1) : float64[64,64]
  %3 = matmul(%2, %w) : float64[64,64]
  %4 = after(%x, %3) : float64[64,64]
  %5 = matmul(%4, %w) : float64[64,64]
  %6 = mul(%5, %3) : float64[64,64]
  return %6
}"""


def test_after_is_no_common_subexpression_and_orders_kernels() -> None:
    graph = parse(LATE)
    assert run_pipeline(graph) == graph
    program, _ = fuse(graph)
    order = [loop.name for loop in program.loops]
    assert len(order) == 3 and program.loops[-1].reads()[0] == "x"
    same = parse(LATE.replace("after(%x, %3)", "mul(%x, %x)"))
    early = fuse(same)[0]
    assert [loop.reads() for loop in early.loops] != [loop.reads() for loop in program.loops]


def test_after_is_the_value() -> None:
    x = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(PRIMITIVES["after"].reference(x, np.zeros(2)), x)


def chain(length: int) -> tuple[list[Step], list[Value]]:
    """A forward chain of values of 1000 bytes, each read again on the way back."""
    names = [f"a{i}" for i in range(length)]
    steps = [Step((names[i - 1],) if i else (), (names[i],)) for i in range(length)]
    steps += [Step((names[i],), ()) for i in reversed(range(length))]
    values = [
        Value(name, 1000, i, tuple(n for n in (i + 1, 2 * length - 1 - i) if n > i), (names[i - 1],) if i else (), 1.0)
        for i, name in enumerate(names)
    ]
    return steps, values


def replay(steps: list[Step], values: list[Value], limit: int) -> int:
    """How often something is computed again; every read finds its value, and no more than `limit` bytes are alive."""
    events, peak = schedule(steps, values, limit)
    assert peak <= limit
    of, made = {v.name: v for v in values}, set[str]()
    for event in events:
        if event.again is None:
            assert set(steps[event.step].reads) <= made
            made |= set(steps[event.step].writes)
        else:
            assert set(of[event.again].sources or ()) <= made
    assert [e.step for e in events if e.again is None] == list(range(len(steps)))
    return sum(event.again is not None for event in events)


def test_a_chain_is_computed_again_as_often_as_memory_demands() -> None:
    steps, values = chain(64)
    assert replay(steps, values, NEVER) == 0 and schedule(steps, values, NEVER)[1] == 64_000
    counts = [replay(steps, values, 1000 * slots) for slots in (64, 48, 32, 16, 8)]
    assert counts == sorted(counts) and counts[0] == 0
    assert counts[3] <= 64, "2 * sqrt(n) values: each of the others about once (Chen et al., 2016)"
    assert counts[4] <= 4 * 64
    with pytest.raises(Shortage, match="needs"):
        schedule(steps, values, 1500)


def test_the_minimum_cut_keeps_what_is_small_or_dear() -> None:
    graph = parse("""graph g(x: float32[64,64], w: float32[64,64], seed: float32[64,64]) {
      %1 = matmul(%x, %w) : float32[64,64]
      %2 = exp(%1) : float32[64,64]
      %3 = expand(%2; shape=(8, 64, 64)) : float32[8,64,64]
      %4 = sin(%3) : float32[8,64,64]
      %5 = expand(%seed; shape=(8, 64, 64)) : float32[8,64,64]
      %6 = mul(%4, %5) : float32[8,64,64]
      return %6
    }""")
    by_op = {node.op: node for node in graph.nodes}
    late = {node for node in graph.nodes if node.name == "seed" or node.op == "mul"} | {graph.nodes[-2]}
    found = cuts(graph, {by_op["sin"]}, late, set())
    kept = [sorted(node.op for node in cut) for cut in found]
    assert kept[0] == ["sin"] and kept[-1] == [] and ["matmul"] in kept or ["exp"] in kept, kept
