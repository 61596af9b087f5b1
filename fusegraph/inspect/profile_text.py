"""A profile in plain text: a row a kernel, the slowest first."""

from __future__ import annotations

from collections.abc import Sequence

from fusegraph.inspect.explain_text import lines_text, operations_text
from fusegraph.inspect.report import Report


def text(programs: Sequence[Report]) -> str:
    """The table of each program, and a summary."""
    parts = []
    for program in programs:
        head = f"{'kernel':>6} {'us':>9} {'share':>6} {'GB/s':>7} {'GFLOP/s':>8} {'roofline':>8} {'wait us':>8}  operations"
        rows = sorted(program["kernels"], key=lambda kernel: -(kernel["time_ns"] or 0.0))
        whole = sum(kernel["time_ns"] or 0.0 for kernel in rows) or 1.0
        parts.append("\n".join([program["name"], head, *(_row(kernel, whole) for kernel in rows)]))
    return "\n\n".join([*parts, summary(programs)])


def _row(kernel: Report, whole: float) -> str:
    def figure(name: str, form: str) -> str:
        return "-" if kernel[name] is None else format(kernel[name], form)

    where = lines_text(kernel, 1)
    return (
        f"{kernel['id']:6} {kernel['time_ns'] / 1e3:9.2f} {kernel['time_ns'] / whole:6.1%} {figure('gb_s', '.1f'):>7} "
        f"{figure('gflop_s', '.1f'):>8} {figure('share_of_roofline', '.0%'):>8} {kernel['idle_ns'] / 1e3:8.2f}  "
        f"{operations_text(kernel)}" + (f"   {where}" if where else "")
    )


def summary(programs: Sequence[Report]) -> str:
    """Total time of each program, and what of it threads waited."""
    lines = []
    for program in programs:
        measured = program["profile"]
        total, threads = measured["total_ns"], measured["threads"]
        idle = measured["idle_ns"] / (total * threads) if total else 0.0
        lines.append(
            f"{program['name']}: {total / 1e3:.1f} us a call on {threads} thread(s), median of {measured['steps']} "
            f"({program['backend']}); threads waited for each other {idle:.0%} of the time"
        )
    return "\n".join(lines)
