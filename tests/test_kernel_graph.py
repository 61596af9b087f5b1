"""Which kernels depend on which, while pairs of them merge: what is known of paths stays right, and an order stays possible."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn
from fusegraph.passes.merge import KernelGraph


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
