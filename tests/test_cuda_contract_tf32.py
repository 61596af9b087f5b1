"""Products and convolutions on tensor cores (precision="tf32") under the PTX interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fusegraph.codegen.cuda.contract_plan import TENSOR_TILES, Tile
from fusegraph.codegen.cuda.lint import lint
from fusegraph.codegen.cuda.step import emit_step
from fusegraph.ir import GraphBuilder, interpret
from fusegraph.runtime import cuda_compile
from tests.cuda_tools import mnist_artifact, run_step, step_of
from tests.test_cuda_contract import CONVOLUTIONS, HOPPER, TURING, convolution, product

pytestmark = pytest.mark.skipif(
    bool(cuda_compile.missing()), reason=f"kernels cannot be compiled: {cuda_compile.missing()}"
)
SMALL, LARGE = Tile(32, 32, 16, 2, 4), Tile(128, 128, 16, 8, 8)
Array = np.ndarray[Any, Any]


def as_tf32(values: Array) -> Array:
    """Rounded to 10 bits of mantissa, halves away from zero."""
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    return ((bits + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32).reshape(values.shape)


def close(got: Array, wanted: Array, tolerance: float) -> None:
    """Within a part of the largest value."""
    scale = max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(got.reshape(wanted.shape) / scale, wanted / scale, rtol=0, atol=tolerance)


def check(left: tuple[int, ...], right: tuple[int, ...], turned: str, rng: np.random.Generator, **options: Any) -> str:
    """relu(left @ right + bias) against numpy: with rounded operands exactly, with float32 ones roughly. Gives the source."""
    graph = product(left, right, turned, bias=True)
    step = step_of(graph, precision="tf32", **options)
    stored = [rng.standard_normal(node.shape).astype(np.float32) for node in graph.inputs]
    (got,) = run_step(step, [array.copy() for array in stored])
    a, b = (array.swapaxes(-1, -2) if side == "T" else array for array, side in zip(stored, turned, strict=False))
    close(got, np.maximum(as_tf32(a).astype(np.float64) @ as_tf32(b).astype(np.float64) + stored[2], 0), 1e-5)
    close(got, np.maximum(a @ b + stored[2], 0), 1e-2)
    assert lint(step.source) == []
    return step.source


@pytest.fixture
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tile that every product of the test uses."""
    monkeypatch.setattr("fusegraph.codegen.cuda.contract_plan.choose_tile", lambda *sizes: request.param)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("tile", [SMALL], ids=str, indirect=True)
@pytest.mark.parametrize("turned", ["NN", "TT"])
def test_every_layout(turned: str, rng: np.random.Generator) -> None:
    """Element by element at odd sizes, and by fours. Each operand is read in its own way, whatever the other's layout."""
    source = check((37, 67), (67, 35), turned, rng)
    assert "mma_tf32" in source and "copy1_async_where" in source
    assert "copy4_async_where" in check((36, 36), (36, 44), turned, rng)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize(
    ("tile", "turned"),
    [(tile, turned) for tile, turned in zip(list(TENSOR_TILES)[1:4], ("NN", "TT", "NT"), strict=True)],
    ids=str,
    indirect=["tile"],
)
def test_other_tiles(turned: str, rng: np.random.Generator) -> None:
    check((131, 35), (35, 133), turned, rng)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("tile", [LARGE], ids=str, indirect=True)
def test_the_large_tile(rng: np.random.Generator) -> None:
    check((132, 52), (52, 131), "NT", rng)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("tile", [SMALL], ids=str, indirect=True)
def test_batches(rng: np.random.Generator) -> None:
    check((3, 17, 21), (3, 21, 19), "NT", rng)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("tile", [SMALL], ids=str, indirect=True)
@pytest.mark.parametrize("kind", ["conv", "conv_input_grad", "conv_weight_grad"])
def test_convolutions(kind: str, rng: np.random.Generator) -> None:
    sheet = convolution(CONVOLUTIONS[0], kind, rng)
    step = step_of(sheet.graph, precision="tf32")
    got = run_step(step, sheet.arrays)
    rounded = [as_tf32(array) for array in sheet.arrays]
    for exact, rough, value in zip(
        interpret.run(sheet.graph, rounded)[0], interpret.run(sheet.graph, sheet.arrays)[0], got, strict=True
    ):
        close(value, exact, 1e-5)
        close(value, rough, 1e-2)
    assert "mma_tf32" in step.source


def test_cards_without_tensor_cores_for_tf32_use_float32() -> None:
    graph = product((64, 64), (64, 64))
    older, newer = (step_of(graph, precision="tf32", capability=card).source for card in (TURING, HOPPER))
    assert "mma_tf32" not in older and "mma_tf32" in newer
    assert older == step_of(graph, capability=TURING).source


def test_products_in_double_precision_stay_as_they_are() -> None:
    builder = GraphBuilder()
    a, b = (builder.input(name, (64, 64), np.dtype(np.float64)) for name in "ab")
    graph = builder.finish([builder.add("matmul", (a, b), {})], name="double")
    assert step_of(graph, precision="tf32").source == step_of(graph).source


def test_a_training_step(rng: np.random.Generator) -> None:
    """Forward, backward and update of the MNIST network: near the reference, and every product on tensor cores."""
    artifact = mnist_artifact()
    program = artifact.fused[0]
    inputs: list[Array] = []
    for buffer in (program.buffers[name] for name in program.inputs):
        real = buffer.dtype.kind == "f"
        value = rng.standard_normal(buffer.shape) * 0.1 if real else rng.integers(0, 10, buffer.shape)
        inputs.append(np.asarray(value, buffer.dtype))
    outputs, updates = interpret.run(artifact.graph, [array.copy() for array in inputs])
    step = emit_step(program, precision="tf32")
    assert "mma_tf32(" in step.source and "outer_product" not in step.source
    got = run_step(step, inputs)
    for value, wanted in zip(got, outputs, strict=True):
        close(value, wanted, 1e-2)
    places = [artifact.graph.inputs.index(old) for old, _ in artifact.graph.updates]
    for place, wanted in zip(places, updates, strict=True):
        close(inputs[place], wanted, 1e-2)
