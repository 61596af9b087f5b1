"""Temps that are not worth their traffic: the readers compute the values again.

    t[n, c] = x[n, c] - max[n] - log(sum[n])     ->    the loop stores the accumulators, max[n] and sum[n], not t;
    ... t[n, c] ...                                    readers load x[n, c], which they do instead of t[n, c]

A value is computed again where it needs at most one load of its own size, few operations, and nothing that has been overwritten.
"""

from __future__ import annotations

from dataclasses import replace

from fusegraph.codegen.cuda.nest_plan import extent, stage_axes
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Loop, Program, Stage, Store
from fusegraph.ir.scalar import Expr, acc, indirect_values, load, make, replace_loads, rewrite, walk

_LEAST = 1024  # elements of a temp that matters
_MOST_OPERATIONS = 12
_SMALL_SHARE = 8  # a buffer with at most 1 / 8 of the temp's elements is read from a cache


def recompute(program: Program) -> Program:
    """`program` without temps that their readers can compute themselves."""
    for name, buffer in program.buffers.items():
        if buffer.role == "temp" and buffer.size >= _LEAST:
            program = _without(program, name) or program
    return program


def _without(program: Program, name: str) -> Program | None:
    """`program` without the temp `name`; None where it has to stay."""
    writers = [number for number, loop in enumerate(program.loops) if name in loop.writes()]
    readers = [number for number, loop in enumerate(program.loops) if name in loop.reads() and number not in writers]
    if len(writers) != 1 or not readers or min(readers) < writers[0]:
        return None
    loop = program.loops[writers[0]]
    others = [program.loops[number] for number in readers]
    found = _value(loop, name, program.buffers)
    if found is None or not all(_may_compute(other, name, program.buffers) for other in others):
        return None
    axes, value = found
    loaded = {e.attribute.buffer for e in walk([value]) if e.op == "load"}
    if any(loaded & set(between.writes()) for between in program.loops[writers[0] : max(readers) + 1]):
        return None
    kept, extra, value = _with_kept_accumulators(loop, name, value, program.buffers)
    loops = list(program.loops)
    loops[writers[0]] = kept
    for number in readers:
        loops[number] = _computing(program.loops[number], name, axes, value)
    made = replace(program, buffers={**program.buffers, **extra}, loops=tuple(loops))
    return replace(made, loops=tuple(loop for loop in made.loops if any(stage.stores for stage in loop.stages)))


def _value(loop: Loop, name: str, buffers: dict[str, Buffer]) -> tuple[tuple[Axis, ...], Expr] | None:
    """The axes that number the elements of `name`, and what is stored there; None if that is too much to compute again."""
    stores = [store for stage in loop.stages for store in stage.stores if store.buffer == name]
    if loop.schedule != "nest" or len(stores) != 1 or stores[0].mode != "store":
        return None
    (store,) = stores
    axes = [index.axis for index in store.index]
    shape = buffers[name].shape
    numbered = [axis for axis, size in zip(axes, shape, strict=True) if size > 1]
    if any(axis is None for axis in numbered) or len(set(numbered)) < len(numbered):
        return None
    if any(axis.extent != size for axis, size in zip(axes, shape, strict=True) if axis is not None and size > 1):
        return None
    below = walk([store.value])
    size = buffers[name].size
    loads = {(e.attribute.buffer, e.attribute.index) for e in below if e.op == "load"}
    large = [buffer for buffer, _ in loads if buffers[buffer].size * _SMALL_SHARE > size]
    operations = [e for e in below if e.op not in ("load", "const", "acc", "index", "inside")]
    if len(large) > 1 or len(operations) > _MOST_OPERATIONS or any(e.op == "philox" for e in below):
        return None
    if any(e.op == "acc" for e in below) and loop.points() * _SMALL_SHARE > size:
        return None
    free = {axis for e in below for axis in e.axes}
    if any(axis.extent > 1 for axis in free - set(numbered)) or any(e.op == "load" and e.attribute.mask for e in below):
        return None
    names = tuple(axis if axis is not None else Axis(f"unit_{place}", 1) for place, axis in enumerate(axes))
    return names, store.value


def _may_compute(loop: Loop, name: str, buffers: dict[str, Buffer]) -> bool:
    """Whether `loop` reads about every element once, in a plain nest."""
    points = 0
    for stage in loop.stages:
        stores = [value for store in stage.stores for index in store.index for value in indirect_values(index)]
        loads = [e for e in walk(stage.expressions()) if e.op == "load" and e.attribute.buffer == name]
        if any(e.op == "load" and e.attribute.buffer == name for e in walk(stores)) or any(
            e.attribute.mask for e in loads
        ):
            return False
        points += extent(loop.space + stage_axes(stage)) * len(loads)
    return loop.schedule == "nest" and points <= 3 * buffers[name].size


def _with_kept_accumulators(
    loop: Loop, name: str, value: Expr, buffers: dict[str, Buffer]
) -> tuple[Loop, dict[str, Buffer], Expr]:
    """`loop` storing the accumulators of `value` instead of it, the temps for them, and `value` by those."""
    point = tuple(Index.of(axis) for axis in loop.space)
    shape = tuple(axis.extent for axis in loop.space)
    extra: dict[str, Buffer] = {}
    stores: list[Store] = []
    stored = {
        s.value: s.buffer for stage in loop.stages for s in stage.stores if s.index == point and s.mode == "store"
    }
    known: dict[str, Expr] = {}
    for node in walk([value]):
        if node in stored and node.op == "acc":
            known[node.attribute] = load(stored[node], point, node.dtype)
        elif node.op == "acc":
            temp = f"{loop.name}_{node.attribute}_kept"
            extra[temp] = Buffer(temp, shape, node.dtype, "temp")
            stores.append(Store(temp, point, acc(node.attribute, node.dtype)))
            known[node.attribute] = load(temp, point, node.dtype)
    stages = list(loop.stages)
    if name not in loop.reads():  # else it lives on in the loop's registers
        stages = [replace(s, stores=tuple(x for x in s.stores if x.buffer != name)) for s in stages]
        stages = [stage for stage in stages if stage.stores or stage.reduces]
    if new := tuple(store for store in stores if store.buffer not in buffers):
        stages.append(Stage(stores=new))

    def by_load(node: Expr, args: tuple[Expr, ...]) -> Expr:
        return known[node.attribute] if node.op == "acc" else make(node.op, args, node.dtype, node.attribute)

    (value,) = rewrite([value], by_load)
    return replace(loop, stages=tuple(stages)), extra, value


def _computing(loop: Loop, name: str, axes: tuple[Axis, ...], value: Expr) -> Loop:
    """`loop` with the value in place of loads of `name`."""

    def again(node: Expr) -> Expr:
        if node.attribute.buffer != name:
            return node
        return value.substitute(dict(zip(axes, node.attribute.index, strict=True)))

    def stage(old: Stage) -> Stage:
        values = replace_loads(old.expressions(), again)
        reduces = tuple(replace(r, value=v) for r, v in zip(old.reduces, values, strict=False))
        stores = tuple(replace(s, value=v) for s, v in zip(old.stores, values[len(reduces) :], strict=True))
        return replace(old, reduces=reduces, stores=stores)

    return replace(loop, stages=tuple(map(stage, loop.stages)))
