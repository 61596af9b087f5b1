"""Persistent worker threads that run a compiled step SPMD style, all in native code.

A compiled step is `void step(ptr table, ptr ctl, i64 tid, i64 nt)`. `Pool.bind` gives a callable for it; a call costs
one foreign call with two arguments. With nt > 1 the caller is thread 0 and workers 1..nt-1 run the same function. One
launch with nt > 1 runs at a time: a second Python thread waits (rather than run with fewer threads, so that the results
of generated code never depend on timing). The interpreter lock is released while a step runs.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from fusegraph.errors import CompilerError, FusegraphError
from fusegraph.runtime import spmd_ir
from fusegraph.runtime.cache import DiskCache
from fusegraph.runtime.host import arch
from fusegraph.runtime.memory import Arena
from fusegraph.runtime.object_loader import LoadedCode, load
from fusegraph.runtime.platform_ir import Parker, parkers
from fusegraph.runtime.threads import available_cores, check_threads

SPIN = 300  # pauses before a waiting thread yields
SPIN_CROWDED = 20  # the same when there are more threads than cores: whoever is waited for needs the core

BoundStep = Callable[[int, int], None]
_LAUNCH = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
_WORKER = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
_INIT = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_loaded: dict[str, LoadedCode] = {}  # by IR text; never unloaded: worker threads run it


class _Job(ctypes.Structure):
    """Layout of spmd_ir.JOB_*: what the native launch needs to know of a bound step and a thread count."""

    _fields_ = [
        ("function", ctypes.c_uint64),
        ("control", ctypes.c_uint64),
        ("threads", ctypes.c_int64),
        ("spin", ctypes.c_int32),
        ("_pad", ctypes.c_uint8 * 36),
    ]


class _Jobs(dict[int, int]):
    """Thread count -> address of the job record of one bound step. Made on first use: a call costs a look-up."""

    __slots__ = ("__weakref__", "_address", "_pool", "_records")

    def __init__(self, pool: Pool, address: int) -> None:
        super().__init__()
        self._pool, self._address = pool, address
        self._records: list[_Job] = []

    def __missing__(self, threads: int) -> int:
        count = check_threads(threads)
        control = self._pool._prepare(count)
        spin = SPIN if count <= available_cores() else SPIN_CROWDED
        record = _Job(function=self._address, control=control, threads=count, spin=spin)
        self._records.append(record)  # records are never freed while the step is bound: a call may be using one
        self[count] = ctypes.addressof(record)
        return self[count]

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


class Pool:
    """Worker threads and the control block that they share. Workers start on the first call that needs them.

    `cache` keeps the launch code between processes (None: the default folder). `parker` is for tests.
    """

    def __init__(self, cache: DiskCache | None = None, parker: Parker | None = None) -> None:
        self._parker = parker or default_parker()
        self._code = _launch_code(self._parker, cache or DiskCache())
        self._launch = _LAUNCH(self._code.address("fg_launch"))
        self._lock = threading.Lock()
        self._bound: weakref.WeakSet[_Jobs] = weakref.WeakSet()
        self._closed = False
        self._control: Arena
        self._workers: list[threading.Thread]
        self._reset()
        _pools.add(self)

    def bind(self, address: int, owner: Any = None) -> BoundStep:
        """A callable(table_ptr, nt) for the step at `address`. Keeps `owner` (the loaded code) alive.

        The callable raises OptionError if nt is not an int from 1 to spmd_ir.MAX_THREADS.
        """
        jobs = _Jobs(self, address)
        self._bound.add(jobs)
        launch = self._launch

        def call(table_ptr: int, nt: int) -> None:
            launch(jobs[nt], table_ptr)

        call.owner = owner  # type: ignore[attr-defined]
        return call

    def run(self, address: int, table_ptr: int, nt: int) -> None:
        """Run the step at `address` on nt threads; returns when all have finished. Callers in a loop use `bind`."""
        self.bind(address)(table_ptr, nt)

    def close(self) -> None:
        """Stop the workers, after a step that is running. A later call runs on the caller's thread alone."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            stop = _WORKER(self._code.address("fg_stop"))
            stop(self._control.address, len(self._workers) + 1)
            workers, self._workers = self._workers, []
            _pools.discard(self)
        for worker in workers:
            worker.join(timeout=5.0)

    @property
    def workers(self) -> int:
        """Worker threads that have been started."""
        return len(self._workers)

    def _reset(self) -> None:
        self._control = Arena(spmd_ir.CONTROL_BYTES)
        self._workers = []
        _INIT(self._code.address("fg_init"))(self._control.address)

    def _prepare(self, threads: int) -> int:
        """Start the workers that a launch on so many threads needs; returns the address of the control block."""
        with self._lock:
            while not self._closed and len(self._workers) < threads - 1:
                self._start_worker(len(self._workers) + 1, threads)
            return self._control.address

    def _start_worker(self, tid: int, threads: int) -> None:
        arguments = (self._code, self._control, tid)
        thread = threading.Thread(target=_work, args=arguments, name=f"fusegraph-worker-{tid}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise FusegraphError(
                f"cannot start worker thread {tid} of {threads}: {error}. Use fewer: fusegraph.set_num_threads({tid})"
            ) from error
        self._workers.append(thread)

    def _after_fork(self) -> None:
        """In the child: the workers are gone, and another thread may have held the locks."""
        self._lock = threading.Lock()
        self._reset()
        for jobs in list(self._bound):
            jobs.clear()


_pools: set[Pool] = set()  # those with workers that the end of the process has to stop


def _work(code: LoadedCode, control: Arena, tid: int) -> None:
    """A worker thread's whole life. It holds the code and the control block that it runs on."""
    _WORKER(code.address("fg_worker"))(control.address, tid)


def _after_fork() -> None:
    for pool in list(_pools):
        pool._after_fork()


def _close_all() -> None:
    for pool in list(_pools):
        pool.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_close_all)


@lru_cache(maxsize=1)
def default_pool() -> Pool:
    """The pool that compiled steps of this process share."""
    return Pool()


@lru_cache(maxsize=1)
def default_parker() -> Parker:
    """How a thread parks on this host."""
    return parkers(arch())[0]


def barrier_ir() -> str:
    """IR text that defines `@fg_barrier(ptr %ctl, i64 %nt)`, to be included once in each step module.

    All definitions are internal. It declares the functions in `barrier_declares()`: do not declare those again.
    """
    return spmd_ir.barrier_text(arch(), default_parker())


def barrier_declares() -> tuple[str, ...]:
    """Names of the platform's functions that `barrier_ir` declares (on Linux: syscall, sched_yield)."""
    return default_parker().symbols


def _launch_code(parker: Parker, cache: DiskCache) -> LoadedCode:
    text = spmd_ir.launch_text(arch(), parker)
    if text not in _loaded:
        _loaded.setdefault(text, _load_launch(text, cache))
    return _loaded[text]


def prepare() -> None:
    """Have the launch code of `default_pool` at hand. Any thread may do this beforehand."""
    _launch_code(default_parker(), DiskCache())


def _load_launch(text: str, cache: DiskCache) -> LoadedCode:
    key = cache.key("pool", text)
    entry = cache.get(key)
    if entry is not None:
        with contextlib.suppress(CompilerError, KeyError):
            return load(entry["object"], spmd_ir.LAUNCH_SYMBOLS)
    from fusegraph.runtime import llvm  # a warm start does not need it

    code = llvm.compile_ir(text)
    cache.put(key, {"object": code})
    return load(code, spmd_ir.LAUNCH_SYMBOLS)
