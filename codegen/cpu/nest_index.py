"""Index expressions and masks as LLVM values: i64 scalars, or vectors of i32 (i64 where 32 bits are too few)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusegraph.codegen.cpu.irvector import VectorOps
from fusegraph.codegen.cpu.nest_ops import PointOps, is_signed
from fusegraph.dtypes import DType, bool_, int32, int64
from fusegraph.ir.index import Axis, Div, Index, Indirect, Mod
from fusegraph.ir.scalar import Bound, Condition, Expr, Mask, indirect_values

if TYPE_CHECKING:
    from fusegraph.codegen.cpu.body import Copy, Evaluator

_LIMIT = 1 << 31


def constant_of(text: str) -> int | None:
    """The number that an operand is, or None if it is a name."""
    return int(text) if text.lstrip("-").isdigit() else None


class IndexWriter:
    """Writes index expressions for an evaluator, which knows where the axes stand."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._e = evaluator
        self._small: dict[Index, bool] = {}

    # -- scalars ------------------------------------------------------------------------------------------------------

    def scalar(self, index: Index, copy: Copy | None = None) -> str:
        """The value as i64 (a constant's text where it is known); for a copy: of its first lane."""
        constant, terms = index.constant, []
        for atom, c in index.terms:
            if isinstance(atom, Axis):
                position, _ = self._e.position(atom, copy)
                constant += c * position.offset
                if position.name is not None:
                    terms.append((c, position.name))
            else:
                terms.append((c, self.atom(atom)))
        return self._e.fn.affine(terms, constant)

    def atom(self, atom: Any) -> str:
        """The value of a quotient, a remainder or a run-time index as i64."""
        known = self._e.lookup((Index(0, ((atom, 1),)), "atom"))
        if known is not None:
            return known
        if isinstance(atom, Indirect):
            value = self._e.value(atom.value)
            text = self._clamped(self._e.ops(1), value, atom.value.dtype, atom.extent, "i64")
        else:
            text = self._quotient(atom)
        return self._e.remember((Index(0, ((atom, 1),)), "atom"), text)

    def _quotient(self, atom: Div | Mod) -> str:
        shift = _shift_to_positive(atom)
        inner, fn = self.scalar(atom.index + shift), self._e.fn
        number = constant_of(inner)
        if isinstance(atom, Mod):
            return str(number % atom.divisor) if number is not None else fn.op(f"urem i64 {inner}, {atom.divisor}")
        if number is not None:
            return str((number - shift) // atom.divisor)
        return fn.affine([(1, fn.op(f"udiv i64 {inner}, {atom.divisor}"))], -(shift // atom.divisor))

    # -- vectors ------------------------------------------------------------------------------------------------------

    def is_small(self, index: Index) -> bool:
        """Whether 32 bits hold it and everything on the way to it."""
        if index not in self._small:
            total = abs(index.constant)
            for atom, c in index.terms:
                if isinstance(atom, (Div, Mod)):
                    total = total if self.is_small(atom.index + _shift_to_positive(atom)) else _LIMIT
                total += abs(c) * max(map(abs, Index(0, ((atom, 1),)).bounds))
            self._small[index] = total < _LIMIT
        return self._small[index]

    def value(self, index: Index, copy: Copy | None) -> str:
        """The value as int64: a scalar, or a vector for `copy`."""
        if copy is None:
            return self.scalar(index)
        if not self.is_small(index):
            return self.lanes(index, copy, "i64")
        return self._e.ops(copy.lanes).element("i32").convert("sext", self.lanes(index, copy, "i32"), "i64")

    def low_word(self, index: Index, copy: Copy | None) -> str:
        """The low 32 bits."""
        if copy is None:
            return self._e.fn.cast("trunc", "i64", self.scalar(index), "i32")
        if self.is_small(index):
            return self.lanes(index, copy, "i32")
        return self._e.ops(copy.lanes).element("i64").convert("trunc", self.lanes(index, copy, "i64"), "i32")

    def lanes(self, index: Index, copy: Copy, element: str) -> str:
        """The value in each lane, as a vector of i32 (if it is small) or i64."""
        known = self._e.lookup((index, copy, element))
        if known is not None:
            return known
        v = self._e.ops(copy.lanes).element(element)
        varying = [(atom, c) for atom, c in index.terms if not isinstance(atom, Axis) and self._atom_varies(atom)]
        rest = Index(index.constant, tuple(term for term in index.terms if term not in varying))
        total = self._ramp(v, rest, copy)
        for atom, c in varying:
            value = self._vector_atom(atom, copy, element)
            total = v.add(total, value if c == 1 else v.mul(value, v.constant(c)))
        return self._e.remember((index, copy, element), total)

    def _ramp(self, v: VectorOps, index: Index, copy: Copy) -> str:
        """start, start + step, ... where only the vector axis varies."""
        assert self._e.frame is not None
        step = index.coefficient(self._e.frame.axis)
        start = self.scalar(index, copy)
        number = constant_of(start)
        if number is not None:
            return v.constants([number + step * lane for lane in range(copy.lanes)])
        narrow = start if v.element == "i64" else self._e.fn.cast("trunc", "i64", start, "i32")
        first = v.broadcast(narrow)
        return first if step == 0 else v.add(first, v.constants([step * lane for lane in range(copy.lanes)]))

    def _atom_varies(self, atom: Any) -> bool:
        frame = self._e.frame
        if frame is None:
            return False
        if isinstance(atom, Indirect):
            return self._e.varies(atom.value)
        return frame.axis in atom.index.axes or any(self._e.varies(value) for value in indirect_values(atom.index))

    def varies(self, index: Index) -> bool:
        """Whether it differs between the lanes of a vector."""
        frame = self._e.frame
        return frame is not None and any(
            atom == frame.axis if isinstance(atom, Axis) else self._atom_varies(atom) for atom, _ in index.terms
        )

    def step(self, index: Index) -> int | None:
        """The difference between neighbouring lanes; None if there is no such number."""
        if any(not isinstance(atom, Axis) and self._atom_varies(atom) for atom, _ in index.terms):
            return None
        return index.coefficient(self._e.frame.axis) if self._e.frame is not None else 0

    def _vector_atom(self, atom: Any, copy: Copy, element: str) -> str:
        ops = self._e.ops(copy.lanes)
        v = ops.element(element)
        if isinstance(atom, Indirect):
            return self._clamped(ops, self._e.vector(atom.value, copy), atom.value.dtype, atom.extent, element)
        shift, divisor = _shift_to_positive(atom), atom.divisor
        inner = self.lanes(atom.index + shift, copy, element)
        power = divisor.bit_length() - 1 if divisor & (divisor - 1) == 0 else None
        if isinstance(atom, Mod):
            return (
                v.binary("urem", inner, v.constant(divisor))
                if power is None
                else v.binary("and", inner, v.constant(divisor - 1))
            )
        quotient = (
            v.binary("udiv", inner, v.constant(divisor))
            if power is None
            else v.binary("lshr", inner, v.constant(power))
        )
        return v.sub(quotient, v.constant(shift // divisor)) if shift else quotient

    @staticmethod
    def _clamped(ops: PointOps, value: str, dtype: DType, extent: int, element: str) -> str:
        """An index that was read, kept inside of [0, extent), as `element`."""
        limit = max(extent - 1, 0)
        if dtype.itemsize < 4:
            value, dtype = ops.cast(value, dtype, int32), int32
        v = ops.of(dtype)
        if is_signed(dtype):
            value = v.maximum_constant(value, 0)
        if limit < (1 << (8 * dtype.itemsize - 1)):
            smaller = v.compare("slt" if is_signed(dtype) else "ult", value, v.constant(limit))
            value = v.select(smaller, value, v.constant(limit))
        return ops.cast(value, dtype, int64 if element == "i64" else int32)

    # -- masks --------------------------------------------------------------------------------------------------------

    def inside(self, mask: Mask, copy: Copy | None) -> str:
        """Whether all conditions hold, as a bool in each lane."""
        scalar, lanes = self.mask(mask, copy)
        v = self._e.ops(copy.lanes if copy else 1).of(bool_)
        if isinstance(scalar, bool):
            return lanes if lanes is not None and scalar else v.constant(scalar)
        wide = v.broadcast(scalar)
        return wide if lanes is None else v.binary("and", wide, lanes)

    def mask(self, mask: Mask, copy: Copy | None) -> tuple[str | bool, str | None]:
        """(the conditions that all lanes share, the ones that differ): an i1 or a known bool; a vector or None."""
        shared: str | bool = True
        lanes: str | None = None
        for condition in mask:
            if copy is not None and self.varies(condition.index):
                one = self._lane_condition(condition, copy)
                lanes = one if lanes is None else self._e.ops(copy.lanes).of(bool_).binary("and", lanes, one)
                continue
            holds = self._condition(condition)
            if isinstance(holds, bool) or isinstance(shared, bool):
                shared = _and_known(shared, holds)
            else:
                shared = self._e.fn.binary("and", "i1", shared, holds)
        return shared, lanes

    def _condition(self, condition: Condition) -> str | bool:
        fn = self._e.fn
        if isinstance(condition, Bound):
            value = self.scalar(condition.index - condition.low)
            width = condition.high - condition.low
            number = constant_of(value)
            return 0 <= number < width if number is not None else fn.compare("ult", "i64", value, max(width, 0))
        value = self.scalar(condition.index)
        number = constant_of(value)
        if number is not None:
            return number % condition.divisor == 0
        return fn.compare("eq", "i64", fn.op(f"srem i64 {value}, {condition.divisor}"), 0)

    def _lane_condition(self, condition: Condition, copy: Copy) -> str:
        index = condition.index - condition.low if isinstance(condition, Bound) else condition.index
        element = "i32" if self.is_small(index) else "i64"
        v, value = self._e.ops(copy.lanes).element(element), self.lanes(index, copy, element)
        if isinstance(condition, Bound):
            return v.compare("ult", value, v.constant(max(condition.high - condition.low, 0)))
        return v.compare("eq", v.binary("srem", value, v.constant(condition.divisor)), v.constant(0))

    @staticmethod
    def values_read(key: Any) -> list[Expr]:
        """The expressions that a remembered index (its key) was computed from."""
        found: list[Expr] = []
        for part in key:
            if isinstance(part, Index):
                found += indirect_values(part)
        return found


def _and_known(a: str | bool, b: str | bool) -> str | bool:
    if isinstance(a, bool):
        return b if a else False
    return a if b else False


def _shift_to_positive(atom: Div | Mod) -> int:
    """A multiple of the divisor that makes the divided index non-negative."""
    low, _ = atom.index.bounds
    return -(low // atom.divisor) * atom.divisor if low < 0 else 0
