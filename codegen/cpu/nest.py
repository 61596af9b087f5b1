"""Any loop as an explicit-vector LLVM function: the emitter of schedule "nest", and of whatever no other emitter takes.

The loop is brought into canonical form (nest_canonical), a plan is chosen (nest_plan), and loops are written from the
outside in: the threads' share of the space, the rest of the space, and for each point (or each few vectors of points)
the stages. Expressions are written by `body`, which places each at the outermost loop where it is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from fusegraph.codegen.cpu.body import Copy, Evaluator, Frame, Position
from fusegraph.codegen.cpu.irtext import FunctionBuilder, Module
from fusegraph.codegen.cpu.kernel import EmittedKernel, kernel_buffers, kernel_function
from fusegraph.codegen.cpu.nest_canonical import canonical_loop
from fusegraph.codegen.cpu.nest_join import join_stages
from fusegraph.codegen.cpu.nest_pairs import plan_pairs
from fusegraph.codegen.cpu.nest_plan import Plan, leading_points, plan_nest, threads_worth
from fusegraph.codegen.cpu.nest_prefetch import plan_prefetch
from fusegraph.codegen.cpu.nest_range import mark_exps
from fusegraph.codegen.cpu.nest_share import share_rows
from fusegraph.codegen.cpu.nest_stage import StageWriter
from fusegraph.codegen.cpu.nest_stream import streamed_buffers
from fusegraph.codegen.cpu.nest_strips import Strips, StripWriter, plan_strips
from fusegraph.codegen.cpu.row_bands import find_row_bands
from fusegraph.codegen.cpu.run_time import bound, ceiling, points, product, whole_part
from fusegraph.ir.index import Axis
from fusegraph.ir.loops import Loop, Program
from fusegraph.ir.loops_text import extent_text, print_loop
from fusegraph.records import replace


def emit_nest(module: Module, loop: Loop, program: Program, vector_bits: int, *, exact: bool = False,
              parallel: bool | None = None) -> EmittedKernel:  # fmt: skip
    """Write the kernel of `loop` into `module`.

    `vector_bits`: width of a vector register. `exact`: C library functions, no contraction, sequential reductions.
    `parallel`: whether it is split among threads; None decides by the amount of work.
    """
    fn = kernel_function(module, loop)
    describe(fn, loop, program)
    bands = None if exact else find_row_bands(loop, program)
    if bands is None:
        return _write(fn, module, loop, loop, program, vector_bits, exact, parallel)
    canonical = canonical_loop(loop, program.buffers)
    parallel = plan_nest(canonical, program.buffers, vector_bits // 32, exact, parallel).parallel
    parts = [
        _write(fn, module, loop, part, program, vector_bits, exact, parallel) for part in bands.loops(loop, program)
    ]
    rows = math.gcd(bands.outer, *(part.rows for part in parts))
    return replace(parts[0], scratch_bytes=max(part.scratch_bytes for part in parts), rows=rows if parallel else 0)


def _write(fn: FunctionBuilder, module: Module, loop: Loop, part: Loop, program: Program, vector_bits: int, exact: bool,
           parallel: bool | None) -> EmittedKernel:  # fmt: skip
    """Write `part`, a loop that does some of what `loop` does, into the function of `loop`'s kernel."""
    buffers = kernel_buffers(loop)
    canonical = canonical_loop(part, program.buffers)
    if not exact:
        canonical = join_stages(replace(canonical, stages=mark_exps(canonical.stages)))
    if canonical.points() == 0 or not canonical.stages:
        return EmittedKernel(loop.name, buffers, 0, False)
    plan = plan_nest(canonical, program.buffers, vector_bits // 32, exact, parallel)
    pairs = None if exact else plan_pairs(canonical, plan, program.buffers)
    canonical, plan = (pairs.loop, pairs.plan) if pairs else (canonical, plan)
    shared = share_rows(canonical, plan)
    pointers = {name: f"%p{position}" for position, name in enumerate(buffers)}
    pointers |= {name: fn.gep("%scratch", offset, "i8") for name, offset in shared.offsets.items()}
    evaluator = Evaluator(fn, module, {**program.buffers, **shared.rows}, pointers, shared.loop.writes(), exact)
    strips = plan_strips(shared.loop, plan, exact)
    evaluator.memory.streamed = streamed_buffers(loop, program)
    NestWriter(evaluator, shared.loop, strips.plan if strips else plan, strips, pairs is not None).write()
    if evaluator.memory.streamed:
        fn.emit("fence seq_cst")  # stores past the caches are in no order with later ones
    scratch_bytes = strips.scratch_bytes if strips else shared.scratch_bytes
    rows = leading_points(canonical.space, plan) if plan.parallel and not loop.sized else 0
    work = threads_worth(canonical) if loop.sized else math.inf
    return EmittedKernel(loop.name, buffers, scratch_bytes, plan.parallel, rows, work)


def describe(fn: FunctionBuilder, loop: Loop, program: Program) -> None:
    """Comments at the head of a kernel: its loop, and its buffers."""
    fn.comment(print_loop(loop))
    for position, name in enumerate(kernel_buffers(loop)):
        buffer = program.buffers[name]
        fn.comment(f"%p{position} = {name}: {buffer.dtype.name}{list(buffer.shape)} ({buffer.role})")


def thread_share(fn: FunctionBuilder, count: int | str, parallel: bool) -> tuple[int | str, int | str]:
    """This thread's part lo, hi of 0 .. count - 1."""
    if not parallel:
        return 0, count
    low = fn.op(f"udiv i64 {fn.op(f'mul i64 %tid, {count}')}, %nt")
    following = fn.op("add i64 %tid, 1")
    return low, fn.op(f"udiv i64 {fn.op(f'mul i64 {following}, {count}')}, %nt")


class NestWriter:
    """Writes the loops over the space of a canonical loop."""

    def __init__(
        self, evaluator: Evaluator, loop: Loop, plan: Plan, strips: Strips | None = None, pairs: bool = False
    ) -> None:
        self._e, self._fn, self._loop, self._plan, self._pairs = evaluator, evaluator.fn, loop, plan, pairs
        self._stages = StageWriter(evaluator, plan, plan_prefetch(loop, plan, evaluator.buffers))
        self._strips = strips
        self._body: Callable[[], None] = lambda: self._stages.write_all(loop.stages)

    def write(self) -> None:
        """Everything: the function's body, up to its end."""
        shared, rest = self._plan.outer[: self._plan.shared], self._plan.outer[self._plan.shared :]
        self._hoist()
        if self._plan.split_vector:
            self._split_with_vector(shared)
            return
        low, high = thread_share(self._fn, points(self._fn, shared), self._plan.parallel)
        if low == 0 and high == 1:
            self._outer(rest)
            return
        self._fn.comment(f"for {', '.join(f'{a.name} < {extent_text(a)}' for a in shared)}: this thread's part")
        if self._pairs:
            low = self._in_pairs(low, high, shared)
        with self._fn.loop(low, high) as loop, self._e.scope(self._unravel(loop.index, shared)):
            self._hoist()
            self._outer(rest)

    def _in_pairs(self, low: int | str, high: int | str, axes: Sequence[Axis]) -> str:
        """Points low .. high two at a time, stage by stage in turn; gives the first point that is left over."""
        fn = self._fn
        count = fn.affine([(1, str(high)), (-1, str(low))])
        end = fn.affine([(1, str(low)), (1, fn.op(f"and i64 {count}, -2"))])
        with fn.loop(low, end, 2) as loop:
            points = []
            for point in (loop.index, fn.op(f"add i64 {loop.index}, 1")):
                with self._e.scope(self._unravel(point, axes)) as scope:
                    self._hoist()
                    points.append(scope)
            for number, stage in enumerate(self._loop.stages):
                for scope in points:
                    with self._e.again(scope), self._e.point():
                        self._stages.write_one(number, stage)
        return end

    def _split_with_vector(self, outer: Sequence[Axis]) -> None:
        """Few points outside: (point, block of the vector axis) pairs are shared."""
        axis, fn = self._plan.axis, self._fn
        assert axis is not None
        unit = self._plan.lanes * self._plan.copies
        blocks, extent = -(-axis.extent // unit), bound(fn, axis)
        most = math.prod(a.extent for a in outer)
        if most == 1:
            low, high = thread_share(fn, ceiling(fn, extent, unit), self._plan.parallel)
            self._columns(*self._limits(low, high, unit, extent))
            return
        chunk = -(-blocks // min(blocks, -(-64 // most)))  # blocks
        chunks = -(-blocks // chunk)
        low, high = thread_share(fn, product(fn, (points(fn, outer), chunks)), self._plan.parallel)
        with fn.loop(low, high) as loop:
            point = fn.op(f"udiv i64 {loop.index}, {chunks}")
            first = fn.op(f"mul i64 {fn.op(f'urem i64 {loop.index}, {chunks}')}, {chunk}")
            last = fn.op(f"add i64 {first}, {chunk}")
            with self._e.scope(self._unravel(point, outer)):
                self._hoist()
                self._vectors(*self._limits(first, last, unit, extent))

    def _columns(self, low: int | str, high: int | str) -> None:
        """Columns low .. high: this thread's part of a space that is one axis, or all of a block of rows."""
        if self._strips is None:
            self._vectors(low, high)
            return

        def vectors(body: Callable[[], None]) -> None:
            self._body = body
            self._vectors(low, high)

        StripWriter(self._e, self._loop, self._strips, vectors).write()

    def _limits(self, low: int | str, high: int | str, unit: int, extent: int | str) -> tuple[int | str, int | str]:
        """Blocks low .. high of `unit` points as points."""
        if isinstance(low, int) and isinstance(high, int) and isinstance(extent, int):
            return low * unit, min(high * unit, extent)
        first, last = (self._fn.op(f"mul i64 {part}, {unit}") for part in (low, high))
        return first, self._fn.min_i64(last, extent)

    def _unravel(self, number: str, axes: Sequence[Axis]) -> dict[Axis, Position]:
        """The positions of `axes` for point `number` in C order."""
        positions, stride = {}, math.prod(axis.extent for axis in axes)
        for place, axis in enumerate(axes):
            stride //= axis.extent
            part = number if stride == 1 else self._fn.op(f"udiv i64 {number}, {stride}")
            positions[axis] = Position(part if place == 0 else self._fn.op(f"urem i64 {part}, {axis.extent}"))
        return positions

    def _outer(self, axes: Sequence[Axis]) -> None:
        """Loops over the rest of the space, then the vector axis or the point."""
        if not axes:
            if self._plan.axis is not None:
                self._columns(0, bound(self._fn, self._plan.axis))
            else:
                with self._e.point():
                    self._stages.write_all(self._loop.stages)
            return
        self._fn.comment(f"for {axes[0].name} < {extent_text(axes[0])}")
        with self._fn.loop(0, bound(self._fn, axes[0])) as loop, self._e.scope({axes[0]: Position(loop.index)}):
            self._hoist()
            self._outer(axes[1:])

    def _vectors(self, low: int | str, high: int | str) -> None:
        """The vector axis from low to high: whole blocks of vectors, then what is left at its end."""
        axis, lanes = self._plan.axis, self._plan.lanes
        assert axis is not None
        unit = lanes * self._plan.copies
        if axis.rows:
            self._sized_vectors(low, high, unit)
            return
        whole = axis.extent // unit * unit
        if whole == unit and low == 0 and high == axis.extent:  # a single block: no loop
            self._points([*self._block(None, self._plan.copies, lanes), *self._rest(whole)])
            return
        if whole:
            limit = high if whole == axis.extent else self._fn.min_i64(high, whole)
            limit = int(limit) if str(limit).isdigit() else limit
            self._fn.comment(f"for {axis.name} < {whole} by {unit}: {self._plan.copies} vectors of {lanes}")
            with self._fn.loop(low, limit, unit) as loop, self._e.scope({axis: Position(loop.index)}):
                self._points(self._block(loop.index, self._plan.copies, lanes))
        if rest := self._rest(whole):
            self._fn.comment(f"{axis.name} = {whole} .. {axis.extent - 1}")
            with self._only_at_end(high, axis.extent), self._e.scope({}):
                self._points(rest)

    def _sized_vectors(self, low: int | str, high: int | str, unit: int) -> None:
        """The same where the axis ends somewhere at run time: blocks, then vectors, then points, one in a vector each."""
        axis, lanes, narrow, fn = self._plan.axis, self._plan.lanes, self._plan.narrow, self._fn
        assert axis is not None
        high = fn.max_i64(low, high) if low != 0 else high
        parts = [(unit, self._plan.copies, lanes, lanes)]
        parts += [(narrow, 1, narrow, narrow)] if unit > narrow else []
        for step, count, length, used in [*parts, (1, 1, narrow, 1)]:
            end = fn.affine([(1, str(low)), (1, whole_part(fn, fn.affine([(1, str(high)), (-1, str(low))]), step))])
            fn.comment(f"for {axis.name} < {extent_text(axis)} by {step}: {count} vectors of {length}")
            with fn.loop(low, end, step) as loop, self._e.scope({axis: Position(loop.index)}):
                self._points([Copy(loop.index, k * length, length, used) for k in range(count)])
            low = end

    @staticmethod
    def _block(base: str | None, count: int, lanes: int) -> list[Copy]:
        return [Copy(base, k * lanes, lanes, lanes) for k in range(count)]

    def _rest(self, start: int) -> list[Copy]:
        """Vectors of one register for what is left from `start` on."""
        assert self._plan.axis is not None
        extent, narrow = self._plan.axis.extent, self._plan.narrow
        return [Copy(None, at, narrow, min(narrow, extent - at)) for at in range(start, extent, narrow)]

    @contextmanager
    def _only_at_end(self, high: int | str, extent: int) -> Iterator[None]:
        if isinstance(high, int):
            yield
            return
        with self._fn.if_(self._fn.compare("eq", "i64", high, extent)):
            yield

    def _points(self, copies: Sequence[Copy]) -> None:
        """The stages for some vectors; vectors of two lengths one after the other."""
        if len({copy.lanes for copy in copies}) > 1:
            for lanes in sorted({copy.lanes for copy in copies}, reverse=True):
                self._points([copy for copy in copies if copy.lanes == lanes])
            return
        assert self._plan.axis is not None
        frame = Frame(self._plan.axis, copies[0].lanes, True, tuple(copies))
        with self._e.scope({}), self._e.framed(frame), self._e.point():
            self._body()

    def _hoist(self) -> None:
        self._stages.hoist_all(self._loop.stages)
