"""Accumulators of reductions: their state in registers, one step, combination of two, and the final value.

Lanes of a vector (and unrolled copies) accumulate separately and are combined at the end, always in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

from fusegraph.codegen.cpu.irvector import VectorOps
from fusegraph.codegen.cpu.nest_ops import PointOps, element_of, largest, smallest
from fusegraph.dtypes import bool_
from fusegraph.errors import CompilerError
from fusegraph.ir.loops import Reduce

State = tuple[str, ...]


class Accumulator:
    """State of one Reduce over vectors of `ops.lanes` points: (value,), or (extreme, its position as i32 or i64)."""

    def __init__(self, reduce: Reduce, ops: PointOps, position_element: str) -> None:
        if reduce.op not in ("sum", "prod", "max", "min", "argmax", "argmin"):
            raise CompilerError(f"the CPU code generator has no reduction {reduce.op!r} ({reduce.name})")
        self.reduce, self._ops, self._position_element = reduce, ops, position_element
        self._dtype = reduce.value.dtype
        self._v = ops.of(self._dtype)
        self.wants_position = reduce.op.startswith("arg")
        self._largest = reduce.op.endswith("max")

    @property
    def element(self) -> str:
        """LLVM type of one value."""
        return self._v.element

    @property
    def types(self) -> list[str]:
        """LLVM types of the state."""
        position = [self._ops.element(self._position_element).type] if self.wants_position else []
        return [self._v.type, *position]

    def _identity(self) -> str:
        op = self.reduce.op
        if op in ("sum", "prod"):
            return self._v.constant(0 if op == "sum" else 1)
        bound = smallest(self._dtype) if self._largest else largest(self._dtype)
        if self._dtype.kind == "u" and not self._largest:
            bound = -1  # all bits set; LLVM writes integers with a sign
        return self._v.constant(bound)

    def start(self) -> State:
        """The state of no points."""
        position = (self._ops.element(self._position_element).constant(0),) if self.wants_position else ()
        return (self._identity(), *position)

    def step(self, state: State, value: str, position: str, mask: str | None) -> State:
        """One more point in each lane (where `mask` holds)."""
        if self.wants_position:
            return self._choose(state, (value, position), mask, ties=False)
        if mask is not None:
            value = self._v.select(mask, value, self._identity())
        return (value if state[0] == self._identity() else self._merge(state[0], value),)

    def combine(self, a: State, b: State) -> State:
        """Two states as one."""
        return self._choose(a, b, None, ties=True) if self.wants_position else (self._merge(a[0], b[0]),)

    def _merge(self, total: str, value: str) -> str:
        if self.reduce.op in ("sum", "prod"):
            return (self._v.add if self.reduce.op == "sum" else self._v.mul)(total, value)
        return self._ops.extreme(self._largest, value, total, self._dtype)

    def _choose(self, old: State, new: State, mask: str | None, ties: bool) -> State:
        """The state with the better value; NaN beats numbers. `ties`: of equals the one with the lower position."""
        masks, positions = self._ops.of(bool_), self._ops.element(self._position_element)
        if self._dtype.kind == "f":  # better or NaN, unless the old one is NaN already
            better = self._v.compare("ugt" if self._largest else "ult", new[0], old[0])
            take = masks.binary("and", better, self._v.compare("ord", old[0], old[0]))
        else:
            take = self._ops.compare("gt" if self._largest else "lt", new[0], old[0], self._dtype)
        if ties:
            take = masks.binary(
                "or", take, masks.binary("and", self._same(old, new), positions.compare("slt", new[1], old[1]))
            )
        if mask is not None:
            take = masks.binary("and", take, mask)
        return self._v.select(take, new[0], old[0]), positions.select(take, new[1], old[1])

    def _same(self, old: State, new: State) -> str:
        """Equal values, or both NaN."""
        same = self._ops.compare("eq", new[0], old[0], self._dtype)
        if self._dtype.kind != "f":
            return same
        masks = self._ops.of(bool_)
        both = masks.binary("and", *(self._v.compare("uno", part[0], part[0]) for part in (old, new)))
        return masks.binary("or", same, both)

    def across(self, state: State) -> State:
        """All lanes combined into one, as scalars."""
        part: Accumulator = self
        while part._ops.lanes > 1:
            half = Accumulator(self.reduce, self._ops.with_lanes(part._ops.lanes // 2), self._position_element)
            vectors = [part._v, part._ops.element(self._position_element)][: len(state)]
            low = [_half(v, s, 0) for v, s in zip(vectors, state, strict=True)]
            high = [_half(v, s, 1) for v, s in zip(vectors, state, strict=True)]
            state, part = half.combine(tuple(low), tuple(high)), half
        return state

    def result(self, state: State) -> str:
        """The final value, of the Reduce's dtype."""
        if not self.wants_position:
            return state[0]
        v, target = self._ops.element(self._position_element), element_of(self.reduce.dtype)
        return state[1] if v.element == target else v.convert("sext", state[1], target)


def _half(v: VectorOps, vector: str, which: int) -> str:
    width = v.lanes // 2
    if width == 1:
        return v.extract(vector, which)
    return v.shuffle(vector, "poison", range(which * width, (which + 1) * width))


def combine_all(accumulator: Accumulator, states: Sequence[State]) -> State:
    """Several states as one, by pairs."""
    while len(states) > 1:
        pairs = [accumulator.combine(a, b) for a, b in zip(states[::2], states[1::2], strict=False)]
        states = pairs + list(states[2 * len(pairs) :])
    return states[0]
