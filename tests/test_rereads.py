"""Large values that later kernels compute again, because they read what they were computed from anyway."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph.codegen.cpu.rereads import without_rereads
from fusegraph.dtypes import float32
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Loop, Program, Stage, Store
from fusegraph.ir.scalar import const, load, op

ROWS, COLUMNS = 1 << 10, 1 << 9  # 2 MB


def _program(update: bool = False, operations: int = 2, masked: bool = False) -> Program:
    """y = f(x), then (x += 1), then z = y * x."""
    loops = []

    def point(name: str) -> tuple[tuple[Axis, ...], tuple[Index, ...]]:
        axes = (Axis(f"{name}0", ROWS), Axis(f"{name}1", COLUMNS))
        return axes, tuple(map(Index.of, axes))

    axes, at = point("a")
    value = load("x", at, float32)
    for _ in range(operations):
        value = op("add", op("mul", value, value), const(1, float32))
    loops.append(Loop("make", axes, (Stage(stores=(Store("y", at, value),)),)))
    if update:
        axes, at = point("b")
        more = op("add", load("x", at, float32), const(1, float32))
        loops.append(Loop("update", axes, (Stage(stores=(Store("x", at, more),)),)))
    axes, at = point("c")
    other = load("w" if masked else "x", at, float32)
    loops.append(Loop("use", axes, (Stage(stores=(Store("z", at, op("mul", load("y", at, float32), other)),)),)))
    roles = {"x": "state", "w": "input", "y": "output", "z": "output"}
    buffers = {name: Buffer(name, (ROWS, COLUMNS), float32, role) for name, role in roles.items()}
    return Program("p", buffers, tuple(loops), ("x", "w"), ("y", "z"))


def test_a_value_is_computed_from_what_is_read_anyway() -> None:
    made = without_rereads(_program())
    assert made.loops[-1].reads() == ("x",) and made.loops[0].writes() == ("y",)


@pytest.mark.parametrize("options", [{"update": True}, {"operations": 5}, {"masked": True}])
def test_a_value_is_read_where_its_source_has_changed_or_is_not_at_hand_or_it_is_dear(options: dict[str, Any]) -> None:
    made = without_rereads(_program(**options))
    assert "y" in made.loops[-1].reads()


def _block(x: Any, weight: Any, bias: Any, cotangent: Any) -> Any:
    learned = [part.detach().requires_grad_() for part in (x, weight, bias)]
    value = F.relu(F.batch_norm(learned[0], None, None, learned[1], learned[2], training=True))
    return value, *fg.autograd.grad(value, learned, cotangent)


def test_the_gradient_of_batch_norm_and_relu_does_not_read_the_output() -> None:
    rng = np.random.default_rng(0)
    shape = (64, 8, 32, 36)
    arrays = [rng.standard_normal(shape), rng.uniform(0.5, 2, 8), rng.standard_normal(8), rng.standard_normal(shape)]
    step = fg.compile(_block)
    made = step(*(fg.tensor(array.astype("float32")) for array in arrays))
    assert step._last is not None
    program = step._last.artifact.fused[0]
    output = program.outputs[0]
    assert not any(output in loop.reads() for loop in program.loops)
    for mine, other in zip(made, _block(*map(fg.tensor, arrays)), strict=True):
        exact = np.asarray(other.detach())
        np.testing.assert_allclose(np.asarray(mine.detach()), exact, rtol=0, atol=4e-6 * np.abs(exact).max())
