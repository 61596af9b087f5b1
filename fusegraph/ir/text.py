"""The text form of a graph, and its parser: `parse(str(graph)) == graph`.

graph step(x: float32[64,784], w: float32[784,10]) {
  %2 = matmul(%x, %w) : float32[64,10]  # train.py:12 Net.fc
  return %2
  update %w = %5
}
"""

from __future__ import annotations

import ast
import re
from typing import Any

from fusegraph.dtypes import as_dtype
from fusegraph.errors import FusegraphError, GraphError
from fusegraph.ir.graph import Graph, GraphBuilder, Node
from fusegraph.ir.location import NOWHERE, Location


def type_text(node: Node) -> str:
    """Dtype and shape, such as ``float32[64,10]``."""
    return f"{node.dtype.name}[{','.join(map(str, node.shape))}]"


def _param_text(node: Node) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in sorted(node.params.items()))


def node_text(node: Node, names: dict[Node, str]) -> str:
    """One line of the text form, without its comment."""
    operands = ", ".join(f"%{names[value]}" for value in node.inputs)
    params = _param_text(node)
    inside = "; ".join(part for part in (operands, params) if part)
    return f"%{names[node]} = {node.op}({inside}) : {type_text(node)}"


def print_graph(graph: Graph) -> str:
    """The text form of `graph`."""
    names = graph.names()
    head = ", ".join(f"{node.name}: {type_text(node)}" for node in graph.inputs)
    lines = [f"graph {graph.name}({head}) {{"]
    for node in graph.nodes:
        if node.op != "input":
            comment = f"  # {node.location}" if node.location != NOWHERE else ""
            lines.append(f"  {node_text(node, names)}{comment}")
    lines.append(f"  return {', '.join('%' + names[node] for node in graph.outputs)}".rstrip())
    lines += [f"  update %{names[old]} = %{names[new]}" for old, new in graph.updates]
    return "\n".join([*lines, "}"])


_HEAD = r"graph ([\w.]+)\((.*)\) \{"  # compiled when they are used first: most programs parse nothing
_INPUT = r"([\w.]+): (\w+)\[([\d,]*)\]"
_LINE = r"%([\w.]+) = (\w+)\((.*)\) : (\w+)\[([\d,]*)\](?:  # (.*))?"
_UPDATE = r"update %([\w.]+) = %([\w.]+)"


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _location(text: str | None) -> Location:
    found = re.fullmatch(r"(.*):(\d+)(?: (.*))?", text or "")
    return Location(found[1], int(found[2]), found[3] or "") if found else NOWHERE


def _arguments(text: str) -> tuple[list[str], dict[str, Any]]:
    operands, _, params = text.partition("; ") if text.startswith("%") else ("", "", text)
    names = [part.strip()[1:] for part in operands.split(",") if part.strip()]
    if not params:
        return names, {}
    call = ast.parse(f"f({_plain_floats(params)})", mode="eval").body
    assert isinstance(call, ast.Call)
    return names, {str(k.arg): _literal(k.value) for k in call.keywords}


def _plain_floats(text: str) -> str:
    """`inf` and `nan` as Python literals (1e999 reads as inf)."""
    return re.sub(r"(?<=[=(, -])(inf|nan)\b", lambda m: "1e999" if m[1] == "inf" else "(1e999-1e999)", text)


def _literal(value: ast.expr) -> Any:
    if isinstance(value, ast.BinOp):
        return float("nan")
    return ast.literal_eval(value)


def parse(text: str) -> Graph:
    """The graph that `text` describes. Raises GraphError with the line that is wrong."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    head = re.fullmatch(_HEAD, lines[0]) if lines else None
    if head is None:
        raise GraphError(f"graph text should begin with 'graph NAME(inputs) {{', got {lines[0] if lines else ''!r}")
    builder = GraphBuilder()
    known = {m[1]: builder.input(m[1], _shape(m[3]), as_dtype(m[2])) for m in re.finditer(_INPUT, head[2])}
    outputs: list[Node] = []
    updates: list[tuple[Node, Node]] = []
    for line in lines[1:-1]:
        try:
            _parse_line(line, builder, known, outputs, updates)
        except (KeyError, ValueError, SyntaxError, FusegraphError) as error:
            raise GraphError(f"graph text, line {line!r}: {type(error).__name__}: {error}") from error
    return builder.finish(outputs, updates, head[1])


def _parse_line(
    line: str, builder: GraphBuilder, known: dict[str, Node], outputs: list[Node], updates: list[tuple[Node, Node]]
) -> None:
    if line.startswith("return"):
        outputs += [known[part.strip()[1:]] for part in line[6:].split(",") if part.strip()]
        return
    if found := re.fullmatch(_UPDATE, line):
        updates.append((known[found[1]], known[found[2]]))
        return
    found = re.fullmatch(_LINE, line)
    if found is None:
        raise ValueError("not an assignment, return or update")
    names, params = _arguments(found[3])
    node = builder.add(found[2], [known[name] for name in names], params, _location(found[6]))
    if type_text(node) != f"{found[4]}[{found[5]}]":
        raise ValueError(f"the rule of {node.op} gives {type_text(node)}")
    known[found[1]] = node
