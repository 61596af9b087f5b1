"""exp of what cannot be positive, which needs no bound above and one exact scaling fewer.

x - max(x) in softmax, -(x * x) in the derivative of gelu, -|x|: `exp` of these becomes `exp_of_negative`.
"""

from __future__ import annotations

from dataclasses import replace

from fusegraph.codegen.cpu.nest_rewrite import Rewrite, rewrite_stage
from fusegraph.ir.loops import Loop
from fusegraph.ir.scalar import Expr, make

EXP_OF_NEGATIVE = "exp_of_negative"


def mark_exps(loop: Loop) -> Loop:
    """`loop` (its stages' axes have the same names) with `exp` of expressions that are never positive marked.

    NaN, and inf - inf, are what they were.
    """
    marker = _Marker()
    stages = []
    for stage in loop.stages:
        stages.append(rewrite_stage(stage, marker))
        marker.largest |= {reduce.name: reduce.value for reduce in stages[-1].reduces if reduce.op == "max"}
        marker.forget()
    return replace(loop, stages=tuple(stages))


class _Marker(Rewrite):
    """`largest`: of which expression an accumulator of an earlier stage is the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: dict[str, Expr] = {}

    def forget(self) -> None:
        """Look at every expression again: there are new accumulators."""
        self._known.clear()

    def _node(self, node: Expr) -> Expr:
        new = super()._node(node)
        if new.op == "exp" and self._is_never_positive(new.args[0]):
            return make(EXP_OF_NEGATIVE, new.args, new.dtype)
        return new

    def _is_never_positive(self, x: Expr) -> bool:
        if x.op == "sub":
            value, largest = x.args
            return largest.op == "acc" and self.largest.get(largest.attribute) is value
        if x.op == "neg":
            (size,) = x.args
            return size.op in ("abs", "exp", "relu") or (size.op == "mul" and size.args[0] is size.args[1])
        return False
