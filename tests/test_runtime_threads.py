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
        self.seconds, self.now, self.calls = seconds, 0.0, []
        monkeypatch.setattr(threads_choice.time, "perf_counter", lambda: self.now)

    def __call__(self, table_ptr: int, nt: int) -> None:
        assert table_ptr == 99
        self.calls.append(nt)
        self.now += self.seconds[nt]


@pytest.fixture
def four_cores(free_choice, monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda: 4)


@pytest.mark.parametrize(
    ("seconds", "kept"),
    [({4: 1.0, 1: 1.5}, 4), ({4: 1.5, 1: 1.0}, 1), ({4: 1.0, 1: 9.0}, 4), ({4: 9.0, 1: 1.0}, 1), ({4: 1.0, 1: 1.0}, 4)],
)
def test_choice_keeps_the_faster_count(four_cores, monkeypatch, seconds, kept):
    step = FakeStep(monkeypatch, seconds)
    choice = ThreadChoice(step)
    for _ in range(90):
        choice(99)
    assert choice.threads == kept and not choice.fixed
    assert set(step.calls[:10]) == {1, 4}, "both are tried"
    assert step.calls[30:70] == [kept] * 40
    decisive = max(seconds.values()) > 2 * min(seconds.values())
    assert step.calls[:70].count(5 - kept) <= (5 if decisive else 11), "a trial stays short"
    for _ in range(2000):
        choice(99)
    assert choice.threads == kept
    assert step.calls[70:].count(5 - kept) <= 6 * 9, "trials become rare"


def test_a_first_trial_that_was_disturbed_is_soon_corrected(four_cores, monkeypatch):
    step = FakeStep(monkeypatch, {4: 3.0, 1: 1.5})  # the workers share a core with the caller
    choice = ThreadChoice(step)
    for _ in range(30):
        choice(99)
    assert choice.threads == 1
    step.seconds[4] = 1.0
    for _ in range(100):
        choice(99)
    assert choice.threads == 4


def test_choice_is_checked_again_after_about_a_thousand_calls(four_cores, monkeypatch):
    step = FakeStep(monkeypatch, {4: 1.0, 1: 1.5})
    choice = ThreadChoice(step)
    for _ in range(500):
        choice(99)
    step.seconds[1] = 0.9  # the kept count is as fast as ever, but one thread has become better
    for _ in range(1000):
        choice(99)
    assert choice.threads == 1
    assert step.calls[-1] == 1


def test_choice_is_checked_at_once_when_the_time_doubles(four_cores, monkeypatch):
    step = FakeStep(monkeypatch, {4: 1.0, 1: 1.5})
    choice = ThreadChoice(step)
    for _ in range(100):
        choice(99)
    assert choice.threads == 4
    step.seconds[4] = 2.5  # a neighbour has become busy
    for _ in range(90):
        choice(99)
    assert choice.threads == 1


def test_one_slow_call_changes_nothing(four_cores, monkeypatch):
    step = FakeStep(monkeypatch, {4: 1.0, 1: 1.5})
    choice = ThreadChoice(step)
    for call in range(600):
        step.seconds[4] = 50.0 if call >= 30 and call % 32 == 0 else 1.0
        choice(99)
        assert call < 30 or choice.threads == 4
    assert step.calls[30:].count(1) <= 3 * 9  # of the trials that come anyway


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
