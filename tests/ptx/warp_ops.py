"""Warp-wide instructions: shfl, vote, match, redux, activemask, mma, and the fences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .errors import DivergentWarp
from .ir import Instr, Pair, Vector
from .lanes import POISON, WARP, Action, Sel
from .registry import Machine, op


class WarpView:
    """The selected lanes as a (warps, 32) table of positions in the selection, -1 where a lane does not take part."""

    def __init__(self, machine: Machine, sel: Sel) -> None:
        lanes = machine.lanes
        self.ids = lanes.ids(sel)
        warp = lanes.warp_of[self.ids]
        first = np.concatenate([[True], warp[1:] != warp[:-1]])
        self.row = np.cumsum(first) - 1
        self.lane = lanes.lane_of[self.ids]
        self.table = np.full((int(first.sum()), WARP), -1)
        self.table[self.row, self.lane] = np.arange(len(self.ids))

    def spread(self, values: np.ndarray, missing: int | bool) -> np.ndarray:
        """One value a lane as a (warps, 32) array, `missing` where a lane does not take part."""
        return np.where(self.table >= 0, np.broadcast_to(values, len(self.ids))[self.table], missing)


def _check_members(machine: Machine, view: WarpView, mask: np.ndarray) -> None:
    """The executing lane must be in its mask, and all lanes of the mask that still run must execute with it."""
    lanes = machine.lanes
    mask = np.broadcast_to(mask, len(view.ids)).astype(np.int64)
    outside = (mask >> view.lane) & 1 == 0
    if outside.any():
        lane = int(view.ids[np.flatnonzero(outside)[0]])
        raise lanes.fault(DivergentWarp, "a lane executes a .sync instruction whose mask leaves it out", lane)
    bits = np.arange(WARP)
    named = (mask[:, None] >> bits) & 1 == 1
    first = view.ids - view.lane  # lane 0 of the same warp
    position = first[:, None] + bits
    exists = position < lanes.count
    position = np.minimum(position, lanes.count - 1)
    running = exists & (lanes.warp_of[position] == lanes.warp_of[view.ids][:, None]) & machine.running[position]
    absent = named & running & (view.table[view.row] < 0)
    if absent.any():
        k = int(np.flatnonzero(absent.any(axis=1))[0])
        who = np.flatnonzero(absent[k]).tolist()
        text = f"lanes {who} of the warp are named in the mask but do not execute this instruction with the others"
        fault = lanes.fault(DivergentWarp, text, int(view.ids[k]))
        assert isinstance(fault, DivergentWarp)
        fault.absent = np.unique(position[absent]).tolist()
        raise fault


def _source_lane(instr: Instr, lane: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lane to read from, and whether it lies inside of the segment."""
    b, clamp, segment = b & 31, c & 31, (c >> 8) & 31
    low, high = lane & segment, (lane & segment) | (clamp & ~segment)
    if instr.has("up"):
        return lane - b, lane - b >= high
    if instr.has("down"):
        return lane + b, lane + b <= high
    if instr.has("bfly"):
        return lane ^ b, (lane ^ b) <= high
    return low | (b & ~segment), (low | (b & ~segment)) <= high


@op("shfl")
def _shuffle(instr: Instr, machine: Machine) -> Action:
    """A lane out of the segment gets its own value; a source that does not take part gives poison."""
    lanes = machine.lanes
    if not instr.has("sync"):
        raise lanes.unsupported(instr)
    target = instr.operands[0]
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    write = lanes.writer(first, "b32")
    inside_out = lanes.writer(second, "pred") if second is not None else None
    value = lanes.reader(instr.operands[1], "b32")
    numbers = [lanes.reader(operand, "u32") for operand in instr.operands[2:5]]

    def run(sel: Sel) -> None:
        view = WarpView(machine, sel)
        b, c, mask = (np.broadcast_to(read(sel), len(view.ids)).astype(np.int64) for read in numbers)
        _check_members(machine, view, mask)
        source, inside = _source_lane(instr, view.lane, b, c)
        source = np.where(inside, source, view.lane)
        position = view.table[view.row, source]
        values = np.broadcast_to(value(sel), len(view.ids))
        write(sel, np.where(position >= 0, values[position], np.uint32(POISON[4])))
        if inside_out:
            inside_out(sel, inside)

    return run


