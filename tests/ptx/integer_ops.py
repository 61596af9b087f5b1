"""Integer arithmetic, logic, shifts and bit fields, comparison and selection.

`add`, `sub`, `mul`, `mad`, `div`, `min`, `max`, `neg` and `abs` of floats are passed on to `float_ops`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import float_ops
from .errors import ArithmeticFault
from .ir import DTYPES, Instr, Pair
from .lanes import Action, Sel
from .registry import Machine, elementwise, op

WIDE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}


def _is_float(instr: Instr) -> bool:
    return instr.type in ("f16", "f32", "f64", "f16x2", "bf16", "bf16x2")


def _clamp(dtype: np.dtype, function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Saturating 32-bit arithmetic, done in 64 bits."""
    limits = np.iinfo(dtype)

    def saturate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.clip(function(np.asarray(a, np.int64), np.asarray(b, np.int64)), limits.min, limits.max).astype(dtype)

    return saturate


@op("add", "sub")
def _add(instr: Instr, machine: Machine) -> Action:
    if _is_float(instr):
        return float_ops.arithmetic(instr, machine)
    if instr.has("cc"):
        return _with_carry(instr, machine)
    function = np.add if instr.opcode == "add" else np.subtract
    return elementwise(instr, machine, _clamp(instr.dtype, function) if instr.has("sat") else function, instr.type)


@op("addc", "subc", "madc")
def _with_carry(instr: Instr, machine: Machine) -> Action:
    """Extended precision on 32 bits: the carry flag of each lane goes in (addc, ...) and out (.cc)."""
    lanes = machine.lanes
    if instr.dtype.itemsize != 4 or (instr.dtype.kind == "i" and instr.has("hi")):
        raise lanes.unsupported(instr)
    write = lanes.writer(instr.operands[0], "u32")
    readers = [lanes.reader(operand, "u32") for operand in instr.operands[1:]]
    takes, gives, low = instr.opcode.endswith("c"), instr.has("cc"), np.uint64(0xFFFFFFFF)

    def run(sel: Sel) -> None:
        a, b, *rest = (np.asarray(read(sel)).astype(np.uint64) for read in readers)
        if instr.opcode.startswith("mad"):
            product = a * b
            a, b = (product >> np.uint64(32) if instr.has("hi") else product & low), rest[0]
        carry = lanes.carry[sel].astype(np.uint64) if takes else np.uint64(0)
        total = a - b - carry if instr.opcode.startswith("sub") else a + b + carry
        if gives:
            lanes.carry[sel] = (total >> np.uint64(32)) != 0
        write(sel, (total & low).astype(np.uint32))

    return run


def _product(instr: Instr) -> tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], str]:
    """mul.lo, .hi or .wide as a function, and the type of its result."""
    kind = instr.type
    if instr.has("wide"):
        wide = DTYPES[WIDE[kind]]
        return lambda a, b: a.astype(wide) * b.astype(wide), WIDE[kind]
    if not instr.has("hi"):
        return np.multiply, kind
    if kind in WIDE:
        wide, shift = DTYPES[WIDE[kind]], 8 * instr.dtype.itemsize
        return lambda a, b: ((a.astype(wide) * b.astype(wide)) >> wide.type(shift)).astype(instr.dtype), kind
    return _high_64, kind


