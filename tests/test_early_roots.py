"""What the epilogue of a contraction computes for the kernels after it, and what it therefore does not store."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph.ir.loops import Loop, Program
from fusegraph.ir.scalar import walk

ROWS, WIDTH, HIDDEN = 9, 12, 20


def arrays(*shapes: tuple[int, ...], dtype: Any = np.float64) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def program_of(function: Any, *args: np.ndarray) -> Program:
    """The fused program of a compiled function of tensors, whose results are those of the eager one."""
    tensors = [fg.tensor(value) for value in args]
    compiled = fg.compile(function)
    for got, wanted in zip(compiled(*tensors), function(*tensors), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), rtol=1e-9, atol=1e-11)
    return compiled.compiled_for(*tensors).artifact.fused[0]


def operations(loop: Loop) -> set[str]:
    return {expr.op for expr in walk([value for stage in loop.stages for value in stage.expressions()])}


def large(program: Program, names: tuple[str, ...], size: int) -> list[str]:
    return [name for name in names if program.buffers[name].size == size]


def gated(activation: Any) -> Any:
    """A layer's loss and gradients."""

    def loss(x: Any, w: Any, v: Any) -> Any:
        out = activation(x @ w) @ v
        return (out * out).sum()

    def step(*args: Any) -> Any:
        value, gradients = fg.value_and_grad(loss, (0, 1, 2))(*args)
        return value, *gradients

    return step


@pytest.mark.parametrize(
    ("activation", "costly"),
    [
        (F.gelu, {"erf", "exp"}),
        (F.silu, {"sigmoid"}),
    ],
)
def test_the_derivative_of_an_activation_is_computed_where_its_argument_is(activation: Any, costly: set[str]) -> None:
    program = program_of(gated(activation), *arrays((ROWS, WIDTH), (WIDTH, HIDDEN), (HIDDEN, WIDTH)))
    first, *others = program.loops
    assert costly <= operations(first), "forward"
    assert not any(costly & operations(loop) for loop in others), "once"
    assert len(large(program, first.writes(), ROWS * HIDDEN)) == 2, "the activation and its derivative"


def test_the_argument_of_an_activation_that_is_needed_later_is_kept() -> None:
    def loss(x: Any, w: Any, v: Any) -> Any:
        inner = x @ w
        out = F.gelu(inner) @ v
        return (out * out).sum(), inner

    def step(*args: Any) -> Any:
        (value, inner), gradients = fg.value_and_grad(loss, (0, 1, 2), has_aux=True)(*args)
        return value, inner, *gradients

    program = program_of(step, *arrays((ROWS, WIDTH), (WIDTH, HIDDEN), (HIDDEN, WIDTH)))
    assert len(large(program, program.loops[0].writes(), ROWS * HIDDEN)) == 3, "and two instead of its derivative"


def test_a_residual_connection_is_added_before_the_result_is_stored() -> None:
    def block(x: Any, w: Any, bias: Any, v: Any) -> Any:
        x = x + (x @ w + bias)
        return (F.layer_norm(x, (WIDTH,)) @ v + x,)

    program = program_of(block, *arrays((ROWS, WIDTH), (WIDTH, WIDTH), (WIDTH,), (WIDTH, WIDTH)))
    first, *others = program.loops
    assert "x" in first.reads()
    assert not any("x" in loop.reads() for loop in others)
    assert len(large(program, first.writes(), ROWS * WIDTH)) == 1


def test_a_mask_is_applied_before_the_result_is_stored() -> None:
    def scores(q: Any, k: Any) -> Any:
        seen = fg.arange(ROWS).unsqueeze(1) >= fg.arange(ROWS)
        return (F.softmax(fg.where(seen, q @ k.T, float("-inf")), -1),)

    program = program_of(scores, *arrays((ROWS, WIDTH), (ROWS, WIDTH)))
    product, rows = program.loops
    assert "where" in operations(product)
    assert "where" not in operations(rows)


def test_a_result_that_leaves_the_graph_is_stored_as_it_is() -> None:
    def both(x: Any, w: Any) -> Any:
        product = x @ w
        return product, F.softmax(product + x, -1)

    program_of(both, *arrays((ROWS, WIDTH), (WIDTH, WIDTH)))


def test_a_term_that_comes_later_is_not_waited_for() -> None:
    """x @ w is not added to something that needs another product, which comes after it."""

    def sums(x: Any, w: Any, v: Any) -> Any:
        first = x @ w
        second = F.softmax(x @ v, -1)
        return (F.softmax(first + second, -1),)

    program_of(sums, *arrays((ROWS, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH)))


def test_exact_results_keep_every_bit() -> None:
    args = [fg.tensor(a) for a in arrays((ROWS, WIDTH), (WIDTH, HIDDEN), (HIDDEN, WIDTH), dtype=np.float32)]
    step = gated(F.gelu)
    fused, unfused = (fg.compile(step, exact=True, fuse=fuse)(*args) for fuse in (True, False))
    for got, wanted in zip(fused, unfused, strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))
