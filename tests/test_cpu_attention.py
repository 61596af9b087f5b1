"""Attention on the CPU: heads one after another, with scores and weights in the threads' workspaces."""

from __future__ import annotations

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph.build import step_code


def _attention(causal=False, mask=None):
    """The context and the gradients of query, key and value."""

    def run(query, key, value, cotangent):
        inputs = [array.detach().requires_grad_() for array in (query, key, value)]
        out = F.scaled_dot_product_attention(*inputs, attn_mask=mask, is_causal=causal)
        return out.detach(), *fg.autograd.grad(out, inputs, cotangent)

    return run


def _arguments(query, key, width, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [query, key, (*key[:-1], width), (*query[:-1], width)]
    return [fg.tensor(rng.standard_normal(shape).astype(dtype)) for shape in shapes]


def _check(function, arguments, exact=False, tolerance=3e-6):
    """Compiled, for any number of threads: the same bits, and close to eager results in float64. Gives the step's code."""
    wanted = [value.numpy() for value in function(*[argument.double() for argument in arguments])]
    before, bits = fg.get_num_threads(), None
    try:
        for threads in (1, 2, 3):
            fg.set_num_threads(threads)
            compiled = fg.compile(function, exact=exact)
            got = [value.numpy().copy() for value in compiled(*arguments)]
            for value, expected in zip(got, wanted, strict=True):
                np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * np.abs(expected).max())
            bits = bits or [value.tobytes() for value in got]
            assert [value.tobytes() for value in got] == bits
    finally:
        fg.set_num_threads(before)
    return step_code(compiled._last.artifact)


@pytest.mark.parametrize(
    ("query", "key", "width", "causal"),
    [
        ((4, 8, 64, 32), (4, 8, 64, 32), 32, True),
        ((8, 2, 65, 24), (8, 2, 65, 24), 24, True),
        ((32, 70, 33), (32, 70, 33), 40, False),
        ((4, 8, 61, 32), (4, 8, 83, 32), 20, False),  # cross attention
        ((4, 8, 61, 32), (4, 8, 83, 32), 20, True),
        ((4, 8, 83, 32), (4, 8, 61, 32), 20, True),
    ],
)
def test_heads_one_after_another(query, key, width, causal):
    code = _check(_attention(causal), _arguments(query, key, width))
    (stretch,) = code.stretches
    scores = int(np.prod(query[:-1])) * key[-2]
    own = [name for name in stretch.own if code.program.buffers[name].size == scores]
    blocks = int(np.prod(query[:-2]))
    assert stretch.blocks == blocks and len(own) >= 3  # scores, weights and their gradients
    assert not any(name in code.memory.arena for name in own)
    assert code.memory.local_bytes >= 4 * len(own) * scores // blocks


@pytest.mark.parametrize("exact", [False, True])
def test_float64_and_exact(exact):
    arguments = _arguments((4, 8, 50, 16), (4, 8, 50, 16), 16, np.float64)
    code = _check(_attention(causal=True), arguments, exact, 1e-14)
    assert code.stretches
    arguments = _arguments((4, 8, 64, 16), (4, 8, 64, 16), 16)
    _check(_attention(causal=True), arguments, exact)


def test_padded():
    """Keys that a mask hides, in some sequences all of them."""
    seen = np.random.default_rng(5).random((16, 1, 1, 72)) < 0.6
    seen[3] = False
    _check(_attention(mask=fg.tensor(seen)), _arguments((16, 2, 40, 32), (16, 2, 72, 32), 32))
    added = np.random.default_rng(6).standard_normal((40, 72)).astype(np.float32)
    _check(_attention(mask=fg.tensor(added)), _arguments((16, 2, 40, 32), (16, 2, 72, 32), 32), tolerance=1e-5)


def test_heads_side_by_side_in_memory():
    """Query, key and value are parts of one product; heads are columns of it, and of the context."""

    def function(x, weight, cotangent):
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        n, length, width = x.shape
        parts = (x @ weight).reshape(n, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        out = seen.transpose(1, 2).reshape(n, length, width)
        return out.detach(), *fg.autograd.grad(out, [x, weight], cotangent)

    rng = np.random.default_rng(2)
    shapes = [(8, 64, 128), (128, 384), (8, 64, 128)]
    arguments = [fg.tensor(0.1 * rng.standard_normal(shape).astype(np.float32)) for shape in shapes]
    code = _check(function, arguments, tolerance=1e-5)
    assert [stretch.blocks for stretch in code.stretches] == [32]
