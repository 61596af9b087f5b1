"""Axes that indices divide, or that masks cut, in parts along whose innermost one nothing is divided and no mask
changes.

Reading a [8, 4, 64, 32] array as [512, 128] needs i // 64, i % 64, j // 32 and j % 32. With i = 64 i1 + i0 and j = 32
j1 + j0 all of them are plain axes, and along j0 memory is contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fusegraph.codegen.cpu.nest_rewrite import Rewrite, all_indices, inner_axes, rewrite_stage, stage_roots
from fusegraph.ir.index import Axis, Div, Index, Mod
from fusegraph.ir.loops import Loop, Stage
from fusegraph.ir.scalar import Bound, Condition, walk
from fusegraph.records import replace

_SMALLEST = 8  # points of the innermost part: shorter ones do not fill a vector


def split_axes(loop: Loop) -> Loop:
    """`loop` (one index for each load and store) with axes cut where every quotient and remainder then dissolves."""
    for axis in loop.space:
        if parts := _parts(axis, loop.stages):
            cut = _Cut(axis, parts)
            stages = tuple(rewrite_stage(stage, cut) for stage in loop.stages)
            if _dissolved(parts[-1], stages):
                loop = replace(loop, space=_replaced(loop.space, axis, parts), stages=stages)
    return replace(loop, stages=tuple(map(_split_stage, loop.stages)))


def _split_stage(stage: Stage) -> Stage:
    for axis in inner_axes(stage):
        if parts := _parts(axis, [stage]):
            new = rewrite_stage(stage, _Cut(axis, parts))
            if _dissolved(parts[-1], [new]):
                stage = replace(
                    new, axes=_replaced(new.axes, axis, parts), reduce_axes=_replaced(new.reduce_axes, axis, parts)
                )
    return stage


def _parts(axis: Axis, stages: Sequence[Stage]) -> tuple[Axis, ...]:
    """The axes, outermost first, that `axis` is cut into; none if no index divides it, or not at useful places."""
    if axis.extent < 2 * _SMALLEST or axis.rows:
        return ()
    chain: list[int] = []
    for block in sorted(_blocks(axis, stages)):
        if _SMALLEST <= block < axis.extent and axis.extent % block == 0 and (not chain or block % chain[-1] == 0):
            chain.append(block)
    if not chain:
        return ()
    bounds = [*chain, axis.extent]
    extents = [chain[0], *(high // low for low, high in zip(bounds, bounds[1:], strict=False))]
    return tuple(Axis(f"{axis.name}.{place}", extent) for place, extent in reversed(list(enumerate(extents))))


def _blocks(axis: Axis, stages: Sequence[Stage]) -> set[int]:
    """Sizes of aligned blocks of `axis` along which no quotient or remainder wraps and no mask changes."""
    found = set()
    for index in all_indices(stages):
        for atom, _ in index.terms:
            if isinstance(atom, (Div, Mod)):
                found.add(_block(axis, atom.index, atom.divisor))
    for bound in _bounds(stages):
        found.add(_block(axis, bound.index, math.gcd(bound.low, bound.high)))
    return found


def _block(axis: Axis, index: Index, divisor: int) -> int:
    """Points along `axis` in which `index` stays between two multiples of `divisor`; 0 if there is no such number."""
    step = index.coefficient(axis)
    if step <= 0:
        return 0
    whole = math.gcd(divisor, index.constant, *(c for atom, c in index.terms if atom != axis))
    return whole // step if whole % step == 0 else 0


def _bounds(stages: Sequence[Stage]) -> list[Bound]:
    """The bounds that masks ask for."""
    masks = (
        node.attribute if node.op == "inside" else node.attribute.mask
        for stage in stages for node in walk(stage_roots(stage)) if node.op in ("inside", "load")
    )  # fmt: skip
    return [condition for mask in masks for condition in mask if isinstance(condition, Bound)]


class _Cut(Rewrite):
    """Replaces an axis by its parts."""

    def __init__(self, axis: Axis, parts: tuple[Axis, ...]) -> None:
        super().__init__()
        self._cut, self._whole, self._block = axis, Index(), parts[-1].extent
        for part in parts:
            self._whole = self._whole * part.extent + part

    def index(self, index: Index) -> Index:
        """With the axis replaced, in normal form."""
        if self._cut not in index.axes:
            return index
        out = Index(index.constant)
        for atom, c in index.terms:
            if atom == self._cut:
                out = out + self._whole * c
            elif isinstance(atom, (Div, Mod)):
                inner = self.index(atom.index)
                out = out + (inner // atom.divisor if isinstance(atom, Div) else inner % atom.divisor) * c
            else:
                out = out + Index(0, ((self.atom(atom), c),))
        return out

    def condition(self, condition: Condition) -> Condition:
        """A bound that holds for a whole block or for none of it is one of the block's number."""
        new = super().condition(condition)
        if isinstance(new, Bound) and self._cut in condition.index.axes:
            step = condition.index.coefficient(self._cut) * self._block
            if step > 0 and new.low % step == 0 and new.high % step == 0:
                return Bound(new.index // step, new.low // step, new.high // step)
        return new


def _dissolved(axis: Axis, stages: Sequence[Stage]) -> bool:
    """Whether no quotient, remainder or mask depends on `axis`."""
    divided = any(
        isinstance(atom, (Div, Mod)) and axis in atom.index.axes
        for index in all_indices(stages)
        for atom, _ in index.terms
    )
    return not divided and not any(axis in bound.index.axes for bound in _bounds(stages))


def _replaced(axes: tuple[Axis, ...], old: Axis, parts: tuple[Axis, ...]) -> tuple[Axis, ...]:
    return tuple(new for axis in axes for new in (parts if axis == old else (axis,)))
