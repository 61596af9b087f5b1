"""Vector exp, log, tanh, erf, sin, pow and the like as always-inline LLVM functions, for any number of lanes.

float32 functions are polynomials with an error of at most 2.5 ulp over the whole range, without flags that would
assume away NaN, inf or denormals: results underflow gradually, and special values behave as in numpy. float64
functions, and float32 ones with ``exact=True``, call the C math library lane by lane.

Method. Arguments are reduced by Cody and Waite's scheme: ``r = x - n*C`` with C (ln 2, pi/2) split into a sum of floats
and every step a fused multiply-add, so that the leading difference is exact. On the reduced interval a polynomial is
evaluated that minimises the largest *relative* error of the function. The coefficients were fitted by the Remez
exchange algorithm in 200-bit arithmetic (mpmath), rounding one coefficient after the other to float, from the lowest
power up, and fitting the remaining ones again after each. The comment of each table gives function, interval and
relative error. ``pow`` works in double inside (log2 by atanh, exp2), so it is nearly correctly rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fusegraph.codegen.cpu.irtext import FunctionBuilder, Module
from fusegraph.codegen.cpu.irvector import VectorOps

__all__ = ["FUNCTIONS", "VectorMath"]

# (expm1(r) - r) / r^2 on |r| <= ln2/2; error of expm1 2^-26.0
_EXPM1 = (0.49999997, 0.16666539, 0.041667745, 0.008367057, 0.0013838712)
# (log1p(f) - f + f^2/2) / f^3 on sqrt(1/2) <= 1+f <= sqrt(2); error of log1p 2^-25.5
_LOG1P = (
    0.33333313, -0.25000167, 0.20002222, -0.16659373, 0.14209639,
    -0.12555397, 0.12084316, -0.10839734, 0.053877924,
)  # fmt: skip
# (tanh(x) - x) / x^3 in x^2 on |x| <= 0.61; error 2^-28.1
_TANH = (-0.33333293, 0.13331753, -0.053767525, 0.020735987, -0.0058201975)
_TANH_SPLIT = 0.6
# (erf(x) - x) / x in x^2 on |x| <= 0.85; error 2^-27.1
_ERF_SMALL = (0.12837917, -0.3761259, 0.11282865, -0.026807288, 0.0050577037, -0.00063485187)
# log(1 - erf(x)) on 0.8 <= x <= 3.95; error of erf 2^-28.5
_ERF_LARGE = (-5.6850615e-05, -1.1282713, -0.63614213, -0.10487638, 0.022697369, -0.003164887, 0.00020869868)
_ERF_SPLIT = 0.83
_ERF_ONE = 4.0  # erf rounds to 1 from 3.92 on
# (sin(r) - r) / r^3 and (cos(r) - 1 + r^2/2) / r^4 in r^2 on |r| <= pi/4 + 0.015; errors 2^-27.7 and 2^-32.6
_SIN = (-0.16666654, 0.008332094, -0.00019505351)
_COS = (0.04166664, -0.001388713, 2.4412086e-05)
# log2(m) / s in s^2, s = (m-1)/(m+1), sqrt(1/2) <= m <= sqrt(2), double; error 2^-37.8
_LOG2_ATANH = (
    2.885390081790093, 0.9617966733330616, 0.5770835867026957, 0.4116726101566739, 0.3407322046935184,
)  # fmt: skip
# (2^r - 1) / r on |r| <= 1/2, double; error of 2^r 2^-28.9
_EXP2 = (
    0.6931472028555891, 0.24022647913965856, 0.05550332471033302,
    0.009618437314916031, 0.0013398874302198824, 0.00015353373362219004,
)  # fmt: skip

_ROUND = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer, which stands in the low bits
_ROUND_DOUBLE = 6755399441055744.0  # 1.5 * 2^52
_LOG2_E = 1.442695
_LN2 = (0.6931472, -1.9046542e-09)
_PI_2 = (1.5707964, -4.371139e-08, -1.7151245e-15)
_ONE_BITS = 0x3F800000
_HALF_BITS = 0x3F000000
_SQRT_HALF_BITS = 0x3F3504F3
_SIGN_BITS = -0x80000000
_TRIG_LIMIT = 131072.0  # above it the integer n of the reduction has too many bits for exact steps


# reduction and small pieces


def _polynomial(v: VectorOps, x: str, coefficients: Sequence[float]) -> str:
    """sum(c[k] * x**k) by Estrin's scheme: pairs, then pairs of pairs.

    The chain of dependent operations is a third as long as Horner's; on out-of-order cores that counts for more than
    the few extra multiplications (log 7 % faster on Zen 3).
    """
    terms = [v.constant(c) for c in coefficients]
    power = x
    while len(terms) > 1:
        pairs = [v.fma(high, power, low) for low, high in zip(terms[::2], terms[1::2], strict=False)]
        terms = pairs + terms[len(pairs) * 2 :]
        if len(terms) > 1:
            power = v.mul(power, power)
    return terms[0]


def _bits(v: VectorOps, x: str) -> str:
    return v.bitcast(x, "i32")


def _from_bits(v: VectorOps, bits: str) -> str:
    return v.of("i32").bitcast(bits, "float")


def _sign_bits(v: VectorOps, x: str) -> str:
    return v.of("i32").binary("and", _bits(v, x), v.of("i32").constant(_SIGN_BITS))


def _flip_sign(v: VectorOps, x: str, sign_bits: str) -> str:
    return _from_bits(v, v.of("i32").binary("xor", _bits(v, x), sign_bits))


def _power_of_two(v: VectorOps, exponent: str, bias_bits: int = _ONE_BITS) -> str:
    """2**exponent from the low bits of an integer vector (times the power of two with the bits ``bias_bits``)."""
    i = v.of("i32")
    return _from_bits(v, i.add(i.binary("shl", exponent, i.constant(23)), i.constant(bias_bits)))


def _reduce_exp(v: VectorOps, x: str) -> tuple[str, str]:
    """x = n ln2 + r with |r| <= ln2/2: gives (integer vector with n in its low bits, expm1(r))."""
    shifted = v.fma(x, v.constant(_LOG2_E), v.constant(_ROUND))
    n = v.sub(shifted, v.constant(_ROUND))
    r = v.fma(n, v.constant(-_LN2[0]), x)
    r = v.fma(n, v.constant(-_LN2[1]), r)
    return _bits(v, shifted), v.fma(_polynomial(v, r, _EXPM1), v.mul(r, r), r)


def _exp_scaled(v: VectorOps, x: str) -> str:
    """exp(x) for -104 <= x <= 89 or NaN; 2**n is applied in two exact steps, so that results overflow and underflow."""
    i = v.of("i32")
    n, expm1_r = _reduce_exp(v, x)
    half = i.binary("lshr", n, i.constant(1))
    scale = _power_of_two(v, half)
    return v.mul(v.fma(expm1_r, scale, scale), _power_of_two(v, i.sub(n, half)))


def _copy_sign_of(v: VectorOps, magnitude: str, x: str) -> str:
    return _from_bits(v, v.of("i32").binary("or", _bits(v, magnitude), _sign_bits(v, x)))


# float32 functions


def _exp(v: VectorOps, x: str) -> str:
    return _exp_scaled(v, v.minimum_constant(v.maximum_constant(x, -104.0), 89.0))


def _expm1(v: VectorOps, x: str) -> str:
    """2 * (2**(n-1) expm1(r) + (2**(n-1) - 1/2)), which also reaches the last binade before overflow."""
    n, expm1_r = _reduce_exp(v, v.minimum_constant(v.maximum_constant(x, -18.0), 89.0))
    scale = _power_of_two(v, n, _HALF_BITS)
    half = v.fma(scale, expm1_r, v.sub(scale, v.constant(0.5)))
    tiny = v.compare("olt", v.unary("fabs", x), v.constant(2.0**-25))
    return v.select(tiny, x, v.add(half, half))


def _sigmoid(v: VectorOps, x: str) -> str:
    """With e = exp(-|x|): 1/(1+e) for x >= 0, e/(1+e) below, where results underflow gradually."""
    magnitude = v.unary("fabs", x)
    e = _exp_scaled(v, v.maximum_constant(v.neg(magnitude), -104.0))
    i = v.of("i32")
    numerator = v.select(i.compare("slt", _bits(v, x), i.constant(0)), e, v.constant(1.0))
    return v.div(numerator, v.add(e, v.constant(1.0)))


def _tanh(v: VectorOps, x: str) -> str:
    """x + x^3 p(x^2) near zero, 1 - 2 / (exp(2|x|) + 1) beyond."""
    magnitude = v.minimum_constant(v.unary("fabs", x), 10.0)
    square = v.mul(magnitude, magnitude)
    small = v.fma(v.mul(_polynomial(v, square, _TANH), square), magnitude, magnitude)
    n, expm1_r = _reduce_exp(v, v.add(magnitude, magnitude))
    scale = _power_of_two(v, n)
    denominator = v.fma(scale, expm1_r, v.add(scale, v.constant(1.0)))
    large = v.sub(v.constant(1.0), v.div(v.constant(2.0), denominator))
    near = v.compare("olt", magnitude, v.constant(_TANH_SPLIT))
    return _copy_sign_of(v, v.select(near, small, large), x)


def _log_of_parts(v: VectorOps, exponent: str, f: str) -> str:
    """exponent * ln2 + log1p(f) for sqrt(1/2) <= 1 + f <= sqrt(2)."""
    square = v.mul(f, f)
    tail = v.fma(square, v.constant(-0.5), v.mul(exponent, v.constant(_LN2[1])))
    tail = v.fma(_polynomial(v, f, _LOG1P), v.mul(square, f), tail)
    return v.fma(exponent, v.constant(_LN2[0]), v.add(f, tail))


def _split_exponent(v: VectorOps, x: str) -> tuple[str, str]:
    """The integer e and the bits of m with x = m * 2**e, sqrt(1/2) <= m < sqrt(2), for normal x > 0."""
    i = v.of("i32")
    e = i.binary("ashr", i.sub(_bits(v, x), i.constant(_SQRT_HALF_BITS)), i.constant(23))
    return e, i.sub(_bits(v, x), i.binary("shl", e, i.constant(23)))


def _log_specials(v: VectorOps, result: str, x: str, pole: float) -> str:
    """-inf where x is ``pole``, NaN below it, and x itself where it is inf or NaN."""
    result = v.select(v.compare("olt", x, v.constant(math.inf)), result, x)
    at_pole = v.compare("oeq", x, v.constant(pole))
    outside = v.select(at_pole, v.constant(-math.inf), v.constant(math.nan))
    return v.select(v.compare("ole", x, v.constant(pole)), outside, result)


def _log(v: VectorOps, x: str) -> str:
    denormal = v.compare("olt", x, v.constant(2.0**-126))
    normal = v.select(denormal, v.mul(x, v.constant(2.0**23)), x)
    e, mantissa_bits = _split_exponent(v, normal)
    f = v.sub(_from_bits(v, mantissa_bits), v.constant(1.0))
    exponent = v.of("i32").convert("sitofp", e, "float")
    exponent = v.sub(exponent, v.select(denormal, v.constant(23.0), v.constant(0.0)))
    return _log_specials(v, _log_of_parts(v, exponent, f), x, 0.0)


def _log1p(v: VectorOps, x: str) -> str:
    """1 + x only chooses the exponent; f = (1 + x) 2**-e - 1 is computed from x by one rounding (exact for e = 0)."""
    i = v.of("i32")
    e, _ = _split_exponent(v, v.add(x, v.constant(1.0)))
    # 4 * 2**-e, since 2**-e itself would underflow for the largest x
    scale = _from_bits(v, i.sub(i.constant(_ONE_BITS + (2 << 23)), i.binary("shl", e, i.constant(23))))
    f = v.fma(v.mul(x, v.constant(0.25)), scale, v.fma(scale, v.constant(0.25), v.constant(-1.0)))
    result = _log_of_parts(v, i.convert("sitofp", e, "float"), f)
    tiny = v.compare("olt", v.unary("fabs", x), v.constant(2.0**-25))
    return _log_specials(v, v.select(tiny, x, result), x, -1.0)


def _erf(v: VectorOps, x: str) -> str:
    """x + x p(x^2) near zero, 1 - exp(q(|x|)) beyond."""
    magnitude = v.minimum_constant(v.unary("fabs", x), _ERF_ONE)
    small = v.fma(_polynomial(v, v.mul(magnitude, magnitude), _ERF_SMALL), magnitude, magnitude)
    n, expm1_r = _reduce_exp(v, _polynomial(v, magnitude, _ERF_LARGE))
    scale = _power_of_two(v, n)
    large = v.fma(v.neg(scale), expm1_r, v.sub(v.constant(1.0), scale))
    near = v.compare("olt", magnitude, v.constant(_ERF_SPLIT))
    return _copy_sign_of(v, v.select(near, small, large), x)


def _sin_cos_quadrant(v: VectorOps, magnitude: str) -> tuple[str, str, str]:
    """|x| = n pi/2 + r: gives (integer vector with n in its low bits, sin(r), cos(r))."""
    shifted = v.fma(magnitude, v.constant(2.0 / math.pi), v.constant(_ROUND))
    n = v.sub(shifted, v.constant(_ROUND))
    r = magnitude
    for part in _PI_2:
        r = v.fma(n, v.constant(-part), r)
    square = v.mul(r, r)
    sine = v.fma(v.mul(_polynomial(v, square, _SIN), square), r, r)
    start = v.fma(square, v.constant(-0.5), v.constant(1.0))
    cosine = v.fma(v.mul(square, square), _polynomial(v, square, _COS), start)
    return _bits(v, shifted), sine, cosine


def _sin(v: VectorOps, x: str) -> str:
    i = v.of("i32")
    n, sine, cosine = _sin_cos_quadrant(v, v.unary("fabs", x))
    odd = i.compare("ne", i.binary("and", n, i.constant(1)), i.constant(0))
    sign = i.binary("xor", i.binary("shl", i.binary("lshr", n, i.constant(1)), i.constant(31)), _sign_bits(v, x))
    return _flip_sign(v, v.select(odd, cosine, sine), sign)


def _cos(v: VectorOps, x: str) -> str:
    i = v.of("i32")
    n, sine, cosine = _sin_cos_quadrant(v, v.unary("fabs", x))
    odd = i.compare("ne", i.binary("and", n, i.constant(1)), i.constant(0))
    quadrant = i.binary("lshr", i.add(n, i.constant(1)), i.constant(1))
    return _flip_sign(v, v.select(odd, sine, cosine), i.binary("shl", quadrant, i.constant(31)))


def _log2_double(v: VectorOps, x: str) -> str:
    """log2 of positive floats given as doubles (all of them normal); 0 gives -inf, inf gives inf."""
    d, k = v.of("double"), v.of("i64")
    bits = d.bitcast(x, "i64")
    e = k.binary("ashr", k.sub(bits, k.constant(0x3FE6A09E667F3BCD)), k.constant(52))
    m = k.bitcast(k.sub(bits, k.binary("shl", e, k.constant(52))), "double")
    s = d.div(d.sub(m, d.constant(1.0)), d.add(m, d.constant(1.0)))
    exponent = k.convert("trunc", e, "i32")
    exponent = v.of("i32").convert("sitofp", exponent, "double")
    result = d.fma(_polynomial(d, d.mul(s, s), _LOG2_ATANH), s, exponent)
    result = d.select(d.compare("oeq", x, d.constant(0.0)), d.constant(-math.inf), result)
    return d.select(d.compare("olt", x, d.constant(math.inf)), result, x)


def _exp2_double(v: VectorOps, z: str) -> str:
    """2**z in double for any z; the range is cut where a float has long become 0 or inf."""
    d, k = v.of("double"), v.of("i64")
    z = d.minimum_constant(d.maximum_constant(z, -300.0), 300.0)
    shifted = d.add(z, d.constant(_ROUND_DOUBLE))
    r = d.sub(z, d.sub(shifted, d.constant(_ROUND_DOUBLE)))
    scale_bits = k.add(k.binary("shl", d.bitcast(shifted, "i64"), k.constant(52)), k.constant(0x3FF0000000000000))
    return d.mul(d.fma(_polynomial(d, r, _EXP2), r, d.constant(1.0)), k.bitcast(scale_bits, "double"))


def _pow(v: VectorOps, x: str, y: str) -> str:
    """2**(y log2|x|) in double, then the sign and the special cases of C's pow (which numpy follows)."""
    d, one = v.of("double"), v.constant(1.0)
    # y = +-inf becomes finite, so that y * log2(1) is 0; |log2 x| >= 2**-24 otherwise, which is still far enough
    bounded = v.minimum_constant(v.maximum_constant(y, -1e30), 1e30)
    log2_x = _log2_double(v, v.convert("fpext", v.unary("fabs", x), "double"))
    magnitude = d.convert("fptrunc", _exp2_double(v, d.mul(v.convert("fpext", bounded, "double"), log2_x)), "float")
    half = v.mul(y, v.constant(0.5))
    whole = v.compare("oeq", v.unary("rint", y), y)
    even = v.compare("oeq", v.unary("rint", half), half)
    b = v.of("i1")
    negative = b.binary("and", v.compare("olt", x, v.constant(0.0)), v.compare("ogt", x, v.constant(-math.inf)))
    undefined = b.binary("and", negative, b.binary("xor", whole, b.constant(True)))
    odd = b.binary("xor", whole, b.binary("and", even, whole))
    i = v.of("i32")
    result = _flip_sign(v, magnitude, i.select(odd, _sign_bits(v, x), i.constant(0)))
    result = v.select(undefined, v.constant(math.nan), result)
    unit = b.binary("or", v.compare("oeq", y, v.constant(0.0)), v.compare("oeq", x, one))
    return v.select(unit, one, result)


