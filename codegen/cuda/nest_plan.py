"""How a plain loop nest runs on a GPU: what a thread, a warp or a block of threads takes.

    map      one thread an element, or four neighbouring ones with 128-bit access; nothing is reduced
    thread   one thread a point of the space; reductions are plain loops
    row      a team of threads a point, side by side along a row: loads of neighbours are neighbours in memory
    column   a team of threads a point, one below the other: neighbouring points are neighbours in memory

A team is a part of a warp (2 ... 32 threads), or a whole block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fusegraph.errors import UnsupportedError
from fusegraph.ir.index import Axis, Index, Indirect, flatten_index, unflatten_index
from fusegraph.ir.loops import Buffer, Loop, Reduce, Stage, Store
from fusegraph.ir.scalar import Expr, Load, walk

WARP = 32
BLOCK = 256
VECTOR = 4
MOST_THREADS = 1 << 16  # threads of a grid-strided map that keep any card busy (H100: 132 SMs of 2048 threads)
FILLING_POINTS = 1 << 15  # that many points keep a card busy with one thread each
FEW_BLOCKS = 264  # two blocks on each SM of an H100
MOST_REGISTERS = 64  # elements of rows that a thread keeps
SECTOR = 8  # elements of 4 bytes that memory moves at once
LIMIT = (1 << 31) - 1  # index arithmetic is done in 32 bits

Key = tuple[str, Index]  # a buffer and the number of an element


@dataclass(frozen=True)
class NestPlan:
    """How a loop runs.

    loop    with stage axes renamed so that stages of one shape share them
    team    threads a point; teams: points a block; vector: neighbours that a thread takes at once
    kept    elements of rows that stay in registers; hidden: buffers that live only there; tiles: (buffer, elements of a
            row) that pass through shared memory (nest_rows.py)
    """

    loop: Loop
    kind: str
    points: int
    team: int = 1
    teams: int = BLOCK
    vector: int = 1
    kept: tuple[Key, ...] = ()
    hidden: frozenset[str] = frozenset()
    tiles: tuple[tuple[str, int], ...] = ()

    @property
    def block(self) -> int:
        """Threads of a block."""
        return self.team * self.teams

    @property
    def blocks(self) -> int:
        """Blocks to launch."""
        if self.kind == "map":
            threads = -(-self.points // self.vector)
            return max(min(-(-threads // BLOCK), max(MOST_THREADS * 4 // BLOCK, 1)), 1)
        return max(-(-self.points // self.teams), 1)


def stage_axes(stage: Stage) -> tuple[Axis, ...]:
    """The axes that a stage runs over."""
    return stage.axes + stage.reduce_axes


def extent(axes: tuple[Axis, ...]) -> int:
    """Points of these axes."""
    return math.prod(axis.extent for axis in axes)


def plan_nest(loop: Loop, buffers: dict[str, Buffer]) -> NestPlan:
    """How `loop` runs. Raises UnsupportedError where a buffer or the space has 2**31 elements or more."""
    for name in (*loop.reads(), *loop.writes()):
        if buffers[name].size > LIMIT:
            raise UnsupportedError(
                f"kernel {loop.name}: {name!r} has {buffers[name].size} elements; CUDA kernels index with 32 bits"
            )
    if (mapped := _as_map(loop, buffers)) is not None:
        points = mapped.points()
        return NestPlan(mapped, "map", points, vector=_map_vector(mapped, buffers, points))
    loop = _shared_axes(loop)
    points, longest = loop.points(), max((extent(stage_axes(stage)) for stage in loop.stages), default=1)
    rows, columns = _directions(loop, buffers)
    if (
        (longest < 5 and rows <= columns)
        or longest < 2
        or (not rows and points >= FILLING_POINTS)
        or (not rows and longest < 16 and points > 1)
    ):
        return NestPlan(loop, "thread", points, 1, _block_of(points))
    if columns > rows and points > 1:
        return _column_plan(loop, points, longest)
    return _row_plan(loop, points, longest, buffers)


def _block_of(points: int) -> int:
    """Threads of a block, fewer where there are few points, so that they spread over the card."""
    return next((size for size in (BLOCK, 128, 64) if points >= size * FEW_BLOCKS // 2), WARP)


def _column_plan(loop: Loop, points: int, longest: int) -> NestPlan:
    width = loop.space[-1].extent
    if 1 < width <= 4 * WARP and length_is_ragged(width):
        # eight rows of all columns side by side are whole sectors, however long a row is
        rows = min(1024 // (SECTOR * width), max(longest // (4 * SECTOR), 1))
        return NestPlan(loop, "column", points, SECTOR * max(rows, 1), width)
    teams = min(WARP, _power(points))
    team = min(1024 // teams, max(_power(longest) // 4, 2))
    while team > 2 and points * team > FEW_BLOCKS * 1024:
        team //= 2
    return NestPlan(loop, "column", points, team, teams)


def _row_plan(loop: Loop, points: int, longest: int, buffers: dict[str, Buffer]) -> NestPlan:
    vector = row_vector(loop, buffers, longest)
    work = -(-longest // vector)
    if work <= WARP:
        team = max(_power(work), 2)
    elif work <= 2 * WARP or (work <= 8 * WARP and (points >= 512 or length_is_ragged(longest))):
        team = WARP
    else:
        team = min(1024, max(_power(-(-work // 4)), 2 * WARP))  # four loads of a thread are on their way at once
    teams = max(min(128 // team, _power(points)), WARP // team) if team <= WARP else 1
    if team <= WARP and points >= SECTOR:
        teams = max(teams, SECTOR)  # their rows, and one result a row, begin and end where a sector does
    return NestPlan(loop, "row", points, team, teams, vector)


def length_is_ragged(length: int) -> bool:
    """Whether rows of that many elements do not all begin with a sector."""
    return length % SECTOR != 0


def _power(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


# -- maps -------------------------------------------------------------------------------------------------------------


def _as_map(loop: Loop, buffers: dict[str, Buffer]) -> Loop | None:
    """The loop with its stages' axes among those of its space, if it only stores and its points do not wait for each other."""
    shapes = {tuple(axis.extent for axis in stage.axes) for stage in loop.stages}
    if len(shapes) != 1 or any(stage.reduces for stage in loop.stages):
        return None
    first = loop.stages[0].axes
    stages = tuple(_renamed(stage, dict(zip(stage.axes, first, strict=True))) for stage in loop.stages)
    written: dict[str, set[tuple[Index, ...]]] = {}
    for stage in stages:
        for expr in walk(stage.expressions()):
            places = written.get(expr.attribute.buffer) if expr.op == "load" else None
            if places is not None and places != {expr.attribute.index}:
                return None
        for store in stage.stores:
            written.setdefault(store.buffer, set()).add(store.index)
    return replace(loop, space=loop.space + first, stages=tuple(replace(stage, axes=()) for stage in stages))


