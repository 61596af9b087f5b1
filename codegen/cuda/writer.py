"""The statements of a CUDA kernel: blocks, shared and local arrays, groups of four neighbours, and the finished text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from fusegraph.codegen.cuda.expressions import CudaExpressionWriter
from fusegraph.codegen.cuda.kernel import CudaKernel
from fusegraph.codegen.cuda.nest_plan import LANE, VECTOR, is_quad
from fusegraph.codegen.python_expressions import Block
from fusegraph.codegen.python_kernel import docstring, signature
from fusegraph.codegen.python_layout import assignment, line_width
from fusegraph.codegen.python_names import ProgramNames, kernel_buffers
from fusegraph.codegen.python_text import ATOM, Text
from fusegraph.dtypes import DType
from fusegraph.ir.index import Index
from fusegraph.ir.loops import Loop
from fusegraph.ir.scalar import Expr

Dims = tuple[int, int, int]


class KernelWriter(CudaExpressionWriter):
    """Adds lines to the innermost open block."""

    def __init__(self, loop: Loop, names: ProgramNames) -> None:
        super().__init__(loop, names)
        self.declarations: list[str] = []
        self.shared_bytes = 0
        self._quads: dict[tuple[str, Index], str] = {}
        self._quad_arrays: dict[str, str] = {}
        self._lane_level = 0

    # -- blocks ---------------------------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        """One line (or several) of the innermost open block."""
        self.blocks[-1].items.append(text)

    def assign(self, target: str, value: str, operator: str = "=") -> None:
        """`target = value`, broken over lines if need be."""
        self.line(assignment(target, value, line_width(len(self.blocks) - 1), operator))

    def open(self, head: str) -> None:
        """Begin a block."""
        self.blocks.append(Block(head))

    def close(self, level: int) -> None:
        """End the blocks inside of `level`."""
        while len(self.blocks) - 1 > level:
            block = self.blocks.pop()
            self.blocks[-1].items.append(block)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """A block with this head."""
        level = len(self.blocks) - 1
        self.open(head)
        yield
        self.close(level)

    @contextmanager
    def guard(self, condition: str, always: bool = False) -> Iterator[None]:
        """`if condition:`, or nothing where it always holds."""
        if always:
            yield
            return
        with self.block(f"if {condition}:"):
            yield

    # -- memory ---------------------------------------------------------------------------------------------------------

    def element(self, buffer: str) -> str:
        """The element type of local and shared copies of a buffer: bools are bytes."""
        return memory_type(self.names.buffer(buffer).dtype)

    def declare(self, text: str) -> None:
        """A line at the top of the kernel."""
        self.declarations.append(text)

    def shared(self, name: str, count: int, dtype: Any, aligned: bool = False) -> str:
        """A shared array of `count` elements; gives its name. The shape stands in the text as a number.

        aligned: for access by 128 bits.
        """
        name = self.fresh(name)
        kind = dtype if isinstance(dtype, str) else memory_type(dtype)
        self.declare(f"{name} = cuda.shared.array({count}, {kind}{', alignment=16' if aligned else ''})")
        self.shared_bytes += count * {"int32": 4, "uint8": 1}.get(kind, 8 if kind.endswith("64") else 4)
        return name

    @staticmethod
    def stored(value: Text, dtype: DType) -> str:
        """A value as it stands in memory."""
        return f"uint8({value.source})" if dtype.kind == "b" else value.source

    @staticmethod
    def loaded(element: str, dtype: DType) -> str:
        """An element of memory as a value."""
        return f"({element} != 0)" if dtype.kind == "b" else element

    def forget_unstable(self) -> None:
        """Variables that hold what this loop may have overwritten since are not used again."""
        for block in self.blocks:
            for key in list(block.names):
                below = self.run_time_indices(key) if isinstance(key, Index) else [key]
                if any(self.is_unstable(node) for node in below):
                    del block.names[key]

    # -- four neighbours ------------------------------------------------------------------------------------------------

    @contextmanager
    def lanes(self) -> Iterator[None]:
        """The loop over four neighbours; loads of all four by 128 bits go before it."""
        self._lane_level = len(self.blocks)
        self._quads.clear()
        with self.block("for lane in range(4):"):
            self.axis_names[LANE], self.axis_levels[LANE] = "lane", self._lane_level
            self._wide_axes.add(LANE)
            self._views.clear()
            yield
        self._lane_level = 0
        self.axis_levels.pop(LANE)

    def is_quad_place(self, index: Index) -> bool:
        """Whether the four lanes go to four neighbours, the first at a multiple of four."""
        moved = self.moved(index)
        return is_quad(moved) and not any(LANE in self.places[axis].axes for axis in moved.axes if axis in self.places)

    def first_of_quad(self, index: Index) -> Index:
        """The element number of the first of four neighbours."""
        return self.moved(index).substitute({LANE: Index()})

    def quad_array(self, buffer: str) -> str:
        """A local array for four neighbours that are stored by 128 bits."""
        if buffer not in self._quad_arrays:
            name = self.fresh(f"{self.names.buffers[buffer]}_new")
            self._quad_arrays[buffer] = name
            self.declare(f"{name} = cuda.local.array({VECTOR}, {self.element(buffer)})")
        return self._quad_arrays[buffer]

    def _load_text(self, node: Expr, phase: Any) -> Text:
        if self._lane_level and not node.attribute.mask and self.is_quad_place(self.flat_index(node)):
            return self._load_quad(node)
        return super()._load_text(node, phase)

    def _load_quad(self, node: Expr) -> Text:
        buffer = node.attribute.buffer
        first = self.first_of_quad(self.flat_index(node))
        if (buffer, first) not in self._quads:
            name = self.fresh(f"{self.names.buffers[buffer]}_4")
            level = self._lane_level - 1
            at = self.printer.narrow(first).source
            self.blocks[level].items.append(
                assignment(name, f"load4({self.names.buffers[buffer]}, {at})", line_width(level))
            )
            self._quads[buffer, first] = name
        return Text(self.loaded(f"{self._quads[buffer, first]}[lane]", node.dtype), ATOM)

    # -- the whole ------------------------------------------------------------------------------------------------------

    def finish(self, grid: Dims, block: Dims, how: str, hidden: frozenset[str] = frozenset()) -> CudaKernel:
        """The kernel. hidden: buffers of the loop that it does not touch."""
        self.close(0)
        buffers = tuple(name for name in kernel_buffers(self.loop) if name not in hidden)
        name = self.names.kernels[self.loop.name]
        head = signature(name, [self.names.buffers[buffer] for buffer in buffers])
        text = docstring(self.loop, self.names, f"{_times(grid)} blocks of {_times(block)} threads: {how}", hidden)
        lines = [*head, *(f"    {line}".rstrip() for line in text)]
        lines += [f"    {line}" for line in self.declarations]
        lines += [*self.blocks[0].lines(4)]
        kernel = CudaKernel(
            name, buffers, "\n".join(lines), frozenset(self.helpers), grid, block, how, self.shared_bytes
        )
        return replace(kernel, loops=(self.loop.name,))


def _times(dims: Dims) -> str:
    return " x ".join(str(n) for n in dims if n > 1) or "1"


def memory_type(dtype: DType) -> str:
    """The type of an element in memory: bools are bytes."""
    return "uint8" if dtype.kind == "b" else dtype.name
