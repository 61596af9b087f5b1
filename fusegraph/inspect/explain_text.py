"""A report in plain text, and the words that all forms of it share."""

from __future__ import annotations

from collections.abc import Sequence

from fusegraph.inspect.explain import bytes_text
from fusegraph.inspect.report import Report

MAX_REFUSALS = 8
MAX_RECOMPUTED = 4
MAX_LINES = 4
MAX_REWRITES = 6
_WORTH_TELLING = 1000.0  # nanoseconds of waiting: several times what passing a barrier takes


def text(report: Report) -> str:
    """The report in lines."""
    return "\n\n".join(_program_text(program) for program in report["programs"])


def _program_text(program: Report) -> str:
    lines = [f"{headline(program)}", f"  {traffic_sentence(program)}", f"  {memory_sentence(program)}"]
    if program["in_place"]:
        lines.append(f"  written in place: {', '.join(program['in_place'])}")
    for kernel in program["kernels"]:
        lines += _kernel_lines(kernel)
    lines += _refusal_lines(program["refusals"])
    tuned = program.get("autotune", {}).get("text", "")
    sentences = (together_sentence(program), rewrites_sentence(program), seconds_sentence(program), tuned)
    lines += [f"  {sentence}" for sentence in sentences if sentence]
    return "\n".join(lines)


def headline(program: Report) -> str:
    """What the program is, in one line."""
    totals = program["totals"]
    phase = "" if program["phase"] == "step" else f" ({program['phase']})"
    head = f"{program['name']}{phase}: {totals['operations']} operations in {totals['kernels']} kernels"
    if "axis" in program:
        head = f"{head} ({program['axis']})"
    if program["backend"] == "reference":
        return f"{head} when compiled; the reference runs them one at a time"
    return f"{head}, one call ({program['backend']})"


def traffic_sentence(program: Report) -> str:
    """What it moves and computes."""
    totals = program["totals"]
    moved = totals["bytes_read"] + totals["bytes_written"]
    return (
        f"moves {bytes_text(moved)} (one operation at a time: {bytes_text(totals['unfused_bytes'])}), "
        f"{totals['flops'] / 1e6:.2f} Mflop"
    )


def memory_sentence(program: Report) -> str:
    """What memory it takes for what does not leave it."""
    memory = program["memory"]
    return (
        f"arena {bytes_text(memory['arena_bytes'])} (without sharing: {bytes_text(memory['unshared_bytes'])}; "
        f"one operation at a time, at most: {bytes_text(memory['unfused_peak_bytes'])})" + _budget_text(memory)
    )


def _budget_text(memory: Report) -> str:
    """What a memory budget has done."""
    budget = memory.get("budget")
    if budget is None:
        return ""
    text = (
        f"; memory budget {bytes_text(budget['budget_bytes'])}, without it {bytes_text(budget['unlimited_bytes'])}: "
        "the order of the kernels suffices"
    )
    if not budget["recomputed"]:
        return text if budget["unlimited_bytes"] > budget["budget_bytes"] else text.partition(":")[0]
    names = list(dict.fromkeys(copy["operation"] for copy in budget["recomputed"]))
    more = budget["recomputed_operations"] / max(budget["operations"], 1)
    return text.partition(":")[0] + (
        f": {len(budget['recomputed'])} value(s) of {bytes_text(budget['recomputed_bytes'])} are computed again "
        f"({', '.join(names[:MAX_RECOMPUTED])}{', ...' if len(names) > MAX_RECOMPUTED else ''}), {more:.0%} more operations"
    )


def together_sentence(program: Report) -> str:
    """Which kernels pass over their rows together."""
    found = {tuple(k["together"]["kernels"]): k["together"]["blocks"] for k in program["kernels"] if k["together"]}
    parts = [f"{', '.join(names)} in {blocks} blocks of rows" for names, blocks in found.items()]
    return f"run together, block by block, without a barrier: {'; '.join(parts)}" if parts else ""