@op("vote")
def _vote(instr: Instr, machine: Machine) -> Action:
    lanes = machine.lanes
    source = lanes.reader(instr.operands[1], "pred")
    mask = lanes.reader(instr.operands[2], "u32")
    ballot = instr.has("ballot")
    write = lanes.writer(instr.operands[0], "b32" if ballot else "pred")

    def run(sel: Sel) -> None:
        view = WarpView(machine, sel)
        _check_members(machine, view, mask(sel))
        true = view.spread(source(sel), False)
        false = view.spread(~np.asarray(source(sel)), False)
        if ballot:
            result = (true.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(axis=1).astype(np.uint32)
        elif instr.has("any"):
            result = true.any(axis=1)
        elif instr.has("all"):
            result = ~false.any(axis=1)
        else:
            result = ~(true.any(axis=1) & false.any(axis=1))
        write(sel, result[view.row])

    return run


@op("match")
def _match(instr: Instr, machine: Machine) -> Action:
    """match.any: the lanes that hold the same value."""
    lanes = machine.lanes
    if not instr.has("any"):
        raise lanes.unsupported(instr)
    write = lanes.writer(instr.operands[0], "b32")
    source, mask = lanes.reader(instr.operands[1], instr.type), lanes.reader(instr.operands[2], "u32")

    def run(sel: Sel) -> None:
        view = WarpView(machine, sel)
        _check_members(machine, view, mask(sel))
        values = np.broadcast_to(source(sel), len(view.ids))
        same = (view.spread(values, 0)[view.row] == values[:, None]) & (view.table[view.row] >= 0)
        write(sel, (same.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(axis=1).astype(np.uint32))

    return run


REDUX: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add.reduce,
    "min": np.minimum.reduce,
    "max": np.maximum.reduce,
    "and": np.bitwise_and.reduce,
    "or": np.bitwise_or.reduce,
    "xor": np.bitwise_xor.reduce,
}


@op("redux")
def _redux(instr: Instr, machine: Machine) -> Action:
    """A reduction over all lanes of a mask; whole warps only."""
    lanes = machine.lanes
    reduce = next(REDUX[m] for m in instr.mods if m in REDUX)
    write = lanes.writer(instr.operands[0], instr.type)
    source, mask = lanes.reader(instr.operands[1], instr.type), lanes.reader(instr.operands[2], "u32")

    def run(sel: Sel) -> None:
        view = WarpView(machine, sel)
        _check_members(machine, view, mask(sel))
        if (view.table < 0).any():
            raise lanes.unsupported(instr)
        write(sel, reduce(view.spread(source(sel), 0), axis=1)[view.row].astype(instr.dtype))

    return run


@op("activemask")
def _activemask(instr: Instr, machine: Machine) -> Action:
    write = machine.lanes.writer(instr.operands[0], "b32")

    def run(sel: Sel) -> None:
        view = WarpView(machine, sel)
        bits = ((view.table >= 0).astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(axis=1)
        write(sel, bits.astype(np.uint32)[view.row])

    return run


@op("membar", "fence")
def _fence(instr: Instr, machine: Machine) -> Action:
    """Publishes what the thread's block wrote; a fence of the block alone does not."""
    lanes, clock = machine.lanes, machine.clock
    if instr.has("cta"):
        return lambda sel: None

    def run(sel: Sel) -> None:
        clock.fence[np.unique(lanes.block_of[sel])] = clock.tick()

    return run


def warp_barrier(instr: Instr, machine: Machine) -> Action:
    """bar.warp.sync: orders the memory accesses of the warp."""
    mask = machine.lanes.reader(instr.operands[0], "u32")

    def run(sel: Sel) -> None:
        view = WarpView(machine, sel)
        _check_members(machine, view, mask(sel))
        machine.clock.warp_sync[np.unique(machine.lanes.warp_of[view.ids])] = machine.clock.tick()

    return run


op("bar", "barrier")(warp_barrier)  # the scheduler keeps the other barriers to itself


# -------------------------------------------------------------------- tensor cores
@op("mma")
def _mma(instr: Instr, machine: Machine) -> Action:
    """mma.sync m16n8k4 and m16n8k8 of tf32, m16n8k8 and m16n8k16 of f16 and bf16, with f32 accumulators.

    Products and sums are kept in double precision and rounded once, which is closer than the hardware.
    """
    lanes = machine.lanes
    kinds = instr.mods[-4:]
    depth = next((int(m[6:]) for m in instr.mods if m.startswith("m16n8k")), 0)
    allowed = {"tf32": (4, 8), "f16": (8, 16), "bf16": (8, 16)}
    if depth not in allowed.get(kinds[1], ()) or kinds[0] != "f32" or kinds[1] != kinds[2] or not instr.has("row"):
        raise lanes.unsupported(instr)
    d, a, b, c = (operand.items for operand in instr.operands if isinstance(operand, Vector))
    writers = [lanes.writer(item, "f32") for item in d]
    readers = [[lanes.reader(item, kind) for item in items] for items, kind in ((a, "b32"), (b, "b32"), (c, "f32"))]
    lane = np.arange(WARP)
    group, quad = lane >> 2, lane & 3

    def run(sel: Sel) -> None:
        view = WarpView(machine, sel)
        if (view.table < 0).any():
            raise lanes.fault(DivergentWarp, "mma.sync by a part of a warp", int(view.ids[0]))
        parts = [[np.broadcast_to(r(sel), len(view.ids))[view.table] for r in items] for items in readers]
        left, right, total = np.zeros((3, len(view.table), 16, 16))
        for k, values in enumerate(parts[0]):  # rows group, group + 8; then the next columns
            for h, half in enumerate(_elements(values, kinds[1])):
                left[:, group + 8 * (k & 1), _column(quad, k >> 1, h, kinds[1])] = half
        for k, values in enumerate(parts[1]):
            for h, half in enumerate(_elements(values, kinds[1])):
                right[:, _column(quad, k, h, kinds[1]), group] = half
        for k, values in enumerate(parts[2]):
            total[:, group + 8 * (k >> 1), 2 * quad + (k & 1)] = values
        total += left @ right
        for k, write in enumerate(writers):
            result = total[:, group + 8 * (k >> 1), 2 * quad + (k & 1)].astype(np.float32)
            write(sel, result[view.row, view.lane])

    return run


def _column(quad: np.ndarray, step: int, half: int, kind: str) -> np.ndarray:
    """Position along the contracted axis of a lane's element: one a register for tf32, two for the halves."""
    return quad + 4 * step if kind == "tf32" else 2 * quad + half + 8 * step


def _elements(bits: np.ndarray, kind: str) -> list[np.ndarray]:
    if kind == "tf32":
        return [(bits & np.uint32(0xFFFFE000)).view(np.float32)]
    halves = [(bits & np.uint32(0xFFFF)), bits >> np.uint32(16)]
    if kind == "f16":
        return [half.astype(np.uint16).view(np.float16) for half in halves]
    return [(half << np.uint32(16)).view(np.float32) for half in halves]
