"""Fused nodes and the program that they form: what fusion makes, and what every code generator reads.

    Loop(space, stages)      for each point of `space` (parallel axes, in any order): the stages, one after the other
    Stage(axes, reduce_axes, reduces, stores)
                             for each point of `axes`: reduce `reduces` over `reduce_axes` into accumulators, then do `stores`

A matrix product with bias and relu, for example:
    Loop(space=(m, n), stages=(
        Stage(reduce_axes=(k,), reduces=(acc0 = sum of a[m, k] * b[k, n],)),
        Stage(stores=(out[m, n] = relu(acc0 + bias[n]),))))
and softmax over rows:
    Loop(space=(r,), stages=(
        Stage(reduce_axes=(c,), reduces=(acc0 = max of x[r, c],)),
        Stage(reduce_axes=(c,), reduces=(acc1 = sum of exp(x[r, c] - acc0),)),
        Stage(axes=(c,), stores=(out[r, c] = exp(x[r, c] - acc0) / acc1,))))

Rules: a stage has either reduces (then `axes` is empty, except in a scatter) or stores. An accumulator may be read by later
stages only. A value that a store wrote may be loaded by later stages of the same point of `space`. Buffers are in C order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

from fusegraph.dtypes import DType
from fusegraph.ir.graph import Node
from fusegraph.ir.guard import Check, Guard
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.scalar import Expr, walk
from fusegraph.records import dataclass, field, replace


@dataclass(frozen=True)
class Buffer:
    """Memory of a program.

    role    input (an argument), state (read, and written in place, over many steps), output (made anew each call),
            temp (in the arena), local (in the arena too, one copy a thread; only the current point of `space` uses it),
            size (the number of rows of a call, where it is known at run time only)
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    role: str

    @cached_property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @cached_property
    def nbytes(self) -> int:
        """Size in bytes (bools take one byte each)."""
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class Reduce:
    """Accumulator `name`: `op` (sum, prod, max, min, argmax, argmin) of `value` over the stage's reduce axes.

    argmax and argmin give the (int64) number, in C order over the reduce axes, of the first extreme value. NaN wins max, min
    and their positions. dtype: of the result.
    """

    name: str
    op: str
    value: Expr
    dtype: DType


@dataclass(frozen=True)
class Store:
    """buffer[index] = value, or += value when `mode` is "add" (a scatter: several points may meet in one element)."""

    buffer: str
    index: tuple[Index, ...]
    value: Expr
    mode: str = "store"


@dataclass(frozen=True)
class Stage:
    """One inner loop nest: see the module's text."""

    axes: tuple[Axis, ...] = ()
    reduce_axes: tuple[Axis, ...] = ()
    reduces: tuple[Reduce, ...] = ()
    stores: tuple[Store, ...] = ()

    def expressions(self) -> list[Expr]:
        """The roots of its scalar DAG."""
        return [reduce.value for reduce in self.reduces] + [store.value for store in self.stores]


@dataclass(frozen=True)
class Loop:
    """A kernel. `schedule` is how it is meant to be run:

    nest      loops over `space`, split among threads along its leading axes
    contract  the first stage is one sum of a product of two loads (matrix product, convolution): register-blocked
    scatter   one stage of "add" stores over its `axes`, `space` is empty; points are added in C order of the axes
    """

    name: str
    space: tuple[Axis, ...]
    stages: tuple[Stage, ...]
    schedule: str = "nest"
    nodes: tuple[Node, ...] = field(default=(), compare=False)

    def reads(self) -> tuple[str, ...]:
        """Names of the buffers that it loads from, each once, in order."""
        return self._reads

    @cached_property
    def _reads(self) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for stage in self.stages:
            roots = stage.expressions() + [value for store in stage.stores for value in _store_values(store)]
            for expr in walk(roots):
                if expr.op == "load":
                    found[expr.attribute.buffer] = None
        return tuple(found)

    def writes(self) -> tuple[str, ...]:
        """Names of the buffers that it stores to, each once, in order."""
        return self._writes

    @cached_property
    def _writes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(store.buffer for stage in self.stages for store in stage.stores))

    @cached_property
    def sized(self) -> bool:
        """Whether an axis has an extent that is known at run time only."""
        axes = (*self.space, *(axis for stage in self.stages for axis in (*stage.axes, *stage.reduce_axes)))
        return any(axis.rows for axis in axes)

    def points(self) -> int:
        """Points of `space`."""
        return math.prod(axis.extent for axis in self.space)


def _store_values(store: Store) -> list[Expr]:
    from fusegraph.ir.scalar import indirect_values

    return [value for index in store.index for value in indirect_values(index)]


@dataclass(frozen=True)
class Program:
    """All kernels of a step in order, and their memory.

    `inputs` and `outputs` name buffers in the order of arguments and results. A state that the step updates has one buffer:
    kernels read the old value from it and write the new one into it.

    rows  inputs and outputs whose first axis has an extent that is known at run time only, and how many elements of it there
          are for each of the n rows of a call: buffers are laid out for the largest n
    """

    name: str
    buffers: dict[str, Buffer]
    loops: tuple[Loop, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    guards: tuple[Guard, ...] = ()
    checks: tuple[Check, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def writers(self) -> dict[str, tuple[Loop, ...]]:
        """The kernels that store to each buffer."""
        found: dict[str, tuple[Loop, ...]] = {}
        for loop in self.loops:
            for name in loop.writes():
                found[name] = (*found.get(name, ()), loop)
        return found

    def with_loops(self, loops: tuple[Loop, ...]) -> Program:
        """The same program with other kernels."""
        return replace(self, loops=loops)

    def __str__(self) -> str:
        from fusegraph.ir.loops_text import print_program

        return print_program(self)
