"""`fuse="require"`: every region that the user named is computed by one kernel, or the compile fails and says why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusegraph.errors import FusionError, OptionError
from fusegraph.inspect.report import Report

if TYPE_CHECKING:
    from fusegraph.build import Artifact

MOST = 4  # refusals, and kernels, that a message names


def require_fused(artifacts: Sequence[Artifact]) -> None:
    """Raise FusionError if a region's operations are in several kernels, OptionError if no region was named."""
    reports = [artifact.report for artifact in artifacts]
    found = [(report, region) for report in reports for region in _regions(report)]
    if not found:
        raise OptionError(
            'fuse="require" needs a region whose operations are to be one kernel: with fusegraph.region("name"): ...'
        )
    for report, region in found:
        nodes = _nodes_of(report, region)
        if not any(all(kernel["id"] in node["kernels"] for node in nodes) for kernel in report["kernels"]):
            raise FusionError(_message(report, region, nodes))


def _regions(report: Report) -> list[str]:
    """All regions, also those that hold others."""
    names: dict[str, None] = {}
    for node in report["optimised"]["nodes"]:
        parts = node["region"].split("/") if node["region"] and node["kernels"] else []
        names.update({"/".join(parts[: n + 1]): None for n in range(len(parts))})
    return list(names)


def _nodes_of(report: Report, region: str) -> list[Report]:
    """The operations of a region that are computed (views and constants are not)."""
    nodes = report["optimised"]["nodes"]
    return [node for node in nodes if node["kernels"] and f"{node['region']}/".startswith(f"{region}/")]


def _message(report: Report, region: str, nodes: Sequence[Report]) -> str:
    kernels = {node["kernels"][0]: [] for node in nodes}  # type: dict[int, list[Report]]
    for node in nodes:
        kernels[node["kernels"][0]].append(node)
    parts = [
        f"kernel {number} ({', '.join(dict.fromkeys(node['op'] for node in inside))}; {_lines(inside)})"
        for number, inside in sorted(kernels.items())
    ]
    more = "" if len(parts) <= MOST else f" and {len(parts) - MOST} more"
    refused = _refusals(report, nodes) or ["no rule was met between these kernels: others stand between them"]
    return (
        f'the region {region!r} of {report["name"]} is {len(kernels)} kernels, and fuse="require" wants one: '
        f"{'; '.join(parts[:MOST])}{more}. Refused: {'; '.join(refused[:MOST])}. Change the lines that these rules name, "
        "make the region smaller, or compile with fuse=True"
    )


def _refusals(report: Report, nodes: Sequence[Report]) -> list[str]:
    """Fusions that were refused between kernels of the region, with the user's lines."""
    mine = {kernel for node in nodes for kernel in node["kernels"]}
    every = report["optimised"]["nodes"]
    found = []
    for refusal in report["refusals"]:
        ends = [every[n] for n in (refusal["producer_node"], refusal["consumer_node"]) if n is not None]
        if len(ends) == 2 and all(mine & set(node["kernels"]) for node in ends):
            a, b = ends
            found.append(f"{a['op']} at {_line(a)} into {b['op']} at {_line(b)}, because {refusal['rule']}")
    return found


def _line(node: Report) -> str:
    return f"{node['file']}:{node['line']}" if node["file"] else "no line"


def _lines(nodes: Sequence[Report]) -> str:
    lines = list(dict.fromkeys(map(_line, nodes)))
    return ", ".join(lines[:MOST]) + (", ..." if len(lines) > MOST else "")
