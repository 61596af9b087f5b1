"""Functions of `fusegraph.functional` beside torch.nn.functional's, and what only fusegraph has beside plain numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from tests.layer_cases import FUNCTIONS
from tests.oracles import Array, Traced, assert_close, check_gradients, same_as_torch

Op = Callable[..., Any]
DTYPES = ["float32", "float64"]


@pytest.fixture
def TF() -> Any:
    """torch.nn.functional."""
    return pytest.importorskip(
        "torch.nn.functional", reason="torch is not installed: its results are what these are compared with"
    )


def compare(function: Op, TF: Any, arrays: list[Array]) -> None:
    # torch's hardsigmoid multiplies gradients by the float32 nearest to 1/6, whatever the type.
    tolerance = 1e-7 if function is ACTIVATIONS["hardsigmoid"] and arrays[0].dtype == np.float64 else None
    same_as_torch(lambda *xs: function(F, *xs), lambda *xs: function(TF, *xs), arrays, tolerance)


ACTIVATIONS: dict[str, Op] = {
    **{case.name.replace(" ", "_"): case.function for case in FUNCTIONS if case.group == "activation"},
    "elu_default": lambda m, x: m.elu(x),
    "dropout_all": lambda m, x: m.dropout(x, 1.0, training=True),
    "normalize": lambda m, x: m.normalize(x, dim=-1),
    "normalize_1": lambda m, x: m.normalize(x, p=1.0, dim=0),
}


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, dtype: str, TF: Any, rng: np.random.Generator) -> None:
    for shape in ((7,), (3, 5), (2, 3, 9), (1, 1), (0, 4), (4, 0)):
        x = rng.uniform(-8, 8, shape).astype(dtype)
        compare(ACTIVATIONS[name], TF, [x])
        compare(ACTIVATIONS[name], TF, [x[..., ::-1]])
    compare(ACTIVATIONS[name], TF, [np.asfortranarray(rng.uniform(-3, 3, (4, 6)).astype(dtype))])


@pytest.mark.torch
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_at_special_points(name: str, TF: Any) -> None:
    """Values for infinities and NaN; values and gradients at the points where pieces meet, and far out."""
    import torch

    nan, inf = math.nan, math.inf
    x = np.array([nan, inf, -inf, 0.0, -0.0, 1e-40, 3e38, -3e38])
    if "softm" in name or "normalize" in name:
        x = np.array([[nan, 1, 2], [inf, 1, 2], [-inf, 1, 2], [-inf, -inf, -inf], [0, 0, 0], [1e4, -1e4, 0]])
    if name != "dropout_all":
        ours, theirs = ACTIVATIONS[name](F, fg.tensor(x)), ACTIVATIONS[name](TF, torch.tensor(x))
        if name in (
            "hardswish",
            "mish",
            "silu",
            "gelu",
            "gelu_tanh",
        ):  # x * f(x) at -inf: 0 or NaN by how it is written
            keep = np.isfinite(x)
            ours, theirs = ours[np.flatnonzero(keep)], theirs[torch.tensor(keep)]
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-10, atol=1e-300, err_msg=name)
    points = np.array([-1000.0, -30.0, -1.0, 0.0, 1.0, 6.0, 20.0, 25.0, 1000.0])
    if name == "hardswish":
        points = points[points != 3.0]
    compare(ACTIVATIONS[name], TF, [points])


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if "dropout" not in n])
def test_second_derivatives(name: str, rng: np.random.Generator) -> None:
    check_gradients(lambda x: ACTIVATIONS[name](F, x), [rng.uniform(-2.5, 2.5, (3, 4))], tolerance=2e-6)


# -- linear maps and lookups ---


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4), (1, 1, 4)], ids=str)
def test_linear(shape: Any, dtype: str, TF: Any, rng: np.random.Generator) -> None:
    x, w, b = (rng.uniform(-1, 1, s).astype(dtype) for s in (shape, (5, 4), (5,)))
    compare(lambda m, x, w, b: m.linear(x, w, b), TF, [x, w, b])
    compare(lambda m, x, w: m.linear(x, w), TF, [x, w])
    compare(
        lambda m, x, y, w, b: m.bilinear(x, y, w, b), TF, [x, x * 2, rng.uniform(-1, 1, (5, 4, 4)).astype(dtype), b]
    )


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(dtype: str, TF: Any, rng: np.random.Generator) -> None:
    table = rng.uniform(-1, 1, (9, 4)).astype(dtype)
    for ids in (rng.integers(0, 9, (2, 7)), np.array(3), np.zeros((0,), np.int64), np.array([5, 5, 5, 0], np.int32)):
        compare(lambda m, i, w: m.embedding(i, w), TF, [ids, table])
        compare(lambda m, i, w: m.embedding(i, w, padding_idx=-4), TF, [ids, table])
        compare(lambda m, i, w: (m.embedding if m is TF else F.embedding_one_hot)(i, w), TF, [ids, table])
    compare(lambda m, i: m.one_hot(i, 9), TF, [rng.integers(0, 9, (3, 2))])
    compare(lambda m, i: m.one_hot(i), TF, [np.array([0, 4, 2])])


# -- convolution and pooling ---

CONVS: list[tuple[Any, Any, dict[str, Any]]] = [
    ((2, 3, 7, 8), (4, 3, 3, 3), {}),
    ((2, 3, 7, 8), (4, 3, 3, 3), {"padding": 1, "stride": 2}),
    ((1, 4, 8, 6), (6, 2, 3, 2), {"groups": 2, "padding": (2, 1)}),
    ((2, 4, 6, 5), (4, 1, 3, 3), {"groups": 4, "padding": "same"}),
    ((1, 2, 9, 9), (3, 2, 2, 4), {"padding": "same"}),
    ((1, 2, 9, 9), (3, 2, 3, 3), {"dilation": (2, 3)}),
    ((3, 1, 1, 1), (2, 1, 1, 1), {}),
    ((2, 5, 5), (3, 2, 3, 3), {"padding": "valid"}),
    ((0, 3, 5, 5), (4, 3, 3, 3), {"padding": 1}),
]


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CONVS, ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_conv2d(case: Any, dtype: str, TF: Any, rng: np.random.Generator) -> None:
    shape, kernel, options = case
    x, w, b = (rng.uniform(-1, 1, s).astype(dtype) for s in (shape, kernel, kernel[:1]))
    compare(lambda m, x, w, b: m.conv2d(x, w, b, **options), TF, [x, w, b])
    compare(lambda m, x, w: m.conv2d(x, w, **options), TF, [x[..., ::-1], np.asfortranarray(w)])


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 3}, {"dilation": 3}, {"groups": 2}, {"padding": "same"}], ids=str
)
def test_conv1d(options: Any, dtype: str, TF: Any, rng: np.random.Generator) -> None:
    for shape in ((2, 4, 17), (4, 17), (1, 4, 9)):
        x, w, b = (rng.uniform(-1, 1, s).astype(dtype) for s in (shape, (6, 4 // options.get("groups", 1), 3), (6,)))
        compare(lambda m, x, w, b: m.conv1d(x, w, b, **options), TF, [x, w, b])


POOLS: dict[str, tuple[Any, Op]] = {
    "max": ((2, 3, 8, 9), lambda m, x: m.max_pool2d(x, 2)),
    "max_overlap": ((2, 3, 8, 9), lambda m, x: m.max_pool2d(x, 3, stride=2, padding=1)),
    "max_dilated": ((2, 3, 9, 9), lambda m, x: m.max_pool2d(x, (2, 3), stride=(1, 2), dilation=2)),
    "max_ceil": ((1, 2, 7, 8), lambda m, x: m.max_pool2d(x, 3, 2, 1, ceil_mode=True)),
    "max_no_batch": ((3, 8, 8), lambda m, x: m.max_pool2d(x, 4)),
    "max_1d": ((2, 3, 11), lambda m, x: m.max_pool1d(x, 3, 2, 1)),
    "max_1d_all": ((2, 3, 11), lambda m, x: m.max_pool1d(x, 11)),
    "avg": ((2, 3, 8, 9), lambda m, x: m.avg_pool2d(x, 2)),
    "avg_pad": ((2, 3, 8, 9), lambda m, x: m.avg_pool2d(x, 3, 2, 1)),
    "avg_no_pad": ((2, 3, 8, 9), lambda m, x: m.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    "avg_ceil": ((1, 2, 7, 8), lambda m, x: m.avg_pool2d(x, 3, 2, 1, ceil_mode=True)),
    "avg_ceil_no_pad": ((1, 2, 7, 8), lambda m, x: m.avg_pool2d(x, 3, 2, 1, True, False)),
    "avg_divisor": ((1, 2, 6, 6), lambda m, x: m.avg_pool2d(x, 2, divisor_override=3)),
    "avg_1d": ((2, 3, 11), lambda m, x: m.avg_pool1d(x, 3, 2, 1)),
    "avg_1d_no_pad": ((2, 3, 11), lambda m, x: m.avg_pool1d(x, 4, 3, 2, count_include_pad=False)),
    "adaptive_avg": ((2, 3, 8, 9), lambda m, x: m.adaptive_avg_pool2d(x, (4, 3))),
    "adaptive_avg_uneven": ((2, 3, 8, 9), lambda m, x: m.adaptive_avg_pool2d(x, (3, 5))),
    "adaptive_avg_keep": ((2, 3, 8, 9), lambda m, x: m.adaptive_avg_pool2d(x, (None, 2))),
    "adaptive_avg_all": ((2, 3, 8, 9), lambda m, x: m.adaptive_avg_pool2d(x, 1)),
    "adaptive_avg_more": ((1, 1, 3, 2), lambda m, x: m.adaptive_avg_pool2d(x, (5, 4))),
    "adaptive_avg_1d": ((2, 3, 10), lambda m, x: m.adaptive_avg_pool1d(x, 4)),
    "adaptive_max": ((2, 3, 8, 9), lambda m, x: m.adaptive_max_pool2d(x, (3, 5))),
    "adaptive_max_1d": ((2, 3, 10), lambda m, x: m.adaptive_max_pool1d(x, 4)),
}


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", POOLS)
def test_pooling(name: str, dtype: str, TF: Any, rng: np.random.Generator) -> None:
    shape, function = POOLS[name]
    x = rng.uniform(-1, 1, shape).astype(dtype)
    compare(function, TF, [x])
    compare(function, TF, [x[..., ::-1]])
    if "max" in name:  # equal ones: the first (row by row) takes the gradient
        compare(function, TF, [rng.integers(0, 2, shape).astype(dtype)])
        x.reshape(-1)[3] = math.nan
        import torch

        np.testing.assert_array_equal(
            np.isnan(function(F, fg.tensor(x)).numpy()), np.isnan(function(TF, torch.tensor(x)).numpy())
        )
    else:  # NaN reaches only the bins that it is in
        x.reshape(-1)[3] = math.nan
        compare_values(function, TF, x)


def compare_values(function: Op, TF: Any, x: Array) -> None:
    import torch

    np.testing.assert_allclose(
        function(F, fg.tensor(x)).numpy(), function(TF, torch.tensor(x)).numpy(), rtol=2e-5, atol=1e-6
    )


# -- losses ---

REDUCTIONS = ["mean", "sum", "none"]


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(5, 7), (7,), (3, 7, 4), (2, 7, 2, 3), (1, 1)], ids=str)
def test_label_losses(shape: Any, reduction: str, dtype: str, TF: Any, rng: np.random.Generator) -> None:
    x = rng.uniform(-3, 3, shape).astype(dtype)
    classes = shape[0] if len(shape) == 1 else shape[1]
    places = () if len(shape) == 1 else (shape[0], *shape[2:])
    label, weight = rng.integers(0, classes, places), rng.uniform(0.5, 2, classes).astype(dtype)
    ignored = np.where(rng.random(places) < 0.3, -100, label) if math.prod(places) > 1 else label
    for y in (label, ignored):
        compare(lambda m, x, y: m.nll_loss(x, y, reduction=reduction), TF, [x, y])
        compare(lambda m, x, y, w: m.nll_loss(x, y, w.detach(), reduction=reduction), TF, [x, y, weight])
        compare(lambda m, x, y: m.cross_entropy(x, y, reduction=reduction), TF, [x, y])
        compare(
            lambda m, x, y, w: m.cross_entropy(x, y, w.detach(), reduction=reduction, label_smoothing=0.2),
            TF,
            [x, y, weight],
        )
    compare(lambda m, x, y: m.cross_entropy(x, y, ignore_index=0, reduction=reduction), TF, [x, label])
    soft = rng.dirichlet(np.ones(classes), places).astype(dtype)
    soft = np.moveaxis(soft, -1, 1) if len(shape) > 1 else soft
    compare(
        lambda m, x, y, w: m.cross_entropy(x, y.detach(), w.detach(), reduction=reduction, label_smoothing=0.1),
        TF,
        [x, soft, weight],
    )
    compare(lambda m, x, y: m.cross_entropy(x, y, reduction=reduction), TF, [x, soft])


@pytest.mark.torch
def test_label_types_and_extremes(TF: Any) -> None:
    import torch

    x = np.array([[1e4, -1e4, 0.0], [-math.inf, 0.0, 1.0], [1.0, 2.0, 3.0]])
    for kind in (np.uint8, np.int32, np.int64):
        y = np.array([0, 2, 1]).astype(kind)
        assert (
            abs(
                F.cross_entropy(x, y).item()
                - TF.cross_entropy(torch.tensor(x), torch.tensor(y.astype(np.int64))).item()
            )
            < 1e-12
        )
    everything_ignored = np.full(3, -100)
    assert math.isnan(F.cross_entropy(x, everything_ignored).item())
    compare(
        lambda m, x, y: m.cross_entropy(x, y), TF, [x, np.array([0, 2, 1])]
    )  # gradients of -inf scores are 0, not NaN


PAIR_LOSSES: dict[str, Op] = {
    "mse": lambda m, x, y, r: m.mse_loss(x, y, reduction=r),
    "l1": lambda m, x, y, r: m.l1_loss(x, y, reduction=r),
    "huber": lambda m, x, y, r: m.huber_loss(x, y, reduction=r, delta=0.7),
    "smooth_l1": lambda m, x, y, r: m.smooth_l1_loss(x, y, reduction=r, beta=0.4),
    "smooth_l1_0": lambda m, x, y, r: m.smooth_l1_loss(x, y, reduction=r, beta=0.0),
    "bce_logits": lambda m, x, y, r: m.binary_cross_entropy_with_logits(x * 5, y.detach().sigmoid(), reduction=r),
    "bce": lambda m, x, y, r: m.binary_cross_entropy(x.sigmoid(), y.detach().sigmoid(), reduction=r),
    "kl": lambda m, x, y, r: m.kl_div(x.log_softmax(-1), y.detach().softmax(-1), reduction=r),
    "kl_log": lambda m, x, y, r: m.kl_div(x.log_softmax(-1), y.log_softmax(-1), reduction=r, log_target=True),
}


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.filterwarnings("ignore:reduction. 'mean':UserWarning")
def test_pair_losses(name: str, dtype: str, TF: Any, rng: np.random.Generator) -> None:
    for reduction in [*REDUCTIONS, *(["batchmean"] if name.startswith("kl") else [])]:
        for shape in ((3, 5), (1, 1), (2, 3, 4)):
            x, y = (rng.uniform(-1, 1, shape).astype(dtype) for _ in range(2))
            compare(lambda m, x, y, r=reduction: PAIR_LOSSES[name](m, x, y, r), TF, [x, y])


@pytest.mark.torch
def test_binary_losses_at_the_ends(TF: Any) -> None:
    ends = np.array([-1000.0, -30.0, 0.0, 30.0, 1000.0])
    target = np.array([0.0, 1.0, 0.5, 1.0, 0.0])
    compare(lambda m, x, y: m.binary_cross_entropy_with_logits(x, y.detach(), reduction="none"), TF, [ends, target])
    weights, positive = np.array([1.0, 2.0, 0.5, 1.0, 3.0]), np.array([2.0])
    compare(
        lambda m, x, y, w, p: m.binary_cross_entropy_with_logits(x, y.detach(), w.detach(), pos_weight=p.detach()),
        TF,
        [ends, target, weights, positive],
    )
    import torch

    probabilities = np.array([0.0, 1.0, 0.25, 1.0, 0.0])
    np.testing.assert_allclose(
        F.binary_cross_entropy(probabilities, target, reduction="none").numpy(),
        TF.binary_cross_entropy(torch.tensor(probabilities), torch.tensor(target), reduction="none").numpy(),
    )


# -- normalisation ---


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 6), (3, 6, 5), (2, 6, 3, 4)], ids=str)
def test_normalisation(shape: tuple[int, ...], dtype: str, TF: Any, rng: np.random.Generator) -> None:
    x = rng.uniform(-2, 2, shape).astype(dtype)
    w, b, last = (rng.uniform(0.5, 1.5, n).astype(dtype) for n in (6, 6, shape[1:]))
    mean, var = rng.uniform(-1, 1, 6).astype(dtype), rng.uniform(0.5, 2, 6).astype(dtype)
    compare(lambda m, x, w, b: m.batch_norm(x, None, None, w, b, training=True), TF, [x, w, b])
    compare(lambda m, x, w, b, mu, v: m.batch_norm(x, mu.detach(), v.detach(), w, b), TF, [x, w, b, mean, var])
    compare(lambda m, x, w: m.layer_norm(x, shape[1:], w, w * 2), TF, [x, last])
    compare(lambda m, x: m.layer_norm(x, shape[-1:]), TF, [x])
    compare(lambda m, x, w: m.rms_norm(x, shape[1:], w), TF, [x, last])
    compare(lambda m, x: m.rms_norm(x, shape[-1:], eps=1e-3), TF, [x])
    compare(lambda m, x, w, b: m.group_norm(x, 2, w, b), TF, [x, w, b])
    compare(lambda m, x, y: m.cosine_similarity(x, y, dim=-1), TF, [x, x[::-1] + 1])
    compare(lambda m, x, y: m.pairwise_distance(x, y), TF, [x, x[::-1] + 1])
    compare(lambda m, x: m.normalize(x, dim=1), TF, [np.zeros((2, 3), dtype)])


@pytest.mark.torch
def test_running_statistics(TF: Any, rng: np.random.Generator) -> None:
    import torch

    mean, var, x = np.zeros(4), np.ones(4), rng.uniform(-1, 1, (5, 4, 3))
    ours, theirs = [fg.tensor(mean), fg.tensor(var)], [torch.tensor(mean), torch.tensor(var)]
    for _ in range(3):
        F.batch_norm(x, *ours, training=True, momentum=0.3)
        TF.batch_norm(torch.tensor(x), *theirs, training=True, momentum=0.3)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=1e-12)


# -- attention, sequences, dropout ---


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention(dtype: str, TF: Any, rng: np.random.Generator) -> None:
    for batch in ((), (2,), (2, 3)):
        q, k, v = (rng.uniform(-1, 1, (*batch, *s)).astype(dtype) for s in ((5, 4), (5, 4), (5, 6)))
        mask = rng.random((5, 5)) < 0.6
        mask[2] = False  # a row that may look at nothing
        bias = rng.uniform(-1, 1, (5, 5)).astype(dtype)
        compare(lambda m, q, k, v: m.scaled_dot_product_attention(q, k, v), TF, [q, k, v])
        compare(lambda m, q, k, v: m.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3), TF, [q, k, v])
        compare(lambda m, q, k, v, a: m.scaled_dot_product_attention(q, k, v, attn_mask=a), TF, [q, k, v, mask])
        compare(lambda m, q, k, v, a: m.scaled_dot_product_attention(q, k, v, attn_mask=a), TF, [q, k, v, bias])


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_mean_and_max(dtype: str, rng: np.random.Generator) -> None:
    x = rng.uniform(-1, 1, (3, 5, 2)).astype(dtype)
    lengths = np.array([3, 0, 5])
    mask = np.arange(5) < lengths[:, None]
    x[~mask] = math.nan  # padding must not matter, whatever it holds
    mean = np.stack([row[:n].mean(0) if n else np.zeros(2) for row, n in zip(x, lengths, strict=True)])
    largest = np.stack([row[:n].max(0) if n else np.zeros(2) for row, n in zip(x, lengths, strict=True)])
    for given in (mask, lengths, mask[:, :, None], lengths.astype(np.int32)):
        for function, expected in ((F.masked_mean, mean), (F.masked_max, largest)):
            leaf = fg.tensor(x, requires_grad=True)
            out = function(leaf, given, 1)
            assert_close(out.detach().numpy(), expected, 1e-6)
            out.sum().backward()
            grad = leaf.grad.numpy()
            assert np.isfinite(grad).all() and (grad[~mask] == 0).all()
            counts = 2.0 * (lengths > 0) if function is F.masked_max else np.where(lengths > 0, 2.0, 0.0)
            np.testing.assert_allclose(grad.sum((1, 2)), counts, rtol=1e-5)
    everything = np.ones((1, 5, 1), bool)
    assert_close(F.masked_mean(np.nan_to_num(x), everything, -2).numpy(), np.nan_to_num(x).mean(1), 1e-6)


def test_dropout_is_counter_based() -> None:
    x = fg.ones(2000)
    first, second = F.dropout(x, 0.3).numpy(), F.dropout(x, 0.3).numpy()
    assert not (first == second).all()
    fg.manual_seed(0)
    np.testing.assert_array_equal(F.dropout(x, 0.3).numpy(), first)
    assert set(np.unique(first)) == {0.0, np.float32(1 / 0.7)}
    assert abs((first == 0).mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2000)
    leaf = fg.ones(2000).requires_grad_()
    out = F.dropout(leaf, 0.3)
    out.sum().backward()
    np.testing.assert_array_equal(leaf.grad.numpy(), out.detach().numpy())


def test_dropout_traced_continues_the_stream() -> None:
    x = fg.ones((50,))
    traced = Traced(lambda x: F.dropout(x, 0.5) + 10 * F.dropout(x, 0.5), [x])
    eager = [F.dropout(x, 0.5) + 10 * F.dropout(x, 0.5) for _ in range(3)]
    fg.manual_seed(0)
    for expected in eager:
        np.testing.assert_array_equal(traced(x)[0], expected.numpy())


def test_random_numbers_are_what_they_say(rng: np.random.Generator) -> None:
    count = 40000
    uniform, normal = fg.rand(count).numpy(), fg.randn(count).numpy()
    assert uniform.min() >= 0 and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 4 / math.sqrt(12 * count)
    assert abs(normal.mean()) < 4 / math.sqrt(count) and abs(normal.var() - 1) < 4 * math.sqrt(2 / count)
    assert np.isfinite(normal).all()
    whole = fg.randint(-2, 3, (count,)).numpy()
    np.testing.assert_allclose(np.bincount(whole + 2) / count, 0.2, atol=4 * math.sqrt(0.16 / count))
    assert sorted(fg.randperm(50).tolist()) == list(range(50))
    drawn = fg.multinomial(fg.tensor([1.0, 0.0, 3.0]), 20000, replacement=True).numpy()
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 20000, [0.25, 0, 0.75], atol=0.013)
    assert sorted(fg.multinomial(fg.tensor([1.0, 0.0, 3.0, 2.0]), 3).tolist()) == [0, 2, 3]
