"""Profiles: every kernel has a time, nothing that runs changes, traces open elsewhere; the machine's limits."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim
from fusegraph.build import step_code
from fusegraph.errors import IndexRangeError, OptionError, UnsupportedError
from fusegraph.inspect.profile import Timing
from fusegraph.runtime import calibration
from fusegraph.runtime.calibration import Calibration, Roofline
from tests.cuda_runtime_tools import emulated, needs_wheels

BACKENDS = ("cpu", "python", "reference", "numba")
MACHINE = Calibration(
    Roofline(1, 100.0, ((1 << 15, 200.0), (1 << 20, 50.0))), Roofline(4, 400.0, ((1 << 15, 800.0), (1 << 20, 80.0)))
)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of a machine that is faster than any: tests measure nothing."""
    monkeypatch.setattr(calibration, "stored", lambda: MACHINE)
    monkeypatch.setattr(calibration, "measure_again", lambda: MACHINE)


class Model:
    """A training step with dropout, momentum and an index argument, and all that it changes."""

    def __init__(self, **options: Any) -> None:
        fg.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
        self.opt = optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)

        @fg.compile(**options)
        def step(x: Any, y: Any) -> Any:
            self.opt.zero_grad()
            loss = F.cross_entropy(self.net(x), y)
            loss.backward()
            self.opt.step()
            return loss

        self.step = step

    def state(self) -> list[np.ndarray[Any, Any]]:
        version = self.step.compiled_for()
        return [np.array(tensor._value) for tensor in version.captured]


