"""Python text of index expressions, masks and constants, with no more parentheses than needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fusegraph.dtypes import DType
from fusegraph.ir.index import Atom, Axis, Div, Index, Indirect, Mod
from fusegraph.ir.scalar import Bound, Condition, Mask

# Python's binding strength, loosest first.
TERNARY, OR, AND, NOT, COMPARE, BIT_OR, BIT_XOR, BIT_AND, SHIFT, SUM, PRODUCT, UNARY, ATOM = range(13)


class Text(NamedTuple):
    """Source text, and how strongly its outermost operator binds."""

    source: str
    rank: int

    def at_least(self, rank: int) -> str:
        """The text, in parentheses when it binds more loosely than `rank`."""
        return self.source if self.rank >= rank else f"({self.source})"


LeafName = Callable[[Axis | Indirect], str]


def index_text(index: Index, leaf: LeafName) -> Text:
    """`index` as Python; `leaf` names axes and run-time indices. Axes of extent 1 are left out: they are 0."""
    parts: list[tuple[int, Text]] = []
    for atom, factor in index.terms:
        if not (isinstance(atom, Axis) and atom.extent == 1):
            parts.append((factor, _scaled(_atom_text(atom, leaf), abs(factor))))
    if index.constant or not parts:
        parts.append((index.constant, Text(str(abs(index.constant)), ATOM)))
    parts.sort(key=lambda part: part[0] < 0)  # stable: something positive comes first where there is one
    factor, first = parts[0]
    first = first if factor >= 0 else Text(f"-{first.at_least(ATOM)}", UNARY)
    if len(parts) == 1:
        return first
    rest = "".join(f" {'-' if factor < 0 else '+'} {text.at_least(PRODUCT)}" for factor, text in parts[1:])
    return Text(first.source + rest, SUM)


def _scaled(atom: Text, factor: int) -> Text:
    return atom if factor == 1 else Text(f"{atom.at_least(PRODUCT)} * {factor}", PRODUCT)


def _atom_text(atom: Atom, leaf: LeafName) -> Text:
    if isinstance(atom, Div):
        return Text(f"{index_text(atom.index, leaf).at_least(PRODUCT)} // {atom.divisor}", PRODUCT)
    if isinstance(atom, Mod):
        return Text(f"{index_text(atom.index, leaf).at_least(PRODUCT)} % {atom.divisor}", PRODUCT)
    return Text(leaf(atom), ATOM)


def mask_text(mask: Mask, leaf: LeafName) -> Text:
    """The conditions of `mask`, joined by `and`."""
    parts = [_condition_text(condition, leaf) for condition in _merged(mask)]
    if not parts:
        return Text("True", ATOM)
    return parts[0] if len(parts) == 1 else Text(" and ".join(part.at_least(NOT) for part in parts), AND)


def _merged(mask: Mask) -> list[Condition]:
    """With all bounds of one index in one condition."""
    found: dict[object, Condition] = {}
    for condition in mask:
        if isinstance(condition, Bound):
            known = found.get(condition.index, condition)
            assert isinstance(known, Bound)
            bound = Bound(condition.index, max(known.low, condition.low), min(known.high, condition.high))
            found[condition.index] = bound
        else:
            found[condition] = condition
    return list(found.values())


def _condition_text(condition: Condition, leaf: LeafName) -> Text:
    index = index_text(condition.index, leaf).at_least(BIT_OR)
    if not isinstance(condition, Bound):
        return Text(f"{index_text(condition.index, leaf).at_least(PRODUCT)} % {condition.divisor} == 0", COMPARE)
    low, high = condition.index.bounds
    if low >= condition.low:
        return Text(f"{index} < {condition.high}", COMPARE)
    if high < condition.high:
        return Text(f"{index} >= {condition.low}", COMPARE)
    return Text(f"{condition.low} <= {index} < {condition.high}", COMPARE)


def constant_text(value: Any, dtype: DType) -> Text:
    """A constant of exactly type `dtype`: np.float32(0.5), np.int64(3), True."""
    if dtype.kind == "b":
        return Text(str(bool(value)), ATOM)
    if dtype.kind == "f":
        return Text(f"np.{dtype.name}({_float_digits(float(value), dtype)})", ATOM)
    return Text(f"np.{dtype.name}({int(value)})", ATOM)


def _float_digits(value: float, dtype: DType) -> str:
    if np.isnan(value):
        return "np.nan"
    if np.isinf(value):
        return "np.inf" if value > 0 else "-np.inf"
    return str(dtype.type(value))  # the fewest digits that give the same element


def bare_constant(value: Any) -> str | None:
    """A whole number as a plain literal, for comparisons: exact beside any element type. None for other values."""
    if isinstance(value, bool) or not np.isfinite(value) or value != int(value) or abs(value) >= 2**24:
        return None
    return str(int(value))
