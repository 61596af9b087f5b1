"""Cuts loops that would keep only a few blocks of a GPU busy: few rows that are long, few columns, a whole tensor.

    total = sum of x[i]        ->    parts[p] = sum of x[p * n + i]        a loop over p: many blocks
                                     total = sum of parts[p]               in the order of p: the same in every run

The stages of such a loop become loops of their own: sums in two steps, stores as maps over all their elements. How it is cut
depends on the shapes alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fusegraph.codegen.cuda.nest_plan import FEW_BLOCKS, extent, plan_nest, stage_axes
from fusegraph.codegen.python_kernel import worst_value
from fusegraph.ir.index import Axis, Index, unflatten_index
from fusegraph.ir.loops import Buffer, Loop, Program, Reduce, Stage, Store
from fusegraph.ir.scalar import (
    Bound,
    Expr,
    Load,
    Mask,
    acc,
    const,
    inside,
    load,
    make,
    op,
    replace_loads,
    rewrite,
    walk,
)

_SMALL = 1024  # elements of a stage that one block does at once
_LONG = 1 << 14  # elements that a block should not do alone: one SM reads 64 KB in about 2.5 us, a launch takes as long
_PART = 1 << 12  # elements of a part
_KEPT = 1 << 15  # elements of rows with several stages that a block keeps in its registers


def split_long(program: Program) -> Program:
    """`program` with long loops of few blocks cut."""
    buffers, loops = dict(program.buffers), []
    for loop in program.loops:
        parts = _parts(loop, buffers)
        loops += _Cutter(loop, buffers, parts).cut() if parts > 1 else [loop]
    return replace(program, buffers=buffers, loops=tuple(loops))


def maps_apart(program: Program) -> Program:
    """Loops over a single point, without their large stores: those are maps, loops of their own."""
    buffers, loops = dict(program.buffers), []
    for loop in program.loops:
        large = [stage for stage in loop.stages if stage.stores and extent(stage.axes) > _SMALL]
        cut = large and len(loop.stages) > 1 and loop.schedule == "nest" and loop.points() == 1
        loops += _Cutter(loop, buffers, 1).cut() if cut else [loop]
    return replace(program, buffers=buffers, loops=tuple(loops))


def _parts(loop: Loop, buffers: dict[str, Buffer]) -> int:
    """Into how many parts the reductions of `loop` are cut; 1: not at all."""
    reduces = [reduce for stage in loop.stages for reduce in stage.reduces]
    if loop.schedule != "nest" or not loop.points() or not reduces or any(r.op.startswith("arg") for r in reduces):
        return 1
    plan = plan_nest(loop, buffers)
    longest = max(extent(stage_axes(stage)) for stage in loop.stages)
    long = [stage for stage in loop.stages if extent(stage_axes(stage)) > _SMALL]
    share = longest * min(plan.teams, plan.points)
    enough = _LONG if len(long) == 1 else _KEPT
    if (
        plan.blocks * 2 > FEW_BLOCKS // 2
        or share <= enough
        or any(len(s.reduces) > 0 < len(s.axes) for s in loop.stages)
    ):
        return 1
    return min(-(-FEW_BLOCKS // plan.blocks), share // _PART, longest // 2)


@dataclass
class _Cutter:
    """Makes the loops. steps: stages over few elements, waiting to be one loop; values: accumulators by their temps."""

    loop: Loop
    buffers: dict[str, Buffer]
    parts: int
    done: list[Loop] = field(default_factory=list)
    steps: list[Stage] = field(default_factory=list)
    values: dict[str, Expr] = field(default_factory=dict)

    def cut(self) -> list[Loop]:
        """The loops, in order."""
        stages = self.loop.stages if self.loop.points() > 1 else self._with_numbers_apart()
        for number, stage in enumerate(stages):
            small = extent(stage_axes(stage)) <= _SMALL
            if small or (stage.reduces and self.parts == 1):
                self.steps.append(stage)
                continue
            self._flush(stages[number:])
            stage = self._with_values(stage)
            if stage.reduces:
                self.steps.append(self._in_parts(stage))
            else:
                self._emit(self.loop.space + stage.axes, (replace(stage, axes=()),))
        self._flush(())
        return self.done

    def _emit(self, space: tuple[Axis, ...], stages: tuple[Stage, ...]) -> None:
        taken = {loop.name for loop in self.done}
        name = self.loop.name if not taken else f"{self.loop.name}_part{len(taken) + 1}"
        self.done.append(Loop(name, space, stages, "nest", self.loop.nodes))

    def _temp(self, reduce: Reduce, shape: tuple[int, ...]) -> str:
        name = f"{self.loop.name}_{reduce.name}_{'parts' if len(shape) > len(self.loop.space) else 'whole'}"
        while name in self.buffers:
            name += "_"
        self.buffers[name] = Buffer(name, shape, reduce.dtype, "temp")
        return name

    @property
    def _point(self) -> tuple[Index, ...]:
        return tuple(Index.of(axis) for axis in self.loop.space)

    def _in_parts(self, stage: Stage) -> Stage:
        """A loop over the parts of a reduction; gives the stage that puts them together."""
        count = extent(stage.reduce_axes)
        parts = _divisor(count, self.parts)
        each = -(-count // parts)
        number = len(self.buffers)  # names end in a number, as all do: kernels use them without
        part, inner = Axis(f"piece{number}", parts), Axis(f"inner{number}", each)
        element = Index.of(part) * each + Index.of(inner)
        mask: Mask = (Bound(element, 0, count),) if each * parts > count else ()
        bounded = (
            element if not mask else element % count
        )  # keeps the coordinates in their bounds, where the mask fails
        places = unflatten_index(bounded, [axis.extent for axis in stage.reduce_axes])
        mapping = dict(zip(stage.reduce_axes, places, strict=True))
        below = plan_nest(self.loop, self.buffers).kind == "column"  # neighbouring points stay neighbours
        space = (part, *self.loop.space) if below else (*self.loop.space, part)
        shape = tuple(axis.extent for axis in space)
        reduces, stores, again = [], [], []
        for reduce in stage.reduces:
            value = _masked(reduce, reduce.value.substitute(mapping), mask)
            temp = self._temp(reduce, shape)
            index = tuple(map(Index.of, space))
            reduces.append(replace(reduce, value=value))
            stores.append(Store(temp, index, acc(reduce.name, reduce.dtype)))
            again.append(replace(reduce, value=load(temp, index, reduce.dtype)))
        first = Stage(reduce_axes=(inner,), reduces=tuple(reduces))
        self._emit(space, (first, Stage(stores=tuple(stores))))
        return Stage(reduce_axes=(part,), reduces=tuple(again))

    def _flush(self, later: tuple[Stage, ...]) -> None:
        """The waiting steps become a loop that keeps what later stages read of its accumulators in temps."""
        if not self.steps:
            return
        needed = {e.attribute for stage in later for e in walk(stage.expressions()) if e.op == "acc"}
        stages = [self._with_values(stage) for stage in self.steps]
        stores = []
        shape = tuple(axis.extent for axis in self.loop.space)
        for reduce in (reduce for stage in self.steps for reduce in stage.reduces if reduce.name in needed):
            temp = self._temp(reduce, shape)
            stores.append(Store(temp, self._point, acc(reduce.name, reduce.dtype)))
            self.values[reduce.name] = load(temp, self._point, reduce.dtype)
        self._emit(self.loop.space, (*stages, *([Stage(stores=tuple(stores))] if stores else [])))
        self.steps = []

    def _with_numbers_apart(self) -> tuple[Stage, ...]:
        """The stages; what every element of a large store would compute alike is a number that an early stage computes."""
        stages, known = list(self.loop.stages), {}
        earlier: dict[int, list[Store]] = {}
        for place, stage in enumerate(stages):
            if stage.reduces or extent(stage.axes) <= _SMALL:
                continue
            chosen: dict[Expr, Expr] = {}
            for number in _numbers(stage):
                loaded = {e.attribute.buffer for e in walk([number]) if e.op == "load"}
                writers = [i for i in range(place) if loaded & {store.buffer for store in stages[i].stores}]
                first = writers[-1] + 1 if writers else 0
                if any(e.op == "acc" for e in walk([number])):
                    first = place
                if (first, number) not in known:
                    name = f"{self.loop.name}_number{len(self.buffers)}"
                    self.buffers[name] = Buffer(name, (), number.dtype, "temp")
                    known[first, number] = load(name, (), number.dtype)
                    earlier.setdefault(first, []).append(Store(name, (), number))
                chosen[number] = known[first, number]
            stages[place] = _with(stage, chosen)
        made: list[Stage] = []
        for place, stage in enumerate(stages):
            made += [Stage(stores=tuple(earlier[place]))] if place in earlier else []
            made.append(stage)
        return tuple(made)

    def _with_values(self, stage: Stage) -> Stage:
        """With loads instead of accumulators that an earlier loop has closed."""

        def known(node: Expr, args: tuple[Expr, ...]) -> Expr:
            if node.op == "acc":
                return self.values.get(node.attribute, node)
            return make(node.op, args, node.dtype, node.attribute)

        values = rewrite(stage.expressions(), known)
        reduces = tuple(replace(r, value=v) for r, v in zip(stage.reduces, values, strict=False))
        stores = tuple(replace(s, value=v) for s, v in zip(stage.stores, values[len(reduces) :], strict=True))
        return replace(stage, reduces=reduces, stores=stores)


def _numbers(stage: Stage) -> list[Expr]:
    """The largest expressions that are the same for every element, other than constants, elements of memory and their casts."""
    below = walk(stage.expressions())
    parts = [arg for node in below if node.axes for arg in node.args if not arg.axes and arg.args]
    return [e for e in dict.fromkeys(parts) if e.op != "cast" or e.args[0].args]


def _with(stage: Stage, chosen: dict[Expr, Expr]) -> Stage:
    """The stage with expressions in place of others."""

    def replaced(node: Expr, args: tuple[Expr, ...]) -> Expr:
        return chosen.get(node) or make(node.op, args, node.dtype, node.attribute)

    values = rewrite(stage.expressions(), replaced)
    return replace(stage, stores=tuple(replace(s, value=v) for s, v in zip(stage.stores, values, strict=True)))


def _divisor(count: int, wanted: int) -> int:
    """A number of parts near `wanted`: one that divides `count` if there is one, with parts of multiples of four if possible."""
    near = range(wanted, max(wanted // 2, 1), -1)
    even = [parts for parts in near if count % parts == 0]
    return next((parts for parts in even if count // parts % 4 == 0), even[0] if even else wanted)


def _masked(reduce: Reduce, value: Expr, mask: Mask) -> Expr:
    """`value` where the mask holds, and what changes nothing elsewhere; nothing is read there."""
    if not mask:
        return value

    def guarded(node: Expr) -> Expr:
        attribute = node.attribute
        return make("load", (), node.dtype, Load(attribute.buffer, attribute.index, (*attribute.mask, *mask)))

    (value,) = replace_loads([value], guarded)
    nothing = int(reduce.op == "prod") if reduce.op in ("sum", "prod") else worst_value(reduce.op, value.dtype)
    return op("where", inside(mask), value, const(nothing, value.dtype), dtype=value.dtype)
