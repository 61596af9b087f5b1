"""What every tiled kernel shares: the block's place in the grid, a thread's coordinates, guards, the stores behind the sum."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fusegraph.codegen.cuda.contract_plan import ContractPlan, Factor
from fusegraph.codegen.cuda.nest import NestWriter
from fusegraph.codegen.cuda.nest_plan import NestPlan
from fusegraph.codegen.cuda.ops import cast_text
from fusegraph.codegen.python_layout import line_width
from fusegraph.codegen.python_names import ProgramNames
from fusegraph.ir.index import Axis, Index, unflatten_index


class ContractWriter(NestWriter):
    """A kernel whose blocks make one tile each."""

    def __init__(self, plan: ContractPlan, names: ProgramNames) -> None:
        super().__init__(NestPlan(plan.loop, "thread", plan.loop.points()), names)
        self.contract, self.tile = plan, plan.tile
        self.reduce = plan.loop.stages[0].reduces[0]
        self.element_type = self.reduce.dtype.name
        self.zero = f"{self.element_type}(0.0)"

    def write(self) -> None:
        """Everything below the signature."""
        raise NotImplementedError

    # -- coordinates ----------------------------------------------------------------------------------------------------

    def place(self, axes: tuple[Axis, ...], number: Index) -> None:
        """These axes, flattened, are `number`."""
        self.set_places(dict(zip(axes, unflatten_index(number, [a.extent for a in axes]), strict=True)), anew=True)

    def variable(self, name: str, value: str, extent: int) -> Axis:
        """`name = value`: a variable of the thread in the innermost open block, as an axis."""
        axis = Axis(name, max(extent, 2))
        self.line(f"{name} = {value}")
        self.axis_names[axis], self.axis_levels[axis] = name, len(self.blocks) - 1
        return axis

    def open_block(self) -> None:
        """Which tile the block makes."""
        batch = self.contract.sizes[0]
        self.thread = self.fresh("thread")
        self.line(f"{self.thread} = uint32(cuda.threadIdx.x)")
        if batch > 1:
            axis = self.variable(self.fresh("batch"), "uint32(cuda.blockIdx.z)", batch)
            self.place(self.contract.batch, Index.of(axis))
        else:
            self.place(self.contract.batch, Index())
        self.space_level = 0

    @contextmanager
    def only_where(self, condition: str, *axes: Axis) -> Iterator[None]:
        """`if condition:` about these variables; what depends on them is not computed outside of it."""
        before = {axis: self.axis_levels[axis] for axis in axes}
        with self.guard(condition, not condition):
            self.axis_levels.update(dict.fromkeys(axes, len(self.blocks) - 1))
            self._views.clear()
            yield
        self.axis_levels.update(before)
        self._views.clear()

    def inside(self, *bounds: tuple[str, int, int]) -> str:
        """Conditions `name < size`; none where `size` is a multiple of the tile's step."""
        return " and ".join(f"{name} < {size}" for name, size, step in bounds if size % step)

    def call(self, name: str, arguments: list[str]) -> None:
        """A call, over several lines if need be."""
        text = f"{name}({', '.join(arguments)})"
        width = line_width(len(self.blocks) - 1)
        if len(text) > width:
            inner = ", ".join(arguments)
            inner = inner if len(inner) + 4 <= width else ",\n    ".join(arguments) + ","
            text = f"{name}(\n    {inner}\n)"
        self.line(text)

    # -- values ---------------------------------------------------------------------------------------------------------

    def value_text(self, factor: Factor) -> str:
        """The text of a factor at the present point, as an element of the sum's type."""
        self.stage_writes = ()
        (text,) = self.evaluate([factor.value])
        return cast_text(factor.value.dtype, text, self.reduce.dtype).source

    def tile_array(self, name: str, count: int) -> str:
        """A shared array of the sum's type that 128-bit access may use; gives its name."""
        name = self.shared(name, count, self.element_type)
        self.declarations[-1] = f"{name} = cuda.shared.array({count}, {self.element_type}, alignment=16)"
        return name

    def write_outputs(self, vector: int, total: str) -> None:
        """The stages behind the sum at the present point, or at four neighbours; `total`: the text of the sum."""
        self.accumulators[self.reduce.name] = (total, len(self.blocks) - (vector == 1))
        for stage in self.loop.stages[1:]:
            self._write_stores(stage, vector)
