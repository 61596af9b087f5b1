"""The input gradient of a convolution sums, for each pixel, over the taps that a window inside of the image has there.

Padding the cotangent with zeros would have every pixel sum over all taps: at the edges, where half of them or more lie
outside, that is up to four times the products. A limit says which taps count at a pixel; the sum runs over those alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fusegraph.codegen.cpu.contract_plan import Contraction
from fusegraph.codegen.cpu.irtext import FunctionBuilder
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.scalar import Bound, Condition
from fusegraph.records import dataclass

__all__ = ["Limits", "TapLimit", "share_of_taps", "tap_limits"]


@dataclass(frozen=True)
class TapLimit:
    """low <= place - tap < high: what a tap (an axis of the sum) has to satisfy; `place` is known for a whole tile."""

    tap: Axis
    place: Index
    low: int
    high: int

    @property
    def axes(self) -> frozenset[Axis]:
        """The axes that must stay as they are: the tap's, and those of the place."""
        return self.place.axes | {self.tap}

    @property
    def share(self) -> float:
        """Mean part of the taps that count."""
        first, last = self.place.bounds
        counts = [
            max(0, min(self.tap.extent, p - self.low + 1) - max(0, p - self.high + 1)) for p in range(first, last + 1)
        ]
        return sum(counts) / (len(counts) * self.tap.extent)

    def bounds(self, fn: FunctionBuilder, coordinates: Mapping[Axis, str], rows: int, columns: int) -> tuple[str, str]:
        """First and one past the last tap that counts at a pixel."""
        terms = [(factor, coordinates[atom]) for atom, factor in self.place.terms if isinstance(atom, Axis)]
        first = fn.max_i64("0", fn.affine(terms, self.place.constant - self.high + 1))
        last = fn.min_i64(str(self.tap.extent), fn.affine(terms, self.place.constant - self.low + 1))
        return first, last


Limits = tuple[TapLimit, ...]


def tap_limits(found: Contraction) -> Limits:
    """The mask of the wide operand as limits of taps; none where it is something else."""
    limits = []
    for condition in found.wide.mask:
        limit = _limit(condition, found.sums)
        if limit is None:
            return ()
        limits.append(limit)
    return tuple(limits) if len({limit.tap for limit in limits}) == len(limits) else ()


def share_of_taps(condition: Condition, sums: Iterable[Axis]) -> float:
    """The mean part of the taps of a transposed convolution that satisfy a condition; 1 where it is not one of those."""
    limit = _limit(condition, sums)
    return 1.0 if limit is None else limit.share


def _limit(condition: Condition, sums: Iterable[Axis]) -> TapLimit | None:
    """Only for a transposed convolution (the tap's factor is -1).

    Padding of a forward convolution is a zero that is multiplied by the weight: an infinite weight makes a NaN of it.
    """
    if not isinstance(condition, Bound) or not condition.index.is_affine:
        return None
    taps = [axis for axis in sums if axis in condition.index.axes]
    if len(taps) != 1 or condition.index.coefficient(taps[0]) != -1:
        return None
    return TapLimit(taps[0], condition.index + taps[0], condition.low, condition.high)
