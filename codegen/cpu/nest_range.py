"""Functions of a part of the numbers, or beside another function, which take fewer instructions.

exp of what cannot be positive needs no bound above and one exact scaling fewer: x - max(x) in softmax, -(x * x) in the
derivative of gelu, -|x|: `exp` of these becomes `exp_of_negative`. Where exp(-(x * x)) is computed anyway, float32's erf(x)
becomes `erf_beside_exp`, which makes use of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from fusegraph.codegen.cpu.nest_rewrite import Rewrite, rewrite_stage, stage_roots
from fusegraph.ir.loops import Stage
from fusegraph.ir.scalar import Expr, make, walk

EXP_OF_NEGATIVE = "exp_of_negative"
ERF_BESIDE_EXP = "erf_beside_exp"


def mark_exps(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages of a loop (their axes have the same names) with `exp` and `erf` named by what is known of their operands.

    NaN, and inf - inf, are what they were.
    """
    marker = _Marker()
    marked: list[Stage] = []
    written = {store.buffer for stage in stages for store in stage.stores}
    for stage in stages:
        marker.squared = {x for node in walk(stage_roots(stage)) if (x := _squared(node)) is not None}
        marked.append(rewrite_stage(stage, marker))
        maxima = [reduce for reduce in marked[-1].reduces if reduce.op == "max"]
        marker.largest |= {reduce.name: reduce.value for reduce in maxima if not _reads(reduce.value, written)}
        marker.forget()
    return tuple(marked)


def _reads(root: Expr, buffers: set[str]) -> bool:
    return any(node.op == "load" and node.attribute.buffer in buffers for node in walk([root]))


def _squared(node: Expr) -> Expr | None:
    """x, if the node is exp(-(x * x))."""
    negated = node.args[0] if node.op == "exp" else None
    square = negated.args[0] if negated is not None and negated.op == "neg" else None
    return square.args[0] if square is not None and square.op == "mul" and square.args[0] is square.args[1] else None


class _Marker(Rewrite):
    """`largest`: of which expression an accumulator of an earlier stage is the maximum.

    squared: every x of which this stage has exp(-(x * x)).
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest: dict[str, Expr] = {}
        self.squared: set[Expr] = set()

    def forget(self) -> None:
        """Look at every expression again: there are new accumulators."""
        self._known.clear()

    def _node(self, node: Expr) -> Expr:
        new = super()._node(node)
        if new.op == "exp" and self._is_never_positive(new.args[0]):
            return make(EXP_OF_NEGATIVE, new.args, new.dtype)
        if new.op == "erf" and node.args[0] in self.squared and new.dtype.itemsize == 4:
            (x,) = new.args
            negated = make("neg", (make("mul", (x, x), x.dtype),), x.dtype)
            return make(ERF_BESIDE_EXP, (x, make(EXP_OF_NEGATIVE, (negated,), x.dtype)), new.dtype)
        return new

    def _is_never_positive(self, x: Expr) -> bool:
        if x.op == "sub":
            value, largest = x.args
            return largest.op == "acc" and self.largest.get(largest.attribute) is value
        if x.op == "neg":
            (size,) = x.args
            return size.op in ("abs", "exp", "relu") or (size.op == "mul" and size.args[0] is size.args[1])
        return False
