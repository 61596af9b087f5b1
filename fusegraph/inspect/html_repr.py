"""What a notebook shows of compiled objects, explanations, profiles, differences and graphs: small tables and drawings.

All of it is self-contained (styles stand in the elements, no scripts, nothing is fetched), and every text is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fusegraph.inspect import explain_text as words
from fusegraph.inspect.explain import bytes_text
from fusegraph.inspect.report import Report

if TYPE_CHECKING:
    from fusegraph.inspect.diff import Difference
    from fusegraph.ir.graph import Graph, Node

MAX_DRAWN = 60  # nodes of a graph that is drawn; a larger one is counted
_CELL = "padding:2px 8px;text-align:left;vertical-align:top"
_BOX = (130, 34, 26)  # width and height of a node, space between rows


def explanation_html(report: Report) -> str:
    """A table of kernels for each program, and the refused fusions folded away."""
    return "".join(_program_html(program) for program in report["programs"])


def _program_html(program: Report) -> str:
    sentences = [words.traffic_sentence(program), words.memory_sentence(program), words.seconds_sentence(program)]
    timed = any(kernel["time_ns"] is not None for kernel in program["kernels"])
    head = [
        "",
        "schedule",
        "space",
        "operations",
        "lines",
        "read",
        "written",
        "unfused",
        *(["measured"] if timed else []),
    ]
    rows = [
        [
            str(kernel["id"]),
            kernel["schedule"],
            words.space_text(kernel),
            words.operations_text(kernel),
            words.lines_text(kernel, 2),
            bytes_text(kernel["bytes_read"]),
            bytes_text(kernel["bytes_written"]),
            bytes_text(kernel["unfused_bytes"]),
            *([words.measured_text(kernel)] if timed else []),
        ]
        for kernel in program["kernels"]
    ]
    refusals = "".join(f"<li>{_text(words.refusal_text(r))}</li>" for r in program["refusals"][: words.MAX_REFUSALS])
    return (
        f"<div><b>{_text(words.headline(program))}</b><br>{'<br>'.join(_text(s) for s in sentences if s)}</div>"
        f"{table(head, rows)}"
        + (f"<details><summary>not fused, dearest first</summary><ul>{refusals}</ul></details>" if refusals else "")
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table of escaped cells."""
    top = "".join(f'<th style="{_CELL}">{_text(cell)}</th>' for cell in head)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{_text(cell)}</td>' for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: Any) -> str:
    return html.escape(str(value))


def compiled_html(title: str, versions: Sequence[tuple[str, str, Report]]) -> str:
    """A compiled function: a row for each version (its signature, why it was made, its report's totals)."""
    if not versions:
        return f"<b>{_text(title)}</b>: not called yet"
    rows = [
        [
            signature,
            why,
            report["totals"]["kernels"],
            bytes_text(report["totals"]["bytes_read"] + report["totals"]["bytes_written"]),
            bytes_text(report["memory"]["arena_bytes"]),
        ]
        for signature, why, report in versions
    ]
    return f"<b>{_text(title)}</b>" + table(["signature", "compiled because", "kernels", "moves", "arena"], rows)


def difference_html(difference: Difference) -> str:
    """What changed between two compiles."""
    totals = [[name, f"{a:,}", f"{b:,}"] for name, (a, b) in difference.totals.items()]
    kernels = [["lost", _kernel(kernel), ""] for kernel in difference.lost]
    kernels += [["gained", "", _kernel(kernel)] for kernel in difference.gained]
    kernels += [["changed", _kernel(before), _kernel(after)] for before, after in difference.changed]
    parts = table(["", *difference.names], totals)
    return parts + (table(["kernels", *difference.names], kernels) if kernels else "<div>the same kernels</div>")


def _kernel(kernel: Report) -> str:
    return f"{kernel['schedule']} [{words.space_text(kernel)}] {words.operations_text(kernel)}"


# -- graphs -------------------------------------------------------------------------------------------------------------------


def graph_html(graph: Graph) -> str:
    """A drawing of a small graph (networkx places the nodes), a count of the operations of a large one."""
    shown = [node for node in graph.nodes if node.op != "constant"]
    title = f"<b>graph {_text(graph.name)}</b>: {len(graph.nodes)} nodes"
    if len(shown) > MAX_DRAWN:
        from collections import Counter

        counts = Counter(node.op for node in graph.nodes)
        return title + table(["operation", "nodes"], [[op, str(n)] for op, n in counts.most_common()])
    return f"<div>{title}</div>{_drawing(graph, shown)}"


def _drawing(graph: Graph, shown: Sequence[Node]) -> str:
    places = _places(shown)
    width, height, gap = _BOX
    columns = max((x for x, _ in places.values()), default=0.0) + 1
    rows = max((y for _, y in places.values()), default=0.0) + 1
    size = (columns * (width + gap) + gap, rows * (height + gap) + gap)

    def corner(node: Node) -> tuple[float, float]:
        x, y = places[node]
        return gap + x * (width + gap), gap + y * (height + gap)

    results = set(graph.results)
    lines, boxes = [], []
    for node in shown:
        x, y = corner(node)
        for value in dict.fromkeys(value for value in node.inputs if value in places):
            a, b = corner(value)
            lines.append(
                f'<line x1="{a + width / 2:.0f}" y1="{b + height:.0f}" x2="{x + width / 2:.0f}" y2="{y:.0f}" stroke="#888"/>'
            )
        fill = "#fff2cc" if node.op == "input" else "#f4cccc" if node in results else "#dbe9f6"
        label = node.name if node.op == "input" else node.op
        kind = f"{node.dtype.name}[{','.join(map(str, node.shape))}]"
        boxes.append(
            f'<g><title>{_text(node.location)}</title><rect x="{x:.0f}" y="{y:.0f}" width="{width}" height="{height}" rx="4" '
            f'fill="{fill}" stroke="#555"/>{_label(x, y + 14, label)}{_label(x, y + 28, kind)}</g>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]:.0f} {size[1]:.0f}" width="{min(size[0], 960):.0f}" '
        f'font-family="monospace" font-size="10" text-anchor="middle">{"".join(lines)}{"".join(boxes)}</svg>'
    )


def _label(x: float, y: float, text: str) -> str:
    shown = text if len(text) <= 21 else text[:20] + "…"
    return f'<text x="{x + _BOX[0] / 2:.0f}" y="{y:.0f}" fill="#222">{_text(shown)}</text>'


def _places(shown: Sequence[Node]) -> dict[Node, tuple[float, float]]:
    """(column, row) of each node: rows by depth, columns by networkx."""
    import networkx

    graph = networkx.DiGraph()
    row: dict[Node, int] = {}
    for node in shown:
        row[node] = 1 + max((row[value] for value in node.inputs if value in row), default=-1)
        graph.add_node(node, layer=row[node])
        graph.add_edges_from((value, node) for value in node.inputs if value in row)
    if not row:
        return {}
    found = networkx.multipartite_layout(graph, subset_key="layer", align="horizontal")
    order: dict[int, list[Node]] = {}
    for node in sorted(shown, key=lambda node: float(found[node][0])):
        order.setdefault(row[node], []).append(node)
    widest = max(map(len, order.values()))
    return {
        node: (column + (widest - len(nodes)) / 2, float(layer))
        for layer, nodes in order.items()
        for column, node in enumerate(nodes)
    }
