"""The table's maps and zips as LLVM instructions on vectors of points (or on one point, with one lane).

Element types in registers: float32 float, float64 double, int32 and uint32 i32, int64 i64, uint8 i8, bool i1.
In memory a bool is a byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fusegraph.codegen.cpu.irtext import FunctionBuilder, Module
from fusegraph.codegen.cpu.irvector import VectorOps
from fusegraph.codegen.cpu.vecmath import FUNCTIONS, RESTRICTED, VectorMath
from fusegraph.dtypes import DType, bool_, int32, int64
from fusegraph.errors import CompilerError
from fusegraph.ir.primitives.sources import PHILOX_MULTIPLIER, PHILOX_ROUNDS, PHILOX_WEYL

_ELEMENTS = {  # by kind and size: the name of a numpy dtype takes a microsecond to make
    ("f", 4): "float", ("f", 8): "double", ("i", 4): "i32", ("u", 4): "i32", ("i", 8): "i64", ("u", 1): "i8", ("b",
    1): "i1",
}  # fmt: skip
_FLOAT_PREDICATES = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}
COMPARISONS = frozenset(_FLOAT_PREDICATES)
_ROUNDINGS = {"floor": "floor", "ceil": "ceil", "round": "roundeven"}
_BITWISE = {"bit_and": "and", "bit_or": "or", "bit_xor": "xor"}


def element_of(dtype: DType) -> str:
    """The LLVM type that holds one value of `dtype` in a register."""
    return _ELEMENTS[dtype.kind, dtype.itemsize]


def memory_element(dtype: DType) -> str:
    """The LLVM type that holds one value of `dtype` in memory."""
    return "i8" if dtype.kind == "b" else _ELEMENTS[dtype.kind, dtype.itemsize]


def is_signed(dtype: DType) -> bool:
    """Whether integers of `dtype` have a sign."""
    return dtype.kind == "i"


def smallest(dtype: DType) -> float | int:
    """The value that every other one is at least: -inf, or the least integer."""
    if dtype.kind == "f":
        return -math.inf
    return 0 if dtype.kind in "ub" else int(np.iinfo(dtype).min)


def largest(dtype: DType) -> float | int:
    """The value that every other one is at most: inf, or the greatest integer."""
    if dtype.kind == "f":
        return math.inf
    return 1 if dtype.kind == "b" else int(np.iinfo(dtype).max)


class PointOps:
    """Primitive operations on `lanes` points, written into `fn`. `exact`: no contraction, C library functions."""

    def __init__(self, fn: FunctionBuilder, module: Module, lanes: int, exact: bool) -> None:
        self.fn, self.module, self.lanes, self.exact = fn, module, lanes, exact
        self._flags = "" if exact else "contract"
        self._vectors: dict[str, VectorOps] = {}

    def element(self, element: str) -> VectorOps:
        """Vector operations on an LLVM element type."""
        if element not in self._vectors:
            self._vectors[element] = VectorOps(self.fn, self.lanes, element, self._flags)
        return self._vectors[element]

    def of(self, dtype: DType) -> VectorOps:
        """Vector operations on a dtype."""
        return self.element(element_of(dtype))

    def with_lanes(self, lanes: int) -> PointOps:
        """The same for another number of lanes."""
        return self if lanes == self.lanes else PointOps(self.fn, self.module, lanes, self.exact)

    def apply(self, name: str, dtype: DType, args: Sequence[str], types: Sequence[DType]) -> str:
        """The primitive `name` on operands of dtypes `types`; gives a value of `dtype`."""
        if name in FUNCTIONS or name in RESTRICTED:
            return VectorMath(self.module, self.lanes, element_of(dtype), self.exact).call(self.fn, name, *args)
        if name in _FLOAT_PREDICATES:
            return self.compare(name, args[0], args[1], types[0])
        if name == "cast":
            return self.cast(args[0], types[0], dtype)
        if name == "where":
            return self.of(dtype).select(args[0], args[1], args[2])
        handler = _HANDLERS.get(name)
        if handler is None:
            raise CompilerError(f"the CPU code generator has no instruction for the primitive {name!r} ({dtype.name})")
        return handler(self, dtype, types, *args)

    def compare(self, name: str, a: str, b: str, dtype: DType) -> str:
        """eq, ne, lt, le, gt or ge of two values of `dtype`, as bool."""
        v = self.of(dtype)
        if dtype.kind == "f":
            return v.compare(_FLOAT_PREDICATES[name], a, b)
        sign = "" if name in ("eq", "ne") else ("s" if is_signed(dtype) else "u")
        return v.compare(sign + name, a, b)

    def cast(self, x: str, source: DType, target: DType) -> str:
        """Conversion as numpy's astype; floats truncate towards zero on their way to integers."""
        v, to = self.of(source), element_of(target)
        if source == target or element_of(source) == to:
            return x
        if target.kind == "b":
            return v.compare("une" if source.kind == "f" else "ne", x, v.constant(0))
        if source.kind == "b":
            return self._from_bool(x, target)
        if source.kind == "f" and target.kind == "f":
            return v.convert("fpext" if to == "double" else "fptrunc", x, to)
        if source.kind == "f":
            return self._float_to_integer(x, source, target)
        if target.kind == "f":
            return v.convert("sitofp" if is_signed(source) else "uitofp", x, to)
        if target.itemsize < source.itemsize:
            return v.convert("trunc", x, to)
        return v.convert("sext" if is_signed(source) else "zext", x, to)

    def _from_bool(self, x: str, target: DType) -> str:
        v = self.of(target)
        if target.kind == "f":
            return v.select(x, v.constant(1), v.constant(0))
        return self.of(bool_).convert("zext", x, v.element)

    def _float_to_integer(self, x: str, source: DType, target: DType) -> str:
        """Through a wider signed integer for unsigned ones, so that negative numbers wrap around as in numpy."""
        through = {"uint8": int32, "uint32": int64}.get(target.name, target)
        value = self.of(source).convert("fptosi", x, element_of(through))
        return value if through == target else self.of(through).convert("trunc", value, element_of(target))

    def extreme(self, largest_wins: bool, a: str, b: str, dtype: DType) -> str:
        """The larger (or smaller) of two values; NaN if either is."""
        v = self.of(dtype)
        if dtype.kind == "b":
            return v.binary("or" if largest_wins else "and", a, b)
        if dtype.kind == "u":
            return v.select(v.compare("ugt" if largest_wins else "ult", a, b), a, b)
        return v.maximum(a, b) if largest_wins else v.minimum(a, b)

    def philox(self, key: str, counter: str, element: str) -> str:
        """Word 0 of Philox-2x32-10 for key, counter and the element's number, an i32 of each lane."""
        words = self.element("i32")
        low, high = element, counter
        for round_ in range(PHILOX_ROUNDS):
            weyl = (round_ * PHILOX_WEYL) & 0xFFFFFFFF
            round_key = key if round_ == 0 else words.add(key, words.constant(weyl - (weyl >> 31 << 32)))
            top, bottom = self._wide_product(low, PHILOX_MULTIPLIER)
            low, high = words.binary("xor", words.binary("xor", top, round_key), high), bottom
        return low

    def _wide_product(self, x: str, factor: int) -> tuple[str, str]:
        """The high and the low 32 bits of x * factor, unsigned.

        Even and odd lanes are multiplied separately, as halves of i64 lanes: one instruction each on x86.
        """
        words, wide = self.element("i32"), self.element("i64")
        if self.lanes == 1:
            product = wide.binary("mul", words.convert("zext", x, "i64"), wide.constant(factor))
            high = wide.convert("trunc", wide.binary("lshr", product, wide.constant(32)), "i32")
            return high, wide.convert("trunc", product, "i32")
        pairs = VectorOps(self.fn, self.lanes // 2, "i64")
        both = self.fn.cast("bitcast", words.type, x, pairs.type)
        even = pairs.binary("mul", pairs.binary("and", both, pairs.constant(0xFFFFFFFF)), pairs.constant(factor))
        odd = pairs.binary("mul", pairs.binary("lshr", both, pairs.constant(32)), pairs.constant(factor))
        even_words, odd_words = (self.fn.cast("bitcast", pairs.type, part, words.type) for part in (even, odd))
        lanes = range(0, self.lanes, 2)
        high = words.shuffle(even_words, odd_words, [at for k in lanes for at in (k + 1, self.lanes + k + 1)])
        return high, words.shuffle(even_words, odd_words, [at for k in lanes for at in (k, self.lanes + k)])


Handler = Callable[..., str]


def _neg(ops: PointOps, dtype: DType, types: Sequence[DType], x: str) -> str:
    return ops.of(dtype).neg(x)


def _abs(ops: PointOps, dtype: DType, types: Sequence[DType], x: str) -> str:
    v = ops.of(dtype)
    if dtype.kind == "f":
        return v.unary("fabs", x)
    return x if not is_signed(dtype) else v.select(v.compare("slt", x, v.constant(0)), v.neg(x), x)


def _sign(ops: PointOps, dtype: DType, types: Sequence[DType], x: str) -> str:
    """1, 0 or -1; NaN stays NaN."""
    v = ops.of(dtype)
    zero = v.constant(0)
    rest = zero
    if dtype.kind == "f":
        rest = v.select(v.compare("uno", x, x), x, zero)
    if dtype.kind in "fi":
        rest = v.select(ops.compare("lt", x, zero, dtype), v.constant(-1), rest)
    return v.select(ops.compare("gt", x, zero, dtype), v.constant(1), rest)


def _rounding(name: str) -> Handler:
    return lambda ops, dtype, types, x: ops.of(dtype).unary(name, x)


def _relu(ops: PointOps, dtype: DType, types: Sequence[DType], x: str) -> str:
    return ops.of(dtype).maximum_constant(x, 0) if dtype.kind in "fi" else x


def _logical_not(ops: PointOps, dtype: DType, types: Sequence[DType], x: str) -> str:
    v = ops.of(bool_)
    return v.binary("xor", x, v.constant(True))


def _isnan(ops: PointOps, dtype: DType, types: Sequence[DType], x: str) -> str:
    return ops.of(types[0]).compare("uno", x, x)


def _arithmetic(name: str) -> Handler:
    return lambda ops, dtype, types, a, b: getattr(ops.of(dtype), name)(a, b)


def _extreme(largest_wins: bool) -> Handler:
    return lambda ops, dtype, types, a, b: ops.extreme(largest_wins, a, b, dtype)


def _bitwise(instruction: str) -> Handler:
    return lambda ops, dtype, types, a, b: ops.of(dtype).binary(instruction, a, b)


def _safe_divisor(ops: PointOps, dtype: DType, a: str, b: str) -> tuple[str, str]:
    """(divisor that never traps, mask of zero divisors): the result there is 0, as in numpy."""
    v = ops.of(dtype)
    zero = v.compare("eq", b, v.constant(0))
    bad = zero
    if is_signed(dtype):  # the least integer / -1 traps too; dividing it by 1 gives what wrapping around would
        least = v.compare("eq", a, v.constant(smallest(dtype)))
        minus = v.compare("eq", b, v.constant(-1))
        bad = ops.of(bool_).binary("or", zero, ops.of(bool_).binary("and", least, minus))
    return v.select(bad, v.constant(1), b), zero


def _floordiv(ops: PointOps, dtype: DType, types: Sequence[DType], a: str, b: str) -> str:
    v, masks = ops.of(dtype), ops.of(bool_)
    divisor, zero = _safe_divisor(ops, dtype, a, b)
    quotient = v.binary("sdiv" if is_signed(dtype) else "udiv", a, divisor)
    if is_signed(dtype):
        rest = v.sub(a, v.mul(quotient, divisor))
        differ = v.compare("slt", v.binary("xor", rest, divisor), v.constant(0))
        down = masks.binary("and", v.compare("ne", rest, v.constant(0)), differ)
        quotient = v.sub(quotient, v.select(down, v.constant(1), v.constant(0)))
    return v.select(zero, v.constant(0), quotient)


def _mod(ops: PointOps, dtype: DType, types: Sequence[DType], a: str, b: str) -> str:
    v, masks = ops.of(dtype), ops.of(bool_)
    divisor, zero = _safe_divisor(ops, dtype, a, b)
    rest = v.binary("srem" if is_signed(dtype) else "urem", a, divisor)
    if is_signed(dtype):
        differ = v.compare("slt", v.binary("xor", rest, divisor), v.constant(0))
        up = masks.binary("and", v.compare("ne", rest, v.constant(0)), differ)
        rest = v.add(rest, v.select(up, divisor, v.constant(0)))
    return v.select(zero, v.constant(0), rest)


def _shift(left: bool) -> Handler:
    """Amounts outside of 0 .. bits - 1 shift everything out, as in numpy."""

    def shift(ops: PointOps, dtype: DType, types: Sequence[DType], a: str, b: str) -> str:
        v, bits = ops.of(dtype), dtype.itemsize * 8
        fits = v.compare("ult", b, v.constant(bits))
        if not left and is_signed(dtype):
            return v.binary("ashr", a, v.select(fits, b, v.constant(bits - 1)))
        moved = v.binary("shl" if left else "lshr", a, v.select(fits, b, v.constant(0)))
        return v.select(fits, moved, v.constant(0))

    return shift


_HANDLERS: dict[str, Handler] = {
    "neg": _neg, "abs": _abs, "sign": _sign, "relu": _relu, "logical_not": _logical_not, "isnan": _isnan,
    **{name: _rounding(instruction) for name, instruction in _ROUNDINGS.items()},
    **{name: _arithmetic(name) for name in ("add", "sub", "mul", "div")},
    **{name: _bitwise(instruction) for name, instruction in _BITWISE.items()},
    "maximum": _extreme(True), "minimum": _extreme(False), "floordiv": _floordiv, "mod": _mod,
    "shift_left": _shift(True), "shift_right": _shift(False),
}  # fmt: skip
