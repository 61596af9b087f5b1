"""Loops that differ only in the buffers and axes that they name have the same code: a net of equal layers needs few kernels.

The code of a kernel is a function of the addresses of its buffers. Two loops have the same key when one becomes the other by
renaming: buffers (of the same shape, type and role) by their places among `kernel_buffers`, axes by their order, accumulators
by theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusegraph.codegen.cpu.kernel import kernel_buffers
from fusegraph.ir.index import Axis, Index, Indirect
from fusegraph.ir.loops import Loop, Program, Stage, Store
from fusegraph.ir.scalar import Bound, Expr, Mask, indirect_values, walk

Key = tuple[Any, ...]


def kernel_key(loop: Loop, program: Program) -> Key:
    """Equal for loops whose code is the same for the addresses of their `kernel_buffers`, in order."""
    return _Renaming(loop).key(program)


class _Renaming:
    """Numbers in the place of a loop's names."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._buffers = {name: place for place, name in enumerate(kernel_buffers(loop))}
        self._axes: dict[Axis, int] = {}
        self._values: dict[Expr, int] = {}
        self._accumulators: dict[str, int] = {}

    def key(self, program: Program) -> Key:
        """The loop in numbers."""
        loop = self._loop
        buffers = tuple((b.shape, b.dtype.num, b.role) for b in (program.buffers[name] for name in self._buffers))
        space = self._new_axes(loop.space)
        return (loop.schedule, buffers, space, tuple(self._stage(stage) for stage in loop.stages))

    def _new_axes(self, axes: Sequence[Axis]) -> Key:
        return tuple((self._axes.setdefault(axis, len(self._axes)), axis.extent, axis.rows, axis.per) for axis in axes)

    def _stage(self, stage: Stage) -> Key:
        axes, reduce_axes = self._new_axes(stage.axes), self._new_axes(stage.reduce_axes)
        places = [value for store in stage.stores for index in store.index for value in indirect_values(index)]
        rows = tuple(self._row(expr) for expr in walk([*stage.expressions(), *places]) if expr not in self._values)
        reduces = tuple((self._accumulators.setdefault(r.name, len(self._accumulators)), r.op, self._values[r.value], r.dtype.num)
                        for r in stage.reduces)  # fmt: skip
        return (axes, reduce_axes, rows, reduces, tuple(self._store(store) for store in stage.stores))

    def _store(self, store: Store) -> Key:
        return (
            self._buffers[store.buffer],
            tuple(map(self._index, store.index)),
            self._values[store.value],
            store.mode,
        )

    def _row(self, expr: Expr) -> Key:
        row = (expr.op, expr.dtype.num, tuple([self._values[arg] for arg in expr.args]), self._attribute(expr))
        self._values[expr] = len(self._values)
        return row

    def _attribute(self, expr: Expr) -> Any:
        attribute = expr.attribute
        if expr.op == "load":
            return (
                self._buffers[attribute.buffer],
                tuple(map(self._index, attribute.index)),
                self._mask(attribute.mask),
            )
        if expr.op == "acc":
            return self._accumulators[attribute]
        if expr.op == "inside":
            return self._mask(attribute)
        if isinstance(attribute, Index):
            return self._index(attribute)
        return (type(attribute).__name__, repr(attribute))  # repr: -0.0 is not 0.0, and NaN is NaN

    def _mask(self, mask: Mask) -> Key:
        return tuple(
            (self._index(part.index), part.low, part.high)
            if isinstance(part, Bound)
            else (self._index(part.index), part.divisor)
            for part in mask
        )

    def _index(self, index: Index) -> Key:
        return (index.constant, tuple([(self._atom(atom), c) for atom, c in index.terms]))

    def _atom(self, atom: Any) -> Any:
        if isinstance(atom, Axis):
            return self._axes.setdefault(atom, len(self._axes)), atom.extent
        if isinstance(atom, Indirect):
            return ("value", self._values[atom.value], atom.extent)
        return (type(atom).__name__, self._index(atom.index), atom.divisor)
