"""Index arithmetic against brute force: every rewrite keeps the value at every point."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusegraph.dtypes import int64
from fusegraph.ir import scalar
from fusegraph.ir.index import Axis, Div, Index, Indirect, Mod, flatten_index, row_strides, unflatten_index
from fusegraph.ir.scalar import Bound, Divides
from fusegraph.passes.groups import invert
from fusegraph.passes.inline import reshaped

AXES = (Axis("a", 2), Axis("b", 3), Axis("c", 4), Axis("d", 6), Axis("e", 1))
VALUE = scalar.load("position", (Index.of(AXES[1]),), int64)
POSITIONS = (5, 0, 3)
Point = dict[Axis, int]
FACTORS = st.sampled_from([-24, -6, -4, -3, -2, -1, 1, 1, 2, 3, 4, 6, 8, 12, 24])
DIVISORS = st.sampled_from([1, 2, 3, 4, 5, 6, 8, 12, 24])


def evaluate(index: Index, point: Point) -> int:
    """The value of `index` at a point, straight from its definition."""
    return index.constant + sum(factor * _atom(atom, point) for atom, factor in index.terms)


def _atom(atom: object, point: Point) -> int:
    if isinstance(atom, Axis):
        return point[atom]
    if isinstance(atom, Indirect):
        (index,) = atom.value.attribute.index
        return min(max(POSITIONS[evaluate(index, point)], 0), atom.extent - 1)
    assert isinstance(atom, (Div, Mod))
    inner = evaluate(atom.index, point)
    return inner // atom.divisor if isinstance(atom, Div) else inner % atom.divisor


def points(axes: tuple[Axis, ...] = AXES) -> list[Point]:
    """Every point of the axes."""
    return [dict(zip(axes, place, strict=True)) for place in itertools.product(*(range(axis.extent) for axis in axes))]


EVERYWHERE = points()

# An expression as a function of a point, beside the Index that the operators made for it.
Pair = tuple[Index, "tuple[int, ...]"]


def _leaf() -> st.SearchStrategy[Pair]:
    axes = st.sampled_from(AXES).map(lambda axis: (Index.of(axis), tuple(p[axis] for p in EVERYWHERE)))
    numbers = st.integers(-30, 30).map(lambda n: (Index(n), (n,) * len(EVERYWHERE)))
    indirect = st.just((Index(0, ((Indirect(VALUE, 6), 1),)), tuple(POSITIONS[p[AXES[1]]] for p in EVERYWHERE)))
    return st.one_of(axes, axes, axes, numbers, indirect)


def _grow(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    return st.one_of(
        st.tuples(inner, inner).map(lambda t: (t[0][0] + t[1][0], tuple(map(lambda x, y: x + y, t[0][1], t[1][1])))),
        st.tuples(inner, inner).map(lambda t: (t[0][0] - t[1][0], tuple(map(lambda x, y: x - y, t[0][1], t[1][1])))),
        st.tuples(inner, FACTORS).map(lambda t: (t[0][0] * t[1], tuple(x * t[1] for x in t[0][1]))),
        st.tuples(inner, DIVISORS).map(lambda t: (t[0][0] // t[1], tuple(x // t[1] for x in t[0][1]))),
        st.tuples(inner, DIVISORS).map(lambda t: (t[0][0] % t[1], tuple(x % t[1] for x in t[0][1]))),
    )


PAIRS = st.recursive(_leaf(), _grow, max_leaves=8)


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_arithmetic_keeps_the_value(pair: Pair) -> None:
    index, values = pair
    assert tuple(evaluate(index, point) for point in EVERYWHERE) == values


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_bounds_hold_and_constants_are_found(pair: Pair) -> None:
    index, values = pair
    low, high = index.bounds
    assert low <= min(values) and max(values) <= high
    if index.is_constant:
        assert set(values) == {index.constant}
    if index.axis is not None:
        assert values == tuple(point[index.axis] for point in EVERYWHERE)


@settings(max_examples=200, deadline=None)
@given(PAIRS, st.dictionaries(st.sampled_from(AXES[:4]), PAIRS, max_size=3))
def test_substitution_is_simultaneous(pair: Pair, mapping: dict[Axis, Pair]) -> None:
    index, _ = pair
    fitted = {axis: new % axis.extent for axis, (new, _) in mapping.items()}
    if any(isinstance(atom, Indirect) for new in fitted.values() for atom, _ in new.terms):
        return  # an indirect value inside of an indirect value: one level is all that there is
    out = index.substitute(fitted)
    for point in EVERYWHERE:
        moved = {axis: evaluate(fitted[axis], point) if axis in fitted else at for axis, at in point.items()}
        assert evaluate(out, point) == evaluate(index, moved)


@settings(max_examples=150, deadline=None)
@given(PAIRS, st.integers(0, 3), st.integers(-8, 8), st.integers(1, 9), st.sampled_from([2, 3, 4]))
def test_conditions_are_dropped_only_where_they_always_hold(
    pair: Pair, _: int, low: int, width: int, divisor: int
) -> None:
    index, values = pair
    mask = (Bound(index, low, low + width), Divides(index, divisor))
    kept = scalar.simplify_mask(mask)
    for point, value in zip(EVERYWHERE, values, strict=True):
        expected = low <= value < low + width and value % divisor == 0
        got = all(
            (c.low <= evaluate(c.index, point) < c.high)
            if isinstance(c, Bound)
            else evaluate(c.index, point) % c.divisor == 0
            for c in kept
        )
        assert got == expected


SHAPES = st.lists(st.sampled_from([1, 1, 2, 3, 4, 5]), max_size=4).map(tuple)


@settings(max_examples=200, deadline=None)
@given(SHAPES)
def test_flatten_and_unflatten_are_inverse(shape: tuple[int, ...]) -> None:
    axes = tuple(Axis(f"i{n}", extent) for n, extent in enumerate(shape))
    index = tuple(map(Index.of, axes))
    flat = flatten_index(index, shape)
    assert unflatten_index(flat, shape) == index
    assert [evaluate(flat, point) for point in points(axes)] == list(range(math.prod(shape)))


def _factorings(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    @st.composite
    def build(draw: st.DrawFn) -> tuple[int, ...]:
        left, out = size, []
        while left > 1:
            part = draw(st.sampled_from([n for n in range(1, left + 1) if left % n == 0]))
            out.append(part)
            left //= part
            if len(out) == 4:
                return (*out, left)
        return tuple(out)

    return build()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([1, 6, 12, 24, 30, 36, 64]).flatmap(
        lambda size: st.tuples(_factorings(size), _factorings(size), _factorings(size))
    )
)
def test_reshapes_of_reshapes_find_the_element(shapes: tuple[tuple[int, ...], ...]) -> None:
    first, middle, last = shapes
    axes = tuple(Axis(f"i{n}", extent) for n, extent in enumerate(last))
    index = reshaped(reshaped(tuple(map(Index.of, axes)), last, middle), middle, first)
    for number, point in enumerate(points(axes)):
        place = [evaluate(part, point) for part in index]
        assert all(0 <= at < extent for at, extent in zip(place, first, strict=True))
        assert sum(at * stride for at, stride in zip(place, row_strides(first), strict=True)) == number


def test_a_reshape_there_and_back_leaves_no_division() -> None:
    axes = tuple(Axis(f"i{n}", extent) for n, extent in enumerate((4, 6, 10)))
    index = tuple(map(Index.of, axes))
    for middle in ((240,), (24, 10), (4, 60), (2, 2, 6, 10), (8, 30), (4, 3, 2, 10), (48, 5)):
        assert reshaped(reshaped(index, (4, 6, 10), middle)[:], middle, (4, 6, 10)) == index, middle


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([6, 12, 24, 36]).flatmap(lambda size: st.tuples(_factorings(size), _factorings(size))), st.randoms()
)
def test_invert_gives_the_axes_back(shapes: tuple[tuple[int, ...], tuple[int, ...]], random: object) -> None:
    """Where it answers, the answer is right: at the producer's element `target`, the consumer's axes are those that read it."""
    shape, extents = shapes
    axes = tuple(Axis(f"y{n}", extent) for n, extent in enumerate(extents))
    order = list(range(len(shape)))
    random.shuffle(order)  # type: ignore[attr-defined]
    permuted = tuple(shape[i] for i in order)
    through = reshaped(tuple(map(Index.of, axes)), extents, permuted)
    index = tuple(through[order.index(i)] for i in range(len(shape)))
    own = tuple(Axis(f"x{n}", extent) for n, extent in enumerate(shape))
    target = tuple(map(Index.of, own))
    found = invert(index, shape, axes, target)
    if found is None:
        mine, theirs = set(row_strides(permuted)), set(row_strides(extents))
        assert not mine <= theirs and not theirs <= mine, "a reshape that splits or joins axes can always be inverted"
        return
    assert set(found) == {axis for axis in axes if axis.extent != 1}
    for point in points(own):
        consumer = {axis: evaluate(found[axis], point) if axis in found else 0 for axis in axes}
        assert all(0 <= at < axis.extent for axis, at in consumer.items())
        assert [evaluate(part, consumer) for part in index] == [point[axis] for axis in own]


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (Index.of(AXES[3]) // 2 * 2 + Index.of(AXES[3]) % 2, "d"),
        ((Index.of(AXES[0]) * 12 + Index.of(AXES[2]) * 3 + Index.of(AXES[1])) // 12, "a"),
        ((Index.of(AXES[0]) * 12 + Index.of(AXES[2]) * 3 + Index.of(AXES[1])) % 3, "b"),
        ((Index.of(AXES[3]) // 2) // 3, "0"),
        (Index.of(AXES[4]), "0"),
    ],
)
def test_normal_forms(index: Index, text: str) -> None:
    assert str(index) == text
