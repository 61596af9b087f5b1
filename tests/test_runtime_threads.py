"""Thread count: the setting, the machine, and the choice between one thread and all."""

from __future__ import annotations

import numpy as np
import pytest

from fusegraph.errors import OptionError
from fusegraph.runtime import llvm, pool, threads, threads_choice
from fusegraph.runtime.threads_choice import ThreadChoice


@pytest.fixture
def free_choice(monkeypatch):
    """Nobody has asked for a thread count."""
    monkeypatch.delenv("FUSEGRAPH_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads.ThreadSetting, "count", None)
    monkeypatch.setattr(threads.ThreadSetting, "version", threads.ThreadSetting.version + 1)


def test_thread_count_settings(free_choice, monkeypatch):
    assert threads.asked_threads() is None
    assert threads.get_num_threads() == min(threads.available_cores(), 64)
    monkeypatch.setenv("FUSEGRAPH_NUM_THREADS", " 5 ")
    assert threads.get_num_threads() == threads.asked_threads() == 5
    version = threads.ThreadSetting.version
    threads.set_num_threads(3)
    assert threads.get_num_threads() == threads.asked_threads() == 3
    assert threads.ThreadSetting.version == version + 1
    for count in (0, -2, True, 2.0, "4", 1000):
        with pytest.raises(OptionError, match="int from 1 to 256"):
            threads.set_num_threads(count)
    assert threads.get_num_threads() == 3


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "9999"])
def test_a_bad_environment_variable_is_named(free_choice, monkeypatch, text):
    monkeypatch.setenv("FUSEGRAPH_NUM_THREADS", text)
    with pytest.raises(OptionError, match="FUSEGRAPH_NUM_THREADS must be an int from 1 to 256"):
        threads.get_num_threads()


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "nonsense\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({}, None),
    ],
)
def test_cpu_quota_of_a_container(tmp_path, monkeypatch, files, quota):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(threads, "_CGROUP", tmp_path)
    assert threads._cpu_quota() == quota


class FakeStep:
    """A bound step on a clock of its own: seconds by thread count, counts of the calls."""

    def __init__(self, monkeypatch, seconds: dict[int, float]) -> None:
        monkeypatch.setattr(
            threads_choice, "MOST_BLOCK", 3
        )  # short blocks, so that the numbers of calls below are small
        self.seconds, self.now, self.calls = seconds, 0.0, []
        monkeypatch.setattr(threads_choice.time, "perf_counter", lambda: self.now)

    def __call__(self, table_ptr: int, nt: int) -> None:
        assert table_ptr == 99
        self.calls.append(nt)
        self.now += self.seconds[nt]


@pytest.fixture
def four_cores(free_choice, monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda: 4)


SCALES = [1e-6, 1e-4, 1e-2]  # seconds of a call at one: short steps, and one whose blocks are single calls


def _run(choice: ThreadChoice, step: FakeStep, calls: int) -> list[int]:
    """The counts of so many calls."""
    start = len(step.calls)
    for _ in range(calls):
        choice.call(99)
    return step.calls[start:]


def _at(scale: float, seconds: dict[int, float]) -> dict[int, float]:
    return {count: scale * time for count, time in seconds.items()}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("seconds", "kept"),
    [({4: 1.0, 1: 1.5}, 4), ({4: 1.5, 1: 1.0}, 1), ({4: 1.0, 1: 9.0}, 4), ({4: 9.0, 1: 1.0}, 1), ({4: 1.0, 1: 1.0}, 4)],
)
def test_choice_keeps_the_faster_count(four_cores, monkeypatch, seconds, kept, scale):
    step = FakeStep(monkeypatch, _at(scale, seconds))
    choice = ThreadChoice(step)
    assert not choice.settled
    first = _run(choice, step, 54)
    assert choice.threads == kept and not choice.fixed and choice.settled
    assert set(first[:10]) == {1, 4}, "both are tried"
    if kept == 4:
        assert first.count(1) <= 6, "a trial that changes nothing has one round"
    _run(choice, step, 3000)
    began, assigned = step.now, len(step.calls)
    _run(choice, step, 10000)
    assert choice.threads == kept
    best = seconds[kept] * scale * (len(step.calls) - assigned)
    assert step.now - began <= 1.011 * best, "trials take one per cent of the time"


