"""Trainings through the CUDA runtime on an emulated GPU give the numbers of backend="cpu"; where values live, and what moves."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph.errors import DeviceError
from fusegraph.runtime.cuda.residency import is_watched
from tests.cuda_runtime_tools import Training, agree, batches, emulated, needs_wheels

pytestmark = needs_wheels


@pytest.mark.parametrize(
    ("model", "optimizer", "options"),
    [
        ("mlp", "sgd", {}),
        ("mlp", "adam", {"graphs": False}),
        ("net", "sgd", {}),
        ("words", "adam", {}),
        ("mlp", "sgd", {"capability": (8, 6), "races": True}),
    ],
)
def test_training_equals_the_cpu(model: str, optimizer: str, options: dict[str, Any]) -> None:
    data = batches(model, 4)
    expected = Training(model, "cpu", optimizer)
    losses = [expected.step(x, y).item() for x, y in data]
    with emulated(**options):
        training = Training(model, "cuda", optimizer)
        got = [training.step(x, y).item() for x, y in data]
        state = training.state()
    np.testing.assert_allclose(got, losses, rtol=1e-5)
    agree(state, expected.state())


def test_a_step_is_one_graph_and_moves_its_batch_and_its_loss_only() -> None:
    data = batches("mlp", 5)
    with emulated() as gpu:
        training = Training("mlp", "cuda", "adam")
        for x, y in data[:2]:
            training.step(x, y)
        before = gpu.counts.copy()
        for x, y in data[2:]:
            training.step(x, y)
        gpu.counts.subtract(before)
        assert (gpu.counts["graphs"], gpu.counts["captures"], gpu.counts["allocations"]) == (3, 0, 0)
        assert gpu.counts["bytes_in"] == sum(x.nbytes + y.nbytes for x, y in data[2:])
        assert gpu.counts["bytes_out"] == 3 * 4
        assert all(map(is_watched, training.model.parameters()))


def test_parameters_read_between_steps_show_the_new_values() -> None:
    data = batches("mlp", 4)
    expected = Training("mlp", "cpu")
    with emulated() as gpu:
        training = Training("mlp", "cuda")
        for x, y in data:
            expected.step(x, y)
            training.step(x, y)
            agree(training.state(), expected.state())
        copied = gpu.counts["bytes_out"]
        agree(training.state(), expected.state())
        assert gpu.counts["bytes_out"] == copied  # the host has them


def test_an_array_that_somebody_holds_shows_every_step_and_its_changes_reach_the_next() -> None:
    data = batches("mlp", 4)
    expected, held_there = Training("mlp", "cpu"), []
    with emulated():
        training = Training("mlp", "cuda")
        views = [training.model[0].weight.detach().numpy(), expected.model[0].weight.detach().numpy()]
        for x, y in data:
            training.step(x, y)
            expected.step(x, y)
            np.testing.assert_allclose(views[0], views[1], rtol=0, atol=1e-5)
            held_there.append(not is_watched(training.model[0].weight) and is_watched(training.model[2].weight))
            for view in views:
                view[2] *= 0.5
        agree(training.state(), expected.state())
    assert all(held_there)


def test_a_change_on_the_host_without_a_trace_reaches_the_next_step() -> None:
    """Written to memory that is not held afterwards, and through the tensor's own methods."""
    data = batches("mlp", 3)
    both = {}
    with emulated():
        for backend in ("cpu", "cuda"):
            training = Training("mlp", backend)
            for x, y in data:
                training.step(x, y)
                training.model[0].weight.detach().numpy()[1, 2] += 1
                with fg.no_grad():
                    training.model[2].bias.copy_(training.model[2].bias * 2)
            both[backend] = training.state()
    agree(both["cuda"], both["cpu"])


def test_two_functions_share_what_is_on_the_device() -> None:
    data = batches("mlp", 3)
    expected = Training("mlp", "cpu")
    with emulated() as gpu:
        training = Training("mlp", "cuda")
        for x, y in data:
            training.step(x, y)
            expected.step(x, y)
            with fg.no_grad():
                got, wanted = training.scores(x).numpy(), expected.scores(x).numpy()
            np.testing.assert_allclose(got, wanted, atol=1e-5)
        before = gpu.counts["bytes_in"]
        training.step(*data[0])
        with fg.no_grad():
            training.scores(data[0][0])
        assert gpu.counts["bytes_in"] - before == 2 * data[0][0].nbytes + data[0][1].nbytes


def test_backward_outside_of_the_function() -> None:
    """Forward and backward are two programs; the optimizer runs on the host."""
    data = batches("net", 3)
    states = []
    with emulated():
        for backend in ("cpu", "cuda"):
            training = Training("net", backend)
            model = fg.compile(training.model, backend=backend)
            for x, y in data:
                training.optimizer.zero_grad()
                F.cross_entropy(model(x), fg.tensor(y)).backward()
                training.optimizer.step()
            states.append(training.state())
    agree(states[1], states[0])


def test_the_short_way_of_a_repeated_step_sees_everything_that_changes() -> None:
    """Looks, changes on the host, another learning rate, a larger batch (the arena moves), a step that fails."""
    data, large = batches("mlp", 10), batches("mlp", 1, rows=400)[0]
    both: dict[str, Any] = {}
    short: list[bool] = []
    with emulated() as gpu:
        for backend in ("cpu", "cuda"):
            training = Training("mlp", backend, "adam")
            losses = []
            for number, (x, y) in enumerate(data):
                losses.append(training.step(fg.tensor(x) if number % 2 else x, y).item())
                if backend == "cuda":
                    short.append(training.step.compiled_for().steady is not None)
                if number == 3:
                    losses.append(float(training.model[0].weight.abs().sum().item()))
                if number == 5:
                    training.model[2].weight.detach().numpy()[0] += 1
                    training.optimizer.param_groups[0]["lr"] = 0.05
                if number == 7:
                    losses.append(training.step(*large).item())
                if number == 8 and backend == "cuda":
                    gpu.refuse = {"launch_graph": 1}
                    with pytest.raises(DeviceError, match="refused"):
                        training.step(x, y)
                    with pytest.raises(IndexError):
                        training.step(x, y + 2)
            both[backend] = {**training.state(), "losses": np.array(losses)}
    agree(both["cuda"], both["cpu"])
    assert short == [False] + 9 * [True]


