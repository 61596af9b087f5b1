"""Which kernels depend on which, while pairs of them merge: what is known of paths stays right, and an order stays possible."""

from __future__ import annotations

from heapq import heappush as push
from typing import Any

import networkx as nx
import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim
from fusegraph.build import Artifact
from fusegraph.passes import merge_pairs, run_pipeline
from fusegraph.passes.fuse import fuse
from fusegraph.passes.merge import KernelGraph
from tests.compile_tools import training_step
from tests.random_graphs import random_graph


class Watched(KernelGraph):
    """Compares each answer with a search through the graph, and merges often enough for kernels that span others."""

    asked = 0

    def path_besides(self, a: int, b: int) -> bool:
        """As the graph's own answer, which is checked."""
        graph = nx.DiGraph(
            [(n, after) for n, below in self.successors.items() for after in below if (n, after) != (a, b)]
        )
        graph.add_nodes_from([a, b])
        found = super().path_besides(a, b)
        assert found == nx.has_path(graph, a, b)
        Watched.asked += 1
        return found

    def replace(self, a: int, b: int, merged: Any) -> int:
        """As ever; kernels have an order afterwards."""
        number = super().replace(a, b, merged)
        assert sorted(self.order()) == sorted(self.groups)
        return number


@pytest.mark.parametrize("seed", range(40))
def test_random_merges_keep_an_order(seed):
    """Pairs that depend on each other in no way, or directly alone, merge until none are left."""
    rng = np.random.default_rng(seed)
    kernels = Watched.__new__(Watched)
    count = 16
    after = {n: {m for m in range(n + 1, count) if rng.random() < 0.15} for n in range(count)}
    kernels.groups, kernels.first = dict.fromkeys(range(count)), {n: n for n in range(count)}
    kernels.successors = after
    kernels.predecessors = {n: {m for m in range(n) if n in after[m]} for n in range(count)}
    graph = nx.DiGraph([(n, m) for n in after for m in after[n]])
    graph.add_nodes_from(range(count))
    kernels.below = {n: sum(1 << m for m in nx.descendants(graph, n)) for n in range(count)}
    kernels.bits = {n: 1 << n for n in range(count)}
    kernels._next = count
    for _ in range(60):
        a, b = (int(n) for n in rng.choice(list(kernels.groups), 2, replace=False))
        if not kernels.path_besides(a, b) and not kernels.path_besides(b, a):
            if a in kernels.successors[b]:
                a, b = b, a
            kernels.replace(a, b, None)
        if len(kernels.groups) == 2:
            break


def test_second_gradients_have_an_order(monkeypatch):
    """A graph of hundreds of small kernels without a space, most pairs of which may merge as siblings."""
    monkeypatch.setattr("fusegraph.passes.fuse.KernelGraph", Watched)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 2))
    parameters = list(model.parameters())

    def second(x, y):
        first = fg.autograd.grad(F.cross_entropy(model(x), y), parameters, create_graph=True)
        return fg.autograd.grad(sum((g * g).sum() for g in first), parameters, allow_unused=True)

    x, y = fg.ones(1, 3), fg.tensor([1])
    before = Watched.asked
    found = fg.compile(second)(x, y)
    assert Watched.asked > before + 50
    for ours, eager in zip(found, second(x, y), strict=True):
        np.testing.assert_allclose(ours.numpy(), eager.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("save_memory", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_pairs_that_wait_change_nothing(seed, save_memory, monkeypatch):
    """Kernels that share only what many read form pairs late: merges, their order and refusals are as if all formed at once."""
    graph = run_pipeline(random_graph(seed=seed, steps=40)[0])
    found = []
    for readers in (1, 4, 1 << 30):
        monkeypatch.setattr("fusegraph.passes.merge_pairs.COMMON_READERS", readers)
        program, report = fuse(graph, save_memory=save_memory)
        found.append((str(program), report.merges, report.refusals))
    assert found[0] == found[1] == found[2]


def test_few_pairs_form_between_updates_that_share_a_learning_rate(monkeypatch):
    """Three times the layers form about three times the pairs, not nine times."""
    formed = []
    monkeypatch.setattr(merge_pairs.heapq, "heappush", lambda heap, pair: (formed.append(pair), push(heap, pair)))
    counts = []
    for layers in (8, 24):
        formed.clear()
        _ = _trained(layers).fused
        counts.append(len(formed))
    assert counts[1] < 5 * counts[0]


def _trained(layers: int) -> Artifact:
    """A training step of a deep network."""
    model = nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(16, 16), nn.ReLU())))
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    step = fg.compile(training_step(model, optimizer), backend="reference")
    step(fg.ones(4, 16), fg.tensor([0, 1, 2, 3]))
    return step._last.artifact
