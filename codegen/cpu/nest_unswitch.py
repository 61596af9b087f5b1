"""Loops over a short axis that only chooses between values: a stage for each choice, without the choice (loop unswitching).

    for b, t, s < 3, c:  d[b, t, s, c] = (q[b, t, c] if s = 0 else 0) + (k[b, t, c] if s = 1 else 0) + (v ... if s = 2 else 0)

becomes three copies. So the gradient of an array is put together of which parts were used: query, key and value of attention.
"""

from __future__ import annotations

from fusegraph.dtypes import bool_
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Loop, Program, Stage
from fusegraph.ir.scalar import Bound, Divides, Expr, Load, Mask, const, make, substitute, walk
from fusegraph.records import replace

__all__ = ["unswitched"]

_MOST_CHOICES = 4
_LEAST_POINTS = 1024  # of the rest of the loop: what is done once for each choice is code


def unswitched(program: Program) -> Program:
    """`program` with the choices of element by element loops made outside of them. Zeros are not added: the sign of 0 may be another."""
    loops = [_unswitched(loop) for loop in program.loops]
    changed = any(new is not old for new, old in zip(loops, program.loops, strict=True))
    return replace(program, loops=tuple(loops)) if changed else program


def _unswitched(loop: Loop) -> Loop:
    if loop.schedule != "nest" or len(loop.stages) != 1 or loop.sized or loop.stages[0].reduces or loop.stages[0].axes:
        return loop
    (stage,) = loop.stages
    axis = _chooser(loop, stage)
    if axis is None or loop.points() < _LEAST_POINTS * axis.extent:
        return loop
    stages = tuple(_chosen(stage, axis, value) for value in range(axis.extent))
    return replace(loop, space=tuple(other for other in loop.space if other is not axis), stages=stages)


def _chooser(loop: Loop, stage: Stage) -> Axis | None:
    """The short axis that every mask depends on, and on nothing else; only if all stores are to places of their own along it."""
    masks = [_mask_of(node) for node in walk(stage.expressions())]
    indices = [condition.index for mask in masks for condition in mask]
    axes = frozenset().union(*(index.axes for index in indices))
    if len(axes) != 1 or not all(index.is_affine for index in indices):
        return None
    (axis,) = axes
    apart = all(store.mode == "store" and any(part.axis is axis for part in store.index) for store in stage.stores)
    written = {store.buffer for store in stage.stores}
    again = any(node.op == "load" and node.attribute.buffer in written for node in walk(stage.expressions()))
    fits = axis in loop.space and axis is not loop.space[-1] and axis.extent <= _MOST_CHOICES
    return axis if fits and apart and not again else None


def _mask_of(node: Expr) -> Mask:
    if node.op == "load":
        return node.attribute.mask  # type: ignore[no-any-return]
    return node.attribute if node.op == "inside" else ()


def _chosen(stage: Stage, axis: Axis, value: int) -> Stage:
    """`stage` for one value of the axis, with the masks decided."""
    mapping = {axis: Index(value)}
    decided: dict[Expr, Expr] = {}
    values = substitute(stage.expressions(), mapping)
    for node in walk(values):
        decided[node] = _decided(node, tuple(decided[arg] for arg in node.args))
    stores = tuple(
        replace(store, index=tuple(part.substitute(mapping) for part in store.index), value=decided[new])
        for store, new in zip(stage.stores, values, strict=True)
    )
    return replace(stage, stores=stores)


def _decided(node: Expr, args: tuple[Expr, ...]) -> Expr:
    if node.op == "inside" and all(condition.index.is_constant for condition in node.attribute):
        return const(_holds(node.attribute), bool_)
    if node.op == "load" and node.attribute.mask:
        load: Load = node.attribute
        return make("load", args, node.dtype, replace(load, mask=())) if _holds(load.mask) else const(0, node.dtype)
    if node.op == "where" and args[0].op == "const":
        return args[1] if args[0].attribute else args[2]
    if node.op == "add" and any(_is_zero(arg) for arg in args):
        return args[1] if _is_zero(args[0]) else args[0]
    return make(node.op, args, node.dtype, node.attribute)


def _is_zero(value: Expr) -> bool:
    return value.op == "const" and value.attribute == 0


def _holds(mask: Mask) -> bool:
    """Whether the conditions of a mask hold, of constant indices."""
    return all(
        (isinstance(c, Bound) and c.low <= c.index.constant < c.high)
        or (isinstance(c, Divides) and c.index.constant % c.divisor == 0)
        for c in mask
    )
