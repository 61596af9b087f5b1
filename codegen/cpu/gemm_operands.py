"""The forms that the operands of a contraction can be read in: as they are, from a copy, or within limits.

A masked operand (the padded image of a convolution) is read from a copy with its padding filled in, whole or one by one
along its outer axes, in its own order or transposed; or, for a transposed convolution, only where it is inside.
"""

from __future__ import annotations

from collections.abc import Iterator

from fusegraph.codegen.cpu.contract_plan import Contraction, Operand
from fusegraph.codegen.cpu.contract_stage import Staging, plan_staging
from fusegraph.codegen.cpu.gemm_limits import Limits, tap_limits
from fusegraph.ir.index import Axis
from fusegraph.ir.loops import Program
from fusegraph.records import replace

__all__ = ["staged_operands"]


def staged_operands(
    found: Contraction, program: Program, exact: bool
) -> Iterator[tuple[Contraction, Staging | None, Staging | None, Limits]]:
    """With masked operands replaced by their copies in scratch, or by a sum over the taps inside of the image alone."""
    for narrow, narrow_copy in _copies(found, found.narrow, found.wide, program):
        for wide, wide_copy in _copies(found, found.wide, found.narrow, program):
            new = _with_operands(found, narrow, wide)
            if new is not None:
                yield new, narrow_copy, wide_copy, ()
        limits = () if exact else tap_limits(found)
        new = _with_operands(found, narrow, replace(found.wide, mask=())) if limits else None
        if new is not None:
            yield new, narrow_copy, None, limits


def _with_operands(found: Contraction, narrow: Operand, wide: Operand) -> Contraction | None:
    columns = tuple(axis for axis in found.columns if axis in wide.axes)
    rows = tuple(axis for axis in found.rows if axis in narrow.axes)
    shared = tuple(axis for axis in found.loop.space if axis not in columns and axis not in rows)
    if found.column not in columns:
        return None
    return replace(found, narrow=narrow, wide=wide, columns=columns, rows=rows, shared=shared)


def _copies(
    found: Contraction, operand: Operand, other: Operand, program: Program
) -> Iterator[tuple[Operand, Staging | None]]:
    """The operand itself if it needs no copy, else its copies: of all of it, and one by one along the outer axes.

    A copy is in the order of the source, or transposed so that what lies side by side in the other operand, or in the
    output, lies side by side in it too.
    """
    if not operand.mask:
        if operand.flat.is_affine:
            yield operand, None
        return
    seen = set()
    for innermost in (None, *_turned(found, operand, other)):
        for apart in (_outermost(found, operand, innermost), []):
            copy = plan_staging(operand, program, apart, innermost)
            if copy is not None and copy.operand().flat.is_affine and (innermost, copy.axes) not in seen:
                seen.add((innermost, copy.axes))
                yield copy.operand(), copy


def _turned(found: Contraction, operand: Operand, other: Operand) -> list[Axis]:
    """Axes, strided in a masked operand, along which the output or the other operand is contiguous."""
    masked = frozenset().union(*(condition.index.axes for condition in operand.mask))
    near = [atom for atom, factor in other.flat.terms if factor == 1 and isinstance(atom, Axis)]
    if operand is found.wide:
        near.append(found.column)
    return [axis for axis in dict.fromkeys(near) if axis not in masked and abs(operand.stride(axis)) > 1]


def _outermost(found: Contraction, operand: Operand, innermost: Axis | None = None) -> list[Axis]:
    """The outermost unmasked axes in memory, all of the space or all of the sum."""
    masked = frozenset().union(*(condition.index.axes for condition in operand.mask))
    free = [axis for axis in operand.flat.axes - masked if axis is not found.column and axis is not innermost]
    free.sort(key=lambda axis: (-abs(operand.stride(axis)), axis.name))
    apart: list[Axis] = []
    for axis in free:
        if apart and (axis in found.sums) != (apart[0] in found.sums):
            break
        apart.append(axis)
    return apart
