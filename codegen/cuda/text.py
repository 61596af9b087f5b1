"""Text of constants, index expressions and masks in numba-cuda's types.

A bare Python number is 64 bits wide in numba, and a sum of two uint32 is a uint64. So constants carry their type
(`float32(0.5)`), and index arithmetic is done in whatever type comes and wrapped once, `uint32(r * 784 + c)`: the compiler
then keeps to 32 bits. Trap that the order of terms avoids: uint64 + int64 is a float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fusegraph.codegen.python_text import AND, ATOM, BIT_OR, COMPARE, NOT, PRODUCT, SUM, UNARY, Text
from fusegraph.dtypes import DType
from fusegraph.ir.index import Atom, Axis, Div, Index, Indirect, Mod
from fusegraph.ir.scalar import Bound, Condition, Mask

Leaf = Callable[[Axis | Indirect], str]
IsWide = Callable[[Axis], bool]


class IndexPrinter:
    """Prints index expressions. leaf: the variable of an axis or a run-time index; wide: whether an axis's variable is int64."""

    def __init__(self, leaf: Leaf, wide: IsWide) -> None:
        self._leaf, self._wide = leaf, wide

    def bare(self, index: Index) -> Text:
        """The expression without a cast: any integer type."""
        parts = [
            (c, self._scaled(atom, abs(c)), self._is_wide(atom, c)) for atom, c in index.terms if not _is_unit(atom)
        ]
        if index.constant or not parts:
            parts.append((index.constant, Text(str(abs(index.constant)), ATOM), True))
        parts = _ordered(parts)
        factor, first, _ = parts[0]
        first = first if factor >= 0 else Text(f"-{first.at_least(ATOM)}", UNARY)
        if len(parts) == 1:
            return first
        rest = "".join(f" {'-' if c < 0 else '+'} {text.at_least(PRODUCT)}" for c, text, _ in parts[1:])
        return Text(first.source + rest, SUM)

    def narrow(self, index: Index) -> Text:
        """The expression in 32 bits: a plain number, a variable, uint32(...), or int32(...) where it may be negative."""
        text = self.bare(index)
        if text.source.isidentifier() or text.source.isdigit():
            return text
        return Text(f"{'uint32' if index.bounds[0] >= 0 else 'int32'}({text.source})", ATOM)

    def mask(self, mask: Mask) -> Text:
        """The conditions of `mask`, joined by `and`."""
        parts = [self._condition(condition) for condition in _merged(mask)]
        if not parts:
            return Text("True", ATOM)
        return parts[0] if len(parts) == 1 else Text(" and ".join(part.at_least(NOT) for part in parts), AND)

    def _condition(self, condition: Condition) -> Text:
        index = self.narrow(condition.index).at_least(BIT_OR)
        if not isinstance(condition, Bound):
            return Text(f"{index} % {condition.divisor} == 0", COMPARE)
        low, high = condition.index.bounds
        if low >= condition.low:
            return Text(f"{index} < {condition.high}", COMPARE)
        if high < condition.high:
            return Text(f"{index} >= {condition.low}", COMPARE)
        return Text(f"{condition.low} <= {index} < {condition.high}", COMPARE)

    def _is_wide(self, atom: Atom, factor: int) -> bool:
        return abs(factor) != 1 or isinstance(atom, (Div, Mod)) or (isinstance(atom, Axis) and self._wide(atom))

    def _scaled(self, atom: Atom, factor: int) -> Text:
        text = self._atom(atom)
        return text if factor == 1 else Text(f"{text.at_least(PRODUCT)} * {factor}", PRODUCT)

    def _atom(self, atom: Atom) -> Text:
        if not isinstance(atom, (Div, Mod)):
            return Text(self._leaf(atom), ATOM)
        operator = "//" if isinstance(atom, Div) else "%"
        axis = atom.index.axis
        inner = self.bare(atom.index) if axis is not None and not self._wide(axis) else self._divided(atom.index)
        return Text(f"{inner.at_least(PRODUCT)} {operator} {atom.divisor}", PRODUCT)

    def _divided(self, index: Index) -> Text:
        """An operand of // and %: unsigned where it can be, which divides faster."""
        return Text(f"{'uint32' if index.bounds[0] >= 0 else 'int32'}({self.bare(index).source})", ATOM)


Part = tuple[int, Text, bool]


def _ordered(parts: list[Part]) -> list[Part]:
    """Something positive first; and an int64 among the first two, so that a later one does not meet a uint64."""
    parts = sorted(parts, key=lambda part: part[0] < 0)
    if len(parts) < 3 or parts[0][2] or parts[1][2]:
        return parts
    wide = next((part for part in parts[2:] if part[2]), None)
    return parts if wide is None else [parts[0], wide, *(part for part in parts[1:] if part is not wide)]


def _is_unit(atom: Atom) -> bool:
    return isinstance(atom, Axis) and atom.extent == 1


def _merged(mask: Mask) -> list[Condition]:
    """With all bounds of one index in one condition."""
    found: dict[object, Condition] = {}
    for condition in mask:
        known = found.get(condition.index)
        if isinstance(condition, Bound) and isinstance(known, Bound):
            condition = Bound(condition.index, max(known.low, condition.low), min(known.high, condition.high))
        found[condition.index if isinstance(condition, Bound) else condition] = condition
    return list(found.values())


def constant_text(value: Any, dtype: DType) -> Text:
    """A constant of exactly type `dtype`: float32(0.5), int64(3), True."""
    if dtype.kind == "b":
        return Text(str(bool(value)), ATOM)
    if dtype.kind != "f":
        return Text(f"{dtype.name}({int(value)})", ATOM)
    number = float(value)
    if np.isnan(number):
        return Text(f"{dtype.name}(math.nan)", ATOM)
    if np.isinf(number):
        return Text(f"{dtype.name}({'-' if number < 0 else ''}math.inf)", ATOM)
    return Text(f"{dtype.name}({dtype.type(number)!s})", ATOM)
