"""Which part of each buffer a block of a nest's rows touches: what running kernels block by block rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fusegraph.codegen.cpu.kernel import RowSplit
from fusegraph.codegen.cpu.nest_plan import Plan
from fusegraph.codegen.cpu.nest_rewrite import stage_roots
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Loop
from fusegraph.ir.scalar import walk


def row_split(loop: Loop, plan: Plan, buffers: Mapping[str, Buffer], names: Sequence[str]) -> RowSplit | None:
    """Of a canonical loop that is run by `plan`; `names`: its buffers. None where threads share it in another way."""
    if loop.sized or not plan.parallel or plan.split_vector or not plan.shared or plan.outer[0] != loop.space[0]:
        return None
    rows = loop.space[0]
    indices = _indices(loop)
    local = [
        place
        for place, name in enumerate(names)
        if name in indices and all(_stays_in_its_part(index, rows, buffers[name].size) for index in indices[name])
    ]
    return RowSplit(rows.extent, math.prod(axis.extent for axis in plan.outer[: plan.shared]), frozenset(local))


def _indices(loop: Loop) -> dict[str, set[Index]]:
    """For each buffer the elements that are loaded and stored."""
    found: dict[str, set[Index]] = {}
    for stage in loop.stages:
        for node in walk(stage_roots(stage)):
            if node.op == "load":
                found.setdefault(node.attribute.buffer, set()).add(node.attribute.index[0])
        for store in stage.stores:
            found.setdefault(store.buffer, set()).add(store.index[0])
    return found


def _stays_in_its_part(index: Index, rows: Axis, size: int) -> bool:
    """Whether row r lies in elements r * size / rows up to (r + 1) * size / rows."""
    step = index.coefficient(rows)
    rest = index - Index.of(rows) * step
    low, high = rest.bounds
    return step * rows.extent == size and rows not in rest.axes and low >= 0 and high < step
