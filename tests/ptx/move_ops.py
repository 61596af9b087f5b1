"""mov (also packing and unpacking vectors), cvta, isspacep and cvt with its roundings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .float_ops import finished, flush, round_to
from .ir import DTYPES, RAW, Instr, Symbol, Vector
from .lanes import Action, Sel
from .memory import GLOBAL_BASE, LOCAL_WINDOW, SHARED_WINDOW
from .registry import Machine, elementwise, op

INTEGER_ROUNDINGS: dict[str, Callable[..., np.ndarray]] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}
Function = Callable[..., np.ndarray]
WINDOWS = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW, "global": 0, "const": 0, "param": 0}


@op("mov")
def _mov(instr: Instr, machine: Machine) -> Action:
    target, source = instr.operands
    if isinstance(source, Vector):
        return _pack(instr, machine, source)
    if isinstance(target, Vector):
        return _unpack(instr, machine, target)
    if isinstance(source, Symbol) and source.name in machine.params:
        raise machine.lanes.unsupported(instr)
    return elementwise(instr, machine, lambda a: a, instr.type)


def _part(width: int, count: int) -> str:
    return f"b{width // count}"


def _pack(instr: Instr, machine: Machine, source: Vector) -> Action:
    """The first item goes to the lowest bits."""
    lanes, width = machine.lanes, 8 * instr.dtype.itemsize
    step = width // len(source.items)
    readers = [lanes.reader(item, _part(width, len(source.items))) for item in source.items]
    write = lanes.writer(instr.operands[0], f"b{width}")

    def run(sel: Sel) -> None:
        total = np.zeros(lanes.size(sel), np.uint64)
        for k, read in enumerate(readers):
            total |= np.asarray(read(sel)).astype(np.uint64) << np.uint64(k * step)
        write(sel, total.astype(RAW[width // 8]))

    return run


def _unpack(instr: Instr, machine: Machine, target: Vector) -> Action:
    lanes, width = machine.lanes, 8 * instr.dtype.itemsize
    count = len(target.items)
    kind, part = _part(width, count), RAW[width // 8 // count]
    writers = [lanes.writer(item, kind) for item in target.items]
    read = lanes.reader(instr.operands[1], f"b{width}")

    def run(sel: Sel) -> None:
        value = np.asarray(read(sel)).astype(np.uint64)
        for k, write in enumerate(writers):
            write(sel, (value >> np.uint64(k * width // count)).astype(part))

    return run


@op("cvta")
def _cvta(instr: Instr, machine: Machine) -> Action:
    """Between generic addresses and those of a window; global addresses are the same in both."""
    window = np.uint64(next(WINDOWS[m] for m in instr.mods if m in WINDOWS))
    if instr.has("to"):
        return elementwise(instr, machine, lambda a: a - window, "u64")
    return elementwise(instr, machine, lambda a: a + window, "u64")


@op("isspacep")
def _isspacep(instr: Instr, machine: Machine) -> Action:
    low, high = {
        "global": (GLOBAL_BASE, LOCAL_WINDOW),
        "local": (LOCAL_WINDOW, SHARED_WINDOW),
        "shared": (SHARED_WINDOW, 1 << 63),
    }[instr.mods[0]]
    return elementwise(instr, machine, lambda a: (a >= np.uint64(low)) & (a < np.uint64(high)), "u64", "pred")


@op("cvt")
def _cvt(instr: Instr, machine: Machine) -> Action:
    out, source = [m for m in instr.mods if m in DTYPES]
    function = _conversion(instr, out, source)
    if function is None:
        raise machine.lanes.unsupported(instr)
    if out in ("f16x2", "bf16x2"):
        return _convert_pair(instr, machine, function, source)
    return elementwise(instr, machine, function, source, out)


def _conversion(instr: Instr, out: str, source: str) -> Function | None:
    """The function from values of `source` to values of `out`; None where it is not implemented."""
    mode = next((m for m in instr.mods if m in ("rn", "rz", "rm", "rp", "rna")), "rn")
    to, come = DTYPES[out], DTYPES[source]
    if out in ("tf32", "bf16", "bf16x2"):
        return _drop_bits(13 if out == "tf32" else 16, mode) if source == "f32" and not instr.has("relu") else None
    if source == "bf16":
        widen = lambda a: (np.asarray(a).astype(np.uint32) << np.uint32(16)).view(np.float32)  # noqa: E731
        return widen if out == "f32" else None
    if instr.has("relu"):
        return None
    to = DTYPES["f16"] if out == "f16x2" else to
    if come.kind == "f" and to.kind != "f":
        return _to_integer(instr, to)
    if come.kind == "f":
        return finished(instr, _between_floats(instr, to, come, mode))
    if to.kind == "f":
        return _from_integer(to, mode)
    if instr.has("sat"):
        return _saturated(to)
    return lambda a: a.astype(to)


def _to_integer(instr: Instr, to: np.dtype) -> Function:
    """Rounded as asked (towards zero by default), saturated to the range, NaN to 0."""
    rounding = next((INTEGER_ROUNDINGS[m] for m in instr.mods if m in INTEGER_ROUNDINGS), np.trunc)
    limits, ftz = np.iinfo(to), instr.has("ftz")
    low, high = float(limits.min), float(limits.max)

    def convert(a: np.ndarray) -> np.ndarray:
        wide = rounding((flush(a) if ftz else np.asarray(a)).astype(np.float64))
        inside = (wide > low) & (wide < high)
        clamped = np.where(wide >= high, limits.max, np.where(wide <= low, limits.min, 0)).astype(to)
        return np.where(inside, np.where(inside, wide, 0).astype(to), clamped)

    return convert


def _between_floats(instr: Instr, to: np.dtype, come: np.dtype, mode: str) -> Function:
    rounding = next((INTEGER_ROUNDINGS[m] for m in instr.mods if m in INTEGER_ROUNDINGS), None)
    if rounding:
        return lambda a: rounding(a).astype(to)
    if to.itemsize >= come.itemsize:
        return lambda a: a.astype(to)
    return lambda a: round_to(a, to, mode)


def _from_integer(to: np.dtype, mode: str) -> Function:
    if mode == "rn":
        return lambda a: a.astype(to)
    return lambda a: round_to(np.asarray(a).astype(np.longdouble), to, mode)


def _saturated(to: np.dtype) -> Function:
    limits = np.iinfo(to)

    def convert(a: np.ndarray) -> np.ndarray:
        info = np.iinfo(np.asarray(a).dtype)
        return np.clip(a, max(limits.min, info.min), min(limits.max, info.max)).astype(to)

    return convert


def _drop_bits(count: int, mode: str) -> Function:
    """float32 without its last bits: to nearest (ties to even for rn, away for rna) or towards zero; NaN stays one."""
    half, keep = np.uint32(1 << (count - 1)), np.uint32((0xFFFFFFFF << count) & 0xFFFFFFFF)

    def convert(a: np.ndarray) -> np.ndarray:
        bits = np.asarray(a, np.float32).view(np.uint32)
        up = half if mode == "rna" else half - np.uint32(1) + ((bits >> np.uint32(count)) & np.uint32(1))
        rounded = (bits if mode == "rz" else bits + up) & keep
        rounded = np.where(np.isnan(a), np.uint32(0x7FFF0000), np.where(np.isinf(a), bits, rounded))
        return rounded if count == 13 else (rounded >> np.uint32(16)).astype(np.uint16)

    return convert


def _convert_pair(instr: Instr, machine: Machine, function: Function, source: str) -> Action:
    """Two floats to one register of two halves, the first to the upper one."""

    def run(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        high, low = (np.asarray(function(v)).view(np.uint16).astype(np.uint32) for v in (a, b))
        return (high << np.uint32(16)) | low

    return elementwise(instr, machine, run, source, "b32")
