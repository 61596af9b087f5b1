"""Schedule "scatter" on a GPU: points that add to elements whose place is read at run time.

A thread takes a point and adds atomically: fast, in no certain order. With `exact`, threads share only axes along which points
never meet; each walks through all others in C order: the sum of every element has one order, the same in every run.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from fusegraph.codegen.cuda.kernel import CudaKernel
from fusegraph.codegen.cuda.nest_plan import BLOCK, NestPlan, extent, flat
from fusegraph.codegen.cuda.nest_writer import NestWriter
from fusegraph.codegen.python_names import ProgramNames
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Loop, Program, Stage


def emit_scatter(loop: Loop, program: Program, names: ProgramNames, exact: bool = False) -> CudaKernel:
    """The kernel of a loop of schedule "scatter"."""
    stage = loop.stages[0]
    exact = exact or any(
        program.buffers[store.buffer].dtype.itemsize < 4 for store in stage.stores
    )  # no atomics of bytes
    shared = independent_axes(stage, program) if exact else stage.axes
    plan = NestPlan(replace(loop, space=loop.space + shared), "thread", extent(loop.space + shared))
    writer = _ScatterWriter(plan, names, stage, tuple(axis for axis in stage.axes if axis not in shared), exact)
    writer.write()
    how = "in C order, an independent element a thread" if exact else "a point a thread, atomic additions"
    return writer.finish((plan.blocks, 1, 1), (BLOCK, 1, 1), how)


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
        with self.guard(f"{name} < {plan.points}", plan.points == plan.blocks * plan.block), ExitStack() as stack:
            self._place_points(name, plan.points, 1)
            stack.enter_context(self._serial(self._serial_axes))
            self.stage_writes = tuple(store.buffer for store in self._stage.stores)
            indices = [flat(s.buffer, s.index, self.names.program.buffers) for s in self._stage.stores]
            values = self.evaluate([store.value for store in self._stage.stores], indices)
            for store, index, value in zip(self._stage.stores, indices, values, strict=True):
                at = self.printer.narrow(self.view(index)).source
                buffer = self.names.buffers[store.buffer]
                if store.mode == "store":
                    self.assign(f"{buffer}[{at}]", value.source)
                elif self._exact:
                    self.assign(
                        f"{buffer}[{at}]",
                        f"{self.names.buffer(store.buffer).dtype.name}({buffer}[{at}] + {value.source})",
                    )
                else:
                    self.line(f"atomic_add({buffer}, {at}, {value.source})")
