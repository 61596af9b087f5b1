"""Scatters on CUDA: by atomic additions, and with exact=True in the reference's order of addition, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph.build import Artifact
from fusegraph.codegen.cuda.step import emit_step
from fusegraph.runtime import cuda_compile
from tests.cuda_traffic import check, cuda_artifact, measure, random_inputs, reference

pytestmark = pytest.mark.skipif(
    bool(cuda_compile.missing()), reason=f"kernels cannot be compiled: {cuda_compile.missing()}"
)
Array = np.ndarray[Any, Any]


def table_gradient(rows: int, width: int, words: int, padding: int | None = None) -> tuple[Artifact, list[Array]]:
    """The gradient of an embedding table, for many words of few kinds; the words are the inputs' last array."""

    def step(table: Any, words: Any, weight: Any) -> Any:
        table.requires_grad_()
        (F.embedding(words, table, padding_idx=padding) * weight).sum().backward()
        return table.grad

    arrays = [np.zeros((rows, width), np.float32), np.zeros(words, np.int64), np.zeros((words, width), np.float32)]
    artifact = cuda_artifact(step, *arrays)
    rng = np.random.default_rng(rows + width)
    inputs = random_inputs(artifact)
    shapes = {name: artifact.fused[0].buffers[name].dtype for name in artifact.fused[0].inputs}
    for place, dtype in enumerate(shapes.values()):
        if dtype.kind == "i":
            inputs[place] = np.asarray(rng.integers(0, rows, words), dtype)
    return artifact, inputs


CASES = [(5, 7, 300, None), (5, 7, 300, 0), (33, 1, 65, None), (3, 50, 0, None), (1, 4, 40, None), (70, 33, 90, 2)]


@pytest.mark.parametrize("exact", [False, True], ids=["atomic", "exact"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_of_a_table(case: tuple[int, int, int, int | None], exact: bool) -> None:
    check(*table_gradient(*case), exact=exact)


@pytest.mark.parametrize("case", [(5, 7, 300, None), (70, 33, 90, 2)], ids=str)
def test_exact_is_the_reference_bit_for_bit(case: tuple[int, int, int, int | None]) -> None:
    artifact, inputs = table_gradient(*case)
    step = emit_step(artifact.fused[0], exact=True)
    assert not any("atomic_add" in kernel.source for kernel in step.kernels)
    wanted = reference(artifact, inputs)[0]
    for _ in range(2):
        got = measure(step, [value.copy() for value in inputs])[0][0]
        np.testing.assert_array_equal(got.reshape(wanted.shape).view(np.uint32), wanted.view(np.uint32))


def test_a_thread_owns_an_element() -> None:
    artifact, _ = table_gradient(5, 7, 300)
    kernels = emit_step(artifact.fused[0], exact=True).kernels
    assert any("a thread owns an element" in kernel.source for kernel in kernels)


@pytest.mark.parametrize("exact", [False, True], ids=["atomic", "exact"])
def test_put_add_along_axes(exact: bool) -> None:
    def step(x: Any, places: Any, values: Any) -> Any:
        return x.scatter_add(0, places, values), x.scatter_add(1, places, values)

    arrays = [np.zeros((9, 9), np.float32), np.zeros((7, 5), np.int64), np.zeros((7, 5), np.float32)]
    artifact = cuda_artifact(step, *arrays)
    check(artifact, random_inputs(artifact, whole=9), exact=exact)


@pytest.mark.parametrize("exact", [False, True], ids=["atomic", "exact"])
def test_integers(exact: bool) -> None:
    arrays = [np.zeros(6, np.int64), np.zeros(50, np.int64), np.zeros(50, np.int64)]
    artifact = cuda_artifact(lambda x, places, values: fg.as_tensor(x).scatter_add(0, places, values), *arrays)
    check(artifact, random_inputs(artifact, whole=6), exact=exact)
