"""Kernels in which a team of threads shares a point: how stages are spread over a team, when it must wait, what it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fusegraph.codegen.cuda.nest_plan import LANE, SECTOR, VECTOR, WARP, Key, NestPlan, extent, flat, stage_axes
from fusegraph.codegen.cuda.nest_writer import NestWriter
from fusegraph.codegen.python_names import ProgramNames, axis_name
from fusegraph.codegen.python_text import ATOM, Text
from fusegraph.ir.index import Axis, Index, unflatten_index
from fusegraph.ir.loops import Reduce, Stage, Store
from fusegraph.ir.scalar import Expr, walk


@dataclass
class Spread:
    """How a stage's points are spread over a team: slots of `vector` neighbours for each thread."""

    axes: tuple[Axis, ...]
    count: int
    vector: int
    slots: int
    kept: bool = False

    @property
    def groups(self) -> int:
        """Points, or groups of four."""
        return self.count // self.vector


@dataclass
class Hazards:
    """What was read and written since the last barrier, with the element's number and the spread of the stage."""

    reads: set[tuple[str, Index, int]] = field(default_factory=set)
    writes: set[tuple[str, Index, int]] = field(default_factory=set)

    def clash(self, reads: set[tuple[str, Index, int]], writes: set[tuple[str, Index, int]]) -> bool:
        """Whether another thread may have touched what is touched now."""
        return _meet(self.writes, reads | writes) or _meet(self.reads, writes)

    def clear(self) -> None:
        """After a barrier."""
        self.reads.clear()
        self.writes.clear()


def _meet(some: set[tuple[str, Index, int]], others: set[tuple[str, Index, int]]) -> bool:
    return any(a[0] == b[0] and (a != b or a[2] == 1) for a in some for b in others)


