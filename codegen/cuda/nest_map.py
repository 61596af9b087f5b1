"""Kernels in which threads do not work together: maps (a thread an element, or four) and small reductions (a thread a point)."""

from __future__ import annotations

from fusegraph.codegen.cuda.nest_plan import extent
from fusegraph.codegen.cuda.nest_writer import NestWriter
from fusegraph.ir.index import Index, flatten_index
from fusegraph.ir.loops import Stage


class MapWriter(NestWriter):
    """A thread takes an element, or four neighbours; with more elements than threads it goes on with a later one."""

    def write(self) -> None:
        """Everything below the signature."""
        plan, vector = self.plan, self.plan.vector
        groups, threads = plan.points // vector, plan.blocks * plan.block
        name = self.fresh("quad" if vector > 1 else "point")
        self.line(f"{name} = uint32(cuda.blockIdx.x * {plan.block} + cuda.threadIdx.x)")
        loop = groups > threads
        with self.block(f"while {name} < {groups}:") if loop else self.guard(f"{name} < {groups}", groups == threads):
            self._place_points(name, groups, vector)
            for stage in plan.loop.stages:
                self._write_stores(stage, vector)
            if loop:
                self.line(f"{name} = uint32({name} + {threads})")


class ThreadWriter(NestWriter):
    """A thread takes a point of the space; reductions are loops."""

    def write(self) -> None:
        """Everything below the signature."""
        plan = self.plan
        name = self.fresh("point")
        self.line(f"{name} = uint32(cuda.blockIdx.x * {plan.block} + cuda.threadIdx.x)")
        with self.guard(f"{name} < {plan.points}", plan.points == plan.blocks * plan.block):
            self._place_points(name, plan.points, 1)
            for stage in plan.loop.stages:
                if stage.reduces:
                    self._reduce_alone(stage)
                elif extent(stage.axes):
                    with self._serial(stage.axes):
                        self._write_stores(stage, 1)

    def _reduce_alone(self, stage: Stage) -> None:
        bests = self._begin_all(stage)
        if extent(stage.reduce_axes):
            with self._serial(stage.reduce_axes):
                number = flatten_index([Index.of(a) for a in stage.reduce_axes], [a.extent for a in stage.reduce_axes])
                self._accumulate_all(stage, bests, number)
        for reduce in stage.reduces:
            if reduce.name in bests:
                self._as_position(reduce)
        self.forget_unstable()
