"""Index expressions: whole-number expressions over loop axes, kept in one normal form.

    index = constant + sum of (coefficient * atom)        atom = an axis | index // n | index % n | the value of a scalar

An axis carries its extent, so every expression has known bounds; that is what removes most divisions that reshapes bring in.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakValueDictionary

from fusegraph.records import dataclass

if TYPE_CHECKING:
    from fusegraph.ir.scalar import Expr


class Axis:
    """A loop variable that runs over 0 .. extent - 1. The name is unique within a program.

    rows: 0, or how many points there are for each row of an axis whose extent is known at run time only: then `extent` is the
    most that it can be, and the loop runs over rows * n points. per: how many such points one of this axis stands for (blocks of
    rows, the last one perhaps partly filled): the loop runs over rows * n / per points, rounded up.

    Interned: equal axes are one object, because they are compared and hashed more often than anything else.
    """

    __slots__ = ("name", "extent", "rows", "per", "__weakref__")
    name: str
    extent: int
    rows: int
    per: int

    def __new__(cls, name: str, extent: int, rows: int = 0, per: int = 1) -> Axis:
        found = _axes.get((name, extent, rows, per))
        return found if found is not None else _new_axis(name, extent, rows, per)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"an axis does not change ({name} of {self!r})")

    def __reduce__(self) -> tuple[type[Axis], tuple[str, int, int, int]]:
        return Axis, (self.name, self.extent, self.rows, self.per)

    def __repr__(self) -> str:
        return self.name


_axes: WeakValueDictionary[tuple[str, int, int, int], Axis] = WeakValueDictionary()
_axes_lock = threading.Lock()


def _new_axis(name: str, extent: int, rows: int, per: int) -> Axis:
    with _axes_lock:
        found = _axes.get((name, extent, rows, per))
        if found is None:
            found = object.__new__(Axis)
            object.__setattr__(found, "name", name)
            object.__setattr__(found, "extent", extent)
            object.__setattr__(found, "rows", rows)
            object.__setattr__(found, "per", per)
            _axes[name, extent, rows, per] = found
        return found


@dataclass(frozen=True)
class Div:
    """index // divisor (rounded down)."""

    index: Index
    divisor: int


@dataclass(frozen=True)
class Mod:
    """index % divisor (never negative)."""

    index: Index
    divisor: int


@dataclass(frozen=True, eq=False)
class Indirect:
    """An index that is read at run time: the value of a scalar expression, kept inside of [0, extent) by clamping."""

    value: Expr
    extent: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Indirect) and other.value is self.value and other.extent == self.extent

    def __hash__(self) -> int:
        return hash((id(self.value), self.extent))


Atom = Axis | Div | Mod | Indirect
Substitution = Mapping[Axis, "Index"]


