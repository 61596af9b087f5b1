"""Large values that a kernel computes again rather than read, because it reads what they were computed from anyway.

    y = relu(x * a[c] + b[c])                     ...  y > 0 ...  x ...
    later, in one kernel:  f(y, x)           ->   f(relu(x * a[c] + b[c]), x)

The gradient of a normalisation with relu reads its input, for the normalised values, and its output, for the sign: the
output can be told from the input, at a few operations on numbers that are in registers. The value is still stored for others.
"""

from __future__ import annotations

from collections.abc import Mapping

from fusegraph.codegen.cpu.nest_rewrite import stage_roots
from fusegraph.ir.index import Axis
from fusegraph.ir.loops import Buffer, Loop, Program, Stage, Store
from fusegraph.ir.scalar import Expr, Load, indirect_values, replace_loads, walk
from fusegraph.records import dataclass, replace

__all__ = ["without_rereads"]

_LEAST_BYTES = 1 << 20  # less is still in the second-level cache, or not worth it
_MOST_OPERATIONS = 8  # on each element; a vector from memory takes as long as 20
_SMALL_SHARE = 8  # a buffer with at most 1 / 8 of the elements is read from a cache


@dataclass(frozen=True)
class _Value:
    """What is stored in a buffer: `value` at the point `axes`, by loop number `writer`; `large`: what it loads there."""

    writer: int
    axes: tuple[Axis, ...]
    value: Expr
    large: tuple[Expr, ...]


def without_rereads(program: Program) -> Program:
    """`program` with loads of large values replaced by the values, in kernels that read all that is large of them."""
    values = _values(program)
    if not values:
        return program
    loops = list(program.loops)
    for number, loop in enumerate(loops):
        known = {name: v for name, v in values.items() if v.writer < number and _may_compute(program, name, v, number)}
        loops[number] = _computing_all(loop, known)
    for number in sorted({value.writer for value in values.values()}):  # results that nobody reads go past the caches
        read = {name for other, loop in enumerate(loops) if other != number for name in loop.reads()}
        mine = {name: v for name, v in values.items() if v.writer == number and name not in read}
        known = {name: v for name, v in mine.items() if _may_compute(program, name, v, number)}
        loops[number] = _computing_all(loops[number], known)
    return replace(program, loops=tuple(loops))


def _may_compute(program: Program, name: str, value: _Value, number: int) -> bool:
    """Whether loop `number` reads the value, and what it was computed from is still there."""
    loop = program.loops[number]
    read = {node.attribute.buffer for node in walk([value.value]) if node.op == "load"}
    overwritten = any(read & set(other.writes()) for other in program.loops[value.writer : number + 1])
    return loop.schedule == "nest" and name in loop.reads() and not overwritten


def _values(program: Program) -> dict[str, _Value]:
    """The large buffers that hold something cheap, each written by one store."""
    found: dict[str, _Value] = {}
    writers: dict[str, int] = {}
    for number, loop in enumerate(program.loops):
        for stage in loop.stages:
            for store in stage.stores:
                writers[store.buffer] = writers.get(store.buffer, 0) + 1
                buffer = program.buffers[store.buffer]
                if buffer.role in ("temp", "output") and buffer.nbytes >= _LEAST_BYTES:
                    value = _value(loop, store, number, program.buffers)
                    if value is not None:
                        found[store.buffer] = value
    return {name: value for name, value in found.items() if writers[name] == 1}


def _value(loop: Loop, store: Store, number: int, buffers: Mapping[str, Buffer]) -> _Value | None:
    axes = [index.axis for index in store.index]
    buffer = buffers[store.buffer]
    if loop.schedule != "nest" or store.mode != "store" or None in axes or len(set(axes)) < len(axes):
        return None
    if any(axis is None or axis.extent != size for axis, size in zip(axes, buffer.shape, strict=True)):
        return None
    below = walk([store.value])
    plain = all(node.op not in ("acc", "philox") and not _is_run_time(node) for node in below)
    varying = [node for node in below if node.op not in ("load", "const") and axes[-1] in node.axes]
    large = [x for x in below if x.op == "load" and buffers[x.attribute.buffer].size * _SMALL_SHARE > buffer.size]
    free = {axis for node in below for axis in node.axes} - set(axes)
    if not plain or free or not large or len(varying) > _MOST_OPERATIONS:
        return None
    return _Value(number, tuple(axis for axis in axes if axis is not None), store.value, tuple(large))


def _is_run_time(node: Expr) -> bool:
    """Whether it reads at a place that is read, or under a mask."""
    return node.op == "load" and (
        bool(node.attribute.mask) or any(indirect_values(index) for index in node.attribute.index)
    )


def _computing_all(loop: Loop, values: Mapping[str, _Value]) -> Loop:
    return replace(loop, stages=tuple(_computing(stage, values) for stage in loop.stages)) if values else loop


def _computing(stage: Stage, values: Mapping[str, _Value]) -> Stage:
    """`stage` with loads of `values` computed, where it has their large operands."""
    loaded = {node.attribute: node for node in walk(stage_roots(stage)) if node.op == "load"}
    again: dict[Load, Expr] = {}  # by what is loaded: an equal expression may be another object after a fusion
    for attribute in loaded:
        value = values.get(attribute.buffer)
        if value is None or attribute.mask:
            continue
        at = dict(zip(value.axes, attribute.index, strict=True))
        if all(operand.substitute(at).attribute in loaded for operand in value.large):
            again[attribute] = value.value.substitute(at)
    if not again or any(indirect_values(index) for store in stage.stores for index in store.index):
        return stage
    new = replace_loads(stage.expressions(), lambda node: again.get(node.attribute, node))
    reduces = tuple(replace(r, value=v) for r, v in zip(stage.reduces, new, strict=False))
    stores = tuple(replace(s, value=v) for s, v in zip(stage.stores, new[len(reduces) :], strict=True))
    return replace(stage, reduces=reduces, stores=stores)
