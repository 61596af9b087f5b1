"""Worker threads: barriers, launches, fork, many callers, more threads than cores, the end of the process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fusegraph.errors import FusegraphError, OptionError
from fusegraph.runtime import llvm, pool, spmd_ir, threads, threads_choice
from fusegraph.runtime.cache import DiskCache
from fusegraph.runtime.pool import Pool
from fusegraph.runtime.threads_choice import ThreadChoice

ARCH = llvm.target().arch
PARKERS = {parker.name: parker for parker in spmd_ir.parkers(ARCH)}

# Slots of 16 i64 a thread. Row 0..: what a thread wrote in this phase; row 256..: mistakes that a thread saw.
# Each phase: write phase * 1000 + tid, barrier, check the sum over all threads, barrier.
PHASES = """
define void @phases(ptr %table, ptr %ctl, i64 %tid, i64 %nt) nounwind {
entry:
  %p.count = getelementptr i64, ptr %table, i64 8191
  %count = load i64, ptr %p.count
  %row = mul i64 %tid, 16
  %mine = getelementptr i64, ptr %table, i64 %row
  %error.row = add i64 %row, 4096
  %errors = getelementptr i64, ptr %table, i64 %error.row
  %nt.less = sub i64 %nt, 1
  %twice.triangle = mul i64 %nt, %nt.less
  %triangle = udiv i64 %twice.triangle, 2
  br label %phase
phase:
  %p = phi i64 [ 0, %entry ], [ %p.next, %next ]
  %thousand = mul i64 %p, 1000
  %value = add i64 %thousand, %tid
  store i64 %value, ptr %mine
  call void @fg_barrier(ptr %ctl, i64 %nt)
  br label %add
add:
  %t = phi i64 [ 0, %phase ], [ %t.next, %add ]
  %sum = phi i64 [ 0, %phase ], [ %sum.next, %add ]
  %t.row = mul i64 %t, 16
  %other = getelementptr i64, ptr %table, i64 %t.row
  %x = load i64, ptr %other
  %sum.next = add i64 %sum, %x
  %t.next = add i64 %t, 1
  %more.threads = icmp ult i64 %t.next, %nt
  br i1 %more.threads, label %add, label %check
check:
  %all.thousand = mul i64 %thousand, %nt
  %expected = add i64 %all.thousand, %triangle
  %wrong = icmp ne i64 %sum.next, %expected
  %wrong64 = zext i1 %wrong to i64
  %old = load i64, ptr %errors
  %new = add i64 %old, %wrong64
  store i64 %new, ptr %errors
  call void @fg_barrier(ptr %ctl, i64 %nt)
  br label %next
next:
  %p.next = add i64 %p, 1
  %more = icmp ult i64 %p.next, %count
  br i1 %more, label %phase, label %done
done:
  ret void
}
; marks table[tid] with nt and counts the call in table[256 + tid]
define void @mark(ptr %table, ptr %ctl, i64 %tid, i64 %nt) nounwind {
  %slot = getelementptr i64, ptr %table, i64 %tid
  store i64 %nt, ptr %slot
  %calls.index = add i64 %tid, 256
  %calls = getelementptr i64, ptr %table, i64 %calls.index
  %old = load i64, ptr %calls
  %new = add i64 %old, 1
  store i64 %new, ptr %calls
  ret void
}
"""


class Steps:
    """The test functions compiled for one parker, bound to one pool."""

    def __init__(self, parker: spmd_ir.Parker, cache: DiskCache) -> None:
        self.code = llvm.load(llvm.compile_ir(spmd_ir.barrier_text(ARCH, parker) + PHASES), ["phases", "mark"])
        self.pool = Pool(cache, parker)
        self.phases = self.pool.bind(self.code.address("phases"), self.code)
        self.mark = self.pool.bind(self.code.address("mark"), self.code)

    def check_phases(self, nt: int, count: int) -> None:
        table = np.zeros(8192, np.int64)
        table[8191] = count
        self.phases(table.ctypes.data, nt)
        assert table[0 : 16 * nt : 16].tolist() == [(count - 1) * 1000 + tid for tid in range(nt)]
        assert not table[4096:8191].any(), "a thread saw a value of another phase"

    def marks(self, nt: int) -> list[int]:
        table = np.zeros(512, np.int64)
        self.mark(table.ctypes.data, nt)
        assert (table[:256] != 0).sum() == (table[256:] != 0).sum()
        return table[: int((table[:256] != 0).sum())].tolist()


@pytest.fixture(scope="module", params=list(PARKERS))
def steps(request, tmp_path_factory):
    steps = Steps(PARKERS[request.param], DiskCache(tmp_path_factory.mktemp("cache")))
    yield steps
    steps.pool.close()


@pytest.fixture
def free_choice(monkeypatch):
    """Nobody has asked for a thread count."""
    monkeypatch.delenv("FUSEGRAPH_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads.ThreadSetting, "count", None)
    monkeypatch.setattr(threads.ThreadSetting, "version", threads.ThreadSetting.version + 1)


@pytest.mark.parametrize("nt", [1, 2, 3, 8])
def test_after_a_barrier_every_thread_sees_what_all_wrote_before(steps, nt):
    steps.check_phases(nt, 20_000 // nt**2)


def test_every_thread_runs_once_whatever_ran_before(steps):
    for nt in (1, 5, 2, 8, 3, 1, 2, 8):
        assert steps.marks(nt) == [nt] * nt
    assert steps.pool.workers >= 7


def test_many_short_launches_lose_no_call(steps):
    table = np.zeros(512, np.int64)
    for _ in range(20_000):
        steps.mark(table.ctypes.data, 2)
    assert table[256:259].tolist() == [20_000, 20_000, 0]


def test_parked_workers_wake(steps):
    for _ in range(30):
        time.sleep(0.004)
        assert steps.marks(3) == [3, 3, 3]


@pytest.mark.parametrize("name", list(PARKERS))
def test_no_wake_up_is_lost_when_every_wait_parks(name, monkeypatch, tmp_path):
    monkeypatch.setattr(spmd_ir, "YIELDS", 1)
    monkeypatch.setattr(pool, "SPIN", 0)
    monkeypatch.setattr(pool, "SPIN_CROWDED", 0)
    steps = Steps(PARKERS[name], DiskCache(tmp_path))
    for nt in (2, 3, 8):
        steps.check_phases(nt, 1000)
        for _ in range(300):
            assert steps.marks(nt) == [nt] * nt
    steps.pool.close()


def test_more_threads_than_cores(steps):
    steps.check_phases(4 * threads.available_cores(), 500)
    assert steps.marks(spmd_ir.MAX_THREADS // 4) == [64] * 64


def test_many_python_threads_at_once(steps):
    def job(number: int) -> None:
        for turn in range(40):
            nt = 1 + (number + turn) % 4
            steps.check_phases(nt, 20)
            assert steps.marks(nt) == [nt] * nt

    with ThreadPoolExecutor(8) as executor:
        for future in [executor.submit(job, number) for number in range(8)]:
            future.result(timeout=120)


def test_other_python_threads_run_while_a_step_runs(steps):
    """The interpreter lock is released: another thread counts while the step is in native code."""
    ticks, stop = [], threading.Event()

    def count() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    counter = threading.Thread(target=count)
    counter.start()
    table = np.zeros(8192, np.int64)
    table[8191] = 20_000
    inside = []
    while len(inside) < 3:  # as often as needed for a slow or busy machine
        start = time.perf_counter()
        steps.phases(table.ctypes.data, 3)
        inside += [tick for tick in list(ticks) if start < tick < time.perf_counter()]
    stop.set()
    counter.join()
    assert len(inside) >= 3


def test_run_is_bind_and_call(steps):
    table = np.zeros(512, np.int64)
    steps.pool.run(steps.code.address("mark"), table.ctypes.data, 2)
    assert table[:3].tolist() == [2, 2, 0]


@pytest.mark.parametrize("count", [0, -1, 257, True, 1.0, "2", None])
def test_a_thread_count_that_cannot_be_is_refused(steps, count):
    with pytest.raises(OptionError, match="int from 1 to 256"):
        threads.check_threads(count)
    if count is not True and count != 1.0:  # equal to 1 as a dict key, hence taken as 1
        with pytest.raises(OptionError, match="int from 1 to 256"):
            steps.mark(0, count)


def test_one_thread_needs_no_workers(tmp_path):
    own = Pool(DiskCache(tmp_path))
    assert own.workers == 0
    code = llvm.load(llvm.compile_ir(pool.barrier_ir() + PHASES), ["mark"])
    table = np.zeros(512, np.int64)
    own.bind(code.address("mark"))(table.ctypes.data, 1)
    assert table[0] == 1 and own.workers == 0
    own.close()


def test_a_closed_pool_runs_on_the_caller_alone_and_closes_twice(tmp_path):
    steps = Steps(pool.default_parker(), DiskCache(tmp_path))
    names = [f"fusegraph-worker-{tid}" for tid in (1, 2)]
    before = {thread for thread in threading.enumerate()}
    assert steps.marks(3) == [3, 3, 3]
    mine = [thread for thread in threading.enumerate() if thread not in before]
    assert sorted(thread.name for thread in mine) == names and all(thread.daemon for thread in mine)
    steps.pool.close()
    assert not any(thread.is_alive() for thread in mine)
    assert steps.marks(3) == [1] and steps.marks(2) == [1]
    steps.check_phases(1, 3)
    steps.pool.close()


def test_a_worker_that_cannot_start_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    steps = Steps(pool.default_parker(), DiskCache(tmp_path))
    assert steps.marks(2) == [2, 2]

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(FusegraphError, match=r"thread 2 of 4.*set_num_threads\(2\)"):
        steps.marks(4)
    assert steps.marks(2) == [2, 2]
    monkeypatch.undo()
    assert steps.marks(4) == [4, 4, 4, 4]
    steps.pool.close()


def test_launch_code_comes_from_the_disk_the_second_time(tmp_path, monkeypatch):
    cache = DiskCache(tmp_path)
    text = spmd_ir.launch_text(ARCH, pool.default_parker())
    first = pool._launch_object(text, cache)

    def refuse(*_):
        raise AssertionError("compiled although it was cached")

    monkeypatch.setattr(llvm, "compile_ir", refuse)
    assert pool._launch_object(text, DiskCache(tmp_path)) == first


@pytest.mark.parametrize("arch", ["x86_64", "aarch64", "riscv64", "ppc64le"])
@pytest.mark.parametrize("platform", ["linux", "darwin", "win32", "freebsd14"])
def test_the_ir_of_every_platform_is_valid(arch, platform):
    for parker in spmd_ir.parkers(arch, platform):
        # the hint is the host's: the assembler knows no other
        text = spmd_ir.launch_text(arch, parker).replace(spmd_ir.pause_ir(arch), spmd_ir.pause_ir(ARCH))
        assert llvm.compile_ir(text)
        for symbol in parker.symbols:
            assert f"@{symbol}(" in text
    best = spmd_ir.parkers(arch, platform)[0].name
    futex = platform == "linux" and arch != "ppc64le"
    assert best == ("futex" if futex else "polling" if platform == "win32" else "pthread")


def test_barrier_ir_is_internal_and_names_what_it_declares():
    text = pool.barrier_ir()
    assert text.count("define internal void @fg_") == text.count("define ") == 3
    assert all(f"@{name}(" in text for name in pool.barrier_declares())


SCRIPT = """
import ctypes, os, sys, threading, time, atexit
import numpy as np
from fusegraph.runtime import llvm, pool
IR = pool.barrier_ir() + '''
define void @mark(ptr %table, ptr %ctl, i64 %tid, i64 %nt) nounwind {
  call void @fg_barrier(ptr %ctl, i64 %nt)
  %slot = getelementptr i64, ptr %table, i64 %tid
  %old = load i64, ptr %slot
  %new = add i64 %old, %nt
  store i64 %new, ptr %slot
  call void @fg_barrier(ptr %ctl, i64 %nt)
  ret void
}
'''
code = llvm.load(llvm.compile_ir(IR), ["mark"])
step = pool.default_pool().bind(code.address("mark"), code)
def marks(nt):
    table = np.zeros(64, np.int64)
    step(table.ctypes.data, nt)
    return table[table != 0].tolist()
