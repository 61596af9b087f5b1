"""`explain()`: what a compiled function consists of, in words and figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusegraph.build import Artifact
from fusegraph.codegen.memory import plan_memory
from fusegraph.inspect.cost import NOTHING, Cost, loop_cost, unfused_bytes
from fusegraph.ir.graph import Node
from fusegraph.passes.groups import Refusal

MAX_REFUSALS = 8


def bytes_text(count: float) -> str:
    """A number of bytes with its unit."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def lines_of(nodes: Sequence[Node]) -> list[str]:
    """The places in the user's program that nodes come from, each once: file:line and module."""
    return list(dict.fromkeys(f"{n.location.short} {n.location.module}".strip() for n in nodes if n.location.file))


class Explanation:
    """A report of compiled programs (a step, or a model's forward and backward). Print it, or take `to_dict()`."""

    def __init__(self, artifacts: Sequence[Artifact]) -> None:
        self.artifacts = list(artifacts)

    def to_dict(self) -> list[dict[str, Any]]:
        """The report as plain data, a program each."""
        return [_program_dict(artifact) for artifact in self.artifacts]

    @property
    def kernels(self) -> int:
        """How many kernels run."""
        return sum(len(artifact.fused[0].loops) for artifact in self.artifacts)

    def __str__(self) -> str:
        return "\n\n".join(_program_text(_program_dict(artifact)) for artifact in self.artifacts)

    __repr__ = __str__


def _program_dict(artifact: Artifact) -> dict[str, Any]:
    program, report = artifact.fused
    memory = plan_memory(program)
    kernels, total = [], NOTHING
    nodes_of = dict(report.kernels)
    for loop in program.loops:
        cost = loop_cost(loop, program)
        total = total + cost
        nodes = nodes_of.get(loop.name, ())
        kernels.append(
            {
                "name": loop.name,
                "schedule": loop.schedule,
                "operations": [node.op for node in nodes],
                "lines": lines_of(nodes),
                "space": [axis.extent for axis in loop.space],
                "cost": _cost_dict(cost),
            }
        )
    return {
        "name": program.name,
        "backend": artifact.options.backend,
        "kernels": kernels,
        "total": _cost_dict(total),
        "operations": len([n for n in artifact.source.nodes if n.op not in ("input", "constant")]),
        "unfused_bytes": unfused_bytes(artifact.source),
        "arena_bytes": memory.arena_bytes,
        "unshared_bytes": memory.unshared_bytes,
        "refusals": [_refusal_dict(refusal) for refusal in report.refusals],
        "copies": list(report.copies),
        "passes": [name for name, _ in artifact.stages],
        "seconds": dict(artifact.seconds),
        "from_cache": artifact.from_cache,
        "in_place": [b.name for b in program.buffers.values() if b.role == "state"],
    }


def _cost_dict(cost: Cost) -> dict[str, int]:
    return {"bytes_read": cost.bytes_read, "bytes_written": cost.bytes_written, "flops": cost.flops}


def _refusal_dict(refusal: Refusal) -> dict[str, Any]:
    return {"rule": refusal.rule, "producer": refusal.producer, "consumer": refusal.consumer, "bytes": refusal.nbytes}


def _program_text(data: dict[str, Any]) -> str:
    moved = data["total"]["bytes_read"] + data["total"]["bytes_written"]
    lines = [
        f"{data['name']}: {data['operations']} operations in {len(data['kernels'])} kernels, one call ({data['backend']})",
        f"  moves {bytes_text(moved)} (one operation at a time: {bytes_text(data['unfused_bytes'])}), "
        f"{data['total']['flops'] / 1e6:.2f} Mflop, arena {bytes_text(data['arena_bytes'])} "
        f"(without sharing: {bytes_text(data['unshared_bytes'])})",
    ]
    if data["in_place"]:
        lines.append(f"  written in place: {', '.join(data['in_place'])}")
    for number, kernel in enumerate(data["kernels"]):
        lines += _kernel_lines(number, kernel)
    if data["refusals"]:
        lines.append("  not fused (dearest first):")
        lines += [
            f"    {r['producer']}  |  {r['consumer']}: {r['rule']} ({bytes_text(r['bytes'])})"
            for r in data["refusals"][:MAX_REFUSALS]
        ]
        if len(data["refusals"]) > MAX_REFUSALS:
            lines.append(f"    ... and {len(data['refusals']) - MAX_REFUSALS} more in to_dict()")
    if data["seconds"]:
        times = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in data["seconds"].items())
        lines.append(f"  compiled: {times}" + (" (from the disk cache)" if data["from_cache"] else ""))
    return "\n".join(lines)


def _kernel_lines(number: int, kernel: dict[str, Any]) -> list[str]:
    cost = kernel["cost"]
    space = "x".join(map(str, kernel["space"])) or "1"
    operations = ", ".join(dict.fromkeys(kernel["operations"])) or "copy"
    where = "; ".join(kernel["lines"][:4]) + ("; ..." if len(kernel["lines"]) > 4 else "")
    return [
        f"  {number:3} {kernel['schedule']:<8} [{space}] {operations}",
        f"      reads {bytes_text(cost['bytes_read'])}, writes {bytes_text(cost['bytes_written'])}, "
        f"{cost['flops'] / 1e6:.3f} Mflop" + (f"   {where}" if where else ""),
    ]
