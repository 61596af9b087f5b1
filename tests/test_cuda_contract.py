"""Products and convolutions on CUDA under the PTX interpreter: every tile, with and without cp.async, at odd sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fusegraph.codegen.cuda.contract_plan import TILES, Tile
from fusegraph.codegen.cuda.lint import lint
from fusegraph.codegen.cuda.step import emit_step
from fusegraph.ir import GraphBuilder, interpret
from fusegraph.ir.graph import Graph
from fusegraph.ir.loops import Program
from fusegraph.ir.scalar import make
from fusegraph.runtime import cuda_compile
from tests.cuda_tools import artifact_of, run_step, step_of
from tests.op_sheets import Case, sheet_of
from tests.ptx import SharedRace, Uninitialised

F32 = np.dtype(np.float32)
pytestmark = pytest.mark.skipif(
    bool(cuda_compile.missing()), reason=f"kernels cannot be compiled: {cuda_compile.missing()}"
)
TURING, HOPPER = (7, 5), (9, 0)


def product(left: tuple[int, ...], right: tuple[int, ...], turned: str = "NN", bias: bool = False) -> Graph:
    """relu(left @ right [+ bias]); turned: T where an operand lies transposed in memory."""
    builder = GraphBuilder()

    def operand(name: str, shape: tuple[int, ...], side: str) -> Any:
        axes = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
        stored = tuple(shape[axis] for axis in axes) if side == "T" else shape
        node = builder.input(name, stored, F32)
        return builder.add("permute", (node,), {"axes": axes}) if side == "T" else node

    a, b = operand("a", left, turned[0]), operand("b", right, turned[1])
    out = builder.add("matmul", (a, b), {})
    if bias:
        row = builder.input("bias", (1,) * (len(left) - 1) + right[-1:], F32)
        out = builder.add("add", (out, builder.add("expand", (row,), {"shape": (*left[:-1], right[-1])})), {})
    return builder.finish([builder.add("relu", (out,), {})], name="product")


def check(graph: Graph, rng: np.random.Generator, tolerance: float = 1e-5, **options: Any) -> str:
    """The step's result against numpy's; gives its source."""
    inputs = [rng.standard_normal(node.shape).astype(np.float32) for node in graph.inputs]
    step = step_of(graph, **options)
    got = run_step(step, [array.copy() for array in inputs])
    wanted = interpret.run(graph, inputs)[0]
    for g, w in zip(got, wanted, strict=True):
        scale = max(1.0, float(np.abs(w).max()))
        np.testing.assert_allclose(g.reshape(w.shape) / scale, w / scale, rtol=0, atol=tolerance)
    assert lint(step.source) == []
    return step.source


@pytest.fixture
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Tile:
    """The tile that every product of the test uses."""
    monkeypatch.setattr("fusegraph.codegen.cuda.contract_plan.choose_tile", lambda *sizes: request.param)
    chosen: Tile = request.param
    return chosen


SMALL = Tile(32, 32, 16, 4, 1)
QUADS = Tile(32, 128, 8, 4, 4)


@pytest.mark.parametrize(
    ("tile", "turned"),
    [(tile, "TT" if number % 2 else "NN") for number, tile in enumerate(TILES) if tile.tall > 1],
    ids=str,
    indirect=["tile"],
)
def test_every_tile_with_copies_at_once(tile: Tile, turned: str, rng: np.random.Generator) -> None:
    """Guards on all sides; by fours, and for the transposed half of the tiles element by element too."""
    rows, columns, depth = tile.rows, tile.columns, tile.depth
    source = check(product((rows + 4, 3 * depth + 4), (3 * depth + 4, columns + 4), turned), rng, capability=HOPPER)
    assert "copy4_async_where(" in source
    if turned == "TT":
        source = check(product((rows + 2, 5 * depth - 1), (5 * depth - 1, columns + 3), turned), rng, capability=HOPPER)
        assert "copy1_async_where(" in source


@pytest.mark.parametrize("tile", [SMALL], ids=str, indirect=True)
@pytest.mark.parametrize("sums", [1, 16, 48, 65])
def test_any_number_of_steps(tile: Tile, sums: int, rng: np.random.Generator) -> None:
    """Fewer steps than buffers, as many, and one or two over."""
    check(product((33, sums), (sums, 36), bias=True), rng, capability=HOPPER)


@pytest.mark.parametrize("tile", [SMALL], ids=str, indirect=True)
@pytest.mark.parametrize(
    ("turned", "capability"), [("NN", TURING), ("TT", TURING), ("NT", HOPPER), ("TN", HOPPER)], ids=str
)
def test_batches_of_odd_size(tile: Tile, turned: str, capability: tuple[int, int], rng: np.random.Generator) -> None:
    check(product((3, 37, 21), (3, 21, 19), turned), rng, capability=capability)


def with_computed_operand(program: Program) -> Program:
    """The program of one product with relu(left) in place of the left factor, computed where it is read."""
    (loop,) = program.loops
    reduce = loop.stages[0].reduces[0]
    left, right = reduce.value.args
    value = make("mul", (make("relu", (left,), left.dtype), right), reduce.dtype)
    first = replace(loop.stages[0], reduces=(replace(reduce, value=value),))
    return program.with_loops((replace(loop, stages=(first, *loop.stages[1:])),))


@pytest.mark.parametrize("tile", [QUADS], ids=str, indirect=True)
@pytest.mark.parametrize("sizes", [(33, 45, 38), (36, 48, 40)], ids=str)
@pytest.mark.parametrize("capability", [TURING, HOPPER], ids=str)
def test_an_operand_that_is_computed_goes_through_registers(
    tile: Tile, sizes: tuple[int, int, int], capability: tuple[int, int], rng: np.random.Generator
) -> None:
    rows, sums, columns = sizes
    program = with_computed_operand(artifact_of(product((rows, sums), (sums, columns), bias=True)).fused[0])
    a, b, bias = (rng.standard_normal(program.buffers[n].shape).astype(np.float32) for n in program.inputs)
    step = emit_step(program, capability=capability)
    (got,) = run_step(step, [a, b, bias])
    np.testing.assert_allclose(got, np.maximum(np.maximum(a, 0) @ b + bias, 0), rtol=1e-5, atol=1e-5)
    assert "left_next" in step.source and ("right_next" in step.source) == (capability == TURING)


# a line that every step of the pipeline needs -> what the interpreter says where it is missing
NEEDED = {"wait_older_copies()": (Uninitialised,), "cuda.syncthreads()": (Uninitialised, SharedRace)}


@pytest.mark.parametrize("tile", [SMALL], ids=str, indirect=True)
@pytest.mark.parametrize("line", NEEDED)
def test_a_pipeline_that_forgets_to_wait_is_caught(tile: Tile, line: str, rng: np.random.Generator) -> None:
    graph = product((32, 96), (96, 32))
    step = step_of(graph, capability=HOPPER)
    inputs = [rng.standard_normal(node.shape).astype(np.float32) for node in graph.inputs]
    assert step.source.count(line) >= 3
    with pytest.raises(NEEDED[line]):
        run_step(replace(step, source=step.source.replace(line, "pass")), inputs)


CONVOLUTIONS = [
    ((2, 3, 9, 8), (5, 3, 3, 3), {"stride": (1, 1), "padding": ((1, 1), (1, 0)), "dilation": (1, 1), "groups": 1}),
    ((2, 4, 11, 9), (8, 4, 3, 2), {"stride": (2, 1), "padding": ((0, 2), (1, 1)), "dilation": (1, 2), "groups": 1}),
    ((2, 4, 7, 8), (6, 2, 3, 3), {"stride": (1, 2), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 2}),
]


def convolution(case: tuple[Any, ...], kind: str, rng: np.random.Generator) -> Any:
    """A sheet with the convolution, or with its gradient by the input or by the weights."""
    image, weights, params = case
    sheet = sheet_of([Case("conv", tuple(rng.standard_normal(s).astype(np.float32) for s in (image, weights)), params)])
    if kind == "conv":
        return sheet
    maps = rng.standard_normal(sheet.graph.outputs[0].shape).astype(np.float32)
    if kind == "conv_weight_grad":
        x = rng.standard_normal(image).astype(np.float32)
        return sheet_of([Case(kind, (x, maps), {**params, "kernel": weights[2:]})])
    w = rng.standard_normal(weights).astype(np.float32)
    return sheet_of([Case(kind, (maps, w), {**params, "size": image[2:]})])


@pytest.mark.parametrize("tile", [SMALL], ids=str, indirect=True)
@pytest.mark.parametrize("kind", ["conv", "conv_input_grad", "conv_weight_grad"])
@pytest.mark.parametrize(
    ("case", "capability"),
    [*((case, HOPPER) for case in CONVOLUTIONS), (CONVOLUTIONS[0], TURING)],
    ids=["padded", "strided and dilated", "groups", "through registers"],
)
def test_convolutions_and_their_gradients(
    tile: Tile, case: tuple[Any, ...], capability: tuple[int, int], kind: str, rng: np.random.Generator
) -> None:
    sheet = convolution(case, kind, rng)
    step = step_of(sheet.graph, capability=capability)
    got, wanted = run_step(step, sheet.arrays), interpret.run(sheet.graph, sheet.arrays)[0]
    for g, w in zip(got, wanted, strict=True):
        scale = max(1.0, float(np.abs(w).max()))
        np.testing.assert_allclose(g.reshape(w.shape) / scale, w / scale, rtol=0, atol=1e-5)
    assert lint(step.source) == []
