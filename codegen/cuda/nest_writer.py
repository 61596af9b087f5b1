"""What all kernels of plain loop nests are made of: a thread's point, accumulators, loops of one thread, stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from fusegraph.codegen.cuda.helpers import helper_name, pair_helper
from fusegraph.codegen.cuda.nest_plan import LANE, VECTOR, NestPlan, flat
from fusegraph.codegen.cuda.ops import cast_text
from fusegraph.codegen.cuda.text import constant_text
from fusegraph.codegen.cuda.writer import KernelWriter
from fusegraph.codegen.python_kernel import worst_value
from fusegraph.codegen.python_layout import line_width
from fusegraph.codegen.python_names import ProgramNames, axis_name
from fusegraph.codegen.python_text import ATOM, Text
from fusegraph.dtypes import DType
from fusegraph.ir.index import Axis, Index, unflatten_index
from fusegraph.ir.loops import Reduce, Stage, Store

_NOUNS = {
    "sum": "total",
    "prod": "product",
    "max": "largest",
    "min": "smallest",
    "argmax": "position",
    "argmin": "position",
}


class NestWriter(KernelWriter):
    """One kernel. Subclasses say in `write` which threads take which points."""

    def __init__(self, plan: NestPlan, names: ProgramNames) -> None:
        super().__init__(plan.loop, names)
        self.plan = plan

    def write(self) -> None:
        """Everything below the signature."""
        raise NotImplementedError

    # -- points ---------------------------------------------------------------------------------------------------------

    def _place_points(self, name: str, groups: int, vector: int) -> None:
        """The axes of the space, by the number of the thread's point (or group of four)."""
        point = Axis(name, groups)
        self.axis_names[point], self.axis_levels[point] = name, len(self.blocks) - 1
        number = Index.of(point) if vector == 1 else Index.of(point) * vector + Index.of(LANE)
        shape = [axis.extent for axis in self.loop.space]
        self.set_places(dict(zip(self.loop.space, unflatten_index(number, shape), strict=True)))
        self.space_level = len(self.blocks) - 1

    @contextmanager
    def _serial(self, axes: tuple[Axis, ...]) -> Iterator[None]:
        """Plain loops over `axes`."""
        level = len(self.blocks) - 1
        for axis in axes:
            name = axis_name(axis.name, self.taken)
            if axis.extent != 1:
                self.open(f"for {name} in range({axis.extent}):")
            self.own_axis(axis, name, wide=True)
        yield
        self.close(level)
        self.forget_axes(axes)
        self.taken -= {self.axis_names.pop(axis) for axis in axes}

    # -- accumulators ---------------------------------------------------------------------------------------------------

    def _begin_all(self, stage: Stage) -> dict[str, str]:
        """Set the accumulators to what changes nothing. Gives the variable of the best value, for positions."""
        bests: dict[str, str] = {}
        for reduce in stage.reduces:
            self.accumulators[reduce.name] = (self.fresh(_NOUNS[reduce.op]), len(self.blocks) - 1)
            name, value = self.accumulators[reduce.name][0], identity(reduce)
            if reduce.op.startswith("arg"):
                bests[reduce.name] = self.fresh("best")
                self.line(f"{bests[reduce.name]} = {value}")
                value = "int32(0)"
            self.line(f"{name} = {value}")
        return bests

    def _accumulate_all(self, stage: Stage, bests: dict[str, str], number: Index) -> None:
        self.stage_writes = ()
        texts = self.evaluate([reduce.value for reduce in stage.reduces])
        for reduce, text in zip(stage.reduces, texts, strict=True):
            name = self.accumulators[reduce.name][0]
            if reduce.name in bests:
                self._keep_best(name, bests[reduce.name], reduce, text, number)
            else:
                self.assign(*self._step(name, reduce, text))

    def _step(self, name: str, reduce: Reduce, text: Text) -> tuple[str, str, str]:
        """target, value, operator of one accumulation."""
        dtype = self._accumulated(reduce)
        text = cast_text(reduce.value.dtype, text, dtype)
        if reduce.op in ("sum", "prod") and (dtype.kind == "f" or dtype.name == "int64"):
            return name, text.source, "+=" if reduce.op == "sum" else "*="
        helper = pair_helper(reduce.op, dtype)
        self.helpers.add(helper)
        return name, f"{helper_name(*helper)}({name}, {text.source})", "="

    @staticmethod
    def _accumulated(reduce: Reduce) -> DType:
        return reduce.value.dtype if reduce.op in ("max", "min", "argmax", "argmin") else reduce.dtype

    def _keep_best(self, name: str, best: str, reduce: Reduce, text: Text, number: Index) -> None:
        value = text.source
        if not value.isidentifier():
            value = self.fresh("value")
            self.assign(value, text.source)
        sign = ">" if reduce.op == "argmax" else "<"
        better = f"{value} {sign} {best}"
        if reduce.value.dtype.kind == "f":
            better += f" or ({value} != {value} and {best} == {best})"
        place = self.printer.bare(self.view(number)).source
        self.line(f"if {better}:\n    {best} = {value}\n    {name} = int32({place})")

    def _as_position(self, reduce: Reduce) -> None:
        name, level = self.accumulators[reduce.name]
        wide = self.fresh(f"{name}_wide")
        self.line(f"{wide} = int64({name})")
        self.accumulators[reduce.name] = (wide, level)

    # -- stores ---------------------------------------------------------------------------------------------------------

    def _write_stores(self, stage: Stage, vector: int) -> None:
        """A stage's stores at the present point, or four of them."""
        self.stage_writes = tuple(store.buffer for store in stage.stores)
        indices = [flat(store.buffer, store.index, self.names.program.buffers) for store in stage.stores]
        quads = [vector > 1 and self.is_quad_place(index) for index in indices]
        with self._lanes(vector):
            values = self.evaluate([store.value for store in stage.stores], indices)
            uses = Counter(indices)
            values = [self._as_read_later(*each) for each in zip(stage.stores, values, strict=True)]
            values = [self._kept_value(*each) for each in zip(stage.stores, indices, values, strict=True)]
            for store, index, value, quad in zip(stage.stores, indices, values, quads, strict=True):
                if store.buffer in self.plan.hidden:
                    continue
                self._write_store(store, index, value, quad, uses)
        for store, index, quad in zip(stage.stores, indices, quads, strict=True):
            if quad and store.buffer not in self.plan.hidden:
                self._store_quad(store.buffer, index)
        self.forget_unstable()

    def _as_read_later(self, store: Store, value: Text) -> Text:
        """The value as every later reader has it, those too that find it in a register or in shared memory."""
        if store.buffer not in self.names.narrow or store.buffer not in self.loop.reads():
            return value
        return Text(f"as_stored({self.names.buffers[store.buffer]}, {value.source})", ATOM)

    def _kept_value(self, store: Store, index: Index, value: Text) -> Text:
        """The value as it is stored; a kernel may also keep it for later stages."""
        return value

    def _write_store(self, store: Store, index: Index, value: Text, quad: bool, uses: Counter[Index]) -> None:
        source = self.stored(value, self.names.buffer(store.buffer).dtype)
        if quad:
            self.assign(f"{self.quad_array(store.buffer)}[lane]", source)
            return
        target = self.element_text(store.buffer, index, uses)
        if len(target) + len(source) + 4 > line_width(len(self.blocks) - 1):
            target = self.element_text(store.buffer, index, uses, longest=0)
        self.assign(target, source)

    def _store_quad(self, buffer: str, index: Index) -> None:
        array = self.quad_array(buffer)
        at = self.printer.narrow(self.first_of_quad(index)).source
        parts = ", ".join(f"{array}[{place}]" for place in range(VECTOR))
        self.line(f"store4({self.names.buffers[buffer]}, {at}, {parts})")

    @contextmanager
    def _lanes(self, vector: int) -> Iterator[None]:
        """The loop over four neighbours."""
        if vector == 1:
            yield
            return
        with self.lanes():
            yield


def identity(reduce: Reduce) -> str:
    """The accumulator's first value."""
    if reduce.op in ("sum", "prod"):
        return constant_text(int(reduce.op == "prod"), reduce.dtype).source
    return constant_text(worst_value(reduce.op, reduce.value.dtype), reduce.value.dtype).source
