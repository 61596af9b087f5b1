"""The form that loops have before code is written for them.

- Every load and store has one index, the element's number in C order (buffers are dense).
- Neighbouring axes that every index walks through as if they were one are one: a [64, 256] elementwise kernel runs
  over 16384 points.
- Axes that indices divide are cut where that makes them plain (nest_split).
- A lone stage that only stores hands its axes over to the space.
- Inner axes of all stages have the same names ("j0" is the innermost), so that an expression that two stages share is
  one object, computed once where its value can stay in a register.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fusegraph.codegen.cpu.nest_rewrite import (
    Rewrite,
    all_indices,
    inner_axes,
    rewrite_loop,
    rewrite_stage,
    stage_roots,
)
from fusegraph.codegen.cpu.nest_split import split_axes
from fusegraph.ir.index import Axis, Index, flatten_index
from fusegraph.ir.loops import Buffer, Loop, Stage
from fusegraph.records import replace

__all__ = ["canonical_loop", "flat_stages", "inner_axes", "stage_roots"]

Merges = Mapping[Axis, tuple[Axis, bool]]  # axis -> (the axis that replaces it, whether its terms carry the new axis)


def canonical_loop(loop: Loop, buffers: Mapping[str, Buffer]) -> Loop:
    """`loop` in canonical form. Axes of extent 1 are gone; axes of extent 0 remain."""
    flat = rewrite_loop(loop, _Flatten(buffers))
    flat = split_axes(_without_unit_axes(flat))
    if len(flat.stages) == 1 and not flat.stages[0].reduces and flat.schedule != "scatter":
        stage = flat.stages[0]
        flat = replace(flat, space=flat.space + stage.axes, stages=(replace(stage, axes=()),))
    return _merge_axes(flat)


def flat_stages(stages: Sequence[Stage], buffers: Mapping[str, Buffer]) -> tuple[Stage, ...]:
    """Stages whose loads and stores have one index each, the element's number; their axes stay as they are."""
    rewrite = _Flatten(buffers)
    return tuple(rewrite_stage(stage, rewrite) for stage in stages)


class _Flatten(Rewrite):
    def __init__(self, buffers: Mapping[str, Buffer]) -> None:
        super().__init__()
        self._buffers = buffers

    def address(self, buffer: str, index: tuple[Index, ...]) -> tuple[Index, ...]:
        return (flatten_index([self.index(part) for part in index], self._buffers[buffer].shape),)


class _Rename(Rewrite):
    def __init__(self, merges: Merges) -> None:
        super().__init__()
        self._merges = merges

    def axis(self, axis: Axis) -> Axis | None:
        new, carries = self._merges.get(axis, (axis, True))
        return new if carries else None


def _without_unit_axes(loop: Loop) -> Loop:
    def kept(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(axis for axis in axes if axis.extent != 1)

    stages = tuple(replace(s, axes=kept(s.axes), reduce_axes=kept(s.reduce_axes)) for s in loop.stages)
    return replace(loop, space=kept(loop.space), stages=stages)


# -- merging axes ------------------------------------------------------------------------------------------------------


def _is_one(outer: Axis, inner: Axis, indices: Sequence[Index]) -> bool:
    """Whether every index walks through (outer, inner) as through one axis."""
    if (
        inner.rows or outer.per > 1
    ):  # a step along the outer axis would be another one at run time; blocks are counted alone
        return False
    return all(index.coefficient(outer) == inner.extent * index.coefficient(inner) for index in indices)


def _groups(axes: tuple[Axis, ...], indices: Sequence[Index]) -> list[list[Axis]]:
    groups: list[list[Axis]] = []
    for axis in axes:
        if groups and _is_one(groups[-1][-1], axis, indices):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return groups


def _merged(groups: list[list[Axis]], name: str, merges: dict[Axis, tuple[Axis, bool]]) -> tuple[Axis, ...]:
    """One new axis for each group, named `name`0, 1, ... from the innermost outwards."""
    axes = []
    for position, group in enumerate(groups):
        rows = math.prod(a.extent for a in group[1:]) * group[0].rows
        axis = Axis(f"{name}{len(groups) - 1 - position}", math.prod(a.extent for a in group), rows, group[0].per)
        merges.update({old: (axis, old is group[-1]) for old in group})
        axes.append(axis)
    return tuple(axes)


def _merge_axes(loop: Loop) -> Loop:
    space_merges: dict[Axis, tuple[Axis, bool]] = {}
    space = _merged(_groups(loop.space, all_indices(loop.stages)), "i", space_merges)
    rewrites: dict[frozenset[tuple[Axis, tuple[Axis, bool]]], _Rename] = {}
    stages = []
    for stage in loop.stages:
        indices = all_indices([stage])
        merges = dict(space_merges)
        axes = _merged(_groups(stage.axes, indices), "j", merges)
        reduce_axes = _merged(_groups(stage.reduce_axes, indices), "k" if axes else "j", merges)
        rewrite = rewrites.setdefault(frozenset(merges.items()), _Rename(merges))
        stages.append(replace(rewrite_stage(stage, rewrite), axes=axes, reduce_axes=reduce_axes))
    return replace(loop, space=space, stages=tuple(stages))
