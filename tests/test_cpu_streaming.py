"""Stores past the caches: only where aligned, never of what is read again, and with the same results."""

from __future__ import annotations

import re

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph.build import step_code
from fusegraph.codegen.cpu.body import Copy
from fusegraph.codegen.cpu.nest_stream import alignment
from fusegraph.ir.index import Axis, Index

ROW, COLUMN = Axis("i", 64), Axis("j", 512)


def _copy(offset: int = 0, lanes: int = 8, count: int | None = None, base: str | None = "%j") -> Copy:
    return Copy(base, offset, lanes, lanes if count is None else count)


@pytest.mark.parametrize(
    ("index", "copy", "itemsize", "expected"),
    [
        (Index.of(ROW) * 512 + Index.of(COLUMN), _copy(), 4, 32),
        (Index.of(ROW) * 512 + Index.of(COLUMN), _copy(8), 4, 32),
        (Index.of(ROW) * 512 + Index.of(COLUMN), _copy(16, 16), 4, 64),
        (Index.of(ROW) * 8 + Index.of(COLUMN), _copy(16, 16), 4, None),  # rows of half a line
        (Index.of(ROW) * 511 + Index.of(COLUMN), _copy(), 4, None),
        (Index.of(ROW) * 512 + Index.of(COLUMN) + 1, _copy(), 4, None),
        (Index.of(ROW) * 512 + Index.of(COLUMN) + 16, _copy(), 4, 32),
        (Index.of(ROW) * 512 + Index.of(COLUMN) * 2, _copy(), 4, None),
        (Index.of(ROW) * 512 + Index.of(COLUMN), _copy(count=5), 4, None),
        (Index.of(ROW) * 512 + Index.of(COLUMN), _copy(4, base=None), 4, None),
        (Index.of(ROW) * 512 + Index.of(COLUMN), _copy(4, 4), 8, 32),
        (Index.of(ROW) * 512 + Index.of(COLUMN), _copy(), 1, None),  # 8 bytes
    ],
)
def test_alignment_of_a_vector(index, copy, itemsize, expected):
    assert alignment(index, COLUMN, copy, itemsize) == expected


def _streamed(compiled) -> int:
    return len(re.findall("!nontemporal", step_code(compiled._last.artifact).text))


CASES = {
    "a chain": (lambda x: (x * 2.0 + 1.0).tanh(), (2048, 1024), True),
    "softmax": (lambda x: F.softmax(x, 1), (1500, 1000), True),
    "rows that do not start at lines": (lambda x: F.softmax(x, 1), (1201, 1001), False),
    "a number of elements that is odd": (lambda x: x * 2.0 + 1.0, (1201, 1003), True),
    "two results": (lambda x: (x.exp(), x * 3.0), (1100, 1024), True),
    "columns": (lambda x: x - x.mean(0, keepdim=True), (1100, 1024), True),
    "a transpose": (lambda x: (x.T * 2.0).contiguous(), (1100, 1024), None),
    "a small result": (lambda x: x * 2.0, (64, 64), False),
    "a result that is read again": (lambda x: ((y := x * 2.0), y @ y.T), (1024, 1100), None),
}


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("what", CASES)
def test_results_are_those_of_eager_code(what, threads):
    function, shape, streamed = CASES[what]
    x = fg.tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    compiled = fg.compile(function)
    before = fg.get_num_threads()
    fg.set_num_threads(threads)
    try:
        results = compiled(x)
    finally:
        fg.set_num_threads(before)
    expected = function(x)
    pairs = zip(results, expected, strict=True) if isinstance(results, tuple) else [(results, expected)]
    for got, wanted in pairs:
        np.testing.assert_allclose(got.numpy(), wanted.numpy(), rtol=2e-5, atol=2e-5 * float(abs(wanted).max().item()))
    if streamed is not None:
        assert (_streamed(compiled) > 0) is streamed


def test_double_precision_and_flags():
    x = fg.tensor(np.random.default_rng(0).standard_normal((1024, 1024)))
    compiled = fg.compile(lambda x: (x * 2.0, x > 0.0))
    doubled, positive = compiled(x)
    assert np.array_equal(doubled.numpy(), 2 * x.numpy())
    assert np.array_equal(positive.numpy(), x.numpy() > 0)
    assert _streamed(compiled) > 0


def test_profile_gives_the_code_memory_as_it_needs_it():
    """Stores past the caches to memory that starts anywhere would end the process."""
    compiled = fg.compile(lambda x: x * 2.0 + 1.0)
    x = fg.ones(2048, 1024)
    for _ in range(3):
        assert "GB/s" in str(compiled.profile(x, steps=3))
    assert _streamed(compiled) > 0
