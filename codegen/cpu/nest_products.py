"""Sums of products, and divisions by what all lanes share: operations that are written as other ones.

They are rounded the same way in every copy of a body, whatever LLVM makes of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.ir.scalar import Expr

if TYPE_CHECKING:
    from fusegraph.codegen.cpu.body import Copy, Evaluator


def _ends_in_product(node: Expr) -> bool:
    """Whether the last instruction of an operation may be a multiplication, which an addition behind it could be fused with."""
    while node.op == "neg":
        (node,) = node.args
    return node.op in ("mul", "div") or (node.op in PRIMITIVES and PRIMITIVES[node.op].cost == "transcendental")


class ProductWriter:
    """Writes them for an evaluator."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._e = evaluator

    def is_sum_of_products(self, node: Expr) -> bool:
        """Whether both operands of an addition or subtraction could be fused with it (not with `exact`)."""
        return node.dtype.kind == "f" and not self._e.exact and all(map(_ends_in_product, node.args))

    def sum(self, node: Expr, copy: Copy | None) -> str:
        """The sum or difference of two products, with one of them fused.

        LLVM may fuse either, and has been seen to choose differently in two copies of one body: then a result's last bit
        would depend on which copy, hence on how many threads there are.
        """
        v, (a, b) = self._e.ops(copy.lanes if copy else 1).of(node.dtype), node.args
        if a.op == "mul":
            x, y = (self._e.vector(arg, copy) for arg in a.args)
            rest = self._e.vector(b, copy)
            return v.fma(x, y, rest if node.op == "add" else v.neg(rest))
        if b.op == "mul":
            x, y = (self._e.vector(arg, copy) for arg in b.args)
            return v.fma(x if node.op == "add" else v.neg(x), y, self._e.vector(a, copy))
        x, y = self._e.vector(a, copy), self._e.vector(b, copy)
        return v.fn.binary({"add": "fadd", "sub": "fsub"}[node.op], v.type, x, y, "")

    # -- division by what all lanes share -----------------------------------------------------------------------------

    def by_reciprocal(self, node: Expr) -> bool:
        """Whether a division may be a multiplication: its divisor is the same for a whole vector (not with `exact`)."""
        return (
            not self._e.exact
            and node.dtype.kind == "f"
            and self._e.varies(node.args[0])
            and not self._e.varies(node.args[1])
        )

    def divide(self, node: Expr, copy: Copy | None) -> str:
        """(x * r) * s with r * s = 1 / divisor, s a power of two that keeps r from overflow and underflow.

        One rounding more than a division (at most 1.5 units in the last place); zero, inf and NaN give what they give
        there.
        """
        assert copy is not None
        v, x = self._e.ops(copy.lanes).of(node.dtype), self._e.vector(node.args[0], copy)
        reciprocal, scale = self.reciprocal(node.args[1], copy.lanes)
        product = v.mul(x, reciprocal)
        return v.mul(product, scale) if scale else product

    def reciprocal(self, divisor: Expr, lanes: int) -> tuple[str, str]:
        """r and s in all lanes; no s where the divisor is a constant of ordinary size."""
        v, one = self._e.ops(lanes).of(divisor.dtype), self._e.scalars.of(divisor.dtype)
        if divisor.op == "const" and 1e-30 < abs(divisor.attribute) < 1e30:
            return v.constant(float(divisor.dtype.type(1) / divisor.dtype.type(divisor.attribute))), ""
        found = [self._e.lookup((divisor, part, lanes)) for part in ("reciprocal", "scale")]
        if found[0] is None or found[1] is None:
            value = self._e.value(divisor)
            size = one.unary("fabs", value)
            scale = one.select(
                one.compare("ogt", size, one.constant(2.0**60)), one.constant(2.0**-64), one.constant(1.0)
            )
            scale = one.select(one.compare("olt", size, one.constant(2.0**-60)), one.constant(2.0**64), scale)
            reciprocal = one.div(one.constant(1.0), one.mul(value, scale))
            found = [self._e.remember((divisor, "reciprocal", lanes), v.broadcast(reciprocal)),
                     self._e.remember((divisor, "scale", lanes), v.broadcast(scale))]  # fmt: skip
        return str(found[0]), str(found[1])
