"""Finding the axes of a program whose extents are to be known at run time only.

Fusion makes a program for a fixed number of rows. Made for two numbers, the programs are compared: they must be the same but
for extents of axes that are multiples of the number of rows, and sizes of buffers. Then the larger one, with those axes marked,
is a program for every number up to its own: no index, no mask, no constant in it depends on how many rows there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusegraph.codegen.cpu.nest_rewrite import Rewrite, rewrite_stage, stage_roots
from fusegraph.codegen.cpu.run_time import Refused
from fusegraph.ir.index import Axis, Div, Index, Indirect, Mod
from fusegraph.ir.loops import Loop, Program, Stage
from fusegraph.ir.resize import Differs, Sizes
from fusegraph.ir.scalar import Bound, Expr, Mask, walk
from fusegraph.records import replace

__all__ = ["with_run_time_axes"]


def with_run_time_axes(program: Program, other: Program, sizes: Sizes) -> Program:
    """`program` (for sizes.old rows) with the axes marked that have another extent in `other` (for sizes.new rows).

    Raises Refused if they differ in anything else, or a loop cannot have such an axis.
    """
    try:
        rows = _compare_buffers(program, other, sizes)
        if len(program.loops) != len(other.loops):
            raise Differs("fusion makes another number of kernels")
        loops = tuple(_Comparison(a, b, sizes).marked() for a, b in zip(program.loops, other.loops, strict=True))
    except Differs as error:
        raise Refused(str(error)) from error
    for loop in loops:
        _check(loop)
    return replace(program, loops=loops, rows=rows)


def _compare_buffers(program: Program, other: Program, sizes: Sizes) -> dict[str, int]:
    """Rows of each input and output whose first axis differs."""
    if [*program.buffers] != [*other.buffers] or (program.inputs, program.outputs) != (other.inputs, other.outputs):
        raise Differs("fusion keeps other values in memory")
    if (program.guards, program.checks) != (other.guards, other.checks):
        raise Differs("checks of index arguments depend on the number of rows")
    found = {}
    for name, buffer in program.buffers.items():
        second = other.buffers[name]
        if (buffer.role, buffer.dtype, len(buffer.shape)) != (second.role, second.dtype, len(second.shape)):
            raise Differs(f"{name} lies otherwise in memory")
        rows = [sizes.rows(a, b, f"a size of {name}") for a, b in zip(buffer.shape, second.shape, strict=True)]
        if any(rows) and buffer.role == "state":
            raise Differs(f"{name} is overwritten, and has as many rows as the arguments")
        if any(rows[1:]) and buffer.role in ("input", "output"):
            raise Differs(f"the rows of {name} are not its first axis")
        if any(rows) and buffer.role in ("input", "output"):
            found[name] = rows[0]
    if not found:
        raise Differs("no input has as many rows")
    return found


class _Comparison:
    """Two loops side by side."""

    def __init__(self, loop: Loop, other: Loop, sizes: Sizes) -> None:
        self._loop, self._other, self._sizes = loop, other, sizes
        self._axes: dict[Axis, Axis] = {}
        self._exprs: dict[Expr, Expr] = {}
        self._marked: dict[Axis, Axis] = {}

    def marked(self) -> Loop:
        """The first loop with its axes of run-time extent marked."""
        loop, other = self._loop, self._other
        self._same((loop.name, loop.schedule, len(loop.stages)), (other.name, other.schedule, len(other.stages)))
        self._pair_axes(loop.space, other.space)
        for a, b in zip(loop.stages, other.stages, strict=True):
            self._stage(a, b)
        if not self._marked:
            return loop
        mark = _Mark(self._marked)
        stages = tuple(
            replace(rewrite_stage(s, mark), axes=self._all(s.axes), reduce_axes=self._all(s.reduce_axes))
            for s in loop.stages
        )
        return replace(loop, space=self._all(loop.space), stages=stages)

    def _all(self, axes: Sequence[Axis]) -> tuple[Axis, ...]:
        return tuple(self._marked.get(axis, axis) for axis in axes)

    def _same(self, one: Any, other: Any) -> None:
        if one != other:
            raise Differs(f"kernel {self._loop.name} is another one for {self._sizes.new} rows")

    def _pair_axes(self, axes: Sequence[Axis], others: Sequence[Axis]) -> None:
        self._same(len(axes), len(others))
        for axis, other in zip(axes, others, strict=True):
            self._same(axis.name, other.name)
            rows = self._sizes.rows(axis.extent, other.extent, f"a loop of kernel {self._loop.name}")
            self._same(self._axes.setdefault(axis, other), other)
            if rows:
                self._marked[axis] = Axis(axis.name, axis.extent, rows)

    def _stage(self, a: Stage, b: Stage) -> None:
        self._pair_axes(a.axes, b.axes)
        self._pair_axes(a.reduce_axes, b.reduce_axes)
        first, second = walk(stage_roots(a)), walk(stage_roots(b))
        self._same(len(first), len(second))
        for x, y in zip(first, second, strict=True):
            self._expr(x, y)
        self._same([(r.name, r.op, r.dtype) for r in a.reduces], [(r.name, r.op, r.dtype) for r in b.reduces])
        self._same([(s.buffer, s.mode) for s in a.stores], [(s.buffer, s.mode) for s in b.stores])
        pairs = zip(a.expressions(), b.expressions(), strict=True)
        self._same([self._exprs[x] is y for x, y in pairs].count(False), 0)
        for mine, theirs in zip(a.stores, b.stores, strict=True):
            self._indices(mine.index, theirs.index)

    def _expr(self, x: Expr, y: Expr) -> None:
        if self._exprs.get(x) is y:
            return
        self._same(x in self._exprs, False)
        self._same((x.op, x.dtype, len(x.args)), (y.op, y.dtype, len(y.args)))
        for a, b in zip(x.args, y.args, strict=True):
            self._same(self._exprs[a] is b, True)
        self._exprs[x] = y
        if x.op == "load":
            self._same(x.attribute.buffer, y.attribute.buffer)
            self._indices(x.attribute.index, y.attribute.index)
            self._mask(x.attribute.mask, y.attribute.mask)
        elif x.op == "inside":
            self._mask(x.attribute, y.attribute)
        elif isinstance(x.attribute, Index):
            self._index(x.attribute, y.attribute)
        else:
            self._same(repr(x.attribute), repr(y.attribute))

    def _mask(self, mask: Mask, other: Mask) -> None:
        self._same(len(mask), len(other))
        for a, b in zip(mask, other, strict=True):
            self._same(type(a), type(b))
            self._index(a.index, b.index)
            if isinstance(a, Bound) and isinstance(b, Bound):
                self._same((a.low, a.high), (b.low, b.high))
            elif not isinstance(a, Bound) and not isinstance(b, Bound):
                self._same(a.divisor, b.divisor)

    def _indices(self, some: Sequence[Index], others: Sequence[Index]) -> None:
        self._same(len(some), len(others))
        for a, b in zip(some, others, strict=True):
            self._index(a, b)

    def _index(self, a: Index, b: Index) -> None:
        self._same((a.constant, [c for _, c in a.terms]), (b.constant, [c for _, c in b.terms]))
        for (atom, _), (other, _) in zip(a.terms, b.terms, strict=True):
            self._same(type(atom), type(other))
            if isinstance(atom, Axis):
                self._same(self._axes.get(atom), other)
            elif isinstance(atom, Indirect) and isinstance(other, Indirect):
                self._same((self._exprs.get(atom.value), atom.extent), (other.value, other.extent))
            elif isinstance(atom, (Div, Mod)) and isinstance(other, (Div, Mod)):
                self._same(atom.divisor, other.divisor)
                self._index(atom.index, other.index)


class _Mark(Rewrite):
    def __init__(self, marked: dict[Axis, Axis]) -> None:
        super().__init__()
        self._marked = marked

    def axis(self, axis: Axis) -> Axis | None:
        return self._marked.get(axis, axis)


def _check(loop: Loop) -> None:
    """Raise Refused where a loop cannot have its axes of run-time extent."""
    if sum(axis.rows > 0 for axis in loop.space) > 1:
        raise Refused(f"{loop.name} runs over the rows twice")
    for stage in loop.stages:
        if sum(axis.rows > 0 for axis in (*stage.axes, *stage.reduce_axes)) > 1:
            raise Refused(f"{loop.name} runs over the rows twice")
        over_rows = any(axis.rows for axis in stage.reduce_axes)
        if over_rows and any(reduce.op.startswith("arg") for reduce in stage.reduces):
            raise Refused(f"{loop.name} looks for a position among the rows")
