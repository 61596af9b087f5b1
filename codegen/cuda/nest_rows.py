"""What kernels keep on the chip, so that memory is read and written once.

rows in registers      elements that several stages of a row kernel read, or store and read
hidden buffers         temps of one loop that live in registers only: they have no memory at all
values computed twice  a temp of one loop that does not fit into registers is not stored: its readers compute it again
tiles                  short rows, or rows of odd lengths: a block copies its rows to shared memory side by side, so that
                       sectors are read and written whole, and back
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fusegraph.codegen.cuda.nest_plan import SECTOR, WARP, Key, NestPlan, extent, flat, space_places, stage_axes
from fusegraph.ir.index import Atom, Axis, Index, Indirect
from fusegraph.ir.loops import Buffer, Loop, Program, Stage
from fusegraph.ir.scalar import Expr, Load, indirect_values, replace_loads, walk

_MOST_SLOTS = 16  # a loop over more of a thread's elements is not unrolled, and its array would lie in local memory
_KEPT_REGISTERS = 32 * 1024  # of a block's 64 K: half of them hold rows
_MOST_KEPT = 64  # registers of a thread that hold rows
_TILE_BYTES = 32 * 1024  # shared memory of a block that leaves room for a second one on every card
_SECTOR_BYTES = 4 * SECTOR
_WASTE = 0.03  # of the sectors; above it rows go through a tile

Buffers = dict[str, Buffer]


def private_temps(loop: Loop, program: Program) -> frozenset[str]:
    """Temps that only `loop` touches."""
    own = {name for name in loop.writes() if program.buffers[name].role == "temp"}
    for other in program.loops:
        if own and other is not loop:
            own -= {*other.reads(), *other.writes()}
    return frozenset(own)


def on_chip(plan: NestPlan, buffers: Buffers, private: frozenset[str]) -> NestPlan:
    """`plan` with what is kept on the chip."""
    kept = _kept_rows(plan, buffers)
    hidden = _hidden(plan.loop, kept, private, buffers)
    if left := private - hidden:
        plan = replace(plan, loop=_computed_again(plan.loop, left, buffers))
        kept = _kept_rows(plan, buffers)
        hidden = _hidden(plan.loop, kept, private, buffers)
    return replace(plan, kept=kept, hidden=hidden, tiles=_tiles(plan, buffers, hidden))


# -- registers --------------------------------------------------------------------------------------------------------


def _kept_rows(plan: NestPlan, buffers: Buffers) -> tuple[Key, ...]:
    """Elements of the longest stages' rows that stay in registers: those that several stages read, or store and read."""
    if plan.kind not in ("row", "column"):
        return ()
    longest = max(extent(stage_axes(stage)) for stage in plan.loop.stages)
    slots = -(-longest // (plan.vector * plan.team))
    seen: dict[Key, list[bool]] = {}
    for stage in _longest_stages(plan.loop):
        for key in dict.fromkeys(_load_keys(stage, buffers)):
            if key[1].axes & frozenset(stage_axes(stage)):
                seen.setdefault(key, []).append(False)
        for store in stage.stores:
            seen.setdefault((store.buffer, flat(store.buffer, store.index, buffers)), []).append(True)
    written = {store.buffer for stage in plan.loop.stages for store in stage.stores}
    chosen = [
        key
        for key, stored in seen.items()
        if len(stored) > 1
        and not all(stored)
        and (key[0] not in written or (stored[0] and stored.count(True) == 1))  # stored once, and then only read
    ]
    registers = sum(max(buffers[buffer].dtype.itemsize // 4, 1) for buffer, _ in chosen) * slots * plan.vector
    fits = registers <= min(_MOST_KEPT, _KEPT_REGISTERS // plan.block) and slots <= _MOST_SLOTS
    return tuple(chosen) if fits else ()


def _longest_stages(loop: Loop) -> list[Stage]:
    """The stages over as many points as any other has, all over the same axes."""
    longest = max(extent(stage_axes(stage)) for stage in loop.stages)
    stages = [stage for stage in loop.stages if extent(stage_axes(stage)) == longest and longest > 1]
    return [stage for stage in stages if set(stage_axes(stage)) == set(stage_axes(stages[0]))]


def _load_keys(stage: Stage, buffers: Buffers) -> list[Key]:
    loads = [e.attribute for e in walk(stage.expressions()) if e.op == "load" and not e.attribute.mask]
    return [(load.buffer, flat(load.buffer, load.index, buffers)) for load in loads]


def _hidden(loop: Loop, kept: tuple[Key, ...], private: frozenset[str], buffers: Buffers) -> frozenset[str]:
    """Private temps of which every element is stored to and read from registers."""
    rows = _longest_stages(loop)
    found = {buffer for buffer, _ in kept if buffer in private}
    for stage in loop.stages:
        for load, _ in _accesses(stage):
            key = (load.buffer, flat(load.buffer, load.index, buffers))
            if key not in kept or load.mask or stage not in rows:
                found.discard(load.buffer)
    return frozenset(found)


def _computed_again(loop: Loop, names: frozenset[str], buffers: Buffers) -> Loop:
    """Without the stores to buffers `names`, where the stages that read them can compute the values themselves."""
    for name in names:
        if (value := _the_value(loop, name)) is None:
            continue
        index, expr = value

        def again(load: Expr, name: str = name, expr: Expr = expr) -> Expr:
            return expr if load.attribute.buffer == name else load

        loads = [e.attribute for stage in loop.stages for e in walk(stage.expressions()) if e.op == "load"]
        if all(load.index == index and not load.mask for load in loads if load.buffer == name):
            stages = [_with_values(stage, replace_loads(stage.expressions(), again)) for stage in loop.stages]
            stages = [replace(s, stores=tuple(x for x in s.stores if x.buffer != name)) for s in stages]
            loop = replace(loop, stages=tuple(stage for stage in stages if stage.stores or stage.reduces))
    return loop


def _the_value(loop: Loop, name: str) -> tuple[tuple[Index, ...], Expr] | None:
    """Where and what is stored in `name`: once, and the same for every later reader (nothing in it is overwritten)."""
    stores = [store for stage in loop.stages for store in stage.stores if store.buffer == name]
    if len(stores) != 1 or stores[0].mode != "store":
        return None
    (store,) = stores
    written = {other.buffer for stage in loop.stages for other in stage.stores}
    below = walk([store.value])
    if any(e.op == "load" and e.attribute.buffer in written for e in below) or any(map(indirect_values, store.index)):
        return None
    readers = [
        s for s in loop.stages if any(e.op == "load" and e.attribute.buffer == name for e in walk(s.expressions()))
    ]
    (writer,) = [stage for stage in loop.stages if store in stage.stores]
    same = all(set(stage_axes(stage)) == set(stage_axes(writer)) for stage in readers)
    return (store.index, store.value) if same else None


def _with_values(stage: Stage, values: list[Expr]) -> Stage:
    reduces = tuple(replace(r, value=v) for r, v in zip(stage.reduces, values, strict=False))
    stores = tuple(replace(s, value=v) for s, v in zip(stage.stores, values[len(reduces) :], strict=True))
    return replace(stage, reduces=reduces, stores=stores)


# -- shared memory ----------------------------------------------------------------------------------------------------


def _accesses(stage: Stage) -> Iterable[tuple[Load, bool]]:
    """Every load and store, and whether it is a store."""
    indices = [value for store in stage.stores for index in store.index for value in indirect_values(index)]
    for expr in walk(stage.expressions() + indices):
        if expr.op == "load":
            yield expr.attribute, False
    for store in stage.stores:
        yield Load(store.buffer, store.index), True


def _tiles(plan: NestPlan, buffers: Buffers, hidden: frozenset[str]) -> tuple[tuple[str, int], ...]:
    """(buffer, elements of a row) of rows that go through shared memory; nothing where sectors are whole anyway."""
    if plan.kind != "row" or plan.team > WARP or plan.points < SECTOR:
        return ()
    spans = {name: span for name, span in _row_spans(plan, buffers).items() if name not in hidden}
    sizes = {name: span * buffers[name].dtype.itemsize for name, span in spans.items()}
    ragged = {name: spans[name] for name, size in sizes.items() if size % _SECTOR_BYTES}
    waste = len(ragged) * 7 / 8  # sectors a row
    if not ragged or waste < _WASTE * sum(sizes.values()) / _SECTOR_BYTES:
        return ()
    fits = sum(sizes[name] for name in ragged) * plan.teams <= _TILE_BYTES
    return tuple(ragged.items()) if fits else ()


def _row_spans(plan: NestPlan, buffers: Buffers) -> dict[str, int]:
    """Buffers that are a row of so many neighbours for each point of the space; those that are stored, wholly."""
    spans: dict[str, int] = {}
    refused: set[str] = set()
    for stage in plan.loop.stages:
        for load, stored in _accesses(stage):
            size = buffers[load.buffer].size
            span = size // plan.points
            if size % plan.points or load.mask or not _in_row(load, stage, stored, span, plan, buffers):
                refused.add(load.buffer)
            spans[load.buffer] = span
    return {name: span for name, span in spans.items() if name not in refused and span}


def _in_row(load: Load, stage: Stage, stored: bool, span: int, plan: NestPlan, buffers: Buffers) -> bool:
    """Whether an access of point p lies within elements p * span ... (p + 1) * span - 1; a store: takes all of them."""
    if (inner := row_part(flat(load.buffer, load.index, buffers), plan.loop.space, plan.points, span)) is None:
        return False
    if not stored:
        return True
    axes = stage_axes(stage)
    number = Index.of(0)
    for axis in axes:
        number = number * axis.extent + Index.of(axis)
    return inner == number and extent(axes) == span


def row_part(index: Index, space: tuple[Axis, ...], points: int, span: int) -> Index | None:
    """What `index` adds to the point's number times `span`, if that stays within 0 ... span - 1; else None."""
    point = Axis("point", points)
    fixed: dict[Atom, int] = {atom: c for atom, c in index.terms if isinstance(atom, Indirect)}
    plain = Index(index.constant, tuple(term for term in index.terms if term[0] not in fixed))
    if any(indirect_values(Index(0, (term,))) for term in plain.terms):
        return None
    plain = plain.substitute(space_places(space, point))
    rest = plain - Index.of(point) * span
    if points < 2 or point in rest.axes:
        return None
    whole = rest + Index.from_terms(0, fixed)
    low, high = whole.bounds
    return whole if low >= 0 and high < span else None
