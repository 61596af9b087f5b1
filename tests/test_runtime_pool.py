"""Worker threads: barriers, launches, parking, many callers, more threads than cores."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fusegraph.errors import FusegraphError, OptionError
from fusegraph.runtime import llvm, platform_ir, pool, spmd_ir, threads
from fusegraph.runtime.cache import DiskCache
from fusegraph.runtime.pool import Pool

ARCH = llvm.target().arch
PARKERS = {parker.name: parker for parker in platform_ir.parkers(ARCH)}

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

    def __init__(self, parker: platform_ir.Parker, cache: DiskCache) -> None:
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


@pytest.mark.skipif(ARCH != "x86_64", reason="sets the x86 control register")
def test_workers_take_over_the_floating_point_mode_of_the_caller(steps):
    """Flush-to-zero on the calling thread alone would make results depend on which thread computes them."""
    text = (
        platform_ir.float_mode_ir(ARCH)
        + """
define void @flush(ptr %unused, i64 %on) nounwind {
  %mode = call i64 @fg_get_float_mode()
  %rest = and i64 %mode, -32833
  %asked = icmp ne i64 %on, 0
  %bits = select i1 %asked, i64 32832, i64 0
  %new = or i64 %rest, %bits
  call void @fg_set_float_mode(i64 %new)
  ret void
}
define void @halve(ptr %table, ptr %ctl, i64 %tid, i64 %nt) nounwind {
  %slot = getelementptr double, ptr %table, i64 %tid
  %x = load double, ptr %slot
  %y = fmul double %x, 0.5
  store double %y, ptr %slot
  ret void
}
"""
    )
    code = llvm.load(llvm.compile_ir(text), ["flush", "halve"])
    flush = pool._WORKER(code.address("flush"))
    smallest_normal = np.finfo(np.float64).tiny
    for on, expected in ((0, smallest_normal / 2), (1, 0.0), (0, smallest_normal / 2)):
        table = np.full(4, smallest_normal)
        flush(0, on)
        try:
            steps.pool.run(code.address("halve"), table.ctypes.data, 4)
        finally:
            flush(0, 0)
        assert table.tolist() == [expected] * 4


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
    before = set(threading.enumerate())
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
    pool._load_launch(text, cache)

    def refuse(*_):
        raise AssertionError("compiled although it was cached")

    monkeypatch.setattr(llvm, "compile_ir", refuse)
    assert pool._load_launch(text, DiskCache(tmp_path)).symbols == spmd_ir.LAUNCH_SYMBOLS


@pytest.mark.parametrize("arch", ["x86_64", "aarch64", "riscv64", "ppc64le"])
@pytest.mark.parametrize("platform", ["linux", "darwin", "win32", "freebsd14"])
def test_the_ir_of_every_platform_is_valid(arch, platform):
    for parker in platform_ir.parkers(arch, platform):
        # hint and float mode are the host's: the code generator knows no other
        text = spmd_ir.launch_text(arch, parker).replace(platform_ir.pause_ir(arch), platform_ir.pause_ir(ARCH))
        text = text.replace(platform_ir.float_mode_ir(arch), platform_ir.float_mode_ir(ARCH))
        assert llvm.compile_ir(text)
        for symbol in parker.symbols:
            assert f"@{symbol}(" in text
    best = platform_ir.parkers(arch, platform)[0].name
    futex = platform == "linux" and arch != "ppc64le"
    assert best == ("futex" if futex else "polling" if platform == "win32" else "pthread")


def test_barrier_ir_is_internal_and_names_what_it_declares():
    text = pool.barrier_ir()
    assert text.count("define internal void @fg_") == text.count("define ") == 3
    assert all(f"@{name}(" in text for name in pool.barrier_declares())
