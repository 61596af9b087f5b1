"""Every entry of the table of primitives: its reference, its rules, its gradients, its errors, its text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fusegraph.dtypes import SUPPORTED
from fusegraph.errors import IndexRangeError
from fusegraph.ir import PRIMITIVES, GraphBuilder, emit, parse, verify
from fusegraph.ir.interpret import apply, run
from tests.oracles import Array, assert_close, check_gradients

NAMES = sorted(PRIMITIVES)


def samples(name: str) -> list[tuple[list[Array], dict[str, Any]]]:
    found = PRIMITIVES[name].samples(np.random.default_rng(0))
    assert found, f"{name} has no samples"
    return [([np.asarray(a) for a in arrays], params) for arrays, params in found]


# -- references, written again in the plainest way ---


def elementwise(function: Callable[..., Any], out: Any = None) -> Callable[..., Array]:
    def run_(*arrays: Array) -> Array:
        result = np.empty(arrays[0].shape, out or arrays[0].dtype)
        for place in np.ndindex(arrays[0].shape):
            result[place] = function(*(a[place] for a in arrays))
        return result

    return run_


def reduction(function: Callable[[list[Any]], Any], out: Any = None) -> Callable[..., Array]:
    def run_(x: Array, axes: tuple[int, ...]) -> Array:
        kept = [n for i, n in enumerate(x.shape) if i not in axes]
        result = np.empty(kept, out or x.dtype)
        for place in np.ndindex(*kept):
            rest = iter(place)
            key = tuple(slice(None) if i in axes else next(rest) for i in range(x.ndim))
            result[place] = function(x[key].ravel().tolist())
        return result

    return run_


def conv(x: Array, w: Array, stride: Any, padding: Any, dilation: Any, groups: int) -> Array:
    (top, bottom), (left, right) = padding
    height = (x.shape[2] + top + bottom - dilation[0] * (w.shape[2] - 1) - 1) // stride[0] + 1
    width = (x.shape[3] + left + right - dilation[1] * (w.shape[3] - 1) - 1) // stride[1] + 1
    out = np.zeros((x.shape[0], w.shape[0], height, width))
    for n, o, i, j in np.ndindex(out.shape):
        first = o // (w.shape[0] // groups) * w.shape[1]
        for c, k, m in np.ndindex(w.shape[1:]):
            row, column = i * stride[0] + k * dilation[0] - top, j * stride[1] + m * dilation[1] - left
            if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                out[n, o, i, j] += x[n, first + c, row, column] * w[o, c, k, m]
    return out


def window(x: Array, axis: int, size: int, stride: int, dilation: int) -> Array:
    count = (x.shape[axis] - dilation * (size - 1) - 1) // stride + 1
    columns = [np.stack([np.take(x, i * stride + k * dilation, axis) for i in range(count)], axis) for k in range(size)]
    return np.stack(columns, -1)


def put(base: Array, index: Array, updates: Array, axis: int, along: bool) -> Array:
    out = np.moveaxis(base.copy(), axis, 0)
    if along:
        moved_index, moved = np.moveaxis(index, axis, 0), np.moveaxis(updates, axis, 0)
        for place in np.ndindex(moved_index.shape):
            out[(moved_index[place], *place[1:])] += moved[place]
    else:
        for place in np.ndindex(index.shape):
            key = (*(slice(None),) * axis, *place)
            out[index[place]] += updates[key]
    return np.moveaxis(out, 0, axis)


def philox_by_hand(key: Array, counter: Array, shape: tuple[int, ...]) -> Array:
    words = []
    for element in range(math.prod(shape)):
        low, high, k = element, int(counter), int(key)
        for _ in range(10):
            product = low * 0xD256D193
            low, high = (product >> 32) ^ k ^ high, product & 0xFFFFFFFF
            k = (k + 0x9E3779B9) & 0xFFFFFFFF
        words.append(low)
    return np.array(words, np.uint32).reshape(shape)


def python_round(x: float) -> float:
    return float(round(x))


PLAIN: dict[str, Callable[..., Array]] = {
    "neg": elementwise(lambda x: -x),
    "abs": elementwise(abs),
    "sign": elementwise(lambda x: math.copysign(1.0, x)),
    "floor": elementwise(math.floor),
    "ceil": elementwise(math.ceil),
    "round": elementwise(python_round),
    "exp": elementwise(math.exp),
    "expm1": elementwise(math.expm1),
    "log": elementwise(math.log),
    "log1p": elementwise(math.log1p),
    "sqrt": elementwise(math.sqrt),
    "rsqrt": elementwise(lambda x: x**-0.5),
    "tanh": elementwise(math.tanh),
    "sigmoid": elementwise(lambda x: 1 / (1 + math.exp(-x))),
    "erf": elementwise(math.erf),
    "sin": elementwise(math.sin),
    "cos": elementwise(math.cos),
    "relu": elementwise(lambda x: max(x, 0.0)),
    "logical_not": elementwise(lambda x: not x),
    "isnan": elementwise(lambda x: x != x, bool),
    "add": elementwise(lambda a, b: a + b),
    "sub": elementwise(lambda a, b: a - b),
    "mul": elementwise(lambda a, b: a * b),
    "div": elementwise(lambda a, b: a / b),
    "pow": elementwise(math.pow),
    "maximum": elementwise(max),
    "minimum": elementwise(min),
    "floordiv": elementwise(lambda a, b: int(a) // int(b)),
    "mod": elementwise(lambda a, b: int(a) % int(b)),
    "bit_and": elementwise(lambda a, b: int(a) & int(b)),
    "bit_or": elementwise(lambda a, b: int(a) | int(b)),
    "bit_xor": elementwise(lambda a, b: int(a) ^ int(b)),
    "shift_left": elementwise(lambda a, b: int(a) << int(b)),
    "shift_right": elementwise(lambda a, b: int(a) >> int(b)),
    "eq": elementwise(lambda a, b: a == b, bool),
    "ne": elementwise(lambda a, b: a != b, bool),
    "lt": elementwise(lambda a, b: a < b, bool),
    "le": elementwise(lambda a, b: a <= b, bool),
    "gt": elementwise(lambda a, b: a > b, bool),
    "ge": elementwise(lambda a, b: a >= b, bool),
    "where": lambda c, a, b: elementwise(lambda c, a, b: a if c else b, a.dtype)(c, a, b),
    "cast": lambda x, dtype: np.array([SUPPORTED[dtype].type(v) for v in x.ravel().tolist()], SUPPORTED[dtype]).reshape(
        x.shape
    ),
    "check_index": lambda x, **params: x,
    "after": lambda x, *before: x,
    "sum": reduction(math.fsum),
    "prod": reduction(math.prod),
    "max": reduction(max),
    "min": reduction(min),
    "argmax": reduction(lambda xs: xs.index(max(xs)), np.int64),
    "argmin": reduction(lambda xs: xs.index(min(xs)), np.int64),
    "matmul": lambda a, b: (a[..., :, :, None] * b[..., None, :, :]).sum(-2),
    "conv": conv,
    "window": window,
    "reshape": lambda x, shape: np.array(x.ravel().tolist(), x.dtype).reshape(shape),
    "permute": lambda x, axes: np.moveaxis(x, axes, range(x.ndim)),
    "expand": lambda x, shape: x + np.zeros(shape, x.dtype),
    "slice": lambda x, start, size, step: (
        x[np.ix_(*(range(a, a + n * s, s) if n else [] for a, n, s in zip(start, size, step)))]
        if 0 not in size
        else np.zeros(size)
    ),
    "pad": lambda x, low, high, value: _padded(x, low, high, value),
    "concat": lambda *xs, axis: np.moveaxis(
        np.array(list(itertools.chain(*(np.moveaxis(x, axis, 0) for x in xs)))), 0, axis
    ),
    "take": lambda x, index, axis: np.moveaxis(
        np.array([np.take(x, i, axis) for i in index.ravel()]).reshape((*index.shape, *np.delete(x.shape, axis))),
        range(index.ndim),
        range(axis, axis + index.ndim),
    ),
    "take_along": lambda x, index, axis: np.vectorize(
        lambda *place: x[(*place[:axis], index[place], *place[axis + 1 :])]
    )(*np.indices(index.shape)),
    "put_add": lambda base, index, updates, axis: put(base, index, updates, axis, False),
    "put_along_add": lambda base, index, updates, axis: put(base, index, updates, axis, True),
    "constant": lambda value, dtype: np.array([value], dtype)[0],
    "iota": lambda size, dtype: np.array(list(range(size)), dtype),
    "random_bits": philox_by_hand,
}


def _padded(x: Array, low: Any, high: Any, value: float) -> Array:
    out = np.full([n + a + b for n, a, b in zip(x.shape, low, high)], value, x.dtype)
    out[tuple(slice(a, a + n) for a, n in zip(low, x.shape))] = x
    return out


# Transposes of linear operations: <op(x), y> = <x, transpose(y)>.
TRANSPOSES = {"fold", "conv_input_grad", "conv_weight_grad"}


def test_every_primitive_has_an_independent_reference() -> None:
    assert set(NAMES) == set(PLAIN) | TRANSPOSES


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_reference(name: str) -> None:
    for arrays, params in samples(name):
        assert_close(apply(name, arrays, params), PLAIN[name](*arrays, **params), 1e-13, f"{name} {params}")


def test_transposes(rng: np.random.Generator) -> None:
    for (x,), params in samples("fold"):
        y = rng.uniform(-1, 1, apply("fold", [x], params).shape)
        back = window(y, params["axis"], x.shape[-1], params["stride"], params["dilation"])
        back = back[tuple(slice(n) for n in x.shape)]
        np.testing.assert_allclose((apply("fold", [x], params) * y).sum(), (x * back).sum(), rtol=1e-12)
    for (ct, w), params in samples("conv_input_grad"):
        options = {key: params[key] for key in ("stride", "padding", "dilation", "groups")}
        x = rng.uniform(-1, 1, apply("conv_input_grad", [ct, w], params).shape)
        np.testing.assert_allclose(
            (conv(x, w, **options) * ct).sum(), (x * apply("conv_input_grad", [ct, w], params)).sum(), rtol=1e-11
        )
    for (x, ct), params in samples("conv_weight_grad"):
        options = {key: params[key] for key in ("stride", "padding", "dilation", "groups")}
        w = rng.uniform(-1, 1, apply("conv_weight_grad", [x, ct], params).shape)
        np.testing.assert_allclose(
            (conv(x, w, **options) * ct).sum(), (w * apply("conv_weight_grad", [x, ct], params)).sum(), rtol=1e-11
        )


# -- rules ---


@pytest.mark.parametrize("name", NAMES)
def test_shape_and_dtype_rules_agree_with_the_reference(name: str) -> None:
    for arrays, params in samples(name):
        variants = [arrays]
        if any(a.dtype == np.float64 for a in arrays):
            variants.append([a.astype(np.float32) if a.dtype == np.float64 else a for a in arrays])
        for inputs in variants:
            out = apply(name, inputs, params)
            assert (tuple(out.shape), out.dtype) == (
                tuple(PRIMITIVES[name].infer(inputs, params)[0]),
                PRIMITIVES[name].infer(inputs, params)[1],
            )


@pytest.mark.parametrize("name", [n for n in NAMES if PRIMITIVES[n].differentiable and n != "cast"])
def test_gradients_by_finite_differences(name: str) -> None:
    for arrays, params in samples(name):
        if any(a.dtype.kind == "f" for a in arrays) and all(a.size for a in arrays):
            check_gradients(lambda *xs, params=params: emit.bind(name, *xs, **params), arrays)


def test_gradient_of_cast() -> None:
    import fusegraph as fg

    x = fg.tensor([1.5, -2.0], dtype="float64", requires_grad=True)
    (x.to("float32") * fg.tensor([3.0, 0.1])).sum().backward()
    assert x.grad is not None and x.grad.dtype == fg.float64
    np.testing.assert_array_equal(x.grad.numpy(), np.array([3.0, np.float32(0.1)], np.float64))
    assert not x.to("int64").requires_grad


def test_zero_size_gradients() -> None:
    from fusegraph.autograd import grad
    from tests.oracles import leaves

    for name in NAMES:
        for arrays, params in samples(name) if PRIMITIVES[name].differentiable else []:
            floats = [i for i, a in enumerate(arrays) if a.dtype.kind == "f"]
            if floats and not all(a.size for a in arrays):
                xs = leaves(arrays)
                found = grad(emit.bind(name, *xs, **params).sum(), [xs[i] for i in floats], allow_unused=True)
                assert all(g is None or g.shape == xs[i].shape for g, i in zip(found, floats, strict=True)), name


@pytest.mark.parametrize("name", NAMES)
def test_errors(name: str) -> None:
    for arrays, params, kind, text in PRIMITIVES[name].errors():
        with pytest.raises(kind, match=".*" + text.replace("(", r"\(").replace("[", r"\[")):
            PRIMITIVES[name].infer([np.asarray(a) for a in arrays], params)


def test_check_index_names_the_place() -> None:
    with pytest.raises(IndexRangeError, match=r"label 7 at \[1, 0\] is outside of \[0, 5\)"):
        apply("check_index", [np.array([[0, 4], [7, 9]])], {"low": 0, "high": 5, "allow": None, "what": "label"})
    fine = np.array([-100, 4])
    assert apply("check_index", [fine], {"low": 0, "high": 5, "allow": -100, "what": "label"}) is fine


# -- text ---


@pytest.mark.parametrize("name", NAMES)
def test_text_round_trip(name: str) -> None:
    for arrays, params in samples(name):
        builder = GraphBuilder()
        nodes = [builder.input(f"x{i}", a.shape, a.dtype) for i, a in enumerate(arrays)]
        graph = verify(builder.finish([builder.add(name, nodes, params)], name="sample"))
        again = parse(str(graph))
        assert again == graph
        assert str(again) == str(graph)
        assert_close(run(again, arrays)[0][0], apply(name, arrays, params), 0.0)


@pytest.mark.parametrize("value", [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, 0.1, 3.4e38])
def test_float_parameters_round_trip(value: float) -> None:
    builder = GraphBuilder()
    x = builder.input("x", (2,), SUPPORTED["float64"])
    graph = builder.finish([builder.add("pad", [x], {"low": (1,), "high": (0,), "value": value})])
    again = parse(str(graph))
    assert again == graph
    assert np.array(again.outputs[0].params["value"]).tobytes() == np.array(value).tobytes() or math.isnan(value)
