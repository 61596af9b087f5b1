"""`memory_budget=`: the arena keeps to it, results stay what they are (its parts: test_memory_budget_parts.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim
from fusegraph.build import Options, optimised
from fusegraph.codegen.memory import plan_memory
from fusegraph.errors import MemoryBudgetError, OptionError
from fusegraph.memory_budget import bytes_of, planned
from tests.compile_tools import training_step

Arrays = tuple[np.ndarray[Any, Any], ...]


# -- models ---------------------------------------------------------------------------------------------------------------


class Deep(nn.Module):
    """A chain of linear layers, with dropout behind each if `p` is not 0."""

    def __init__(self, layers: int, width: int, p: float = 0.0, dtype: str = "float32") -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(width, width, dtype=dtype) for _ in range(layers)])
        self.p = p

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x).relu()
            x = F.dropout(x, self.p) if self.p else x
        return x


class Block(nn.Module):
    """A transformer block: attention and a GELU layer, each behind a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        y = self.before(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(self.between(x))))


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def images(count: int) -> Arrays:
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, count)


def rows(count: int, width: int) -> Arrays:
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, width)).astype(np.float32), rng.integers(0, width, count)


def words(batch: int, length: int, width: int) -> Arrays:
    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, length, width)).astype(np.float32), rng.integers(0, width, (batch, length))


MODELS: dict[str, tuple[Callable[[], nn.Module], Arrays]] = {
    "mlp of 12 layers": (lambda: Deep(12, 64), rows(64, 64)),
    "chain with dropout": (lambda: Deep(8, 64, 0.3), rows(64, 64)),
    "lenet": (lenet, images(16)),
    "transformer": (lambda: Block(32, 2), words(4, 16, 32)),
}
# what of the arena without a budget each can do with
REACHED = {"mlp of 12 layers": 0.25, "chain with dropout": 0.3, "lenet": 0.85, "transformer": 0.55}


def compiled_training(name: str, **options: Any) -> tuple[Any, nn.Module, Arrays]:
    """A compiled step of a model with momentum, always of the same initial values and random numbers."""
    fg.manual_seed(7)
    make, arrays = MODELS[name]
    model = make()
    opt = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def loss(out: Any, y: Any) -> Any:
        return F.cross_entropy(out.reshape(-1, out.shape[-1]), y.reshape(-1))

    return fg.compile(training_step(model, opt, loss), **options), model, arrays


def train(step: Any, model: nn.Module, arrays: Arrays, steps: int = 3) -> list[np.ndarray[Any, Any]]:
    losses = [step(*arrays).numpy() for _ in range(steps)]
    return [*losses, *(np.array(p.detach().numpy()) for p in model.parameters())]


def arena_of(step: Any, arrays: Arrays) -> int:
    return int(step.explain(*arrays).programs[0]["memory"]["arena_bytes"])


def close(got: list[Any], wanted: list[Any]) -> None:
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


# -- training steps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_step_within_a_budget_gives_the_same_results(name: str) -> None:
    free, model, arrays = compiled_training(name)
    wanted = train(free, model, arrays)
    budget = int(arena_of(free, arrays) * REACHED[name])
    step, model, arrays = compiled_training(name, memory_budget=budget)
    close(train(step, model, arrays), wanted)
    assert arena_of(step, arrays) <= budget
    artifact = step.compiled_for().artifact
    assert artifact.executable.layout.arena_bytes <= budget, "what is allocated is what is planned"


def test_results_are_the_same_bits_where_kernels_compute_in_the_same_order() -> None:
    before = fg.get_num_threads()
    fg.set_num_threads(1)
    try:
        step, model, arrays = compiled_training("mlp of 12 layers")
        wanted = train(step, model, arrays)
        step, model, arrays = compiled_training("mlp of 12 layers", memory_budget=int(0.3 * arena_of(step, arrays)))
        got = train(step, model, arrays)
    finally:
        fg.set_num_threads(before)
    assert step.compiled_for().artifact.fitted.copies
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_dropout_draws_the_same_numbers_again() -> None:
    """Copies of random bits take the counter as it was at the beginning of the step."""
    step, model, arrays = compiled_training("chain with dropout")
    wanted = train(step, model, arrays)
    whole = arena_of(step, arrays)
    step, model, arrays = compiled_training("chain with dropout", memory_budget=int(0.3 * whole))
    close(train(step, model, arrays), wanted)
    fitted = step.compiled_for().artifact.fitted
    given, now = (sum(node.op == "random_bits" for node in graph.nodes) for graph in (fitted.given, fitted.fused.graph))
    assert now > given == 8