"""


def run_script(body: str, cache: str) -> str:
    environment = {**os.environ, "FUSEGRAPH_CACHE_DIR": cache}
    command = [sys.executable, "-W", "error", "-c", SCRIPT + body]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@needs_fork
def test_a_forked_child_makes_workers_of_its_own(tmp_path):
    body = """
assert marks(3) == [3, 3, 3]
for turn in range(5):
    child = os.fork()
    if child == 0:
        assert pool.default_pool().workers == 0
        assert marks(1) == [1] and marks(2) == [2, 2] and marks(4) == [4] * 4
        grandchild = os.fork()
        if grandchild == 0:
            assert marks(3) == [3] * 3
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 7
        sys.exit(5)
    assert marks(3) == [3, 3, 3]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
print("parent", marks(2))
"""
    assert run_script(body, str(tmp_path)) == "parent [2, 2]\n"


@needs_fork
def test_fork_while_another_python_thread_is_in_a_step(tmp_path):
    body = """
go = True
def busy():
    while go:
        marks(3)
thread = threading.Thread(target=busy)
thread.start()
for turn in range(20):
    child = os.fork()
    if child == 0:
        ok = marks(3) == [3, 3, 3]
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
go = False
thread.join()
print("done")
"""
    body = body if sys.version_info < (3, 12) else "import warnings; warnings.simplefilter('ignore')\n" + body
    assert run_script(body, str(tmp_path)) == "done\n"


@needs_fork
def test_multiprocessing_by_fork(tmp_path):
    body = """
