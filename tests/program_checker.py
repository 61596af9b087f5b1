"""Runs a fused program in numpy and checks, element by element, that it may run in any order and in the planned memory.

What is an error (ProgramError, naming the kernel):
    a load outside of its buffer; a load of memory that this run has not written, or that something else has overwritten since
    one point of a kernel's space that touches an element which another point writes (points run in any order, on any thread)
    one point of a stage's axes that reads an element which another point of the same stage writes (stages are vectorised)
    a store outside of its buffer, or two stores to one element in one stage
Temps lie in one arena at the offsets of the memory plan, so a wrong plan shows as overwritten memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusegraph.codegen.memory import MemoryPlan, plan_memory
from fusegraph.ir.index import Axis, Div, Index, Indirect, Mod
from fusegraph.ir.loops import Buffer, Loop, Program, Reduce, Stage
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.ir.primitives.sources import PHILOX_MULTIPLIER, PHILOX_ROUNDS, PHILOX_WEYL
from fusegraph.ir.scalar import Bound, Expr, Mask, walk

Array = np.ndarray[Any, Any]


class ProgramError(AssertionError):
    """A program that must not be."""


def run_checked(program: Program, inputs: Sequence[Array]) -> list[Array]:
    """Run `program` on copies of `inputs`; gives the outputs, then the states' new values in the order of the inputs."""
    memory = _Memory(program, plan_memory(program))
    for name, array in zip(program.inputs, inputs, strict=True):
        memory.set(name, array)
    names = [loop.name for loop in program.loops]
    if len(set(names)) != len(names):
        raise ProgramError(f"two kernels have one name: {names}")
    for loop in program.loops:
        _LoopRun(memory, loop).run()
    states = [name for name in program.inputs if program.buffers[name].role == "state"]
    return [memory.whole(name) for name in (*program.outputs, *states)]


class _Memory:
    """Every buffer's bytes: inputs, states and outputs apart, temps in the arena."""

    def __init__(self, program: Program, plan: MemoryPlan) -> None:
        self.buffers = program.buffers
        self.number = {name: i + 1 for i, name in enumerate(program.buffers)}
        rng = np.random.default_rng(0)
        self.place: dict[str, tuple[str, int]] = {name: ("arena", offset) for name, offset in plan.arena.items()}
        self.place |= {name: (name, 0) for name in plan.externals}
        sizes = {name: self.buffers[name].nbytes for name in plan.externals} | {"arena": plan.arena_bytes}
        self.data = {name: rng.integers(0, 256, size).astype(np.uint8) for name, size in sizes.items()}
        self.owner = {name: np.zeros(size, np.int64) for name, size in sizes.items()}
        for name, (region, offset) in self.place.items():
            if offset % self.buffers[name].dtype.itemsize or offset + self.buffers[name].nbytes > len(
                self.data[region]
            ):
                raise ProgramError(f"{name} lies at byte {offset} of {len(self.data[region])}")

    def _bytes(self, name: str, flat: Array) -> tuple[str, Array]:
        region, offset = self.place[name]
        size = self.buffers[name].dtype.itemsize
        return region, offset + flat[:, None] * size + np.arange(size)

    def set(self, name: str, array: Array) -> None:
        """The whole buffer."""
        self.write(name, np.arange(self.buffers[name].size), np.asarray(array, self.buffers[name].dtype).ravel())

    def write(self, name: str, flat: Array, values: Array) -> None:
        """Elements number `flat`."""
        region, at = self._bytes(name, flat)
        self.data[region][at] = np.ascontiguousarray(values).view(np.uint8).reshape(at.shape)
        self.owner[region][at] = self.number[name] * (1 << 32) + flat[:, None]

    def read(self, name: str, flat: Array, loop: str) -> Array:
        """Elements number `flat`, which must be there."""
        region, at = self._bytes(name, flat)
        good = (self.owner[region][at] == self.number[name] * (1 << 32) + flat[:, None]).all(-1)
        if not good.all():
            raise ProgramError(
                f"{loop} reads {name}[{flat[~good][0]}], which is not written or overwritten by something else"
            )
        return self.data[region][at].view(self.buffers[name].dtype).reshape(flat.shape)

    def whole(self, name: str) -> Array:
        """A buffer's value at the end."""
        buffer = self.buffers[name]
        return self.read(name, np.arange(buffer.size), "the end").reshape(buffer.shape).copy()