def test_a_watched_argument_and_a_captured_one_as_an_argument_go_the_long_way() -> None:
    with emulated():
        weight = fg.tensor(np.ones((2, 2), np.float32))
        add = fg.compile(lambda x: x + weight, backend="cuda")
        x = np.full((2, 2), 2, np.float32)
        for _ in range(4):
            assert add(x).tolist() == [[3, 3], [3, 3]]
        assert add.compiled_for().steady is not None
        assert is_watched(weight)
        assert add(weight).tolist() == [[2, 2], [2, 2]]
        with fg.no_grad():
            weight.copy_(weight * 5)
        assert add(x).tolist() == [[7, 7], [7, 7]]
        assert add(weight).tolist() == [[10, 10], [10, 10]]


def test_another_version_and_a_cpu_function_see_the_same_parameters() -> None:
    data, small = batches("mlp", 2), batches("mlp", 1, rows=3)
    states = []
    with emulated():
        for backend in ("cpu", "cuda"):
            training = Training("mlp", backend)
            scores = fg.compile(lambda x, t=training: t.model(x), backend="cpu")
            seen = []
            for x, y in (data[0], small[0], data[1], small[0]):
                training.step(x, y)
                with fg.no_grad():
                    seen.append(scores(x).numpy())
            states.append({**training.state(), **{str(i): value for i, value in enumerate(seen)}})
    agree(states[1], states[0])


def test_large_results_stay_until_somebody_looks() -> None:
    x = np.arange(40_000, dtype=np.float32).reshape(200, 200) / 1000
    with emulated() as gpu:
        double = fg.compile(lambda x: (x * 2, x.sum()), backend="cuda")
        once, total = double(x)
        assert is_watched(once) and not is_watched(total)
        before = gpu.counts.copy()
        twice, _ = double(once)
        assert gpu.counts["bytes_in"] == before["bytes_in"]  # from device to device
        assert gpu.counts["bytes_out"] - before["bytes_out"] == 4
        np.testing.assert_allclose(twice.numpy(), x * 4)
        np.testing.assert_allclose(once.numpy(), x * 2)
        assert once.shape == (200, 200) and total.item() == pytest.approx(float(x.sum()), rel=1e-5)


def test_memory_goes_back_with_what_used_it() -> None:
    with emulated() as gpu:
        training = Training("mlp", "cuda")
        for x, y in batches("mlp", 2):
            training.step(x, y)
        del training
        gc.collect()
        fg.compile(lambda x: x + 1, backend="cuda")(np.ones(4, np.float32))
        assert len(gpu.live_graphs) == 1 and len(gpu.live_kernels) == 1


def test_an_argument_that_is_overwritten() -> None:
    with emulated():

        @fg.compile(backend="cuda")
        def bump(x: fg.Tensor) -> fg.Tensor:
            x.copy_(x * 2)
            return x.sum()

        x = fg.tensor(np.ones(6, np.float32))
        assert [bump(x).item() for _ in range(3)] == [12, 24, 48]
        assert x.tolist() == [8] * 6


def test_the_same_result_twice_empty_results_and_other_types() -> None:
    with emulated():
        x = fg.tensor(np.arange(6, dtype=np.int32).reshape(2, 3))
        twice = fg.compile(lambda x: (x + 1, x + 1, x > 2), backend="cuda")
        a, b, c = twice(x)
        a.numpy()[0] = 0
        assert b.tolist() == [[1, 2, 3], [4, 5, 6]] and c.tolist() == [[False] * 3, [True] * 3]
        nothing = fg.compile(lambda x: x * 2, backend="cuda")(np.zeros((0, 3), np.float32))
        assert nothing.shape == (0, 3)


def test_several_threads() -> None:
    data = batches("mlp", 6)
    expected = Training("mlp", "cpu")
    with fg.no_grad():
        wanted = [expected.scores(x).numpy() for x, _ in data]
    with emulated():
        training = Training("mlp", "cuda")
        got: dict[int, Any] = {}

        def work(number: int) -> None:
            with fg.no_grad():
                for k in range(number, len(data), 3):
                    got[k] = training.scores(data[k][0]).numpy()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for k, value in enumerate(wanted):
        np.testing.assert_allclose(got[k], value, atol=1e-5)


def test_verify_runs_beside_the_reference() -> None:
    data = batches("mlp", 2)
    expected = Training("mlp", "cpu")
    with emulated():
        training = Training("mlp", "cuda", verify=True)
        for x, y in data:
            expected.step(x, y)
            training.step(x, y)
        agree(training.state(), expected.state())


def test_everything_is_on_the_host_when_the_device_is_given_back() -> None:
    data = batches("mlp", 3)
    expected = Training("mlp", "cpu")
    with emulated():
        training = Training("mlp", "cuda")
        for x, y in data:
            training.step(x, y)
            expected.step(x, y)
    assert not any(map(is_watched, training.model.parameters()))
    agree(training.state(), expected.state())
    with emulated():  # another device
        training.step(*data[0])
        expected.step(*data[0])
        agree(training.state(), expected.state())
