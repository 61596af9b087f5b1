"""Operators beside torch's: values, dtypes and gradients, in float32 and float64, for awkward shapes and memory
layouts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
from tests.oracles import Array, assert_close, leaves, same_as_torch

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="torch is not installed: its results are what these are compared with")

# Both libraries have these under the same names, so one function serves both: it is given the module and the inputs.
Op = Callable[..., Any]

UNARY: dict[str, tuple[Op, float, float]] = {  # function, range of inputs
    "abs": (lambda m, x: m.abs(x), -2, 2),
    "neg": (lambda m, x: -x, -2, 2),
    "sign": (lambda m, x: m.sign(x), -2, 2),
    "exp": (lambda m, x: m.exp(x), -4, 4),
    "expm1": (lambda m, x: m.expm1(x), -2, 2),
    "exp2": (lambda m, x: m.exp2(x), -4, 4),
    "log": (lambda m, x: m.log(x), 0.1, 3),
    "log1p": (lambda m, x: m.log1p(x), -0.9, 3),
    "log2": (lambda m, x: m.log2(x), 0.1, 3),
    "log10": (lambda m, x: m.log10(x), 0.1, 3),
    "sqrt": (lambda m, x: m.sqrt(x), 0.1, 3),
    "rsqrt": (lambda m, x: m.rsqrt(x), 0.1, 3),
    "square": (lambda m, x: m.square(x), -2, 2),
    "reciprocal": (lambda m, x: m.reciprocal(x), 0.3, 2),
    "sin": (lambda m, x: m.sin(x), -4, 4),
    "cos": (lambda m, x: m.cos(x), -4, 4),
    "tan": (lambda m, x: m.tan(x), -1, 1),
    "sinh": (lambda m, x: m.sinh(x), -3, 3),
    "cosh": (lambda m, x: m.cosh(x), -3, 3),
    "tanh": (lambda m, x: m.tanh(x), -3, 3),
    "sigmoid": (lambda m, x: m.sigmoid(x), -5, 5),
    "erf": (lambda m, x: m.erf(x), -3, 3),
    "erfc": (lambda m, x: m.erfc(x), -1, 1),
    "relu": (lambda m, x: m.relu(x), -2, 2),
    "floor": (lambda m, x: m.floor(x), -3, 3),
    "ceil": (lambda m, x: m.ceil(x), -3, 3),
    "round": (lambda m, x: m.round(x), -3, 3),
    "trunc": (lambda m, x: m.trunc(x), -3, 3),
    "frac": (lambda m, x: m.frac(x), -3, 3),
    "clamp": (lambda m, x: m.clamp(x, -0.5, 0.7), -2, 2),
    "clamp_min": (lambda m, x: x.clamp(min=0.1), -2, 2),
    "pow_3": (lambda m, x: x**3, -2, 2),
    "pow_2.5": (lambda m, x: x**2.5, 0.1, 2),
    "pow_-2": (lambda m, x: x**-2, 0.3, 2),
    "pow_0": (lambda m, x: x**0, -2, 2),
    "rpow": (lambda m, x: 2.0**x, -2, 2),
    "rsub": (lambda m, x: 1 - x, -2, 2),
    "rdiv": (lambda m, x: 1.5 / x, 0.3, 2),
    "remainder": (lambda m, x: m.remainder(x, 0.7), -2, 2),
    "fmod": (lambda m, x: m.fmod(x, 0.7), -2, 2),
    "logit": (lambda m, x: m.logit(x), 0.05, 0.95),
    "nan_to_num": (lambda m, x: m.nan_to_num(x), -2, 2),
    "clone": (lambda m, x: x.clone(), -2, 2),
    "isnan": (lambda m, x: m.isnan(x), -2, 2),
    "logical_not": (lambda m, x: m.logical_not(x), -2, 2),
    "cumsum": (lambda m, x: m.cumsum(x, -1) if x.ndim else x * 1, -2, 2),
    "cumprod": (lambda m, x: m.cumprod(x, -1) if x.ndim else x * 1, 0.5, 2),
    "sum": (lambda m, x: x.sum(), -2, 2),
    "mean": (lambda m, x: x.mean() if x.numel() else x.sum(), -2, 2),
    "prod": (lambda m, x: x.prod(), 0.5, 1.5),
    "flatten": (lambda m, x: x.flatten(), -2, 2),
    "norm": (lambda m, x: x.norm(), 0.1, 2),
    "logsumexp": (lambda m, x: m.logsumexp(x, -1) if x.ndim and x.shape[-1] else x * 1, -3, 3),
    "softmax": (lambda m, x: x.softmax(-1) if x.ndim else x * 1, -3, 3),
    "log_softmax": (lambda m, x: x.log_softmax(-1) if x.ndim else x * 1, -3, 3),
}

SHAPES: list[tuple[int, ...]] = [(), (1,), (7,), (3, 5), (1, 1), (0,), (3, 0, 2), (2, 3, 9)]


def layouts(x: Array) -> list[Array]:
    """The same shape in other memory layouts: contiguous, transposed, every second element, backwards."""
    found = [x]
    if x.ndim > 1:
        found.append(np.ascontiguousarray(x.T).T)
    if x.ndim:
        wide = np.repeat(x, 2, -1)
        found += [wide[..., ::2], x[..., ::-1]]
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str, dtype: str, rng: np.random.Generator) -> None:
    function, low, high = UNARY[name]
    for shape in SHAPES:
        for x in layouts(rng.uniform(low, high, shape).astype(dtype)):
            same_as_torch(lambda v: function(fg, v), lambda v: function(torch, v), [x])


BINARY: dict[str, tuple[Op, float, float]] = {
    "add": (lambda m, a, b: a + b, -2, 2),
    "sub": (lambda m, a, b: a - b, -2, 2),
    "mul": (lambda m, a, b: a * b, -2, 2),
    "div": (lambda m, a, b: a / b, 0.3, 2),
    "pow": (lambda m, a, b: a**b, 0.3, 2),
    "maximum": (lambda m, a, b: m.maximum(a, b), -2, 2),
    "minimum": (lambda m, a, b: m.minimum(a, b), -2, 2),
    "where": (lambda m, a, b: m.where(a > 0, a, b), -2, 2),
    "logaddexp": (lambda m, a, b: m.logaddexp(a, b), -5, 5),
    "lerp": (lambda m, a, b: m.lerp(a, b, 0.3), -2, 2),
    "xlogy": (lambda m, a, b: m.xlogy(a, b), 0.1, 2),
    "eq": (lambda m, a, b: a == b, -2, 2),
    "le": (lambda m, a, b: a <= b, -2, 2),
    "clamp_tensor": (lambda m, a, b: m.clamp(a, b, b + 0.5), -2, 2),
    "floor_divide": (lambda m, a, b: a.detach() // b.detach(), 0.3, 2),
    "remainder": (lambda m, a, b: a % b, 0.3, 2),
    "isclose": (lambda m, a, b: m.isclose(a, b), -2, 2),
    "logical_and": (lambda m, a, b: m.logical_and(a > 0, b > 0), -2, 2),
    "addcmul": (lambda m, a, b: m.addcmul(a, a, b, value=0.5), -2, 2),
    "addcdiv": (lambda m, a, b: m.addcdiv(a, a, b, value=0.5), 0.3, 2),
}
PAIRS = [
    ((), ()),
    ((3, 5), (3, 5)),
    ((3, 5), (5,)),
    ((3, 1), (1, 5)),
    ((2, 1, 4), (3, 1)),
    ((), (2, 3)),
    ((0, 3), (1, 3)),
    ((1,), (7,)),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", BINARY)
def test_binary_broadcasts(name: str, dtype: str, rng: np.random.Generator) -> None:
    function, low, high = BINARY[name]
    for first, second in PAIRS:
        if name in ("addcmul", "addcdiv", "lerp") and first != np.broadcast_shapes(first, second):
            first = np.broadcast_shapes(first, second)
        a, b = (rng.uniform(low, high, shape).astype(dtype) for shape in (first, second))
        for x in layouts(a):
            same_as_torch(lambda v, w: function(fg, v, w), lambda v, w: function(torch, v, w), [x, b])


REDUCE: dict[str, Op] = {
    "sum": lambda m, x, d, k: x.sum(d, k),
    "mean": lambda m, x, d, k: x.mean(d, k),
    "amax": lambda m, x, d, k: x.amax(d, k),
    "amin": lambda m, x, d, k: x.amin(d, k),
    "var": lambda m, x, d, k: x.var(d, correction=1, keepdim=k),
    "std": lambda m, x, d, k: x.std(d, correction=0, keepdim=k),
    "logsumexp": lambda m, x, d, k: m.logsumexp(x, d, k),
    "norm2": lambda m, x, d, k: x.norm(2, d, k),
    "norm1": lambda m, x, d, k: x.norm(1, d, k),
    "norm3": lambda m, x, d, k: x.norm(3, d, k),
    "norm_inf": lambda m, x, d, k: x.norm(math.inf, d, k),
    "any": lambda m, x, d, k: (x > 1).any(d, k),
    "all": lambda m, x, d, k: (x > -1).all(d, k),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", REDUCE)
def test_reductions(name: str, dtype: str, rng: np.random.Generator) -> None:
    function = REDUCE[name]
    for shape, dims in (
        ((7,), 0),
        ((3, 5), 0),
        ((3, 5), -1),
        ((3, 5), (0, 1)),
        ((2, 3, 9), (0, -1)),
        ((2, 3, 9), 1),
        ((1, 17), 1),
        ((33, 40), -2),
    ):
        for keep in (False, True):
            for x in layouts(rng.uniform(-2, 2, shape).astype(dtype)):
                ours, theirs = (partial(_reduced, function, m, dims, keep) for m in (fg, torch))
                same_as_torch(ours, theirs, [x])


@pytest.mark.parametrize("name", ["max", "min", "argmax", "argmin", "prod", "sort", "median", "cumsum"])
def test_single_axis(name: str, rng: np.random.Generator) -> None:
    for shape, dim in (((7,), 0), ((3, 5), 0), ((3, 5), -1), ((2, 3, 9), 1), ((4, 1), 1)):
        x = rng.permutation(math.prod(shape)).reshape(shape) / 7.0  # all different
        function = partial(_along, name, dim)
        same_as_torch(function, function, [x])
        ties = rng.integers(0, 3, shape).astype("float32")
        if name in ("max", "min", "argmax", "argmin"):
            assert_close(_as_tuple(getattr(fg.tensor(ties), name)(dim))[-1].numpy(), _first_extreme(ties, name, dim), 0)


def _reduced(function: Op, m: Any, dims: Any, keep: bool, x: Any) -> Any:
    return function(m, x, dims, keep)


def _along(name: str, dim: int, x: Any) -> tuple[Any, ...]:
    return _as_tuple(getattr(x, name)(dim))


def _as_tuple(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, tuple) else (result,)


def _first_extreme(x: Array, name: str, dim: int) -> Array:
    return np.argmax(x, dim) if name.endswith("max") else np.argmin(x, dim)


VIEWS: dict[str, tuple[tuple[int, ...], Op]] = {
    "reshape": ((2, 6), lambda m, x: x.reshape(3, -1)),
    "view": ((2, 6), lambda m, x: x.view(-1)),
    "permute": ((2, 3, 4), lambda m, x: x.permute(2, 0, -2)),
    "transpose": ((2, 3, 4), lambda m, x: x.transpose(0, -1)),
    "T": ((2, 3), lambda m, x: x.T),
    "mT": ((2, 3, 4), lambda m, x: x.mT),
    "t": ((2, 3), lambda m, x: x.t()),
    "squeeze": ((2, 1, 3, 1), lambda m, x: x.squeeze()),
    "squeeze_dim": ((2, 1, 3, 1), lambda m, x: x.squeeze(-1)),
    "unsqueeze": ((2, 3), lambda m, x: x.unsqueeze(-2)),
    "expand": ((1, 3), lambda m, x: x.expand(4, 2, -1)),
    "repeat": ((2, 3), lambda m, x: x.repeat(2, 1, 3)),
    "tile": ((2, 3), lambda m, x: m.tile(x, (2,))),
    "flip": ((2, 3, 4), lambda m, x: x.flip(0, -1)),
    "roll": ((4, 5), lambda m, x: m.roll(x, (1, -2), (0, 1))),
    "roll_flat": ((4, 5), lambda m, x: m.roll(x, 3)),
    "rot90": ((3, 4), lambda m, x: m.rot90(x, 3)),
    "movedim": ((2, 3, 4), lambda m, x: m.movedim(x, (0, 1), (-1, 0))),
    "narrow": ((5, 4), lambda m, x: x.narrow(0, 1, 3)),
    "chunk": ((7, 2), lambda m, x: m.chunk(x, 3)),
    "split": ((7, 2), lambda m, x: m.split(x, [2, 5])),
    "split_size": ((7, 2), lambda m, x: m.split(x, 3)),
    "unbind": ((3, 4), lambda m, x: m.unbind(x, 1)),
    "unfold": ((9, 2), lambda m, x: x.unfold(0, 4, 2)),
    "unflatten": ((2, 12), lambda m, x: x.unflatten(1, (3, -1))),
    "flatten": ((2, 3, 4), lambda m, x: x.flatten(1)),
    "diagonal": ((3, 5), lambda m, x: m.diagonal(x, 1)),
    "diagonal_low": ((2, 5, 3), lambda m, x: m.diagonal(x, -1, 1, 2)),
    "diag": ((4, 4), lambda m, x: m.diag(x, -2)),
    "diag_vector": ((4,), lambda m, x: m.diag(x, 1)),
    "diag_embed": ((2, 3), lambda m, x: m.diag_embed(x, -1)),
    "trace": ((4, 4), lambda m, x: x.trace()),
    "tril": ((4, 5), lambda m, x: m.tril(x, 1)),
    "triu": ((2, 4, 4), lambda m, x: m.triu(x, -1)),
    "repeat_interleave": ((2, 3), lambda m, x: x.repeat_interleave(2, 1)),
    "repeat_interleave_flat": ((2, 3), lambda m, x: m.repeat_interleave(x, 3)),
    "cat": ((2, 3), lambda m, x: m.cat([x, x * 2, x[:, :1]], 1)),
    "stack": ((2, 3), lambda m, x: m.stack([x, -x], -1)),
    "hstack": ((2, 3), lambda m, x: m.hstack([x, x])),
    "vstack": ((3,), lambda m, x: m.vstack([x, x])),
    "meshgrid": ((3,), lambda m, x: m.meshgrid(x, x * 2, indexing="ij")),
    "meshgrid_xy": ((3,), lambda m, x: m.meshgrid(x, x[:2], indexing="xy")),
    "topk": ((3, 7), lambda m, x: m.topk(x, 3)),
    "topk_smallest": ((7, 3), lambda m, x: m.topk(x, 2, 0, largest=False)),
    "sort_descending": ((3, 7), lambda m, x: m.sort(x, descending=True)),
    "matrix_power": ((3, 3), lambda m, x: m.matrix_power(x, 3)),
    "masked_fill": ((3, 4), lambda m, x: x.masked_fill(x > 0, -1.5)),
    "masked_select": ((3, 4), lambda m, x: m.masked_select(x, x > 0)),
    "broadcast_to": ((3, 1), lambda m, x: m.broadcast_to(x, (2, 3, 4))),
    "ravel": ((2, 3), lambda m, x: m.ravel(x)),
    "std": ((2, 5), lambda m, x: m.std(x, 1)),
    "var_mean": ((2, 5), lambda m, x: m.var_mean(x, 1)),
    "argsort": ((3, 5), lambda m, x: m.argsort(x, 0)),
    "nonzero": ((3, 4), lambda m, x: m.nonzero(x > 0)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", VIEWS)
def test_views_and_rearrangements(name: str, dtype: str, rng: np.random.Generator) -> None:
    shape, function = VIEWS[name]
    for x in layouts(rng.uniform(-2, 2, shape).astype(dtype)):
        same_as_torch(lambda v: function(fg, v), lambda v: function(torch, v), [x])


KEYS: dict[str, Any] = {
    "integer": 1,
    "negative": -1,
    "slice": slice(1, 4),
    "step": slice(None, None, 2),
    "tuple": (slice(None), 2),
    "ellipsis": (..., -1),
    "none": (None, slice(None), None, 0),
    "empty": slice(3, 3),
    "array": np.array([0, 3, 3, 1]),
    "matrix": np.array([[0, 1], [4, -2]]),
    "arrays": (np.array([0, 1, 4]), np.array([2, -1, 0])),
    "array_second": (slice(None), np.array([3, 0])),
    "mixed": (slice(1, 3), np.array([3, 0])),
    "list": [0, 2],
    "pair_and_slice": (slice(None), slice(1, None, 2)),
    "mask_of_rows": np.array([True, False, True, True, False]),
}


@pytest.mark.parametrize("name", KEYS)
def test_indexing(name: str, rng: np.random.Generator) -> None:
    x = rng.uniform(-2, 2, (5, 4)).astype("float32")
    key = KEYS[name]
    if name == "mask_of_rows":
        same_as_torch(lambda v: v[np.flatnonzero(key)], lambda v: v[torch.tensor(key)], [x])
        return
    same_as_torch(lambda v: v[key], lambda v: v[_torch_key(key)], [x])


def _torch_key(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(_torch_key(k) for k in key)
    return torch.tensor(key) if isinstance(key, np.ndarray) else key


def test_negative_steps_as_numpy(rng: np.random.Generator) -> None:
    x = rng.uniform(-2, 2, (5, 4))
    for key in (slice(None, None, -1), slice(4, 0, -2), (slice(None, None, -1), slice(3, None, -3))):
        np.testing.assert_array_equal(fg.tensor(x)[key].numpy(), x[key])


@pytest.mark.parametrize("name", [n for n in KEYS if n != "list"])
def test_assignment_by_index(name: str, rng: np.random.Generator) -> None:
    key = KEYS[name]
    for value in (1.5, rng.uniform(-1, 1, np.zeros((5, 4))[key].shape).astype("float32")):

        def ours(v: Any, w: Any, value: Any = value) -> Any:
            y = v * 1.0
            y[fg.tensor(key) if name == "mask_of_rows" else key] = w if not isinstance(value, float) else value
            return y * 2

        def theirs(v: Any, w: Any, value: Any = value) -> Any:
            y = v * 1.0
            y[_torch_key(key)] = w if not isinstance(value, float) else value
            return y * 2

        if name in ("array",) and not isinstance(value, float):
            value[1] = value[2]  # which of two equal indices wins is not defined by torch: let them write the same
            continue  # (and its gradient counts both)
        same_as_torch(ours, theirs, [rng.uniform(-2, 2, (5, 4)).astype("float32"), np.asarray(value, "float32")])


def test_repeated_indices_last_one_wins() -> None:
    x = fg.zeros(4)
    x[np.array([1, 1, 3])] = fg.tensor([1.0, 2.0, 3.0])
    assert x.tolist() == [0, 2, 0, 3]


SCATTERS: dict[str, Op] = {
    "gather": lambda m, x, i, s: m.gather(x, 1, i),
    "scatter_add": lambda m, x, i, s: m.scatter_add(x, 1, i, s),
    "scatter": lambda m, x, i, s: m.scatter(x, 1, i, s),
    "scatter_value": lambda m, x, i, s: x.scatter(1, i, 2.5),
    "index_add": lambda m, x, i, s: m.index_add(x, 0, i[:, 0], s[:, :1].expand(3, 6)),
    "index_select": lambda m, x, i, s: m.index_select(x, 1, i[0]),
    "take_along_dim": lambda m, x, i, s: m.take_along_dim(x, i[:1], 1),
}


@pytest.mark.parametrize("name", SCATTERS)
def test_gather_and_scatter(name: str, rng: np.random.Generator) -> None:
    function = SCATTERS[name]
    index = np.stack(
        [rng.permutation(6)[:4] for _ in range(3)]
    )  # smaller than the input in both axes, no repetition in a row
    if name == "index_add":
        index = np.array([[0], [4], [4]])
    x, src = rng.uniform(-2, 2, (5, 6)), rng.uniform(-2, 2, (3, 4))
    same_as_torch(lambda v, i, s: function(fg, v, i, s), lambda v, i, s: function(torch, v, i, s), [x, index, src])


MATMULS = [
    ((3, 4), (4, 5)),
    ((4,), (4,)),
    ((4,), (4, 5)),
    ((3, 4), (4,)),
    ((2, 3, 4), (4, 5)),
    ((2, 3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (5, 4, 2)),
    ((4,), (2, 4, 5)),
    ((2, 3, 4), (4,)),
    ((0, 4), (4, 3)),
    ((3, 0), (0, 2)),
    ((2, 0, 4), (4, 3)),
    ((1, 1), (1, 1)),
    ((5, 2, 0), (0, 3)),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shapes", MATMULS, ids=str)
def test_matmul(shapes: Any, dtype: str, rng: np.random.Generator) -> None:
    a, b = (rng.uniform(-1, 1, shape).astype(dtype) for shape in shapes)
    for x in layouts(a):
        for y in layouts(b):
            same_as_torch(lambda v, w: v @ w, lambda v, w: v @ w, [x, y])


PRODUCTS: dict[str, tuple[list[tuple[int, ...]], Op]] = {
    "mm": ([(3, 4), (4, 2)], lambda m, a, b: m.mm(a, b)),
    "bmm": ([(2, 3, 4), (2, 4, 5)], lambda m, a, b: m.bmm(a, b)),
    "mv": ([(3, 4), (4,)], lambda m, a, b: m.mv(a, b)),
    "dot": ([(4,), (4,)], lambda m, a, b: m.dot(a, b)),
    "outer": ([(3,), (4,)], lambda m, a, b: m.outer(a, b)),
    "inner": ([(3, 4), (2, 4)], lambda m, a, b: m.inner(a, b)),
    "addmm": ([(5,), (3, 4), (4, 5)], lambda m, x, a, b: m.addmm(x, a, b, beta=0.5, alpha=2)),
    "baddbmm": ([(2, 3, 5), (2, 3, 4), (2, 4, 5)], lambda m, x, a, b: m.baddbmm(x, a, b)),
    "tensordot": ([(2, 3, 4), (3, 4, 5)], lambda m, a, b: m.tensordot(a, b, 2)),
    "tensordot_axes": ([(2, 3, 4), (4, 5, 2)], lambda m, a, b: m.tensordot(a, b, ([0, 2], [2, 0]))),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str, rng: np.random.Generator) -> None:
    shapes, function = PRODUCTS[name]
    arrays = [rng.uniform(-1, 1, shape) for shape in shapes]
    same_as_torch(lambda *xs: function(fg, *xs), lambda *xs: function(torch, *xs), arrays)


EINSUMS = [
    ("ij,jk->ik", (3, 4), (4, 5)),
    ("ij,jk", (3, 4), (4, 5)),
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
    ("ii->i", (4, 4)),
    ("ii", (4, 4)),
    ("ij->ji", (3, 4)),
    ("ij->", (3, 4)),
    ("i,j->ij", (3,), (4,)),
    ("i,i->", (4,), (4,)),
    ("bhqd,bhkd->bhqk", (2, 2, 3, 4), (2, 2, 5, 4)),
    ("...ij,...jk->...ik", (2, 3, 4), (4, 5)),
    ("...i,...i->...", (2, 3), (2, 3)),
    ("ijk,jil->kl", (2, 3, 4), (3, 2, 5)),
    ("ij,jk,kl->il", (2, 3), (3, 4), (4, 5)),
    ("iij->j", (3, 3, 2)),
    ("ij,ij->ij", (2, 3), (2, 3)),
    ("ab,cd->abcd", (2, 3), (4, 2)),
    ("bi,oij,bj->bo", (2, 3), (4, 3, 5), (2, 5)),
    ("i...->...", (2, 3, 4)),
    ("ij,k->k", (2, 3), (4,)),
    ("ba", (2, 3)),
]


@pytest.mark.parametrize("case", EINSUMS, ids=lambda case: case[0])
def test_einsum(case: Any, rng: np.random.Generator) -> None:
    equation, *shapes = case
    arrays = [rng.uniform(-1, 1, shape) for shape in shapes]
    same_as_torch(lambda *xs: fg.einsum(equation, *xs), lambda *xs: torch.einsum(equation, *xs), arrays)


# -- types ---

DTYPES = ["bool", "uint8", "int32", "int64", "float32", "float64"]


@pytest.mark.parametrize("second", DTYPES)
@pytest.mark.parametrize("first", DTYPES)
def test_promotion(first: str, second: str) -> None:
    """Tensors with axes, 0-d tensors, and Python numbers, on both sides."""
    values = np.array([1, 0, 1])
    for left_shape in ((3,), ()):
        for right_shape in ((3,), ()):
            a, b = (
                values[: 3 if left_shape else 1].reshape(left_shape or ()) if left_shape else values[0],
                values if right_shape else values[0],
            )
            a, b = np.asarray(a).astype(first), np.asarray(b).astype(second)
            for op in ("mul", "add", "maximum", "eq", "div", "where"):
                ours = (
                    fg.where(fg.tensor(True), fg.tensor(a), fg.tensor(b))
                    if op == "where"
                    else getattr(fg, op)(fg.tensor(a), fg.tensor(b))
                )
                theirs = (
                    torch.where(torch.tensor(True), torch.tensor(a), torch.tensor(b))
                    if op == "where"
                    else getattr(torch, op)(torch.tensor(a), torch.tensor(b))
                )
                assert ours.dtype.name == str(theirs.dtype)[6:], (
                    f"{op}: {first}{list(left_shape)}, {second}{list(right_shape)}"
                )
                np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_python_numbers_are_weak(dtype: str) -> None:
    x = np.array([1, 0, 2]).astype(dtype)
    for number in (True, 2, 2.5):
        for op in (lambda a, b: a + b, lambda a, b: b * a, lambda a, b: a > b, lambda a, b: a / b):
            ours, theirs = op(fg.tensor(x), number), op(torch.tensor(x), number)
            assert ours.dtype.name == str(theirs.dtype)[6:], (dtype, number)
            np.testing.assert_allclose(ours.numpy(), theirs.numpy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_reductions_of_other_types(dtype: str) -> None:
    x = np.array([[1, 0, 2], [1, 1, 0]]).astype(dtype)
    for name in ("sum", "prod", "any", "all", "amax", "argmax", "cumsum", "count_nonzero"):
        args: tuple[int, ...] = (1,) if name == "cumsum" else ()
        if name == "argmax" and dtype == "bool":
            continue  # torch has none
        ours, theirs = getattr(fg.tensor(x), name)(*args), getattr(torch.tensor(x), name)(*args)
        assert ours.dtype.name == str(theirs.dtype)[6:] or (dtype == "uint8" and name in ("any", "all")), (
            name
        )  # torch: uint8 stays uint8
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_integer_arithmetic() -> None:
    a, b = np.array([7, -7, 7, -7, 5]), np.array([2, 2, -2, -2, 5])
    for op in (
        lambda a, b: a // b,
        lambda a, b: a % b,
        lambda a, b: a / b,
        lambda a, b: a & b,
        lambda a, b: a ^ b,
        lambda a, b: a | b,
        lambda a, b: a**2,
        lambda a, b: ~a,
        lambda a, b: abs(a),
    ):
        ours, theirs = op(fg.tensor(a), fg.tensor(b)), op(torch.tensor(a), torch.tensor(b))
        assert ours.dtype.name == str(theirs.dtype)[6:]
        np.testing.assert_allclose(ours.numpy(), theirs.numpy())
    for function in ("fmod", "remainder"):
        np.testing.assert_array_equal(
            getattr(fg, function)(fg.tensor(a), fg.tensor(b)).numpy(),
            getattr(torch, function)(torch.tensor(a), torch.tensor(b)),
        )


# -- special values ---

SPECIAL = np.array([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 1e-40, 3e38, -3e38])


# sign(NaN) is NaN, as in numpy (torch: 0); those that mix elements are tested row by row below.
MIXING = {"cumprod", "cumsum", "prod", "sum", "mean", "norm", "logsumexp", "softmax", "log_softmax", "flatten"}


@pytest.mark.parametrize("name", sorted(set(UNARY) - MIXING - {"sign"}))
def test_special_values(name: str) -> None:
    """NaN and infinities come out where torch has them."""
    function = UNARY[name][0]
    for dtype in ("float32", "float64"):
        x = SPECIAL.astype(dtype)
        if name in ("remainder", "fmod"):
            x = x[
                ~(np.abs(x) == np.abs(x[-1]))
            ]  # exact only while the quotient is a whole number that the type can hold
        ours, theirs = function(fg, fg.tensor(x)).numpy(), function(torch, torch.tensor(x)).numpy()
        np.testing.assert_allclose(ours, theirs, rtol=2e-6 if dtype == "float32" else 1e-12, atol=1e-44, err_msg=name)


@pytest.mark.parametrize(
    "name",
    ["maximum", "minimum", "add", "sub", "mul", "div", "pow", "logaddexp", "xlogy", "remainder", "floor_divide", "eq"],
)
def test_special_pairs(name: str) -> None:
    function = BINARY[name][0]
    a, b = (grid.ravel() for grid in np.meshgrid(SPECIAL, SPECIAL))
    ours, theirs = (
        function(fg, fg.tensor(a), fg.tensor(b)).numpy(),
        function(torch, torch.tensor(a), torch.tensor(b)).numpy(),
    )
    if name in ("remainder", "floor_divide"):  # torch corrects the sign after fmod: other results for infinite divisors
        usual = np.isfinite(a) & np.isfinite(b) & (b != 0) & (np.abs(a) < 1e30) & (np.abs(b) > 1e-30)
        ours, theirs = ours[usual], theirs[usual]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    "name",
    [
        "sum",
        "mean",
        "amax",
        "amin",
        "max",
        "min",
        "argmax",
        "argmin",
        "prod",
        "logsumexp",
        "softmax",
        "log_softmax",
        "var",
    ],
)
def test_special_rows(name: str) -> None:
    """NaN wins in extremes; rows of infinities do what torch does."""
    nan, inf = math.nan, math.inf
    x = np.array(
        [
            [nan, 1, 2],
            [1, nan, nan],
            [inf, 1, 2],
            [-inf, 1, 2],
            [-inf, -inf, -inf],
            [inf, inf, 1],
            [inf, -inf, 0],
            [1, 2, 3],
        ]
    )
    ours, theirs = getattr(fg.tensor(x), name)(1), getattr(torch.tensor(x), name)(1)
    for mine, other in zip(_as_tuple(ours), _as_tuple(theirs), strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=1e-12, err_msg=name)


TIES: dict[str, Op] = {
    "relu": lambda m, x: m.relu(x),
    "abs": lambda m, x: m.abs(x),
    "clamp": lambda m, x: m.clamp(x, -1.0, 1.0),
    "sign": lambda m, x: m.sign(x),
    "maximum": lambda m, x: m.maximum(x, x * 0),
    "minimum": lambda m, x: m.minimum(x, x.detach()),
    "amax": lambda m, x: x.amax(0),
    "amin": lambda m, x: x.amin(0),
    "max_all": lambda m, x: x.max(),
    "min_all": lambda m, x: x.min(),
    "max_dim": lambda m, x: x.max(0).values,
    "norm": lambda m, x: (x * 0).norm(),
    "norm3": lambda m, x: (x * 0).norm(3),
    "std": lambda m, x: (x * 0).std(),
    "sqrt": lambda m, x: m.sqrt(x * x),
    "prod_zeros": lambda m, x: (x - 1).prod(),
    "pow_at_0": lambda m, x: (x * 0) ** 2.0 + (x * 0) ** 1.5,
    "pow_0_at_0": lambda m, x: (x * 0) ** 0.0,
    "pow_tensors": lambda m, x: (x * 0) ** (x * 0 + 2),
    "where": lambda m, x: m.where(x > 0, m.log(m.where(x > 0, x, 1.0)), 0.0),
    "amax_infinite": lambda m, x: (x / 0.0).amax(0),
    "mask_infinite": lambda m, x: m.where(x > 0, x, -math.inf).softmax(0),
    "logsumexp_infinite": lambda m, x: m.logsumexp(m.where(x > 5, x, -math.inf)[:2], 0),
    "prod_one_zero": lambda m, x: x[:4].prod(),
    "pow_2": lambda m, x: x**2,
}


@pytest.mark.parametrize("name", TIES)
def test_gradients_at_ties_and_bounds(name: str) -> None:
    function = TIES[name]
    x = np.array([1.0, 2.0, -1.0, 0.0, 2.0, -1.0, 0.5, 2.0])
    ours, theirs = leaves([x])[0], torch.tensor(x, requires_grad=True)
    function(fg, ours).sum().backward()
    function(torch, theirs).sum().backward()
    assert ours.grad is not None
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-12, err_msg=name)


def test_pow_gradients(rng: np.random.Generator) -> None:
    a = np.array([0.0, 0.0, 2.0, -2.0, 1.5])
    b = np.array([2.0, 1.0, 0.0, 2.0, -1.0])
    ours, theirs = leaves([a, b]), [torch.tensor(v, requires_grad=True) for v in (a, b)]
    (ours[0] ** ours[1]).sum().backward()
    (theirs[0] ** theirs[1]).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=1e-12)


def test_creation() -> None:
    pairs = [
        (fg.arange(5), torch.arange(5)),
        (fg.arange(1, 7, 2), torch.arange(1, 7, 2)),
        (fg.arange(5, 0, -2), torch.arange(5, 0, -2)),
        (fg.arange(0, 1, 0.25), torch.arange(0, 1, 0.25)),
        (fg.arange(3.0), torch.arange(3.0)),
        (fg.linspace(-1, 1, 5), torch.linspace(-1, 1, 5)),
        (fg.eye(3), torch.eye(3)),
        (fg.eye(2, 4), torch.eye(2, 4)),
        (fg.full((2, 3), 7), torch.full((2, 3), 7)),
        (fg.full((2,), 1.5), torch.full((2,), 1.5)),
        (fg.zeros(2, 3), torch.zeros(2, 3)),
        (fg.ones((2, 3)), torch.ones((2, 3))),
        (fg.zeros(()), torch.zeros(())),
        (fg.full((2,), True), torch.full((2,), True)),
        (fg.ones_like(fg.arange(3)), torch.ones_like(torch.arange(3))),
        (fg.tensor([1.0]).new_zeros(2, 2), torch.tensor([1.0]).new_zeros(2, 2)),
        (fg.tensor([1]).new_full((2,), 3), torch.tensor([1]).new_full((2,), 3)),
        (fg.bincount(fg.tensor([1, 1, 3])), torch.bincount(torch.tensor([1, 1, 3]))),
        (fg.unique(fg.tensor([3, 1, 3])), torch.unique(torch.tensor([3, 1, 3]))),
        (fg.tensor([1, 2.5]), torch.tensor([1, 2.5])),
        (fg.tensor([True, False]), torch.tensor([True, False])),
        (fg.tensor([[1, 2]]), torch.tensor([[1, 2]])),
    ]
    for ours, theirs in pairs:
        assert ours.dtype.name == str(theirs.dtype)[6:]
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-6)


IN_PLACE: dict[str, Op] = {
    "add_": lambda m, x, y: x.add_(y),
    "mul_": lambda m, x, y: x.mul_(y),
    "sub_": lambda m, x, y: x.sub_(1.0),
    "div_": lambda m, x, y: x.div_(y + 3),
    "clamp_": lambda m, x, y: x.clamp_(-0.5, 0.5),
    "relu_": lambda m, x, y: x.relu_(),
    "zero_": lambda m, x, y: x.zero_(),
    "fill_": lambda m, x, y: x.fill_(2),
    "copy_": lambda m, x, y: x.copy_(y),
    "masked_fill_": lambda m, x, y: x.masked_fill_(x > 0, 3.0),
    "exp_": lambda m, x, y: x.exp_(),
    "pow_": lambda m, x, y: x.pow_(2),
    "lerp_": lambda m, x, y: x.lerp_(y, 0.25),
    "addcmul_": lambda m, x, y: x.addcmul_(y, y, value=0.5),
    "neg_": lambda m, x, y: x.neg_(),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place(name: str, rng: np.random.Generator) -> None:
    change = IN_PLACE[name]
    a, b = rng.uniform(-1, 1, (3, 4)), rng.uniform(-1, 1, (3, 4))

    def run(m: Any, x: Any, y: Any) -> Any:  # a computed tensor: the gradient flows through the change
        z = x * 1.5
        assert change(m, z, y) is z
        return z * 2 + y

    if name == "copy_":  # torch lets a computed tensor be overwritten by copy_; here that needs no_grad
        x = fg.tensor(a)
        assert x.copy_(fg.tensor(b)) is x
        np.testing.assert_array_equal(x.numpy(), b)
        return
    same_as_torch(lambda x, y: run(fg, x, y), lambda x, y: run(torch, x, y), [a, b])
    leaf, other = fg.tensor(a), torch.tensor(a)
    memory = leaf.numpy()
    change(fg, leaf, fg.tensor(b))
    change(torch, other, torch.tensor(b))
    assert leaf.numpy() is memory
    np.testing.assert_allclose(memory, other.numpy(), rtol=1e-12)
