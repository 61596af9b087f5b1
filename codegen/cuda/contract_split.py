"""Split-K: products with few outputs and long sums, cut along the sums so that every multiprocessor has work.

    out[m, n] = f(sum over k of a * b)   ->   parts[p, m, n] = sum over the p-th part of k     the same tiles, P times as many
                                              out[m, n] = f(sum over p of parts[p, m, n])      in the order of p

No atomics: results are the same in every run. The sums are cut where their outermost axis divides evenly.

The model, in clock cycles of a card with SMS multiprocessors of LANES multiplications a cycle each:

    products   outputs of whole tiles x sums / (SMS x LANES x the tile's share of the peak x how much of the card is busy)
    parts      written and read once at BYTES a cycle, and one more launch
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fusegraph.codegen.cuda.contract_plan import SMS, TENSOR_TILES, TILES, Tile, plan_contract, tile_cost
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Loop, Program, Stage, Store
from fusegraph.ir.scalar import acc, load

LANES = 128  # float32 multiply-adds of a multiprocessor in a cycle
TENSOR = 8  # how much faster tensor cores multiply tf32
BYTES = 1800  # a cycle: 3 TB/s at 1.7 GHz
LAUNCH = 3000  # cycles: about 1.7 us inside of a graph
LEAST_SUMS = 64  # of a part: below that a tile's beginning and end outweigh its main loop
LEAST_GAIN = 1.5  # the shares of tiles are estimates


def split_products(program: Program, tensor: bool = False) -> Program:
    """`program` with such products cut in two loops. tensor: products of float32 run on tensor cores."""
    buffers, loops = dict(program.buffers), []
    for loop in program.loops:
        parts = _parts(loop, buffers, tensor)
        loops += _cut(loop, parts, buffers) if parts > 1 else [loop]
    return replace(program, buffers=buffers, loops=tuple(loops))


def choose_parts(sizes: tuple[int, int, int, int], axis: Axis, tensor: bool = False) -> int:
    """Into how many parts the sums of a product (batch, rows, columns, sums) are best cut along `axis`; 1: not at all."""
    batch, rows, columns, sums = sizes
    rate = SMS * LANES * (TENSOR if tensor else 1)
    tiles: Mapping[Tile, float] = TENSOR_TILES if tensor else TILES

    def cycles(parts: int) -> float:
        best = min(tile_cost(tile, tiles[tile], batch * parts, rows, columns) for tile in tiles)
        products = best * (sums / parts) / rate
        return products + (8 * parts * batch * rows * columns / BYTES + LAUNCH if parts > 1 else 0)

    whole = cycles(1)
    best = min(_candidates(axis, batch, sums), key=cycles, default=1)
    return best if whole > LEAST_GAIN * cycles(best) else 1


def _candidates(axis: Axis, batch: int, sums: int) -> list[int]:
    """Numbers of parts that divide the axis; its parts are multiples of four where it is one, for 128-bit access."""
    unit = 4 if axis.extent == sums and axis.extent % 4 == 0 else 1
    most = min(axis.extent // unit, sums // LEAST_SUMS, 65535 // batch)
    return [parts for parts in range(2, most + 1) if axis.extent // unit % parts == 0]


def _parts(loop: Loop, buffers: dict[str, Buffer], tensor: bool) -> int:
    if loop.schedule != "contract" or (plan := plan_contract(loop, buffers, tensor=tensor)) is None:
        return 1
    axis = _outermost(loop)
    return choose_parts(plan.sizes, axis, plan.tensor) if axis is not None else 1


def _outermost(loop: Loop) -> Axis | None:
    """The outermost of the axes that are summed over."""
    return next((axis for axis in loop.stages[0].reduce_axes if axis.extent > 1), None)


def _cut(loop: Loop, parts: int, buffers: dict[str, Buffer]) -> list[Loop]:
    """The loop over the parts, and the one that puts them together; adds the temp between them to `buffers`."""
    old, number = _outermost(loop), len(buffers)
    assert old is not None
    first, (reduce,) = loop.stages[0], loop.stages[0].reduces
    part, inner = Axis(f"piece{number}", parts), Axis(f"inner{number}", old.extent // parts)
    place = {old: Index.of(part) * inner.extent + Index.of(inner)}
    temp = f"{loop.name}_parts"
    while temp in buffers:
        temp += "_"
    buffers[temp] = Buffer(temp, (parts, *(axis.extent for axis in loop.space)), reduce.dtype, "temp")
    at = (Index.of(part), *(Index.of(axis) for axis in loop.space))
    axes = tuple(inner if axis is old else axis for axis in first.reduce_axes)
    products = Stage(reduce_axes=axes, reduces=(replace(reduce, value=reduce.value.substitute(place)),))
    stored = Stage(stores=(Store(temp, at, acc(reduce.name, reduce.dtype)),))
    total = Stage(reduce_axes=(part,), reduces=(replace(reduce, value=load(temp, at, reduce.dtype)),))
    return [
        replace(loop, name=f"{loop.name}_parts", space=(part, *loop.space), stages=(products, stored)),
        replace(loop, stages=(total, *loop.stages[1:]), schedule="nest"),
    ]
