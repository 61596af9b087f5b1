"""Tensors: how they come in and go out, what they share, how they print, how they are changed."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest

import fusegraph as fg
from fusegraph.errors import DTypeError, GradientError, ShapeError, TraceError, UnsupportedError
from fusegraph.trace import tracing
from tests.oracles import Traced

# -- in and out ---


def test_numpy_memory_is_shared() -> None:
    array = np.arange(6.0)
    x = fg.from_numpy(array)
    assert x.numpy() is array and np.asarray(x) is array and fg.as_tensor(array).numpy() is array
    array[0] = 9
    assert x[0].item() == 9
    copied = fg.tensor(array)
    array[0] = 1
    assert copied[0].item() == 9


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
        ("int8", "int32"),
        ("int16", "int32"),
        ("uint16", "int32"),
        ("int32", "int32"),
        ("int64", "int64"),
        ("uint8", "uint8"),
        ("uint32", "uint32"),
        ("uint64", "int64"),
        ("bool", "bool"),
        (">f4", "float32"),
        (">i8", "int64"),
    ],
)
def test_array_types_on_entry(given: str, expected: str) -> None:
    array = np.array([0, 1, 1]).astype(given)
    assert fg.from_numpy(array).dtype.name == expected
    assert fg.from_numpy(array).tolist() == array.tolist()


def test_python_values() -> None:
    assert (
        fg.tensor(1.5).dtype == fg.float32 and fg.tensor(3).dtype == fg.int64 and fg.tensor(True).dtype.name == "bool"
    )
    assert fg.tensor([[1, 2], [3, 4]]).shape == (2, 2) and fg.tensor([]).shape == (0,)
    assert fg.tensor([fg.tensor(1.0), fg.tensor(2.0)]).tolist() == [1, 2]
    assert fg.as_tensor([fg.tensor([1.0]), [2.0]]).shape == (2, 1)
    assert fg.tensor(np.float64(2.5)).dtype == fg.float64
    assert fg.tensor([1.5], dtype="float64").dtype == fg.float64 and fg.tensor([1, 2], dtype=float).dtype == fg.float32
    assert fg.tensor(range(3)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "value",
    [
        "text",
        ["a"],
        object(),
        [1j],
        np.array([1 + 2j]),
        np.array(["x"]),
        None,
        np.array([object()]),
        np.datetime64("2020-01-01"),
    ],
)
def test_values_that_are_no_numbers(value: object) -> None:
    with pytest.raises((DTypeError, TypeError), match="numbers or bools are needed|cannot"):
        fg.tensor(value)


def test_ragged_lists() -> None:
    with pytest.raises(ShapeError, match="are no array"):
        fg.tensor([[1, 2], [3]])


def test_dtype_errors() -> None:
    with pytest.raises(DTypeError, match="dtype 'float8' is not supported; use one of bool, uint8"):
        fg.zeros(2, dtype="float8")
    with pytest.raises(DTypeError, match="complex64"):
        fg.ones(2).to("complex64")


@pytest.mark.torch
def test_dlpack_with_torch(torch) -> None:  # type: ignore[no-untyped-def]
    theirs = torch.arange(4.0)
    ours = fg.from_dlpack(theirs)
    theirs[0] = 7
    assert ours.tolist() == [7, 1, 2, 3]
    array = np.arange(3.0)
    back = torch.from_dlpack(fg.from_numpy(array))
    back[1] = 5
    assert array.tolist() == [0, 5, 2]


def test_numpy_functions_and_operators() -> None:
    x = fg.tensor([1.0, 2.0])
    assert isinstance(np.array([1.0, 2.0], np.float32) + x, fg.Tensor) and (np.array([1.0, 2.0]) * x).tolist() == [1, 4]
    assert np.sum(np.asarray(x)) == 3
    assert isinstance(2.0**x, fg.Tensor) and (1 - x).tolist() == [0, -1] and (7 // fg.tensor([2, 3])).tolist() == [3, 2]
    assert (fg.tensor([True, False]) & fg.tensor([True, True])).tolist() == [True, False] and (
        ~fg.tensor([True])
    ).tolist() == [False]
    assert (np.float32(2) * x).dtype == fg.float32 and (np.float64(2) * x).dtype == fg.float32


def test_leaving() -> None:
    x = fg.tensor([[1.5, 2.5]], requires_grad=True)
    with pytest.raises(GradientError, match=r"use .detach\(\).numpy\(\)"):
        x.numpy()
    assert x.detach().numpy() is x._value
    assert x.tolist() == [[1.5, 2.5]] and x[0, 1].item() == 2.5 and float(x.sum()) == 4 and int(fg.tensor(3)) == 3
    with pytest.raises(ShapeError, match=r"item\(\) of a tensor of shape \[1, 2\]"):
        x.item()
    with pytest.raises(ShapeError, match="ambiguous; use .any"):
        bool(x)
    assert bool(fg.tensor(1)) and not fg.tensor(0.0)
    assert [1, 2, 3][fg.tensor(1)] == 2
    with pytest.raises(DTypeError, match="no index"):
        [1, 2][fg.tensor(1.0)]  # type: ignore[call-overload]
    with pytest.raises(ShapeError, match="0-d tensor"):
        len(fg.tensor(1.0))
    assert [row.tolist() for row in fg.tensor([[1, 2], [3, 4]])] == [[1, 2], [3, 4]]


def test_text() -> None:
    assert repr(fg.tensor([1.0, 2.5])) == "tensor([1. , 2.5])"
    assert repr(fg.tensor([1, 2])) == "tensor([1, 2])"
    assert (
        repr(fg.tensor([1.0], dtype="float64", requires_grad=True)) == "tensor([1.], dtype=float64, requires_grad=True)"
    )
    assert repr(fg.nn.Parameter(fg.zeros(1))) == "Parameter containing:\ntensor([0.], requires_grad=True)"
    with tracing() as trace:
        assert repr(trace.argument("x", fg.ones(2, 3))) == "tensor(<traced float32[2, 3]>)"


def test_copies() -> None:
    x = fg.tensor([1.0, 2.0], requires_grad=True)
    twin = copy.deepcopy(x)
    assert twin.requires_grad and twin._value is not x._value
    clone = x.clone()
    clone.sum().backward()
    assert x.grad.tolist() == [1, 1] and clone._value is not x._value
    with pytest.raises(TypeError, match="save state_dict"):
        pickle.dumps(x)
    with pytest.raises(TypeError, match="make tensors with"):
        fg.Tensor([1])
    assert len({x, twin, clone}) == 3


def test_attributes() -> None:
    x = fg.zeros(2, 3)
    assert (x.shape, x.ndim, x.dim(), x.numel(), x.size(), x.size(-1), len(x)) == ((2, 3), 2, 2, 6, (2, 3), 3, 2)
    assert x.is_leaf and not (x.requires_grad_() * 2).is_leaf
    assert x.T.shape == (3, 2) and fg.zeros(2, 3, 4).mT.shape == (2, 4, 3)
    assert (
        x.to("cpu") is x
        and x.double().dtype == fg.float64
        and x.long().dtype == fg.int64
        and x.type_as(fg.tensor(1)).dtype == fg.int64
    )
    with pytest.raises(AttributeError):
        x.something = 3


# -- changing ---


def test_views_cannot_be_overwritten() -> None:
    """Eager views share memory, compiled code has none: writing to one must do the same in both."""
    x = fg.zeros(2, 3)
    for view in (
        x.reshape(6),
        x.T,
        x.expand(4, 2, 3),
        x.unsqueeze(0),
        fg.from_numpy(np.broadcast_to(np.zeros(1), (3,))),
    ):
        with pytest.raises(UnsupportedError, match=r"view of another one.*take a .clone\(\)"):
            view.zero_()
    assert x.clone().reshape(6).clone().fill_(1).sum().item() == 6

    def write(x: fg.Tensor) -> fg.Tensor:
        return (x * 1).reshape(6).zero_()

    with pytest.raises(UnsupportedError, match="view of another one"):
        Traced(write, [x])
    made = Traced(lambda x: fg.zeros(2, 3).add_(x), [x])
    np.testing.assert_array_equal(made(fg.ones(2, 3))[0], np.ones((2, 3)))


def test_augmented_assignment() -> None:
    x = fg.ones(2)
    memory, same = x.numpy(), x
    x += 1
    x *= fg.tensor([2.0, 3.0])
    x -= 1
    x /= 2
    assert x is same and x.numpy() is memory and memory.tolist() == [1.5, 2.5]
    w = fg.ones(2).requires_grad_()
    with pytest.raises(GradientError, match="under fg.no_grad"):
        w += 1
    with fg.no_grad():
        w -= 0.5
    assert w.requires_grad and w.is_leaf and w.tolist() == [0.5, 0.5]
    y = w * 2
    z = y
    y += 1  # a computed tensor: the name gets a new one
    assert z.tolist() == [1, 1] and y.tolist() == [2, 2]
    y.sum().backward()
    assert w.grad.tolist() == [2, 2]
    view = fg.ones(2, 2).reshape(4)
    view += 1
    assert view.tolist() == [2, 2, 2, 2]


def test_in_place_errors() -> None:
    with pytest.raises(DTypeError, match="add_: a float32 result cannot be written to a int64 tensor"):
        fg.tensor([1, 2]).add_(0.5)
    with pytest.raises(
        ShapeError, match=r"add_: the result has shape \[3, 2\], but the tensor that it is written to \[2\]"
    ):
        fg.ones(2).add_(fg.ones(3, 2))
    with pytest.raises(ShapeError, match="cannot broadcast"):
        fg.ones(2).copy_(fg.ones(3))
    x = fg.ones(2).requires_grad_()
    with pytest.raises(GradientError, match="requires a gradient is overwritten"):
        x.mul_(2)
    with pytest.raises(GradientError, match="requires a gradient is overwritten"):
        x[0] = 3
    y = x * 2
    kept = (y * y).sum()
    y.add_(1)
    with pytest.raises(GradientError, match="changed in place after it was used"):
        kept.backward()


def test_data() -> None:
    w = fg.ones(2).requires_grad_()
    w.data = fg.tensor([3.0, 4.0])
    w.data -= 1
    assert w.tolist() == [2, 3] and w.requires_grad and not w.data.requires_grad


def test_in_place_traced() -> None:
    """Captured leaves become updates, also through detach() and .data; computed tensors become new values."""
    state, other = fg.zeros(2), fg.zeros(2)
    state.name, other.name = "state", "other"

    def step(x: fg.Tensor) -> fg.Tensor:
        state.add_(x)
        other.detach().copy_(state * 10)
        other.data += 1
        y = x * 2
        y[0] = 100.0
        y.clamp_(max=50)
        return y + state

    traced = Traced(step, [fg.ones(2)])
    assert sorted(c.tensor.name for c in traced.assigned) == ["other", "state"]
    assert state.tolist() == [0, 0]
    for n in (1, 2):
        (out,) = traced(fg.tensor([1.0, 2.0]))
        assert state.tolist() == [n, 2 * n] and other.tolist() == [10 * n + 1, 20 * n + 1]
        assert out.tolist() == [50 + n, 4 + 2 * n]


def test_captured_state_is_read_anew() -> None:
    rate = fg.tensor(2.0)
    traced = Traced(lambda x: x * rate, [fg.ones(2)])
    assert traced(fg.ones(2))[0].tolist() == [2, 2]
    rate.fill_(5)
    assert traced(fg.ones(2))[0].tolist() == [5, 5]


# -- control flow while tracing ---


@pytest.mark.parametrize(
    ("use", "text"),
    [
        (lambda x: 1 if x.sum() > 0 else 2, "`if`, `while`, `and`, `or` or bool()"),
        (lambda x: float(x.sum()), "item()"),
        (lambda x: x.tolist(), "tolist()"),
        (lambda x: np.sin(x), "a numpy function"),
        (lambda x: x.numpy(), "numpy()"),
        (lambda x: [0, 1][x.sum().long()], "item()"),
        (lambda x: x.allclose(x), "item()"),
    ],
)
def test_values_are_not_known_while_tracing(use, text: str) -> None:  # type: ignore[no-untyped-def]
    with tracing() as trace, pytest.raises(TraceError) as caught:
        use(trace.argument("x", fg.ones(3)))
    assert text in str(caught.value) and "test_tensor.py:" in str(caught.value) and "fg.where" in str(caught.value)


@pytest.mark.parametrize("name", ["nonzero", "argsort", "sort", "median", "unique", "bincount"])
def test_what_depends_on_values_cannot_be_compiled(name: str) -> None:
    with tracing() as trace, pytest.raises(TraceError, match="test_tensor.py:"):
        getattr(fg, name)(trace.argument("x", fg.arange(3)))


def test_symbols_do_not_outlive_their_trace() -> None:
    with tracing() as trace:
        kept = trace.argument("x", fg.ones(3)) * 2
    with tracing(), pytest.raises(TraceError, match="from another .finished. trace"):
        kept + 1
    with pytest.raises(TraceError, match="known only when the compiled"):
        kept + 1


def test_import_is_light() -> None:
    """`import fusegraph` loads numpy and llvmlite, and no other package from outside of the standard library."""
    others = ("numba", "networkx", "torch", "matplotlib", "rich", "scipy")
    code = f"import sys, fusegraph; print([name for name in {others} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"


def test_nan_is_not_equal_and_hashable() -> None:
    x = fg.tensor([math.nan, 1.0])
    assert (x == x).tolist() == [False, True] and {x: 1}[x] == 1
    assert not x.equal(x) and x.allclose(x, equal_nan=True)


def test_is_floating_point() -> None:
    assert fg.zeros(2).is_floating_point() and fg.zeros(2, dtype="float64").is_floating_point()
    assert not fg.tensor([1, 2]).is_floating_point() and not fg.tensor([True]).is_floating_point()