class TeamWriter(NestWriter):
    """A team of threads takes a point. Subclasses place the team's members and combine their accumulators."""

    def __init__(self, plan: NestPlan, names: ProgramNames) -> None:
        super().__init__(plan, names)
        self._member = "member"
        self._skew = "skew"
        self._thread, self._point = "thread", "point"
        self._valid: str | None = None
        self._hazards = Hazards()
        self._kept: dict[Key, str] = {}
        self._filled: set[Key] = set()
        self._slot_text = "0"

    @property
    def whole_block(self) -> bool:
        """Whether members of a team are in different warps."""
        return self.plan.team > WARP

    def write(self) -> None:
        """Everything below the signature."""
        self._open_team()
        self._declare_kept()
        for stage in self.plan.loop.stages:
            spread = self._spread(stage)
            self._synchronize(stage, spread)
            if stage.reduces:
                self._reduce_together(stage, spread)
            else:
                self._store_together(stage, spread)
            self.forget_axes(spread.axes)
            self.forget_unstable()

    def _place_member(self, thread: str, point: str) -> None:
        """Which point, and which member of its team, this thread is, where a block has several teams."""
        raise NotImplementedError

    def _combine(self, reduce: Reduce, bests: dict[str, str]) -> None:
        """The team's accumulators become one, in every thread."""
        raise NotImplementedError

    def _open_team(self) -> None:
        """Which point, and which member of its team, this thread is."""
        plan = self.plan
        thread, point = self.fresh("thread"), self.fresh("point")
        self._thread, self._point = thread, point
        self.line(f"{thread} = uint32(cuda.threadIdx.x)")
        self._member = self.fresh("member") if plan.teams > 1 else thread
        if plan.teams == 1:
            self.line(f"{point} = uint32(cuda.blockIdx.x)")
        else:
            self._place_member(thread, point)
        if plan.points % plan.teams:
            self._valid = self.fresh("inside")
            self.line(f"{self._valid} = {point} < {plan.points}")
            self.line(
                f"{point} = min({point}, uint32({plan.points - 1}))  # others repeat the last point and store nothing"
            )
        self._place_points(point, plan.points, 1)

    def _spread(self, stage: Stage) -> Spread:
        axes = stage_axes(stage)
        count = extent(axes)
        longest = max(extent(stage_axes(other)) for other in self.plan.loop.stages)
        vector = self.plan.vector if count == longest else 1
        return Spread(axes, count, vector, self._slots(count, vector), bool(self._kept) and count == longest)

    def _declare_kept(self) -> None:
        """Arrays for the elements of a row that stay in this thread's registers."""
        longest = max(extent(stage_axes(stage)) for stage in self.plan.loop.stages)
        slots = self._slots(longest, self.plan.vector)
        self._kept = {key: self.fresh(f"{self.names.buffers[key[0]]}_row") for key in self.plan.kept}
        for key, name in self._kept.items():
            self.declare(f"{name} = cuda.local.array({slots * self.plan.vector}, {self.element(key[0])})")

    def _slots(self, count: int, vector: int) -> int:
        """How often a thread's turn comes among `count` elements."""
        latest = SECTOR // vector - 1 if self._is_skewed(count) else 0
        return -(-(count // vector + latest) // self.plan.team)

    def _is_skewed(self, count: int) -> bool:
        """Whether threads take stages of `count` elements from where a sector begins, somewhat before the row does."""
        return False

    def _store_key(self, store: Store) -> Key:
        return store.buffer, flat(store.buffer, store.index, self.names.program.buffers)

    # -- synchronisation ------------------------------------------------------------------------------------------------

    def _synchronize(self, stage: Stage, spread: Spread) -> None:
        """A barrier, where the stage touches what another thread of the team has touched."""
        loads = [e for e in walk(stage.expressions()) if e.op == "load"]
        values = [v for store in stage.stores for index in store.index for v in self.run_time_indices(index)]
        loads += [e for e in walk(values) if e.op == "load"]
        written = frozenset(self.loop.writes())
        reads = {(e.attribute.buffer, self.flat_index(e), spread.count) for e in loads if e.attribute.buffer in written}
        reads = {read for read in reads if (read[0], read[1]) not in self._kept}
        writes = {(*self._store_key(store), spread.count) for store in stage.stores}
        if self._hazards.clash(reads, writes):
            self._barrier()
        self._hazards.reads |= reads
        self._hazards.writes |= writes

    def _barrier(self) -> None:
        self.line("cuda.syncthreads()" if self.whole_block else "cuda.syncwarp()")
        self._hazards.clear()

    # -- spreading a stage over the team --------------------------------------------------------------------------------

    @contextmanager
    def _spread_loop(self, spread: Spread) -> Iterator[Index]:
        """The loops of one thread over its share of a stage. Gives the number of the point; the axes are placed."""
        level, team = len(self.blocks) - 1, self.plan.team
        name = self._group_name(spread)
        step, skew = None, f" - {self._skew}" if self._is_skewed(spread.count) else ""
        if spread.slots == 1:
            self.line(f"{name} = uint32({self._member}{skew})" if skew else f"{name} = {self._member}")
        elif spread.kept or skew:
            self.open(f"for slot in range({spread.slots}):")
            self.line(f"{name} = uint32(slot * {team} + {self._member}{skew})")
        else:
            self.line(f"{name} = {self._member}")
            self.open(f"while {name} < {spread.groups}:")
            step = f"{name} = uint32({name} + {team})"
        conditions = (
            [] if (spread.groups % team == 0 and not skew) or step is not None else [f"{name} < {spread.groups}"]
        )
        with self._only([*conditions, *([self._valid] if self._valid else [])]):
            group = Axis(name, spread.groups)
            self.axis_names[group], self.axis_levels[group] = name, len(self.blocks) - 1
            number = Index.of(group) if spread.vector == 1 else Index.of(group) * spread.vector + Index.of(LANE)
            self.set_places(
                dict(zip(spread.axes, unflatten_index(number, [a.extent for a in spread.axes]), strict=True))
            )
            self._slot_text = self._slot(spread)
            yield number
        if step is not None:
            self.line(step)
        self.close(level)
        self.taken.discard(name)

    @contextmanager
    def _only(self, conditions: list[str]) -> Iterator[None]:
        """`if conditions:`; elements that this loop also writes are read inside of it, by the threads that may write them."""
        before = self.space_level
        with self.guard(" and ".join(conditions), not conditions):
            self.space_level = len(self.blocks) - 1
            yield
        self.space_level = before

    def _group_name(self, spread: Spread) -> str:
        if spread.vector > 1:
            return self.fresh("quad")
        long = [axis for axis in spread.axes if axis.extent > 1]
        return self.fresh(axis_name(long[0].name, self.taken) if len(long) == 1 else "element")

    def _slot(self, spread: Spread) -> str:
        """Where in a kept row this thread's present element is."""
        if spread.vector == 1:
            return "slot" if spread.slots > 1 else "0"
        return f"slot * {VECTOR} + lane" if spread.slots > 1 else "lane"

    def _reduce_together(self, stage: Stage, spread: Spread) -> None:
        bests = self._begin_all(stage)
        if spread.count == 1:
            self.set_places({axis: Index() for axis in spread.axes})
            self._accumulate_all(stage, bests, Index())
        elif spread.count:
            with self._spread_loop(spread) as number, self._lanes(spread.vector):
                self._accumulate_all(stage, bests, number)
            for reduce in stage.reduces:
                self._combine(reduce, bests)
            if self.whole_block:
                self._hazards.clear()
        for reduce in stage.reduces:
            if reduce.name in bests:
                self._as_position(reduce)

    def _store_together(self, stage: Stage, spread: Spread) -> None:
        if spread.count == 1:
            self.set_places({axis: Index() for axis in spread.axes})
            with self._only([f"{self._member} == 0", *([self._valid] if self._valid else [])]):
                self._write_stores(stage, 1)
        elif spread.count:
            with self._spread_loop(spread):
                self._write_stores(stage, spread.vector)

    # -- rows in registers ------------------------------------------------------------------------------------------------

    def _load_text(self, node: Expr, phase: object) -> Text:
        key = (node.attribute.buffer, self.flat_index(node))
        if key not in self._kept or node.attribute.mask or not self._in_spread(node):
            return super()._load_text(node, phase)  # type: ignore[arg-type]
        element = Text(self.loaded(f"{self._kept[key]}[{self._slot_text}]", node.dtype), ATOM)
        if key not in self._filled:
            self._filled.add(key)
            text = super()._load_text(node, phase)  # type: ignore[arg-type]
            self.assign(f"{self._kept[key]}[{self._slot_text}]", self.stored(text, node.dtype))
        return element

    def _in_spread(self, node: Expr) -> bool:
        return all(axis in self.places for axis in self.flat_index(node).axes)

    def _kept_value(self, store: Store, index: Index, value: Text) -> Text:
        key = (store.buffer, index)
        if key not in self._kept:
            return value
        self._filled.add(key)
        dtype = self.names.buffer(store.buffer).dtype
        self.assign(f"{self._kept[key]}[{self._slot_text}]", self.stored(value, dtype))
        return Text(self.loaded(f"{self._kept[key]}[{self._slot_text}]", dtype), ATOM)
