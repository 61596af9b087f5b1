"""Random loops against the numpy interpreter: axes, stages, views, masks and reductions in combinations nobody
thought of.

All values are small whole numbers, so that float32 arithmetic is exact and every result must be equal to the last bit.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loop_reference import reference_loop
from loop_tools import CompiledLoop

from fusegraph.codegen.cpu.nest import emit_nest
from fusegraph.dtypes import bool_, float32, int32, int64
from fusegraph.ir import scalar
from fusegraph.ir.index import Axis, Index, Indirect
from fusegraph.ir.loops import Buffer, Loop, Reduce, Stage, Store
from fusegraph.ir.scalar import Bound, Divides, Expr, const, op

EXTENTS = [1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 33, 70]
BITS = [128, 256, 512]


class Maker:
    """Draws a loop, its buffers and their content."""

    def __init__(self, draw: Any, seed: int) -> None:
        self.draw, self.rng = draw, np.random.default_rng(seed)
        self.buffers: dict[str, Buffer] = {}
        self.arrays: dict[str, Any] = {}
        self.accumulators: list[Expr] = []
        self.axis_count = 0

    def pick(self, options: Any) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def axes(self, low: int, high: int, points: int) -> tuple[Axis, ...]:
        """A few axes of at most `points` points together."""
        found: tuple[Axis, ...] = ()
        for _ in range(self.draw(st.integers(low, high))):
            extent = self.pick([e for e in EXTENTS if e <= max(points, 1)])
            points //= extent
            self.axis_count += 1
            found += (Axis(f"x{self.axis_count}", extent),)
        return found

    def buffer(self, shape: tuple[int, ...], dtype: Any, role: str = "input", high: int = 4) -> str:
        name = f"b{len(self.buffers)}"
        self.buffers[name] = Buffer(name, shape, dtype, role)
        if role in ("input", "state"):
            value = self.rng.integers(0 if dtype == bool_ else -3, 2 if dtype == bool_ else high, shape)
            self.arrays[name] = value.astype(dtype)
        return name

    def index(self, axes: tuple[Axis, ...]) -> tuple[Index, int, tuple[Any, ...]]:
        """An index over some axes, the size of the dimension it runs through, and a mask it needs."""
        form = self.pick(
            ["axis", "axis", "axis", "flip", "stride", "sum", "divide", "remainder", "shift", "constant", "read"]
        )
        if not axes or form == "constant":
            return Index(1), 3, ()
        axis = self.pick(axes)
        plain = Index.of(axis)
        if form == "flip":
            return Index(axis.extent - 1) - axis, axis.extent, ()
        if form == "stride":
            return plain * 3 + 1, axis.extent * 3, ()
        if form == "sum":
            other = self.pick(axes)
            return plain + Index.of(other), axis.extent + other.extent - 1, ()
        if form in ("divide", "remainder"):
            flat = sum((Index.of(a) * k for a, k in zip(axes, (1, axis.extent, 3), strict=False)), Index())
            by = self.pick([2, 3, 4, 5, 8])
            index = flat // by if form == "divide" else flat % by
            return index, index.bounds[1] + 1, ()
        if form == "shift":
            index, size = plain - self.pick([1, 2, 9]), self.pick([axis.extent, 3, 20])
            return index, size, (Bound(index, 0, size), *((Divides(plain, 2),) if self.draw(st.booleans()) else ()))
        if form == "read":
            name = self.buffer((axis.extent,), self.pick([int32, int64]), high=6)
            return Index(0, ((Indirect(scalar.load(name, (plain,), self.buffers[name].dtype), 5), 1),)), 5, ()
        return plain, axis.extent, ()

    def load(self, axes: tuple[Axis, ...], dtype: Any) -> Expr:
        if self.draw(st.booleans()):  # all axes, in order: what most accesses are
            name = self.buffer(tuple(a.extent for a in axes), dtype)
            return scalar.load(name, tuple(map(Index.of, axes)), dtype)
        parts = [self.index(axes) for _ in range(self.draw(st.integers(1, 3)))]
        name = self.buffer(tuple(size for _, size, _ in parts), dtype)
        mask = scalar.simplify_mask(tuple(c for _, _, conditions in parts for c in conditions))
        return scalar.load(name, tuple(index for index, _, _ in parts), dtype, mask)

    def value(self, axes: tuple[Axis, ...], depth: int = 3) -> Expr:
        """A float32 expression of small whole numbers."""
        form = self.pick(["load", "op", "op", "where", "acc", "index", "cast"]) if depth else "load"
        if form == "acc" and self.accumulators:
            return self.pick(self.accumulators)
        if form == "op":
            a, b = self.value(axes, depth - 1), self.value(axes, depth - 1)
            return op(self.pick(["add", "sub", "maximum", "minimum"]), a, b)
        if form == "where":
            condition = op(self.pick(["lt", "eq", "ge"]), self.value(axes, 0), const(1.0, float32), dtype=bool_)
            return op("where", condition, self.value(axes, depth - 1), self.value(axes, depth - 1))
        if form == "index" and axes:
            return op("cast", scalar.index_value(Index.of(self.pick(axes)) % 3), dtype=float32)
        if form == "cast":
            return op("cast", self.load(axes, self.pick([int32, int64, bool_])), dtype=float32)
        return self.load(axes, float32)

    def reduce_stage(self, space: tuple[Axis, ...], number: int) -> Stage:
        axes = self.axes(1, 2, 200)
        reduces, made = [], []
        for which in range(self.draw(st.integers(1, 2))):
            operation = self.pick(["sum", "max", "min", "argmax", "argmin"])
            value = self.value(space + axes, 2)
            name = f"a{number}_{which}"
            dtype = int64 if operation.startswith("arg") else float32
            reduces.append(Reduce(name, operation, value, dtype))
            result = scalar.acc(name, dtype)
            made.append(result if dtype == float32 else op("cast", result, dtype=float32))
        self.accumulators += made
        return Stage(reduce_axes=axes, reduces=tuple(reduces))

    def store_stage(self, space: tuple[Axis, ...]) -> Stage:
        axes = self.axes(0, 2, 200)
        stores = []
        for _ in range(self.draw(st.integers(1, 2))):
            order = self.draw(st.permutations(space + axes))
            name = self.buffer(tuple(a.extent for a in order), float32, "output")
            stores.append(Store(name, tuple(map(Index.of, order)), self.value(space + axes)))
        return Stage(axes=axes, stores=tuple(stores))

    def loop(self) -> Loop:
        space = self.axes(0, 3, 300)
        stages = []
        for number in range(self.draw(st.integers(0, 2))):
            stages.append(self.reduce_stage(space, number))
        for _ in range(self.draw(st.integers(1, 2))):
            stages.append(self.store_stage(space))
        return Loop("random", space, tuple(stages))


@st.composite
def cases(draw: Any) -> tuple[Loop, Maker]:
    maker = Maker(draw, draw(st.integers(0, 99)))
    return maker.loop(), maker


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_random_loops(bits, case):
    loop, maker = case
    expected = reference_loop(loop, maker.buffers, maker.arrays)
    compiled = CompiledLoop(loop, maker.buffers, vector_bits=bits, emit=partial(emit_nest, parallel=True))
    for nt in (1, 3):
        found = compiled.run(maker.arrays, nt)
        for name in loop.writes():
            np.testing.assert_array_equal(
                found[name], expected[name], err_msg=f"{name} nt={nt}\n{compiled.text[:3000]}"
            )