import multiprocessing
assert marks(2) == [2, 2]
with multiprocessing.get_context("fork").Pool(3) as processes:
    print(processes.map(marks, [1, 2, 3, 2]))
"""
    assert run_script(body, str(tmp_path)) == "[[1], [2, 2], [3, 3, 3], [2, 2]]\n"


@pytest.mark.parametrize(
    "end",
    ["", "sys.exit(0)", "os._exit(0)", "time.sleep(0.1)", "del step, code", "del pool, llvm"],
)
def test_the_process_ends_without_hanging_or_crashing(tmp_path, end):
    body = f"assert marks(8) == [8] * 8\nprint('end', flush=True)\n{end}\n"
    assert run_script(body, str(tmp_path)) == "end\n"


def test_the_process_ends_while_daemon_threads_run_steps(tmp_path):
    body = """
def busy():
    while True:
        marks(3)
for _ in range(3):
    threading.Thread(target=busy, daemon=True).start()
time.sleep(0.2)
print("end", flush=True)
"""
    assert run_script(body, str(tmp_path)) == "end\n"


def test_a_step_in_an_exit_handler(tmp_path):
    """Handlers run in reverse: `late` after the workers were stopped, `early` before."""
    body = "print(marks(2))\natexit.register(lambda: print('early', marks(2)))\n"
    early = "import atexit\natexit.register(lambda: print('late', marks(2)))\n"
    environment = {**os.environ, "FUSEGRAPH_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", early + SCRIPT + body]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[2, 2]\nearly [2, 2]\nlate [1]\n"


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
    for _ in range(400):
        choice(99)
    assert choice.threads == kept and not choice.fixed
    assert set(step.calls[:10]) == {1, 4}, "both are tried"
    assert step.calls[30:] == [kept] * 370
    decisive = max(seconds.values()) > 2 * min(seconds.values())
    assert step.calls.count(5 - kept) <= (5 if decisive else 11), "a trial stays short"


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
    assert choice.threads == 4 and step.calls[30:] == [4] * 570


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


def test_choice_drives_a_real_step(free_choice, monkeypatch, tmp_path):
    monkeypatch.setattr(threads, "available_cores", lambda: 2)
    steps = Steps(pool.default_parker(), DiskCache(tmp_path))
    choice = ThreadChoice(steps.mark)
    table = np.zeros(512, np.int64)
    for _ in range(2000):
        choice(table.ctypes.data)
    assert table[256] == 2000 and 0 < table[257] <= 2000 and table[258] == 0
    steps.pool.close()
