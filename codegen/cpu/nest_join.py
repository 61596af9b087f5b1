"""Neighbouring stages that walk over the same points become one: each walk over a row costs loads, stores and a loop.

In softmax, exp(x - max) is stored to a row by one stage and summed up by the next: joined, the sum takes it from the
register.
"""

from __future__ import annotations

from collections.abc import Sequence

from fusegraph.codegen.cpu.nest_rewrite import Rewrite, inner_axes, rewrite_stage, stage_roots
from fusegraph.ir.index import Index
from fusegraph.ir.loops import Loop, Stage, Store
from fusegraph.ir.scalar import Expr, Load, walk
from fusegraph.records import replace


def join_stages(loop: Loop) -> Loop:
    """`loop` (canonical, no scatter) with every stage joined to the one before it where nothing forbids it."""
    stages: list[Stage] = []
    for stage in loop.stages:
        joined = _joined(stages[-1], stage) if stages else None
        if joined is None:
            stages.append(stage)
        else:
            stages[-1] = joined
    return replace(loop, stages=tuple(stages))


def _joined(a: Stage, b: Stage) -> Stage | None:
    """A stage that does both at each point, or None. At a point, what B loads of A's stores is A's value."""
    if not inner_axes(a) or inner_axes(a) != inner_axes(b) or (a.axes and a.reduce_axes) or (b.axes and b.reduce_axes):
        return None
    mine, theirs = _loads(a), _loads(b)
    if _reads_accumulators(b, {reduce.name for reduce in a.reduces}):
        return None
    if not meet_at_points(a.stores, theirs) or not meet_at_points(b.stores, mine):
        return None
    if {store.buffer for store in a.stores} & {store.buffer for store in b.stores}:
        return None
    b = rewrite_stage(b, Forward(a.stores))
    reduce_axes = a.reduce_axes or b.reduce_axes
    axes = () if reduce_axes else a.axes
    return Stage(axes, reduce_axes, a.reduces + b.reduces, a.stores + b.stores)


def _loads(stage: Stage) -> list[Load]:
    return [node.attribute for node in walk(stage_roots(stage)) if node.op == "load"]


def _reads_accumulators(stage: Stage, names: set[str]) -> bool:
    return any(node.op == "acc" and node.attribute in names for node in walk(stage_roots(stage)))


def meet_at_points(stores: Sequence[Store], loads: Sequence[Load]) -> bool:
    """Whether every load of a buffer that is stored is one of the very element that the same point stores."""
    places = {store.buffer: store.index for store in stores}
    plain = all(store.mode == "store" for store in stores)
    return plain and all(load.index == places[load.buffer] and not load.mask for load in loads if load.buffer in places)


class Forward(Rewrite):
    """Replaces loads of what was just stored by its value."""

    def __init__(self, stores: Sequence[Store]) -> None:
        super().__init__()
        self._values: dict[tuple[str, tuple[Index, ...]], Expr] = {
            (store.buffer, store.index): store.value for store in stores
        }

    def _node(self, node: Expr) -> Expr:
        if node.op == "load":
            known = self._values.get((node.attribute.buffer, node.attribute.index))
            if known is not None:
                return known
        return super()._node(node)
