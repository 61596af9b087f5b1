"""Constants of the vector math functions: formats, argument reduction, minimax polynomials.

Each polynomial minimises the largest *relative* error of the function it serves. The coefficients were fitted by the
Remez exchange algorithm in 260-bit arithmetic (mpmath), rounding one coefficient after the other to the format, from
the lowest power up, and fitting the remaining ones again after each. ``|r| <= ln2/2``, ``sqrt(1/2) <= m <= sqrt(2)``
and ``|r| <= pi/4`` are the intervals that the reductions leave (each a little wider). A number 2^-n at a table is the
polynomial's own relative error; rounding adds to it (tests/test_vecmath.py measures the sum).
"""

from __future__ import annotations

import math

from fusegraph.records import dataclass

__all__ = ["DOUBLE", "EXP2_DOUBLE", "FLOAT", "LOG2_DOUBLE", "LOG2_E", "Tables"]


@dataclass(frozen=True)
class Tables:
    """What the functions need to know about one floating format; coefficients stand from the lowest power up."""

    element: str
    integer: str
    mantissa_bits: int  # stored ones
    one_bits: int  # of 1.0
    sqrt_half_bits: int  # of sqrt(1/2)
    smallest_normal: float
    magic: float  # 1.5 * 2^mantissa_bits: adding it rounds to an integer, which then stands in the low bits
    ln2: tuple[float, float]  # sums of which every part is rounded to the format
    pi_2: tuple[float, float, float]
    trig_limit: float  # above it the n of x = n pi/2 + r has too many bits for exact steps
    exp_range: tuple[float, float]  # exp is 0 below, inf above
    expm1_low: float  # expm1 rounds to -1 below
    tiny: float  # expm1(x) and log1p(x) round to x below
    tanh_one: float  # tanh rounds to 1 above
    erf_split: float
    erf_one: float
    expm1: tuple[float, ...]  # (expm1(r) - r) / r^2
    erf_small: tuple[float, ...]  # (erf(x) - x) / x in x^2, up to erf_split
    erf_large: tuple[float, ...]  # log(1 - erf(x)), from erf_split to erf_one
    erfc_scaled: tuple[float, ...]  # exp(x^2) (1 - erf(x)), from erf_split to erf_one; float only
    sin: tuple[float, ...]  # (sin(r) - r) / r^3 in r^2
    cos: tuple[float, ...]  # (cos(r) - 1 + r^2/2) / r^4 in r^2
    log: tuple[float, ...]  # float: (log1p(f) - f + f^2/2) / f^3; double: (log(m) - 2s) / s^3 in s^2, s = (m-1)/(m+1)


FLOAT = Tables(
    element="float",
    integer="i32",
    mantissa_bits=23,
    one_bits=0x3F800000,
    sqrt_half_bits=0x3F3504F3,
    smallest_normal=2.0**-126,
    magic=1.5 * 2.0**23,
    ln2=(0.6931472, -1.9046542e-09),
    pi_2=(1.5707964, -4.371139e-08, -1.7151245e-15),
    trig_limit=2.0**17,
    exp_range=(-104.0, 89.0),
    expm1_low=-18.0,
    tiny=2.0**-25,
    tanh_one=10.0,
    erf_split=1.0,
    erf_one=4.0,
    expm1=(0.49999997, 0.16666539, 0.041667745, 0.008367057, 0.0013838712),  # 2^-26.0
    erf_small=(
        0.12837917, -0.37612626, 0.11283579, -0.026853347, 0.0051871622, -0.0007997853, 7.8069032e-05,
    ),  # 2^-29.4
    erf_large=(-0.0026103067, -1.1176511, -0.65420073, -0.08882507, 0.014839829, -0.0011582036),  # 2^-25.9
    erfc_scaled=(
        0.9863251, -1.0491012, 0.794279, -0.43341237, 0.16518042, -0.04136925, 0.0060765725, -0.00039464567,
    ),  # 2^-26.1
    sin=(-0.16666654, 0.008332094, -0.00019505351),  # 2^-27.7
    cos=(0.04166664, -0.001388713, 2.4412086e-05),  # 2^-32.6
    log=(
        0.33333313, -0.25000167, 0.20002222, -0.16659373, 0.14209639, -0.12555397, 0.12084316, -0.10839734,
        0.053877924,
    ),  # 2^-25.5
)  # fmt: skip

