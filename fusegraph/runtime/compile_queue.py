"""Modules are compiled while more of them are being written.

Whoever generates code adds a module as soon as it is finished; other threads compile them meanwhile, which Python does not
hold up, as LLVM runs without its lock. `finish` helps with what is left. What an object contains does not depend on which
thread compiled it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Sequence
from types import TracebackType

import numpy as np

from fusegraph.runtime import llvm, pool
from fusegraph.runtime.threads import available_cores

_MOST_THREADS = 3  # that compile beside the one that writes: it does not write faster than so many read
_SWITCH_SECONDS = 1e-4  # a thread that comes back from LLVM waits so long for Python's lock, instead of 5 ms
_KEPT_BYTES = 4 << 20


class CompileQueue:
    """LLVM IR texts in, objects out, in the same order. A context manager: leaving it stops its threads.

    threads: how many compile beside the caller; None: as many as this process has further cores for, up to 3.
    """

    def __init__(self, threads: int | None = None) -> None:
        beside = min(_MOST_THREADS, available_cores() - 1) if threads is None else threads
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, str]] = deque()
        self._objects: list[bytes | None] = []
        self._error: BaseException | None = None
        self._left = False
        self._threads = [
            threading.Thread(target=self._work, args=(number == 0,), name="fusegraph-compile")
            for number in range(beside)
        ]

    def __enter__(self) -> CompileQueue:
        if self._threads:
            _switch_fast(True)
            # The C library gives memory back, and asks for it again, all the time if it has never seen a block as large as
            # this one freed: two threads then hinder each other (LLVM's half of two threads takes 1.4 times as long).
            np.empty(_KEPT_BYTES, np.uint8)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._changed:
            self._waiting.clear()
            self._left = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        if self._threads:
            _switch_fast(False)

    def add(self, text: str) -> None:
        """Have a module compiled."""
        with self._changed:
            self._waiting.append((len(self._objects), text))
            self._objects.append(None)
            self._changed.notify()

    def finish(self) -> Sequence[bytes]:
        """All objects, in the order of their modules. Raises CompilerError if LLVM refuses one."""
        while self._compile_next(wait=False):
            pass
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or None not in self._objects)
            if self._error is not None:
                raise self._error
            return [code for code in self._objects if code is not None]

    def _work(self, first: bool) -> None:
        if first:  # there is nothing to compile yet
            llvm.prepare()
            pool.prepare()
        while self._compile_next(wait=True):
            pass

    def _compile_next(self, wait: bool) -> bool:
        """Compile the module whose turn it is, or say that there is none."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._waiting or self._left)
            if not self._waiting:
                return False
            place, text = self._waiting.popleft()
        try:
            self._objects[place] = llvm.compile_ir(text)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._waiting.clear()
        with self._changed:
            self._changed.notify_all()
        return True


_intervals: list[float] = []  # how often threads took turns before, for each queue that works now
_switching = threading.Lock()


def _switch_fast(on: bool) -> None:
    """Have threads take turns more often, until every queue that asked for it has ended."""
    with _switching:
        if on:
            _intervals.append(sys.getswitchinterval())
            sys.setswitchinterval(min(_SWITCH_SECONDS, *_intervals))
        elif _intervals:
            slowest = max(_intervals)  # the first one's: the others found it changed
            _intervals.pop()
            if _intervals:
                _intervals[0] = slowest
            else:
                sys.setswitchinterval(slowest)


def _after_fork() -> None:
    """The child has none of the queues."""
    global _switching
    _switching = threading.Lock()
    if _intervals:
        sys.setswitchinterval(max(_intervals))
    _intervals.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