class Index:
    """constant + sum of coefficient * atom, terms sorted, no zero coefficients. Never changed once it is made."""

    __slots__ = ("constant", "terms", "_hash", "_bounds", "_axes")
    constant: int
    terms: tuple[tuple[Atom, int], ...]
    _hash: int | None
    _bounds: tuple[int, int] | None
    _axes: frozenset[Axis] | None

    def __init__(self, constant: int = 0, terms: tuple[tuple[Atom, int], ...] = ()) -> None:
        self.constant, self.terms = constant, terms
        self._hash = self._bounds = self._axes = None

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Index) and self.constant == other.constant and self.terms == other.terms

    def __hash__(self) -> int:
        found = self._hash
        if found is None:
            found = self._hash = hash((self.constant, self.terms))
        return found

    # -- making -------------------------------------------------------------------------------------------------------

    @staticmethod
    def of(value: Index | Axis | int) -> Index:
        """An index from an axis or a number. An axis of extent 1 is 0."""
        if isinstance(value, Index):
            return value
        if isinstance(value, Axis):
            return Index(0, ((value, 1),)) if value.extent != 1 else Index()
        return Index(value)

    @staticmethod
    def from_terms(constant: int, terms: Mapping[Atom, int]) -> Index:
        """The normal form of constant + sum of terms."""
        kept = {atom: c for atom, c in terms.items() if c != 0} if 0 in terms.values() else terms
        if len(kept) < 2:
            return Index(constant, tuple(kept.items()))
        for atom, c in kept.items():
            if type(atom) is Mod and kept.get(quotient := _quotient(atom)) == c * atom.divisor:
                rest = {other: k for other, k in kept.items() if other not in (atom, quotient)}
                return Index.from_terms(constant, rest) + atom.index * c
        return Index(constant, tuple(sorted(kept.items(), key=_term_key)))

    def __add__(self, other: Index | Axis | int) -> Index:
        other = Index.of(other)
        if not other.terms:
            return Index(self.constant + other.constant, self.terms) if other.constant else self
        if not self.terms:
            return Index(self.constant + other.constant, other.terms) if self.constant else other
        terms = dict(self.terms)
        for atom, c in other.terms:
            terms[atom] = terms.get(atom, 0) + c
        return Index.from_terms(self.constant + other.constant, terms)

    def __mul__(self, factor: int) -> Index:
        if factor == 1:
            return self
        if factor == 0:
            return Index()
        return Index(self.constant * factor, tuple([(atom, c * factor) for atom, c in self.terms]))  # in order still

    def __sub__(self, other: Index | Axis | int) -> Index:
        return self + Index.of(other) * -1

    def __floordiv__(self, divisor: int) -> Index:
        """Rounded-down quotient; exact parts leave the division."""
        if divisor == 1:
            return self
        whole, rest = self._split(divisor)
        low, high = rest.bounds
        if low // divisor == high // divisor:
            return whole + low // divisor
        shift = rest.constant // divisor
        rest = Index(rest.constant - shift * divisor, rest.terms)
        if (factored := rest._factored(divisor)) is not None:
            factor, multiple, _ = factored
            return whole + shift + multiple // (divisor // factor)
        if len(rest.terms) == 1 and rest.constant == 0 and rest.terms[0][1] == 1 and isinstance(rest.terms[0][0], Div):
            inner = rest.terms[0][0]
            return whole + shift + inner.index // (inner.divisor * divisor)
        return whole + shift + Index(0, ((Div(rest, divisor), 1),))

    def __mod__(self, divisor: int) -> Index:
        """Remainder in [0, divisor)."""
        if divisor == 1:
            return Index()
        _, rest = self._split(divisor)
        low, high = rest.bounds
        if low // divisor == high // divisor:
            return rest - (low // divisor) * divisor
        rest = Index(rest.constant % divisor, rest.terms)
        if (factored := rest._factored(divisor)) is not None:
            factor, multiple, small = factored
            return (multiple % (divisor // factor)) * factor + small
        return Index(0, ((Mod(rest, divisor), 1),))

    def _factored(self, divisor: int) -> tuple[int, Index, Index] | None:
        """(g, q, r) with self = g * q + r, g > 1 a factor of `divisor`, and 0 <= r < g for certain."""
        for factor in sorted({abs(c) for _, c in self.terms} | {math.gcd(*(c for _, c in self.terms))}, reverse=True):
            if factor > 1 and divisor % factor == 0:
                multiple, small = self._split(factor)
                small, multiple = Index(small.constant % factor, small.terms), multiple + small.constant // factor
                low, high = small.bounds
                if low >= 0 and high < factor:
                    return factor, multiple, small
        return None

    def _split(self, divisor: int) -> tuple[Index, Index]:
        """(q, r) with self = q * divisor + r, every term of q whole."""
        whole, rest = [], []  # in order still
        for atom, c in self.terms:
            if c % divisor == 0:
                whole.append((atom, c // divisor))
            else:
                rest.append((atom, c))
        return Index(0, tuple(whole)), Index(self.constant, tuple(rest))

    # -- asking -------------------------------------------------------------------------------------------------------

    @property
    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest value that it can take (an axis of extent 0 counts as one point)."""
        if self._bounds is not None:
            return self._bounds
        low = high = self.constant
        for atom, c in self.terms:
            a, b = _atom_bounds(atom)
            low += c * a if c > 0 else c * b
            high += c * b if c > 0 else c * a
        self._bounds = low, high
        return self._bounds

    @property
    def is_constant(self) -> bool:
        """Whether it depends on nothing."""
        return not self.terms

    @property
    def axis(self) -> Axis | None:
        """The axis that it is exactly, or None."""
        if self.constant == 0 and len(self.terms) == 1 and self.terms[0][1] == 1 and isinstance(self.terms[0][0], Axis):
            return self.terms[0][0]
        return None

    @property
    def is_affine(self) -> bool:
        """Whether it is a constant plus multiples of axes."""
        return all(isinstance(atom, Axis) for atom, _ in self.terms)

    def coefficient(self, axis: Axis) -> int:
        """The factor of `axis` among the plain terms."""
        for atom, c in self.terms:
            if atom is axis:
                return c
        return 0

    @property
    def axes(self) -> frozenset[Axis]:
        """Every axis that it depends on, also inside of divisions and indirect values."""
        if self._axes is not None:
            return self._axes
        found: set[Axis] = set()
        for atom, _ in self.terms:
            if isinstance(atom, Axis):
                found.add(atom)
            elif isinstance(atom, Indirect):
                found |= atom.value.axes
            else:
                found |= atom.index.axes
        self._axes = frozenset(found)
        return self._axes

    def evaluate(self, values: Mapping[Axis, int]) -> int:
        """Its value where each axis has the given value. Not for indirect indices."""
        total = self.constant
        for atom, c in self.terms:
            if isinstance(atom, Axis):
                total += c * values[atom]
            elif isinstance(atom, (Div, Mod)):
                inner = atom.index.evaluate(values)
                total += c * (inner // atom.divisor if isinstance(atom, Div) else inner % atom.divisor)
            else:
                raise TypeError(f"{self} is known only at run time")
        return total

    # -- changing -----------------------------------------------------------------------------------------------------

    def substitute(self, mapping: Substitution) -> Index:
        """With axes replaced by index expressions (all at once), in normal form again."""
        if self.axes.isdisjoint(mapping):
            return self
        return _sum(self.constant, [(_substitute_atom(atom, mapping), c) for atom, c in self.terms])

    def replace_values(self, new: Mapping[Expr, Expr]) -> Index:
        """With the scalar expressions of its indirect parts replaced."""
        parts = []
        for atom, c in self.terms:
            part = Index(0, ((atom, 1),))
            if isinstance(atom, Indirect):
                part = Index(0, ((Indirect(new[atom.value], atom.extent), 1),))
            elif isinstance(atom, (Div, Mod)):
                inner = atom.index.replace_values(new)
                part = inner // atom.divisor if isinstance(atom, Div) else inner % atom.divisor
            parts.append((part, c))
        return _sum(self.constant, parts)

    def __str__(self) -> str:
        parts = [f"{_atom_text(atom)}" if c == 1 else f"{c}*{_atom_text(atom)}" for atom, c in self.terms]
        if self.constant or not parts:
            parts.append(str(self.constant))
        return " + ".join(parts).replace("+ -", "- ")

    __repr__ = __str__


def _sum(constant: int, parts: Iterable[tuple[Index, int]]) -> Index:
    """constant + sum of factor * index."""
    terms: dict[Atom, int] = {}
    for index, factor in parts:
        constant += factor * index.constant
        for atom, c in index.terms:
            terms[atom] = terms.get(atom, 0) + factor * c
    return Index.from_terms(constant, terms)


def _quotient(atom: Mod) -> Div:
    """The division that belongs to a remainder: divisor * quotient + remainder is the whole index again."""
    terms = atom.index.terms
    if atom.index.constant == 0 and len(terms) == 1 and terms[0][1] == 1 and isinstance(terms[0][0], Div):
        inner = terms[0][0]
        return Div(inner.index, inner.divisor * atom.divisor)
    return Div(atom.index, atom.divisor)


def _term_key(term: tuple[Atom, int]) -> tuple[int, str]:
    atom, c = term
    return -abs(c), atom.name if type(atom) is Axis else _atom_text(atom)


def _atom_text(atom: Atom) -> str:
    if isinstance(atom, Axis):
        return atom.name
    if isinstance(atom, Indirect):
        return f"[{atom.value}]"
    symbol = "//" if isinstance(atom, Div) else "%"
    return f"(({atom.index}) {symbol} {atom.divisor})"


def _atom_bounds(atom: Atom) -> tuple[int, int]:
    if isinstance(atom, Axis):
        return 0, max(atom.extent - 1, 0)
    if isinstance(atom, Indirect):
        return 0, max(atom.extent - 1, 0)
    low, high = atom.index.bounds
    if isinstance(atom, Div):
        return low // atom.divisor, high // atom.divisor
    return 0, atom.divisor - 1


def _substitute_atom(atom: Atom, mapping: Substitution) -> Index:
    if isinstance(atom, Axis):
        found = mapping.get(atom)
        return Index.of(atom) if found is None else found
    if isinstance(atom, Div):
        return atom.index.substitute(mapping) // atom.divisor
    if isinstance(atom, Mod):
        return atom.index.substitute(mapping) % atom.divisor
    return Index(0, ((Indirect(atom.value.substitute(mapping), atom.extent), 1),))


def row_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Elements between neighbours along each axis, in C order."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def flatten_index(index: Sequence[Index], shape: Sequence[int]) -> Index:
    """The element's number in C order."""
    return _sum(0, zip(index, row_strides(shape), strict=True))


def unflatten_index(flat: Index, shape: Sequence[int]) -> tuple[Index, ...]:
    """The coordinates of element number `flat` in C order."""
    parts = []
    for axis, stride in enumerate(row_strides(shape)):
        part = flat // stride if stride > 0 else Index()
        parts.append(part % shape[axis] if axis and shape[axis] > 0 else part)
    return tuple(parts)
