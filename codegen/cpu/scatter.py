"""Schedule "scatter": points that add to elements whose place is read at run time (gradients of embeddings, of
gathers).

Several points may add to one element; for every element they do so in C order, however many threads there are:

- Where different points of the outermost axis never meet, threads share that axis.
- Else every thread walks through all points and takes those whose destination row has (row % nt == tid). A row is
  what the innermost axis runs along; it is added as vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from fusegraph.codegen.cpu.body import Evaluator, Position
from fusegraph.codegen.cpu.irtext import Module
from fusegraph.codegen.cpu.kernel import EmittedKernel, kernel_buffers, kernel_function
from fusegraph.codegen.cpu.nest import describe, thread_share
from fusegraph.codegen.cpu.nest_canonical import canonical_loop
from fusegraph.codegen.cpu.nest_plan import Plan, fitting_lanes, plan_stage, stage_weight
from fusegraph.codegen.cpu.nest_rewrite import inner_axes
from fusegraph.codegen.cpu.nest_stage import StageWriter
from fusegraph.errors import CompilerError
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Loop, Program, Stage

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
        if stage.reduces:  # nothing is scattered: an ordinary reduction
            self._outer, self._inner = (), stage

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
            low, high = thread_share(self._fn, axis.extent, True)
            self._fn.comment(f"for {axis.name} < {axis.extent}: this thread's part")
            with self._fn.loop(low, high) as loop, self._e.scope({axis: Position(loop.index)}):
                self._e_hoist()
                self._loops(self._outer[1:], None)
            return
        self._loops(self._outer, self._owner_index() if shared else None)

    def _loops(self, axes: Sequence[Axis], owner: Index | None) -> None:
        if axes:
            self._fn.comment(f"for {axes[0].name} < {axes[0].extent}")
            with self._fn.loop(0, axes[0].extent) as loop, self._e.scope({axes[0]: Position(loop.index)}):
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
