"""Split-K: which products are cut along their sums, and that they are right, and the same in every run."""

from __future__ import annotations

import numpy as np
import pytest

from fusegraph.codegen.cuda.contract_split import choose_parts
from fusegraph.ir import GraphBuilder, interpret
from fusegraph.ir.graph import Graph
from fusegraph.ir.index import Axis
from fusegraph.runtime import cuda_compile
from tests.cuda_tools import run_step, step_of
from tests.op_sheets import Case, sheet_of
from tests.test_cuda_contract import product

needs_wheels = pytest.mark.skipif(
    bool(cuda_compile.missing()), reason=f"kernels cannot be compiled: {cuda_compile.missing()}"
)


def parts(rows: int, columns: int, sums: int) -> int:
    return choose_parts((1, rows, columns, sums), Axis("k1", sums))


def test_few_outputs_and_long_sums_are_cut() -> None:
    assert parts(16, 12, 4096) > 8
    assert parts(10, 64, 60000) > 32
    assert 60000 % parts(10, 64, 60000) == 0 and 60000 // parts(10, 64, 60000) % 4 == 0


def test_what_fills_the_card_or_is_short_is_not_cut() -> None:
    assert parts(4096, 4096, 4096) == 1
    assert parts(784, 32, 64) == 1
    assert parts(16, 12, 64) == 1


def test_sums_that_no_number_divides_are_not_cut() -> None:
    assert parts(16, 12, 4093) == 1


def test_more_outputs_are_cut_into_fewer_parts() -> None:
    counts = [parts(size, size, 8192) for size in (32, 128, 512, 2048)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1] == 1


@needs_wheels
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_a_long_product(precision: str, rng: np.random.Generator) -> None:
    graph = product((19, 3072), (3072, 21), "TN", bias=True)
    inputs = [(rng.standard_normal(node.shape) / 16).astype(np.float32) for node in graph.inputs]
    step = step_of(graph, precision=precision)
    assert len(step.kernels) == 2 and not any("atomic_add(" in kernel.source for kernel in step.kernels)
    got, again = (run_step(step, [array.copy() for array in inputs])[0] for _ in range(2))
    assert got.tobytes() == again.tobytes()
    wanted = np.maximum(inputs[0].T.astype(np.float64) @ inputs[1] + inputs[2], 0)
    tolerance = 1e-5 if precision == "float32" else 1e-2
    np.testing.assert_allclose(got.reshape(wanted.shape), wanted, rtol=tolerance, atol=tolerance)


@needs_wheels
def test_the_gradient_of_a_convolution_is_cut_along_its_images(rng: np.random.Generator) -> None:
    image, maps = (rng.standard_normal(shape).astype(np.float32) for shape in ((30, 2, 14, 13), (30, 5, 12, 11)))
    params = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1, "kernel": (3, 3)}
    sheet = sheet_of([Case("conv_weight_grad", (image, maps), params)])
    step = step_of(sheet.graph)
    assert len(step.kernels) == 2
    (got,), (wanted,) = run_step(step, sheet.arrays), interpret.run(sheet.graph, sheet.arrays)[0]
    np.testing.assert_allclose(got.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_exact_and_readable_steps_are_not_cut() -> None:
    builder = GraphBuilder()
    a, b = (builder.input(name, shape, np.dtype(np.float32)) for name, shape in (("a", (16, 4096)), ("b", (4096, 12))))
    graph: Graph = builder.finish([builder.add("matmul", (a, b), {})], name="long")
    assert len(step_of(graph).kernels) == 2
    assert len(step_of(graph, exact=True).kernels) == len(step_of(graph, readable=True).kernels) == 1
