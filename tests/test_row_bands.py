"""Row kernels under a causal mask in bands of rows, copies in the order of their sources, choices outside of loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph.build import step_code
from fusegraph.codegen.cpu.nest_order import in_written_order
from fusegraph.codegen.cpu.nest_unswitch import unswitched
from fusegraph.codegen.cpu.row_bands import find_row_bands
from fusegraph.dtypes import float32
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Loop, Program, Stage, Store
from fusegraph.ir.scalar import Bound, const, inside, load, make

BATCH = 40


def _weights(rows: int, columns: int, offset: int) -> Any:
    """scores [.., rows, columns] -> weights of the columns 0 .. row + offset, times values."""

    def run(query: Any, key: Any, value: Any) -> Any:
        seen = fg.arange(rows).unsqueeze(1) + offset >= fg.arange(columns)
        scores = fg.where(seen, query @ key, float("-inf"))
        return F.softmax(scores, -1) @ value

    return run


def _arguments(rows: int, columns: int, dtype: Any = np.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(rows + columns)
    return [rng.standard_normal((BATCH, *shape)).astype(dtype) for shape in ((rows, 16), (16, columns), (columns, 24))]


def _bands(compiled: Any) -> list[Any]:
    program = step_code(compiled._last.artifact).program
    return [bands for bands in (find_row_bands(loop, program) for loop in program.loops) if bands is not None]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("rows", "columns", "offset"),
    [(64, 64, 0), (33, 33, 0), (100, 100, 0), (45, 70, 0), (45, 70, 12), (70, 45, 0), (70, 45, 50), (130, 200, 3)],
)
def test_softmax_in_bands(rows: int, columns: int, offset: int, dtype: Any) -> None:
    function, args = _weights(rows, columns, offset), _arguments(rows, columns, dtype)
    wanted = function(*[fg.tensor(arg.astype(np.float64)) for arg in args]).numpy()
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    before = fg.get_num_threads()
    try:
        for threads in (1, 3):
            fg.set_num_threads(threads)
            compiled = fg.compile(function)
            got = compiled(*map(fg.tensor, args)).numpy()
            np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())
    finally:
        fg.set_num_threads(before)
    (bands,) = _bands(compiled)
    assert (bands.row.extent, bands.offset, bands.outer) == (rows, offset, BATCH)


@pytest.mark.parametrize(
    "why", ["no mask", "an empty row", "few rows", "few elements", "one matrix", "weights are a result", "exact"]
)
def test_rows_that_stay_whole(why: str) -> None:
    rows = 20 if why == "few rows" else 48
    inner = _weights(rows, 48, {"an empty row": -1, "no mask": 100}.get(why, 0))
    args = _arguments(rows, 48)
    if why in ("one matrix", "few elements"):
        args = [arg[0] if why == "one matrix" else arg[:4] for arg in args]

    def function(query: Any, key: Any, value: Any) -> Any:
        if why != "weights are a result":
            return (inner(query, key, value),)
        seen = fg.arange(rows).unsqueeze(1) >= fg.arange(48)
        weights = F.softmax(fg.where(seen, query @ key, float("-inf")), -1)
        return weights, weights @ value

    compiled = fg.compile(function, exact=why == "exact")
    for got, wanted in zip(compiled(*map(fg.tensor, args)), function(*map(fg.tensor, args)), strict=True):
        np.testing.assert_allclose(got.numpy(), wanted.numpy(), rtol=1e-5, atol=1e-5)
    assert why in ("no mask", "exact") or not _bands(compiled)


def test_infinite_and_missing_scores_in_bands() -> None:
    """A row with NaN, one with inf: NaN as without bands. What they may not see does not reach other rows."""
    args = _arguments(64, 64)
    args[0][0, 20] = np.nan
    args[1][1, :, 40] = np.inf
    got = fg.compile(_weights(64, 64, 0))(*map(fg.tensor, args)).numpy()
    with np.errstate(all="ignore"):
        wanted = _weights(64, 64, 0)(*map(fg.tensor, args)).numpy()
    assert np.isnan(got[0, 20]).all() and np.isnan(got[1, 40:]).all()
    np.testing.assert_allclose(got[0, :20], wanted[0, :20], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[1, :40], wanted[1, :40], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[2:], wanted[2:], rtol=1e-4, atol=1e-5)


# -- the order of copies -----------------------------------------------------------------------------------------------

B, H, T, C = Axis("b", 8), Axis("h", 4), Axis("t", 64), Axis("c", 32)
S = Axis("s", 3)
X, Y, Z, W = Axis("x", 8), Axis("y", 64), Axis("z", 4), Axis("w", 32)


def _copied(source: tuple[Index, ...], width: int = 32, space: tuple[Axis, ...] = (X, Y, Z, W)) -> Program:
    """s[b, h, t, c] is written, then copied to d over `space`."""
    shape, last = (8, 4, 64, width), Axis("w", width)
    own = tuple(map(Index.of, (B, H, T, Axis("c", width))))
    space = tuple(last if axis is W else axis for axis in space)
    source = tuple(Index.of(last) if index.axis is W else index for index in source)
    buffers = {
        "a": Buffer("a", shape, float32, "input"),
        "s": Buffer("s", shape, float32, "temp"),
        "d": Buffer("d", (8, 64, 4, width), float32, "output"),
    }
    place = tuple(map(Index.of, (X, Y, Z, last)))
    loops = (
        Loop(
            "k0",
            (B, H, T, Axis("c", width)),
            (Stage((), (), (), (Store("s", own, load("a", own, float32), "store"),)),),
        ),
        Loop("k1", space, (Stage((), (), (), (Store("d", place, load("s", source, float32), "store"),)),)),
    )
    return Program("p", buffers, loops, ("a",), ("d",))


def test_a_copy_is_walked_through_as_its_source_was_written() -> None:
    turned = tuple(map(Index.of, (X, Z, Y, W)))
    assert in_written_order(_copied(turned)).loops[1].space == (X, Z, Y, W)
    plain = _copied(turned, space=(X, Z, Y, W))
    assert in_written_order(plain) is plain
    short = _copied(turned, width=8)  # runs of 32 bytes
    assert in_written_order(short) is short
    halves = _copied((Index.of(X), Index.of(Z), Index.of(Y) * -1 + 63, Index.of(W)))
    assert in_written_order(halves).loops[1].space == (X, Z, Y, W)
    one = _copied((Index.of(X) * -1 + 7, Index.of(Z), Index.of(Y), Index.of(W)))  # no leading axis is plain
    assert in_written_order(one) is one


# -- choices along a short axis ----------------------------------------------------------------------------------------


def _parts(count: int, rows: int = 64) -> Any:
    """The gradient of an array of which each part along an axis was used in another way (or not at all)."""

    def run(x: Any) -> Any:
        x = x.detach().requires_grad_()
        parts = x.reshape(8, rows, count, 32).permute(2, 0, 1, 3)
        loss = parts[0].exp().sum()
        for number in range(1, count - 1):
            loss = loss + (parts[number] * parts[number - 1] * number).sum()
        return fg.autograd.grad(loss, [x])[0]

    return run


@pytest.mark.parametrize(("count", "rows"), [(2, 64), (3, 64), (4, 7), (6, 16)])
@pytest.mark.parametrize("exact", [False, True])
def test_a_gradient_put_together_of_parts(count: int, rows: int, exact: bool) -> None:
    x = np.random.default_rng(count).standard_normal((8, rows, count * 32)).astype(np.float32)
    got = fg.compile(_parts(count, rows), exact=exact)(fg.tensor(x))
    np.testing.assert_allclose(got.numpy(), _parts(count, rows)(fg.tensor(x)).numpy(), rtol=1e-5, atol=1e-6)


def _choice(mask: Bound, space: tuple[Axis, ...] = (X, Y, S, W), store: tuple[Index, ...] | None = None) -> Program:
    """d[x, y, s, w] = (a[x, y, w] where the mask holds, else 0) + (1 where it does not, else 2)."""
    buffers = {"a": Buffer("a", (8, 64, 32), float32, "input"), "d": Buffer("d", (8, 64, 3, 32), float32, "output")}
    loaded = load("a", tuple(map(Index.of, (X, Y, W))), float32, (mask,))
    other = make("where", (inside((mask,)), const(2.0, float32), const(1.0, float32)), float32)
    value = make("add", (loaded, other), float32)
    place = store or tuple(map(Index.of, (X, Y, S, W)))
    loop = Loop("k", space, (Stage((), (), (), (Store("d", place, value, "store"),)),))
    return Program("p", buffers, (loop,), ("a",), ("d",))


def test_choices_are_made_outside_of_a_loop() -> None:
    (loop,) = unswitched(_choice(Bound(Index.of(S), 1, 2))).loops
    assert loop.space == (X, Y, W) and len(loop.stages) == 3
    values = [str(store.value) for stage in loop.stages for store in stage.stores]
    assert values == ["1.0", "add(a[x, y, w], 2.0)", "1.0"]
    assert [stage.stores[0].index[2] for stage in loop.stages] == [Index(0), Index(1), Index(2)]


def test_choices_that_stay_inside() -> None:
    for program in (
        _choice(Bound(Index.of(S) + Y, 1, 2)),  # of two axes
        _choice(Bound(Index.of(Y), 1, 2)),  # of a long one
        _choice(Bound(Index.of(S), 1, 2), space=(X, Y, W, S)),  # neighbours in memory
        _choice(Bound(Index.of(S), 1, 2), store=(*map(Index.of, (X, Y)), Index(0), Index.of(W))),  # to one place
    ):
        assert unswitched(program) is program
