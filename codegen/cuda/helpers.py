"""Device functions that emitted kernels call, as source: each is put once at the top of a module that needs it.

Reductions over a team of threads give every thread the result. Which values meet is fixed: every run gives the same result.
"""

from __future__ import annotations

from collections.abc import Iterable

from fusegraph.codegen.cuda.contract_helpers import is_tile_helper, tile_helper_source
from fusegraph.dtypes import SUPPORTED, DType
from fusegraph.ir.primitives.sources import PHILOX_MULTIPLIER, PHILOX_ROUNDS, PHILOX_WEYL

Helper = tuple[str, DType | None]

_SCALAR = {
    "clamp": '''
def clamp(position, extent):
    """The index `position`, kept inside of an axis with `extent` elements."""
    return uint32(max(min(int64(position), int64(extent - 1)), int64(0)))
''',
    "relu": '''
def {name}(x):
    """x where x > 0, else 0; a NaN stays."""
    return {zero} if x <= {zero} else x
''',
    "sigmoid": '''
def {name}(x):
    """1 / (1 + exp(-x)), without overflow."""
    small = math.exp(-abs(x))
    return ({dtype}(1) if x >= {zero} else small) / ({dtype}(1) + small)
''',
    "fast_sigmoid": '''
def {name}(x):
    """1 / (1 + exp(-x)), without overflow; divides by the hardware."""
    small = math.exp(-abs(x))
    return div_full({dtype}(1) if x >= {zero} else small, {dtype}(1) + small)
''',
    "round": '''
def {name}(x):
    """The nearest whole number; of two, the even one."""
    return libdevice.{rint}(x)
''',
    "sign": '''
def {name}(x):
    """-1, 0 or 1; a NaN stays."""
    if x == {zero}:
        return {zero}
    return {one} if x > {zero} else ({minus_one} if x < {zero} else x)
''',
    "maximum": '''
def {name}(a, b):
    """The larger of two; a NaN wins."""
    return a if {a_wins_max} else b
''',
    "minimum": '''
def {name}(a, b):
    """The smaller of two; a NaN wins."""
    return a if {a_wins_min} else b
''',
    "floordiv": '''
def {name}(a, b):
    """a // b, rounded down; 0 where b is 0."""
    return {dtype}(0) if b == 0 else {quotient}
''',
    "mod": '''
def {name}(a, b):
    """a % b, with the sign of b; 0 where b is 0."""
    return {dtype}(a % b) if {divisible} else {dtype}(0)
''',
    "shift_left": '''
def {name}(a, b):
    """a << b; 0 where every bit is shifted out."""
    return {dtype}(a << b) if {in_range} else {dtype}(0)
''',
    "shift_right": '''
def {name}(a, b):
    """a >> b; only the sign is left where every bit is shifted out."""
    return {dtype}(a >> b) if {in_range} else {shifted_out}
''',
    "philox": f'''
def philox(key, counter, element):
    """32 random bits: word 0 of Philox-2x32-{PHILOX_ROUNDS} of (element, counter) under `key`."""
    low = uint32(element)
    high = uint32(counter)
    round_key = uint32(key)
    for _ in range({PHILOX_ROUNDS}):
        product = uint64(low) * uint64(0x{PHILOX_MULTIPLIER:X})
        low = uint32(uint32(product >> uint64(32)) ^ round_key ^ high)
        high = uint32(product)
        round_key = uint32(round_key + uint32(0x{PHILOX_WEYL:X}))
    return low
''',
    # -- reductions ---------------------------------------------------------------------------------------------------
    "sum": '''
def {name}(a, b):
    """a + b."""
    return {typed_sum}
''',
    "prod": '''
def {name}(a, b):
    """a * b."""
    return {typed_product}
''',
    "larger": '''
def {name}(value, best, place, best_place):
    """Whether (value, place) comes before (best, best_place) as the largest: a NaN wins, then the first place."""
    same = (value == best) | ((value != value) & (best != best))
    return (same & (place < best_place)) | ((not same) & (best == best) & (not value < best))
''',
    "smaller": '''
def {name}(value, best, place, best_place):
    """Whether (value, place) comes before (best, best_place) as the smallest: a NaN wins, then the first place."""
    same = (value == best) | ((value != value) & (best != best))
    return (same & (place < best_place)) | ((not same) & (best == best) & (not value > best))
''',
}

_TEAM = '''
def {name}(value):
    """The {noun} of `value` over teams of {width} threads, in each of them."""
    for step in {steps}:
        value = {combine}(value, {shuffled})
    return value
'''

_BLOCK = '''
def {name}(value, shared, thread):
    """The {noun} of `value` over a block of {width} threads, in each of them. `shared`: one element a warp."""
    value = {warp}(value)
    if thread % 32 == 0:
        shared[thread // 32] = {stored}
    cuda.syncthreads()
    return {team}({loaded})
'''

_TEAM_PLACE = '''
def {name}(value, place):
    """Where the {noun} `value` is, among teams of {width} threads, in each of them (and that value)."""
    for step in {steps}:
        other = {shuffled}
        other_place = cuda.shfl_xor_sync(0xFFFFFFFF, place, step)
        better = {better}(other, value, other_place, place)
        value = other if better else value
        place = other_place if better else place
    return value, place
'''

_BLOCK_PLACE = '''
def {name}(value, place, shared, shared_places, thread):
    """Where the {noun} `value` is in a block of {width} threads, in each of them (and that value)."""
    value, place = {warp}(value, place)
    if thread % 32 == 0:
        shared[thread // 32] = {stored}
        shared_places[thread // 32] = place
    cuda.syncthreads()
    return {team}({loaded}, shared_places[thread % {warps}])
'''