@pytest.mark.parametrize(
    "options", [{"fuse": False}, {"exact": True}, {"verify": True}, {"backend": "python"}, {"disable": ("cse",)}]
)
def test_other_options(options: dict[str, Any]) -> None:
    def run(**more: Any) -> tuple[Any, list[Any], Arrays]:
        fg.manual_seed(1)
        model, arrays = Deep(5, 8, 0.2), rows(6, 8)
        opt = optim.Adam(model.parameters(), lr=0.01)
        step = fg.compile(training_step(model, opt), **options, **more)
        return step, train(step, model, arrays, 2), arrays

    step, wanted, arrays = run()
    budget = int(0.7 * plan_memory(step.compiled_for().artifact.fused[0]).arena_bytes)
    step, got, arrays = run(memory_budget=budget)
    close(got, wanted)
    assert plan_memory(step.compiled_for().artifact.fused[0]).arena_bytes <= budget


def test_the_arena_of_a_gpu_program() -> None:
    free, _, arrays = compiled_training("mlp of 12 layers", backend="cuda", target="sm_90")
    whole = free.compiled_for(*arrays).artifact.executable.step.memory.arena_bytes
    step, _, arrays = compiled_training(
        "mlp of 12 layers", backend="cuda", target="sm_90", memory_budget=int(0.6 * whole)
    )
    artifact = step.compiled_for(*arrays).artifact
    assert artifact.executable.step.memory.arena_bytes <= 0.6 * whole


def test_gradients_by_finite_differences() -> None:
    fg.manual_seed(2)
    model = Deep(6, 5, dtype="float64")
    x = fg.tensor(np.random.default_rng(1).uniform(0.5, 1.5, (4, 5)), requires_grad=True)

    def loss(x: Any) -> Any:
        return (model(x).sin() * 0.5).sum()

    def gradient(x: Any) -> Any:
        return fg.autograd.grad(loss(x), [x])[0]

    whole = arena_of(fg.compile(gradient), (x,))
    fast = fg.compile(gradient, memory_budget=int(0.6 * whole))
    got = fast(x).detach().numpy()
    assert arena_of(fast, (x,)) <= 0.6 * whole
    for place in ((0, 0), (1, 3), (3, 4)):
        step = np.zeros((4, 5))
        step[place] = 1e-6
        with fg.no_grad():
            values = [float(loss(fg.tensor(x.detach().numpy() + sign * step)).numpy()) for sign in (1, -1)]
        np.testing.assert_allclose(got[place], (values[0] - values[1]) / 2e-6, rtol=1e-5, atol=1e-8)


# -- a compiled model: forward and backward as two programs ------------------------------------------------------------------


def gradients_of(name: str, **options: Any) -> tuple[Any, list[Any], int]:
    """(the compiled model; output and gradients; bytes kept for the backward program and of both arenas)."""
    fg.manual_seed(3)
    make, (x, _) = MODELS[name]
    model = make()
    fast = fg.compile(model, **options)
    given = fg.tensor(x, requires_grad=True)
    fg.manual_seed(4)
    out = fast(given)
    (out * out).sum().backward()
    version = fast.compiled_for()
    total = sum(node.nbytes for node in version.joint.saved)
    total += sum(artifact.executable.layout.arena_bytes for artifact in version.artifacts)
    found = [out.detach().numpy(), given.grad.numpy(), *(p.grad.numpy() for p in model.parameters())]
    return fast, found, total


@pytest.mark.parametrize("name", ["mlp of 12 layers", "chain with dropout", "transformer"])
def test_what_is_kept_for_the_backward_program_counts(name: str) -> None:
    free, wanted, whole = gradients_of(name)
    fast, got, total = gradients_of(name, memory_budget=whole // 2)
    assert total <= whole // 2
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(np.abs(b).max()))
    assert len(fast.compiled_for().joint.saved) < len(free.compiled_for().joint.saved)


