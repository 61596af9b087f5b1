"""Graphs in Graphviz's language: the op graph, and the fused program (kernels and the buffers between them)."""

from __future__ import annotations

from fusegraph.ir.graph import Graph
from fusegraph.ir.loops import Program
from fusegraph.ir.loops_text import extent_text
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.ir.text import type_text

_COLOURS = {
    "map": "#dbe9f6",
    "zip": "#dbe9f6",
    "reduce": "#fde2c4",
    "contract": "#d9ead3",
    "view": "#eeeeee",
    "gather": "#ead1dc",
    "scatter": "#ead1dc",
    "source": "#ffffff",
}
_SCHEDULES = {"nest": "#dbe9f6", "contract": "#d9ead3", "scatter": "#ead1dc"}


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def graph_dot(graph: Graph) -> str:
    """The op graph: a box an operation, with its type and its line."""
    names = graph.names()
    lines = [
        f"digraph {_quoted(graph.name)} {{",
        '  node [shape=box, style="filled,rounded", fontname="monospace", fontsize=10];',
    ]
    for node in graph.nodes:
        colour = "#fff2cc" if node.op == "input" else _COLOURS[PRIMITIVES[node.op].kind]
        title = node.name if node.op == "input" else node.op
        label = f"{title}\n{type_text(node)}" + (f"\n{node.location.short}" if node.location.file else "")
        lines.append(f"  {_quoted(names[node])} [label={_quoted(label)}, fillcolor={_quoted(colour)}];")
        lines += [f"  {_quoted(names[value])} -> {_quoted(names[node])};" for value in node.inputs]
    for number, node in enumerate(graph.outputs):
        lines.append(f'  "output {number}" [fillcolor="#f4cccc"]; {_quoted(names[node])} -> "output {number}";')
    for old, new in graph.updates:
        lines.append(
            f"  {_quoted(names[new])} -> {_quoted(names[old])} [style=dashed, constraint=false, label=update];"
        )
    return "\n".join([*lines, "}", ""])


def program_dot(program: Program) -> str:
    """The fused program: a box a kernel, an ellipse a buffer that leaves or enters, edges with the bytes that move."""
    lines = [f"digraph {_quoted(program.name)} {{", '  node [fontname="monospace", fontsize=10];']
    for buffer in program.buffers.values():
        if buffer.role in ("input", "state", "output"):
            shape = f"{buffer.name}\n{buffer.dtype.name}{list(buffer.shape)}"
            lines.append(
                f'  {_quoted(buffer.name)} [label={_quoted(shape)}, shape=ellipse, style=filled, fillcolor="#fff2cc"];'
            )
    made: dict[str, str] = {}
    for loop in program.loops:
        space = " x ".join(f"{axis.name}<{extent_text(axis)}" for axis in loop.space)
        lines.append(_kernel_line(loop.name, space, loop.schedule))
        for name in loop.reads():
            buffer = program.buffers[name]
            source = made.get(name, name if buffer.role != "local" else None)
            if source is not None and source != loop.name:
                lines.append(f'  {_quoted(source)} -> {_quoted(loop.name)} [label="{buffer.nbytes}"];')
        for name in loop.writes():
            made[name] = loop.name
            if program.buffers[name].role in ("state", "output"):
                lines.append(f"  {_quoted(loop.name)} -> {_quoted(name)};")
    return "\n".join([*lines, "}", ""])


def _kernel_line(name: str, space: str, schedule: str) -> str:
    label = _quoted(f"{name}\n{space}")
    return f"  {_quoted(name)} [label={label}, shape=box, style=filled, fillcolor={_quoted(_SCHEDULES[schedule])}];"