_POLYNOMIALS: dict[str, Callable[..., str]] = {
    "exp": _exp, "expm1": _expm1, "log": _log, "log1p": _log1p, "tanh": _tanh, "sigmoid": _sigmoid, "erf": _erf,
    "sin": _sin, "cos": _cos, "pow": _pow,
}  # fmt: skip
_TRIGONOMETRIC = ("sin", "cos")

FUNCTIONS = ("exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "sin", "cos", "pow", "sqrt", "rsqrt")
"""Names that VectorMath.call takes; pow has two operands, the others one."""


class VectorMath:
    """Math functions on ``lanes`` elements of type ``element`` ("float" or "double"), defined in ``module`` as used.

    ``exact=True`` calls the C math library lane by lane also for float (for comparisons with the reference).
    """

    def __init__(self, module: Module, lanes: int, element: str, exact: bool = False) -> None:
        if element not in ("float", "double"):
            raise ValueError(f"VectorMath: the element type must be float or double, not {element!r}")
        self.module = module
        self.lanes = lanes
        self.element = element
        self.exact = exact or element == "double"

    def call(self, builder: FunctionBuilder, name: str, *operands: str) -> str:
        """Emit ``name(*operands)`` into ``builder`` and give the result's SSA name.

        ``name`` is one of :data:`FUNCTIONS`; operands are vectors of this lane count and element type.
        """
        if name not in FUNCTIONS:
            raise ValueError(f"VectorMath has no function {name!r}; it has {', '.join(FUNCTIONS)}")
        v = VectorOps(builder, self.lanes, self.element)
        if name == "sqrt":
            return v.unary("sqrt", operands[0])
        if name == "rsqrt":
            return v.div(v.constant(1.0), v.unary("sqrt", operands[0]))
        symbol = self._define(name, len(operands))
        return builder.call(v.type, symbol, [(v.type, operand) for operand in operands])

    def _define(self, name: str, arity: int) -> str:
        """Define the vector function if the module does not have it yet; gives its symbol."""
        symbol = f"fg_{name}{'_libm' if self.exact else ''}_{self.lanes}x{self.element}"
        if self.module.has_function(symbol):
            return symbol
        params = ["x", "y"][:arity]
        probe = VectorOps(FunctionBuilder("", []), self.lanes, self.element)
        attrs = "noinline" if self.exact and self.lanes > 1 else "alwaysinline"
        fn = self.module.function(symbol, [f"{probe.type} %{p}" for p in params], attrs=attrs, returns=probe.type)
        v = VectorOps(fn, self.lanes, self.element)
        operands = [f"%{p}" for p in params]
        if self.exact:
            result = _by_library(v, name, operands)
        elif name in _TRIGONOMETRIC:
            result = self._with_large_arguments(v, name, operands[0])
        else:
            result = _POLYNOMIALS[name](v, *operands)
        fn.ret(v.type, result)
        return symbol

    def _with_large_arguments(self, v: VectorOps, name: str, x: str) -> str:
        """sin and cos: the C library if any lane is beyond the reduction's range, inf or NaN (rare)."""
        library = VectorMath(self.module, self.lanes, self.element, exact=True)
        result = _POLYNOMIALS[name](v, x)
        large = v.compare("ugt", v.unary("fabs", x), v.constant(_TRIG_LIMIT))
        with v.fn.if_(v.any(large), [(v.type, result)], unlikely=True) as branch:
            branch.give(library.call(v.fn, name, x))
        return branch.results[0]


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
