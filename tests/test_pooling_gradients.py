"""Gradients through relu and max-pooling: masks on the pooled side, positions in 32 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from program_checker import run_checked

import fusegraph as fg
import fusegraph.functional as F
from fusegraph.codegen.cpu.narrow import narrow_positions
from fusegraph.dtypes import int32, int64


def gradients(x: Any, bias: Any, factor: Any, **pool: Any) -> Any:
    """Of x and of a bias, through relu and max-pooling."""
    out = F.max_pool2d((x + bias.reshape(-1, 1, 1)).relu(), **pool)
    return fg.autograd.grad((out * factor).sum(), (x, bias))


def data(shape: tuple[int, ...], out: tuple[int, ...], special: bool = False) -> tuple[Any, Any, Any]:
    """Numbers with many ties (also at zero); `special`: NaN and infinities among them."""
    rng = np.random.default_rng(2)
    x = rng.integers(-3, 3, shape).astype(np.float32)
    if special:
        x.reshape(-1)[rng.integers(0, x.size, x.size // 10)] = np.nan
        x.reshape(-1)[rng.integers(0, x.size, x.size // 10)] = np.inf
        x.reshape(-1)[rng.integers(0, x.size, x.size // 10)] = -np.inf
    bias, factor = rng.integers(-1, 2, shape[1]).astype(np.float32), rng.standard_normal(out).astype(np.float32)
    return fg.as_tensor(x).requires_grad_(), fg.as_tensor(bias).requires_grad_(), fg.as_tensor(factor)


CASES = {
    "2x2": ((4, 3, 8, 10), (4, 3, 4, 5), {"kernel_size": 2}),
    "4x4": ((16, 3, 8, 12), (16, 3, 2, 3), {"kernel_size": 4}),
    "2x3": ((3, 2, 7, 9), (3, 2, 3, 3), {"kernel_size": (2, 3)}),
    "overlapping": ((3, 2, 7, 9), (3, 2, 3, 4), {"kernel_size": 3, "stride": 2}),
    "padded": ((3, 2, 7, 8), (3, 2, 4, 4), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "dilated": ((3, 2, 7, 8), (3, 2, 5, 6), {"kernel_size": 2, "stride": 1, "dilation": 2}),
    "gaps": ((3, 2, 8, 8), (3, 2, 3, 3), {"kernel_size": 2, "stride": 3}),
}


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_equal_to_eager(name, special):
    shape, out, pool = CASES[name]
    operands = data(shape, out, special)
    got = fg.compile(lambda x, b, f: gradients(x, b, f, **pool))(*operands)
    for a, b in zip(got, gradients(*operands, **pool), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-5)


def test_no_mask_of_all_elements():
    """relu's mask is taken where the maxima are, and the bias's gradient is summed up there."""
    shape, out, pool = CASES["4x4"]
    compiled = fg.compile(lambda x, b, f: gradients(x, b, f, **pool))
    compiled(*data(shape, out))
    nodes = compiled.compiled_for().artifact.graph.nodes
    assert [node.shape for node in nodes if node.op == "gt"] == [(*out, 1, 1)]
    (total,) = [node for node in nodes if node.op == "sum"]
    assert total.inputs[0].size == np.prod(out)


def test_other_masks_stay():
    """The mask of another relu than the pooled one selects elements for itself."""
    x, bias, factor = data((4, 3, 8, 10), (4, 3, 4, 5))

    def other(x: Any, bias: Any, factor: Any) -> Any:
        (gradient,) = fg.autograd.grad((F.max_pool2d(x, 2) * factor).sum(), (x,))
        return fg.where(x.relu() > 0, gradient, 0.0), fg.where((x + 1.0).relu() > 0, gradient, 0.0)

    got, wanted = fg.compile(other)(x, bias, factor), other(x, bias, factor)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())


def test_positions_in_32_bits():
    shape, out, pool = CASES["4x4"]

    def both(x: Any, bias: Any, factor: Any) -> Any:
        return (*gradients(x, bias, factor, **pool), x.argmax(1))

    compiled = fg.compile(both)
    operands = data(shape, out)
    compiled(*operands)
    program = compiled.compiled_for().artifact.fused[0]
    narrow = narrow_positions(program)
    kinds = {name: (program.buffers[name].dtype, b.dtype) for name, b in narrow.buffers.items()}
    assert [name for name, kind in kinds.items() if kind == (int64, int32)]
    assert all(narrow.buffers[name].dtype == program.buffers[name].dtype for name in program.inputs + program.outputs)
    arrays = [operand.detach().numpy() for operand in operands]
    for a, b in zip(run_checked(narrow, arrays), run_checked(program, arrays), strict=True):
        np.testing.assert_array_equal(a, b)


def test_positions_that_leave_stay_in_64_bits():
    def positions(x: Any) -> Any:
        best = x.argmax(1)
        return (best + 1).sum(), (best.reshape(-1, 1) == fg.arange(x.shape[1])).sum()

    compiled = fg.compile(positions)
    x = np.random.default_rng(0).standard_normal((40, 70)).astype(np.float32)
    got = compiled(x)
    assert got[0].item() == (x.argmax(1) + 1).sum() and got[1].item() == 40
    program = compiled.compiled_for().artifact.fused[0]
    assert any(b.role == "temp" and b.dtype == int64 for b in program.buffers.values())
    assert all(b.dtype != int32 for b in narrow_positions(program).buffers.values())
