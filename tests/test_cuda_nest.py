"""Nests on CUDA under the PTX interpreter: maps, rows, columns, whole tensors, at odd shapes, empty axes and axes of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph.runtime import cuda_compile
from tests.cuda_traffic import check_function

pytestmark = pytest.mark.skipif(
    bool(cuda_compile.missing()), reason=f"kernels cannot be compiled: {cuda_compile.missing()}"
)


def with_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of x and more, and the gradient for x of its product with y."""

    def step(x: Any, y: Any, *rest: Any) -> Any:
        x.requires_grad_()
        out = function(x, *rest)
        (out * y).sum().backward()
        return out, x.grad

    return step


ROWS: dict[str, Callable[..., Any]] = {
    "softmax": lambda x: F.softmax(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "layer_norm": lambda x: F.layer_norm(x, (x.shape[-1],)),
    "rms_norm": lambda x: F.rms_norm(x, (x.shape[-1],)),
}
SHAPES = [(65, 5), (17, 36), (21, 127), (20, 516)]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_forward_and_backward(name: str, shape: tuple[int, int]) -> None:
    check_function(with_gradient(ROWS[name]), shape, shape)


@pytest.mark.parametrize("shape", [(9, 3), (8, 8), (16, 64), (1, 40), (5, 1), (1, 1)], ids=str)
def test_rows_of_simple_lengths(shape: tuple[int, int]) -> None:
    check_function(lambda x: [row(x) for row in ROWS.values()], shape)


@pytest.mark.parametrize("shape", [(16, 9000), (2, 3, 40), (4, 1, 7, 33), (16, 4100)], ids=str)
@pytest.mark.parametrize("name", ["softmax", "layer_norm"])
def test_long_rows_and_more_axes(name: str, shape: tuple[int, ...]) -> None:
    check_function(ROWS[name], shape)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,), (1,), (1, 1), (3, 0, 4)], ids=str)
def test_empty_axes_and_axes_of_one(shape: tuple[int, ...]) -> None:
    check_function(lambda x: (x.sum(), x.sum(0), x.sum(-1), (x * 2).tanh(), x.mean(-1, keepdim=True) + x), shape)


@pytest.mark.parametrize("shape", [(300, 70), (3, 500), (2, 2100), (2100, 2), (40, 40, 7), (1, 129), (129, 1)], ids=str)
def test_reductions(shape: tuple[int, ...]) -> None:
    def all_of_them(x: Any) -> Any:
        return x.sum(), x.sum(0), x.sum(-1), x.amax(0), x.amin(-1), x.argmax(0), x.argmin(-1), x.prod(-1), x.argmax()

    check_function(all_of_them, shape)


def test_cross_entropy() -> None:
    for shape in [(33, 10), (17, 127), (9, 600)]:
        labels = np.zeros(shape[0], np.int64)

        def step(x: Any, y: Any) -> Any:
            x.requires_grad_()
            loss = F.cross_entropy(x, y)
            loss.backward()
            return loss, x.grad

        check_function(step, shape, labels, whole=shape[1])


@pytest.mark.parametrize("dtype", ["float64", "int64", "int32", "uint8", "bool"])
def test_types_through_tiles(dtype: str) -> None:
    x = np.zeros((19, 13), dtype)
    check_function(lambda x: (x == x.amax(1, keepdim=True), x.amax(1), x.argmax(1)), x, whole=2)


def test_columns_of_softmax() -> None:
    for shape in [(70, 33), (12, 5, 18), (40, 256)]:
        check_function(lambda x: F.softmax(x, 0), shape)
        check_function(lambda x: F.log_softmax(x, 0), shape)


def test_maps_that_read_neighbours_elsewhere() -> None:
    check_function(lambda x, b: (x + b).relu(), (64, 250), (250,))
    check_function(lambda x: x[:, 1:] * 2, (64, 257))
    check_function(lambda x, y: fg.cat([x, y], 1), (64, 128), (64, 64))
    check_function(lambda x: x.transpose(0, 1) * 2, (128, 160))
    check_function(lambda x: x.transpose(0, 1) * 2, (37, 65))
