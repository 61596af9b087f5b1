"""The result of a run as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.systems import SYSTEMS

Json = dict[str, Any]


def markdown(result: Json) -> str:
    """A page: what was measured on what, and tables of run time, compile time and memory."""
    names = result["settings"]["systems"]
    present = [name for name in names if any(w["systems"][name]["step_s"] is not None for w in result["workloads"])]
    parts = [
        "# Speed beside other frameworks",
        "",
        "Made by `make bench`; how it measures is described in [benchmarks/README.md](../benchmarks/README.md).",
        "",
        *_machine(result),
        "",
        "## A step, in microseconds",
        "",
        *_steps(result, present),
        "",
        "The median of the rounds. × is the best rival's time over ours: above 1 we are faster. Work is counted with dense "
        "gradients: above 100 % of peak, zeros were skipped.",
        *_mean(result),
        "",
        "## First step, in seconds",
        "",
        "Cold: building the model, compiling and running a step with nothing on disk. Warm: the same in a second process, which "
        "finds on disk what the first has left. Neither counts the import of the framework, which is given beside it.",
        "",
        *_first_steps(result, present),
        "",
        "## Memory, in MiB",
        "",
        "How much a process grows at its peak beyond the framework, the initial weights and the inputs: cold (with the compiler "
        "at work), and warm.",
        "",
        *_memory(result, present),
        *_missing(result),
    ]
    return "\n".join(parts) + "\n"


def _machine(result: Json) -> list[str]:
    settings, machine = result["settings"], result["machine"]
    versions = sorted({r["version"] for w in result["workloads"] for r in w["systems"].values() if r["version"]})
    lines = [
        f"- Machine: {machine['cpu']}, {machine['cores']} core(s) for this process, {machine['system']}; {settings['threads']} "
        "used.",
        f"- Systems: {', '.join(versions)}, Python {machine['python']}, numpy {machine['numpy']}.",
        f"- Measured on {result['date']}: {settings['rounds']} rounds of {settings['seconds']:g} s, interleaved; load average "
        f"{machine['load_before']} before, {machine['load_after']} after.",
    ]
    if result.get("roofline"):
        lines.append(f"- Roofline: {result['roofline']['sentence']}")
    return lines


def _steps(result: Json, names: list[str]) -> list[str]:
    rows = []
    for workload in result["workloads"]:
        times = {name: workload["systems"][name]["step_s"] for name in names}
        best = min((t for t in times.values() if t is not None), default=None)
        cells = [_marked(microseconds(t), t is not None and t == best) for t in times.values()]
        ratio = f"{workload['ratio']:.2f}" if workload["ratio"] is not None else "–"
        rows.append([workload["title"], *cells, ratio, _fraction(workload, result.get("roofline"))])
    return table(["workload", *(SYSTEMS[name].title for name in names), "×", "ours, of the roofline"], rows)


def _fraction(workload: Json, roofline: Json | None) -> str:
    """Our share of the machine's peak, or of its bandwidth, whichever is the limit of this workload."""
    ours = workload["systems"].get("ours")
    if roofline is None or ours is None or ours["step_s"] is None:
        return "–"
    if workload["flops"]:
        return f"{workload['flops'] / ours['step_s'] / roofline['gflops'] / 1e9:.0%} of peak"
    if workload["nbytes"]:
        return f"{workload['nbytes'] / ours['step_s'] / roofline['bandwidth'] / 1e9:.0%} of bandwidth"
    return "–"


def _mean(result: Json) -> list[str]:
    ratios = [workload["ratio"] for workload in result["workloads"] if workload["ratio"] is not None]
    if not ratios:
        return []
    return [
        f"Geometric mean over {len(ratios)} workload(s): {geometric_mean(ratios):.2f}; the smallest: {min(ratios):.2f}."
    ]


def geometric_mean(numbers: Iterable[float]) -> float:
    """Of positive numbers, at least one."""
    product, count = 1.0, 0
    for number in numbers:
        product, count = product * number, count + 1
    return product ** (1 / count)


def _first_steps(result: Json, names: list[str]) -> list[str]:
    rows = []
    for workload in result["workloads"]:
        systems = [workload["systems"][name] for name in names]
        rows.append([workload["title"], *(f"{seconds(s['cold_s'])} / {seconds(s['warm_s'])}" for s in systems)])
    imports = []
    for name in names:
        times = [w["systems"][name]["warm_import_s"] or w["systems"][name]["import_s"] for w in result["workloads"]]
        imports.append(seconds(min((t for t in times if t is not None), default=None)))
    rows.append(["import", *imports])
    return table(["cold / warm", *(SYSTEMS[name].title for name in names)], rows)


def _memory(result: Json, names: list[str]) -> list[str]:
    rows = []
    for workload in result["workloads"]:
        systems = [workload["systems"][name] for name in names]
        rows.append([workload["title"], *(f"{mebibytes(s['cold_peak_bytes'])} / {mebibytes(s['warm_peak_bytes'])}"
                                          for s in systems)])  # fmt: skip
    return table(["cold / warm", *(SYSTEMS[name].title for name in names)], rows)


def _missing(result: Json) -> list[str]:
    """Systems that are not installed, that failed, or whose results were wrong."""
    notes: dict[tuple[str, str], list[str]] = {}
    for workload in result["workloads"]:
        for name, system in workload["systems"].items():
            if system["note"]:
                notes.setdefault((name, system["note"]), []).append(workload["name"])
    if not notes:
        return []
    lines = [f"- {SYSTEMS[name].title}, {', '.join(where)}: {note}" for (name, note), where in notes.items()]
    return ["", "## Not measured, or only in part", "", *lines]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _marked(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def microseconds(value: float | None) -> str:
    """Three digits, or more where they are whole."""
    return "–" if value is None else f"{value * 1e6:.1f}" if value < 1e-4 else f"{value * 1e6:,.0f}"


def seconds(value: float | None) -> str:
    """To milliseconds below a second."""
    return "–" if value is None else f"{value:.3f}" if value < 1 else f"{value:.1f}"


def mebibytes(value: float | None) -> str:
    """Whole ones from 10 on."""
    if value is None:
        return "–"
    size = value / 2**20
    return f"{size:.1f}" if size < 10 else f"{size:.0f}"
