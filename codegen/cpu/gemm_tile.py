"""The size of a register tile: how many rows of broadcasts times how many vectors a micro-kernel holds."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from fusegraph.records import dataclass

__all__ = ["Split", "Tile", "dot_cost", "dot_tiles", "even_split", "tile_cost", "tiles"]

_KEPT = 4  # tiles that a plan chooses from
_FMA_LATENCY = 4  # cycles; two units, so that eight sums must be in flight
_OPERATIONS_PER_CYCLE = 6  # what the front end delivers


@dataclass(frozen=True)
class Tile:
    """`rows` broadcasts x `vectors` vectors of accumulators."""

    rows: int
    vectors: int


@dataclass(frozen=True)
class Split:
    """`extent` in `count` pieces, the first `large` of size `size`, the others of `size` - 1."""

    extent: int
    count: int
    size: int
    large: int

    def sizes(self) -> Iterator[tuple[int, int, int]]:
        """(first piece, one past the last piece, size) of each size that occurs."""
        if self.large:
            yield 0, self.large, self.size
        if self.large < self.count:
            yield self.large, self.count, self.size - 1

    def start(self, size: int) -> int:
        """Number c such that a piece of this size starts at element size * piece + c."""
        return 0 if size == self.size else self.large


def even_split(extent: int, limit: int) -> Split:
    """As few pieces of at most `limit` as possible, all of the same size but for one."""
    count = -(-extent // limit)
    size = -(-extent // count) if count else limit
    return Split(extent, count, size, extent - (size - 1) * count if count else 0)


@lru_cache(maxsize=1024)
def tiles(rows: int, columns: int, lanes: int, registers: int, most_rows: int = 14) -> tuple[Tile, ...]:
    """The best few tiles that fit the registers (sums, one step's vectors, one broadcast)."""
    vectors = max(1, -(-columns // lanes))
    fitting = [
        Tile(r, v)
        for v in range(1, min(vectors, 8) + 1)
        for r in range(1, min(max(rows, 1), most_rows) + 1)
        if r * v + v + 1 <= registers
    ]
    fitting.sort(key=lambda tile: (tile_cost(tile, rows, vectors), -tile.rows * tile.vectors))
    return tuple(fitting[:_KEPT])


def tile_cost(tile: Tile, rows: int, vectors: int) -> float:
    """Estimated cycles of one step of the sum over a whole rows x vectors output."""
    full, rest = divmod(vectors, tile.vectors)
    split = even_split(rows, tile.rows)
    total = 0.0
    for first, last, size in split.sizes():
        total += (last - first) * (full * _cycles(size, tile.vectors) + (_cycles(size, rest) if rest else 0.0))
    return total


@lru_cache(maxsize=1024)
def dot_tiles(rows: int, columns: int, lanes: int, registers: int) -> tuple[Tile, ...]:
    """The best few tiles of rows x columns dot products that fit; `vectors` of such a tile counts columns."""
    fitting = [
        Tile(r, c)
        for c in range(1, min(columns, lanes) + 1)
        for r in range(1, min(rows, 6) + 1)
        if r * c + (c if r > 1 else 1) + 1 <= registers
    ]
    fitting.sort(key=lambda tile: (dot_cost(tile, rows, columns, lanes), -tile.rows * tile.vectors))
    return tuple(fitting[:_KEPT])


def dot_cost(tile: Tile, rows: int, columns: int, lanes: int, load: float = 1.0) -> tuple[float, float]:
    """Estimated cycles of one vector of steps, and of the sums across lanes at the end, of a rows x columns output.

    `load`: how many loads one load costs (more than one where vectors lie across the lines of the cache).
    """
    full, rest = divmod(columns, tile.vectors)
    step = last = 0.0
    for first, end, size in even_split(rows, tile.rows).sizes():
        for width, count in ((tile.vectors, full), (rest, 1 if rest else 0)):
            step += (end - first) * count * _cycles(size, width, load) if count else 0.0
            last += (end - first) * count * size * 4.0 * lanes / 2
    return step, last


def _cycles(rows: int, vectors: int, load: float = 1.0) -> float:
    """Cycles of one step of k: multiply-adds, loads, front end, and the latency of a chain of sums.

    Loads cost a little even where they are not what limits: they come from the second-level cache now and then.
    """
    products, loads = rows * vectors, rows + vectors
    busy = max(products / 2, load * loads / 2, (products + loads + 3) / _OPERATIONS_PER_CYCLE, _FMA_LATENCY)
    return busy + 0.03 * loads
