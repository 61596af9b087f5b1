"""Positions of maxima in 32 bits: half the memory, and a comparison of them masks float32 lanes without conversions.

The position of a maximum in a window is an int64 for the user. Inside of the program it is stored, and compared with
the number of each element of the window: where that is all, the buffer and the comparison are made int32.
"""

from __future__ import annotations

import math
from collections.abc import Set

from fusegraph.codegen.cpu.nest_rewrite import Rewrite, rewrite_loop, stage_roots
from fusegraph.dtypes import int32, int64
from fusegraph.ir.loops import Loop, Program, Stage, Store
from fusegraph.ir.scalar import Expr, Load, load, make, op, walk
from fusegraph.records import replace

__all__ = ["narrow_positions"]

_LIMIT = 1 << 31


def narrow_positions(program: Program) -> Program:
    """`program` with int32 temporaries for positions that are compared with indices and nothing else."""
    names = {name for name, b in program.buffers.items() if b.role == "temp" and b.dtype == int64}
    for loop in program.loops:
        if names:
            names -= _others(loop, names)
    if not names:
        return program
    buffers = {name: replace(b, dtype=int32) if name in names else b for name, b in program.buffers.items()}
    rewrite = _Narrow(names)
    loops = tuple(
        _narrowed(loop, rewrite, names) if names & {*loop.reads(), *loop.writes()} else loop for loop in program.loops
    )
    return replace(program, buffers=buffers, loops=loops)


def _others(loop: Loop, names: Set[str]) -> set[str]:
    """Those of `names` that the loop writes other than positions to, or uses other than in comparisons with indices."""
    found = set()
    positions = {
        reduce.name
        for stage in loop.stages for reduce in stage.reduces
        if reduce.op.startswith("arg") and math.prod(axis.extent for axis in stage.reduce_axes) < _LIMIT
    }  # fmt: skip
    for stage in loop.stages:
        found |= {
            store.buffer for store in stage.stores
            if store.mode != "store" or store.value.op != "acc" or store.value.attribute not in positions
        }  # fmt: skip
        roots = stage_roots(stage)
        for node in walk(roots):
            compared = _is_comparison(node)
            found |= {arg.attribute.buffer for arg in node.below if arg.op == "load" and not compared}
        found |= {root.attribute.buffer for root in roots if root.op == "load"}
    return found & names


def _is_comparison(node: Expr) -> bool:
    """Whether a load is compared with an index that fits into 32 bits."""
    if node.op not in ("eq", "ne") or {arg.op for arg in node.args} != {"load", "index"}:
        return False
    low, high = next(arg for arg in node.args if arg.op == "index").attribute.bounds
    return low >= -_LIMIT and high < _LIMIT


class _Narrow(Rewrite):
    def __init__(self, names: Set[str]) -> None:
        super().__init__()
        self._names = names

    def _node(self, node: Expr) -> Expr:
        new = super()._node(node)
        if node.op == "load" and node.attribute.buffer in self._names:
            attribute: Load = new.attribute
            return load(attribute.buffer, attribute.index, int32, attribute.mask)
        if _is_comparison(node) and any(arg.op == "load" and arg.dtype == int32 for arg in new.args):
            args = [op("cast", arg, dtype=int32) if arg.op == "index" else arg for arg in new.args]
            return make(new.op, args, new.dtype)
        return new


def _narrowed(loop: Loop, rewrite: _Narrow, names: Set[str]) -> Loop:
    def store(old: Store) -> Store:
        return replace(old, value=op("cast", old.value, dtype=int32)) if old.buffer in names else old

    def stage(old: Stage) -> Stage:
        return replace(old, stores=tuple(map(store, old.stores)))

    new = rewrite_loop(loop, rewrite)
    return replace(new, stages=tuple(map(stage, new.stages)))
