"""The GPU of this process: its driver, one lock, and its memory (one arena for temps, a pool for everything else).

What Python frees may be freed in the middle of anything, by any thread: it is only noted, and given back when the lock is taken
next. `using()` is the one way in: it holds the lock, and refuses a device that is lost, or that belongs to the parent of a fork.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fusegraph.errors import DeviceError, UnsupportedError
from fusegraph.runtime.cuda.driver import Driver
from fusegraph.runtime.cuda_compile import INSTALL, TARGETS

_GRANULE = 512  # bytes: sizes of pooled memory are multiples of it
_POOLED = 64  # blocks that are kept for the next of their size


class Device:
    """One GPU with one stream. Safe to share between threads: one of them uses it at a time."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.capability = driver.capability()
        self.target = newest_target(self.capability)
        self.lost = ""
        self.closed = False
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._garbage: deque[Callable[[], Any]] = deque()
        self._pool: dict[int, list[int]] = {}
        self._arena, self._arena_bytes = 0, 0
        self._held: weakref.WeakSet[Any] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"<GPU {self.driver.name()}, {self.target}>"

    @contextmanager
    def using(self) -> Iterator[Driver]:
        """The driver, for this thread alone. Raises UnsupportedError after a fork, DeviceError if the device is lost."""
        if os.getpid() != self._pid:
            raise UnsupportedError(
                "the GPU was in use when this process was forked, and a forked process cannot use it: start it with "
                "multiprocessing.get_context('spawn'), or fork before the first call of a compiled function"
            )
        with self._lock:
            if self.lost:
                raise DeviceError(f"the GPU cannot be used any more in this process: {self.lost}", lost=True)
            if self.closed:
                raise UnsupportedError("this GPU was given back (Device.close): nothing of it can be used any more")
            try:
                self.driver.make_current()
                self._collect()
                yield self.driver
            except DeviceError as error:
                if error.lost and not self.lost:
                    self.lost = str(error)
                raise

    # -- memory -------------------------------------------------------------------------------------------------------

    def alloc(self, nbytes: int) -> int:
        """Device memory, from the pool if it has some of that size. Under `using`. Raises DeviceError if there is no room."""
        size = _rounded(nbytes)
        if waiting := self._pool.get(size):
            return waiting.pop()
        try:
            return self.driver.alloc(size)
        except DeviceError as error:
            if not error.out_of_memory:
                raise
        gc.collect()  # tensors and compiled functions that nobody can reach any more
        self._collect()
        self.trim()
        try:
            return self.driver.alloc(size)
        except DeviceError as error:
            if not error.out_of_memory:
                raise
            free, total = self.driver.memory()
            raise DeviceError(
                f"the GPU has no room for {size / 2**20:.1f} MB more ({free / 2**20:.1f} of {total / 2**20:.1f} MB are "
                "free): take a smaller batch, or drop what other compiled functions keep there. Nothing was changed",
                out_of_memory=True,
            ) from None

    def release(self, address: int, nbytes: int) -> None:
        """Give memory of `alloc` to the pool, or back. Under `using`."""
        waiting = self._pool.setdefault(_rounded(nbytes), [])
        if len(waiting) < _POOLED:
            waiting.append(address)
        else:
            self.driver.synchronise()
            self.driver.free(address)

    def discard(self, action: Callable[[], Any]) -> None:
        """Run `action` when the device is used next: for what the garbage collector frees. May be called at any time."""
        self._garbage.append(action)

    def arena(self, nbytes: int) -> int:
        """The memory in which temps of whatever step runs live; it grows. Under `using`, nothing queued."""
        if nbytes > self._arena_bytes:
            larger = self.alloc(nbytes)
            if self._arena:
                self.driver.free(self._arena)
            self._arena, self._arena_bytes = larger, nbytes
        return self._arena

    def has_arena(self, address: int) -> bool:
        """Whether temps still live there."""
        return self._arena == address

    def trim(self) -> None:
        """Give the pool's memory back to the driver. Under `using`."""
        self.driver.synchronise()
        for waiting in self._pool.values():
            while waiting:
                self.driver.free(waiting.pop())

    def hold(self, thing: Any) -> None:
        """`thing.close()` is called when the device is closed."""
        self._held.add(thing)

    def close(self) -> None:
        """Give everything back. Tensors are on the host afterwards; what was compiled is loaded anew by its next call."""
        with self.using():
            for thing in list(self._held):
                thing.close()
            self._collect()
            self.trim()
            if self._arena:
                self.driver.free(self._arena)
            self._arena = self._arena_bytes = 0
            self.closed = True

    def _collect(self) -> None:
        while self._garbage:
            self._garbage.popleft()()


def _rounded(nbytes: int) -> int:
    return max(-(-nbytes // _GRANULE), 1) * _GRANULE


def newest_target(capability: tuple[int, int]) -> str:
    """The newest target that a GPU can run. Raises UnsupportedError for one that is too old."""
    fitting = [target for target, needed in TARGETS.items() if needed <= capability]
    if not fitting:
        raise UnsupportedError(
            f"a GPU of compute capability {capability[0]}.{capability[1]} is older than {next(iter(TARGETS))}, "
            "the oldest target; backend='cpu' runs"
        )
    return fitting[-1]


# -- the process's device ---------------------------------------------------------------------------------------------

_current: Device | None = None
_starting = threading.Lock()


def unavailable() -> str:
    """What is missing before kernels can run here, in words; "" if nothing."""
    if _current is not None:
        return ""
    try:
        found = importlib.util.find_spec("cuda.bindings")
    except ModuleNotFoundError:
        found = None
    if found is None:
        return f"the wheels are not installed (no package cuda-bindings): {INSTALL}"
    from cuda.bindings import driver

    try:
        (status,) = driver.cuInit(0)
        status, count = driver.cuDeviceGetCount() if int(status) == 0 else (status, 0)
    except Exception as error:  # the bindings raise errors of several kinds where libcuda cannot be loaded
        text = str(error).strip().splitlines()[0]
        return f"the NVIDIA driver is not installed, or cannot be loaded ({text})"
    if int(status) == 0 and count:
        return ""
    if int(status) in (0, 100):  # CUDA_ERROR_NO_DEVICE
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = f" (CUDA_VISIBLE_DEVICES is {visible!r})" if visible is not None else ""
        return f"the NVIDIA driver finds no GPU{hidden}"
    return f"the NVIDIA driver does not start (error {int(status)})"


def current_device() -> Device:
    """The first GPU that CUDA_VISIBLE_DEVICES leaves. Raises UnsupportedError that says what is missing."""
    global _current
    if _current is None:
        with _starting:
            if _current is None:
                if problem := unavailable():
                    raise UnsupportedError(
                        f"backend='cuda' cannot run here: {problem}; dump() works without a GPU, and so does explain(), "
                        "and backend='cpu' runs"
                    )
                from cuda.bindings import driver

                from fusegraph.runtime.cuda.bindings import NvidiaDriver

                _current = Device(NvidiaDriver(driver))
    return _current


@contextmanager
def using_driver(driver: Driver) -> Iterator[Device]:
    """Within the block, `driver` is the process's GPU (an emulated one in tests); its device is closed behind it."""
    global _current
    before, device = _current, Device(driver)
    _current = device
    try:
        yield device
    finally:
        _current = before
        if not device.lost and not device.closed:
            device.close()


def _after_fork() -> None:
    global _starting
    _starting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
