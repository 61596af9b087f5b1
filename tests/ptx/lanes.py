"""The threads of a launch: their places in the grid, registers, and readers and writers of operands.

One lane is one thread; lane numbers run through a block first, then through the grid. A selection (`Sel`) of lanes is
either `ALL` or an ascending array of lane numbers: with `ALL`, register reads are views and cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import LaunchError, PtxError, UnsupportedInstruction
from .ir import DTYPES, RAW, Address, Entry, FloatBits, Imm, Instr, Operand, Reg, Symbol

Sel = slice | np.ndarray
Reader = Callable[[Sel], np.ndarray]
Writer = Callable[[Sel, np.ndarray], None]
Action = Callable[[Sel], None]
ALL = slice(None)
WARP = 32
POISON = {1: 0xA5, 2: 0x7EA5, 4: 0x7FC0DEAD, 8: 0x7FF8DEAD7FC0DEAD}  # NaN as a float, far out of range as an index


def extent(value: int | tuple[int, ...]) -> tuple[int, int, int]:
    """A grid or block as three sizes."""
    sizes = (value,) if isinstance(value, int | np.integer) else tuple(value)
    if not 1 <= len(sizes) <= 3 or min(sizes) < 1:
        raise LaunchError(f"grid and block are one to three sizes of at least 1, not {value}")
    x, y, z = (*map(int, sizes), 1, 1)[:3]
    return x, y, z


class Lanes:
    """Geometry and registers of one launch.

    `symbols` maps variables to the address that `mov` of their name gives; the memory modules fill it.
    """

    def __init__(self, entry: Entry, grid: int | tuple[int, ...], block: int | tuple[int, ...]) -> None:
        self.entry, self.grid, self.block = entry, extent(grid), extent(block)
        self.threads = int(np.prod(self.block))
        self.blocks = int(np.prod(self.grid))
        if self.threads > entry.max_threads:
            raise LaunchError(
                f"{entry.title}: {self.threads} threads a block, but at most {entry.max_threads} are allowed"
            )
        self.count = self.threads * self.blocks
        self.all = np.arange(self.count)
        thread = self.all % self.threads
        self.block_of = self.all // self.threads
        self.lane_of = thread % WARP
        self.warps_per_block = -(-self.threads // WARP)
        self.warps = self.blocks * self.warps_per_block
        self.warp_of = self.block_of * self.warps_per_block + thread // WARP
        self.special = self._special(thread)
        self.raw = {name: self._register(kind) for name, kind in entry.registers.items()}
        self.carry = np.zeros(self.count, bool)
        self.symbols: dict[str, int] = {}
        self.current: Instr | None = None

    def _special(self, thread: np.ndarray) -> dict[str, np.ndarray]:
        (bx, by, bz), (gx, gy, gz) = self.block, self.grid
        one = np.uint64(1)
        lane = self.lane_of.astype(np.uint64)
        values: dict[str, Any] = {
            "%tid.x": thread % bx, "%tid.y": thread // bx % by, "%tid.z": thread // (bx * by),
            "%ctaid.x": self.block_of % gx, "%ctaid.y": self.block_of // gx % gy, "%ctaid.z": self.block_of // (gx * gy),
            "%laneid": self.lane_of, "%warpid": thread // WARP, "%nwarpid": np.int64(self.warps_per_block),
            "%ntid.x": np.int64(bx), "%ntid.y": np.int64(by), "%ntid.z": np.int64(bz),
            "%nctaid.x": np.int64(gx), "%nctaid.y": np.int64(gy), "%nctaid.z": np.int64(gz),
            "WARP_SZ": np.int64(WARP),
            "%lanemask_eq": one << lane, "%lanemask_lt": (one << lane) - one, "%lanemask_le": (one << lane) * 2 - one,
        }  # fmt: skip
        values["%lanemask_gt"] = np.uint64(0xFFFFFFFF) ^ values["%lanemask_le"]
        values["%lanemask_ge"] = np.uint64(0xFFFFFFFF) ^ values["%lanemask_lt"]
        return {name: np.asarray(value).astype(np.uint32) for name, value in values.items()}

    def _register(self, kind: str) -> np.ndarray:
        if kind == "pred":
            return np.zeros(self.count, bool)
        size = DTYPES[kind].itemsize
        return np.full(self.count, POISON[size], RAW[size])

    # ---------------------------------------------------------------- selections
    def ids(self, sel: Sel) -> np.ndarray:
        """The lane numbers of a selection."""
        return self.all if isinstance(sel, slice) else sel

    def size(self, sel: Sel) -> int:
        """How many lanes a selection holds."""
        return self.count if isinstance(sel, slice) else len(sel)

    def subset(self, sel: Sel, mask: np.ndarray) -> Sel:
        """The lanes of a selection where the mask holds."""
        if mask.all():
            return sel
        return np.flatnonzero(mask) if isinstance(sel, slice) else sel[mask]

    # ---------------------------------------------------------------- faults
    def fault(self, kind: type[PtxError], message: str, lane: int | None = None) -> PtxError:
        """An error that says where: PTX line and text, block and thread."""
        where = f"\n  at PTX line {self.current.line}: {self.current.text}" if self.current else ""
        if lane is not None:
            where += f"\n  by {self.name(lane)}"
        return kind(f"{self.entry.title}: {message}{where}")

    def name(self, lane: int) -> str:
        """'block (x, y, z), thread (x, y, z)' of a lane."""
        place = [tuple(int(self.special[f"%{kind}.{axis}"][lane]) for axis in "xyz") for kind in ("ctaid", "tid")]
        return f"block {place[0]}, thread {place[1]}"

    def unsupported(self, instr: Instr) -> UnsupportedInstruction:
        """The error for a form that is not implemented."""
        return UnsupportedInstruction(f"{self.entry.title}: PTX line {instr.line} is not implemented: {instr.text}")

    # ---------------------------------------------------------------- operands
    def reader(self, operand: Operand, kind: str) -> Reader:
        """A function from a selection to the operand's values as the PTX type `kind` (0-d for constants)."""
        dtype = DTYPES[kind]
        if isinstance(operand, Reg) and operand.name in self.raw:
            return self._register_reader(operand, dtype)
        if isinstance(operand, Reg | Symbol) and operand.name in self.special:
            values = self.special[operand.name].astype(dtype)
            return (lambda sel: values[sel]) if values.ndim else (lambda sel: values)
        constant = self._constant(operand, dtype)
        return lambda sel: constant

    def _register_reader(self, operand: Reg, dtype: np.dtype) -> Reader:
        raw = self.raw[operand.name]
        if operand.negated:
            return lambda sel: ~raw[sel]
        if "b" in (raw.dtype.kind, dtype.kind):
            return lambda sel: raw[sel]
        if raw.itemsize == dtype.itemsize:
            view = raw.view(dtype)
            return lambda sel: view[sel]
        if raw.itemsize > dtype.itemsize:  # a narrow access to a wide register takes its low bits
            low = RAW[dtype.itemsize]
            return lambda sel: raw[sel].astype(low).view(dtype)
        return lambda sel: raw[sel].astype(RAW[dtype.itemsize]).view(dtype)

    def _constant(self, operand: Operand, dtype: np.dtype) -> np.ndarray:
        if isinstance(operand, FloatBits):
            value = np.array(operand.bits, RAW[operand.size])
            return (value.view(f"f{operand.size}").astype(dtype) if dtype.kind == "f" else value.astype(dtype))[()]
        if isinstance(operand, Symbol):
            if operand.name not in self.symbols:
                raise self.fault(UnsupportedInstruction, f"unknown name {operand.name}")
            return np.array(self.symbols[operand.name], np.int64).astype(dtype)[()]
        if not isinstance(operand, Imm):
            raise self.fault(UnsupportedInstruction, f"unknown operand {operand}")
        if dtype.kind in "fb":
            return np.array(operand.value, dtype)[()]
        bits = int(operand.value) & ((1 << 8 * dtype.itemsize) - 1)
        return np.array(bits, RAW[dtype.itemsize]).view(dtype)[()]

    def writer(self, operand: Operand, kind: str) -> Writer:
        """A function that puts values of the PTX type `kind` in a register, widened where the register is wider."""
        if not isinstance(operand, Reg):
            raise self.fault(UnsupportedInstruction, f"cannot write to {operand}")
        if operand.name == "_":
            return lambda sel, values: None
        raw, dtype = self.raw[operand.name], DTYPES[kind]
        if "b" in (raw.dtype.kind, dtype.kind):
            view = raw
        elif raw.itemsize == dtype.itemsize:
            view = raw.view(dtype)
        elif dtype.kind == "i":
            view = raw.view(f"i{raw.itemsize}")
        else:
            view, narrow = raw, RAW[dtype.itemsize]

            def widen(sel: Sel, values: np.ndarray) -> None:
                raw[sel] = np.asarray(values, dtype).view(narrow)

            return widen

        def write(sel: Sel, values: np.ndarray) -> None:
            view[sel] = values

        return write

    def address(self, operand: Operand) -> Reader:
        """A function from a selection to int64 addresses, one a lane."""
        if not isinstance(operand, Address):
            raise self.fault(UnsupportedInstruction, f"not an address: {operand}")
        base, offset = operand.base, operand.offset
        kind = "u64"
        if isinstance(base, Reg) and base.name in self.raw and self.raw[base.name].itemsize == 4:
            kind = "u32"
        read = self.reader(base, kind)
        if isinstance(base, Reg):
            return lambda sel: read(sel).astype(np.int64) + offset
        return lambda sel: np.full(self.size(sel), int(read(sel)) + offset, np.int64)
