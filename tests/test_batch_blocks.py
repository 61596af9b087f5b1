"""Activations of convolutions in blocks of the batch: the program means the same, and where nothing fits stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from program_checker import run_checked

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim
from fusegraph.codegen.cpu.batch_blocks import batch_blocked
from fusegraph.codegen.cpu.halos import with_halos
from fusegraph.ir.loops import Program
from tests.compile_tools import training_step


class Net(nn.Module):
    """Two convolutions with pooling between them, the second one padded where there is none; odd sizes."""

    def __init__(self, pool: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, 5, 3, padding=(2, 1) if pool == 1 else 0)
        self.pool = pool
        self.out = nn.Linear(5 * 9 * 7 if pool == 1 else 5, 4)

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(self.conv1(x).relu(), self.pool)
        return self.out(self.conv2(x).relu().flatten(1))


def trained(batch: int, wrap: Any, steps: int = 2, pool: int = 2, **options: Any) -> tuple[list[Any], Any]:
    """Losses, gradients' effect on the parameters, and the compiled step."""
    fg.manual_seed(3)
    model = Net(pool)
    opt = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = training_step(model, opt)

    step = wrap(step)
    rng = np.random.default_rng(5)
    losses = []
    for _ in range(steps):
        x, y = rng.standard_normal((batch, 2, 7, 7)).astype(np.float32), rng.integers(0, 4, batch)
        losses.append(step(fg.as_tensor(x), fg.as_tensor(y)).item())
    return [losses, *(p.detach().numpy().copy() for p in model.parameters())], step


def fused(batch: int, **options: Any) -> Program:
    """The fused program of a training step."""
    _, step = trained(batch, lambda f: fg.compile(f, **options), steps=1)
    program: Program = step.compiled_for().artifact.fused[0]
    return program


@pytest.mark.parametrize("batch, pool", [(16, 2), (8, 2), (48, 2), (24, 2), (16, 1), (12, 2), (5, 2), (17, 1), (3, 2)])
def test_training_equals_eager(batch, pool):
    wanted, _ = trained(batch, lambda f: f, pool=pool)
    got, _ = trained(batch, fg.compile, pool=pool)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_float64():
    def net(x, w, v):
        return F.conv2d(F.max_pool2d(F.conv2d(x, w, padding=1).relu(), 2), v, padding=1).sum((2, 3))

    rng = np.random.default_rng(3)
    operands = [rng.standard_normal(shape) for shape in ((10, 2, 8, 6), (4, 2, 3, 3), (3, 4, 3, 3))]
    compiled = fg.compile(net)
    got = compiled(*operands).numpy()
    program = compiled.compiled_for().artifact.fused[0]
    assert batch_blocked(program, 256) is not program
    np.testing.assert_allclose(got, net(*map(fg.as_tensor, operands)).numpy(), rtol=1e-12, atol=1e-12)


def haloed(program: Program) -> tuple[Program, list[Any]]:
    """Blocked, with borders of zeros, which are kernels of their own here; and the borders."""
    blocked = batch_blocked(program, 256)
    changed = [name for name in blocked.buffers if blocked.buffers[name] is not program.buffers[name]]
    program, halos = with_halos(blocked, changed)
    loops = []
    for loop in program.loops:
        loops += [halo.zeros for halo in halos.get(loop.name, ())]
        loops.append(loop)
    return program.with_loops(tuple(loops)), [halo for group in halos.values() for halo in group]