def test_what_cannot_be_kept_of_a_model() -> None:
    with pytest.raises(MemoryBudgetError, match=r"kept for the backward program, arenas of \d+ and \d+ bytes"):
        gradients_of("mlp of 12 layers", memory_budget="20kB")


# -- errors -------------------------------------------------------------------------------------------------------------------


def test_the_error_says_what_is_alive_and_changes_nothing() -> None:
    step, model, arrays = compiled_training("mlp of 12 layers", memory_budget=1000)
    before = [np.array(p.detach().numpy()) for p in model.parameters()]
    with pytest.raises(MemoryBudgetError) as caught:
        step(*arrays)
    text = str(caught.value)
    assert "memory_budget=1000 bytes cannot be kept" in text and "test_memory_budget.py" in text
    assert "float32[64, 64]" in text and "Give a budget of at least" in text
    assert isinstance(caught.value, OptionError)
    assert all(p.grad is None for p in model.parameters())
    for parameter, value in zip(model.parameters(), before, strict=True):
        np.testing.assert_array_equal(parameter.detach().numpy(), value)
    smallest = int(text.partition("has ")[2].split()[0])
    assert f"at least {smallest} bytes" in text
    again, model, arrays = compiled_training("mlp of 12 layers", memory_budget=int(1.05 * smallest))
    train(again, model, arrays, 1)
    assert arena_of(again, arrays) <= 1.05 * smallest


@pytest.mark.parametrize("wrong", [0, -5, 1.5, True, "", "much", "64 apples", "-1MB", "0"])
def test_wrong_budgets(wrong: Any) -> None:
    with pytest.raises(OptionError, match="memory_budget is a number of bytes"):
        fg.compile(lambda x: x, memory_budget=wrong)


def test_the_reference_has_no_memory_to_bound() -> None:
    with pytest.raises(OptionError, match="backend='reference' has none"):
        fg.compile(lambda x: x, memory_budget=100, backend="reference")


def test_sizes_as_text() -> None:
    assert [bytes_of(text) for text in ("64MB", "1.5 GiB", "10kb", "7", "3 B")] == [64 * 10**6, 3 << 29, 10**4, 7, 3]
    assert bytes_of(None) is None and bytes_of(12) == 12


# -- the report ------------------------------------------------------------------------------------------------------------


def test_the_report_says_what_the_budget_has_done() -> None:
    step, _, arrays = compiled_training("mlp of 12 layers")
    memory = step.explain(*arrays).programs[0]["memory"]
    assert memory["budget"] is None and "memory budget" not in str(step.explain(*arrays))
    budget = memory["arena_bytes"] // 3
    step, _, arrays = compiled_training("mlp of 12 layers", memory_budget=budget)
    found = step.explain(*arrays).programs[0]["memory"]["budget"]
    assert found["budget_bytes"] == budget and found["unlimited_bytes"] == memory["arena_bytes"]
    assert found["recomputed_bytes"] == sum(copy["bytes"] for copy in found["recomputed"]) > 0
    assert found["recomputed_operations"] > 0 and "test_memory_budget.py" in found["recomputed"][0]["lines"][0]
    text = str(step.explain(*arrays))
    assert f"{len(found['recomputed'])} value(s) of" in text and "are computed again (relu" in text
    assert step.compiled_for().artifact.stages[-1][0] == "recompute"


def test_a_budget_that_suffices_changes_nothing() -> None:
    free, _, arrays = compiled_training("lenet")
    step, _, arrays = compiled_training("lenet", memory_budget=arena_of(free, arrays))
    programs = [s.compiled_for(*arrays).artifact.fused[0] for s in (free, step)]
    assert str(programs[0]) == str(programs[1])


def test_planned_arenas_are_those_of_the_backend() -> None:
    step, _, arrays = compiled_training("lenet")
    artifact = step.compiled_for(*arrays).artifact
    graph, _ = optimised(artifact.source, Options())
    assert planned(graph, Options()).plan.arena_bytes == artifact.executable.layout.arena_bytes
