"""Aligned memory and the placement of buffers, against a brute-force check and the lower bound."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusegraph.errors import OptionError
from fusegraph.runtime.memory import Arena, Interval, aligned_empty, max_live, plan_offsets

intervals = st.lists(
    st.builds(
        lambda size, first, length: Interval(size, first, first + length),
        st.one_of(st.integers(0, 300), st.integers(0, 100_000)),
        st.integers(0, 30),
        st.one_of(st.integers(0, 3), st.integers(0, 40)),
    ),
    max_size=40,
)


def overlapping(items, offsets):
    """Pairs that are alive at one step and share a byte, by looking at every pair."""
    pairs = []
    for i, a in enumerate(items):
        for j, b in enumerate(items[:i]):
            in_time = a.first <= b.last and b.first <= a.last
            in_space = offsets[i] < offsets[j] + b.size and offsets[j] < offsets[i] + a.size
            if in_time and in_space and a.size and b.size:
                pairs.append((j, i))
    return pairs


def brute_max_live(items, align):
    last = max((item.last for item in items), default=-1)
    return max(
        (sum(-(-i.size // align) * align for i in items if i.first <= step <= i.last) for step in range(last + 1)),
        default=0,
    )


@settings(max_examples=300, deadline=None)
@given(intervals, st.sampled_from([1, 8, 64, 4096]))
def test_placement_is_legal_aligned_and_not_below_the_bound(items, align):
    offsets, peak = plan_offsets(items, align)
    assert overlapping(items, offsets) == []
    assert all(offset >= 0 and offset % align == 0 for offset in offsets)
    assert all(offset + item.size <= peak for offset, item in zip(offsets, items, strict=True))
    assert max_live(items, align) == brute_max_live(items, align)
    assert peak >= max_live(items, align)
    assert plan_offsets(items, align) == (offsets, peak)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(intervals)
def test_peak_stays_near_the_bound(items):
    assert plan_offsets(items)[1] <= 1.5 * max_live(items)


def test_typical_training_steps_reach_the_bound_or_almost():
    """Activations live from forward to backward, gradients are short: what a network's step looks like."""
    rng = np.random.default_rng(0)
    ratios = []
    for layers in range(2, 60):
        sizes = [int(size) for size in rng.integers(100, 200_000, layers)]
        items = [Interval(size, k, 2 * layers - 1 - k) for k, size in enumerate(sizes)]
        items += [Interval(size, 2 * layers - 1 - k, 2 * layers - k) for k, size in enumerate(sizes)]
        ratios.append(plan_offsets(items)[1] / max_live(items))
    assert max(ratios) <= 1.15
    assert float(np.median(ratios)) <= 1.02


def test_a_chain_reuses_two_places():
    items = [Interval(1024, k, k + 1) for k in range(50)]
    assert plan_offsets(items)[1] == 2048


def test_an_interval_ends_inclusively():
    together = [Interval(64, 0, 1), Interval(64, 1, 2)]
    apart = [Interval(64, 0, 1), Interval(64, 2, 3)]
    assert plan_offsets(together)[1] == 128
    assert plan_offsets(apart)[1] == 64


def test_nothing_to_place():
    assert plan_offsets([]) == ([], 0)
    assert plan_offsets([Interval(0, 0, 5), Interval(0, 0, 5)]) == ([0, 0], 0)


@pytest.mark.parametrize("item", [Interval(-1, 0, 1), Interval(8, 3, 2)])
def test_an_impossible_interval_is_named(item):
    with pytest.raises(OptionError, match="interval 1"):
        plan_offsets([Interval(8, 0, 0), item])


@given(st.sampled_from([1, 16, 64, 256, 4096]), st.lists(st.integers(0, 9), max_size=4), st.sampled_from("fdbil?"))
def test_aligned_empty(align, shape, kind):
    array = aligned_empty(shape, kind, align)
    assert array.ctypes.data % align == 0 or array.size == 0
    assert array.shape == tuple(shape) and array.dtype == np.dtype(kind)
    assert array.flags.c_contiguous and array.flags.writeable
    array.fill(1)
    assert (array == 1).all()


def test_aligned_empty_takes_an_int_and_refuses_nonsense():
    assert aligned_empty(7, np.float32).shape == (7,)
    with pytest.raises(OptionError, match="power of two"):
        aligned_empty(7, np.float32, align=48)
    with pytest.raises(OptionError, match="shape"):
        aligned_empty((2, -1), np.float32)
    with pytest.raises(OptionError, match="object"):
        aligned_empty((2,), object)


@pytest.mark.parametrize(("nbytes", "align"), [(0, 64), (1, 64), (1000, 64), (1 << 20, 4096), ((1 << 22) + 5, 4096)])
def test_arena_is_zeroed_and_aligned(nbytes, align):
    arena = Arena(nbytes)
    assert arena.address % align == 0 and arena.nbytes == nbytes
    view = arena.view(0, (nbytes,), np.uint8)
    assert view.shape == (nbytes,) and not view.any()


def test_arena_views_share_its_bytes_and_keep_it_alive():
    arena = Arena(4096)
    view = arena.view(64, (4, 8), np.float32)
    assert view.ctypes.data == arena.address + 64
    view[:] = 3
    again = arena.view(64, (32,), np.float32)
    del arena, view
    gc.collect()
    assert (again == 3).all()
    with pytest.raises(OptionError, match="outside"):
        Arena(100).view(64, (10,), np.float32)
    with pytest.raises(OptionError, match="size"):
        Arena(-1)
