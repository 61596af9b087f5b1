"""`PtxKernel`: arguments, and the scheduler that runs all threads of the grid at once.

The group of threads at the lowest instruction runs first, until it meets others or branches apart; for the structured
code of a compiler this brings the sides of a branch together again at the first instruction behind it. Threads at a
barrier wait until all of their block are there. Threads at a warp-wide instruction that other lanes of its mask have yet to
reach (compilers move rare code behind everything else) wait for those as long as anybody can go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from . import float_ops, integer_ops, memory_ops, move_ops, warp_ops  # noqa: F401  (each fills the table of opcodes)
from .counters import Counters
from .errors import BudgetExceeded, DivergentBarrier, DivergentWarp, LaunchError, Trap
from .ir import DTYPES, Instr, Symbol, operand_registers
from .lanes import ALL, Action, Lanes, Sel
from .memory import GlobalMemory, LocalMemory, Placed, SharedMemory, constant_array
from .ordering import Clock
from .parser import parse_entry
from .registry import Machine, build

BRANCHES = {"bra", "ret", "exit", "bar", "barrier", "trap", "brkpt"}


class PtxKernel:
    """One kernel of a PTX text.

    >>> kernel = PtxKernel(text)
    >>> counters = kernel.launch(grid=4, block=256, args=[out, x, np.uint32(1000)])

    Raises ParseError for text that is not understood.
    """

    def __init__(self, ptx_text: str, entry: str | None = None) -> None:
        self.entry = parse_entry(ptx_text, entry)
        self.read_registers = frozenset(_read_registers(self.entry.code))
        self.shared_cell = _shared_cell(self.entry.code)

    def launch(
        self,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        args: Sequence[Any],
        dynamic_shared: int = 0,
        *,
        races: bool = True,
        traffic: bool = True,
        allow_exited: bool = False,
        max_steps: int = 2_000_000,
    ) -> Counters:
        """Run the kernel; arrays among `args` are updated in place.

        An argument is a numpy array (C-contiguous), `Placed(array, offset)` or a number. Where there are as many
        arguments as parameters every array is a bare pointer (numba's CPointer); otherwise each array becomes the
        seven or more parameters of a numba array. Arrays that overlap (views of one arena, an output that is an input)
        overlap for the kernel too, and count as one region for its bounds. A read-only numpy array makes stores to it an error.
        `races` and `traffic` switch the detection of races and the counting of sectors and bank waves; with
        `allow_exited` a barrier does not mind threads that have left the kernel; `max_steps` bounds the instructions
        executed (each once for all threads that execute it together). Raises a PtxError.
        """
        lanes = Lanes(self.entry, grid, block)
        machine = self._machine(lanes, args, dynamic_shared, races, traffic)
        with np.errstate(all="ignore"):
            _Scheduler(machine, allow_exited, max_steps).run()
        machine.globals.finish()
        machine.counters.finish()
        return machine.counters

    def _machine(self, lanes: Lanes, args: Sequence[Any], dynamic: int, races: bool, traffic: bool) -> Machine:
        clock, counters = Clock(lanes), Counters()
        counters.begin(lanes, traffic)
        memory = GlobalMemory(lanes, clock, counters)
        params = self._parameters(memory, args)
        spaces: dict[str, list[Any]] = {"shared": [], "local": [], "global": [], "const": []}
        for variable in self.entry.variables.values():
            spaces[variable.space].append(variable)
        for variable in spaces["global"] + spaces["const"]:
            (lanes.symbols[variable.name],) = memory.add([Placed(constant_array(variable), 0, variable.name)])
        memory.freeze(races)
        shared = SharedMemory(lanes, clock, counters, spaces["shared"], dynamic, self.shared_cell, races)
        local = LocalMemory(lanes, spaces["local"])
        counters.shared_bytes = sum(v.nbytes for v in spaces["shared"]) + dynamic
        counters.local_bytes = sum(v.nbytes for v in spaces["local"])
        return Machine(lanes, clock, counters, memory, shared, local, params, self.read_registers)

    def _parameters(self, memory: GlobalMemory, args: Sequence[Any]) -> dict[str, np.ndarray]:
        bare = len(args) == len(self.entry.params)
        placed = {k: _placed(arg, k) for k, arg in enumerate(args) if isinstance(arg, np.ndarray | Placed)}
        addresses = dict(zip(placed, memory.add(list(placed.values()))))
        values: list[Any] = []
        for k, arg in enumerate(args):
            if k not in placed:
                values.append(arg)
            elif bare:
                values.append(addresses[k])
            else:
                array = placed[k].array
                values += [0, 0, array.size, array.itemsize, addresses[k], *array.shape, *array.strides]
        if len(values) != len(self.entry.params):
            raise LaunchError(
                f"{self.entry.title} has {len(self.entry.params)} parameters, but {len(args)} arguments give {len(values)}"
            )
        return {param.name: _scalar(value, param.type) for param, value in zip(self.entry.params, values)}


def _placed(arg: np.ndarray | Placed, position: int) -> Placed:
    placed = arg if isinstance(arg, Placed) else Placed(arg)
    return replace(placed, name=placed.name or f"argument {position}")


def _scalar(value: Any, kind: str) -> np.ndarray:
    dtype = DTYPES[kind]
    if dtype.kind == "f":
        return np.array(value, dtype)
    if isinstance(value, float | np.floating):  # the bits of a float in an untyped parameter
        return np.array(value, f"f{dtype.itemsize}").view(dtype)
    return np.array(int(value) & ((1 << 8 * dtype.itemsize) - 1), f"u{dtype.itemsize}").view(dtype)


def _read_registers(code: list[Instr]) -> set[str]:
    """Registers that some instruction reads: an atomic whose result is not among them need not keep it."""
    found: set[str] = set()
    for instr in code:
        sources = instr.operands if instr.opcode in ("st", "red", "bar", "barrier", "cp") else instr.operands[1:]
        for operand in sources:
            found.update(operand_registers(operand))
        if instr.guard:
            found.add(instr.guard.name)
    return found


def _shared_cell(code: list[Instr]) -> int:
    """Granularity of the shared-memory checks: the smallest access, at most 4 bytes."""
    sizes = [
        i.dtype.itemsize for i in code if i.opcode in ("ld", "st", "atom") and not i.has("global", "param", "local")
    ]
    return min([4, *sizes])


class _Scheduler:
    """Program counters and the choice of who runs next."""

    def __init__(self, machine: Machine, allow_exited: bool, max_steps: int) -> None:
        self.machine, self.lanes = machine, machine.lanes
        self.code = machine.lanes.entry.code
        self.end = len(self.code)
        self.actions: list[Action | None] = [None] * self.end
        self.pc = np.zeros(self.lanes.count, np.int32)
        self.waiting = np.zeros(self.lanes.count, bool)  # at the barrier just before pc
        machine.running = np.ones(self.lanes.count, bool)
        self.parked = np.zeros(self.lanes.count, bool)  # at the warp-wide instruction at pc
        self.refusals: list[DivergentWarp] = []  # of the groups that are parked
        self.tried = b""  # who was parked where, when all parked groups last tried again
        self.allow_exited, self.budget = allow_exited, max_steps

    def run(self) -> None:
        """Until every thread has left the kernel."""
        while True:
            ready = self.machine.running & ~self.waiting & ~self.parked
            if not ready.any():
                if self._unpark():
                    continue
                if not self.machine.running.any():
                    break
                self._release()
                continue
            where = np.where(ready, self.pc, self.end)
            pc = int(where.min())
            here = where == pc
            others = int(np.where(here, self.end, where).min())
            self._advance(pc, ALL if here.all() else np.flatnonzero(here), others)

    def _advance(self, pc: int, sel: Sel, others: int) -> None:
        """Run the group `sel` from pc on, as long as it stays together and below the other groups."""
        code, actions, lanes = self.code, self.actions, self.lanes
        start, warps, size = pc, self._warps(sel), lanes.size(sel)
        counters = self.machine.counters
        while True:
            instr = code[pc]
            lanes.current = instr
            if instr.opcode in BRANCHES and "warp" not in instr.mods:
                counters.segment(start, pc + 1, warps, size)
                self._spend(pc + 1 - start)
                start = pc = self._branch(instr, pc, sel)
                if pc < 0 or pc >= others:
                    break
                continue
            action = actions[pc]
            if action is None:
                action = actions[pc] = build(instr, self.machine)
            try:
                if instr.guard is None:
                    action(sel)
                else:
                    self._guarded(action, instr, sel)
            except DivergentWarp as error:
                counters.segment(start, pc, warps, size)
                self._park(error, pc, sel)
                break
            pc += 1
            if pc == others:
                counters.segment(start, pc, warps, size)
                self._spend(pc - start)
                break
        if pc >= 0:
            self.pc[sel] = pc

    def _park(self, error: DivergentWarp, pc: int, sel: Sel) -> None:
        """Let a group wait for lanes that its warp-wide instruction names; nothing of the instruction was done yet."""
        self.refusals.append(error)
        self.parked[sel] = True
        self.pc[sel] = pc

    def _unpark(self) -> bool:
        """Nobody else can go on: parked groups that have met meanwhile try again, once. Raises where that changes nothing."""
        parked = np.flatnonzero(self.parked)
        if not len(parked):
            return False
        state = self.pc[parked].tobytes() + parked.tobytes()
        for refusal in self.refusals:
            if state == self.tried or not self.machine.running[refusal.absent].all():
                raise refusal
        self.tried = state
        self.refusals.clear()
        self.parked[:] = False
        return True

    def _spend(self, steps: int) -> None:
        self.machine.counters.steps += steps
        if self.machine.counters.steps > self.budget:
            raise self.lanes.fault(BudgetExceeded, f"more than {self.budget} instructions: a loop that does not end?")

    def _warps(self, sel: Sel) -> int:
        if isinstance(sel, slice):
            return self.lanes.warps
        warp = self.lanes.warp_of[sel]
        return 1 + int(np.count_nonzero(warp[1:] != warp[:-1]))

    def _condition(self, instr: Instr, sel: Sel) -> np.ndarray | None:
        """The guard of an instruction, None where it holds for every lane of the selection."""
        if instr.guard is None:
            return None
        value = self.lanes.raw[instr.guard.name][sel]
        value = ~value if instr.guard.negated else value
        return None if value.all() else value

    def _guarded(self, action: Action, instr: Instr, sel: Sel) -> None:
        condition = self._condition(instr, sel)
        if condition is None:
            action(sel)
        elif condition.any():
            action(self.lanes.subset(sel, condition))

    def _branch(self, instr: Instr, pc: int, sel: Sel) -> int:
        """Where the group goes on together, or -1 where it came apart, waits or ended (program counters are set)."""
        condition = self._condition(instr, sel)
        if condition is not None and not condition.any():
            return pc + 1
        taken = sel if condition is None else self.lanes.subset(sel, condition)
        if condition is not None:
            self.pc[sel] = pc + 1
        if instr.opcode == "bra":
            target = self._target(instr)
            if condition is None:
                return target
            self.pc[taken] = target
        elif instr.opcode in ("ret", "exit"):
            self.machine.running[taken] = False
        elif instr.opcode in ("bar", "barrier"):
            self._check_barrier(instr)
            self.waiting[taken] = True
            self.pc[taken] = pc + 1
        else:
            raise self.lanes.fault(Trap, "trap", int(self.lanes.ids(taken)[0]))
        return -1

    def _target(self, instr: Instr) -> int:
        label = instr.operands[0]
        if not isinstance(label, Symbol) or label.name not in self.lanes.entry.labels:
            raise self.lanes.unsupported(instr)
        return self.lanes.entry.labels[label.name]

    def _check_barrier(self, instr: Instr) -> None:
        if len(instr.operands) > 1 or not instr.has("sync") or instr.has("red"):
            raise self.lanes.unsupported(instr)

    def _release(self) -> None:
        """All running threads wait: check that each block is at one barrier, and let it go on."""
        lanes, running = self.lanes, self.machine.running
        alive = np.flatnonzero(running)
        block = lanes.block_of[alive]
        low = np.full(lanes.blocks, self.end + 1)
        high = np.full(lanes.blocks, -1)
        np.minimum.at(low, block, self.pc[alive])
        np.maximum.at(high, block, self.pc[alive])
        apart = alive[self.pc[alive] != low[block]]
        if len(apart):
            lane = int(apart[0])
            other = self.code[int(low[lanes.block_of[lane]]) - 1]
            self.lanes.current = self.code[int(self.pc[lane]) - 1]
            text = f"threads of one block wait at different barriers, others at PTX line {other.line}"
            raise lanes.fault(DivergentBarrier, text, lane)
        arrived = np.bincount(block, minlength=lanes.blocks)
        gone = (arrived > 0) & (arrived < lanes.threads)
        if gone.any() and not self.allow_exited:
            where = int(np.flatnonzero(gone)[0])
            lane = int(np.flatnonzero((lanes.block_of == where) & ~running)[0])
            self.lanes.current = self.code[int(low[where]) - 1]
            raise lanes.fault(
                DivergentBarrier, "a barrier that a thread of the block never reaches: it has ended", lane
            )
        self.machine.clock.barrier[:-1][arrived > 0] = self.machine.clock.tick()
        self.machine.counters.barriers += int(np.count_nonzero(arrived))
        self.waiting[alive] = False