def _map_vector(loop: Loop, buffers: dict[str, Buffer], points: int) -> int:
    """4 where groups of four points store to neighbours, and something is loaded or stored by 128 bits."""
    if points % VECTOR or points < VECTOR * WARP:
        return 1
    places = quad_places(loop.space)
    stores = [(store.buffer, store.index) for stage in loop.stages for store in stage.stores]
    loads = [e.attribute for stage in loop.stages for e in walk(stage.expressions()) if e.op == "load"]
    if not all(is_quad(flat(*store, buffers).substitute(places)) for store in stores):
        return 1
    # one by one, neighbours would be read by four requests to the same sectors
    return 1 if any(_is_broken_quad(load, places, buffers) for load in loads) else VECTOR


def _is_broken_quad(load: Load, places: dict[Axis, Index], buffers: dict[str, Buffer]) -> bool:
    """Whether four points read neighbours, but not (or not always) four that can be read at once."""
    index = flat(load.buffer, load.index, buffers)
    if any(isinstance(atom, Indirect) for atom, _ in index.terms):
        return False
    place = index.substitute(places)
    neighbours = LANE in place.axes and abs(place.coefficient(LANE)) <= 1
    return neighbours and (bool(load.mask) or not is_quad(place))


QUAD, LANE = Axis("quad", LIMIT // 4), Axis("lane", VECTOR)


def quad_places(axes: tuple[Axis, ...]) -> dict[Axis, Index]:
    """Axes as expressions over groups of four points and the place in a group."""
    quad = Axis(QUAD.name, max(extent(axes) // VECTOR, 1))
    return dict(
        zip(axes, unflatten_index(Index.of(quad) * VECTOR + Index.of(LANE), [a.extent for a in axes]), strict=True)
    )


def is_quad(index: Index) -> bool:
    """Whether LANE = 0 ... 3 gives four neighbours, the first at a multiple of four."""
    if index.coefficient(LANE) != 1 or index.constant % VECTOR:
        return False
    rest = [(atom, c) for atom, c in index.terms if atom != LANE]
    return all(c % VECTOR == 0 and LANE not in Index(0, ((atom, 1),)).axes for atom, c in rest)


def space_places(space: tuple[Axis, ...], point: Axis) -> dict[Axis, Index]:
    """The axes of a space by the number of its point."""
    return dict(zip(space, unflatten_index(Index.of(point), [axis.extent for axis in space]), strict=True))


def flat(buffer: str, index: tuple[Index, ...], buffers: dict[str, Buffer]) -> Index:
    """The element's number."""
    return flatten_index(index, buffers[buffer].shape)


# -- rows and columns -------------------------------------------------------------------------------------------------


def _shared_axes(loop: Loop) -> Loop:
    """With the same axes for all stages of one shape, so that what two of them compute is one expression."""
    known: dict[tuple[int, ...], tuple[Axis, ...]] = {}
    stages = []
    for stage in loop.stages:
        axes = stage_axes(stage)
        kept = known.setdefault(tuple(axis.extent for axis in axes), axes)
        stages.append(_renamed(stage, dict(zip(axes, kept, strict=True))))
    return replace(loop, stages=tuple(stages))


def _renamed(stage: Stage, names: dict[Axis, Axis]) -> Stage:
    mapping = {old: Index.of(new) for old, new in names.items() if old != new}
    if not mapping:
        return stage

    def moved(value: Expr) -> Expr:
        return value.substitute(mapping)

    return Stage(
        tuple(names[axis] for axis in stage.axes),
        tuple(names[axis] for axis in stage.reduce_axes),
        tuple(Reduce(r.name, r.op, moved(r.value), r.dtype) for r in stage.reduces),
        tuple(
            Store(s.buffer, tuple(i.substitute(mapping) for i in s.index), moved(s.value), s.mode) for s in stage.stores
        ),
    )


def _directions(loop: Loop, buffers: dict[str, Buffer]) -> tuple[int, int]:
    """How many loads and stores run through neighbours along the stages' own axes, and how many along the space."""
    rows = columns = 0
    point = Axis("point", loop.points())
    space = space_places(loop.space, point)
    for stage in loop.stages:
        axes = stage_axes(stage)
        if extent(axes) < 2:
            continue
        member = Axis("member", extent(axes))
        inner = dict(zip(axes, unflatten_index(Index.of(member), [a.extent for a in axes]), strict=True))
        for buffer, index in _accesses(stage):
            place = flat(buffer, index, buffers).substitute({**space, **inner})
            along = place.coefficient(member) == 1 or (
                axes[-1].extent >= 16 and flat(buffer, index, buffers).coefficient(axes[-1]) == 1
            )
            rows += along
            columns += not along and (
                place.coefficient(point) == 1
                or bool(loop.space)
                and flat(buffer, index, buffers).coefficient(loop.space[-1]) == 1
            )
    return rows, columns


def _accesses(stage: Stage) -> list[tuple[str, tuple[Index, ...]]]:
    loads = [expr.attribute for expr in walk(stage.expressions()) if expr.op == "load"]
    return [(load.buffer, load.index) for load in loads] + [(store.buffer, store.index) for store in stage.stores]


def row_vector(loop: Loop, buffers: dict[str, Buffer], length: int) -> int:
    """4 where the longest stages' stores can be made by 128 bits and at least one of their accesses is; else 1."""
    if length % VECTOR or length < VECTOR * 8 or (length_is_ragged(length) and length <= SECTOR * WARP):
        return 1  # short rows of odd lengths pass through shared memory
    quads = 0
    for stage in loop.stages:
        axes = stage_axes(stage)
        if extent(axes) != length:
            continue
        places = quad_places(axes)
        stores = [is_quad(flat(store.buffer, store.index, buffers).substitute(places)) for store in stage.stores]
        if not all(stores):
            return 1
        loads = [e for e in walk(stage.expressions()) if e.op == "load" and not e.attribute.mask]
        quads += len(stores) + sum(
            is_quad(flat(e.attribute.buffer, e.attribute.index, buffers).substitute(places)) for e in loads
        )
    return VECTOR if quads else 1
