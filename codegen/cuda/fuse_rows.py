"""Row loops that meet again: two loops over the same rows become one, where only a small sum stood between them.

    cross-entropy:  k0 reads the scores (row maxima, sums)     k1 the loss, and how many labels count     k2 reads the scores: gradient
    becomes:        how many labels count      one row kernel: maxima, sums, gradient      the loss

A loop over a single point that makes several small results is cut in slices, so that what the second row loop waits for does
not wait for the first one. All loops keep an order in which every loop finds what it reads.
"""

from __future__ import annotations

from dataclasses import replace

from fusegraph.codegen.cuda.nest_plan import extent, stage_axes
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Loop, Program, Reduce, Stage
from fusegraph.ir.scalar import Expr, acc, make, replace_loads, rewrite, walk

_CHEAP = 1 << 16  # elements of a reduction that two loops may both do
_LEAST = 1 << 10  # elements of a buffer that is worth reading once less

Buffers = dict[str, Buffer]


def fuse_rows(program: Program) -> Program:
    """`program` with row loops fused; itself where none can be."""
    loops = [part for loop in program.loops for part in _slices(loop)]
    fused = _fused(loops, program.buffers)
    return program if fused is None else replace(program, loops=tuple(fused))


# -- slices -----------------------------------------------------------------------------------------------------------


def _slices(loop: Loop) -> list[Loop]:
    """A loop over one point whose reductions are cheap, as one loop for each result."""
    if loop.schedule != "nest" or loop.points() != 1 or not any(stage.reduces for stage in loop.stages):
        return [loop]
    reduces = {r.name: (r, stage) for stage in loop.stages for r in stage.reduces}
    stores = [(store, stage) for stage in loop.stages for store in stage.stores]
    written = set(loop.writes())
    if len(stores) < 2 or len(stores) > 4 or written & set(loop.reads()):
        return [loop]
    if any(extent(stage_axes(stage)) > _CHEAP for _, stage in reduces.values()) or any(s.axes for _, s in stores):
        return [loop]
    parts = []
    for number, (store, stage) in enumerate(stores):
        needed = _needed([store.value], reduces)
        stages = [Stage((), old.reduce_axes, (r,)) for name, (r, old) in reduces.items() if name in needed]
        name = loop.name if not number else f"{loop.name}_{number + 1}"
        parts.append(replace(loop, name=name, stages=(*stages, replace(stage, stores=(store,)))))
    return parts


