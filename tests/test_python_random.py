"""Random graphs through the passes, fusion and the printed Python, against the numpy reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import python_loops as loops
from random_graphs import random_graph

from fusegraph.codegen.python import print_program_source
from fusegraph.ir.graph import Graph
from fusegraph.ir.interpret import run as interpret
from fusegraph.ir.loops import Program
from fusegraph.passes import run_pipeline
from fusegraph.passes.fuse import fuse
from fusegraph.runtime.numba_backend import NumbaExecutable, PythonExecutable

Array = np.ndarray[Any, Any]


def check(graph: Graph, arrays: list[Array], program: Program, executable: Any, tolerance: float) -> None:
    """Outputs and updates of `program`, made from `graph`, are those of the reference."""
    found = loops.run(executable(program), dict(zip(program.inputs, arrays, strict=True)))
    outputs, updates = interpret(graph, arrays)
    inputs = dict(zip(graph.inputs, program.inputs, strict=True))
    names = [*program.outputs, *(inputs[old] for old, _ in graph.updates)]
    for name, wanted in zip(names, [*outputs, *updates], strict=True):
        assert found[name].dtype == wanted.dtype, name
        compare = found[name].reshape(wanted.shape)
        np.testing.assert_allclose(compare, wanted, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(seed: int) -> None:
    """As they are and after the passes; merged into few kernels, and one kernel a root."""
    graph, arrays = random_graph(seed, 25)
    for built in (graph, run_pipeline(graph)):
        for merge in (True, False):
            check(graph, arrays, fuse(built, merge)[0], PythonExecutable, 1e-9)


@pytest.mark.parametrize("seed", range(40, 60))
def test_random_graphs_with_special_values(seed: int) -> None:
    """NaN, infinities and zeros of both signs among the inputs; each root a kernel of its own."""
    graph, arrays = random_graph(seed, 20, special=True)
    check(graph, arrays, fuse(graph, False)[0], PythonExecutable, 1e-9)


@pytest.mark.parametrize("seed", [3, 17])
def test_random_graphs_compiled(seed: int) -> None:
    graph, arrays = random_graph(seed, 18, dtype="float32")
    check(graph, arrays, fuse(run_pipeline(graph))[0], NumbaExecutable, 1e-4)


def test_random_programs_are_formatted(tmp_path: Path) -> None:
    """As black and ruff would write them."""
    for seed in range(30):
        graph, _ = random_graph(seed, 25)
        (tmp_path / f"random{seed}.py").write_text(print_program_source(fuse(run_pipeline(graph))[0]))
    # A random graph compares values with themselves, and chooses between equal ones: no rules but those of the layout.
    assert loops.ruff_complains(tmp_path, "E", "W", "F", "I") == ""
