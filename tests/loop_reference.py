"""An interpreter of loops with numpy, independent of every code generator: the oracle of the tests of kernels.

It evaluates stage by stage on whole arrays (one dimension for each axis), which is the same as point by point, since
points of the space do not see each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusegraph.ir.index import Axis, Div, Index, Indirect
from fusegraph.ir.loops import Buffer, Loop, Reduce, Stage, Store
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.ir.primitives.sources import philox
from fusegraph.ir.scalar import Bound, Expr, Mask

Array = np.ndarray[Any, Any]


def reference_loop(loop: Loop, buffers: Mapping[str, Buffer], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """What the buffers hold after the loop, as new arrays; buffers without an array start as zeros."""
    names = dict.fromkeys(loop.reads() + loop.writes())
    memory = {name: np.zeros(buffers[name].shape, buffers[name].dtype) for name in names}
    memory |= {name: np.array(value) for name, value in arrays.items()}
    space_shape = tuple(axis.extent for axis in loop.space)
    for name in names:
        if buffers[name].role == "local":  # every point of the space has its own
            memory[name] = np.zeros(space_shape + buffers[name].shape, buffers[name].dtype)
    accumulators: dict[str, Array] = {}
    with np.errstate(all="ignore"):
        for stage in loop.stages:
            _Points(loop, stage, buffers, memory, accumulators).run()
    return memory


class _Points:
    """All points of one stage: dimensions space, axes, reduce axes."""

    def __init__(self, loop: Loop, stage: Stage, buffers: Mapping[str, Buffer], memory: dict[str, Array],
                 accumulators: dict[str, Array]) -> None:  # fmt: skip
        self._space, self._stage, self._buffers = loop.space, stage, buffers
        self._memory, self._accumulators = memory, accumulators
        self._axes: tuple[Axis, ...] = (*loop.space, *stage.axes, *stage.reduce_axes)
        self._shape = tuple(axis.extent for axis in self._axes)
        self._values: dict[Expr, Array] = {}

    def run(self) -> None:
        """Reduces, then stores."""
        for reduce in self._stage.reduces:
            self._accumulators[reduce.name] = self._reduced(reduce)
        values = [self.value(store.value) for store in self._stage.stores]
        for store, value in zip(self._stage.stores, values, strict=True):
            self._store(store, value)

    def value(self, expr: Expr) -> Array:
        """The value at every point."""
        if expr not in self._values:
            value = np.asarray(self._compute(expr))
            assert value.dtype == expr.dtype, f"{expr}: {value.dtype} is not {expr.dtype}"
            self._values[expr] = np.broadcast_to(value, self._shape)
        return self._values[expr]

    def _compute(self, expr: Expr) -> Any:
        if expr.op == "const":
            return np.asarray(expr.attribute, expr.dtype)
        if expr.op == "index":
            return self.index(expr.attribute)
        if expr.op == "acc":
            value = self._accumulators[expr.attribute]
            return value.reshape(value.shape + (1,) * (len(self._shape) - value.ndim))
        if expr.op == "inside":
            return self._mask(expr.attribute)
        if expr.op == "load":
            return self._load(expr)
        args = [self.value(arg) for arg in expr.args]
        if expr.op == "philox":
            key, counter = (int(arg.reshape(-1)[0]) if arg.size else 0 for arg in args)
            element = self.index(expr.attribute)
            return philox(key, counter, (int(element.max(initial=0)) + 1,))[element]
        params = {"dtype": expr.dtype} if expr.op == "cast" else {}
        return PRIMITIVES[expr.op].reference(*args, **params)

    def index(self, index: Index) -> Array:
        """The value of an index at every point."""
        total = np.full(self._shape, index.constant, np.int64)
        for atom, c in index.terms:
            total = total + c * self._atom(atom)
        return total

    def _atom(self, atom: Any) -> Array:
        if isinstance(atom, Axis):
            place = self._axes.index(atom)
            return np.arange(atom.extent).reshape([-1 if d == place else 1 for d in range(len(self._axes))])
        if isinstance(atom, Indirect):
            return np.clip(self.value(atom.value).astype(np.int64), 0, max(atom.extent - 1, 0))
        inner = self.index(atom.index)
        return inner // atom.divisor if isinstance(atom, Div) else inner % atom.divisor

    def _mask(self, mask: Mask) -> Array:
        holds = np.ones(self._shape, np.bool_)
        for condition in mask:
            value = self.index(condition.index)
            if isinstance(condition, Bound):
                holds = holds & (value >= condition.low) & (value < condition.high)
            else:
                holds = holds & (value % condition.divisor == 0)
        return holds

    def _places(self, buffer: str, index: tuple[Index, ...]) -> tuple[Array, ...]:
        places = tuple(self.index(part) for part in index)
        if self._buffers[buffer].role == "local":
            places = (*(np.broadcast_to(self._atom(axis), self._shape) for axis in self._space), *places)
        return places

    def _load(self, expr: Expr) -> Array:
        source, load = self._memory[expr.attribute.buffer], expr.attribute
        holds = self._mask(load.mask)
        if not holds.any():
            return np.zeros(self._shape, expr.dtype)
        places = self._places(load.buffer, load.index)
        for place, extent in zip(places, source.shape, strict=True):
            bad = holds & ((place < 0) | (place >= extent))
            assert not bad.any(), f"{expr} leaves a buffer of shape {source.shape}"
        value = source[tuple(np.where(holds, place, 0) for place in places)]
        return np.where(holds, value, np.zeros((), source.dtype))

    def _reduced(self, reduce: Reduce) -> Array:
        kept = len(self._axes) - len(self._stage.reduce_axes)
        value = self.value(reduce.value)
        if value.dtype == np.float32 and reduce.op in ("sum", "prod"):
            value = value.astype(np.float64)
        axes = tuple(range(kept, len(self._axes)))
        if not axes:
            return np.zeros(value.shape, np.int64) if reduce.op.startswith("arg") else value.astype(reduce.dtype)
        return np.asarray(PRIMITIVES[reduce.op].reference(value, axes=axes)).astype(reduce.dtype)

    def _store(self, store: Store, value: Array) -> None:
        target, places = self._memory[store.buffer], self._places(store.buffer, store.index)
        places = tuple(np.broadcast_to(place, self._shape) for place in places)
        if store.mode == "add":
            np.add.at(target, places, value)
        else:
            target[places] = value
