"""exp of what cannot be positive, which needs no bound above and one exact scaling fewer.

x - max(x) in softmax, -(x * x) in the derivative of gelu, -|x|: `exp` of these becomes `exp_of_negative`.
"""

from __future__ import annotations

from collections.abc import Sequence

from fusegraph.codegen.cpu.nest_rewrite import Rewrite, rewrite_stage
from fusegraph.ir.loops import Stage
from fusegraph.ir.scalar import Expr, make, walk

EXP_OF_NEGATIVE = "exp_of_negative"


def mark_exps(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages of a loop (their axes have the same names) with `exp` of expressions that are never positive marked.

    NaN, and inf - inf, are what they were.
    """
    marker = _Marker()
    marked: list[Stage] = []
    written = {store.buffer for stage in stages for store in stage.stores}
    for stage in stages:
        marked.append(rewrite_stage(stage, marker))
        maxima = [reduce for reduce in marked[-1].reduces if reduce.op == "max"]
        marker.largest |= {reduce.name: reduce.value for reduce in maxima if not _reads(reduce.value, written)}
        marker.forget()
    return tuple(marked)


def _reads(root: Expr, buffers: set[str]) -> bool:
    return any(node.op == "load" and node.attribute.buffer in buffers for node in walk([root]))


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
