"""Writes plain loop nests as CUDA kernels, the way that nest_plan has chosen.

The text of a map, one thread a group of four elements:                and of a row kernel, one warp a row:

    quad = uint32(cuda.blockIdx.x * 256 + cuda.threadIdx.x)               member = uint32(thread % 32)
    while quad < 12544:                                                   largest = float32(-math.inf)
        x_4 = load4(x, uint32(quad * 4))                                  for slot in range(4):
        for lane in range(4):                                                 ...
            out_4[lane] = relu(x_4[lane])                                 largest = team_max_32(largest)
        store4(out, uint32(quad * 4), out_4[0], ...)

Rows that several stages read are kept in registers (`x_row`): memory is read once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fusegraph.codegen.cuda.helpers import helper_name, pair_helper, team_helper
from fusegraph.codegen.cuda.kernel import CudaKernel
from fusegraph.codegen.cuda.nest_plan import (
    LANE,
    VECTOR,
    WARP,
    NestPlan,
    extent,
    flat,
    plan_nest,
    stage_axes,
)
from fusegraph.codegen.cuda.ops import cast_text
from fusegraph.codegen.cuda.text import constant_text
from fusegraph.codegen.cuda.writer import KernelWriter
from fusegraph.codegen.python_kernel import worst_value
from fusegraph.codegen.python_layout import line_width
from fusegraph.codegen.python_names import ProgramNames, axis_name
from fusegraph.codegen.python_text import ATOM, Text
from fusegraph.dtypes import DType
from fusegraph.ir.index import Axis, Index, flatten_index, unflatten_index
from fusegraph.ir.loops import Loop, Program, Reduce, Stage, Store
from fusegraph.ir.scalar import Expr, walk

_NOUNS = {
    "sum": "total",
    "prod": "product",
    "max": "largest",
    "min": "smallest",
    "argmax": "position",
    "argmin": "position",
}
_MOST_SLOTS = 16
_MOST_KEPT = 64

Key = tuple[str, Index]


def emit_nest(loop: Loop, program: Program, names: ProgramNames) -> CudaKernel:
    """The kernel of a loop of schedule "nest" (or of any loop without "add" stores)."""
    plan = plan_nest(loop, program.buffers)
    writer = NestWriter(plan, names)
    writer.write()
    return writer.finish((plan.blocks, 1, 1), (plan.block, 1, 1), _how(plan))


def _how(plan: NestPlan) -> str:
    if plan.kind == "map":
        return f"{'four elements' if plan.vector > 1 else 'an element'} a thread"
    if plan.kind == "thread":
        return "a point a thread"
    threads = f"{plan.team} threads" if plan.team != WARP or plan.kind == "column" else "a warp"
    return f"{threads} a {plan.kind}" + (f", {plan.teams} a block" if plan.teams > 1 else "")


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


class NestWriter(KernelWriter):
    """One kernel."""

    def __init__(self, plan: NestPlan, names: ProgramNames) -> None:
        super().__init__(plan.loop, names)
        self.plan = plan
        self._member = "member"
        self._valid: str | None = None
        self._hazards = Hazards()
        self._kept: dict[Key, str] = {}
        self._filled: set[Key] = set()
        self._slot_text = "0"

    def write(self) -> None:
        """Everything below the signature."""
        if self.plan.points == 0:
            return
        if self.plan.kind == "map":
            self._write_map()
        elif self.plan.kind == "thread":
            self._write_threads()
        else:
            self._write_teams()

    # -- maps -----------------------------------------------------------------------------------------------------------

    def _write_map(self) -> None:
        plan, vector = self.plan, self.plan.vector
        groups, threads = plan.points // vector, plan.blocks * plan.block
        name = self.fresh("quad" if vector > 1 else "point")
        self.line(f"{name} = uint32(cuda.blockIdx.x * {plan.block} + cuda.threadIdx.x)")
        loop = groups > threads
        with self.block(f"while {name} < {groups}:") if loop else self.guard(f"{name} < {groups}", groups == threads):
            self._place_points(name, groups, vector)
            for stage in plan.loop.stages:
                self._write_stores(stage, vector)
            if loop:
                self.line(f"{name} = uint32({name} + {threads})")

    def _place_points(self, name: str, groups: int, vector: int) -> None:
        """The axes of the space, by the number of the thread's point (or group of four)."""
        point = Axis(name, groups)
        self.axis_names[point], self.axis_levels[point] = name, len(self.blocks) - 1
        number = Index.of(point) if vector == 1 else Index.of(point) * vector + Index.of(LANE)
        shape = [axis.extent for axis in self.loop.space]
        self.set_places(dict(zip(self.loop.space, unflatten_index(number, shape), strict=True)))
        self.space_level = len(self.blocks) - 1

    # -- a thread a point -----------------------------------------------------------------------------------------------

    def _write_threads(self) -> None:
        plan = self.plan
        name = self.fresh("point")
        self.line(f"{name} = uint32(cuda.blockIdx.x * {plan.block} + cuda.threadIdx.x)")
        with self.guard(f"{name} < {plan.points}", plan.points == plan.blocks * plan.block):
            self._place_points(name, plan.points, 1)
            for stage in plan.loop.stages:
                if stage.reduces:
                    self._reduce_alone(stage)
                elif extent(stage.axes):
                    with self._serial(stage.axes):
                        self._write_stores(stage, 1)

    @contextmanager
    def _serial(self, axes: tuple[Axis, ...]) -> Iterator[None]:
        """Plain loops over `axes`."""
        level = len(self.blocks) - 1
        for axis in axes:
            name = axis_name(axis.name, self.taken)
            if axis.extent != 1:
                self.open(f"for {name} in range({axis.extent}):")
            self.own_axis(axis, name, wide=True)
        yield
        self.close(level)
        self.forget_axes(axes)
        self.taken -= {self.axis_names.pop(axis) for axis in axes}

    def _reduce_alone(self, stage: Stage) -> None:
        bests = self._begin_all(stage)
        if extent(stage.reduce_axes):
            with self._serial(stage.reduce_axes):
                number = flatten_index([Index.of(a) for a in stage.reduce_axes], [a.extent for a in stage.reduce_axes])
                self._accumulate_all(stage, bests, number)
        for reduce in stage.reduces:
            if reduce.name in bests:
                self._as_position(reduce)
        self.forget_unstable()

    # -- teams ----------------------------------------------------------------------------------------------------------

    def _write_teams(self) -> None:
        self._open_team()
        self._choose_kept()
        for stage in self.plan.loop.stages:
            spread = self._spread(stage)
            self._synchronize(stage, spread)
            if stage.reduces:
                self._reduce_together(stage, spread)
            else:
                self._store_together(stage, spread)
            self.forget_axes(spread.axes)
            self.forget_unstable()

    def _open_team(self) -> None:
        """Which point, and which member of its team, this thread is."""
        plan = self.plan
        thread, point = self.fresh("thread"), self.fresh("point")
        self._thread = thread
        self.line(f"{thread} = uint32(cuda.threadIdx.x)")
        self._member = self.fresh("member") if plan.teams > 1 else thread
        if plan.teams == 1:
            self.line(f"{point} = uint32(cuda.blockIdx.x)")
        elif plan.kind == "row":
            self.line(f"{self._member} = uint32({thread} % {plan.team})")
            self.line(f"{point} = uint32(cuda.blockIdx.x * {plan.teams} + {thread} // {plan.team})")
        else:
            self.line(f"{self._member} = uint32({thread} // {plan.teams})")
            self.line(f"{point} = uint32(cuda.blockIdx.x * {plan.teams} + {thread} % {plan.teams})")
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
        return Spread(
            axes, count, vector, -(-count // (vector * self.plan.team)), bool(self._kept) and count == longest
        )

    def _choose_kept(self) -> None:
        """Which elements of the longest stages' rows stay in registers: those that several stages read, or store and read."""
        longest = max(extent(stage_axes(stage)) for stage in self.plan.loop.stages)
        slots = -(-longest // (self.plan.vector * self.plan.team))
        seen: dict[Key, list[bool]] = {}
        own_axes: frozenset[Axis] = frozenset()
        for stage in self.plan.loop.stages:
            axes = stage_axes(stage)
            if extent(axes) != longest or longest < 2 or (own_axes and frozenset(axes) != own_axes):
                continue
            own_axes = frozenset(axes)
            for key in dict.fromkeys(self._load_keys(stage)):
                if key[1].axes & own_axes:
                    seen.setdefault(key, []).append(False)
            for store in stage.stores:
                seen.setdefault(self._store_key(store), []).append(True)
        written = {store.buffer: store for stage in self.plan.loop.stages for store in stage.stores}
        chosen = [
            key
            for key, uses in seen.items()
            if len(uses) > 1 and not all(uses) and self._keeps_its_value(key, uses, written)
        ]
        if len(chosen) * slots * self.plan.vector <= _MOST_KEPT and slots <= _MOST_SLOTS:
            self._kept = {key: self.fresh(f"{self.names.buffers[key[0]]}_row") for key in chosen}
            for key, name in self._kept.items():
                self.declare(f"{name} = cuda.local.array({slots * self.plan.vector}, {self.element(key[0])})")

    def _keeps_its_value(self, key: Key, uses: list[bool], written: dict[str, Store]) -> bool:
        """Never overwritten; or first stored, once, and then only read."""
        return key[0] not in written or (uses[0] and uses.count(True) == 1)

    def _load_keys(self, stage: Stage) -> list[Key]:
        loads = [e for e in walk(stage.expressions()) if e.op == "load" and not e.attribute.mask]
        return [(e.attribute.buffer, self.flat_index(e)) for e in loads]

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
        whole = self.plan.team > WARP or self.plan.kind == "column"
        self.line("cuda.syncthreads()" if whole else "cuda.syncwarp()")
        self._hazards.clear()

    # -- spreading a stage over the team --------------------------------------------------------------------------------

    @contextmanager
    def _spread_loop(self, spread: Spread) -> Iterator[Index]:
        """The loops of one thread over its share of a stage. Gives the number of the point; the axes are placed."""
        level, team = len(self.blocks) - 1, self.plan.team
        name = self._group_name(spread)
        step = None
        if spread.slots == 1:
            self.line(f"{name} = {self._member}")
        elif spread.kept:
            self.open(f"for slot in range({spread.slots}):")
            self.line(f"{name} = uint32(slot * {team} + {self._member})")
        else:
            self.line(f"{name} = {self._member}")
            self.open(f"while {name} < {spread.groups}:")
            step = f"{name} = uint32({name} + {team})"
        conditions = [] if spread.groups % team == 0 or step is not None else [f"{name} < {spread.groups}"]
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
            if self.plan.kind == "column" or self.plan.team > WARP:
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

    # -- reductions -----------------------------------------------------------------------------------------------------

    def _begin_all(self, stage: Stage) -> dict[str, str]:
        """Set the accumulators to what changes nothing. Gives the variable of the best value, for positions."""
        bests: dict[str, str] = {}
        for reduce in stage.reduces:
            self.accumulators[reduce.name] = (self.fresh(_NOUNS[reduce.op]), len(self.blocks) - 1)
            name, value = self.accumulators[reduce.name][0], identity(reduce)
            if reduce.op.startswith("arg"):
                bests[reduce.name] = self.fresh("best")
                self.line(f"{bests[reduce.name]} = {value}")
                value = "int32(0)"
            self.line(f"{name} = {value}")
        return bests

    def _accumulate_all(self, stage: Stage, bests: dict[str, str], number: Index) -> None:
        self.stage_writes = ()
        texts = self.evaluate([reduce.value for reduce in stage.reduces])
        for reduce, text in zip(stage.reduces, texts, strict=True):
            name = self.accumulators[reduce.name][0]
            if reduce.name in bests:
                self._keep_best(name, bests[reduce.name], reduce, text, number)
            else:
                self.assign(*self._step(name, reduce, text))

    def _step(self, name: str, reduce: Reduce, text: Text) -> tuple[str, str, str]:
        """target, value, operator of one accumulation."""
        dtype = self._accumulated(reduce)
        text = cast_text(reduce.value.dtype, text, dtype)
        if reduce.op in ("sum", "prod") and (dtype.kind == "f" or dtype.name == "int64"):
            return name, text.source, "+=" if reduce.op == "sum" else "*="
        helper = pair_helper(reduce.op, dtype)
        self.helpers.add(helper)
        return name, f"{helper_name(*helper)}({name}, {text.source})", "="

    @staticmethod
    def _accumulated(reduce: Reduce) -> DType:
        return reduce.value.dtype if reduce.op in ("max", "min", "argmax", "argmin") else reduce.dtype

    def _keep_best(self, name: str, best: str, reduce: Reduce, text: Text, number: Index) -> None:
        value = text.source
        if not value.isidentifier():
            value = self.fresh("value")
            self.assign(value, text.source)
        sign = ">" if reduce.op == "argmax" else "<"
        better = f"{value} {sign} {best}"
        if reduce.value.dtype.kind == "f":
            better += f" or ({value} != {value} and {best} == {best})"
        place = self.printer.bare(self.view(number)).source
        self.line(f"if {better}:\n    {best} = {value}\n    {name} = int32({place})")

    def _as_position(self, reduce: Reduce) -> None:
        name, level = self.accumulators[reduce.name]
        wide = self.fresh(f"{name}_wide")
        self.line(f"{wide} = int64({name})")
        self.accumulators[reduce.name] = (wide, level)

    def _combine(self, reduce: Reduce, bests: dict[str, str]) -> None:
        """The team's accumulators become one, in every thread."""
        if self.plan.kind == "column":
            self._combine_column(reduce, bests)
            return
        name, best = self.accumulators[reduce.name][0], bests.get(reduce.name)
        dtype = self._accumulated(reduce)
        helper = (team_helper(reduce.op, self.plan.team), dtype)
        self.helpers.add(helper)  # type: ignore[arg-type]
        arguments = [best, name] if best else [name]
        if self.plan.team > WARP:
            arguments.append(self.shared(f"{best or name}_parts", WARP, dtype))
            arguments += [self.shared(f"{name}_parts", WARP, "int32")] if best else []
            arguments.append(self._thread)
        target = f"{best}, {name}" if best else name
        self.line(f"{target} = {helper_name(*helper)}({', '.join(map(str, arguments))})")  # type: ignore[arg-type]

    def _combine_column(self, reduce: Reduce, bests: dict[str, str]) -> None:
        name, best, plan = self.accumulators[reduce.name][0], bests.get(reduce.name), self.plan
        dtype = self._accumulated(reduce)
        helper = pair_helper(reduce.op, dtype)  # type: ignore[arg-type]
        self.helpers.add(helper)
        parts = self.shared(f"{best or name}_parts", plan.block, dtype)
        places = self.shared(f"{name}_parts", plan.block, "int32") if best else ""
        self.line(f"{parts}[{self._thread}] = {self.stored(Text(best or name, ATOM), dtype)}")
        if best:
            self.line(f"{places}[{self._thread}] = {name}")
        self.line("cuda.syncthreads()")
        first = f"{self._thread} % {plan.teams}"
        self.line(f"{best or name} = {self.loaded(f'{parts}[{first}]', dtype)}")
        if best:
            self.line(f"{name} = {places}[{first}]")
        with self.block(f"for part in range(1, {plan.team}):"):
            place = self.fresh("other")
            self.line(f"{place} = uint32(part * {plan.teams} + {first})")
            other = self.loaded(f"{parts}[{place}]", dtype)
            if best:
                self.line(
                    f"if {helper_name(*helper)}({other}, {best}, {places}[{place}], {name}):\n"
                    f"    {best} = {other}\n    {name} = {places}[{place}]"
                )
            else:
                self.line(f"{name} = {helper_name(*helper)}({name}, {other})")

    # -- loads and stores -------------------------------------------------------------------------------------------------

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

    def _write_stores(self, stage: Stage, vector: int) -> None:
        """A stage's stores at the present point, or four of them."""
        self.stage_writes = tuple(store.buffer for store in stage.stores)
        indices = [flat(store.buffer, store.index, self.names.program.buffers) for store in stage.stores]
        quads = [vector > 1 and self.is_quad_place(index) for index in indices]
        with self._lanes(vector):
            values = self.evaluate([store.value for store in stage.stores], indices)
            uses = Counter(indices)
            values = [self._kept_value(*each) for each in zip(stage.stores, indices, values, strict=True)]
            for store, index, value, quad in zip(stage.stores, indices, values, quads, strict=True):
                self._write_store(store, index, value, quad, uses)
        for store, index, quad in zip(stage.stores, indices, quads, strict=True):
            if quad:
                self._store_quad(store.buffer, index)
        self.forget_unstable()

    def _kept_value(self, store: Store, index: Index, value: Text) -> Text:
        key = (store.buffer, index)
        if key not in self._kept:
            return value
        self._filled.add(key)
        dtype = self.names.buffer(store.buffer).dtype
        self.assign(f"{self._kept[key]}[{self._slot_text}]", self.stored(value, dtype))
        return Text(self.loaded(f"{self._kept[key]}[{self._slot_text}]", dtype), ATOM)

    def _write_store(self, store: Store, index: Index, value: Text, quad: bool, uses: Counter[Index]) -> None:
        buffer, dtype = self.names.buffers[store.buffer], self.names.buffer(store.buffer).dtype
        source = self.stored(value, dtype)
        if quad:
            self.assign(f"{self.quad_array(store.buffer)}[lane]", source)
            return
        target = f"{buffer}[{self.position(index, uses)}]"
        if len(target) + len(source) + 4 > line_width(len(self.blocks) - 1):
            target = f"{buffer}[{self.position(index, uses, longest=0)}]"
        self.assign(target, source)

    def _store_quad(self, buffer: str, index: Index) -> None:
        array = self.quad_array(buffer)
        at = self.printer.narrow(self.first_of_quad(index)).source
        parts = ", ".join(f"{array}[{place}]" for place in range(VECTOR))
        self.line(f"store4({self.names.buffers[buffer]}, {at}, {parts})")

    @contextmanager
    def _lanes(self, vector: int) -> Iterator[None]:
        """The loop over four neighbours."""
        if vector == 1:
            yield
            return
        with self.lanes():
            yield


def identity(reduce: Reduce) -> str:
    """The accumulator's first value."""
    if reduce.op in ("sum", "prod"):
        return constant_text(int(reduce.op == "prod"), reduce.dtype).source
    return constant_text(worst_value(reduce.op, reduce.value.dtype), reduce.value.dtype).source
