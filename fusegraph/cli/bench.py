"""`bench`: whole calls, compiled and otherwise, timed in turns so that a busy neighbour harms all alike."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from fusegraph.cli.errors import UserError
from fusegraph.cli.targets import arguments, attempt, compiled, original

WAYS = ("eager", "unfused", "cpu", "numba", "python", "reference")
_BLOCK = 10  # calls of one way before the next has its turn
_SECONDS = 20.0  # a way that is slower than this in all is left off early


def bench(args: argparse.Namespace) -> None:
    """Print first call, fastest and median call of each way."""
    if args.calls < 1:
        raise UserError(f"--calls must be at least 1, got {args.calls}")
    positional, named = arguments(args)
    ways: dict[str, Callable[..., Any]] = {"compiled": compiled(args)}
    for way in dict.fromkeys(args.against or ()):
        ways[way] = _way(args, way)
    rows = attempt(args, lambda: _measure(ways, positional, named, args.calls))
    print(json.dumps(rows, indent=1) if args.json else _table(rows))


def _way(args: argparse.Namespace, way: str) -> Callable[..., Any]:
    if way == "eager":
        found = original(args)
        return found  # type: ignore[no-any-return]
    return compiled(args, fuse=False) if way == "unfused" else compiled(args, backend=way)


def _measure(ways: dict[str, Any], positional: list[Any], named: dict[str, Any], calls: int) -> list[dict[str, Any]]:
    first = {way: _seconds(function, positional, named) for way, function in ways.items()}
    times: dict[str, list[float]] = {way: [] for way in ways}
    while any(len(times[way]) < calls and sum(times[way]) < _SECONDS for way in ways):
        for way, function in ways.items():
            for _ in range(min(_BLOCK, calls - len(times[way]))):
                if sum(times[way]) < _SECONDS:
                    times[way].append(_seconds(function, positional, named))
    return [
        {
            "way": way,
            "first_ms": 1e3 * first[way],
            "fastest_us": 1e6 * min(times[way]),
            "median_us": 1e6 * statistics.median(times[way]),
            "calls": len(times[way]),
        }
        for way in ways
    ]


def _seconds(function: Callable[..., Any], positional: list[Any], named: dict[str, Any]) -> float:
    import fusegraph

    given = [fusegraph.from_numpy(array) for array in positional]
    start = time.perf_counter()
    function(*given, **{name: fusegraph.from_numpy(array) for name, array in named.items()})
    return time.perf_counter() - start


def _table(rows: list[dict[str, Any]]) -> str:
    base = rows[0]["median_us"]
    lines = [f"{'':<10} {'first call ms':>14} {'fastest us':>12} {'median us':>12} {'calls':>6}"]
    for row in rows:
        times = f"{row['first_ms']:14.1f} {row['fastest_us']:12.1f} {row['median_us']:12.1f} {row['calls']:6}"
        ratio = "" if row is rows[0] else f"   {row['median_us'] / base:.2f}x the time of compiled"
        lines.append(f"{row['way']:<10} {times}{ratio}")
    return "\n".join(lines)
