"""Writes one fused loop as a Python function: plain nested loops over flat arrays."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

import numpy as np

from fusegraph.codegen.python_expressions import Block, ExpressionWriter
from fusegraph.codegen.python_helpers import Helper
from fusegraph.codegen.python_layout import WIDTH, assignment, bracketed, line_width
from fusegraph.codegen.python_names import ProgramNames, axis_name, kernel_buffers
from fusegraph.codegen.python_ops import infix, typed
from fusegraph.codegen.python_text import ATOM, PRODUCT, SUM, Text, constant_text, index_text
from fusegraph.dtypes import DType, int64
from fusegraph.ir.index import Axis, Index, flatten_index
from fusegraph.ir.loops import Loop, Reduce, Stage, Store
from fusegraph.ir.scalar import Expr, walk
from fusegraph.records import dataclass

_REDUCE_NOUNS = {
    "sum": "total", "prod": "product", "max": "largest", "min": "smallest", "argmax": "position", "argmin": "position",
}  # fmt: skip


@dataclass(frozen=True)
class KernelSource:
    """A kernel's Python source. buffers: its parameters, in order, by their names in the program."""

    name: str
    buffers: tuple[str, ...]
    source: str
    helpers: frozenset[Helper]


def write_kernel(loop: Loop, names: ProgramNames) -> KernelSource:
    """The Python function that runs `loop`."""
    writer = _KernelWriter(loop, names)
    writer.write_loop()
    buffers = kernel_buffers(loop)
    head = signature(names.kernels[loop.name], [names.buffers[buffer] for buffer in buffers])
    lines = [*head, *(f"    {line}".rstrip() for line in docstring(loop, names)), *writer.blocks[0].lines(4)]
    return KernelSource(names.kernels[loop.name], buffers, "\n".join(lines), frozenset(writer.helpers))


def signature(name: str, parameters: Sequence[str]) -> list[str]:
    """`def name(parameters):`."""
    return bracketed(f"def {name}(", parameters, "):", WIDTH)


def docstring(loop: Loop, names: ProgramNames, how: str = "", hidden: frozenset[str] = frozenset()) -> list[str]:
    """What was fused, where the user wrote it, how it runs, and a table of the parameters (without `hidden` buffers)."""
    buffers = [names.buffer(buffer) for buffer in kernel_buffers(loop) if buffer not in hidden]
    written = set(loop.writes())
    rows = [
        (
            names.buffers[b.name],
            f"{b.dtype.name}[{', '.join(map(str, b.shape))}]",
            b.role
            + (", written" if b.name in written else "")
            + (f", {names.narrow[b.name]} in memory" if b.name in names.narrow else ""),
        )
        for b in buffers
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    table = [f"{name:{widths[0]}}  {kind:{widths[1]}}  {role}" for name, kind, role in rows]
    where = _places(loop)
    notes = [*_wrapped(where), *([how] if how else [])]
    return [*_wrapped(f'"""{_fused(loop)}.'), *(["", *notes] if notes else []), "", *table, '"""']


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text.replace("\\", "/"), 96, break_long_words=False, break_on_hyphens=False)


def _fused(loop: Loop) -> str:
    """The ops that a kernel does: `matmul, add x2, relu`; where it was made from no node, those of its body."""
    body = [expr.op for expr in walk([root for stage in loop.stages for root in stage.expressions()])]
    moves = ("const", "load", "acc", "index", "inside")
    counts = Counter([node.op for node in loop.nodes] or [op for op in body if op not in moves])
    ops = ", ".join(op if count == 1 else f"{op} x{count}" for op, count in counts.items())
    return ops or "copy"


def _places(loop: Loop) -> str:
    """The user's lines: `mnist.py:31 (Net.fc1, Net.fc2), mnist.py:32`."""
    modules: dict[str, dict[str, None]] = {}
    for location in (node.location for node in loop.nodes if node.location.file):
        modules.setdefault(location.short, {}).update({location.module: None} if location.module else {})
    return ", ".join(f"{line} ({', '.join(names)})" if names else line for line, names in modules.items())