_NOUNS = {
    "sum": "sum",
    "prod": "product",
    "max": "maximum",
    "min": "minimum",
    "argmax": "largest",
    "argmin": "smallest",
}
_PAIR = {"sum": "sum", "prod": "prod", "max": "maximum", "min": "minimum", "argmax": "larger", "argmin": "smaller"}


def helper_name(kind: str, dtype: DType | None = None) -> str:
    """The helper's name for elements of `dtype`: without the type for float32, or where it does not matter."""
    name = {"sum": "add_up", "prod": "multiply_up"}.get(kind, kind)
    return name if dtype is None or dtype.name == "float32" else f"{name}_{dtype.name}"


def pair_helper(op: str, dtype: DType) -> Helper:
    """The helper that combines two values of a reduction."""
    return (_PAIR[op], dtype)


def team_helper(op: str, width: int) -> str:
    """The kind of the helper that reduces over teams of `width` threads: warp parts up to 32, whole blocks above."""
    return f"team_{op}_{width}"


def _fields(dtype: DType) -> dict[str, str]:
    name, signed, bits = dtype.name, dtype.kind == "i", dtype.itemsize * 8
    is_float = dtype.kind == "f"
    zero = f"{name}(0.0)" if is_float else f"{name}(0)"
    nan_wins = " or a != a" if is_float else ""
    plain = is_float or name == "int64"
    return {
        "dtype": name,
        "zero": zero,
        "rint": "rint" if name == "float64" else "rintf",
        "one": f"{name}(1)",
        "minus_one": f"{name}(-1)",
        "a_wins_max": f"a >= b{nan_wins}",
        "a_wins_min": f"a <= b{nan_wins}",
        "quotient": f"({name}(-a) if b == -1 else {name}(a // b))" if signed else f"{name}(a // b)",
        "divisible": "b != 0 and b != -1" if signed else "b != 0",
        "in_range": f"0 <= b < {bits}" if signed else f"b < {bits}",
        "shifted_out": f"({name}(-1) if a < 0 else {name}(0))" if signed else f"{name}(0)",
        "typed_sum": "a + b" if plain else ("a or b" if dtype.kind == "b" else f"{name}(a + b)"),
        "typed_product": "a * b" if plain else ("a and b" if dtype.kind == "b" else f"{name}(a * b)"),
    }


def _shuffled(dtype: DType) -> str:
    """The neighbour's `value`. The hardware shuffles 32 bits; smaller types travel as int32."""
    if dtype.name in ("float32", "float64", "int32", "int64"):
        return "cuda.shfl_xor_sync(0xFFFFFFFF, value, step)"
    moved = "cuda.shfl_xor_sync(0xFFFFFFFF, int32(value), step)"
    return f"{moved} != 0" if dtype.kind == "b" else f"{dtype.name}({moved})"


def _team_source(kind: str, dtype: DType) -> str:
    _, op, digits = kind.split("_")
    width = int(digits)
    place = op.startswith("arg")
    warps = max(width // 32, 1)
    fields = {
        "name": helper_name(kind, dtype), "noun": _NOUNS[op], "width": digits, "warps": str(warps),
        "combine": helper_name(*pair_helper(op, dtype)), "better": helper_name(*pair_helper(op, dtype)),
        "shuffled": _shuffled(dtype), "warp": helper_name(team_helper(op, 32), dtype),
        "team": helper_name(team_helper(op, warps), dtype),
        "stored": "uint8(value)" if dtype.kind == "b" else "value",
        "loaded": f"shared[thread % {warps}]" + (" != 0" if dtype.kind == "b" else ""),
    }  # fmt: skip
    steps = [width >> shift for shift in range(1, width.bit_length())]
    fields["steps"] = f"({', '.join(map(str, steps))}{',' if len(steps) == 1 else ''})"
    template = (_BLOCK_PLACE if place else _BLOCK) if width > 32 else (_TEAM_PLACE if place else _TEAM)
    return template.strip("\n").format(**fields)


def helper_source(kind: str, dtype: DType | None = None) -> str:
    """The source of one helper."""
    if is_tile_helper(kind):
        assert dtype is not None
        return tile_helper_source(kind, helper_name(kind, dtype), dtype)
    if kind.startswith("team_"):
        assert dtype is not None
        return _team_source(kind, dtype)
    template = _SCALAR[kind].strip("\n")
    return template.format(name=helper_name(kind, dtype), **_fields(dtype)) if dtype is not None else template


def _with_called(helper: Helper) -> list[Helper]:
    """A helper behind those that it calls."""
    kind, dtype = helper
    if not kind.startswith("team_"):
        return [helper]
    assert dtype is not None
    _, op, digits = kind.split("_")
    width = int(digits)
    if width > 32:
        called = [*_with_called((team_helper(op, 32), dtype)), *_with_called((team_helper(op, width // 32), dtype))]
    else:
        called = [pair_helper(op, dtype)]
    return [*called, helper]


def helpers_source(helpers: Iterable[Helper]) -> list[str]:
    """The text of every helper once, those that are called first."""
    ordered = dict.fromkeys(
        part for helper in sorted(helpers, key=lambda h: helper_name(*h)) for part in _with_called(helper)
    )
    return ["@cuda.jit(device=True)\n" + helper_source(*helper) for helper in ordered]


HELPER_NAMES = frozenset(helper_name(kind) for kind in _SCALAR) | {
    f"{helper_name(kind)}_{dtype}" for kind in _SCALAR for dtype in SUPPORTED
}
