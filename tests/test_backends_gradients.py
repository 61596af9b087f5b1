"""The gradient of every differentiable primitive, compiled, beside finite differences of the numpy reference.

All primitives share one compiled function: one compilation, one native call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
from fusegraph.ir import PRIMITIVES, emit
from fusegraph.ir.interpret import apply
from fusegraph.tensor import Tensor
from tests.op_sheets import Array, Case, table_cases

DIRECTIONS = 3
STEP = 1e-4
FLAT = ("floor", "ceil", "round", "sign")  # their gradient is 0, also where the step of a difference meets a jump


def cases() -> list[Case]:
    """Samples of all primitives that gradients flow through, without those that have no element to differ in."""
    found = [case for case in table_cases("float64") if PRIMITIVES[case.name].differentiable]
    return [c for c in found if c.name != "cast" and any(a.dtype.kind == "f" and a.size for a in c.arrays)]


def weights(case: Case) -> Array:
    """What the elements of the result count, in the sum that is differentiated."""
    out = apply(case.name, case.arrays, case.params)
    return np.random.default_rng(3).uniform(0.5, 1.5, out.shape)


def is_float(array: Array) -> bool:
    """Whether a gradient is asked for."""
    return array.dtype.kind == "f"


def value(case: Case, tensors: list[Tensor], weight: Tensor) -> Tensor:
    """The weighted sum of the primitive's result."""
    return (emit.bind(case.name, *tensors, **case.params) * weight).sum()


def reference(case: Case, arrays: list[Array]) -> float:
    """The same, by the numpy reference."""
    return float((apply(case.name, arrays, case.params) * weights(case)).sum())


def slope(function: Callable[[list[Array]], float], arrays: list[Array], directions: list[Array]) -> float:
    """The derivative of a number along `directions`, by central differences of fourth order."""

    def at(t: float) -> float:
        return function([a + t * d if is_float(a) else a for a, d in zip(arrays, directions, strict=True)])

    return (8 * (at(STEP) - at(-STEP)) - (at(2 * STEP) - at(-2 * STEP))) / (12 * STEP)


def random_directions(arrays: list[Array], rng: np.random.Generator) -> list[Array]:
    """A direction for each floating point operand."""
    return [np.asarray(rng.uniform(-1, 1, a.shape)) if is_float(a) else np.zeros(()) for a in arrays]


def compiled_gradients(chosen: list[Case], backend: str) -> list[list[Array]]:
    """The gradients of all floating point operands of each case, from one compiled function."""

    def all_gradients(operands: list[list[Tensor]], weight: list[Tensor]) -> list[list[Tensor]]:
        found = []
        for case, tensors, w in zip(chosen, operands, weight, strict=True):
            leaves = [x.detach().requires_grad_() if x.dtype.kind == "f" else x for x in tensors]
            wanted = [x for x in leaves if x.requires_grad]
            grads = fg.autograd.grad(value(case, leaves, w), wanted, allow_unused=True)
            found.append(
                [fg.zeros(x.shape, dtype=x.dtype) if g is None else g for x, g in zip(wanted, grads, strict=True)]
            )
        return found

    made = fg.compile(all_gradients, backend=backend)([list(c.arrays) for c in chosen], [weights(c) for c in chosen])
    return [[np.asarray(g) for g in row] for row in made]


@pytest.mark.parametrize("backend", ["cpu", "python"])
def test_first_derivatives(backend: str) -> None:
    chosen = cases()
    assert {case.name for case in chosen} == {n for n, p in PRIMITIVES.items() if p.differentiable} - {"cast"}
    problems, rng = [], np.random.default_rng(6)
    for case, grads in zip(chosen, compiled_gradients(chosen, backend), strict=True):
        arrays = list(case.arrays)
        if case.name in FLAT:
            problems += [str(case) for g in grads if g.any()]
            continue
        for _ in range(DIRECTIONS):
            directions = random_directions(arrays, rng)
            parts = [d for d, a in zip(directions, arrays, strict=True) if is_float(a)]
            exact = sum(float((g * d).sum()) for g, d in zip(grads, parts, strict=True))
            found = slope(lambda moved, case=case: reference(case, moved), arrays, directions)
            if not abs(exact - found) <= 1e-8 * max(1.0, abs(found)):
                problems.append(f"{case}: {exact} against {found}")
    assert problems == []


CURVED = (
    "exp",
    "tanh",
    "sigmoid",
    "erf",
    "log",
    "rsqrt",
    "sin",
    "mul",
    "div",
    "pow",
    "matmul",
    "conv",
    "conv_weight_grad",
    "prod",
    "take",
    "put_add",
    "where",
)


def eager_gradients(case: Case, arrays: list[Array]) -> list[Array]:
    """The first derivatives, not compiled."""
    leaves = [fg.from_numpy(np.asarray(a)).detach().requires_grad_(is_float(a)) for a in arrays]
    wanted = [x for x in leaves if x.requires_grad]
    grads = fg.autograd.grad(value(case, leaves, fg.from_numpy(weights(case))), wanted, allow_unused=True)
    return [np.zeros(x.shape) if g is None else np.asarray(g.detach()) for x, g in zip(wanted, grads, strict=True)]


def test_second_derivatives() -> None:
    """The gradient of |gradient|^2 / 2, compiled, beside differences of the eager gradient."""
    by_name = {case.name: case for case in cases() if sum(a.size for a in case.arrays) < 800}
    chosen = [by_name[name] for name in CURVED]

    def curvature(operands: list[list[Tensor]], weight: list[Tensor]) -> list[list[Tensor]]:
        found = []
        for case, tensors, w in zip(chosen, operands, weight, strict=True):
            leaves = [x.detach().requires_grad_() if x.dtype.kind == "f" else x for x in tensors]
            wanted = [x for x in leaves if x.requires_grad]
            grads = fg.autograd.grad(value(case, leaves, w), wanted, create_graph=True)
            total: Any = sum((g * g).sum() for g in grads) * 0.5
            second = fg.autograd.grad(total, wanted, allow_unused=True) if total.requires_grad else [None] * len(wanted)
            found.append(
                [fg.zeros(x.shape, dtype=x.dtype) if g is None else g for x, g in zip(wanted, second, strict=True)]
            )
        return found

    made = fg.compile(curvature)([list(c.arrays) for c in chosen], [weights(c) for c in chosen])
    rng = np.random.default_rng(7)
    for case, second in zip(chosen, made, strict=True):
        directions = random_directions(list(case.arrays), rng)
        parts = [d for d, a in zip(directions, case.arrays, strict=True) if is_float(a)]
        exact = sum(float((np.asarray(g) * d).sum()) for g, d in zip(second, parts, strict=True))
        found = slope(
            lambda moved, case=case: 0.5 * sum(float((g * g).sum()) for g in eager_gradients(case, moved)),
            list(case.arrays),
            directions,
        )
        assert abs(exact - found) <= 1e-7 * max(1.0, abs(found)), f"{case}: {exact} against {found}"
