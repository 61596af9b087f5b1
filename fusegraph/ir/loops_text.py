"""The text form of a loop program, for people."""

from __future__ import annotations

from fusegraph.ir.index import Axis
from fusegraph.ir.loops import Loop, Program, Stage
from fusegraph.ir.scalar import Expr, walk


def _axes(axes: tuple) -> str:  # type: ignore[type-arg]
    return ", ".join(f"{axis.name} < {extent_text(axis)}" for axis in axes)


def extent_text(axis: Axis) -> str:
    """A number, or "n<=64": known at run time, at most 64."""
    if not axis.rows:
        return str(axis.extent)
    blocks = f"/{axis.per}" if axis.per > 1 else ""
    return f"{'' if axis.rows == 1 else f'{axis.rows} '}n{blocks}<={axis.extent}"


def _names(stage: Stage) -> tuple[dict[Expr, str], list[str]]:
    """Names for expressions that are read more than once, and the lines that define them."""
    order = walk(stage.expressions())
    uses: dict[Expr, int] = {}
    for node in order:
        for arg in node.args:
            uses[arg] = uses.get(arg, 0) + 1
    names: dict[Expr, str] = {}
    lines = []
    for node in order:
        if uses.get(node, 0) > 1 and node.op not in ("const", "acc", "index"):
            text = _text(node, names)
            names[node] = f"t{len(names)}"
            lines.append(f"{names[node]} = {text}")
    return names, lines


def _text(node: Expr, names: dict[Expr, str]) -> str:
    if node in names:
        return names[node]
    if not node.args:
        return str(node)
    extra = f", {node.attribute}" if node.op == "philox" else ""
    name = f"{node.op}_{node.dtype.name}" if node.op == "cast" else node.op
    return f"{name}({', '.join(_text(arg, names) for arg in node.args)}{extra})"


def print_stage(stage: Stage) -> list[str]:
    """A stage's lines."""
    lines = []
    pad = "  "
    if stage.axes:
        lines.append(f"{pad}for {_axes(stage.axes)}:")
        pad += "  "
    names, defined = _names(stage)
    if stage.reduces:
        lines.append(f"{pad}reduce over {_axes(stage.reduce_axes)}:")
        lines += [f"{pad}  {line}" for line in defined]
        lines += [f"{pad}  {r.name}: {r.dtype.name} = {r.op} of {_text(r.value, names)}" for r in stage.reduces]
        return lines
    lines += [f"{pad}{line}" for line in defined]
    for store in stage.stores:
        sign = "+=" if store.mode == "add" else "="
        lines.append(f"{pad}{store.buffer}[{', '.join(map(str, store.index))}] {sign} {_text(store.value, names)}")
    return lines


def print_loop(loop: Loop) -> str:
    """A kernel's text."""
    where = sorted({node.location.short for node in loop.nodes if node.location.file})
    head = f"{loop.schedule} {loop.name}({_axes(loop.space)})" + (f"  # {', '.join(where)}" if where else "")
    return "\n".join([head, *(line for stage in loop.stages for line in print_stage(stage))])


def print_program(program: Program) -> str:
    """A program's text."""
    lines = [f"program {program.name}"]
    lines += [f"  {b.role} {b.name}: {b.dtype.name}[{','.join(map(str, b.shape))}]" for b in program.buffers.values()]
    lines += [f"  guard {g.low} <= {g.buffer} < {g.high}: {g.what}" for g in program.guards]
    lines += [f"  guard {c.low} <= (computed from {', '.join(c.inputs)}) < {c.high}: {c.what}" for c in program.checks]
    return "\n".join([*lines, *(print_loop(loop) for loop in program.loops)])
