"""Python's cycle collector rests while a program is compiled.

Compiling makes some hundred thousand objects that live until it ends. Going through them again and again in search of cycles
takes a twelfth of a compilation's time, and finds hardly any.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_resting = 0  # how many ask for it now
_was_on = False


@contextlib.contextmanager
def resting() -> Iterator[None]:
    """Inside, no cycles are collected, unless someone asks for it. Threads may be inside at the same time."""
    global _resting, _was_on
    with _lock:
        if not _resting:
            _was_on = gc.isenabled()
            gc.disable()
        _resting += 1
    try:
        yield
    finally:
        with _lock:
            if _resting:
                _resting -= 1
                _wake()


def _wake() -> None:
    if _was_on and not _resting:
        gc.enable()


def _after_fork() -> None:
    """The child has none of the other threads: nobody rests but, perhaps, the one that forked."""
    global _lock, _resting
    _lock = threading.Lock()
    if _resting:
        _resting = 0
        _wake()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