class _LoopRun:
    """One kernel: all points of its space in step, every access remembered."""

    def __init__(self, memory: _Memory, loop: Loop) -> None:
        self.memory, self.loop = memory, loop
        self.points = loop.points()
        self.accumulators: dict[str, Array] = {}
        self.locals: dict[str, tuple[Array, Array]] = {}
        self.reads: list[tuple[str, Array, Array, Array, int]] = []
        self.writes: list[tuple[str, Array, Array, Array, int]] = []

    def run(self) -> None:
        """Every stage, then the rules."""
        loop = self.loop
        _check_axes_once(loop)
        if loop.schedule == "scatter" and (loop.space or len(loop.stages) != 1):
            raise ProgramError(f"{loop.name}: a scatter has one stage and no space")
        for number, stage in enumerate(loop.stages):
            _StageRun(self, stage, number).run()
        self._check_races()

    def _check_races(self) -> None:
        scatter = self.loop.schedule == "scatter"
        for name in {entry[0] for entry in self.writes}:
            written = [entry for entry in self.writes if self._same_memory(entry[0], name)]
            touched = written + [entry for entry in self.reads if self._same_memory(entry[0], name)]
            elements = np.unique(np.concatenate([entry[1] for entry in written]))
            if not scatter:
                self._alone(name, elements, [(entry[1], entry[2]) for entry in touched], "point of the space")
            for stage in range(len(self.loop.stages)):
                mine = [entry for entry in written if entry[4] == stage]
                if mine:
                    every = [] if scatter else list(mine)
                    every += [entry for entry in touched[len(written) :] if entry[4] == stage]
                    hit = np.unique(np.concatenate([entry[1] for entry in mine]))
                    if every:
                        pairs = [(entry[1], entry[2] * (1 << 32) + entry[3]) for entry in every]
                        self._alone(
                            name,
                            hit,
                            pairs if not scatter else [(e, np.arange(len(e)) - 1) for e, _ in pairs],
                            "point of the stage",
                        )

    def _same_memory(self, name: str, other: str) -> bool:
        return self.memory.place[name] == self.memory.place[other]

    def _alone(self, name: str, elements: Array, accesses: list[tuple[Array, Array]], what: str) -> None:
        """Every one of `elements` is touched by one owner only."""
        element = np.concatenate([a for a, _ in accesses])
        owner = np.concatenate([b for _, b in accesses])
        chosen = np.isin(element, elements)
        element, owner = element[chosen], owner[chosen]
        order = np.lexsort((owner, element))
        element, owner = element[order], owner[order]
        clash = (element[1:] == element[:-1]) & (owner[1:] != owner[:-1])
        if clash.any():
            raise ProgramError(
                f"{self.loop.name}: {name}[{element[1:][clash][0]}] is written by one {what} and touched by another"
            )