@pytest.mark.parametrize("pool", [1, 2])
def test_the_program_means_the_same(pool):
    _, step = trained(16, fg.compile, steps=1, pool=pool)
    program = step.compiled_for().artifact.fused[0]
    blocked, halos = haloed(program)
    borders = {(halo.before, halo.behind) for halo in halos}  # of the images, and of the cotangents
    assert borders == ({((0, 0, n, 1, 0),) * 2 for n in (2, 0)} if pool == 1 else set())
    rng = np.random.default_rng(0)
    arrays = []
    for name in program.inputs:
        buffer = program.buffers[name]
        kind = buffer.dtype.kind
        values = rng.integers(0, 4, buffer.shape) if kind in "iu" else rng.standard_normal(buffer.shape)
        arrays.append(np.asarray(values, buffer.dtype))
    for a, b in zip(run_checked(blocked, arrays), run_checked(program, arrays), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "batch, bits, block",
    [
        (16, 256, 16), (24, 256, 8), (48, 256, 16),
        (32, 512, 32), (16, 512, 16), (16, 128, 8),
        (5, 256, 5), (12, 256, 12), (17, 256, 17), (50, 256, 25),
    ],
)  # fmt: skip
def test_blocks_are_vectors_of_images(batch, bits, block):
    program = fused(batch)
    blocked = batch_blocked(program, bits)
    changed = {name for name, b in blocked.buffers.items() if b.shape != program.buffers[name].shape}
    assert changed and all(program.buffers[name].role == "temp" for name in changed)
    for name in changed:
        before, after = program.buffers[name].shape, blocked.buffers[name].shape
        assert after == (batch // block, *before[1:], block) and before[0] == batch


def test_many_images_lie_in_blocks_too() -> None:
    def gradients(x: Any, w1: Any, w2: Any, b: Any) -> Any:
        learned = [part.detach().requires_grad_() for part in (w1, b, w2)]
        hidden = F.max_pool2d(F.conv2d(x, learned[0], learned[1], padding=1).relu(), 2)
        return fg.autograd.grad(F.conv2d(hidden, learned[2]).relu().sum(), learned)

    rng = np.random.default_rng(0)
    shapes = [(256, 1, 28, 28), (6, 1, 3, 3), (4, 6, 5, 5), (6,)]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    step = fg.compile(gradients)
    made = step(*map(fg.tensor, arrays))
    program = step.compiled_for().artifact.fused[0]
    blocked = batch_blocked(program, 256)
    images = [name for name, buffer in program.buffers.items() if buffer.role == "temp" and buffer.size > 1 << 16]
    assert images and all(blocked.buffers[name].shape[0] == 16 for name in images)
    right = fg.compile(gradients, backend="reference")(*(fg.tensor(array.astype(np.float64)) for array in arrays))
    for mine, exact in zip(made, right, strict=True):
        wanted = np.asarray(exact.detach())
        np.testing.assert_allclose(np.asarray(mine.detach()), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_batches_that_make_no_blocks_stay(batch):
    program = fused(batch)
    assert batch_blocked(program, 256) is program


def test_products_of_matrices_stay():
    """Heads are split by a reshape: h * 4 + d is no window."""

    def attention(x, w):
        q = (x @ w).reshape(16, 6, 4, 4).permute(0, 2, 1, 3)
        return F.softmax(q @ q.transpose(-1, -2), -1) @ q

    compiled = fg.compile(attention)
    compiled(np.ones((16, 6, 16), np.float32), np.ones((16, 16), np.float32))
    program = compiled.compiled_for().artifact.fused[0]
    assert any(loop.schedule == "contract" for loop in program.loops)
    assert batch_blocked(program, 256) is program


def test_results_do_not_depend_on_threads():
    runs = []
    try:
        for count in (1, 2, 3, 8, 1):
            fg.set_num_threads(count)
            runs.append(trained(32, fg.compile)[0])
    finally:
        fg.set_num_threads(2)
    for run in runs[1:]:
        for a, b in zip(run, runs[0], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_padding_is_a_zero_that_is_multiplied(bad):
    """In a block, as in the reference, a border pixel under an infinite weight is 0 * inf."""
    rng = np.random.default_rng(1)
    image, weight = rng.standard_normal((16, 2, 6, 5)), rng.standard_normal((3, 2, 3, 3))
    image, weight = image.astype(np.float32), weight.astype(np.float32)
    weight[1, 0, 0, 0] = bad

    def forward(x, w):
        return F.conv2d(F.softmax(x, -1), w, padding=1).relu()

    got = fg.compile(forward)(image, weight).numpy()
    np.testing.assert_allclose(got, forward(fg.as_tensor(image), fg.as_tensor(weight)).numpy(), rtol=1e-5, atol=1e-6)


def test_infinite_weights_spare_the_border_of_the_input_gradient():
    """No window holds a corner's pixel and every tap: a tap that lies outside of the image adds nothing, not 0 * inf."""
    rng = np.random.default_rng(1)
    image = rng.standard_normal((16, 2, 6, 6)).astype(np.float32)
    weight = rng.standard_normal((3, 2, 3, 3)).astype(np.float32)
    weight[0, 0, 1, 1] = np.inf

    factor = rng.standard_normal((16, 3, 4, 4)).astype(np.float32)

    def gradient(x, w, g):
        return fg.autograd.grad((F.conv2d(x * 2.0, w) * F.softmax(g, -1)).sum(), x)

    tensor = fg.as_tensor(image.copy()).requires_grad_()
    compiled = fg.compile(gradient)
    got = compiled(tensor, weight, factor)
    program = compiled.compiled_for().artifact.fused[0]
    assert batch_blocked(program, 256) is not program
    wanted = gradient(tensor, fg.as_tensor(weight), fg.as_tensor(factor))
    got, wanted = (value[0] if isinstance(value, (tuple, list)) else value for value in (got, wanted))
    np.testing.assert_allclose(got.numpy(), wanted.numpy(), rtol=1e-5, atol=1e-5)
    assert np.isinf(wanted.numpy()).any() and np.isfinite(wanted.numpy()).any()
