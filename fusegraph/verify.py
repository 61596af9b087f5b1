"""`verify=True`: every call runs beside the numpy reference, and a difference is pinned to the first operation that shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fusegraph.errors import CompilerError
from fusegraph.ir import interpret
from fusegraph.ir.graph import Graph, Node
from fusegraph.records import replace

if TYPE_CHECKING:
    from fusegraph.build import Artifact

Array = np.ndarray[Any, Any]
# Largest difference that is put down to rounding, relative to the largest value of the array: sums of a few thousand terms.
TOLERANCE = {"float32": 2e-4, "float64": 1e-10}
ROUNDED = {
    "tf32": 1e-2,
    "float16": 1e-2,
    "bfloat16": 5e-2,
}  # float32, where operands of products have 10 or 7 bits of mantissa


def differs(got: Array, expected: Array, tolerance: Mapping[str, float] = TOLERANCE) -> str:
    """What is different, in words; "" when the arrays agree up to rounding (NaN and inf must stand at the same places).

    tolerance: by dtype, the largest difference that is put down to rounding, relative to the largest value.
    """
    if got.dtype.kind != "f":
        return "" if np.array_equal(got, expected) else f"{int((got != expected).sum())} of {got.size} elements differ"
    special = ~np.isfinite(expected)
    if not np.array_equal(got[special], expected[special], equal_nan=True) or not np.isfinite(got[~special]).all():
        return "inf or NaN at other places"
    if not got.size or special.all():
        return ""
    scale = max(float(np.abs(expected[~special]).max()), 1e-30)
    error = float(np.abs(got[~special] - expected[~special]).max()) / scale
    return (
        "" if error <= tolerance[got.dtype.name] else f"largest difference {error:.2g} of the largest value {scale:.4g}"
    )


def run_verified(artifact: Artifact, inputs: Sequence[Array]) -> list[Array]:
    """Run the artifact; raise CompilerError, with everything as it was, if the reference disagrees."""
    before = [np.array(value) for value in inputs]
    outputs, updates = interpret.run(artifact.source, before)
    results = artifact.executable.run(inputs)
    positions = [artifact.source.inputs.index(old) for old, _ in artifact.source.updates]
    pairs = list(zip([r.reshape(o.shape) for r, o in zip(results, outputs, strict=True)], outputs, strict=True))
    pairs += [(inputs[i], new) for i, new in zip(positions, updates, strict=True)]
    nodes = [*artifact.source.outputs, *(new for _, new in artifact.source.updates)]
    for node, (got, expected) in zip(nodes, pairs, strict=True):
        if problem := differs(got, expected, _tolerance(artifact)):
            for array, value in zip(inputs, before, strict=True):
                if array.flags.writeable:
                    np.copyto(array, value)
            raise CompilerError(
                f"{artifact.source.name}: {node.op} at {node.location}: {problem}; {_culprit(artifact, before)}"
            )
    return results


def _tolerance(artifact: Artifact) -> Mapping[str, float]:
    precision = artifact.options.precision
    return {**TOLERANCE, "float32": ROUNDED.get(precision, TOLERANCE["float32"])}


def _culprit(artifact: Artifact, inputs: Sequence[Array]) -> str:
    """The first operation whose own kernel differs from the reference, found by running every value as an output, unfused."""
    from fusegraph.build import build
    from fusegraph.passes.roots import choose_roots

    graph = artifact.graph
    roots: list[Node] = choose_roots(graph)
    values = interpret.evaluate(graph, inputs)
    probe = build(
        Graph(f"{graph.name}_probe", graph.inputs, tuple(roots)),
        replace(artifact.options, fuse=False, verify=False, memory_budget=None, autotune="off"),
    )
    for node, got in zip(roots, probe.run([np.array(value) for value in inputs]), strict=True):
        if problem := differs(got, values[node], _tolerance(artifact)):
            what = f"{node.op} {node.dtype.name}{list(node.shape)} at {node.location}"
            return f"the first operation that differs is {what}: {problem}"
    return "each operation alone is right: the difference comes from fusing them (compile with fuse=False to go on)"
