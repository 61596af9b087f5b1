"""What a program becomes before CUDA kernels are written for it.

A buffer of role "local" (one copy for each point of the space) becomes a temp with the space's axes in front.
"""

from __future__ import annotations

from dataclasses import replace

from fusegraph.ir.index import Index
from fusegraph.ir.loops import Loop, Program, Stage, Store
from fusegraph.ir.scalar import Expr, Load, make, replace_loads


def prepare(program: Program, exact: bool = False) -> Program:
    """The program as the emitters take it."""
    return _locals_as_temps(program)


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