def _high_64(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Upper half of the 128-bit product, from four products of 32-bit halves."""
    signed = a.dtype.kind == "i"
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    x, y = np.asarray(a).astype(np.uint64), np.asarray(b).astype(np.uint64)
    x0, x1, y0, y1 = x & low, x >> shift, y & low, y >> shift
    middle = x1 * y0 + ((x0 * y0) >> shift)
    high = x1 * y1 + (middle >> shift) + ((x0 * y1 + (middle & low)) >> shift)
    if signed:
        high = high - np.where(np.asarray(a) < 0, y, np.uint64(0)) - np.where(np.asarray(b) < 0, x, np.uint64(0))
    return high.astype(a.dtype)


@op("mul", "mul24")
def _mul(instr: Instr, machine: Machine) -> Action:
    if _is_float(instr):
        return float_ops.arithmetic(instr, machine)
    if instr.opcode == "mul24":
        raise machine.lanes.unsupported(instr)
    function, out = _product(instr)
    return elementwise(instr, machine, function, instr.type, out)


@op("mad")
def _mad(instr: Instr, machine: Machine) -> Action:
    if _is_float(instr):
        return float_ops.fused_multiply_add(instr, machine)
    if instr.has("cc"):
        return _with_carry(instr, machine)
    function, out = _product(instr)
    return elementwise(instr, machine, lambda a, b, c: function(a, b) + c, [instr.type, instr.type, out], out)


@op("div", "rem")
def _div(instr: Instr, machine: Machine) -> Action:
    if _is_float(instr):
        return float_ops.divide(instr, machine)
    lanes = machine.lanes
    write = lanes.writer(instr.operands[0], instr.type)
    top, bottom = (lanes.reader(operand, instr.type) for operand in instr.operands[1:])
    signed, rem = instr.dtype.kind == "i", instr.opcode == "rem"

    def run(sel: Sel) -> None:
        a, b = top(sel), bottom(sel)
        if np.any(b == 0):
            lane = int(lanes.ids(sel)[np.flatnonzero(np.broadcast_to(b == 0, lanes.size(sel)))[0]])
            raise lanes.fault(ArithmeticFault, "integer division by zero", lane)
        if not signed:
            write(sel, a % b if rem else a // b)
            return
        rest = np.fmod(a, b)  # truncates towards zero, as PTX does
        write(sel, rest if rem else (a - rest) // b)

    return run


@op("min", "max")
def _min_max(instr: Instr, machine: Machine) -> Action:
    if _is_float(instr):
        return float_ops.min_max(instr, machine)
    function = np.minimum if instr.opcode == "min" else np.maximum
    if instr.has("relu"):
        return elementwise(instr, machine, lambda a, b: np.maximum(function(a, b), 0), instr.type)
    return elementwise(instr, machine, function, instr.type)


@op("neg", "abs")
def _neg(instr: Instr, machine: Machine) -> Action:
    if _is_float(instr):
        return float_ops.sign(instr, machine)
    return elementwise(instr, machine, np.negative if instr.opcode == "neg" else np.abs, instr.type)


@op("sad")
def _sad(instr: Instr, machine: Machine) -> Action:
    return elementwise(instr, machine, lambda a, b, c: c + np.where(a > b, a - b, b - a), instr.type)


LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}


@op("and", "or", "xor", "not")
def _logic(instr: Instr, machine: Machine) -> Action:
    return elementwise(instr, machine, LOGIC[instr.opcode], instr.type)


@op("cnot")
def _cnot(instr: Instr, machine: Machine) -> Action:
    return elementwise(instr, machine, lambda a: (a == 0).astype(instr.dtype), instr.type)


@op("lop3")
def _lop3(instr: Instr, machine: Machine) -> Action:
    """Any boolean function of three inputs, given by its truth table."""

    def run(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
        result = np.zeros(np.broadcast(a, b, c).shape, np.uint32)
        for k in range(8):
            if int(table) >> k & 1:
                result |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
        return result

    return elementwise(instr, machine, run, "b32")


@op("shl", "shr")
def _shift(instr: Instr, machine: Machine) -> Action:
    """Shifts by the width or more give 0, or copies of the sign."""
    dtype, left = instr.dtype, instr.opcode == "shl"
    top = 8 * dtype.itemsize

    def run(a: np.ndarray, amount: np.ndarray) -> np.ndarray:
        inside = np.minimum(amount, top - 1).astype(dtype)
        shifted = np.left_shift(a, inside) if left else np.right_shift(a, inside)
        if not left and dtype.kind == "i":
            return shifted
        return np.where(amount >= top, dtype.type(0), shifted)

    return elementwise(instr, machine, run, [instr.type, "u32"], instr.type)


@op("shf")
def _funnel(instr: Instr, machine: Machine) -> Action:
    """The upper (left) or lower (right) 32 bits of the shifted pair b:a."""
    left, wrap = instr.has("l"), instr.has("wrap")

    def run(low: np.ndarray, high: np.ndarray, amount: np.ndarray) -> np.ndarray:
        pair = (high.astype(np.uint64) << np.uint64(32)) | low
        count = (amount & np.uint32(31) if wrap else np.minimum(amount, 32)).astype(np.uint64)
        return ((pair << count) >> np.uint64(32) if left else pair >> count).astype(np.uint32)

    return elementwise(instr, machine, run, ["b32", "b32", "u32"], "b32")


@op("bfe")
def _extract(instr: Instr, machine: Machine) -> Action:
    """A bit field, sign-extended for signed types."""
    width = 8 * instr.dtype.itemsize

    def run(a: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        start, length = (np.asarray(v & np.uint32(255)).astype(np.int64) for v in (start, length))
        length = np.minimum(length, width)
        kept = np.minimum(length, np.maximum(width - start, 0))  # bits above the top are copies of the sign, or 0
        value = np.where(start < width, a >> np.minimum(start, width - 1).astype(a.dtype), 0).astype(a.dtype)
        gap = (width - np.maximum(kept, 1)).astype(a.dtype)
        field = ((value << gap) >> gap).astype(a.dtype)
        beyond = a >> a.dtype.type(width - 1) if a.dtype.kind == "i" else np.zeros_like(field)
        return np.where(length == 0, a.dtype.type(0), np.where(kept == 0, beyond, field))

    return elementwise(instr, machine, run, [instr.type, "u32", "u32"], instr.type)


@op("bfi")
def _insert(instr: Instr, machine: Machine) -> Action:
    width = 8 * instr.dtype.itemsize
    kind, one = instr.dtype, instr.dtype.type(1)

    def run(a: np.ndarray, b: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        start, length = (np.minimum(v & np.uint32(255), width) for v in (start, length))
        ones = np.where(length >= width, ~kind.type(0), (one << np.minimum(length, width - 1).astype(kind)) - one)
        inside = np.minimum(start, width - 1).astype(kind)
        mask = np.where(start >= width, kind.type(0), (ones << inside).astype(kind))
        return (b & ~mask) | ((a << inside) & mask)

    return elementwise(instr, machine, run, [instr.type, instr.type, "u32", "u32"], instr.type)


@op("popc", "clz", "brev", "bfind")
def _bits(instr: Instr, machine: Machine) -> Action:
    if instr.opcode == "bfind" and (instr.dtype.kind == "i" or instr.has("shiftamt")):
        raise machine.lanes.unsupported(instr)
    width = 8 * instr.dtype.itemsize

    def count(a: np.ndarray) -> np.ndarray:
        octets = np.asarray(a)[..., None].view(np.uint8)  # little endian
        bits = np.unpackbits(octets, axis=-1, bitorder="little")
        if instr.opcode == "brev":
            return np.packbits(bits[..., ::-1], axis=-1, bitorder="little").view(instr.dtype)[..., 0]
        if instr.opcode == "popc":
            return bits.sum(axis=-1, dtype=np.uint32)
        highest = np.where(bits.any(axis=-1), width - 1 - np.argmax(bits[..., ::-1], axis=-1), -1)
        return (highest if instr.opcode == "bfind" else width - 1 - highest).astype(np.int32).view(np.uint32)

    return elementwise(instr, machine, count, instr.type, instr.type if instr.opcode == "brev" else "u32")


@op("prmt")
def _permute(instr: Instr, machine: Machine) -> Action:
    """Four bytes picked from the eight of b:a, or the sign of one of them."""
    if len(instr.mods) > 1:
        raise machine.lanes.unsupported(instr)

    def run(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
        pair = (np.asarray(b).astype(np.uint64) << np.uint64(32)) | a
        result = np.zeros_like(selector)
        for k in range(4):
            pick = (selector >> np.uint32(4 * k)) & np.uint32(15)
            byte = (pair >> ((pick & np.uint32(7)).astype(np.uint64) * np.uint64(8))) & np.uint64(255)
            sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
            result = result | (np.where(pick & np.uint32(8), sign, byte).astype(np.uint32) << np.uint32(8 * k))
        return result

    return elementwise(instr, machine, run, "b32")


COMPARE: dict[str, Callable[..., np.ndarray]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip


def _comparison(name: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """eq..ge are false for NaN (also ne), equ..geu true; num and nan ask for it."""
    if name in ("num", "nan"):
        return lambda a, b: (np.isnan(a) | np.isnan(b)) == (name == "nan")
    if len(name) == 3:
        return lambda a, b: COMPARE[name[:2]](a, b) | np.isnan(a) | np.isnan(b)
    if name == "ne":
        return lambda a, b: (a < b) | (a > b)
    return COMPARE[name]


@op("setp", "set")
def _set(instr: Instr, machine: Machine) -> Action:
    lanes = machine.lanes
    if instr.type in ("bf16", "bf16x2", "f16x2"):
        raise lanes.unsupported(instr)
    compare = _comparison(instr.mods[0])
    combine = next((LOGIC[m] for m in instr.mods[1:2] if m in LOGIC), None)
    target = instr.operands[0]
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    out = "pred" if instr.opcode == "setp" else next(m for m in instr.mods if m in DTYPES)
    write = lanes.writer(first, out)
    also = lanes.writer(second, out) if second is not None else None
    left, right = (lanes.reader(operand, instr.type) for operand in instr.operands[1:3])
    other = lanes.reader(instr.operands[3], "pred") if combine else None
    zero = DTYPES[out].type(0)
    true = zero + 1 if DTYPES[out].kind in "fb" else ~zero

    def run(sel: Sel) -> None:
        result: Any = compare(left(sel), right(sel))
        opposite = ~result
        if combine and other:
            result, opposite = combine(result, other(sel)), combine(opposite, other(sel))
        write(sel, result if out == "pred" else np.where(result, true, zero))
        if also:
            also(sel, opposite)

    return run


@op("dp4a", "dp2a")
def _dot(instr: Instr, machine: Machine) -> Action:
    """Products of four bytes (dp4a) or two 16-bit halves and two bytes (dp2a, .lo or .hi), added to a 32-bit number."""
    halves = instr.opcode == "dp2a"
    kinds = [m for m in instr.mods if m in ("u32", "s32")]
    out = "s32" if "s32" in kinds else "u32"
    first = 2 if halves and instr.has("hi") else 0

    def parts(values: np.ndarray, bits: int, kind: str, places: range) -> list[np.ndarray]:
        wide = np.asarray(values, np.int64)
        pieces = [(wide >> (bits * k)) & ((1 << bits) - 1) for k in places]
        return [np.where(p >> (bits - 1), p - (1 << bits), p) for p in pieces] if kind == "s32" else pieces

    def run(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        left = parts(a, 16, kinds[0], range(2)) if halves else parts(a, 8, kinds[0], range(4))
        right = parts(b, 8, kinds[1], range(first, first + len(left)))
        total = np.asarray(c, np.int64) + sum(x * y for x, y in zip(left, right, strict=True))
        return total.astype(np.uint32).view(DTYPES[out])

    return elementwise(instr, machine, run, ["b32", "b32", out], out)


@op("selp")
def _select(instr: Instr, machine: Machine) -> Action:
    kind = instr.type
    return elementwise(instr, machine, lambda a, b, p: np.where(p, a, b), [kind, kind, "pred"], kind)


@op("slct")
def _select_sign(instr: Instr, machine: Machine) -> Action:
    out, by = [m for m in instr.mods if m in DTYPES]
    return elementwise(instr, machine, lambda a, b, c: np.where(c >= 0, a, b), [out, out, by], out)
