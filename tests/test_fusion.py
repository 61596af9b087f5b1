"""Fusion keeps meaning: fused and unfused programs give what the op graph gives, in any order, in planned memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fusion_graphs import random_arrays, random_graph
from program_checker import ProgramError, compare, run_checked

from fusegraph.build import Options, build
from fusegraph.ir import interpret
from fusegraph.ir.graph import Graph
from fusegraph.ir.loops import Program
from fusegraph.ir.text import parse
from fusegraph.passes.fuse import fuse
from fusegraph.runtime.numba_backend import PythonExecutable

Array = np.ndarray[Any, Any]
EXACT = 0.0
ROUNDED = 1e-10


def wanted(graph: Graph, arrays: list[Array]) -> list[Array]:
    """Outputs, then the new values of the updated inputs in the order of the inputs."""
    outputs, updates = interpret.run(graph, arrays)
    new = dict(zip((old for old, _ in graph.updates), updates, strict=True))
    return [*outputs, *(new[node] for node in graph.inputs if node in new)]


def run_python(program: Program, arrays: list[Array]) -> list[Array]:
    """The printed Python of a program, interpreted; memory of its own holds garbage before the run."""
    executable = PythonExecutable(program)
    for name, own in executable._memory.items():
        own.view(np.uint8)[...] = 0xA7 if program.buffers[name].dtype.kind != "b" else 1
    named = {name: np.array(array, order="C") for name, array in zip(program.inputs, arrays, strict=True)}
    for name in program.outputs:
        named[name] = np.full(program.buffers[name].shape, 77, program.buffers[name].dtype)
    executable.run(named)
    states = [name for name in program.inputs if program.buffers[name].role == "state"]
    for name, array in zip(program.inputs, arrays, strict=True):
        if program.buffers[name].role == "input":
            np.testing.assert_array_equal(named[name], array, f"input {name} was changed")
    return [named[name] for name in (*program.outputs, *states)]


def check(graph: Graph, arrays: list[Array], tolerance: float, printed: bool = True) -> Program:
    """Fused and unfused, checked element by element and run as printed Python, against the reference. Gives the fused program."""
    expected = wanted(graph, arrays)
    for merge in (False, True):
        program, _ = fuse(graph, merge=merge)
        compare(run_checked(program, arrays), expected, tolerance)
        if printed:
            compare(run_python(program, arrays), expected, tolerance)
    return program


def check_text(text: str, seed: int = 0, tolerance: float = ROUNDED) -> Program:
    """`check` of a graph in text form."""
    graph = parse(text)
    return check(graph, random_arrays(graph, seed, whole=False), tolerance)


# -- random graphs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", range(24))
def test_random_graphs_mean_the_same_fused_unfused_and_interpreted(block: int) -> None:
    for seed in range(block * 10, block * 10 + 10):
        graph = random_graph(seed)
        check(
            graph,
            random_arrays(graph, seed, whole=seed % 2 == 0),
            EXACT if seed % 2 == 0 else ROUNDED,
            printed=seed % 4 == 0,
        )


@pytest.mark.parametrize("block", range(8))
def test_random_graphs_mean_the_same_through_build(block: int) -> None:
    for seed in range(1000 + block * 8, 1008 + block * 8):
        graph = random_graph(seed)
        arrays = random_arrays(graph, seed, whole=seed % 2 == 0)
        expected = wanted(graph, arrays)
        given = [np.array(array) for array in arrays]
        outputs = build(graph, Options(backend="python")).run(given)
        updated = {old for old, _ in graph.updates}
        states = [array for node, array in zip(graph.inputs, given, strict=True) if node in updated]
        compare([*outputs, *states], expected, 1e-9)


# -- updates in place --------------------------------------------------------------------------------------------------------


def test_a_state_reversed_into_itself_is_not_written_in_place() -> None:
    check_text("""graph g(x: float64[5]) {
      %1 = slice(%x; size=(5,), start=(4,), step=(-1,)) : float64[5]
      return
      update %x = %1
    }""")


def test_a_state_transposed_into_itself_is_not_written_in_place() -> None:
    check_text("""graph g(x: float64[4,4]) {
      %1 = permute(%x; axes=(1, 0)) : float64[4,4]
      %2 = tanh(%1) : float64[4,4]
      return %2
      update %x = %2
    }""")


def test_an_update_in_another_shape_is_copied_to_the_right_elements() -> None:
    check_text("""graph g(x: float64[4,3,4], s: float64[], t: float64[2]) {
      %1 = permute(%x; axes=(1, 2, 0)) : float64[3,4,4]
      %2 = reshape(%1; shape=(4, 3, 4)) : float64[4,3,4]
      %3 = slice(%t; size=(1,), start=(1,), step=(1,)) : float64[1]
      %4 = reshape(%3; shape=()) : float64[]
      return
      update %x = %2
      update %s = %4
    }""")


def test_two_states_change_places() -> None:
    check_text("""graph g(x: float64[3], y: float64[3]) {
      return %x
      update %x = %y
      update %y = %x
    }""")


def test_two_updates_that_each_need_the_other_state_from_before() -> None:
    check_text("""graph g(x: float64[6], y: float64[6]) {
      %2 = slice(%y; size=(6,), start=(5,), step=(-1,)) : float64[6]
      %3 = add(%x, %2) : float64[6]
      %4 = slice(%x; size=(6,), start=(5,), step=(-1,)) : float64[6]
      %5 = sub(%y, %4) : float64[6]
      return
      update %x = %3
      update %y = %5
    }""")


def test_the_old_value_is_returned_beside_the_new_one() -> None:
    check_text("""graph g(x: float64[3,4], d: float64[3,4]) {
      %2 = sub(%x, %d) : float64[3,4]
      return %x, %2
      update %x = %2
    }""")


def test_what_needs_the_new_value_and_the_old_one_keeps_the_old_one() -> None:
    check_text("""graph g(x: float64[1,2]) {
      %1 = slice(%x; size=(1, 2), start=(0, 1), step=(-1, -1)) : float64[1,2]
      %2 = abs(%x) : float64[1,2]
      %3 = add(%1, %2) : float64[1,2]
      return %x, %3
      update %x = %1
    }""")


def test_a_copy_into_a_state_is_not_taken_for_its_old_value() -> None:
    check_text("""graph g(x: float64[2,3], y: float64[3]) {
      %2 = max(%y; axes=(0,)) : float64[]
      %3 = exp(%2) : float64[]
      %4 = expand(%3; shape=(2, 3)) : float64[2,3]
      %5 = add(%4, %x) : float64[2,3]
      return %5
      update %x = %4
    }""")


def test_a_new_value_is_not_computed_again_from_what_it_overwrote() -> None:
    check_text("""graph g(x: float64[4], y: float64[3,4,4]) {
      %2 = neg(%x) : float64[4]
      %3 = expand(%2; shape=(3, 4, 4)) : float64[3,4,4]
      %4 = sub(%y, %3) : float64[3,4,4]
      return
      update %x = %2
      update %y = %4
    }""")


def test_a_row_of_a_new_value_is_summed_after_the_update() -> None:
    check_text("""graph g(w: float64[3,5], d: float64[3,5]) {
      %2 = sub(%w, %d) : float64[3,5]
      %3 = mul(%2, %w) : float64[3,5]
      %4 = sum(%3; axes=(1,)) : float64[3]
      %5 = sum(%2; axes=(1,)) : float64[3]
      return %4, %5
      update %w = %2
    }""")


def test_a_scatter_into_a_state_reads_the_state_before_it() -> None:
    check_text("""graph g(w: float64[5,2], i: int64[4]) {
      %2 = take(%w, %i; axis=0) : float64[4,2]
      %3 = put_add(%w, %i, %2; axis=0) : float64[5,2]
      return
      update %w = %3
    }""")


def test_a_counter_that_indexes_is_read_after_its_update() -> None:
    program = check_text(
        """graph g(n: int64[3], x: float64[9]) {
      %2 = constant(dtype='int64', value=2) : int64[]
      %3 = expand(%2; shape=(3,)) : int64[3]
      %4 = floordiv(%n, %3) : int64[3]
      %5 = put_add(%x, %4, %y; axis=0) : float64[9]
      return %5
      update %n = %4
    }""".replace("x: float64[9]", "x: float64[9], y: float64[3]")
    )
    assert program.buffers["n"].role == "state"


def test_a_merge_closes_no_circle_through_a_state_that_is_overwritten() -> None:
    check_text("""graph g(x: float64[4,4], y: float64[4], z: float64[4,4]) {
      %3 = max(%x; axes=(0,)) : float64[4]
      %5 = floor(%z) : float64[4,4]
      %13 = maximum(%5, %z) : float64[4,4]
      %15 = abs(%3) : float64[4]
      %17 = add(%y, %15) : float64[4]
      %18 = reshape(%y; shape=(1, 4)) : float64[1,4]
      %19 = expand(%18; shape=(4, 4)) : float64[4,4]
      %20 = add(%z, %19) : float64[4,4]
      return %y, %3, %13
      update %x = %13
      update %y = %17
      update %z = %20
    }""")


# -- values inside of one kernel -----------------------------------------------------------------------------------------------


def test_the_position_of_an_extreme_is_an_index_in_the_same_kernel() -> None:
    check_text("""graph g(x: float64[4,5], y: float64[4,5]) {
      %2 = argmax(%x; axes=(1,)) : int64[4]
      %3 = reshape(%2; shape=(4, 1)) : int64[4,1]
      %4 = take_along(%y, %3; axis=1) : float64[4,1]
      %5 = exp(%4) : float64[4,1]
      return %5
    }""")


def test_a_value_that_a_later_stage_needs_through_another_one_is_kept() -> None:
    check_text("""graph g(x: float64[3,4]) {
      %1 = sin(%x) : float64[3,4]
      %2 = cos(%1) : float64[3,4]
      %3 = add(%1, %2) : float64[3,4]
      %4 = max(%3; axes=(1,)) : float64[3]
      %5 = reshape(%4; shape=(3, 1)) : float64[3,1]
      %6 = expand(%5; shape=(3, 4)) : float64[3,4]
      %7 = sub(%3, %6) : float64[3,4]
      %8 = mul(%7, %2) : float64[3,4]
      return %3, %8
    }""")


def test_a_reshaped_value_is_read_at_its_own_element_only() -> None:
    check_text("""graph g(x: float64[2,2]) {
      %1 = reshape(%x; shape=(4,)) : float64[4]
      %2 = floor(%1) : float64[4]
      %3 = reshape(%2; shape=(2, 2)) : float64[2,2]
      %4 = exp(%3) : float64[2,2]
      %5 = permute(%4; axes=(1, 0)) : float64[2,2]
      %6 = sub(%4, %5) : float64[2,2]
      return %2, %5, %6
    }""")


def test_two_rows_of_one_extent_stay_two_axes() -> None:
    check_text("""graph g(x: float64[3,4], y: float64[3,4]) {
      %2 = exp(%x) : float64[3,4]
      %3 = max(%2; axes=(1,)) : float64[3]
      %4 = exp(%y) : float64[3,4]
      %5 = sum(%4; axes=(1,)) : float64[3]
      %6 = add(%3, %5) : float64[3]
      %7 = reshape(%2; shape=(3, 4, 1)) : float64[3,4,1]
      %8 = expand(%7; shape=(3, 4, 4)) : float64[3,4,4]
      %9 = reshape(%4; shape=(3, 1, 4)) : float64[3,1,4]
      %10 = expand(%9; shape=(3, 4, 4)) : float64[3,4,4]
      %11 = mul(%8, %10) : float64[3,4,4]
      %12 = reshape(%6; shape=(3, 1, 1)) : float64[3,1,1]
      %13 = expand(%12; shape=(3, 4, 4)) : float64[3,4,4]
      %14 = add(%11, %13) : float64[3,4,4]
      return %2, %4, %14
    }""")


def test_a_stage_never_stands_before_the_one_that_it_reads() -> None:
    check_text("""graph g(x: float64[], y: float64[3,3]) {
      %6 = relu(%x) : float64[]
      %9 = expand(%6; shape=(3, 3)) : float64[3,3]
      %10 = tanh(%9) : float64[3,3]
      %11 = add(%10, %y) : float64[3,3]
      %14 = relu(%11) : float64[3,3]
      %15 = abs(%14) : float64[3,3]
      %16 = maximum(%10, %15) : float64[3,3]
      %17 = tanh(%y) : float64[3,3]
      %18 = maximum(%17, %14) : float64[3,3]
      %19 = permute(%18; axes=(1, 0)) : float64[3,3]
      %20 = reshape(%19; shape=(9,)) : float64[9]
      %21 = floor(%20) : float64[9]
      return %16, %y, %21, %19, %6
    }""")


def test_reshapes_of_nothing() -> None:
    check_text("""graph g(x: float64[0,3]) {
      %1 = exp(%x) : float64[0,3]
      %2 = permute(%1; axes=(1, 0)) : float64[3,0]
      %3 = reshape(%2; shape=(0,)) : float64[0]
      %4 = exp(%3) : float64[0]
      %5 = sum(%1; axes=(0,)) : float64[3]
      return %1, %4, %5
    }""")


# -- the checker itself ----------------------------------------------------------------------------------------------------------


def test_the_checker_finds_a_race() -> None:
    graph = parse("""graph g(x: float64[5]) {
      %1 = neg(%x) : float64[5]
      return
      update %x = %1
    }""")
    program, _ = fuse(graph)
    (loop,) = program.loops
    (stage,) = loop.stages
    (store,) = stage.stores
    from dataclasses import replace

    shifted = store.value.substitute({loop.space[0]: store.index[0] * -1 + 4})
    broken = replace(loop, stages=(replace(stage, stores=(replace(store, value=shifted),)),))
    with pytest.raises(ProgramError, match="written by one point"):
        run_checked(program.with_loops((broken,)), [np.ones(5)])


# -- contractions' operands ----------------------------------------------------------------------------------------------


def test_heads_are_joined_by_the_product_that_makes_them() -> None:
    program = check_text("""graph g(p: float64[2,3,4,6], v: float64[2,3,6,5], w: float64[15,7]) {
      %1 = matmul(%p, %v) : float64[2,3,4,5]
      %2 = permute(%1; axes=(0, 2, 1, 3)) : float64[2,4,3,5]
      %3 = reshape(%2; shape=(8, 15)) : float64[8,15]
      %4 = matmul(%3, %w) : float64[8,7]
      return %4
    }""")
    assert [loop.schedule for loop in program.loops] == ["contract", "contract"]


def test_two_products_read_one_rearranged_operand() -> None:
    program = check_text("""graph g(a: float64[2,4,3,5], b: float64[2,4,3,5], w: float64[24,5], u: float64[5,6]) {
      %1 = mul(%a, %b) : float64[2,4,3,5]
      %2 = permute(%1; axes=(0, 2, 1, 3)) : float64[2,3,4,5]
      %3 = reshape(%2; shape=(24, 5)) : float64[24,5]
      %4 = permute(%3; axes=(1, 0)) : float64[5,24]
      %5 = matmul(%4, %w) : float64[5,5]
      %6 = matmul(%3, %u) : float64[24,6]
      return %5, %6
    }""")
    assert sorted(loop.schedule for loop in program.loops) == ["contract", "contract", "nest"]