DOUBLE = Tables(
    element="double",
    integer="i64",
    mantissa_bits=52,
    one_bits=0x3FF << 52,
    sqrt_half_bits=0x3FE6A09E667F3BCD,
    smallest_normal=2.0**-1022,
    magic=1.5 * 2.0**52,
    ln2=(0.6931471805599453, 2.3190468138462996e-17),
    pi_2=(1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33),
    trig_limit=2.0**17,
    exp_range=(-746.0, 710.0),
    expm1_low=-38.0,
    tiny=2.0**-54,
    tanh_one=20.0,
    erf_split=0.83,
    erf_one=5.95,
    expm1=(
        0.5, 0.16666666666666677, 0.0416666666666667, 0.008333333333321716, 0.001388888888887174,
        0.00019841269901402664, 2.4801587423631173e-05, 2.7557211958012776e-06, 2.755709573228404e-07,
        2.5125430280969997e-08, 2.1001256143574025e-09,
    ),  # 2^-57.5
    erf_small=(
        0.1283791670955126, -0.3761263890318416, 0.11283791670977152, -0.02686617064979369,
        0.0052239776761096686, -0.0008548330235754835, 0.00012055459796926088, -1.4928855529288367e-05,
        1.651379958200156e-06, -1.6875279661786684e-07, 1.751845467571083e-08, -1.7167344411541135e-09,
    ),  # 2^-56.3
    erf_large=(
        1.1291070851551047e-08, -1.1283793258916281, -0.6366187223060016, -0.10277694624085008,
        0.019141052339362488, 0.00018189000778680268, -0.0016503921183071925, 0.0005291487917783853,
        3.946778937332086e-05, -0.0001213330795081054, 6.990242367949494e-05, -2.6301406617438346e-05,
        7.422505950770346e-06, -1.6303008649530224e-06, 2.798583047417584e-07, -3.7002413208843516e-08,
        3.6475840421187695e-09, -2.527029852006852e-10, 1.0979613830255023e-11, -2.2505726080425148e-13,
    ),  # 2^-56.2
    erfc_scaled=(),
    sin=(
        -0.1666666666666663, 0.00833333333332184, -0.00019841269829358544, 2.7557313538524195e-06,
        -2.50507343912499e-08, 1.5895433418780147e-10,
    ),  # 2^-57.9
    cos=(
        0.041666666666666595, -0.0013888888888873338, 2.480158728899747e-05, -2.755731421529319e-07,
        2.0875705113836164e-09, -1.1358732700337513e-11,
    ),  # 2^-63.9
    log=(
        0.6666666666666734, 0.39999999999416413, 0.28571428742112537, 0.22222198593738623,
        0.1818356355408563, 0.1531406430912989, 0.1479586167191806,
    ),  # 2^-59.5
)  # fmt: skip

# What pow for float needs of double arithmetic.
# log2(m) / s in s^2, s = (m-1)/(m+1); 2^-37.8
LOG2_DOUBLE = (
    2.885390081790093, 0.9617966733330616, 0.5770835867026957, 0.4116726101566739, 0.3407322046935184,
)  # fmt: skip
# (2^r - 1) / r on |r| <= 1/2; error of 2^r 2^-28.9
EXP2_DOUBLE = (
    0.6931472028555891, 0.24022647913965856, 0.05550332471033302,
    0.009618437314916031, 0.0013398874302198824, 0.00015353373362219004,
)  # fmt: skip
LOG2_E = 1.0 / math.log(2.0)
