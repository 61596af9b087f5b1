"""What emitted steps may cost: sectors moved, counted by the PTX interpreter, and launches and bytes of the example models.

Ideal is what one pass moves: every sector of the inputs once, every sector of the outputs once. The ceilings may only fall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from benchmarks.models import make_step
from fusegraph import nn, optim
from fusegraph.build import Artifact
from fusegraph.codegen.cuda.step import emit_step
from fusegraph.runtime import cuda_compile
from tests.cuda_traffic import Measured, cuda_artifact, measure, random_inputs
from tests.test_cuda_nest import ROWS, with_gradient

needs_wheels = pytest.mark.skipif(
    bool(cuda_compile.missing()), reason=f"kernels cannot be compiled: {cuda_compile.missing()}"
)
MOST = 1.05
SECTOR = 32


def zeros(*shape: int) -> np.ndarray[Any, Any]:
    return np.zeros(shape, np.float32)


def sectors_of(nbytes: int) -> int:
    return -(-nbytes // SECTOR)


def ideal(artifact: Artifact) -> int:
    """Sectors of the inputs that are read and of the outputs and states that are written."""
    program = artifact.fused[0]
    read = {name for loop in program.loops for name in loop.reads()}
    written = {name for loop in program.loops for name in loop.writes()}
    names = [name for touched in (read, written) for name in touched if program.buffers[name].role != "temp"]
    return sum(sectors_of(program.buffers[n].nbytes) for n in names if program.buffers[n].role != "local")


def moved(artifact: Artifact, **options: Any) -> tuple[int, list[Measured]]:
    """Sectors that the step's launches touch, request by request."""
    _, launches = measure(emit_step(artifact.fused[0], **options), random_inputs(artifact))
    return sum(launch.sectors for launch in launches), launches


def ratio(function: Callable[..., Any], *arrays: Any) -> float:
    artifact = cuda_artifact(function, *arrays)
    return moved(artifact)[0] / ideal(artifact)


# -- sectors --------------------------------------------------------------------------------------------------------------


@needs_wheels
@pytest.mark.parametrize("shape", [(64, 256), (63, 257), (7, 1031), (1, 3001)], ids=str)
def test_elementwise(shape: tuple[int, int]) -> None:
    x, y = zeros(*shape), zeros(*shape)
    assert ratio(lambda x, y: (x * y).relu(), x, y) <= MOST
    assert ratio(lambda x, y: (F.gelu(x) * y, x.tanh(), (x - y).exp()), x, y) <= MOST
    assert ratio(with_gradient(lambda x: (F.gelu(x) * x).sigmoid()), x, y) <= MOST


ROW_SHAPES = [(64, 512), (65, 511), (200, 30), (72, 260), (96, 6)]