class _StageRun:
    """One stage for all points of the space and of its own axes."""

    def __init__(self, run: _LoopRun, stage: Stage, number: int) -> None:
        self.run_, self.stage, self.number = run, stage, number
        self.memory = run.memory
        axes = (*run.loop.space, *stage.axes, *stage.reduce_axes)
        extents = [axis.extent for axis in axes]
        self.count = math.prod(extents)
        grid = np.indices(extents).reshape(len(extents), -1) if extents else np.zeros((0, 1), np.int64)
        self.values = {axis: grid[i].astype(np.int64) for i, axis in enumerate(axes)}
        inner = math.prod(extents[len(run.loop.space) :])
        self.point = np.arange(self.count, dtype=np.int64) // max(inner, 1)
        reduced = math.prod(axis.extent for axis in stage.reduce_axes)
        self.place = np.arange(self.count, dtype=np.int64) // max(reduced, 1) % max(inner // max(reduced, 1), 1)
        self.known: dict[Expr, Array] = {}

    def run(self) -> None:
        """Reduce, or store."""
        if self.stage.reduces and self.stage.stores:
            raise ProgramError(f"{self.run_.loop.name}: a stage has reduces and stores")
        if self.stage.reduces and self.stage.axes:
            raise ProgramError(f"{self.run_.loop.name}: a reducing stage has axes")
        for reduce in self.stage.reduces:
            if reduce.name in self.run_.accumulators:
                raise ProgramError(f"{self.run_.loop.name}: accumulator {reduce.name} is made twice")
        made = {reduce.name: self._reduce(reduce) for reduce in self.stage.reduces}
        self.run_.accumulators |= made
        values = [self.value(store.value) for store in self.stage.stores]
        targets = [[self.index(part) for part in store.index] for store in self.stage.stores]
        for store, value, target in zip(self.stage.stores, values, targets, strict=True):
            self._store(store.buffer, target, value, store.mode)

    def _reduce(self, reduce: Reduce) -> Array:
        value = self.value(reduce.value).reshape(self.run_.points, -1)
        return (
            np.asarray(PRIMITIVES[reduce.op].reference(value, axes=(1,)), reduce.dtype)
            if value.shape[1] or reduce.op in ("sum", "prod")
            else np.zeros(self.run_.points, reduce.dtype)
        )

    def _store(self, name: str, target: list[Array], value: Array, mode: str) -> None:
        buffer = self.memory.buffers[name]
        if value.dtype != buffer.dtype:
            raise ProgramError(f"{self.run_.loop.name} stores {value.dtype} into {name}, which is {buffer.dtype}")
        flat = self._flat(buffer, target, np.ones(self.count, bool))
        if buffer.role == "local":
            data, there = self._local(buffer)
            data[self.point, flat], there[self.point, flat] = value, True
            return
        if buffer.role == "input":
            raise ProgramError(f"{self.run_.loop.name} writes to input {name}")
        if mode == "add":
            whole = np.arange(buffer.size)
            new = self.memory.read(name, whole, self.run_.loop.name)
            np.add.at(new, flat, value)
            self.memory.write(name, whole, new)
        else:
            if len(np.unique(flat)) != len(flat):
                raise ProgramError(f"{self.run_.loop.name} stores twice to one element of {name}")
            self.memory.write(name, flat, value)
        self.run_.writes.append((name, flat, self.point, self.place, self.number))

    def _local(self, buffer: Buffer) -> tuple[Array, Array]:
        if buffer.name not in self.run_.locals:
            shape = (self.run_.points, buffer.size)
            self.run_.locals[buffer.name] = np.full(shape, 99, buffer.dtype), np.zeros(shape, bool)
        return self.run_.locals[buffer.name]

    def _flat(self, buffer: Buffer, index: list[Array], active: Array) -> Array:
        if len(index) != len(buffer.shape):
            raise ProgramError(f"{self.run_.loop.name}: {len(index)} coordinates for {buffer.name}{list(buffer.shape)}")
        flat = np.zeros(self.count, np.int64)
        for part, extent in zip(index, buffer.shape, strict=True):
            if ((part < 0) | (part >= extent))[active].any():
                raise ProgramError(f"{self.run_.loop.name} is outside of {buffer.name}{list(buffer.shape)}")
            flat = flat * extent + part
        return flat

    # -- expressions ----------------------------------------------------------------------------------------------------

    def index(self, index: Index) -> Array:
        """The value of an index expression at every point; its bounds are checked."""
        total = np.full(self.count, index.constant, np.int64)
        for atom, factor in index.terms:
            if isinstance(atom, Axis):
                if atom not in self.values:
                    raise ProgramError(f"{self.run_.loop.name}: axis {atom} is not open in stage {self.number}")
                part = self.values[atom]
            elif isinstance(atom, Indirect):
                part = np.clip(self.value(atom.value).astype(np.int64), 0, max(atom.extent - 1, 0))
            elif isinstance(atom, Div):
                part = self.index(atom.index) // atom.divisor
            else:
                assert isinstance(atom, Mod)
                part = self.index(atom.index) % atom.divisor
            total = total + factor * part
        low, high = index.bounds
        if self.count and (total.min() < low or total.max() > high):
            raise ProgramError(f"{self.run_.loop.name}: {index} leaves its bounds {index.bounds}")
        return total

    def value(self, root: Expr) -> Array:
        """The value of an expression at every point."""
        for node in walk([root]):
            if node not in self.known:
                self.known[node] = self._compute(node)
        return self.known[root]

    def _compute(self, node: Expr) -> Array:
        args = [self.known[arg] for arg in node.args]
        if node.op == "const":
            return np.full(self.count, node.attribute, node.dtype)
        if node.op == "index":
            return self.index(node.attribute)
        if node.op == "acc":
            if node.attribute not in self.run_.accumulators:
                raise ProgramError(f"{self.run_.loop.name} reads accumulator {node.attribute} before it is closed")
            return self.run_.accumulators[node.attribute][self.point]
        if node.op == "inside":
            return self.inside(node.attribute)
        if node.op == "philox":
            return _philox(args[0], args[1], self.index(node.attribute))
        if node.op == "load":
            return self._load(node)
        params = {"dtype": node.dtype.name} if node.op == "cast" else {}
        with np.errstate(all="ignore"):
            out = PRIMITIVES[node.op].reference(*args, **params)
        if out.dtype != node.dtype:
            raise ProgramError(f"{node} is {out.dtype}")
        return out

    def inside(self, mask: Mask) -> Array:
        """Whether every condition holds."""
        good = np.ones(self.count, bool)
        for condition in mask:
            value = self.index(condition.index)
            good &= (
                (condition.low <= value) & (value < condition.high)
                if isinstance(condition, Bound)
                else value % condition.divisor == 0
            )
        return good

    def _load(self, node: Expr) -> Array:
        load = node.attribute
        buffer = self.memory.buffers.get(load.buffer)
        if buffer is None:
            raise ProgramError(f"{self.run_.loop.name} loads from {load.buffer}, which is no buffer")
        active = self.inside(load.mask)
        flat = self._flat(buffer, [self.index(part) for part in load.index], active)
        out = np.zeros(self.count, node.dtype)
        if node.dtype != buffer.dtype:
            raise ProgramError(f"{node} is {buffer.dtype}")
        if buffer.role == "local":
            data, there = self._local(buffer)
            if not there[self.point[active], flat[active]].all():
                raise ProgramError(f"{self.run_.loop.name} reads {load.buffer} before it is written")
            out[active] = data[self.point[active], flat[active]]
            return out
        out[active] = self.memory.read(load.buffer, flat[active], self.run_.loop.name)
        self.run_.reads.append((load.buffer, flat[active], self.point[active], self.place[active], self.number))
        return out


