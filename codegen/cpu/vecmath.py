"""Vector exp, log, tanh, erf, sin, pow and the like as always-inline LLVM functions, for any number of lanes.

Functions are polynomials with an error of at most 2.5 ulp over the whole range of float32 and float64, without flags
that would assume away NaN, inf or denormals: results underflow gradually, and special values behave as in numpy. With
``exact=True``, for float64 ``pow``, and for huge arguments of sin and cos, the C math library is called lane by lane.

Method. Arguments are reduced by Cody and Waite's scheme: ``r = x - n*C`` with C (ln 2, pi/2) split into a sum of
floats, and every step a fused multiply-add, so that the leading difference is exact. On the reduced interval a minimax
polynomial is evaluated (vecmath_tables.py). ``pow`` for float works in double inside (log2 by atanh, then exp2), so it
is nearly correctly rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fusegraph.codegen.cpu.irtext import FunctionBuilder, Module
from fusegraph.codegen.cpu.irvector import VectorOps
from fusegraph.codegen.cpu.vecmath_tables import DOUBLE, EXP2_DOUBLE, FLOAT, LOG2_DOUBLE, LOG2_E, Tables

__all__ = ["FUNCTIONS", "RESTRICTED", "VectorMath"]


class _Math(VectorOps):
    """Vector operations of one floating format, with its tables and its integers at hand."""

    def __init__(self, fn: FunctionBuilder, lanes: int, element: str) -> None:
        super().__init__(fn, lanes, element)
        self.tables: Tables = FLOAT if element == "float" else DOUBLE
        self.ints = VectorOps(fn, lanes, self.tables.integer)
        self.bias = 1 << (self.tables.one_bits.bit_length())  # a power of two of the exponent field: 2^30 or 2^62

    def polynomial(self, x: str, coefficients: Sequence[float]) -> str:
        """sum(c[k] * x**k) by Estrin's scheme: pairs, then pairs of pairs.

        The chain of dependent operations is a third as long as Horner's; on out-of-order cores that counts for more
        than the few extra multiplications (log is 7 % faster on Zen 3).
        """
        terms = [self.constant(c) for c in coefficients]
        power = x
        while len(terms) > 1:
            pairs = [self.fma(high, power, low) for low, high in zip(terms[::2], terms[1::2], strict=False)]
            terms = pairs + terms[len(pairs) * 2 :]
            if len(terms) > 1:
                power = self.mul(power, power)
        return terms[0]

    def bits(self, x: str) -> str:
        """The bits as integers."""
        return self.bitcast(x, self.tables.integer)

    def from_bits(self, bits: str) -> str:
        """The numbers with these bits."""
        return self.ints.bitcast(bits, self.element)

    def sign_bits(self, x: str) -> str:
        """Only the sign bits, as integers."""
        sign = -(1 << (8 * (4 if self.element == "float" else 8) - 1))
        return self.ints.binary("and", self.bits(x), self.ints.constant(sign))

    def flip_sign(self, x: str, sign_bits: str) -> str:
        """x with the signs changed where the sign bit is set."""
        return self.from_bits(self.ints.binary("xor", self.bits(x), sign_bits))

    def with_sign_of(self, magnitude: str, x: str) -> str:
        """A number without sign, given the sign of x."""
        return self.from_bits(self.ints.binary("or", self.bits(magnitude), self.sign_bits(x)))

    def to_lowest_bit(self, integer: str) -> str:
        """The mask of the lanes whose integer is odd."""
        one = self.ints.constant(1)
        return self.ints.compare("ne", self.ints.binary("and", integer, one), self.ints.constant(0))

    def power_of_two(self, exponent: str, times: int = 0) -> str:
        """2**(exponent + times), from the low bits of an integer vector."""
        field = self.tables.mantissa_bits
        one = self.ints.constant(self.tables.one_bits + (times << field))
        return self.from_bits(self.ints.add(self.ints.binary("shl", exponent, self.ints.constant(field)), one))

    def split_exponent(self, x: str) -> tuple[str, str, str]:
        """x = m * 2**e, sqrt(1/2) <= m < sqrt(2), for normal x > 0: gives (m, e as number, biased exponent bits).

        The exponent is kept positive by a bias, because AVX2 has no arithmetic shift of 64-bit integers, and made a
        number by adding it to the bits of 1.5 * 2**mantissa_bits.
        """
        i, t = self.ints, self.tables
        shifted = i.add(self.bits(x), i.constant(self.bias - t.sqrt_half_bits))
        field = i.binary("and", shifted, i.constant(-(1 << t.mantissa_bits)))
        mantissa = i.add(i.sub(self.bits(x), field), i.constant(self.bias))
        count = i.binary("lshr", shifted, i.constant(t.mantissa_bits))
        magic_bits = t.one_bits + (t.mantissa_bits << t.mantissa_bits) + (1 << (t.mantissa_bits - 1))
        number = self.from_bits(i.add(count, i.constant(magic_bits)))
        exponent = self.sub(number, self.constant(t.magic + (self.bias >> t.mantissa_bits)))
        return self.from_bits(mantissa), exponent, field


# exp and its kin


def _reduce_exp(v: _Math, x: str, parts: int = 2) -> tuple[str, str]:
    """x = n ln2 + r with |r| <= ln2/2: gives (integer vector with n in its low bits, expm1(r)).

    `parts`: of ln2; one will do where exp(x) <= 1 is added to 1, so that its relative error matters less with every n.
    """
    magic = v.constant(v.tables.magic)
    shifted = v.fma(x, v.constant(LOG2_E), magic)
    n = v.sub(shifted, magic)
    r = x
    for part in v.tables.ln2[:parts]:
        r = v.fma(n, v.constant(-part), r)
    return v.bits(shifted), v.fma(v.polynomial(r, v.tables.expm1), v.mul(r, r), r)


def _exp_in_range(v: _Math, x: str) -> str:
    """exp(x) inside exp_range, or NaN; 2**n is applied in two exact steps, so that results overflow and underflow."""
    n, expm1_r = _reduce_exp(v, x)
    half = v.ints.binary("lshr", n, v.ints.constant(1))
    scale = v.power_of_two(half)
    return v.mul(v.fma(expm1_r, scale, scale), v.power_of_two(v.ints.sub(n, half)))


def _exp_of_negative(v: _Math, x: str) -> str:
    """exp(x) for x <= 0 or NaN: the sum is scaled half the range of exponents too high, then brought down."""
    n, expm1_r = _reduce_exp(v, v.maximum_constant(x, v.tables.exp_range[0]))
    away = v.tables.one_bits >> v.tables.mantissa_bits + 1
    scale = v.power_of_two(n, times=away)
    return v.mul(v.fma(expm1_r, scale, scale), v.constant(2.0**-away))


def _is_negative(v: _Math, x: str) -> str:
    return v.ints.compare("slt", v.bits(x), v.ints.constant(0))


def _exp(v: _Math, x: str) -> str:
    low, high = v.tables.exp_range
    return _exp_in_range(v, v.minimum_constant(v.maximum_constant(x, low), high))


def _expm1(v: _Math, x: str) -> str:
    """2 * (2**(n-1) expm1(r) + (2**(n-1) - 1/2)), which also reaches the last binade before overflow."""
    bounded = v.minimum_constant(v.maximum_constant(x, v.tables.expm1_low), v.tables.exp_range[1])
    n, expm1_r = _reduce_exp(v, bounded)
    scale = v.power_of_two(n, times=-1)
    half = v.fma(scale, expm1_r, v.sub(scale, v.constant(0.5)))
    tiny = v.compare("olt", v.unary("fabs", x), v.constant(v.tables.tiny))
    return v.select(tiny, x, v.add(half, half))


def _sigmoid(v: _Math, x: str) -> str:
    """With e = exp(-|x|) and q = e/(1+e): 1 - q for x >= 0, e - e q below, where results underflow gradually.

    e - e q is e/(1+e) again, but with the rounding errors of q scaled down by e.
    """
    e = _exp_of_negative(v, v.neg(v.unary("fabs", x)))
    quotient = v.div(e, v.add(e, v.constant(1.0)))
    start = v.select(_is_negative(v, x), e, v.constant(1.0))
    return v.fma(v.neg(start), quotient, start)


def _tanh(v: _Math, x: str) -> str:
    """(1 - e) / (1 + e) with e = exp(-2|x|); 1 - e is -expm1, which keeps a small relative error near zero."""
    magnitude = v.minimum_constant(v.unary("fabs", x), v.tables.tanh_one)
    n, expm1_r = _reduce_exp(v, v.mul(magnitude, v.constant(-2.0)), parts=1)
    scale = v.power_of_two(n)
    numerator = v.fma(v.neg(scale), expm1_r, v.sub(v.constant(1.0), scale))
    denominator = v.fma(scale, expm1_r, v.add(v.constant(1.0), scale))
    return v.with_sign_of(v.div(numerator, denominator), x)


def _erf(v: _Math, x: str) -> str:
    """x + x p(x^2) near zero, 1 - exp(q(|x|)) beyond."""
    magnitude = v.minimum_constant(v.unary("fabs", x), v.tables.erf_one)
    small = v.fma(v.polynomial(v.mul(magnitude, magnitude), v.tables.erf_small), magnitude, magnitude)
    n, expm1_r = _reduce_exp(v, v.polynomial(magnitude, v.tables.erf_large), parts=1)
    scale = v.power_of_two(n)
    large = v.fma(v.neg(scale), expm1_r, v.sub(v.constant(1.0), scale))
    near = v.compare("olt", magnitude, v.constant(v.tables.erf_split))
    return v.with_sign_of(v.select(near, small, large), x)


def _erf_beside_exp(v: _Math, x: str, e: str) -> str:
    """erf(x) in float32 where e = exp(-x^2) is known: beyond 1, 1 - e p(|x|) with p the scaled erfc, exp(x^2) erfc(x).

    The cotangent of gelu is computed where gelu is, and has that exp.
    """
    magnitude = v.unary("fabs", x)
    small = v.fma(v.polynomial(v.mul(magnitude, magnitude), v.tables.erf_small), magnitude, magnitude)
    scaled = v.polynomial(v.minimum_constant(magnitude, v.tables.erf_one), v.tables.erfc_scaled)
    large = v.fma(v.neg(e), scaled, v.constant(1.0))
    near = v.compare("olt", magnitude, v.constant(v.tables.erf_split))
    return v.with_sign_of(v.select(near, small, large), x)


# logarithms


def _log_of_parts(v: _Math, exponent: str, f: str) -> str:
    """exponent * ln2 + log1p(f) for sqrt(1/2) <= 1 + f <= sqrt(2)."""
    high, low = (v.constant(part) for part in v.tables.ln2)
    square = v.mul(f, f)
    if v.element == "float":
        tail = v.fma(square, v.constant(-0.5), v.mul(exponent, low))
        tail = v.fma(v.polynomial(f, v.tables.log), v.mul(square, f), tail)
    else:  # log1p(f) = f - f^2/2 + s (f^2/2 + s^2 p(s^2)), s = f / (2 + f): half the terms for a division
        s = v.div(f, v.add(f, v.constant(2.0)))
        s_square, half_square = v.mul(s, s), v.mul(square, v.constant(0.5))
        inner = v.fma(v.polynomial(s_square, v.tables.log), s_square, half_square)
        tail = v.sub(v.fma(s, inner, v.mul(exponent, low)), half_square)
    return v.fma(exponent, high, v.add(f, tail))


def _log_specials(v: _Math, result: str, x: str, pole: float) -> str:
    """-inf where x is ``pole``, NaN below it, and x itself where it is inf or NaN."""
    result = v.select(v.compare("olt", x, v.constant(math.inf)), result, x)
    at_pole = v.compare("oeq", x, v.constant(pole))
    outside = v.select(at_pole, v.constant(-math.inf), v.constant(math.nan))
    return v.select(v.compare("ole", x, v.constant(pole)), outside, result)


def _log(v: _Math, x: str) -> str:
    bits = v.tables.mantissa_bits
    denormal = v.compare("olt", x, v.constant(v.tables.smallest_normal))
    m, exponent, _ = v.split_exponent(v.select(denormal, v.mul(x, v.constant(2.0**bits)), x))
    exponent = v.sub(exponent, v.select(denormal, v.constant(float(bits)), v.constant(0.0)))
    return _log_specials(v, _log_of_parts(v, exponent, v.sub(m, v.constant(1.0))), x, 0.0)


def _log1p(v: _Math, x: str) -> str:
    """1 + x only chooses the exponent; f = (1 + x) 2**-e - 1 is computed from x by one rounding (exact for e = 0)."""
    i, t = v.ints, v.tables
    _, exponent, field = v.split_exponent(v.add(x, v.constant(1.0)))
    # 4 * 2**-e, since 2**-e itself would underflow for the largest x
    scale = v.from_bits(i.sub(i.constant(t.one_bits + (2 << t.mantissa_bits) + v.bias), field))
    f = v.fma(v.mul(x, v.constant(0.25)), scale, v.fma(scale, v.constant(0.25), v.constant(-1.0)))
    tiny = v.compare("olt", v.unary("fabs", x), v.constant(t.tiny))
    return _log_specials(v, v.select(tiny, x, _log_of_parts(v, exponent, f)), x, -1.0)


# sin and cos


def _reduce_quadrant(v: _Math, magnitude: str) -> tuple[str, str, str]:
    """|x| = n pi/2 + r: gives (integer vector with n in its low bits, sin(r), cos(r))."""
    magic = v.constant(v.tables.magic)
    shifted = v.fma(magnitude, v.constant(2.0 / math.pi), magic)
    n = v.sub(shifted, magic)
    r = magnitude
    for part in v.tables.pi_2:
        r = v.fma(n, v.constant(-part), r)
    square = v.mul(r, r)
    sine = v.fma(v.mul(v.polynomial(square, v.tables.sin), square), r, r)
    cosine = v.fma(square, v.constant(-0.5), v.constant(1.0))
    cosine = v.fma(v.mul(square, square), v.polynomial(square, v.tables.cos), cosine)
    return v.bits(shifted), sine, cosine


def _half_turn_bits(v: _Math, quadrant: str) -> str:
    """The sign bit set where bit 1 of the quadrant is."""
    i = v.ints
    top = 31 if v.element == "float" else 63
    return i.binary("shl", i.binary("lshr", quadrant, i.constant(1)), i.constant(top))


def _sin(v: _Math, x: str) -> str:
    n, sine, cosine = _reduce_quadrant(v, v.unary("fabs", x))
    sign = v.ints.binary("xor", _half_turn_bits(v, n), v.sign_bits(x))
    return v.flip_sign(v.select(v.to_lowest_bit(n), cosine, sine), sign)


def _cos(v: _Math, x: str) -> str:
    n, sine, cosine = _reduce_quadrant(v, v.unary("fabs", x))
    sign = _half_turn_bits(v, v.ints.add(n, v.ints.constant(1)))
    return v.flip_sign(v.select(v.to_lowest_bit(n), sine, cosine), sign)


# pow


def _log2_of_float(d: _Math, x: str) -> str:
    """log2 of positive floats given as doubles (all of them normal); 0 gives -inf, inf gives inf."""
    m, exponent, _ = d.split_exponent(x)
    s = d.div(d.sub(m, d.constant(1.0)), d.add(m, d.constant(1.0)))
    result = d.fma(d.polynomial(d.mul(s, s), LOG2_DOUBLE), s, exponent)
    result = d.select(d.compare("oeq", x, d.constant(0.0)), d.constant(-math.inf), result)
    return d.select(d.compare("olt", x, d.constant(math.inf)), result, x)


def _exp2_for_float(d: _Math, z: str) -> str:
    """2**z in double for any z; the range is cut where a float has long become 0 or inf."""
    magic = d.constant(d.tables.magic)
    z = d.minimum_constant(d.maximum_constant(z, -300.0), 300.0)
    shifted = d.add(z, magic)
    r = d.sub(z, d.sub(shifted, magic))
    return d.mul(d.fma(d.polynomial(r, EXP2_DOUBLE), r, d.constant(1.0)), d.power_of_two(d.bits(shifted)))


def _pow(v: _Math, x: str, y: str) -> str:
    """2**(y log2|x|) in double, then the sign and the special cases of C's pow (which numpy follows)."""
    d, b = _Math(v.fn, v.lanes, "double"), v.of("i1")
    # y = +-inf becomes finite, so that y * log2(1) is 0; |log2 x| >= 2**-24 otherwise, which is still far enough
    bounded = v.minimum_constant(v.maximum_constant(y, -1e30), 1e30)
    log2_x = _log2_of_float(d, v.convert("fpext", v.unary("fabs", x), "double"))
    wide = _exp2_for_float(d, d.mul(v.convert("fpext", bounded, "double"), log2_x))
    half = v.mul(y, v.constant(0.5))
    whole = v.compare("oeq", v.unary("rint", y), y)
    even = v.compare("oeq", v.unary("rint", half), half)
    odd = b.binary("xor", whole, b.binary("and", even, whole))
    signed = v.flip_sign(d.convert("fptrunc", wide, "float"), v.ints.select(odd, v.sign_bits(x), v.ints.constant(0)))
    negative = b.binary("and", v.compare("olt", x, v.constant(0.0)), v.compare("ogt", x, v.constant(-math.inf)))
    undefined = b.binary("and", negative, b.binary("xor", whole, b.constant(True)))
    result = v.select(undefined, v.constant(math.nan), signed)
    unit = b.binary("or", v.compare("oeq", y, v.constant(0.0)), v.compare("oeq", x, v.constant(1.0)))
    return v.select(unit, v.constant(1.0), result)


