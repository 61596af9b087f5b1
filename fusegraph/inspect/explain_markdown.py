"""A report as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fusegraph.inspect import explain_text as words
from fusegraph.inspect.explain import bytes_text
from fusegraph.inspect.report import Report


def markdown(report: Report) -> str:
    """The report: a section for each program."""
    return "\n\n".join(_program(program) for program in report["programs"]) + "\n"


def _program(program: Report) -> str:
    sentences = [
        words.traffic_sentence(program),
        words.memory_sentence(program),
        words.rewrites_sentence(program),
        words.together_sentence(program),
        words.seconds_sentence(program),
    ]
    parts = [
        f"## {escaped(words.headline(program))}",
        "\n".join(f"- {escaped(sentence)}" for sentence in sentences if sentence),
        _kernel_table(program["kernels"]),
    ]
    if program["refusals"]:
        rows = (
            (r["producer"], r["consumer"], r["rule"], bytes_text(r["bytes"]))
            for r in program["refusals"][: words.MAX_REFUSALS]
        )
        parts.append(table(("not fused: producer", "consumer", "why", "bytes"), rows))
    return "\n\n".join(parts)


def _kernel_table(kernels: Sequence[Report]) -> str:
    timed = any(kernel["time_ns"] is not None for kernel in kernels)
    head = ("kernel", "schedule", "space", "operations", "lines", "read", "written", "unfused", "Mflop")
    rows = [
        (
            str(kernel["id"]),
            kernel["schedule"],
            words.space_text(kernel),
            words.operations_text(kernel),
            words.lines_text(kernel),
            bytes_text(kernel["bytes_read"]),
            bytes_text(kernel["bytes_written"]),
            bytes_text(kernel["unfused_bytes"]),
            f"{kernel['flops'] / 1e6:.3f}",
            *((words.measured_text(kernel),) if timed else ()),
        )
        for kernel in kernels
    ]
    return table((*head, "measured") if timed else head, rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are escaped."""
    lines = [" | ".join(head), "|".join("---" for _ in head)]
    lines += [" | ".join(map(escaped, row)) for row in rows]
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def escaped(text: str) -> str:
    """`text` with what Markdown would take for markup made plain."""
    for sign in ("\\", "|", "<", "*", "_", "`", "["):
        text = text.replace(sign, "\\" + sign)
    return text.replace("\n", " ")
