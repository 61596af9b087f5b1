"""Graph -> graph passes, and the order in which they run.

Each pass is one file with one idea. `run_pipeline` repeats them until none changes the graph: what one of them finds
makes room for another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from fusegraph.errors import OptionError
from fusegraph.ir.graph import Graph
from fusegraph.ir.verify import verify as verify_graph
from fusegraph.passes.base import Pass, RewriteBuilder, Rules, Value, rewrite, shared_nodes
from fusegraph.passes.cse import CSE
from fusegraph.passes.dce import DCE
from fusegraph.passes.gradients import GRADIENTS, SOFTMAX_PASS
from fusegraph.passes.pipeline_log import PassRun, PipelineLog
from fusegraph.passes.pool_masks import POOL_MASKS
from fusegraph.passes.products import PRODUCTS_PASS
from fusegraph.passes.reductions import REDUCTIONS_PASS
from fusegraph.passes.scalars import SCALARS_PASS
from fusegraph.passes.simplify import SIMPLIFY
from fusegraph.passes.sparse import SPARSE_PASS
from fusegraph.passes.sparse_cotangents import SPARSE_COTANGENTS_PASS
from fusegraph.passes.split_reduce import SPLIT_REDUCE

__all__ = ["PIPELINE", "Pass", "PassRun", "PipelineLog", "RewriteBuilder", "Rules", "Value", "rewrite", "run_pipeline"]

PIPELINE: tuple[Pass, ...] = (
    SIMPLIFY,
    CSE,
    GRADIENTS,
    POOL_MASKS,
    SOFTMAX_PASS,
    SCALARS_PASS,
    PRODUCTS_PASS,
    REDUCTIONS_PASS,
    SPARSE_COTANGENTS_PASS,
    SPARSE_PASS,
    SPLIT_REDUCE,
    DCE,
)

# Rounds over all passes. Traced training steps settle in two to four; the bound is for rules that work on long chains.
MAX_ROUNDS = 12


def run_pipeline(
    graph: Graph,
    disable: Iterable[str] = (),
    record: list[tuple[str, Graph]] | None = None,
    *,
    exact: bool = False,
    verify: bool | None = None,
    log: PipelineLog | None = None,
) -> Graph:
    """`graph` after all passes.

    disable: names of passes to leave out. record: gets (pass name, graph) for every pass that changed something, in
    order. exact: leave out the passes that change rounding. verify: check every intermediate graph (default: when the
    environment variable FUSEGRAPH_VERIFY is 1). log: gets what every pass did. Raises OptionError for an unknown name in
    `disable`.
    """
    checked = os.environ.get("FUSEGRAPH_VERIFY") == "1" if verify is None else verify
    chosen = [step for step in PIPELINE if step.name not in _known(disable) and (step.exact or not exact)]
    settled: dict[str, Graph] = {}
    with shared_nodes() as builder:
        for _ in range(MAX_ROUNDS):
            before = graph
            for step in chosen:
                if settled.get(step.name) is graph:
                    continue
                started = time.perf_counter()
                after = step(graph)
                if log is not None:
                    seconds = time.perf_counter() - started
                    log.runs.append(PassRun(step.name, len(graph.nodes), len(after.nodes), seconds, after is not graph))
                if after is graph:
                    settled[step.name] = graph
                    continue
                graph = verify_graph(after) if checked else after
                if record is not None:
                    record.append((step.name, graph))
            if graph is before:
                break
    if log is not None:
        log.became, log.fired = builder.became, builder.fired
    return graph


def _known(names: Iterable[str]) -> set[str]:
    wanted = {names} if isinstance(names, str) else set(names)
    names_of_all = [step.name for step in PIPELINE]
    for name in sorted(wanted):
        if name not in names_of_all:
            raise OptionError(f"no pass is called {name!r}; the passes are {', '.join(names_of_all)}")
    return wanted