@needs_wheels
@pytest.mark.parametrize("shape", ROW_SHAPES, ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_rows_are_read_once_forward_and_backward(name: str, shape: tuple[int, int]) -> None:
    x = zeros(*shape)
    artifact = cuda_artifact(with_gradient(ROWS[name]), x, x)
    sectors, launches = moved(artifact)
    assert sectors <= MOST * ideal(artifact)
    assert len(launches) == 1 and launches[0].counters.local_bytes == 0


@needs_wheels
@pytest.mark.parametrize("shape", [(16, 9000), (16, 32768)], ids=str)
def test_long_rows_of_a_block_are_read_once(shape: tuple[int, int]) -> None:
    assert ratio(ROWS["softmax"], zeros(*shape)) <= MOST


@needs_wheels
def test_rows_longer_than_registers_are_read_once_a_stage() -> None:
    """40000 elements in parts, so that the card is filled: maxima, sums, results: three readings and one writing."""
    x = zeros(20, 40000)
    assert ratio(ROWS["softmax"], x) <= MOST * 4 / 2
    assert ratio(ROWS["layer_norm"], x) <= MOST * 4 / 2


@needs_wheels
@pytest.mark.parametrize("shape", [(64, 512), (40, 1024), (65, 1023)], ids=str)
def test_cross_entropy_forward_and_backward(shape: tuple[int, int]) -> None:
    """The scores are read once and their gradient written once; beside that each warp reads its row's label and what the sum of
    all labels' weights has given, and rows keep their maximum and sum for the loss, which reads one score a row."""

    def step(x: Any, y: Any) -> Any:
        x.requires_grad_()
        loss = F.cross_entropy(x, y)
        loss.backward()
        return loss, x.grad

    artifact = cuda_artifact(step, zeros(*shape), np.zeros(shape[0], np.int64))
    sectors, launches = moved(artifact)
    (rows,) = [launch for launch in launches if launch.launch.grid[0] >= shape[0]]
    warps = -(-rows.kernel.threads // 32)
    assert sectors <= MOST * ideal(artifact) + shape[0] * (2 * warps + 4)
    assert rows.counters.load.sectors <= MOST * sectors_of(4 * shape[0] * shape[1]) + shape[0] * 2 * warps


@needs_wheels
@pytest.mark.parametrize(
    "shape", [(1000, 64), (64, 1000), (300, 70), (5000, 3), (3, 5000), (2000, 33), (70000, 1)], ids=str
)
def test_reductions(shape: tuple[int, int]) -> None:
    x = zeros(*shape)
    for function in (lambda x: x.sum(0), lambda x: x.sum(1), lambda x: x.sum(), lambda x: x.amax(0)):
        artifact = cuda_artifact(function, x)
        sectors, launches = moved(artifact)
        assert sectors <= MOST * ideal(artifact) + 4 * len(launches)
        assert not any("atomic_add" in launch.kernel.source for launch in launches)


@needs_wheels
@pytest.mark.parametrize("shape", [(1 << 19,), (1 << 18, 2), (2, 1 << 18), (60, 20000)], ids=str)
def test_large_reductions_fill_the_card_in_two_steps(shape: tuple[int, ...]) -> None:
    """Sums of few results: many blocks make partial sums, whose order is fixed by the shape."""
    for function in (lambda x: x.sum(0), lambda x: x.sum(-1), lambda x: x.sum()):
        step = emit_step(cuda_artifact(function, zeros(*shape)).fused[0])
        assert len(step.launches) <= 2
        assert max(launch.grid[0] for launch in step.launches) >= 60


@needs_wheels
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_updates_of_parameters(name: str) -> None:
    """Three parameters of odd sizes in one launch (and one for what Adam counts); each warp reads the optimizer's numbers too."""
    artifact = optimizer_step(name, ((301, 53), (4001,), (33, 75)))
    sectors, launches = moved(artifact)
    assert len(launches) <= (1 if name == "sgd" else 2)
    warps = sum(launch.launch.grid[0] * launch.kernel.threads // 32 for launch in launches)
    numbers = 2 if name == "sgd" else 4
    assert sectors <= MOST * ideal(artifact) + warps * numbers


def optimizer_step(name: str, shapes: Iterable[tuple[int, ...]]) -> Artifact:
    parameters = [nn.Parameter(fg.tensor(zeros(*shape))) for shape in shapes]
    chosen: optim.Optimizer = (
        optim.SGD(parameters, lr=0.05, momentum=0.9) if name == "sgd" else optim.Adam(parameters, lr=1e-3)
    )

    def step(*gradients: Any) -> Any:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        chosen.step()
        return gradients[0][0]

    return cuda_artifact(step, *(zeros(*shape) for shape in shapes))


# -- launches and bytes ---------------------------------------------------------------------------------------------------

# model: launches, megabytes read and written by a training step with Adam, at benchmarks/models.py's sizes
CEILINGS: dict[str, tuple[int, float]] = {
    "mlp": (13, 8.4),
    "minitorch": (19, 16.5),
    "lenet": (27, 18.6),
    "bag": (10, 4.52),
    "kim": (26, 37.6),
    "transformer": (28, 24.1),
}


@pytest.mark.parametrize("name", CEILINGS)
def test_launches_and_bytes_of_a_training_step(name: str) -> None:
    training = make_step(name)
    (arrays,) = training.batches(1)
    step = emit_step(cuda_artifact(training.step, *arrays).fused[0])
    print(f"\n{name}\n{step.describe()}")
    launches, megabytes = CEILINGS[name]
    assert len(step.launches) <= launches
    assert sum(cost.bytes for cost in step.costs) <= megabytes * 1e6


@pytest.mark.skipif(bool(cuda_compile.missing()) or cuda_compile.tool_folder() is None, reason="ptxas is not there")
@pytest.mark.parametrize("shape", [(16, 32768), (65, 511), (300, 10)], ids=str)
def test_rows_stay_in_registers(shape: tuple[int, int]) -> None:
    """No spills and no local memory, and few enough registers for a block of 1024 threads."""
    for name in ("softmax", "layer_norm"):
        step = emit_step(cuda_artifact(with_gradient(ROWS[name]), zeros(*shape), zeros(*shape)).fused[0])
        module = cuda_compile.CudaModule(step)
        for kernel in step.kernels:
            _, needs = cuda_compile.assemble(module.ptx(kernel.name))
            assert (needs.spills, needs.stack) == (0, 0) and needs.registers <= 64, kernel.name
