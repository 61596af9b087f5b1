"""Loads, stores, atomics and cp.async, in every address space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .errors import OutOfBounds
from .ir import RAW, Address, Imm, Instr, Reg, Symbol, Vector
from .lanes import Action, Reader, Sel
from .memory import LOCAL_WINDOW, SHARED_WINDOW, GlobalMemory, LocalMemory, SharedMemory
from .registry import Machine, op

Memory = GlobalMemory | SharedMemory | LocalMemory
SPACES = ("global", "shared", "local", "param", "const", "shared_cta")


def _space(instr: Instr) -> str:
    space = next((m for m in instr.mods if m in SPACES), "generic")
    return {"const": "global", "shared_cta": "shared"}.get(space, space)


def _parts(machine: Machine, space: str, address: np.ndarray) -> list[tuple[Memory, np.ndarray, np.ndarray | None]]:
    """(memory, addresses in its window, mask of the lanes or None for all) of an access."""
    if space != "generic":
        memories: dict[str, Memory] = {"global": machine.globals, "shared": machine.shared, "local": machine.local}
        return [(memories[space], address, None)]
    where = (address >= LOCAL_WINDOW).astype(np.int8) + (address >= SHARED_WINDOW)
    parts: list[tuple[Memory, np.ndarray, np.ndarray | None]] = []
    choices: tuple[tuple[Memory, int], ...] = (
        (machine.globals, 0),
        (machine.local, LOCAL_WINDOW),
        (machine.shared, SHARED_WINDOW),
    )
    for k, (memory, window) in enumerate(choices):
        mask = where == k
        if mask.any():
            parts.append((memory, address[mask] - window, None if mask.all() else mask))
    return parts


@op("ld", "ldu")
def _load(instr: Instr, machine: Machine) -> Action:
    space = _space(instr)
    if space == "param":
        return _load_param(instr, machine)
    lanes, kind = machine.lanes, instr.type
    target = instr.operands[0]
    items = target.items if isinstance(target, Vector) else (target,)
    writers = [lanes.writer(item, kind) for item in items]
    address = lanes.address(instr.operands[1])
    size, count, dtype = instr.dtype.itemsize, len(items), instr.dtype

    def run(sel: Sel) -> None:
        parts = _parts(machine, space, address(sel))
        if len(parts) == 1:
            memory, where, _ = parts[0]
            values = memory.load(where, size, count, sel)
        else:
            values = np.empty((lanes.size(sel), count), RAW[size])
            for memory, where, mask in parts:
                assert mask is not None
                values[mask] = memory.load(where, size, count, lanes.subset(sel, mask))
        for k, write in enumerate(writers):
            write(sel, values[:, k].view(dtype))

    return run


def _load_param(instr: Instr, machine: Machine) -> Action:
    lanes, source = machine.lanes, instr.operands[1]
    if not (isinstance(source, Address) and isinstance(source.base, Symbol) and source.offset == 0):
        raise lanes.unsupported(instr)
    value = machine.params[source.base.name]
    write = lanes.writer(instr.operands[0], instr.type)
    constant = np.frombuffer(value.tobytes()[: instr.dtype.itemsize], instr.dtype)[0]
    return lambda sel: write(sel, constant)


@op("st")
def _store(instr: Instr, machine: Machine) -> Action:
    lanes, space = machine.lanes, _space(instr)
    if space == "param":
        raise lanes.unsupported(instr)
    source = instr.operands[1]
    items = source.items if isinstance(source, Vector) else (source,)
    readers = [lanes.reader(item, instr.type) for item in items]
    address, dtype, raw = lanes.address(instr.operands[0]), instr.dtype, RAW[instr.dtype.itemsize]

    def run(sel: Sel) -> None:
        values = np.empty((lanes.size(sel), len(readers)), dtype)
        for k, read in enumerate(readers):
            values[:, k] = read(sel)
        for memory, where, mask in _parts(machine, space, address(sel)):
            chosen = sel if mask is None else lanes.subset(sel, mask)
            memory.store(where, (values if mask is None else values[mask]).view(raw), chosen)

    return run


@op("prefetch", "prefetchu", "applypriority", "discard")
def _hint(instr: Instr, machine: Machine) -> Action:
    return lambda sel: None


# -------------------------------------------------------------------- atomics
Update = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _increment(old: np.ndarray, bound: np.ndarray, _: np.ndarray) -> np.ndarray:
    return np.where(old >= bound, old.dtype.type(0), old + old.dtype.type(1))


def _decrement(old: np.ndarray, bound: np.ndarray, _: np.ndarray) -> np.ndarray:
    return np.where((old == 0) | (old > bound), bound, old - old.dtype.type(1))


UPDATES: dict[str, Update] = {
    "add": lambda old, b, c: old + b,
    "min": lambda old, b, c: np.minimum(old, b),
    "max": lambda old, b, c: np.maximum(old, b),
    "and": lambda old, b, c: old & b,
    "or": lambda old, b, c: old | b,
    "xor": lambda old, b, c: old ^ b,
    "exch": lambda old, b, c: b,
    "inc": _increment,
    "dec": _decrement,
    "cas": lambda old, b, c: np.where(old == b, c, old),
}
UNORDERED = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}


@op("atom", "red")
def _atomic(instr: Instr, machine: Machine) -> Action:
    """Lanes that meet at one element update it one after the other, in the order of their numbers."""
    lanes, space = machine.lanes, _space(instr)
    name = next((m for m in instr.mods if m in UPDATES), "")
    if not name or instr.type in ("f16x2", "bf16", "bf16x2") or isinstance(instr.operands[-1], Vector):
        raise lanes.unsupported(instr)
    operands = instr.operands if instr.opcode == "red" else instr.operands[1:]
    target = None if instr.opcode == "red" else instr.operands[0]
    unused = target is None or (isinstance(target, Reg) and target.name not in machine.read_registers)
    write = None if unused or target is None else lanes.writer(target, instr.type)
    address = lanes.address(operands[0])
    first = lanes.reader(operands[1], instr.type)
    second: Reader = lanes.reader(operands[2], instr.type) if len(operands) > 2 else first
    dtype, full = instr.dtype, lanes.size

    def run(sel: Sel) -> None:
        b, c = (np.broadcast_to(read(sel), full(sel)) for read in (first, second))
        old = np.empty(full(sel), dtype)
        for memory, where, mask in _parts(machine, space, address(sel)):
            if isinstance(memory, LocalMemory):
                raise lanes.fault(OutOfBounds, "atomic on local memory")
            chosen = sel if mask is None else lanes.subset(sel, mask)
            view, index = memory.atomic_cells(where, dtype.itemsize, chosen)
            at = slice(None) if mask is None else mask
            old[at] = _update(view.view(dtype), index, b[at], c[at], name, unused)
        if write:
            write(sel, old)

    return run


def _update(view: np.ndarray, index: np.ndarray, b: np.ndarray, c: np.ndarray, name: str, unused: bool) -> np.ndarray:
    """Apply an atomic to view[index]; returns the values before (each lane sees those of the lanes before it)."""
    update = UPDATES[name]
    if len(np.unique(index)) == len(index):
        old = view[index]
        view[index] = update(old, b, c)
        return old
    if unused and name in UNORDERED:
        UNORDERED[name].at(view, index, b)
        return b
    old = np.empty(len(index), view.dtype)
    for k, at in enumerate(index.tolist()):
        old[k] = view[at]
        view[at] = update(old[k], b[k], c[k])
    return old


# -------------------------------------------------------------------- cp.async
@dataclass
class PendingCopy:
    """A cp.async that was issued but not waited for: who, where to, what, and its commit group a lane (-1: open)."""

    lanes: np.ndarray
    address: np.ndarray
    values: np.ndarray
    group: np.ndarray


@op("cp")
def _copy_async(instr: Instr, machine: Machine) -> Action:
    """cp.async: the data arrive in shared memory only when the thread waits for its group."""
    if instr.mods[:1] != ("async",) or instr.has("bulk", "mbarrier", "reduce"):
        raise machine.lanes.unsupported(instr)
    if instr.has("commit_group"):
        return lambda sel: _commit(machine, sel)
    if instr.has("wait_all"):
        return lambda sel: _arrive(machine, sel, 0, True)
    if instr.has("wait_group"):
        (count,) = instr.operands
        assert isinstance(count, Imm)
        keep = int(count.value)
        return lambda sel: _arrive(machine, sel, keep, False)
    lanes = machine.lanes
    target, source = (lanes.address(operand) for operand in instr.operands[:2])
    size = instr.operands[2]
    assert isinstance(size, Imm)
    words = int(size.value) // 4
    filled = lanes.reader(instr.operands[3], "u32") if len(instr.operands) > 3 else None

    def run(sel: Sel) -> None:
        ids = lanes.ids(sel)
        bytes_read = np.broadcast_to(filled(sel), len(ids)) if filled else np.full(len(ids), 4 * words)
        values = np.zeros((len(ids), words), np.uint32)
        whole = bytes_read > 0  # a source size of 0 reads nothing and fills with zeros
        if whole.any():
            chosen = lanes.subset(sel, whole)
            values[whole] = machine.globals.load(source(chosen), 4, words, chosen)
        values[np.arange(words) * 4 >= bytes_read[:, None]] = 0
        where = target(sel)
        machine.shared.expect(where, 4 * words, sel)
        machine.copies.append(PendingCopy(ids, where, values, np.full(len(ids), -1)))

    return run


def _commit(machine: Machine, sel: Sel) -> None:
    """Close the open group of each lane."""
    groups, member = _groups(machine), np.zeros(machine.lanes.count, bool)
    member[sel] = True
    for copy in machine.copies:
        mine = member[copy.lanes] & (copy.group < 0)
        copy.group[mine] = groups[copy.lanes[mine]]
    groups[sel] += 1


def _groups(machine: Machine) -> np.ndarray:
    """How many groups each lane has committed."""
    if machine.committed is None:
        machine.committed = np.zeros(machine.lanes.count, np.int64)
    return machine.committed


def _arrive(machine: Machine, sel: Sel, keep: int, everything: bool) -> None:
    """Complete all copies of the selected lanes but those of their last `keep` groups."""
    groups, member = _groups(machine), np.zeros(machine.lanes.count, bool)
    member[sel] = True
    left = []
    for copy in machine.copies:
        done = member[copy.lanes] & ((copy.group >= 0) & (copy.group < groups[copy.lanes] - keep) | everything)
        if done.any():
            machine.shared.store(copy.address[done], copy.values[done], copy.lanes[done])
        if not done.all():
            rest = ~done
            left.append(PendingCopy(copy.lanes[rest], copy.address[rest], copy.values[rest], copy.group[rest]))
    machine.copies[:] = left
