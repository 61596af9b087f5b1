"""The verifier of loop programs: what a fused program must obey before code is generated from it."""

from __future__ import annotations

from fusegraph.errors import GraphError
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Loop, Program, Stage
from fusegraph.ir.scalar import Bound, Expr, Mask, walk

ROLES = ("input", "state", "output", "temp", "local")
SCHEDULES = ("nest", "contract", "scatter")


def verify_program(program: Program) -> Program:
    """`program` itself if it obeys the rules of ir/loops.py. Raises GraphError that names the kernel and the rule.

    Every name is a buffer; temps are written before they are read; axes are in scope; accumulators are closed before they are
    read; unmasked accesses stay inside of their buffers.
    """
    for name in (*program.inputs, *program.outputs, *(guard.buffer for guard in program.guards)):
        _require(name in program.buffers, program.name, f"no buffer is called {name!r}")
    written = {name for name, buffer in program.buffers.items() if buffer.role in ("input", "state")}
    for loop in program.loops:
        _require(loop.schedule in SCHEDULES, loop.name, f"schedule {loop.schedule!r} does not exist")
        _verify_loop(program, loop, written)
    for name in program.outputs:
        _require(name in written or program.buffers[name].size == 0, program.name, f"output {name!r} is never written")
    return program


def _require(condition: bool, where: str, rule: str) -> None:
    if not condition:
        raise GraphError(f"{where}: {rule}")


def _verify_loop(program: Program, loop: Loop, written: set[str]) -> None:
    names = [axis.name for axis in loop.space]
    _require(len(set(names)) == len(names), loop.name, f"two axes of the space have one name: {names}")
    closed: set[str] = set()
    for stage in loop.stages:
        _verify_stage(program, loop, stage, closed, written)
        closed |= {reduce.name for reduce in stage.reduces}
        written |= {store.buffer for store in stage.stores}
    if loop.schedule == "contract":
        first = loop.stages[0]
        _require(
            len(first.reduces) == 1 and first.reduces[0].op == "sum", loop.name, "a contraction begins with one sum"
        )


def _verify_stage(program: Program, loop: Loop, stage: Stage, closed: set[str], written: set[str]) -> None:
    _require(not (stage.reduces and (stage.stores or stage.axes)), loop.name, "a stage reduces, or stores, not both")
    scope = {*loop.space, *stage.axes, *stage.reduce_axes}
    for expr in walk(stage.expressions()):
        if expr.op == "acc":
            _require(expr.attribute in closed, loop.name, f"accumulator {expr.attribute} is read before it is closed")
        for index in expr.indices():
            _in_scope(loop, index, scope)
        if expr.op == "load":
            _verify_load(program, loop, expr, written)
    for store in stage.stores:
        _require(store.buffer in program.buffers, loop.name, f"no buffer is called {store.buffer!r}")
        buffer = program.buffers[store.buffer]
        _require(buffer.role != "input", loop.name, f"input {store.buffer!r} is written")
        _require(
            store.value.dtype == buffer.dtype,
            loop.name,
            f"{store.value.dtype.name} goes into {store.buffer!r}, {buffer.dtype.name}",
        )
        for index in store.index:
            _in_scope(loop, index, scope)
        _inside(loop, store.buffer, store.index, buffer.shape, ())


def _verify_load(program: Program, loop: Loop, expr: Expr, written: set[str]) -> None:
    load = expr.attribute
    _require(load.buffer in program.buffers, loop.name, f"no buffer is called {load.buffer!r}")
    buffer = program.buffers[load.buffer]
    _require(load.buffer in written or buffer.size == 0, loop.name, f"{load.buffer!r} is read before it is written")
    _require(
        expr.dtype == buffer.dtype, loop.name, f"{load.buffer!r} is {buffer.dtype.name}, read as {expr.dtype.name}"
    )
    _inside(loop, load.buffer, load.index, buffer.shape, load.mask)


def _in_scope(loop: Loop, index: Index, scope: set[Axis]) -> None:
    loose = {axis.name for axis in index.axes if axis not in scope and axis.extent != 1}
    _require(not loose, loop.name, f"index {index} uses axes that are not in scope: {sorted(loose)}")


def _inside(loop: Loop, name: str, index: tuple[Index, ...], shape: tuple[int, ...], mask: Mask) -> None:
    """Coordinates stay inside of the buffer: for certain, or because the mask says so."""
    _require(len(index) == len(shape), loop.name, f"{name!r} has {len(shape)} axes, indexed with {len(index)}")
    limited = {condition.index: condition for condition in mask if isinstance(condition, Bound)}
    for part, extent in zip(index, shape, strict=True):
        low, high = part.bounds
        if extent and not (0 <= low and high < extent) and part not in limited and not mask:
            raise GraphError(f"{loop.name}: {name}[{part}] runs over {low} .. {high}, outside of an axis of {extent}")
