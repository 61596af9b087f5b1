"""Schedule "scatter" on a GPU: points that add to elements whose place is read at run time.

    atomic     a thread takes a point and adds atomically: fast, in no certain order
    owners     exact: a thread owns an element of the table and walks through all points; it adds those that belong to it
    serial     exact, where places are not simply read: threads share only axes along which points never meet

The exact forms add to every element in C order of the points, as the reference does: the same bits in every run.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace

from fusegraph.codegen.cuda.kernel import CudaKernel
from fusegraph.codegen.cuda.nest_plan import BLOCK, NestPlan, extent, flat
from fusegraph.codegen.cuda.nest_writer import NestWriter
from fusegraph.codegen.python_names import ProgramNames
from fusegraph.codegen.python_text import ATOM, Text
from fusegraph.dtypes import DType
from fusegraph.ir.index import Axis, Index, Indirect
from fusegraph.ir.loops import Loop, Program, Stage, Store
from fusegraph.ir.scalar import indirect_values

_NO_USES: Counter[Index] = Counter()


def emit_scatter(loop: Loop, program: Program, names: ProgramNames, exact: bool = False) -> CudaKernel:
    """The kernel of a loop of schedule "scatter"."""
    stage = loop.stages[0]
    # no atomics of bytes
    exact = exact or any(program.buffers[store.buffer].dtype.itemsize < 4 for store in stage.stores)
    shared = independent_axes(stage, program) if exact else stage.axes
    serial = tuple(axis for axis in stage.axes if axis not in shared)
    row = _owned_axis(stage, shared) if exact else None
    owner = [Axis(f"owner{len(program.buffers)}", row[1].extent)] if row else []
    space = (*loop.space, *owner, *shared)
    plan = NestPlan(replace(loop, space=space), "thread", extent(space))
    if row is not None:
        writer: _ScatterWriter = _OwnerWriter(plan, names, stage, serial, exact, row, owner[0])
        how = "a thread owns an element and walks through all points in C order"
    else:
        writer = _ScatterWriter(plan, names, stage, serial, exact)
        how = "in C order, an independent element a thread" if exact else "a point a thread, atomic additions"
    writer.write()
    kernel = writer.finish((plan.blocks, 1, 1), (BLOCK, 1, 1), how)
    return replace(kernel, kind="map")


def independent_axes(stage: Stage, program: Program) -> tuple[Axis, ...]:
    """Axes along which different points never add to one element: all steps of the rest are multiples of what they span."""
    indices = [flat(store.buffer, store.index, program.buffers) for store in stage.stores]
    found: list[Axis] = []
    for axis in sorted(stage.axes, key=lambda axis: abs(indices[0].coefficient(axis))):
        if all(_apart(index, axis, found) for index in indices):
            found.append(axis)
    return tuple(axis for axis in stage.axes if axis in found)


def _apart(index: Index, axis: Axis, others: list[Axis]) -> bool:
    """Whether `axis` adds a digit of its own to the element's number, beside `others` and everything else in it."""
    step = abs(index.coefficient(axis))
    inner = sum(abs(index.coefficient(other)) * (other.extent - 1) for other in others)
    rest = [(atom, c) for atom, c in index.terms if atom != axis and atom not in others]
    if any(axis in Index(0, ((atom, 1),)).axes for atom, _ in rest):
        return False
    return step > inner and all(abs(c) % (step * axis.extent) == 0 for _, c in rest)


def _owned_axis(stage: Stage, shared: tuple[Axis, ...]) -> tuple[int, Indirect] | None:
    """The dimension of the table whose place is read at run time, and what is read; None unless there is just one."""
    if len(stage.stores) != 1 or stage.stores[0].mode != "add":
        return None
    found = [place for place, index in enumerate(stage.stores[0].index) if indirect_values(index)]
    if len(found) != 1:
        return None
    index = stage.stores[0].index[found[0]]
    (atom, factor), *more = index.terms
    others = (axis for place, i in enumerate(stage.stores[0].index) if place != found[0] for axis in i.axes)
    plain = isinstance(atom, Indirect) and factor == 1 and not index.constant and not more
    return (found[0], atom) if plain and isinstance(atom, Indirect) and all(axis in shared for axis in others) else None