def rewrites_sentence(program: Report) -> str:
    """The rules of the passes that fired most often."""
    rules = program["rewrites"]
    if not rules:
        return ""
    named = ", ".join(f"{rule['rule']} {rule['count']}x" for rule in rules[:MAX_REWRITES])
    rest = f", and {len(rules) - MAX_REWRITES} other rules" if len(rules) > MAX_REWRITES else ""
    changed = list(dict.fromkeys(run["name"] for run in program["passes"] if run["changed"]))
    return f"passes that changed the graph: {', '.join(changed)}; rewrites: {named}{rest}"


def seconds_sentence(program: Report) -> str:
    """How long the stages of the compilation took."""
    if not program["seconds"]:
        return ""
    times = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in program["seconds"].items())
    return f"compiled: {times}" + (" (code from the disk cache)" if program["from_cache"] else "")


def space_text(kernel: Report) -> str:
    """The extents of a kernel's parallel axes."""
    return "x".join(map(str, kernel["space"])) or "1"


def operations_text(kernel: Report) -> str:
    """The operations in a kernel, each name once, with how often."""
    names: Sequence[str] = kernel["operations"]
    counts = [(name, names.count(name)) for name in dict.fromkeys(names)]
    return ", ".join(name if count == 1 else f"{name} ({count})" for name, count in counts) or "copy"


def lines_text(kernel: Report, most: int = MAX_LINES) -> str:
    """The user's lines in a kernel."""
    lines = kernel["lines"]
    return "; ".join(lines[:most]) + ("; ..." if len(lines) > most else "")


def measured_text(kernel: Report) -> str:
    """What profiling has measured of a kernel; "" before."""
    if kernel["time_ns"] is None:
        return ""
    parts = [f"{kernel['time_ns'] / 1e3:.1f} us"]
    parts += [f"{kernel['gb_s']:.1f} GB/s"] if kernel["gb_s"] is not None else []
    parts += [f"{kernel['gflop_s']:.1f} GFLOP/s"] if kernel["gflop_s"] is not None else []
    parts += [f"{kernel['share_of_roofline']:.0%} of the roofline"] if kernel["share_of_roofline"] is not None else []
    waited = kernel["idle_ns"] or 0.0
    return ", ".join(parts) + (f"; threads waited {waited / 1e3:.1f} us for it" if waited >= _WORTH_TELLING else "")


def _kernel_lines(kernel: Report) -> list[str]:
    where = lines_text(kernel)
    moved = kernel["bytes_read"] + kernel["bytes_written"]
    saved = f" (unfused: {bytes_text(kernel['unfused_bytes'])})" if kernel["unfused_bytes"] > moved else ""
    lines = [
        f"  {kernel['id']:3} {kernel['schedule']:<8} [{space_text(kernel)}] {operations_text(kernel)}",
        f"      reads {bytes_text(kernel['bytes_read'])}, writes {bytes_text(kernel['bytes_written'])}{saved}, "
        f"{kernel['flops'] / 1e6:.3f} Mflop" + (f"   {where}" if where else ""),
    ]
    if kernel["recomputed"]:
        lines.append(f"      computes {len(kernel['recomputed'])} operation(s) again rather than load their results")
    if measured := measured_text(kernel):
        lines.append(f"      took {measured}")
    return lines


def refusal_text(refusal: Report) -> str:
    """A fusion that was refused, and why."""
    return f"{refusal['producer']}  |  {refusal['consumer']}: {refusal['rule']} ({bytes_text(refusal['bytes'])})"


def _refusal_lines(refusals: Sequence[Report]) -> list[str]:
    if not refusals:
        return []
    lines = ["  not fused (dearest first):", *(f"    {refusal_text(r)}" for r in refusals[:MAX_REFUSALS])]
    if len(refusals) > MAX_REFUSALS:
        lines.append(f"    ... and {len(refusals) - MAX_REFUSALS} more in to_dict()")
    return lines