BATCH = (np.linspace(-1, 1, 30, dtype=np.float32).reshape(5, 6), np.array([0, 1, 2, 0, 1]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_kernel_has_a_time_and_nothing_changes(backend: str) -> None:
    plain = Model(backend=backend)
    expected = [np.asarray(plain.step(*BATCH)) for _ in range(2)]
    profiled = Model(backend=backend)
    np.testing.assert_array_equal(np.asarray(profiled.step(*BATCH)), expected[0])
    before = profiled.state()
    batch = [array.copy() for array in BATCH]
    profile = profiled.step.profile(*batch, steps=3, warm_up=1)
    for a, b in zip(before, profiled.state(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(batch, BATCH, strict=True):
        np.testing.assert_array_equal(a, b)
    (program,) = profile.to_dict()["programs"]
    assert all(kernel["time_ns"] > 0 and kernel["idle_ns"] >= 0 for kernel in program["kernels"])
    assert program["profile"]["steps"] == 3 and program["profile"]["total_ns"] > 0
    np.testing.assert_array_equal(np.asarray(profiled.step(*BATCH)), expected[1])
    for a, b in zip(plain.state(), profiled.state(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_figures_follow_from_the_times() -> None:
    (program,) = Model().step.profile(*BATCH, steps=3).to_dict()["programs"]
    for kernel in program["kernels"]:
        moved = kernel["bytes_read"] + kernel["bytes_written"]
        assert kernel["gb_s"] == pytest.approx(moved / kernel["time_ns"])
        assert kernel["gflop_s"] == pytest.approx(kernel["flops"] / kernel["time_ns"])
        assert kernel["floor_ns"] == MACHINE.roofline(kernel["threads"]).floor_ns(moved, kernel["flops"])
        assert kernel["share_of_roofline"] == pytest.approx(kernel["floor_ns"] / kernel["time_ns"])
    assert json.loads(json.dumps(program)) == program


def test_the_step_that_runs_has_no_clock_in_it() -> None:
    model = Model()
    artifact = model.step.compiled_for(*BATCH).artifact
    before = step_code(artifact).text
    model.step.profile(*BATCH, steps=1)
    assert step_code(artifact).text == before and "counter()" not in before
    timed = step_code(artifact, "llvm.readcyclecounter").text
    assert timed.count("@llvm.readcyclecounter()") == 3 * len(artifact.fused[0].loops) + 1
    untimed = [line for line in before.splitlines() if line.startswith("define") or "call void @k" in line]
    kernels = [line.partition("(")[0] for line in untimed]
    assert all(kernel in timed for kernel in kernels)


def test_several_threads_have_rows_of_their_own() -> None:
    function = fg.compile(lambda x: (x.exp() + 1.0).sum(1).tanh())
    profile = function.profile(np.ones((64, 500), np.float32), steps=2, threads=2)
    assert profile.timings[0].threads == 2
    trace = profile.to_chrome_trace()
    assert {event["tid"] for event in trace["traceEvents"] if event["ph"] == "X"} == {0, 1}


def test_a_model_is_timed_forward_and_backward() -> None:
    model = fg.compile(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)))
    profile = model.profile(np.ones((5, 3), np.float32), steps=2)
    assert [program["phase"] for program in profile.to_dict()["programs"]] == ["forward", "backward"]
    assert all(kernel["time_ns"] for program in profile.explanation.programs for kernel in program["kernels"])


def test_explain_and_dump_show_the_times_of_the_last_profile(tmp_path: Path) -> None:
    step = Model().step
    assert " took " not in str(step.explain(*BATCH))
    profile = step.profile(*BATCH, steps=2)
    text = str(step.explain(*BATCH))
    assert text.count("      took ") == step.explain().kernels and "of the roofline" in text
    step.dump(tmp_path, *BATCH)
    assert json.loads((tmp_path / "report.json").read_text()) == profile.to_dict()
    other = (BATCH[0][:3], BATCH[1][:3])
    assert " took " not in str(step.explain(*other))


def test_the_table_lists_the_slowest_kernel_first() -> None:
    profile = Model().step.profile(*BATCH, steps=2)
    rows = str(profile).splitlines()[2:-2]
    times = [float(row.split()[1]) for row in rows]
    assert times == sorted(times, reverse=True) and len(rows) == profile.explanation.kernels
    assert "us a call on" in str(profile) and "waited for each other" in str(profile)
    assert "measured" in profile.to_markdown()


def test_a_trace_is_what_perfetto_opens(tmp_path: Path) -> None:
    profile = Model().step.profile(*BATCH, steps=3)
    path = tmp_path / "trace.json"
    trace = profile.to_chrome_trace(path)
    assert json.loads(path.read_text()) == trace
    kernels = [event for event in trace["traceEvents"] if event["ph"] == "X" and event["cat"] != "idle"]
    names = {kernel["name"] for kernel in profile.explanation.programs[0]["kernels"]}
    assert {event["name"] for event in kernels} == names
    for event in trace["traceEvents"]:
        assert event["pid"] == 1 and isinstance(event["tid"], int)
        if event["ph"] == "X":
            assert event["ts"] >= 0 and event["dur"] >= 0
    for thread in {event["tid"] for event in kernels}:
        mine = sorted((e["ts"], e["ts"] + e["dur"]) for e in kernels if e["tid"] == thread)
        assert all(a[1] <= b[0] + 1e-6 for a, b in zip(mine, mine[1:], strict=False))
    with pytest.raises(OptionError, match="cannot write the trace"):
        profile.to_chrome_trace(tmp_path / "no" / "trace.json")


def test_times_are_read_from_stamps() -> None:
    #                  thread 0: kernel 0, kernel 1            thread 1
    stamps = np.array([[[[0, 1, 5], [5, 7, 9]], [[0, 2, 7], [7, 7, 7]]]], float)
    timing = Timing(stamps, (True, False))
    assert timing.threads == 2
    assert timing.kernel_ns().tolist() == [[5, 2]]  # the busiest thread; the second runs on thread 0 alone
    assert timing.idle_ns().tolist() == [[3, 2]]
    assert timing.total_ns().tolist() == [9] and timing.tail_ns().tolist() == [2]
    assert timing.typical() == 0


@pytest.mark.parametrize("backend", ["cpu", "python", "reference"])
@pytest.mark.parametrize(
    "function", [lambda x: x, lambda x: x[:0].exp(), lambda x: None], ids=["same", "empty", "none"]
)
def test_programs_that_compute_nothing(function: Any, backend: str, tmp_path: Path) -> None:
    compiled = fg.compile(function, backend=backend)
    explanation = compiled.explain(np.ones((3, 2), np.float32))
    profile = compiled.profile(np.ones((3, 2), np.float32), steps=2)
    assert str(explanation) and explanation.to_markdown() and explanation._repr_html_()
    assert "us a call on" in str(profile) and profile.to_chrome_trace()["traceEvents"]
    assert compiled.dump(tmp_path, np.ones((3, 2), np.float32))


def test_wrong_counts_and_backends_are_refused() -> None:
    model = Model()
    with pytest.raises(OptionError, match="at least 1 step"):
        model.step.profile(*BATCH, steps=0)
    with pytest.raises(OptionError, match="number of threads"):
        model.step.profile(*BATCH, steps=1, threads=0)
    with pytest.raises(IndexRangeError):
        model.step.profile(BATCH[0], BATCH[1] + 3, steps=1)


def test_cuda_without_a_gpu_says_so() -> None:
    from fusegraph.runtime.cuda import unavailable

    if not unavailable():
        pytest.skip("there is a GPU")
    with pytest.raises(UnsupportedError, match="backend='cpu'"):
        fg.compile(lambda x: x.exp(), backend="cuda").profile(np.ones(8, np.float32))


@needs_wheels
@pytest.mark.parametrize("graphs", [True, False])
def test_launches_on_a_gpu_are_timed_and_nothing_changes(graphs: bool) -> None:
    with emulated(graphs=graphs):
        plain = Model(backend="cuda")
        expected = [np.asarray(plain.step(*BATCH)) for _ in range(2)]
        profiled = Model(backend="cuda")
        first = np.asarray(profiled.step(*BATCH))
        before = [value.copy() for value in profiled.state()]
        profile = profiled.step.profile(*BATCH, steps=2, warm_up=0)
        after = profiled.state()
        second = np.asarray(profiled.step(*BATCH))
    for got, wanted in zip((first, second), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    (program,) = profile.to_dict()["programs"]
    assert all(kernel["time_ns"] >= 1000 and kernel["floor_ns"] is None for kernel in program["kernels"])
    assert "-" in str(profile) and profile.timings[0].threads == 1


def test_launches_of_one_kernel_are_added_up() -> None:
    from fusegraph.inspect.profile_cuda import _stamps

    times = [("k0_sum", 2.0), ("k0_sum_part", 3.0), ("k1_exp", 4.0), ("helper", 7.0)]
    assert _stamps(times, {"k0": 0, "k1": 1}, 2).tolist() == [[0, 0, 5], [5, 5, 9]]


def test_profiles_of_several_python_threads_at_once() -> None:
    model = Model()
    model.step.compiled_for(*BATCH)
    found: list[Any] = []

    def work() -> None:
        found.append(model.step.profile(*BATCH, steps=2).explanation.kernels)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len(set(found)) == 1


# -- the machine's limits -------------------------------------------------------------------------------------------------


def test_limits_are_between_those_measured() -> None:
    one = MACHINE.roofline(1)
    assert one.gb_s(1 << 10) == 200 and one.gb_s(1 << 30) == 50
    assert one.gb_s(2**17.5) == pytest.approx(125)
    assert one.floor_ns(1 << 15, 0) == pytest.approx((1 << 15) / 200)
    assert one.floor_ns(8, 1000) == 10.0 and one.floor_ns(0, 0) == 0.0
    assert MACHINE.roofline("all") is MACHINE.every
    assert "100 GFLOP/s" in MACHINE.sentence()


def test_the_better_of_two_measurements_is_kept() -> None:
    slow = Calibration(
        Roofline(1, 90.0, ((1 << 15, 300.0), (1 << 20, 5.0))), Roofline(4, 500.0, ((1 << 15, 1.0), (1 << 20, 1.0)))
    )
    best = slow.best(MACHINE)
    assert best.one == Roofline(1, 100.0, ((1 << 15, 300.0), (1 << 20, 50.0))) and best.every.peak == 500.0


def test_a_calibration_survives_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("FUSEGRAPH_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(calibration, "_measured", {})
    monkeypatch.setattr(calibration, "measure", lambda: MACHINE)
    assert calibration.stored() is None
    assert calibration.calibration() is MACHINE
    calibration._measured.clear()
    assert calibration.stored() == MACHINE
    assert calibration.measure_again() == MACHINE
    with pytest.raises(KeyError):
        Calibration.from_json({"one": {}})
    empty = {"threads": 1, "peak": 0, "bandwidth": []}
    with pytest.raises(ValueError, match="without figures"):
        Calibration.from_json({"one": empty, "every": empty})


def test_the_loops_that_measure_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_TRAFFIC", 1 << 16)
    monkeypatch.setattr(calibration, "_PEAK_STEPS", 1000)
    found = calibration.measure(sizes=(1 << 12, 1 << 15), repeats=1)
    assert found.one.threads == 1 and [size for size, _ in found.one.bandwidth] == [1 << 12, 1 << 15]
    assert found.every.peak >= found.one.peak > 0
    assert all(speed > 0 for _, speed in found.every.bandwidth)
