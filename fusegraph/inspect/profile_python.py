"""Timing the kernels of backends that Python runs: the printed source (interpreted or compiled by numba), and numpy."""

from __future__ import annotations

import time
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fusegraph.ir import interpret

if TYPE_CHECKING:
    from fusegraph.build import Artifact
    from fusegraph.inspect.report import Report

Array = np.ndarray[Any, Any]
ARRIVED, BEGUN, ENDED = 0, 1, 2


def time_python(artifact: Artifact, inputs: list[Array], steps: int, warm_up: int) -> Array:
    """Nanoseconds [step, one thread, kernel, arrived/begun/ended] since each step began; `inputs` change."""
    kernels = len(artifact.fused[0].loops)
    found = np.zeros((steps, 1, kernels, 3))
    run = _numpy_run(artifact) if artifact.options.backend == "reference" else _source_run(artifact)
    for step in range(-warm_up, steps):
        stamps = np.zeros((kernels, 3))
        begun = time.perf_counter_ns()
        run(inputs, stamps)
        if step >= 0:
            found[step, 0] = stamps - begun * (stamps != 0)
    return found


def _source_run(artifact: Artifact) -> Callable[[list[Array], Array], None]:
    """The printed module's `step` on other names: its kernels, each with the clock read around it."""
    outer: Any = artifact.executable
    inner, program = outer.inner, artifact.fused[0]
    current: list[Array] = []
    namespace = dict(inner._namespace)
    for number, loop in enumerate(program.loops):
        namespace[loop.name] = _timed(inner._namespace[loop.name], current, number)
    step = inner._namespace["step"]
    timed_step = types.FunctionType(step.__code__, namespace, "step", step.__defaults__)
    inner_like = types.SimpleNamespace(**vars(inner))
    inner_like._namespace = namespace | {"step": timed_step}
    run_inner = type(inner).run

    def run(inputs: list[Array], stamps: Array) -> None:
        current[:] = [stamps]
        arrays = dict(zip(program.inputs, inputs, strict=True))
        for name in program.outputs:
            buffer = program.buffers[name]
            arrays[name] = np.empty(buffer.shape, buffer.dtype)
        with outer._lock:
            run_inner(inner_like, arrays)

    return run


def _timed(kernel: Callable[..., Any], current: list[Array], number: int) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        begun = time.perf_counter_ns()
        result = kernel(*arguments)
        current[0][number] = (begun, begun, time.perf_counter_ns())
        return result

    return call


def _numpy_run(artifact: Artifact) -> Callable[[list[Array], Array], None]:
    """numpy, one operation at a time. A kernel's time is that of its operations, laid end to end from the first."""
    graph = artifact.source
    traced: list[Report] = artifact.report["graph"]["nodes"]
    owner = {node: report["kernels"][0] for node, report in zip(graph.nodes, traced, strict=True) if report["kernels"]}

    def run(inputs: list[Array], stamps: Array) -> None:
        values: dict[Any, Array] = dict(zip(graph.inputs, inputs, strict=True))
        for node in graph.nodes:
            if node.op == "input":
                continue
            begun = time.perf_counter_ns()
            values[node] = interpret.apply(node.op, [values[value] for value in node.inputs], node.params)
            taken = time.perf_counter_ns() - begun
            if node in owner:
                row = stamps[owner[node]]
                if not row.any():
                    row[:] = begun
                row[ENDED] += taken
        for old, new in graph.updates:
            np.copyto(values[old], values[new])

    return run
