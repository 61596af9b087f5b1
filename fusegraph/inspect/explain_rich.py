"""A report for a terminal with colours: rich's tables. Imported only where rich is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from fusegraph.inspect import explain_text as words
from fusegraph.inspect.explain import bytes_text
from fusegraph.inspect.report import Report

_STYLES = {"contract": "green", "nest": "cyan", "scatter": "magenta"}


def renderables(report: Report) -> Iterator[Any]:
    """What a rich console prints, in order."""
    for program in report["programs"]:
        yield Text(words.headline(program), style="bold")
        for sentence in (words.traffic_sentence(program), words.memory_sentence(program)):
            yield Text(f"  {sentence}")
        yield _kernel_table(program["kernels"])
        if program["refusals"]:
            yield _refusal_table(program["refusals"])
        for sentence in (
            words.together_sentence(program),
            words.rewrites_sentence(program),
            words.seconds_sentence(program),
        ):
            if sentence:
                yield Text(f"  {sentence}", style="dim")


def _kernel_table(kernels: Sequence[Report]) -> Table:
    timed = any(kernel["time_ns"] is not None for kernel in kernels)
    table = Table(box=None, header_style="dim")
    for name in ("", "schedule", "space", "operations", "your lines"):
        table.add_column(name, overflow="fold")
    for name in ("read", "written", "unfused", "Mflop", *(("measured",) if timed else ())):
        table.add_column(name, justify="right")
    for kernel in kernels:
        table.add_row(
            str(kernel["id"]),
            Text(kernel["schedule"], style=_STYLES.get(kernel["schedule"], "")),
            words.space_text(kernel),
            Text(words.operations_text(kernel)),
            Text(words.lines_text(kernel, 2), style="yellow"),
            bytes_text(kernel["bytes_read"]),
            bytes_text(kernel["bytes_written"]),
            bytes_text(kernel["unfused_bytes"]),
            f"{kernel['flops'] / 1e6:.3f}",
            *((words.measured_text(kernel),) if timed else ()),
        )
    return table


def _refusal_table(refusals: Sequence[Report]) -> Table:
    table = Table(box=None, header_style="dim", title="not fused, dearest first", title_justify="left")
    for name in ("producer", "consumer", "why"):
        table.add_column(name, overflow="fold")
    table.add_column("bytes", justify="right")
    for refusal in refusals[: words.MAX_REFUSALS]:
        table.add_row(
            Text(refusal["producer"]),
            Text(refusal["consumer"]),
            Text(refusal["rule"], style="red"),
            bytes_text(refusal["bytes"]),
        )
    return table
