"""`memory_budget=`: the arena keeps to it, results stay what they are; and the parts that it is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fusion_graphs import random_arrays, random_graph
from program_checker import run_checked

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim
from fusegraph.build import Options, optimised
from fusegraph.codegen.memory import plan_memory
from fusegraph.errors import MemoryBudgetError, OptionError
from fusegraph.ir import interpret
from fusegraph.ir.graph import Graph
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.ir.text import parse, print_graph
from fusegraph.ir.verify import verify
from fusegraph.ir.verify_loops import verify_program
from fusegraph.memory_budget import bytes_of, planned
from fusegraph.passes import run_pipeline
from fusegraph.passes.budget import DoesNotFit, Fitted, within_budget
from fusegraph.passes.evict import NEVER, Shortage, Step, Value, schedule
from fusegraph.passes.fuse import fuse
from fusegraph.passes.recompute import Fused
from fusegraph.passes.saved_values import cuts

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


def training_step(name: str, **options: Any) -> tuple[Any, nn.Module, Arrays]:
    """A compiled step of a model with momentum, always of the same initial values and random numbers."""
    fg.manual_seed(7)
    make, arrays = MODELS[name]
    model = make()
    opt = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    @fg.compile(**options)
    def step(x: Any, y: Any) -> Any:
        opt.zero_grad()
        out = model(x)
        loss = F.cross_entropy(out.reshape(-1, out.shape[-1]), y.reshape(-1))
        loss.backward()
        opt.step()
        return loss

    return step, model, arrays


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
    free, model, arrays = training_step(name)
    wanted = train(free, model, arrays)
    whole = arena_of(free, arrays)
    for share in (REACHED[name], 0.5 + REACHED[name] / 2):
        budget = int(whole * share)
        step, model, arrays = training_step(name, memory_budget=budget)
        close(train(step, model, arrays), wanted)
        assert arena_of(step, arrays) <= budget
        artifact = step.compiled_for().artifact
        assert artifact.executable.layout.arena_bytes <= budget, "what is allocated is what is planned"


def test_results_are_the_same_bits_where_kernels_compute_in_the_same_order() -> None:
    before = fg.get_num_threads()
    fg.set_num_threads(1)
    try:
        step, model, arrays = training_step("mlp of 12 layers")
        wanted = train(step, model, arrays)
        step, model, arrays = training_step("mlp of 12 layers", memory_budget=int(0.3 * arena_of(step, arrays)))
        got = train(step, model, arrays)
    finally:
        fg.set_num_threads(before)
    assert step.compiled_for().artifact.fitted.copies
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_dropout_draws_the_same_numbers_again() -> None:
    """Copies of random bits take the counter as it was at the beginning of the step."""
    step, model, arrays = training_step("chain with dropout")
    wanted = train(step, model, arrays)
    whole = arena_of(step, arrays)
    step, model, arrays = training_step("chain with dropout", memory_budget=int(0.3 * whole))
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

        @fg.compile(**options, **more)
        def step(x: Any, y: Any) -> Any:
            opt.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            opt.step()
            return loss

        return step, train(step, model, arrays, 2), arrays

    step, wanted, arrays = run()
    budget = int(0.7 * plan_memory(step.compiled_for().artifact.fused[0]).arena_bytes)
    step, got, arrays = run(memory_budget=budget)
    close(got, wanted)
    assert plan_memory(step.compiled_for().artifact.fused[0]).arena_bytes <= budget


def test_the_arena_of_a_gpu_program() -> None:
    free, _, arrays = training_step("mlp of 12 layers", backend="cuda", target="sm_90")
    whole = free.compiled_for(*arrays).artifact.executable.step.memory.arena_bytes
    step, _, arrays = training_step("mlp of 12 layers", backend="cuda", target="sm_90", memory_budget=int(0.6 * whole))
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
    _, wanted, whole = gradients_of(name)
    for share in (0.75, 0.5):
        fast, got, total = gradients_of(name, memory_budget=int(share * whole))
        assert total <= share * whole
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(np.abs(b).max()))
    kept, before = (len(f.compiled_for().joint.saved) for f in (fast, gradients_of(name)[0]))
    assert kept < before


def test_what_cannot_be_kept_of_a_model() -> None:
    with pytest.raises(MemoryBudgetError, match=r"kept for the backward program, arenas of \d+ and \d+ bytes"):
        gradients_of("mlp of 12 layers", memory_budget="20kB")


# -- errors -------------------------------------------------------------------------------------------------------------------


def test_the_error_says_what_is_alive_and_changes_nothing() -> None:
    step, model, arrays = training_step("mlp of 12 layers", memory_budget=1000)
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
    again, model, arrays = training_step("mlp of 12 layers", memory_budget=int(1.05 * smallest))
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
    step, _, arrays = training_step("mlp of 12 layers")
    memory = step.explain(*arrays).programs[0]["memory"]
    assert memory["budget"] is None and "memory budget" not in str(step.explain(*arrays))
    budget = memory["arena_bytes"] // 3
    step, _, arrays = training_step("mlp of 12 layers", memory_budget=budget)
    found = step.explain(*arrays).programs[0]["memory"]["budget"]
    assert found["budget_bytes"] == budget and found["unlimited_bytes"] == memory["arena_bytes"]
    assert found["recomputed_bytes"] == sum(copy["bytes"] for copy in found["recomputed"]) > 0
    assert found["recomputed_operations"] > 0 and "test_memory_budget.py" in found["recomputed"][0]["lines"][0]
    text = str(step.explain(*arrays))
    assert f"{len(found['recomputed'])} value(s) of" in text and "are computed again (relu" in text
    assert step.compiled_for().artifact.stages[-1][0] == "recompute"


def test_a_budget_that_suffices_changes_nothing() -> None:
    free, _, arrays = training_step("lenet")
    step, _, arrays = training_step("lenet", memory_budget=arena_of(free, arrays))
    programs = [s.compiled_for(*arrays).artifact.fused[0] for s in (free, step)]
    assert str(programs[0]) == str(programs[1])


# -- random graphs -----------------------------------------------------------------------------------------------------------


def plan_of(graph: Graph, save_memory: bool) -> Fused:
    program, report = fuse(graph, save_memory=save_memory)
    return Fused(graph, program, program, plan_memory(program), report, save_memory)


def smallest(graph: Graph, budget: int) -> Fitted:
    try:
        return within_budget(graph, budget, plan_of)
    except DoesNotFit as failure:
        return failure.best


@pytest.mark.parametrize("block", range(3))
def test_random_graphs_compute_the_same_bits(block: int) -> None:
    """By the reference, and by a run of the program in the memory that the plan gives it."""
    copies = 0
    for seed in range(7000 + block * 24, 7024 + block * 24):
        graph = run_pipeline(random_graph(seed, steps=30))
        arrays = random_arrays(graph, seed, whole=False)
        wanted, updates = interpret.run(graph, [np.array(a) for a in arrays])
        whole = plan_of(graph, False).plan.arena_bytes
        fitted = smallest(graph, whole // 2)
        copies += len(fitted.copies)
        verify(fitted.fused.graph)
        verify_program(fitted.fused.program)
        assert parse(print_graph(fitted.fused.graph)) == fitted.fused.graph
        got, new = interpret.run(fitted.fused.graph, [np.array(a) for a in arrays])
        for a, b in zip([*got, *new], [*wanted, *updates], strict=True):
            np.testing.assert_array_equal(a, b)
        assert fitted.arena_bytes <= whole
        run_checked(fitted.fused.program, [np.array(a) for a in arrays])
    assert copies > 0


# -- the parts ---------------------------------------------------------------------------------------------------------------

LATE = """graph g(x: float64[64,64], w: float64[64,64]) {
  %1 = matmul(%x, %w) : float64[64,64]
  %2 = exp(%1) : float64[64,64]
  %3 = matmul(%2, %w) : float64[64,64]
  %4 = after(%x, %3) : float64[64,64]
  %5 = matmul(%4, %w) : float64[64,64]
  %6 = mul(%5, %3) : float64[64,64]
  return %6
}"""


def test_after_is_no_common_subexpression_and_orders_kernels() -> None:
    graph = parse(LATE)
    assert run_pipeline(graph) == graph
    program, _ = fuse(graph)
    order = [loop.name for loop in program.loops]
    assert len(order) == 3 and program.loops[-1].reads()[0] == "x"
    same = parse(LATE.replace("after(%x, %3)", "mul(%x, %x)"))
    early = fuse(same)[0]
    assert [loop.reads() for loop in early.loops] != [loop.reads() for loop in program.loops]


def test_after_is_the_value() -> None:
    x = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(PRIMITIVES["after"].reference(x, np.zeros(2)), x)


def chain(length: int) -> tuple[list[Step], list[Value]]:
    """A forward chain of values of 1000 bytes, each read again on the way back."""
    names = [f"a{i}" for i in range(length)]
    steps = [Step((names[i - 1],) if i else (), (names[i],)) for i in range(length)]
    steps += [Step((names[i],), ()) for i in reversed(range(length))]
    values = [
        Value(name, 1000, i, tuple(n for n in (i + 1, 2 * length - 1 - i) if n > i), (names[i - 1],) if i else (), 1.0)
        for i, name in enumerate(names)
    ]
    return steps, values


def replay(steps: list[Step], values: list[Value], limit: int) -> int:
    """How often something is computed again; every read finds its value, and no more than `limit` bytes are alive."""
    events, peak = schedule(steps, values, limit)
    assert peak <= limit
    of, made = {v.name: v for v in values}, set[str]()
    for event in events:
        if event.again is None:
            assert set(steps[event.step].reads) <= made
            made |= set(steps[event.step].writes)
        else:
            assert set(of[event.again].sources or ()) <= made
    assert [e.step for e in events if e.again is None] == list(range(len(steps)))
    return sum(event.again is not None for event in events)


def test_a_chain_is_computed_again_as_often_as_memory_demands() -> None:
    steps, values = chain(64)
    assert replay(steps, values, NEVER) == 0 and schedule(steps, values, NEVER)[1] == 64_000
    counts = [replay(steps, values, 1000 * slots) for slots in (64, 48, 32, 16, 8)]
    assert counts == sorted(counts) and counts[0] == 0
    assert counts[3] <= 64, "2 * sqrt(n) values: each of the others about once (Chen et al., 2016)"
    assert counts[4] <= 4 * 64
    with pytest.raises(Shortage, match="needs"):
        schedule(steps, values, 1500)


def test_the_minimum_cut_keeps_what_is_small_or_dear() -> None:
    graph = parse("""graph g(x: float32[64,64], w: float32[64,64], seed: float32[64,64]) {
      %1 = matmul(%x, %w) : float32[64,64]
      %2 = exp(%1) : float32[64,64]
      %3 = expand(%2; shape=(8, 64, 64)) : float32[8,64,64]
      %4 = sin(%3) : float32[8,64,64]
      %5 = expand(%seed; shape=(8, 64, 64)) : float32[8,64,64]
      %6 = mul(%4, %5) : float32[8,64,64]
      return %6
    }""")
    by_op = {node.op: node for node in graph.nodes}
    late = {node for node in graph.nodes if node.name == "seed" or node.op == "mul"} | {graph.nodes[-2]}
    found = cuts(graph, {by_op["sin"]}, late, set())
    kept = [sorted(node.op for node in cut) for cut in found]
    assert kept[0] == ["sin"] and kept[-1] == [] and ["matmul"] in kept or ["exp"] in kept, kept


def test_planned_arenas_are_those_of_the_backend() -> None:
    step, _, arrays = training_step("lenet")
    artifact = step.compiled_for(*arrays).artifact
    graph, _ = optimised(artifact.source, Options())
    assert planned(graph, Options()).plan.arena_bytes == artifact.executable.layout.arena_bytes
