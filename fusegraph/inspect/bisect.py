"""Which fusion changes a result: found by doing only the first N of them (`fuse_limit=N`), and halving.

What is right is the same program with no fusion at all, on the same backend; that in turn is compared with the numpy reference. All
runs are on copies of the same inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fusegraph.errors import OptionError
from fusegraph.ir import interpret
from fusegraph.ir.graph import Node
from fusegraph.records import dataclass
from fusegraph.verify import TOLERANCE, differs

if TYPE_CHECKING:
    from fusegraph.build import Artifact
    from fusegraph.compiler import Compiled
    from fusegraph.passes.fusion_state import Merge

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Bisection:
    """What was found. fusions: how many there are in all.

    culprit, number   the fusion that changes a result, and its place (1: the first); None, None: no fusion does
    result, problem   which result differs, and how; "", "" if none
    unfused           how results without any fusion differ from the numpy reference; "" if they do not
    """

    name: str
    fusions: int
    culprit: Merge | None = None
    number: int | None = None
    result: str = ""
    problem: str = ""
    unfused: str = ""

    def __str__(self) -> str:
        if self.unfused:
            return f"{self.name}: wrong without any fusion ({self.unfused}); compile with verify=True to find the operation"
        if self.culprit is None:
            return f"{self.name}: none of its {self.fusions} fusions changes a result"
        a, b = self.culprit.producer_node, self.culprit.consumer_node
        return (
            f"{self.name}: fusion {self.number} of {self.fusions} changes {self.result} ({self.problem})\n"
            f"  {self.culprit.producer}  +  {self.culprit.consumer}\n"
            f"  {a.op} at {a.location} goes into {b.op} at {b.location}\n"
            f"  fuse_limit={(self.number or 1) - 1} is right, fuse_limit={self.number} is not"
        )

    __repr__ = __str__


def bisect(function: Compiled, *args: Any, tolerance: float | None = None, **kwargs: Any) -> Bisection:
    """Find the fusion that changes a result of `function` on these arguments; its backward program is tried after the forward.

    tolerance: the largest difference that is rounding, relative to a result's largest value (None: by dtype). With several that
    do, it names one of them. Raises OptionError for the backend "reference", which fuses nothing.
    """
    from fusegraph.inspect.profile import backward_inputs, copied_inputs

    version = function.compiled_for(*args, **kwargs)
    if version.artifact.options.backend == "reference":
        raise OptionError("backend='reference' fuses nothing: bisect another one, cpu for example")
    inputs = copied_inputs(version, args, kwargs)
    found = _bisect(version.artifact, inputs, tolerance)
    if version.backward is None or found.culprit is not None or found.unfused:
        return found
    return _bisect(version.backward, backward_inputs(version, copied_inputs(version, args, kwargs)), tolerance)


def _bisect(artifact: Artifact, inputs: Sequence[Array], tolerance: float | None) -> Bisection:
    name, graph = artifact.source.name, artifact.source
    merges = _with_limit(artifact, None).fused[1].merges
    wanted = _results(artifact, inputs, 0)
    outputs, updates = interpret.run(graph, [np.array(value) for value in inputs])
    if wrong := _difference(artifact, wanted, [*outputs, *updates], tolerance):
        return Bisection(name, len(merges), unfused=": ".join(wrong))
    if not (wrong := _difference(artifact, _results(artifact, inputs, None), wanted, tolerance)):
        return Bisection(name, len(merges))
    right, bad = 0, len(merges)
    while bad - right > 1:
        middle = (right + bad) // 2
        found = _difference(artifact, _results(artifact, inputs, middle), wanted, tolerance)
        right, bad, wrong = (right, middle, found) if found else (middle, bad, wrong)
    return Bisection(name, len(merges), merges[bad - 1], bad, *wrong)


def _with_limit(artifact: Artifact, limit: int | None) -> Artifact:
    from fusegraph.build import build

    return build(artifact.source, artifact.options.changed(fuse=True, fuse_limit=limit, verify=False))


def _results(artifact: Artifact, inputs: Sequence[Array], limit: int | None) -> list[Array]:
    """Outputs, then updated inputs, with the first `limit` fusions."""
    given = [np.array(value) for value in inputs]
    made = _with_limit(artifact, limit).run(given)
    positions = [artifact.source.inputs.index(old) for old, _ in artifact.source.updates]
    return [*made, *(given[position] for position in positions)]


def _difference(
    artifact: Artifact, got: Sequence[Array], wanted: Sequence[Array], tolerance: float | None
) -> tuple[str, str] | tuple[()]:
    """(which result, how it differs) of the first that does."""
    graph = artifact.source
    names = [f"output {number}" for number in range(len(graph.outputs))] + [old.name for old, _ in graph.updates]
    nodes: list[Node] = [*graph.outputs, *(new for _, new in graph.updates)]
    for name, node, a, b in zip(names, nodes, got, wanted, strict=True):
        allowed = dict.fromkeys(TOLERANCE, tolerance) if tolerance is not None else TOLERANCE
        if problem := differs(a.reshape(node.shape), b.reshape(node.shape), allowed):
            return name, problem
    return ()
