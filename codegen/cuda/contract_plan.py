"""How a contraction (matrix product, convolution) runs on a GPU: the roles of its axes, and the tiles.

    rows      axes of the space in the left operand only     batch   in both, or in neither
    columns   in the right operand only                      sums    the reduce axes

The right operand is the one that holds the axis of neighbours in the output. Each block of threads makes a tile of
`rows x columns`; it goes through the sums in steps of `depth`, for which both operands' parts are copied to shared memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fusegraph.codegen.cuda.nest_plan import LANE, LIMIT, VECTOR, extent, flat, is_quad
from fusegraph.errors import UnsupportedError
from fusegraph.ir.index import Axis, Index, unflatten_index
from fusegraph.ir.loops import Buffer, Loop
from fusegraph.ir.scalar import Expr, walk

SMS = 132  # of an H100; only the balance between large tiles and many blocks depends on it
FILL = SMS * 512  # threads that hide latencies


@dataclass(frozen=True)
class Tile:
    """A block's tile: rows x columns outputs, `tall` x `wide` of them a thread, sums in steps of `depth`."""

    rows: int
    columns: int
    depth: int
    tall: int
    wide: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return (self.rows // self.tall) * (self.columns // self.wide)


# A thread's outputs share what it reads from shared memory. `share` is about what part of the peak that leaves.
TILES = {
    Tile(128, 128, 8, 8, 8): 1.0,
    Tile(64, 64, 16, 4, 4): 0.6,
    Tile(32, 128, 8, 4, 4): 0.55,
    Tile(128, 32, 8, 4, 4): 0.55,
    Tile(32, 32, 16, 4, 1): 0.35,
    Tile(8, 128, 8, 4, 1): 0.3,
    Tile(64, 16, 16, 4, 1): 0.3,
    Tile(16, 16, 16, 1, 1): 0.15,
}
# On tensor cores, a warp makes pieces of 16 x 8, two rows and two columns of each a thread.
TENSOR_TILES = {
    Tile(128, 128, 16, 8, 8): 1.0,
    Tile(64, 64, 16, 4, 8): 0.6,
    Tile(32, 128, 16, 4, 4): 0.5,
    Tile(128, 32, 16, 4, 4): 0.5,
    Tile(32, 32, 16, 2, 4): 0.35,
}
READABLE = Tile(16, 16, 16, 1, 1)


@dataclass(frozen=True)
class Factor:
    """One factor of the product. along: "sums" or "outer", the direction in which neighbours lie in memory; vector: 4 or 1."""

    value: Expr
    outer: tuple[Axis, ...]
    along: str
    vector: int


@dataclass(frozen=True)
class ContractPlan:
    """A contraction's roles and its tile. vector: 4 where outputs are written by 128 bits; tensor: on tensor cores."""

    loop: Loop
    left: Factor
    right: Factor
    batch: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    sums: tuple[Axis, ...]
    tile: Tile
    vector: int
    tensor: bool = False

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """batch, rows, columns, sums: how many."""
        return extent(self.batch), extent(self.rows), extent(self.columns), extent(self.sums)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks along columns, rows, batch."""
        batch, rows, columns, _ = self.sizes
        return -(-columns // self.tile.columns), -(-rows // self.tile.rows), batch


def plan_contract(
    loop: Loop, buffers: dict[str, Buffer], readable: bool = False, tensor: bool = False
) -> ContractPlan | None:
    """How `loop` runs in tiles; None where it is no product of two factors, or a product with a vector (a nest does better).

    tensor: on tensor cores, where its type is float32.
    """
    factors = _factors(loop)
    if factors is None or any(axis.extent == 0 for axis in (*loop.space, *loop.stages[0].reduce_axes)):
        return None
    for name in (*loop.reads(), *loop.writes()):
        if buffers[name].size > LIMIT:
            raise UnsupportedError(
                f"kernel {loop.name}: {name!r} has {buffers[name].size} elements; CUDA kernels index with 32 bits"
            )
    left, right = _ordered(loop, factors, buffers)
    rows = tuple(a for a in loop.space if a in _axes(left) and a not in _axes(right))
    columns = tuple(a for a in loop.space if a in _axes(right) and a not in _axes(left))
    batch = tuple(a for a in loop.space if a not in rows and a not in columns)
    sums = loop.stages[0].reduce_axes
    sizes = extent(batch), extent(rows), extent(columns), extent(sums)
    if not readable and (min(sizes[1:3]) < 2 or sizes[1] * sizes[2] < 16) or sizes[0] > 65535:
        return None
    tensor = tensor and not readable and loop.stages[0].reduces[0].dtype.name == "float32"
    tile = READABLE if readable else choose_tile(*sizes, TENSOR_TILES) if tensor else choose_tile(*sizes)
    return ContractPlan(
        loop, _factor(left, rows, sums, buffers), _factor(right, columns, sums, buffers), batch, rows, columns, sums, tile,
        _output_vector(loop, columns, buffers) if tile.wide % VECTOR == 0 and not tensor else 1, tensor,
    )  # fmt: skip


def choose_tile(
    batch: int, rows: int, columns: int, sums: int, tiles: Mapping[Tile, float] = MappingProxyType(TILES)
) -> Tile:
    """The tile with the least work, padding and idle multiprocessors counted."""

    return min(tiles, key=lambda tile: tile_cost(tile, tiles[tile], batch, rows, columns))


def tile_cost(tile: Tile, share: float, batch: int, rows: int, columns: int) -> float:
    """Outputs, those in padding too, over the part of the card that multiplies; share: the tile's part of the peak."""
    blocks = -(-rows // tile.rows) * -(-columns // tile.columns) * batch
    return blocks * tile.rows * tile.columns / (share * min(1.0, blocks * tile.threads / FILL))


def _factors(loop: Loop) -> tuple[Expr, Expr] | None:
    """The two factors of the sum that begins a contraction; the stages behind it only store, point by point."""
    if not loop.stages or len(loop.stages[0].reduces) != 1:
        return None
    reduce = loop.stages[0].reduces[0]
    plain = all(not s.axes and not s.reduces and all(t.mode == "store" for t in s.stores) for s in loop.stages[1:])
    if (
        reduce.op != "sum"
        or reduce.dtype.kind != "f"
        or reduce.value.op != "mul"
        or reduce.value.dtype != reduce.dtype
        or not plain
    ):
        return None
    first, second = reduce.value.args
    return (first, second) if first is not second else None


def _axes(value: Expr) -> frozenset[Axis]:
    """The axes that a factor depends on, also through its masks."""
    return value.axes


def _ordered(loop: Loop, factors: tuple[Expr, Expr], buffers: dict[str, Buffer]) -> tuple[Expr, Expr]:
    """(left, right): columns run through neighbours in the output."""
    first, second = factors
    stores = [store for stage in loop.stages for store in stage.stores]
    for axis in reversed(loop.space):
        if any(flat(store.buffer, store.index, buffers).coefficient(axis) == 1 for store in stores):
            if axis in _axes(first) and axis not in _axes(second):
                return second, first
            if axis in _axes(second) and axis not in _axes(first):
                return first, second
    return first, second


def _factor(value: Expr, outer: tuple[Axis, ...], sums: tuple[Axis, ...], buffers: dict[str, Buffer]) -> Factor:
    """How a factor's part of a tile is read: by which neighbours, and whether four at once."""
    loads = [e for e in walk([value]) if e.op == "load"]
    for along, axes in (("sums", sums), ("outer", outer)):
        if extent(axes) % VECTOR == 0 and all(_is_quad_along(load, axes, buffers) for load in loads) and loads:
            return Factor(value, outer, along, VECTOR)
    along = "outer" if any(_is_contiguous(load, outer, buffers) for load in loads) else "sums"
    return Factor(value, outer, along, 1)


def _is_quad_along(load: Expr, axes: tuple[Axis, ...], buffers: dict[str, Buffer]) -> bool:
    group = Axis("group", max(extent(axes) // VECTOR, 1))
    number = Index.of(group) * VECTOR + Index.of(LANE)
    places = dict(zip(axes, unflatten_index(number, [a.extent for a in axes]), strict=True))
    index = flat(load.attribute.buffer, load.attribute.index, buffers).substitute(places)
    return not load.attribute.mask and is_quad(index)


def _is_contiguous(load: Expr, axes: tuple[Axis, ...], buffers: dict[str, Buffer]) -> bool:
    long = [axis for axis in axes if axis.extent > 1]
    return bool(long) and flat(load.attribute.buffer, load.attribute.index, buffers).coefficient(long[-1]) == 1


def _output_vector(loop: Loop, columns: tuple[Axis, ...], buffers: dict[str, Buffer]) -> int:
    if extent(columns) % VECTOR:
        return 1
    group = Axis("group", extent(columns) // VECTOR)
    number = Index.of(group) * VECTOR + Index.of(LANE)
    places = dict(zip(columns, unflatten_index(number, [a.extent for a in columns]), strict=True))
    stores = [store for stage in loop.stages for store in stage.stores]
    return VECTOR if all(is_quad(flat(s.buffer, s.index, buffers).substitute(places)) for s in stores) else 1