class _KernelWriter(ExpressionWriter):
    """The loops and statements of one kernel."""

    def write_loop(self) -> None:
        """Everything below the signature."""
        if any(axis.extent == 0 for axis in self.loop.space):
            return
        for axis in self.loop.space:
            self._open(axis)
        self.space_level = len(self.blocks) - 1
        for stage in self.loop.stages:
            if all(axis.extent for axis in stage.axes):
                self._write_stage(stage)
        self._close(0)

    def _open(self, axis: Axis) -> None:
        """Begin the loop over `axis` (an axis of extent 1 needs none)."""
        if axis not in self.axis_names:
            self.axis_names[axis] = axis_name(axis.name, self.taken)
            self.taken.add(self.axis_names[axis])
        if axis.extent == 1:
            return
        self.blocks.append(Block(f"for {self.axis_names[axis]} in range({axis.extent}):"))
        self.axis_levels[axis] = len(self.blocks) - 1

    def _close(self, level: int) -> None:
        """End the loops inside of `level`."""
        while len(self.blocks) - 1 > level:
            block = self.blocks.pop()
            self.blocks[-1].items.append(block)
        self.axis_levels = {axis: at for axis, at in self.axis_levels.items() if at <= level}

    def _write_stage(self, stage: Stage) -> None:
        self.stage_writes = tuple(store.buffer for store in stage.stores)
        for axis in stage.axes:
            self._open(axis)
        if stage.reduces:
            self._write_reduces(stage)
        self._write_stores(stage.stores)
        self._close(self.space_level)
        self._forget_unstable()

    def _forget_unstable(self) -> None:
        """Variables that hold what this loop may have overwritten since are not used again."""
        for block in self.blocks:
            for key in list(block.names):
                below = self.run_time_indices(key) if isinstance(key, Index) else [key]
                if any(self.is_unstable(node) for node in below):
                    del block.names[key]

    # -- reductions ---------------------------------------------------------------------------------------------------

    def _write_reduces(self, stage: Stage) -> None:
        level = len(self.blocks) - 1
        extremes: dict[str, str] = {}
        for reduce in stage.reduces:
            self.accumulators[reduce.name] = (self.fresh(_REDUCE_NOUNS[reduce.op]), level)
            if reduce.op.startswith("arg"):
                extremes[reduce.name] = self.fresh("best")
            self._begin(reduce, extremes)
        if all(axis.extent for axis in stage.reduce_axes):
            for axis in stage.reduce_axes:
                self._open(axis)
            texts = self.evaluate([reduce.value for reduce in stage.reduces])
            for reduce, text in zip(stage.reduces, texts, strict=True):
                self._accumulate(reduce, text, stage.reduce_axes, extremes)
        self._close(level)

    def _begin(self, reduce: Reduce, extremes: dict[str, str]) -> None:
        """Set an accumulator to the value that changes nothing."""
        name = self.accumulators[reduce.name][0]
        if reduce.op in ("sum", "prod"):
            self._line(f"{name} = {constant_text(int(reduce.op == 'prod'), reduce.dtype).source}")
            return
        worst = constant_text(worst_value(reduce.op, reduce.value.dtype), reduce.value.dtype).source
        if reduce.name in extremes:
            self._line(f"{extremes[reduce.name]} = {worst}")
            worst = "np.int64(0)"
        self._line(f"{name} = {worst}")

    def _accumulate(self, reduce: Reduce, text: Text, axes: tuple[Axis, ...], extremes: dict[str, str]) -> None:
        name = self.accumulators[reduce.name][0]
        if reduce.op in ("sum", "prod"):
            self._assign(*_sum_or_product(name, reduce, text))
        elif reduce.op in ("max", "min"):
            if len(text.source) > line_width(len(self.blocks) - 1) - 2 * len(name) - 30:
                text = Text(self._variable("value", text), ATOM)
            self._assign(name, _extreme(name, reduce, text))
        else:
            self._position(name, extremes[reduce.name], reduce, text, axes)

    def _variable(self, name: str, text: Text) -> str:
        """A variable that holds `text`: itself, where it is one."""
        if text.source.isidentifier():
            return text.source
        variable = self.fresh(name)
        self._assign(variable, text.source)
        return variable

    def _position(self, name: str, best: str, reduce: Reduce, text: Text, axes: tuple[Axis, ...]) -> None:
        """Keep the number of the first extreme value; a NaN beats all but an earlier NaN."""
        value = self._variable("value", text)
        sign = ">" if reduce.op == "argmax" else "<"
        better = f"{value} {sign} {best}"
        if reduce.value.dtype.kind == "f":
            better += f" or (np.isnan({value}) and not np.isnan({best}))"
        number = flatten_index([Index.of(axis) for axis in axes], [axis.extent for axis in axes])
        body = [f"    {best} = {value}", f"    {name} = np.int64({index_text(number, self._leaf).source})"]
        self._line("\n".join([f"if {better}:", *body]))

    # -- stores -------------------------------------------------------------------------------------------------------

    def _write_stores(self, stores: Sequence[Store]) -> None:
        flat = [flatten_index(store.index, self.names.buffer(store.buffer).shape) for store in stores]
        values = self.evaluate([store.value for store in stores], flat)
        uses = Counter(flat)
        for store, index, value in zip(stores, flat, values, strict=True):
            buffer, operator = self.names.buffers[store.buffer], "+=" if store.mode == "add" else "="
            target = f"{buffer}[{self.position(index, uses)}]"
            if len(target) + len(value.source) + 4 > line_width(len(self.blocks) - 1):
                target = f"{buffer}[{self.position(index, uses, longest=0)}]"
            self._assign(target, value.source, operator)

    def _line(self, line: str) -> None:
        self.blocks[-1].items.append(line)

    def _assign(self, target: str, value: str, operator: str = "=") -> None:
        self._line(assignment(target, value, line_width(len(self.blocks) - 1), operator))


def worst_value(op: str, dtype: DType) -> float | int | bool:
    """The value that loses against every other."""
    low = op.endswith("max")
    if dtype.kind == "b":
        return not low
    if dtype.kind == "f":
        return -np.inf if low else np.inf
    return int(np.iinfo(dtype).min if low else np.iinfo(dtype).max)


def _cast_value(value: Expr, text: Text, dtype: DType) -> Text:
    """The text of `value`, as an element of type `dtype`."""
    if value.dtype != dtype or value.op == "index":
        return Text(f"np.{dtype.name}({text.source})", ATOM)
    return text


def _sum_or_product(name: str, reduce: Reduce, text: Text) -> tuple[str, str, str]:
    """The assignment's target, value and operator."""
    text = _cast_value(reduce.value, text, reduce.dtype)
    operator, rank = ("+", SUM) if reduce.op == "sum" else ("*", PRODUCT)
    if reduce.dtype.kind == "f" or reduce.dtype == int64:
        return name, text.source, f"{operator}="
    return name, typed(infix(operator, rank, Text(name, ATOM), text), reduce.dtype).source, "="


def _extreme(name: str, reduce: Reduce, text: Text) -> str:
    """The larger (smaller) of the accumulator and a value."""
    if reduce.value.dtype.kind == "b":
        return f"{name} {'|' if reduce.op == 'max' else '&'} {text.at_least(ATOM)}"
    text = _cast_value(reduce.value, text, reduce.value.dtype)
    call = Text(f"np.{reduce.op}imum({name}, {text.source})", ATOM)
    return typed(call, reduce.value.dtype).source