@pytest.mark.parametrize("scale", SCALES)
def test_a_first_trial_that_was_disturbed_is_soon_corrected(four_cores, monkeypatch, scale):
    step = FakeStep(monkeypatch, _at(scale, {4: 3.1, 1: 1.5}))  # the workers share a core with the caller
    choice = ThreadChoice(step)
    _run(choice, step, 20)
    assert choice.threads == 1, "after three rounds, as it is so clear"
    step.seconds[4] = 1.0 * scale
    _run(choice, step, 100)
    assert choice.threads == 4


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("disturbed", [30, 300, 3000])
def test_the_count_recovers_soon_after_a_neighbour_has_gone(four_cores, monkeypatch, scale, disturbed):
    quiet, busy = _at(scale, {4: 1.0, 1: 1.8}), _at(scale, {4: 3.0, 1: 1.8})
    step = FakeStep(monkeypatch, dict(quiet))
    choice = ThreadChoice(step)
    _run(choice, step, 2000)
    assert choice.threads == 4
    step.seconds = busy
    during = _run(choice, step, 300 + disturbed)
    assert choice.threads == 1 and set(during[-disturbed // 10 :]) <= {1, 4}
    step.seconds = quiet
    _run(choice, step, max(300, int(1.5e-3 / scale)))
    assert choice.threads == 4, "within 300 calls, or 1.5 ms"
    assert _run(choice, step, 100).count(4) >= 88


@pytest.mark.parametrize("scale", SCALES)
def test_one_thread_that_becomes_better_is_found(four_cores, monkeypatch, scale):
    step = FakeStep(monkeypatch, _at(scale, {4: 1.0, 1: 1.5}))
    choice = ThreadChoice(step)
    _run(choice, step, 500)
    step.seconds[1] = 0.9 * scale  # the kept count is as fast as ever, so that nothing hints at it
    _run(choice, step, 1100)
    assert choice.threads == 1


@pytest.mark.parametrize("scale", SCALES)
def test_a_trial_comes_forward_when_the_speed_changes(four_cores, monkeypatch, scale):
    step = FakeStep(monkeypatch, _at(scale, {4: 1.0, 1: 1.5}))
    choice = ThreadChoice(step)
    _run(choice, step, 20_000)
    assert choice.threads == 4
    _run(choice, step, next(n for n in range(3000) if 1 in _run(choice, step, 1)))  # a regular trial: none is due soon
    _run(choice, step, 20)
    step.seconds[4] = 1.7 * scale
    _run(choice, step, 600 if scale == 1e-6 else 70)
    assert choice.threads == 1


def test_a_machine_that_is_never_calm_costs_twice_as_much(four_cores, monkeypatch):
    step = FakeStep(monkeypatch, {4: 1e-4, 1: 2e-4})
    choice = ThreadChoice(step)
    rng = np.random.default_rng(0)
    _run(choice, step, 200)
    tried = 0
    for _ in range(500):
        step.seconds = _at(float(rng.uniform(0.5, 2.0)), {4: 1e-4, 1: 2e-4})
        tried += _run(choice, step, 20).count(1)
    assert choice.threads == 4 and tried <= 0.025 * 10_000


def test_the_first_calls_with_another_count_do_not_count(four_cores, monkeypatch):
    """They wait for what the weights' last writer has in its cache: four calls with four threads are slow, and then fast."""
    step = FakeStep(monkeypatch, {1: 1.5e-4, 4: 1e-4})
    monkeypatch.setattr(threads_choice, "MOST_BLOCK", 12)
    choice, same = ThreadChoice(step), 0
    for _ in range(3000):
        before = step.calls[-1] if step.calls else 4
        same = same + 1 if step.calls[-2:] == [before, before] else 0
        step.seconds[4] = 3e-4 if before != 4 or same < 4 else 1e-4
        choice.call(99)
    assert choice.threads == 4 and step.calls.count(1) < 400


def test_slow_calls_now_and_then_change_nothing(four_cores, monkeypatch):
    step = FakeStep(monkeypatch, {4: 1e-4, 1: 1.5e-4})
    choice = ThreadChoice(step)
    rng = np.random.default_rng(0)
    for call in range(6000):
        hit = rng.random() < 0.15  # a third of all blocks has such a call
        step.seconds = _at(float(rng.uniform(2.0, 50.0)) if hit else 1.0, {4: 1e-4, 1: 1.5e-4})
        choice(99)
        assert call < 30 or choice.threads == 4
    assert step.calls.count(1) <= 300


def test_counts_that_are_as_good_do_not_take_turns(four_cores, monkeypatch):
    step = FakeStep(monkeypatch, {4: 1e-4, 1: 1e-4})
    choice = ThreadChoice(step)
    rng = np.random.default_rng(0)
    kept = [4]
    for _ in range(20_000):
        step.seconds = {count: 1e-4 * float(rng.uniform(1.0, 1.2)) for count in (1, 4)}
        choice(99)
        kept += [choice.threads] if choice.threads != kept[-1] else []
    assert len(kept) <= 3


def test_a_count_that_was_asked_for_is_obeyed_exactly(four_cores, monkeypatch):
    step = FakeStep(monkeypatch, {n: 1.0 / n for n in range(1, 9)})
    choice = ThreadChoice(step)
    for _ in range(100):
        choice(99)
    threads.set_num_threads(3)
    start = len(step.calls)
    for _ in range(100):
        choice(99)
    assert choice.fixed and step.calls[start:] == [3] * 100
    threads.set_num_threads(8)
    choice(99)
    assert step.calls[-1] == 8
    monkeypatch.setattr(threads.ThreadSetting, "count", None)
    monkeypatch.setenv("FUSEGRAPH_NUM_THREADS", "2")
    environment = ThreadChoice(step)
    environment(99)
    assert environment.fixed and step.calls[-1] == 2


def test_a_step_with_little_parallel_work_is_limited(four_cores, monkeypatch):
    step = FakeStep(monkeypatch, {n: 1.0 / n for n in range(1, 9)})
    assert ThreadChoice(step, max_threads=2).threads == 2
    single = ThreadChoice(step, max_threads=1)
    for _ in range(50):
        single(99)
    assert single.fixed and step.calls == [1] * 50


def test_choice_drives_a_real_step(free_choice, monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda: 2)
    text = """
define void @count(ptr %table, ptr %ctl, i64 %tid, i64 %nt) nounwind {
  %slot = getelementptr i64, ptr %table, i64 %tid
  %old = load i64, ptr %slot
  %new = add i64 %old, 1
  store i64 %new, ptr %slot
  ret void
}
"""
    code = llvm.load(llvm.compile_ir(text), ["count"])
    choice = ThreadChoice(pool.default_pool().bind(code.address("count"), code))
    table = np.zeros(512, np.int64)
    for _ in range(2000):
        choice(table.ctypes.data)
    assert table[0] == 2000 and 0 < table[1] <= 2000 and not table[2:].any()