class _ScatterWriter(NestWriter):
    def __init__(
        self, plan: NestPlan, names: ProgramNames, stage: Stage, serial: tuple[Axis, ...], exact: bool
    ) -> None:
        super().__init__(plan, names)
        self._stage, self._serial_axes, self._exact = stage, serial, exact

    def write(self) -> None:
        """Everything below the signature."""
        plan = self.plan
        if plan.points * extent(self._serial_axes) == 0:
            return
        name = self.fresh("point")
        self.line(f"{name} = uint32(cuda.blockIdx.x * {BLOCK} + cuda.threadIdx.x)")
        with self.guard(f"{name} < {plan.points}", plan.points == plan.blocks * plan.block):
            self._place_points(name, plan.points, 1)
            self._write_point()

    def _write_point(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(self._serial(self._serial_axes))
            self.stage_writes = tuple(store.buffer for store in self._stage.stores)
            indices = [flat(s.buffer, s.index, self.names.program.buffers) for s in self._stage.stores]
            values = self.evaluate([store.value for store in self._stage.stores], indices)
            for store, index, value in zip(self._stage.stores, indices, values, strict=True):
                self._add(store, self.printer.narrow(self.view(index)).source, value)

    def _add(self, store: Store, at: str, value: Text) -> None:
        buffer, dtype = self.names.buffers[store.buffer], self.names.buffer(store.buffer).dtype
        if store.mode == "store":
            self.assign(f"{buffer}[{at}]", self.stored(value, dtype))
        elif self._exact:
            self.assign(f"{buffer}[{at}]", _sum(dtype, f"{buffer}[{at}]", value.source))
        else:
            self.line(f"atomic_add({buffer}, {at}, {value.source})")


class _OwnerWriter(_ScatterWriter):
    """row: the dimension that is read at run time, and what is read; owner: the axis of the threads along it."""

    def __init__(
        self,
        plan: NestPlan,
        names: ProgramNames,
        stage: Stage,
        serial: tuple[Axis, ...],
        exact: bool,
        row: tuple[int, Indirect],
        owner: Axis,
    ) -> None:
        super().__init__(plan, names, stage, serial, exact)
        self._row, self._owner = row, owner

    def _write_point(self) -> None:
        (store,), (place, read) = self._stage.stores, self._row
        own = (*store.index[:place], Index.of(self._owner), *store.index[place + 1 :])
        at = self.position(flat(store.buffer, own, self.names.program.buffers), _NO_USES)
        dtype, total = self.names.buffer(store.buffer).dtype, self.fresh("total")
        owner = self.printer.bare(Index.of(self._owner)).source if self._owner.extent > 1 else "0"
        self.line(f"{total} = {self.loaded(f'{self.names.buffers[store.buffer]}[{at}]', dtype)}")
        level = len(self.blocks) - 1
        with self._serial(self._serial_axes):
            (clamp,) = self.run_time_indices(Index(0, ((read, 1),)))
            (index,) = self.evaluate([clamp])
            with self.block(f"if {index.source} == {owner}:"):
                (value,) = self.evaluate([store.value])
                self.assign(total, _sum(dtype, total, value.source))
        assert len(self.blocks) - 1 == level
        self.assign(f"{self.names.buffers[store.buffer]}[{at}]", self.stored(Text(total, ATOM), dtype))


def _sum(dtype: DType, a: str, b: str) -> str:
    """a + b, rounded on its own: never together with a product before it."""
    if dtype.kind == "f":
        return f"libdevice.{'f' if dtype.name == 'float32' else 'd'}add_rn({a}, {b})"
    return f"{a} or {b}" if dtype.kind == "b" else f"{dtype.name}({a} + {b})"