def _philox(key: Array, counter: Array, element: Array) -> Array:
    low, high = element.astype(np.uint64) & np.uint64(0xFFFFFFFF), counter.astype(np.uint64)
    keys = key.astype(np.uint64)
    for round_ in range(PHILOX_ROUNDS):
        product = low * np.uint64(PHILOX_MULTIPLIER)
        round_key = (keys + np.uint64(round_ * PHILOX_WEYL)) & np.uint64(0xFFFFFFFF)
        low, high = (product >> np.uint64(32)) ^ round_key ^ high, product & np.uint64(0xFFFFFFFF)
    return low.astype(np.uint32)


def _check_axes_once(loop: Loop) -> None:
    for stage in loop.stages:
        axes = (*loop.space, *stage.axes, *stage.reduce_axes)
        if len({axis.name for axis in axes}) != len(axes):
            raise ProgramError(f"{loop.name}: an axis stands twice in one stage: {axes}")


def compare(got: Sequence[Array], wanted: Sequence[Array], tolerance: float) -> None:
    """Fail unless all arrays agree (relative to the largest element of each); NaN agrees with NaN."""
    assert len(got) == len(wanted)
    for number, (a, b) in enumerate(zip(got, wanted, strict=True)):
        a = np.asarray(a).reshape(np.shape(b))
        assert a.dtype == b.dtype, f"result {number}: {a.dtype}, should be {b.dtype}"
        if a.dtype.kind != "f" or tolerance == 0:
            np.testing.assert_array_equal(a, b, f"result {number}")
            continue
        finite = b[np.isfinite(b)]
        scale = max(1.0, float(np.abs(finite).max())) if finite.size else 1.0
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale, err_msg=f"result {number}")


__all__ = ["Mapping", "ProgramError", "compare", "run_checked"]
