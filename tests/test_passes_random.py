"""Passes keep the meaning of random graphs over all kinds of primitives."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import random_graph

from fusegraph.ir import PRIMITIVES, Graph, interpret, parse, verify
from fusegraph.passes import PIPELINE, run_pipeline

SEEDS = st.integers(0, 2**32 - 1)
STEPS = st.integers(1, 30)
MANY = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))

# numpy adds in an order that depends on the layout of its operands: bits can be compared only without sums.
SUMS = ("sum", "prod", "matmul", "conv", "conv_input_grad", "conv_weight_grad", "fold", "put_add", "put_along_add")
# With these the sign of a zero, which passes may change, decides between plus and minus infinity.
POLES = ("div", "pow", "rsqrt", "log")
# 0 * s is 0 in the rows that a sparse gradient does not touch, for a finite s.
SCATTERS = ("put_add", "put_along_add")


def results(graph: Graph, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs, and what every input holds when the graph has run."""
    outputs, new = interpret.run(graph, arrays)
    after = {old.name: value for (old, _), value in zip(graph.updates, new, strict=True)}
    return outputs + [after.get(node.name, array) for node, array in zip(graph.inputs, arrays, strict=True)]


def assert_close(got: list[np.ndarray], wanted: list[np.ndarray], tolerance: float, special: bool = False) -> None:
    """Equal but for rounding, relative to the largest element; NaN and infinities in the same places.

    special: one may stand for the other (inf - inf is NaN, whereas (1 - 2) * inf is -inf).
    """
    for x, y in zip(wanted, got, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        if x.dtype.kind != "f":
            np.testing.assert_array_equal(y, x)
            continue
        finite = np.isfinite(x)
        if special:
            np.testing.assert_array_equal(np.isfinite(y), finite)
        else:
            np.testing.assert_array_equal(np.where(np.isfinite(y), 0, y), np.where(finite, 0, x))
        scale = max(1.0, float(np.abs(x[finite]).max(initial=0)))
        np.testing.assert_allclose(y[finite], x[finite], rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("step", PIPELINE, ids=[step.name for step in PIPELINE])
@FEW
@given(seed=SEEDS, steps=STEPS)
def test_each_pass_keeps_the_meaning(step, seed: int, steps: int) -> None:  # type: ignore[no-untyped-def]
    graph, arrays = random_graph(seed, steps)
    before = str(graph)
    after = verify(step(graph))
    assert str(graph) == before
    assert_close(results(after, arrays), results(graph, arrays), 1e-9)


@MANY
@given(seed=SEEDS, steps=STEPS)
def test_pipeline_keeps_the_meaning(seed: int, steps: int) -> None:
    graph, arrays = random_graph(seed, steps)
    assert_close(results(run_pipeline(graph, verify=True), arrays), results(graph, arrays), 1e-9)


@FEW
@given(seed=SEEDS, steps=STEPS)
def test_pipeline_keeps_the_meaning_in_single_precision(seed: int, steps: int) -> None:
    graph, arrays = random_graph(seed, steps, dtype="float32")
    assert_close(results(run_pipeline(graph, verify=True), arrays), results(graph, arrays), 1e-4)


@MANY
@given(seed=SEEDS, steps=STEPS)
def test_pipeline_is_idempotent(seed: int, steps: int) -> None:
    graph, _ = random_graph(seed, steps)
    once = run_pipeline(graph)
    assert run_pipeline(once) == once


@FEW
@given(seed=SEEDS, steps=STEPS)
def test_exact_pipeline_keeps_every_bit(seed: int, steps: int) -> None:
    graph, arrays = random_graph(seed, steps, without=SUMS)
    for x, y in zip(results(graph, arrays), results(run_pipeline(graph, exact=True), arrays), strict=True):
        assert x.tobytes() == y.tobytes()


@FEW
@given(seed=SEEDS, steps=STEPS)
def test_exact_pipeline_keeps_nan_infinity_and_the_sign_of_zero(seed: int, steps: int) -> None:
    graph, arrays = random_graph(seed, steps, without=SUMS, special=True)
    for x, y in zip(results(graph, arrays), results(run_pipeline(graph, exact=True), arrays), strict=True):
        np.testing.assert_array_equal(y, x)


@FEW
@given(seed=SEEDS, steps=STEPS)
def test_pipeline_keeps_what_is_not_finite(seed: int, steps: int) -> None:
    graph, arrays = random_graph(seed, steps, without=(*POLES, *SCATTERS), special=True)
    assert_close(results(run_pipeline(graph), arrays), results(graph, arrays), 1e-9, special=True)


@FEW
@given(seed=SEEDS, steps=STEPS)
def test_text_of_rewritten_graphs_round_trips(seed: int, steps: int) -> None:
    graph = run_pipeline(random_graph(seed, steps)[0])
    assert parse(str(graph)) == graph


def test_random_graphs_hold_every_primitive() -> None:
    seen: Counter[str] = Counter()
    for seed in range(400):
        graph, arrays = random_graph(seed, 25)
        verify(graph)
        assert [array.shape for array in arrays] == [node.shape for node in graph.inputs]
        seen.update(node.op for node in graph.nodes)
    written_by_hand = set(PRIMITIVES) - {"after"}  # that one is for the compiler (tests/test_memory_budget.py)
    assert written_by_hand <= set(seen), sorted(written_by_hand - set(seen))


def test_random_graphs_are_the_same_for_the_same_seed() -> None:
    (first, arrays), (second, again) = random_graph(11), random_graph(11)
    assert first == second
    assert all(np.array_equal(x, y) for x, y in zip(arrays, again, strict=True))
