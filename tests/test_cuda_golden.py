"""The text of a kernel of each kind (see test_cuda_emit.py for map, row, column and tile), linted, and right under the interpreter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusegraph.codegen.cuda.lint import lint
from fusegraph.codegen.cuda.step import CudaStep, emit_step
from fusegraph.ir import GraphBuilder, interpret
from fusegraph.ir.graph import Graph, Node
from fusegraph.runtime import cuda_compile
from tests.cuda_tools import artifact_of, run_step
from tests.op_sheets import compare

GOLDEN = Path(__file__).parent / "golden"
F32, I64, U32 = (np.dtype(kind) for kind in (np.float32, np.int64, np.uint32))


def graph_of(name: str, make: Callable[[GraphBuilder], Node]) -> Graph:
    """A graph with one output."""
    builder = GraphBuilder()
    return builder.finish([make(builder)], name=name)


def gather(b: GraphBuilder) -> Node:
    """Rows of a table, rectified."""
    taken = b.add("take", (b.input("table", (37, 12), F32), b.input("ids", (5, 11), I64)), {"axis": 0})
    return b.add("relu", (taken,), {})


def scatter(b: GraphBuilder) -> Node:
    """Rows added to a table of zeros."""
    operands = b.full(0.0, (37, 7), F32), b.input("ids", (55,), I64), b.input("rows", (55, 7), F32)
    return b.add("put_add", operands, {"axis": 0})


def conv(b: GraphBuilder) -> Node:
    """A padded convolution, rectified."""
    params = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
    made = b.add("conv", (b.input("image", (2, 3, 9, 9), F32), b.input("kernel", (5, 3, 3, 3), F32)), params)
    return b.add("relu", (made,), {})


def pooling(b: GraphBuilder) -> Node:
    """Max-pooling by two windows."""
    x = b.input("x", (3, 4, 8, 10), F32)
    rows = b.add("window", (x,), {"axis": 2, "size": 2, "stride": 2, "dilation": 1})
    both = b.add("window", (rows,), {"axis": 3, "size": 2, "stride": 2, "dilation": 1})
    return b.add("max", (both,), {"axes": (4, 5)})


def random(b: GraphBuilder) -> Node:
    """Dropout: elements whose random bits are small become 0."""
    x = b.input("x", (9, 13), F32)
    bits = b.add("random_bits", (b.input("key", (), U32), b.input("counter", (), U32)), {"shape": (9, 13)})
    kept = b.add("lt", (b.full(2**30, (9, 13), U32), bits), {})
    return b.add("where", (kept, x, b.full(0.0, (9, 13), F32)), {})


GRAPHS: dict[str, Callable[[GraphBuilder], Node]] = {
    "odd_map": lambda b: b.add("exp", (b.input("x", (3, 11), F32),), {}),
    "turned": lambda b: b.add("permute", (b.input("x", (33, 7), F32),), {"axes": (1, 0)}),
    "long_sum": lambda b: b.add("sum", (b.input("x", (70001,), F32),), {"axes": (0,)}),
    "position": lambda b: b.add("argmax", (b.input("x", (9, 65), F32),), {"axes": (1,)}),
    "product": lambda b: b.add("matmul", (b.input("x", (70, 40), F32), b.input("w", (40, 50), F32)), {}),
    "gather": gather,
    "scatter": scatter,
    "conv": conv,
    "pooling": pooling,
    "random": random,
}
EXACT = ("scatter",)
TEXTS = [*((name, False) for name in GRAPHS), *((name, True) for name in EXACT)]


def step_and_graph(name: str, exact: bool) -> tuple[CudaStep, Graph]:
    """The emitted step, and what it computes."""
    graph = graph_of(name, GRAPHS[name])
    return emit_step(artifact_of(graph).fused[0], exact), graph


@pytest.mark.parametrize(("name", "exact"), TEXTS)
def test_golden_texts(name: str, exact: bool, request: pytest.FixtureRequest) -> None:
    step, _ = step_and_graph(name, exact)
    assert lint(step.source) == []
    text = "\n\n\n".join(kernel.source for kernel in step.kernels) + "\n"
    path = GOLDEN / f"cuda_{name}{'_exact' * exact}.txt"
    if request.config.getoption("--update-golden"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def some(node: Node, rng: np.random.Generator) -> Any:
    """An input; ids lie in the table of 37 rows."""
    if node.dtype.kind == "f":
        return rng.standard_normal(node.shape).astype(node.dtype)
    return np.asarray(rng.integers(0, 37, node.shape)).astype(node.dtype)


@pytest.mark.skipif(bool(cuda_compile.missing()), reason=f"kernels cannot be compiled: {cuda_compile.missing()}")
@pytest.mark.parametrize(("name", "exact"), TEXTS)
def test_golden_kernels_are_right(name: str, exact: bool, rng: np.random.Generator) -> None:
    step, graph = step_and_graph(name, exact)
    inputs = [some(node, rng) for node in graph.inputs]
    (wanted,) = interpret.run(graph, inputs)[0]
    (got,) = run_step(step, inputs)
    assert compare([got.reshape(wanted.shape)], [wanted], [name]) == []