# the C math library


def _by_library(v: VectorOps, name: str, operands: Sequence[str]) -> str:
    """The C library's function lane by lane; sigmoid by its exp."""
    if name == "sigmoid":
        e = _by_library(v, "exp", [v.neg(v.unary("fabs", operands[0]))])
        numerator = v.select(v.compare("oge", operands[0], v.constant(0.0)), v.constant(1.0), e)
        return v.div(numerator, v.add(e, v.constant(1.0)))
    symbol = name + ("f" if v.element == "float" else "")
    lanes = []
    for lane in range(v.lanes):
        args = [(v.element, v.extract(operand, lane)) for operand in operands]
        lanes.append(v.fn.call(v.element, symbol, args, external=True))
    return v.from_lanes(lanes)


_POLYNOMIALS: dict[str, Callable[..., str]] = {
    "exp": _exp, "expm1": _expm1, "log": _log, "log1p": _log1p, "tanh": _tanh, "sigmoid": _sigmoid, "erf": _erf,
    "sin": _sin, "cos": _cos, "pow": _pow,
}  # fmt: skip

FUNCTIONS = (*_POLYNOMIALS, "sqrt", "rsqrt")
"""Names of primitives that VectorMath.call takes; pow has two operands, the others one."""

RESTRICTED: dict[str, Callable[..., str]] = {"exp_of_negative": _exp_of_negative, "erf_beside_exp": _erf_beside_exp}
"""Further names, never with `exact`: exp of x <= 0 or NaN; float32's erf(x) from x and exp(-x * x)."""


