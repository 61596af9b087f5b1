"""Schedule "scatter": points that add to elements whose place is read at run time (gradients of embeddings, of
gathers).

Several points may add to one element; for every element they do so in C order, however many threads there are:

- Where different points of the outermost axis never meet, threads share that axis.
- Else every thread walks through all points and takes those whose destination row has (row % nt == tid). A row is
  what the innermost axis runs along; it is added as vectors.

Where what is added is a product with a factor that all points of the inner axes share, the inner axes are skipped when it is
zero: cotangents of maxima and of masks are zero nearly everywhere. Zeros are looked for by vectors. (Not with `exact`: zero
times infinity would be lost.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fusegraph.codegen.cpu.body import Copy, Evaluator, Frame, Position
from fusegraph.codegen.cpu.irtext import Module
from fusegraph.codegen.cpu.kernel import EmittedKernel, kernel_buffers, kernel_function
from fusegraph.codegen.cpu.nest import describe, thread_share
from fusegraph.codegen.cpu.nest_canonical import canonical_loop
from fusegraph.codegen.cpu.nest_plan import Plan, fitting_lanes, plan_stage, stage_weight
from fusegraph.codegen.cpu.nest_rewrite import inner_axes
from fusegraph.codegen.cpu.nest_stage import StageWriter
from fusegraph.codegen.cpu.run_time import bound, whole_part
from fusegraph.dtypes import bool_
from fusegraph.errors import CompilerError
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Loop, Program, Stage
from fusegraph.ir.loops_text import extent_text
from fusegraph.ir.scalar import Expr, op
from fusegraph.records import replace

_PARALLEL_WORK = 20_000  # element operations below which one thread is faster than waking others


def emit_scatter(module: Module, loop: Loop, program: Program, vector_bits: int, *, exact: bool = False,
                 parallel: bool | None = None) -> EmittedKernel:  # fmt: skip
    """Write the kernel of a scatter into `module`. A loop of several stages runs on one thread.

    Raises CompilerError if the loop has a space: a scatter's points are the axes of its stages.
    """
    if loop.space:
        raise CompilerError(f"scatter {loop.name} has a space {loop.space}; its points must be the axes of its stages")
    buffers = kernel_buffers(loop)
    fn = kernel_function(module, loop)
    describe(fn, loop, program)
    canonical = canonical_loop(loop, program.buffers)
    pointers = {name: f"%p{position}" for position, name in enumerate(buffers)}
    evaluator = Evaluator(fn, module, program.buffers, pointers, loop.writes(), exact)
    shared = False
    for stage in canonical.stages:
        writer = _Scatter(evaluator, stage, vector_bits // 32, exact)
        if parallel is None:
            parallel = writer.work >= _PARALLEL_WORK
        shared = parallel and len(canonical.stages) == 1 and writer.may_share
        writer.write(shared)
    return EmittedKernel(loop.name, buffers, 0, shared)


class _Scatter:
    """One stage of stores, point by point in C order; lanes lie along its innermost axis where that is possible."""

    def __init__(self, evaluator: Evaluator, stage: Stage, lanes: int, exact: bool) -> None:
        self._e, self._fn, self._stage = evaluator, evaluator.fn, stage
        axes = inner_axes(stage)
        self._vector = axes[-1] if axes and not stage.reduces and _lanes_differ(stage, axes[-1]) else None
        self._outer = axes[:-1] if self._vector is not None else axes
        plan = plan_stage(
            stage, self._vector, fitting_lanes(self._vector.extent, lanes) if self._vector is not None else 1
        )
        whole = Plan(None, 1, 1, 1, 1, (), 0, False, (plan,), False)
        self._inner = replace(stage, axes=(self._vector,) if self._vector is not None else ())
        self._stages = StageWriter(evaluator, whole)
        self._lanes = lanes
        self._factor = None if exact else _skipped_factor(stage, self._outer)
        if stage.reduces:  # nothing is scattered: an ordinary reduction
            self._outer, self._inner, self._factor = (), stage, None

    @property
    def work(self) -> int:
        """Element operations."""
        return int(math.prod(axis.extent for axis in inner_axes(self._stage)) * (2 + stage_weight(self._stage)))

    @property
    def may_share(self) -> bool:
        """Whether several threads can do it without meeting in one element."""
        return self._outermost_is_disjoint() or self._owner_index() is not None

    def write(self, shared: bool) -> None:
        """The loops. `shared`: among the threads of the call."""
        if not all(axis.extent for axis in inner_axes(self._stage)):
            return
        self._e_hoist()
        if shared and self._outermost_is_disjoint():
            axis = self._outer[0]
            low, high = thread_share(self._fn, bound(self._fn, axis), True)
            self._fn.comment(f"for {axis.name} < {extent_text(axis)}: this thread's part")
            with self._fn.loop(low, high) as loop, self._e.scope({axis: Position(loop.index)}):
                self._e_hoist()
                self._loops(self._outer[1:], None)
            return
        self._loops(self._outer, self._owner_index() if shared else None)

    def _loops(self, axes: Sequence[Axis], owner: Index | None) -> None:
        factor = self._factor
        if factor is not None and axes and axes[0] in factor.axes and factor.axes.isdisjoint(axes[1:]):
            self._search(axes[0], factor, lambda: self._inner_loops(axes[1:], owner))
            return
        self._inner_loops(axes, owner)

    def _search(self, axis: Axis, factor: Expr, body: Callable[[], None]) -> None:
        """A loop over `axis`: `body` where `factor`, the last of whose axes it is, is not zero."""
        fn, lanes = self._fn, self._lanes
        extent = bound(fn, axis)
        whole = whole_part(fn, extent, lanes)
        fn.comment(f"for {axis.name} < {extent_text(axis)}: where {factor} is not zero")
        with fn.loop(0, whole, lanes) as loop:
            copy = Copy(loop.index, 0, lanes, lanes)
            with self._e.scope({axis: Position(loop.index)}), self._e.framed(Frame(axis, lanes, False, (copy,))):
                bits = self._bits(self._e.vector(factor, copy), factor)
            count = fn.op(f"call i64 @llvm.ctpop.i64(i64 {bits})")
            with fn.loop(0, count, carried=[("i64", bits)]) as one:
                lane = fn.op(f"call i64 @llvm.cttz.i64(i64 {one.phis[0]}, i1 true)")
                with self._e.scope({axis: Position(fn.op(f"add i64 {loop.index}, {lane}"))}):
                    self._e_hoist()
                    body()
                one.next(fn.op(f"and i64 {one.phis[0]}, {fn.op(f'sub i64 {one.phis[0]}, 1')}"))
        if isinstance(whole, int) and isinstance(extent, int):
            for place in range(whole, extent):
                self._look_at(axis, Position(None, place), factor, body)
            return
        with fn.loop(whole, extent) as loop:
            self._look_at(axis, Position(loop.index), factor, body)

    def _look_at(self, axis: Axis, position: Position, factor: Expr, body: Callable[[], None]) -> None:
        """`body` at a position if `factor` is not zero there."""
        with self._e.scope({axis: position}):
            value = self._e.value(factor)
            kept = value if factor.dtype == bool_ else self._fn.compare("une", _LLVM[factor.dtype.name], value, "0.0")
            with self._fn.if_(kept), self._e.scope({}):
                self._e_hoist()
                body()

    def _bits(self, values: str, factor: Expr) -> str:
        """Which lanes are not zero, as the bits of an i64."""
        fn, lanes = self._fn, self._lanes
        if factor.dtype != bool_:
            kind = f"<{lanes} x {_LLVM[factor.dtype.name]}>"
            values = fn.op(f"fcmp une {kind} {values}, zeroinitializer")
        for name in ("ctpop.i64(i64)", "cttz.i64(i64, i1)"):
            fn.declare(f"llvm.{name.partition('(')[0]}", f"declare i64 @llvm.{name}")
        bits = fn.cast("bitcast", f"<{lanes} x i1>", values, f"i{lanes}")
        return fn.cast("zext", f"i{lanes}", bits, "i64")

    def _inner_loops(self, axes: Sequence[Axis], owner: Index | None) -> None:
        if axes:
            self._fn.comment(f"for {axes[0].name} < {extent_text(axes[0])}")
            with self._fn.loop(0, bound(self._fn, axes[0])) as loop, self._e.scope({axes[0]: Position(loop.index)}):
                self._e_hoist()
                self._loops(axes[1:], owner)
            return
        if owner is None:
            self._point()
            return
        with self._fn.if_(self._is_mine(owner)), self._e.scope({}):
            self._point()

    def _point(self) -> None:
        with self._e.point():
            self._stages.write_all([self._inner])

    def _is_mine(self, owner: Index) -> str:
        """row % nt == tid, in 32 bits where they are enough (a 64-bit division takes twice as long)."""
        fn = self._fn
        fn.comment(f"this thread's rows: ({owner}) % nt == tid")
        row, kind = self._e.indices.scalar(owner), "i64"
        count, mine = "%nt", "%tid"
        if self._e.indices.is_small(owner):
            row, count, mine = (fn.cast("trunc", "i64", value, "i32") for value in (row, count, mine))
            kind = "i32"
        return fn.compare("eq", kind, fn.op(f"urem {kind} {row}, {count}"), mine)

    def _e_hoist(self) -> None:
        self._stages.hoist_all([self._inner])

    # -- sharing ------------------------------------------------------------------------------------------------------

    def _outermost_is_disjoint(self) -> bool:
        """Whether points that differ in the outermost axis never store to the same element."""
        if not self._outer or self._outer[0].extent < 2:
            return False
        axis = self._outer[0]
        for store in self._stage.stores:
            index = store.index[0]
            rest = index - Index.of(axis) * index.coefficient(axis)
            low, high = rest.bounds
            if high - low >= abs(index.coefficient(axis)) or any(a == axis for a in _axes_of_affine_terms(rest)):
                return False
        return True

    def _owner_index(self) -> Index | None:
        """The number of the destination row that all stores of a point go to; None if rows overlap or differ."""
        owners = set()
        for store in self._stage.stores:
            index = store.index[0]
            step = index.coefficient(self._vector) if self._vector is not None else 0
            base = index - Index.of(self._vector) * step if self._vector is not None else index
            distance = math.gcd(*(c for _, c in base.terms))
            span = abs(step) * (self._vector.extent - 1) if self._vector is not None else 0
            low, _ = base.bounds
            if distance == 0 or span >= distance or low < 0:
                return None
            owners.add(Index(0, tuple((atom, c // distance) for atom, c in base.terms)))
        owner = owners.pop() if len(owners) == 1 else None
        return owner if owner is not None and owner.bounds[0] >= 0 else None


_LLVM = {"float32": "float", "float64": "double"}


def _skipped_factor(stage: Stage, outer: Sequence[Axis]) -> Expr | None:
    """A factor of what is added that does not change along the innermost axis, nor along any behind the last of its own."""
    if len(stage.stores) != 1 or stage.stores[0].mode != "add" or not outer:
        return None
    found = None
    for factor in _factors(stage.stores[0].value):
        last = [number for number, axis in enumerate(outer) if axis in factor.axes]
        inside = factor.axes <= set(outer)
        if last and inside and factor.dtype.name in ("bool", *_LLVM) and (found is None or factor.depth < found.depth):
            found = factor
    return found


def _factors(value: Expr) -> list[Expr]:
    """Expressions without which `value` is zero: any that is zero (or false) makes it so."""
    if value.op == "mul":
        return [value, *(factor for arg in value.args for factor in _factors(arg))]
    if value.op == "neg" or (value.op == "cast" and value.args[0].dtype == bool_):
        return [value, *_factors(value.args[0])]
    if value.op == "where" and value.args[2].op == "const" and value.args[2].attribute == 0:
        return [value, value.args[0], *_factors(value.args[1])]
    if value.op == "where" and value.args[1].op == "const" and value.args[1].attribute == 0:
        return [value, op("logical_not", value.args[0], dtype=bool_), *_factors(value.args[2])]
    return [value]


def _axes_of_affine_terms(index: Index) -> list[Axis]:
    return [atom for atom, _ in index.terms if isinstance(atom, Axis)]


def _lanes_differ(stage: Stage, axis: Axis) -> bool:
    """Whether the stores of neighbouring points along `axis` go to different elements, a fixed distance apart."""
    for store in stage.stores:
        index = store.index[0]
        if index.coefficient(axis) == 0 or any(
            axis in Index(0, ((atom, 1),)).axes for atom, _ in index.terms if not isinstance(atom, Axis)
        ):
            return False
    return True
