"""What a program becomes before CUDA kernels are written for it.

A buffer of role "local" (one copy for each point of the space) becomes a temp with the space's axes in front. Stages of one
loop that have nothing to do with each other become loops of their own; loops over the same rows become one, where only a
small sum stands between them (fuse_rows.py). Reductions too long for the few blocks that would do
them are cut (split.py). A temp that its readers can compute from what they would read instead of it is not stored
(recompute.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fusegraph.codegen.cuda.fuse_rows import fuse_rows
from fusegraph.codegen.cuda.recompute import recompute
from fusegraph.codegen.cuda.split import maps_apart, split_long
from fusegraph.ir.index import Index
from fusegraph.ir.loops import Loop, Program, Stage, Store
from fusegraph.ir.scalar import Expr, Load, indirect_values, make, replace_loads, walk


def prepare(program: Program, exact: bool = False) -> Program:
    """The program as the emitters take it."""
    return recompute(split_long(fuse_rows(maps_apart(_apart(_locals_as_temps(program))))))


def _locals_as_temps(program: Program) -> Program:
    buffers = dict(program.buffers)
    loops = []
    for loop in program.loops:
        names = {name for name in (*loop.reads(), *loop.writes()) if buffers[name].role == "local"}
        for name in names:
            shape = (*(axis.extent for axis in loop.space), *buffers[name].shape)
            buffers[name] = replace(buffers[name], shape=shape, role="temp")
        loops.append(_with_point(loop, names) if names else loop)
    return replace(program, buffers=buffers, loops=tuple(loops))


def _with_point(loop: Loop, names: set[str]) -> Loop:
    point = tuple(Index.of(axis) for axis in loop.space)

    def moved(load: Expr) -> Expr:
        attribute = load.attribute
        if attribute.buffer not in names:
            return load
        return make("load", (), load.dtype, Load(attribute.buffer, point + attribute.index, attribute.mask))

    def stage(old: Stage) -> Stage:
        values = replace_loads(old.expressions(), moved)
        reduces = tuple(replace(r, value=v) for r, v in zip(old.reduces, values, strict=False))
        stores = tuple(
            Store(s.buffer, point + s.index if s.buffer in names else s.index, v, s.mode)
            for s, v in zip(old.stores, values[len(old.reduces) :], strict=True)
        )
        return replace(old, reduces=reduces, stores=stores)

    return replace(loop, stages=tuple(map(stage, loop.stages)))


# -- stages that have nothing to do with each other -------------------------------------------------------------------


def _apart(program: Program) -> Program:
    """Loops over a single point, which a CPU's thread does one after the other, as one loop for each independent part."""
    loops: list[Loop] = []
    for loop in program.loops:
        parts = _components(loop.stages) if loop.schedule == "nest" and loop.points() == 1 else [loop.stages]
        taken = {other.name for other in (*program.loops, *loops)} - {loop.name}
        for number, stages in enumerate(parts):
            name = loop.name if not number else _unused(f"{loop.name}_{number + 1}", taken)
            loops.append(replace(loop, name=name, stages=tuple(stages)))
    return replace(program, loops=tuple(loops))


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _components(stages: tuple[Stage, ...]) -> list[list[Stage]]:
    """Stages in groups that share no accumulator and no buffer that one of them writes; in order within each group."""
    groups: list[tuple[list[Stage], set[str], set[str]]] = []
    for stage in stages:
        reads, writes = _touched(stage)
        joined = ([stage], reads, writes)
        rest = []
        for group in groups:
            if group[2] & (reads | writes) or group[1] & writes:
                joined = (group[0] + joined[0], joined[1] | group[1], joined[2] | group[2])
            else:
                rest.append(group)
        groups = [*rest, joined]
    order = {id(stage): number for number, stage in enumerate(stages)}
    ordered = [sorted(group[0], key=lambda stage: order[id(stage)]) for group in groups]
    return sorted(ordered, key=lambda group: order[id(group[0])])


def _touched(stage: Stage) -> tuple[set[str], set[str]]:
    """What a stage reads and writes: buffers by their names, accumulators as "acc NAME"."""
    below = walk(stage.expressions() + list(_index_values(stage.stores)))
    reads = {e.attribute.buffer for e in below if e.op == "load"}
    reads |= {f"acc {e.attribute}" for e in below if e.op == "acc"}
    writes = {store.buffer for store in stage.stores} | {f"acc {reduce.name}" for reduce in stage.reduces}
    return reads, writes


def _index_values(stores: Iterable[Store]) -> Iterable[Expr]:
    return (value for store in stores for index in store.index for value in indirect_values(index))