class VectorMath:
    """Math functions on ``lanes`` elements of type ``element`` ("float" or "double"), defined in ``module`` as used.

    ``exact=True`` calls the C math library lane by lane (for comparisons with the reference). Twice as many lanes as
    a register has are about a fifth faster, because two independent chains then interleave.
    """

    def __init__(self, module: Module, lanes: int, element: str, exact: bool = False) -> None:
        if element not in ("float", "double"):
            raise ValueError(f"VectorMath: the element type must be float or double, not {element!r}")
        self.module = module
        self.lanes = lanes
        self.element = element
        self.exact = exact

    def call(self, builder: FunctionBuilder, name: str, *operands: str) -> str:
        """Emit ``name(*operands)`` into ``builder`` and give the result's SSA name.

        ``name`` is one of :data:`FUNCTIONS` or :data:`RESTRICTED`; operands are vectors of this lane count and element type.
        """
        if name not in FUNCTIONS and name not in RESTRICTED:
            raise ValueError(f"VectorMath has no function {name!r}; it has {', '.join(FUNCTIONS)}")
        v = VectorOps(builder, self.lanes, self.element)
        if name == "sqrt":
            return v.unary("sqrt", operands[0])
        if name == "rsqrt":
            return v.div(v.constant(1.0), v.unary("sqrt", operands[0]))
        symbol = self._define(name, len(operands))
        return builder.call(v.type, symbol, [(v.type, operand) for operand in operands])

    def power(self, builder: FunctionBuilder, x: str, exponent: float) -> str:
        """x ** exponent for a constant exponent: multiplications, a root or a division where they give 1.5 ulp.

        As in numpy's ``x ** 0.5``, exponents of one half are square roots: -0.0 and -inf keep their sign, or give NaN.
        """
        v = VectorOps(builder, self.lanes, self.element)
        if exponent in (0.5, -0.5):
            return self.call(builder, "sqrt" if exponent > 0 else "rsqrt", x)
        base = v.div(v.constant(1.0), x) if exponent in (-1.0, -2.0) else x
        if exponent in (1.0, -1.0):
            return base
        if exponent in (2.0, -2.0, 3.0, 4.0):
            square = v.mul(base, base)
            return square if abs(exponent) == 2.0 else v.mul(square, base if exponent == 3.0 else square)
        return self.call(builder, "pow", x, v.constant(exponent))

    def _define(self, name: str, arity: int) -> str:
        """Define the vector function if the module does not have it yet; gives its symbol."""
        by_library = self.exact or (name, self.element) == ("pow", "double")
        symbol = f"fg_{name}{'_libm' if by_library else ''}_{self.lanes}x{self.element}"
        if self.module.has_function(symbol):
            return symbol
        type_ = VectorOps(FunctionBuilder("", []), self.lanes, self.element).type
        operands = ["%x", "%y"][:arity]
        attrs = "noinline" if by_library and self.lanes > 1 else "alwaysinline"
        fn = self.module.function(symbol, [f"{type_} {p}" for p in operands], attrs=attrs, returns=type_)
        v = _Math(fn, self.lanes, self.element)
        if by_library:
            result = _by_library(v, name, operands)
        elif name in ("sin", "cos"):
            result = self._with_large_arguments(v, name, operands[0])
        else:
            result = (RESTRICTED.get(name) or _POLYNOMIALS[name])(v, *operands)
        fn.ret(type_, result)
        return symbol

    def _with_large_arguments(self, v: _Math, name: str, x: str) -> str:
        """sin and cos: the C library if any lane is beyond the reduction's range, inf or NaN (rare)."""
        library = VectorMath(self.module, self.lanes, self.element, exact=True)
        result = _POLYNOMIALS[name](v, x)
        large = v.compare("ugt", v.unary("fabs", x), v.constant(v.tables.trig_limit))
        with v.fn.if_(v.any(large), [(v.type, result)], unlikely=True) as branch:
            branch.give(library.call(v.fn, name, x))
        return branch.results[0]
