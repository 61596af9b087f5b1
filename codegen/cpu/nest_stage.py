"""The stages at one point of the space (or at a few vectors of points): inner loops, accumulators, stores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fusegraph.codegen.cpu.body import Copy, Evaluator, Frame, Position
from fusegraph.codegen.cpu.nest_plan import Plan, StagePlan, stage_weight
from fusegraph.codegen.cpu.nest_prefetch import Prefetch
from fusegraph.codegen.cpu.nest_reduce import Accumulator, State, combine_all
from fusegraph.codegen.cpu.nest_rewrite import inner_axes, stage_roots
from fusegraph.codegen.cpu.run_time import bound, whole_part
from fusegraph.dtypes import bool_
from fusegraph.ir.index import Axis, Index, row_strides
from fusegraph.ir.loops import Stage, Store
from fusegraph.ir.loops_text import extent_text
from fusegraph.ir.scalar import acc
from fusegraph.records import replace

_UNROLLED_POINTS = 16  # inner loops of at most this many points are written out
_UNROLLED_WEIGHT = 160  # unless that makes more than about this many instructions
_LIGHT = 16.0  # stages up to this weight compute all copies before they store any

States = list[State]  # the state of each accumulator of each stream: stream 0's first
Body = Callable[[States], States]


class StageWriter:
    """Writes stages. A *stream* is a set of accumulators of its own; streams are combined at the end of a reduction."""

    def __init__(self, evaluator: Evaluator, plan: Plan, prefetch: Prefetch | None = None) -> None:
        self._e, self._fn, self._plan, self._prefetch = evaluator, evaluator.fn, plan, prefetch

    def write_all(self, stages: Sequence[Stage]) -> None:
        """All stages, at the current point."""
        for number, stage in enumerate(stages):
            self.write_one(number, stage)

    def write_one(self, number: int, stage: Stage) -> None:
        """Stage `number`, at the current point."""
        self._fn.comment(_title(stage))
        plan = self._stage_plan(number)
        frame = self._frame(plan)
        with self._e.framed(frame):
            ahead = self._prefetch if self._prefetch and self._prefetch.stage == number else None
            OneStage(self._e, stage, self._plan, plan, ahead).write()

    def hoist_all(self, stages: Sequence[Stage]) -> None:
        """What the stages need that is known here."""
        for number, stage in enumerate(stages):
            with self._e.framed(self._frame(self._stage_plan(number))):
                self._e.hoist(stage_roots(stage), stage.stores)

    def _stage_plan(self, number: int) -> StagePlan | None:
        return None if self._plan.axis is not None else self._plan.stages[number]

    def _frame(self, plan: StagePlan | None) -> Frame | None:
        if plan is None:
            known = self._e.frame
            assert self._plan.axis is not None
            return known if known is not None else Frame(self._plan.axis, self._plan.lanes, True)
        return Frame(plan.axis, plan.lanes, False) if plan.axis is not None else None


class OneStage:
    """One stage. `rows`: its own plan; None where the lanes lie along an axis of the space."""

    def __init__(
        self,
        evaluator: Evaluator,
        stage: Stage,
        plan: Plan,
        rows: StagePlan | None = None,
        prefetch: Prefetch | None = None,
    ) -> None:
        self._e, self._fn, self._stage, self._rows = evaluator, evaluator.fn, stage, rows
        self._prefetch = prefetch
        frame = evaluator.frame
        self._lanes = frame.lanes if frame is not None else 1
        self._depth = evaluator.depth
        self._roots, self._weight = stage_roots(stage), stage_weight(stage)
        loops = [axis for axis in inner_axes(stage) if rows is None or axis != rows.axis]
        self._loops: tuple[Axis, ...] = tuple(loops)
        count = math.prod(axis.extent for axis in stage.reduce_axes)
        self._position_element = "i32" if count < 1 << 31 else "i64"
        self._twins = _extremes_of_positions(stage)
        own = [reduce for reduce in stage.reduces if reduce.name not in self._twins]
        self.accumulators = [Accumulator(r, evaluator.ops(self._lanes), self._position_element) for r in own]
        self._chains = plan.chains if rows is None and stage.reduces and self._loops else 1
        self._chains = self._chains if self._chains > 1 and self._loops[-1].extent >= 2 * self._chains else 1
        self._copies = (len(frame.copies) if frame is not None else 1) if rows is None else 1
        self._streams = self._copies * self._chains if rows is None else (rows.copies if rows.axis else 1)
        self._chain = 0
        self._forwards: list[tuple[Store, Copy | None, str]] = []

    def write(self) -> None:
        """The whole stage; its accumulators are bound afterwards."""
        states: States = [a.start() for _ in range(self._streams) for a in self.accumulators]
        if all(axis.extent for axis in inner_axes(self._stage)):
            self._e.hoist(self._roots, self._stage.stores)
            states = self._inner(self._loops, states)
        self.bind(states)
        if self._stage.stores:
            self._e.forget_loads(store.buffer for store in self._stage.stores)
            for store, copy, value in self._forwards:
                self._e.forward_store(store, copy, value)

    # -- loops --------------------------------------------------------------------------------------------------------

    def _inner(self, axes: Sequence[Axis], states: States) -> States:
        """Loops over `axes`, then the points."""
        if not axes:
            return self.points(states)
        axis = axes[0]
        if self._is_unrolled(axes):
            for k in range(axis.extent):
                states = self._at(axis, Position(None, k), axes[1:], states)
            return states
        if len(axes) == 1 and self._chains > 1:
            return self._in_chains(axis, states)
        self._fn.comment(f"for {axis.name} < {extent_text(axis)}")
        return self._counted(
            0, bound(self._fn, axis), 1, states, lambda name, now: self._at(axis, Position(name), axes[1:], now)
        )

    def _is_unrolled(self, axes: Sequence[Axis]) -> bool:
        if any(axis.rows for axis in axes):
            return False
        points = math.prod(axis.extent for axis in axes)
        vectors = len(self._e.frame.copies) if self._rows is None and self._e.frame else self._streams
        return points <= _UNROLLED_POINTS and points * vectors * self._weight <= _UNROLLED_WEIGHT

    def _at(self, axis: Axis, position: Position, rest: Sequence[Axis], states: States) -> States:
        with self._e.scope({axis: position}):
            if rest or self._rows is not None:
                self._e.hoist(self._roots, self._stage.stores)
            return self._inner(rest, states)

    def _counted(
        self, low: int | str, high: int | str, step: int, states: States, body: Callable[[str, States], States]
    ) -> States:
        """A loop that carries the accumulators."""
        types = [t for _ in range(self._streams) for a in self.accumulators for t in a.types]
        flat = [value for state in states for value in state]
        with self._fn.loop(low, high, step, list(zip(types, flat, strict=True))) as loop:
            following = body(loop.index, _unflatten(loop.phis, states))
            loop.next(*(value for state in following for value in state))
        return _unflatten(loop.results, states)

    def _in_chains(self, axis: Axis, states: States) -> States:
        """The innermost reduce axis, several points at a time with accumulators of their own."""
        chains, extent = self._chains, bound(self._fn, axis)
        whole = whole_part(self._fn, extent, chains)

        def several(name: str, now: States) -> States:
            for self._chain in range(chains):
                now = self._at(axis, Position(name, self._chain), (), now)
            return now

        self._fn.comment(f"for {axis.name} < {whole} by {chains}")
        states = self._counted(0, whole, chains, states, several)
        self._chain = 0
        if not isinstance(whole, int) or not isinstance(extent, int):
            return self._counted(whole, extent, 1, states, lambda name, now: self._at(axis, Position(name), (), now))
        for k in range(whole, extent):
            self._chain = k - whole
            states = self._at(axis, Position(None, k), (), states)
        self._chain = 0
        return states

    # -- points -------------------------------------------------------------------------------------------------------

    def points(self, states: States) -> States:
        """All copies at the innermost loop: of the space's vector axis, or along the stage's own."""
        if self._rows is None:
            assert self._e.frame is not None
            return self._copies_of(self._e.frame.copies, states)
        if self._rows.axis is None:
            return self._copies_of([None], states)
        return self._along(self._rows.axis, states)

    def _along(self, axis: Axis, states: States) -> States:
        """The stage's vector axis: a loop over whole groups of vectors, and the rest."""
        rows = self._rows
        assert rows is not None and self._e.frame is not None
        unit = rows.lanes * rows.copies
        extent = bound(self._fn, axis)
        whole = 0 if rows.static else whole_part(self._fn, extent, unit)
        frame = self._e.frame

        def block(name: str, now: States) -> States:
            copies = tuple(Copy(name, k * rows.lanes, rows.lanes, rows.lanes) for k in range(rows.copies))
            with self._e.scope({axis: Position(name)}), self._e.framed(replace(frame, copies=copies)):
                if self._prefetch is not None:
                    self._prefetch.write(self._e.memory, copies)
                return self._copies_of(copies, now)

        if whole:
            self._fn.comment(f"for {axis.name} < {extent_text(axis)} by {unit}: {rows.copies} vectors of {rows.lanes}")
            states = self._counted(0, whole, unit, states, block)
        if not isinstance(whole, int) or not isinstance(extent, int):
            return self._counted(whole, extent, 1, states, lambda name, now: self._one_point(axis, name, now))
        rest = tuple(
            Copy(None, at, rows.lanes, min(rows.lanes, extent - at)) for at in range(whole, extent, rows.lanes)
        )
        if rest:
            with self._e.framed(replace(frame, copies=rest)):
                states = self._copies_of(rest, states)
        return states

    def _one_point(self, axis: Axis, name: str, states: States) -> States:
        """Point `name` of the stage's vector axis, alone in a vector."""
        assert self._rows is not None and self._e.frame is not None
        copies = (Copy(name, 0, self._rows.lanes, 1),)
        with self._e.scope({axis: Position(name)}), self._e.framed(replace(self._e.frame, copies=copies)):
            return self._copies_of(copies, states)

    def _copies_of(self, copies: Sequence[Copy | None], states: States) -> States:
        """Reduces and stores of some vectors."""
        states = list(states)
        pending: list[tuple[Store, Copy | None, str]] = []
        light = self._weight <= _LIGHT
        self._e.compute_together(self._roots, copies)
        for number, copy in enumerate(copies):
            self._accumulate(number, copy, states)
            pending += [(store, copy, self._e.vector(store.value, copy)) for store in self._stage.stores]
            if not light or number == len(copies) - 1:
                self._store(pending)
                pending = []
        return states

    def _store(self, pending: Sequence[tuple[Store, Copy | None, str]]) -> None:
        for store, copy, value in pending:
            self._e.memory.store(store, copy, value)
            if self._e.depth == self._depth and store.mode == "store":
                self._forwards.append((store, copy, value))

    def _accumulate(self, number: int, copy: Copy | None, states: States) -> None:
        stream = number + self._chain * self._copies if self._rows is None else number % self._streams
        for which, accumulator in enumerate(self.accumulators):
            at = stream * len(self.accumulators) + which
            value = self._e.vector(accumulator.reduce.value, copy)
            position = self._position(copy) if accumulator.wants_position else ""
            states[at] = accumulator.step(states[at], value, position, self._mask(copy))

    def _mask(self, copy: Copy | None) -> str | None:
        """The lanes that exist, where lanes of one vector are combined later."""
        if copy is None or self._rows is None or copy.count == copy.lanes:
            return None
        return self._e.ops(copy.lanes).of(bool_).first_mask(copy.count)

    def _position(self, copy: Copy | None) -> str:
        """The number of the point in C order over the reduce axes."""
        index = Index()
        for axis, stride in zip(
            self._stage.reduce_axes, row_strides([a.extent for a in self._stage.reduce_axes]), strict=True
        ):
            index = index + Index.of(axis) * stride
        if copy is not None:
            return self._e.indices.lanes(index, copy, self._position_element)
        text = self._e.indices.scalar(index)
        if self._position_element == "i64" or text.isdigit():
            return text
        return self._fn.cast("trunc", "i64", text, self._position_element)

    # -- results ------------------------------------------------------------------------------------------------------

    def bind(self, states: States) -> None:
        """Combine the streams; the results are accumulators that later stages read."""
        width = len(self.accumulators)
        for which, accumulator in enumerate(self.accumulators):
            parts = states[which::width]
            if self._rows is not None:
                final = Accumulator(accumulator.reduce, self._e.scalars, self._position_element)
                self._bind_one(final, None, accumulator.across(combine_all(accumulator, parts)))
                continue
            assert self._e.frame is not None
            for number, copy in enumerate(self._e.frame.copies):
                self._bind_one(accumulator, copy, combine_all(accumulator, parts[number :: self._copies]))

    def _bind_one(self, accumulator: Accumulator, copy: Copy | None, state: State) -> None:
        reduce = accumulator.reduce
        self._e.bind_accumulator(acc(reduce.name, reduce.dtype), copy, accumulator.result(state))
        for twin in self._stage.reduces:
            if self._twins.get(twin.name) == reduce.name:
                self._e.bind_accumulator(acc(twin.name, twin.dtype), copy, state[0])


def _extremes_of_positions(stage: Stage) -> dict[str, str]:
    """Names of max (min) reductions beside an argmax (argmin) of the same value, which finds the extreme too."""
    positions = {(r.op[3:], r.value): r.name for r in stage.reduces if r.op.startswith("arg")}
    return {r.name: positions[r.op, r.value] for r in stage.reduces if (r.op, r.value) in positions}


def _unflatten(values: Sequence[str], like: States) -> States:
    states, at = [], 0
    for state in like:
        states.append(tuple(values[at : at + len(state)]))
        at += len(state)
    return states


def _title(stage: Stage) -> str:
    if stage.reduces:
        over = ", ".join(f"{axis.name} < {extent_text(axis)}" for axis in stage.reduce_axes)
        return f"{', '.join(f'{r.name} = {r.op}' for r in stage.reduces)} over ({over})"
    return f"store {', '.join(store.buffer for store in stage.stores)}"
