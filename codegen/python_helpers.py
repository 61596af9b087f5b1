"""Functions that generated Python modules call, as source: each is put once at the top of a module that needs it.

They are written so that they give the same element, of the same type, run by Python and compiled by numba.
"""

from __future__ import annotations

from collections.abc import Iterable

from fusegraph.dtypes import SUPPORTED, DType
from fusegraph.ir.primitives.sources import PHILOX_MULTIPLIER, PHILOX_ROUNDS, PHILOX_WEYL

_TEMPLATES = {
    "clamp": '''
def clamp(position, extent):
    """The index `position`, kept inside of an axis with `extent` elements."""
    return max(min(np.int64(position), extent - 1), 0)
''',
    "relu": '''
def {name}(x):
    """x where x > 0, else 0; a NaN stays."""
    return x if {kept} else np.{dtype}(0)
''',
    "sigmoid": '''
def {name}(x):
    """1 / (1 + exp(-x)), without overflow."""
    one = np.{dtype}(1)
    small = np.exp(-np.abs(x))
    return one / (one + small) if x >= 0 else small / (one + small)
''',
    "floordiv": '''
def {name}(a, b):
    """a // b, rounded down; 0 where b is 0."""
    if b == 0:
        return np.{dtype}(0)
    return np.{dtype}({quotient})
''',
    "mod": '''
def {name}(a, b):
    """a % b, with the sign of b; 0 where b is 0."""
    return np.{dtype}(a % b) if {divisible} else np.{dtype}(0)
''',
    "shift_left": '''
def {name}(a, b):
    """a << b; 0 where every bit is shifted out."""
    return np.{dtype}(a << b) if {in_range} else np.{dtype}(0)
''',
    "shift_right": '''
def {name}(a, b):
    """a >> b; only the sign is left where every bit is shifted out."""
    return np.{dtype}(a >> b) if {in_range} else np.{dtype}({shifted_out})
''',
    "philox": f'''
def philox(key, counter, element):
    """32 random bits: word 0 of Philox-2x32-{PHILOX_ROUNDS} of (element, counter) under `key`."""
    mask = np.uint64(0xFFFFFFFF)
    low = np.uint64(element) & mask
    high = np.uint64(counter)
    round_key = np.uint64(key)
    for _ in range({PHILOX_ROUNDS}):
        product = low * np.uint64(0x{PHILOX_MULTIPLIER:X})
        low, high = (product >> np.uint64(32)) ^ round_key ^ high, product & mask
        round_key = (round_key + np.uint64(0x{PHILOX_WEYL:X})) & mask
    return np.uint32(low)
''',
}


def helper_name(kind: str, dtype: DType | None = None) -> str:
    """The helper's name for elements of `dtype`: the plain name for float32, or where the type does not matter."""
    return kind if dtype is None or dtype.name == "float32" else f"{kind}_{dtype.name}"


def _fields(dtype: DType) -> dict[str, str]:
    signed, bits = dtype.kind == "i", dtype.itemsize * 8
    return {
        "dtype": dtype.name,
        "kept": "x > 0 or np.isnan(x)" if dtype.kind == "f" else "x > 0",
        "quotient": "-a if b == -1 else a // b" if signed else "a // b",
        "divisible": "b != 0 and b != -1" if signed else "b != 0",
        "in_range": f"0 <= b < {bits}" if signed else f"b < {bits}",
        "shifted_out": "-1 if a < 0 else 0" if signed else "0",
    }


def helper_source(kind: str, dtype: DType | None = None) -> str:
    """The source of one helper."""
    template = _TEMPLATES[kind].strip("\n")
    return template.format(name=helper_name(kind, dtype), **_fields(dtype)) if dtype is not None else template


Helper = tuple[str, DType | None]


def helpers_source(helpers: Iterable[Helper]) -> list[str]:
    """Every helper once, sorted by name."""
    named = {helper_name(kind, dtype): (kind, dtype) for kind, dtype in helpers}
    return [helper_source(*named[name]) for name in sorted(named)]


HELPER_NAMES = frozenset(_TEMPLATES) | {f"{kind}_{dtype}" for kind in _TEMPLATES for dtype in SUPPORTED}
