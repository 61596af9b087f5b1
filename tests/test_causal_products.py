"""Products under a causal mask: what the mask hides is not summed up, and results stay those of the full product."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph.codegen.cpu.contract import plan_contract
from fusegraph.ir.loops import Program

SIZES = [
    (1, 1, 4, 3),
    (5, 5, 4, 4),
    (17, 17, 8, 5),
    (64, 64, 32, 32),
    (33, 70, 9, 16),
    (70, 33, 16, 7),
    (130, 130, 24, 40),
]


def heads(length: int, keys: int, width: int, out: int, dtype: Any = np.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(length + keys)
    shapes = (2, 3, length, width), (2, 3, keys, width), (2, 3, keys, out), (2, 3, length, out)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def attention_and_gradients(**options: Any) -> Any:
    def loss(q: Any, k: Any, v: Any, cotangent: Any) -> Any:
        out = F.scaled_dot_product_attention(q, k, v, **options)
        return (out * cotangent).sum(), out

    def function(*args: Any) -> Any:
        (_, out), gradients = fg.value_and_grad(loss, (0, 1, 2), has_aux=True)(*args)
        return out, *gradients

    return function


def expected(q: np.ndarray, k: np.ndarray, v: np.ndarray, g: np.ndarray, seen: np.ndarray) -> list[np.ndarray]:
    """Attention and its gradients in float64, from the formulas."""
    q, k, v, g = (a.astype(np.float64) for a in (q, k, v, g))
    scores = np.where(seen, q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    back = weights * (g @ v.swapaxes(-1, -2) - ((weights @ v) * g).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
    return [weights @ v, back @ k, back.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ g]


def plans(program: Program) -> list[str]:
    loops = [loop for loop in program.loops if loop.schedule == "contract"]
    return [str(plan_contract(loop, program, 256)) for loop in loops]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_causal_attention_and_its_gradients(sizes: tuple[int, ...], dtype: Any) -> None:
    args = heads(*sizes, dtype)
    seen = np.arange(sizes[0])[:, None] >= np.arange(sizes[1])
    tolerance = 2e-5 if dtype == np.float32 else 1e-12
    for exact in (False, True):
        step = fg.compile(attention_and_gradients(is_causal=True), exact=exact)
        for got, wanted in zip(step(*map(fg.tensor, args)), expected(*args, seen), strict=True):
            np.testing.assert_allclose(np.asarray(got), wanted, rtol=tolerance, atol=tolerance * 10)


def test_all_products_of_causal_attention_leave_out_what_the_mask_hides() -> None:
    args = list(map(fg.tensor, heads(64, 64, 32, 32)))
    step = fg.compile(attention_and_gradients(is_causal=True))
    step(*args)
    found = plans(step.compiled_for(*args).artifact.fused[0])
    assert sum("mask leaves" in text for text in found) == 6, found


@pytest.mark.parametrize("mask", ["none", "padding", "band", "strict"])
def test_other_masks(mask: str) -> None:
    """No mask, one given as an input, a comparison that is not of positions alone, and one without the diagonal."""
    length = 20
    args = heads(length, length, 8, 8)
    rows, columns = np.arange(length)[:, None], np.arange(length)
    seen = {
        "none": np.ones((length, length), bool),
        "padding": np.broadcast_to(columns < 13, (length, length)),
        "band": abs(rows - columns) <= 3,
        "strict": rows + 1 > columns,
    }[mask]
    given = None if mask == "none" else fg.tensor(seen)
    step = fg.compile(attention_and_gradients(attn_mask=given))
    for got, wanted in zip(step(*map(fg.tensor, args)), expected(*args, seen), strict=True):
        np.testing.assert_allclose(np.asarray(got), wanted, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("offset", [-3, 0, 2, 40])
def test_a_triangular_matrix_times_another(offset: int, turned: bool) -> None:
    """Rows that see nothing, and rows that see all; the triangle on either side of the product, and transposed."""
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((29, 37)), rng.standard_normal((37, 21))

    def product(a: Any, b: Any) -> Any:
        below = fg.arange(29).unsqueeze(1) + offset >= fg.arange(37)
        lower = fg.where(below, fg.exp(a), 0.0)
        return (b.T @ lower.T if turned else lower @ b) + 0.0, lower

    compiled = fg.compile(product)
    got, _ = compiled(fg.tensor(a), fg.tensor(b))
    wanted = np.where(np.arange(29)[:, None] + offset >= np.arange(37), np.exp(a), 0.0) @ b
    np.testing.assert_allclose(np.asarray(got), wanted.T if turned else wanted, rtol=1e-12, atol=1e-12)


def test_a_nan_that_a_row_may_not_see_does_not_reach_rows_far_before_it() -> None:
    q, k, v, _ = heads(64, 64, 32, 32)
    v[:, :, 60] = np.nan
    out = fg.compile(lambda *args: F.scaled_dot_product_attention(*args, is_causal=True))(*map(fg.tensor, (q, k, v)))
    out = np.asarray(out)
    assert np.isnan(out[:, :, 60:]).all()
    assert np.isfinite(out[:, :, :40]).all()


def test_a_nan_that_a_row_sees_reaches_it() -> None:
    q, k, v, _ = heads(64, 64, 32, 32)
    q[:, :, 10] = np.nan
    out = fg.compile(lambda *args: F.scaled_dot_product_attention(*args, is_causal=True))(*map(fg.tensor, (q, k, v)))
    assert np.isnan(np.asarray(out)[:, :, 10]).all()
    assert np.isfinite(np.asarray(out)[:, :, 11:]).all()


def test_two_equal_products_of_which_one_is_masked_do_not_share_code() -> None:
    q, k, v, _ = heads(64, 64, 32, 32)
    w = np.random.default_rng(5).random((2, 3, 64, 64)).astype(np.float32)

    def both(q: Any, k: Any, v: Any, w: Any) -> Any:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True), fg.exp(w) @ v

    args = [fg.tensor(a) for a in (q, k, v, w)]
    for got, wanted in zip(fg.compile(both)(*args), both(*args), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_results_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    args = list(map(fg.tensor, heads(33, 33, 16, 16)))
    before = fg.get_num_threads()
    try:
        fg.set_num_threads(1)
        wanted = fg.compile(attention_and_gradients(is_causal=True))(*args)
        fg.set_num_threads(threads)
        got = fg.compile(attention_and_gradients(is_causal=True))(*args)
    finally:
        fg.set_num_threads(before)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("use", ["masked", "strict", "as well unmasked", "two masks", "divided"])
def test_a_product_that_is_only_read_under_a_mask(use: str) -> None:
    """As the gradient of the weights in attention: multiplied by weights that are 0 outside of the mask, or not chosen."""
    rng = np.random.default_rng(4)
    a, b, c = (rng.standard_normal(shape) for shape in ((70, 20), (20, 90), (70, 90)))

    def function(a: Any, b: Any, c: Any) -> Any:
        below = fg.arange(70).unsqueeze(1) >= fg.arange(90)
        weights = fg.where(below, fg.exp(c), 0.0)
        product = a @ b
        row = (product * weights).sum(1, keepdim=True)
        if use == "strict":
            below = fg.arange(70).unsqueeze(1) > fg.arange(90)
        if use == "two masks":
            below = fg.arange(70).unsqueeze(1) <= fg.arange(90)
        out = fg.where(below, product - row, 0.0)
        if use == "as well unmasked":
            return out, (product * row).sum(0)
        return (out / weights if use == "divided" else out), row

    step = fg.compile(function)
    args = [fg.tensor(value) for value in (a, b, c)]
    for got, wanted in zip(step(*args), function(*args), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), rtol=1e-12, atol=1e-12)
    (plan,) = plans(step.compiled_for(*args).artifact.fused[0])
    assert ("mask leaves" in plan) == (use in ("masked", "divided"))
