"""What the tests of the nest emitter share: loops under construction, and loops that several of them run."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from loop_reference import reference_loop
from loop_tools import CompiledLoop, one_loop_program

from fusegraph.codegen.cpu.irtext import Module
from fusegraph.codegen.cpu.nest import emit_nest
from fusegraph.dtypes import float32
from fusegraph.ir import scalar
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Loop, Reduce, Stage, Store
from fusegraph.ir.scalar import Expr, const, op
from fusegraph.runtime import llvm

BITS = [128, 256, 512]
THREADS = [1, 2, 3, 8]
I = Index.of
parallel_nest = partial(emit_nest, parallel=True)


def axes_of(*extents: int, names: str = "abcdefgh") -> tuple[Axis, ...]:
    return tuple(Axis(name, extent) for name, extent in zip(names, extents, strict=False))


def indices(axes: tuple[Axis, ...]) -> tuple[Index, ...]:
    return tuple(map(I, axes))


class Case:
    """A loop under construction: its buffers and the arrays that they hold."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.buffers: dict[str, Buffer] = {}
        self.arrays: dict[str, Any] = {}

    def input(
        self, name: str, shape: tuple[int, ...], dtype: Any = float32, value: Any = None, role: str = "input"
    ) -> str:
        self.buffers[name] = Buffer(name, shape, dtype, role)
        self.arrays[name] = values(self.rng, shape, dtype) if value is None else np.asarray(value, dtype)
        return name

    def output(self, name: str, shape: tuple[int, ...], dtype: Any = float32, role: str = "output") -> str:
        self.buffers[name] = Buffer(name, shape, dtype, role)
        return name

    def load(self, name: str, index: Any, mask: Any = ()) -> Expr:
        return scalar.load(name, tuple(map(I, index)), self.buffers[name].dtype, mask)

    def check(
        self,
        loop: Loop,
        *,
        rtol: float = 2e-6,
        atol: float = 2e-6,
        bits: Any = None,
        exact: bool = False,
        emit: Any = parallel_nest,
        threads: Any = (1, 3),
    ) -> CompiledLoop:
        """Run on each vector width and number of threads; compare with the interpreter."""
        expected = reference_loop(loop, self.buffers, self.arrays)
        for width in bits or [llvm.target().vector_bits]:
            compiled = CompiledLoop(loop, self.buffers, vector_bits=width, exact=exact, emit=emit)
            first = None
            for nt in threads:
                found = compiled.run(self.arrays, nt)
                for name in loop.writes():
                    if self.buffers[name].role != "local":
                        compare(found[name], expected[name], f"{loop.name} {name} bits={width} nt={nt}", rtol, atol)
                        assert first is None or found[name].tobytes() == first[name].tobytes(), (
                            f"depends on nt={nt}: {name}"
                        )
                first = first or found
        return compiled


def compare(found: Any, expected: Any, what: str, rtol: float, atol: float) -> None:
    if found.dtype.kind == "f" and (rtol or atol):
        np.testing.assert_allclose(found, expected, rtol, atol, equal_nan=True, err_msg=what)
    else:
        np.testing.assert_array_equal(found, expected, err_msg=what)


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Any:
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    low = 0 if dtype.kind == "u" else -40
    return rng.integers(low, 90, shape).astype(dtype)


def multiply_add(case: Case, axes: tuple[Axis, ...]) -> Expr:
    shape = tuple(axis.extent for axis in axes)
    case.input("x", shape)
    case.input("y", shape)
    return op("add", op("mul", case.load("x", axes), case.load("y", axes)), const(1.5, float32))


def softmax(case: Case, rows: int, columns: int) -> Loop:
    r, c = axes_of(rows, columns, names="rc")
    case.input("x", (rows, columns))
    x, largest, total = case.load("x", (r, c)), scalar.acc("largest", float32), scalar.acc("total", float32)
    e = op("exp", op("sub", x, largest))
    case.output("o", (rows, columns))
    return Loop(
        "softmax",
        (r,),
        (
            Stage(reduce_axes=(c,), reduces=(Reduce("largest", "max", x, float32),)),
            Stage(reduce_axes=(c,), reduces=(Reduce("total", "sum", e, float32),)),
            Stage(axes=(c,), stores=(Store("o", (I(r), I(c)), op("div", e, total)),)),
        ),
    )


def text_of(loop: Loop, buffers: dict[str, Buffer]) -> str:
    module = Module(vector_bits=256)
    emit_nest(module, loop, one_loop_program(loop, buffers), 256)
    return module.text()
