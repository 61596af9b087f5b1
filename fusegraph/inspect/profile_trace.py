"""A profile in the format of Chrome's tracing (JSON): Perfetto and chrome://tracing open it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fusegraph.inspect.explain_text import operations_text
from fusegraph.inspect.report import Report

if TYPE_CHECKING:
    from fusegraph.inspect.profile import Timing

ARRIVED, BEGUN, ENDED = 0, 1, 2
_SHORTEST_WAIT = 0.05  # microseconds: passing a barrier that nobody is late for


def chrome_trace(programs: Sequence[Report], timings: Sequence[Timing]) -> dict[str, Any]:
    """Events of each program's typical step; the second program follows the first."""
    events: list[dict[str, Any]] = [_named("process_name", 0, programs[0]["name"])]
    threads = max(timing.threads for timing in timings)
    events += [_named("thread_name", thread, f"thread {thread}") for thread in range(threads)]
    start = 0.0
    for program, timing in zip(programs, timings, strict=True):
        stamps = timing.stamps[timing.typical()] / 1e3
        first = float(stamps.min()) if stamps.size else 0.0
        events += _events(program, timing, stamps - first + start)
        start += float(stamps.max() - first) if stamps.size else 0.0
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def _named(what: str, thread: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": 1, "tid": thread, "args": {"name": name}}


def _events(program: Report, timing: Timing, stamps: Any) -> Iterator[dict[str, Any]]:
    for kernel, shared in zip(program["kernels"], timing.shared, strict=True):
        for thread in range(timing.threads):
            arrived, begun, ended = (float(part) for part in stamps[thread, kernel["id"]])
            if begun - arrived > _SHORTEST_WAIT:
                yield _event("wait", "idle", thread, arrived, begun, {"before": kernel["name"]})
            if shared or thread == 0:
                yield _event(kernel["name"], kernel["schedule"], thread, begun, ended, _arguments(kernel))


def _event(name: str, category: str, thread: int, begin: float, end: float, arguments: Report) -> dict[str, Any]:
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "pid": 1,
        "tid": thread,
        "ts": begin,
        "dur": max(end - begin, 0.0),
        "args": arguments,
    }


def _arguments(kernel: Report) -> Report:
    return {
        "operations": operations_text(kernel),
        "lines": kernel["lines"],
        "bytes": kernel["bytes_read"] + kernel["bytes_written"],
        "flops": kernel["flops"],
        "share_of_roofline": kernel["share_of_roofline"],
    }