def _needed(roots: list[Expr], reduces: dict[str, tuple[Reduce, Stage]]) -> set[str]:
    """Accumulators below `roots`, and below what they add up."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        names = {e.attribute for e in walk(waiting) if e.op == "acc"} - found
        found |= names
        waiting = [r.value for name in names for r in reduces[name][1].reduces if r.name == name]
    return found


# -- fusing -----------------------------------------------------------------------------------------------------------


def _fused(loops: list[Loop], buffers: Buffers) -> list[Loop] | None:
    """The loops with every pair of row loops fused that can be; None if there is none."""
    changed = False
    at = 0
    while at < len(loops):
        pairs = (later for later in range(at + 1, len(loops)) if _same_rows(loops[at], loops[later], buffers))
        made = next((new for later in pairs if (new := _with_pair(loops, at, later, buffers)) is not None), None)
        if made is None:
            at += 1
        else:
            loops, changed, at = made, True, 0
    return loops if changed else None


def _same_rows(a: Loop, b: Loop, buffers: Buffers) -> bool:
    """Whether both run over the same rows, one of them reduces over long ones, and they share something large."""
    b = _as_rows(b, a)
    if a.schedule != "nest" or b.schedule != "nest" or a.points() < 2 or not any(stage.reduces for stage in a.stages):
        return False
    if tuple(axis.extent for axis in a.space) != tuple(axis.extent for axis in b.space):
        return False
    longest = [max(extent(stage_axes(stage)) for stage in loop.stages) for loop in (a, b)]
    shared = set(a.reads() + a.writes()) & set(b.reads())
    large = any(buffers[name].size >= _LEAST and buffers[name].size >= 4 * a.points() for name in shared)
    return large and longest[0] == longest[1] > 4


def _as_rows(loop: Loop, rows: Loop) -> Loop:
    """A map over rows and more as a loop over the rows; other loops as they are."""
    own, wanted = ([axis.extent for axis in space] for space in (loop.space, rows.space))
    if len(own) <= len(wanted) or own[: len(wanted)] != wanted or any(stage_axes(stage) for stage in loop.stages):
        return loop
    inner = loop.space[len(wanted) :]
    stages = tuple(replace(stage, axes=inner) for stage in loop.stages)
    return replace(loop, space=loop.space[: len(wanted)], stages=stages)


def _with_pair(loops: list[Loop], first: int, second: int, buffers: Buffers) -> list[Loop] | None:
    """The loops with two fused: what the second waits for comes before both, everything else between them after."""
    a, b = loops[first], _as_rows(loops[second], loops[first])
    between = loops[first + 1 : second]
    before: list[Loop] = []
    needed = [b]
    for loop in reversed(between):
        if any(_depends(later, loop) for later in needed):
            needed.append(loop)
            before.insert(0, loop)
    after = [loop for loop in between if loop not in before]
    if any(_depends(loop, a) for loop in before) or any(_depends(b, loop) or _depends(loop, b, True) for loop in after):
        return None
    if any(_depends(early, late) for early in before for late in after if between.index(late) < between.index(early)):
        return None
    if not _row_by_row(a, b, buffers):
        return None
    return [*loops[:first], *before, _one_loop(a, b), *after, *loops[second + 1 :]]


def _depends(later: Loop, earlier: Loop, only_overwritten: bool = False) -> bool:
    """Whether `later` must stay behind `earlier`. only_overwritten: because it writes what that one reads or writes."""
    writes = set(earlier.writes())
    if set(later.writes()) & (writes | set(earlier.reads())):
        return True
    return not only_overwritten and bool(writes & set(later.reads()))


def _row_by_row(a: Loop, b: Loop, buffers: Buffers) -> bool:
    """Whether `b` reads what `a` writes at the same point of the space only, and writes nothing that `a` touches."""
    if set(b.writes()) & set(a.reads() + a.writes()):
        return False
    for name in set(a.writes()) & set(b.reads()):
        stores = [store.index for stage in a.stages for store in stage.stores if store.buffer == name]
        loads = [e.attribute for stage in b.stages for e in walk(stage.expressions()) if e.op == "load"]
        loads = [load for load in loads if load.buffer == name]
        if not all(_begins_with(index, a.space) for index in stores):
            return False
        if not loads or not all(_begins_with(load.index, b.space) and not load.mask for load in loads):
            return False
    return True


def _begins_with(index: tuple[Index, ...], space: tuple[Axis, ...]) -> bool:
    return index[: len(space)] == tuple(Index.of(axis) for axis in space)


def _one_loop(a: Loop, b: Loop) -> Loop:
    """The stages of both, over the space of `a`."""
    mapping = {old: Index.of(new) for old, new in zip(b.space, a.space, strict=True) if old is not new}
    taken = {reduce.name for stage in a.stages for reduce in stage.reduces}
    names: dict[str, str] = {}
    for reduce in (reduce for stage in b.stages for reduce in stage.reduces):
        names[reduce.name] = reduce.name if reduce.name not in taken else f"{reduce.name}_{len(taken) + len(names)}"

    def renamed(node: Expr, args: tuple[Expr, ...]) -> Expr:
        return (
            acc(names[node.attribute], node.dtype)
            if node.op == "acc"
            else make(node.op, args, node.dtype, node.attribute)
        )

    made = [store for stage in a.stages for store in stage.stores if store.value.op == "acc"]
    closed = {(store.buffer, store.index): store.value for store in made}

    def forwarded(node: Expr) -> Expr:
        return closed.get((node.attribute.buffer, node.attribute.index), node)

    stages = []
    for stage in b.stages:
        values = [value.substitute(mapping) for value in rewrite(stage.expressions(), renamed)]
        values = replace_loads(values, forwarded)
        reduces = tuple(replace(r, name=names[r.name], value=v) for r, v in zip(stage.reduces, values, strict=False))
        rest = zip(stage.stores, values[len(reduces) :], strict=True)
        stores = tuple(replace(s, index=tuple(i.substitute(mapping) for i in s.index), value=v) for s, v in rest)
        stages.append(replace(stage, reduces=reduces, stores=stores))
    nodes = tuple(dict.fromkeys(a.nodes + b.nodes))
    return Loop(a.name, a.space, a.stages + tuple(stages), "nest", nodes)
