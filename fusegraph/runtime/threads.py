"""How many threads a step may use: the machine's cores, the user's setting."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import ClassVar

from fusegraph.errors import OptionError
from fusegraph.runtime.spmd_ir import MAX_THREADS

DEFAULT_CAP = 64  # threads that are used without being asked for
_CGROUP = "/sys/fs/cgroup"


class ThreadSetting:
    """The thread count asked for by call (None: nobody has asked), and a number that every such call changes."""

    count: ClassVar[int | None] = None
    version: ClassVar[int] = 0


def check_threads(count: object, what: str = "the number of threads") -> int:
    """`count` as an int. Raises OptionError if it is not an int from 1 to MAX_THREADS."""
    if isinstance(count, bool) or not hasattr(count, "__index__") or not 1 <= count.__index__() <= MAX_THREADS:
        raise OptionError(f"{what} must be an int from 1 to {MAX_THREADS}, not {count!r}")
    return count.__index__()


@lru_cache(maxsize=1)
def available_cores() -> int:
    """Logical CPUs that this process may use: its affinity mask, and the CPU quota of its container. At least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, min(cores, quota) if quota is not None else cores)


def set_num_threads(count: int) -> None:
    """Run compiled steps on exactly `count` threads, also if there are fewer cores.

    Without this call (and without FUSEGRAPH_NUM_THREADS) a step chooses by timing between one thread and
    `get_num_threads()`. Raises OptionError if `count` is not an int from 1 to 256.
    """
    ThreadSetting.count = check_threads(count)
    ThreadSetting.version += 1


def get_num_threads() -> int:
    """Threads that compiled steps use at most: what was set, else FUSEGRAPH_NUM_THREADS, else the cores (at most 64).

    Raises OptionError if FUSEGRAPH_NUM_THREADS is not a valid count.
    """
    asked = asked_threads()
    return asked if asked is not None else min(available_cores(), DEFAULT_CAP)


def asked_threads() -> int | None:
    """The count that the user asked for by call or environment; None if steps may choose."""
    if ThreadSetting.count is not None:
        return ThreadSetting.count
    return _environment_threads(os.environ.get("FUSEGRAPH_NUM_THREADS", ""))


@lru_cache(maxsize=4)
def _environment_threads(text: str) -> int | None:
    text = text.strip()
    if not text:
        return None
    return check_threads(int(text) if text.isdecimal() else text, "FUSEGRAPH_NUM_THREADS")


def _cpu_quota() -> int | None:
    """Whole CPUs that the control group of this process grants (Linux containers), None without a limit."""
    try:
        if os.path.exists(f"{_CGROUP}/cpu.max"):
            quota, period = _text("cpu.max").split()
        else:
            quota, period = _text("cpu/cpu.cfs_quota_us").strip(), _text("cpu/cpu.cfs_period_us").strip()
        if quota in ("max", "-1"):
            return None
        return max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _text(name: str) -> str:
    with open(f"{_CGROUP}/{name}", encoding="ascii") as file:
        return file.read()
