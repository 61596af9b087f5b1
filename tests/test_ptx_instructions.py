"""The PTX interpreter, one instruction at a time, against Python's own integers and numpy's floats."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ptx import ArithmeticFault, PtxKernel, UnsupportedInstruction
from ptx.ir import DTYPES
from ptx.snippet import elementwise_text, evaluate

EDGES = [0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 100, 255, 0x7FFF, 0x8000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF9]
EDGES_64 = [*EDGES, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF, 0x123456789ABCDEF0]


def integers(kind: str, rng: np.random.Generator, count: int = 3) -> list[np.ndarray]:
    """Arrays of a PTX integer type in which every pair of edge values meets, and random ones."""
    dtype = DTYPES[kind]
    raw = np.dtype(f"u{dtype.itemsize}")
    edges = np.array([e & (2 ** (8 * dtype.itemsize) - 1) for e in EDGES_64], raw)
    one, two = (grid.reshape(-1) for grid in np.meshgrid(edges, edges))
    top = 2 ** (8 * dtype.itemsize) - 1
    noise = [rng.integers(0, top, 100, dtype=raw, endpoint=True) for _ in range(3)]
    arrays = [np.concatenate([x, n]).view(dtype) for x, n in zip((one, two, np.roll(one, 5)), noise)]
    return arrays[:count]


def wrapped(value: int, kind: str) -> int:
    """A Python integer as the PTX type holds it."""
    dtype = DTYPES[kind]
    bits = int(value) & (2 ** (8 * dtype.itemsize) - 1)
    return int(np.array(bits, f"u{dtype.itemsize}").view(dtype))


def check(code: str, kinds: list[str], inputs: list[np.ndarray], out: str, oracle: Callable[..., int]) -> None:
    """Every lane of the snippet against a function of Python numbers."""
    got = evaluate(code, kinds, inputs, out)
    expected = [wrapped(oracle(*(x.item() for x in row)), out) for row in zip(*inputs)]
    assert got.tolist() == expected, code


def quotient(a: int, b: int) -> int:
    """Division towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


TWO: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
}


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("name", TWO)
def test_two_operands(name: str, kind: str, rng: np.random.Generator) -> None:
    typed = f"b{kind[1:]}" if name in ("and", "or", "xor") else kind
    check(f"{name}.{typed} %d, %a, %b;", [kind, kind], integers(kind, rng, 2), kind, TWO[name])


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_high_products(kind: str, rng: np.random.Generator) -> None:
    width = int(kind[1:])
    check(f"mul.hi.{kind} %d, %a, %b;", [kind] * 2, integers(kind, rng, 2), kind, lambda a, b: (a * b) >> width)
    check(f"mad.lo.{kind} %d, %a, %b, %c;", [kind] * 3, integers(kind, rng), kind, lambda a, b, c: a * b + c)


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32"])
def test_wide_products(kind: str, rng: np.random.Generator) -> None:
    wide = f"{kind[0]}{2 * int(kind[1:])}"
    a, b = integers(kind, rng, 2)
    check(f"mul.wide.{kind} %d, %a, %b;", [kind] * 2, [a, b], wide, lambda x, y: x * y)
    c = integers(wide, rng, 1)[0][: len(a)]
    check(
        f"mad.wide.{kind} %d, %a, %b, %c;",
        [kind, kind, wide],
        [a[: len(c)], b[: len(c)], c],
        wide,
        lambda x, y, z: x * y + z,
    )


def signed(value: int, bits: int, kind: str) -> int:
    """The lowest `bits` of a value, as a signed number or not."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if kind == "s32" and value >> (bits - 1) else value


@pytest.mark.parametrize("right", ["s32", "u32"])
@pytest.mark.parametrize("left", ["s32", "u32"])
def test_dot_products(left: str, right: str, rng: np.random.Generator) -> None:
    out = "s32" if "s32" in (left, right) else "u32"
    inputs = [a.view(DTYPES[kind]) for a, kind in zip(integers("u32", rng), (left, right, out))]

    def bytes_of(b: int, first: int, count: int) -> list[int]:
        return [signed(b >> 8 * k, 8, right) for k in range(first, first + count)]

    def four(a: int, b: int, c: int) -> int:
        return c + sum(signed(a >> 8 * k, 8, left) * y for k, y in enumerate(bytes_of(b, 0, 4)))

    check(f"dp4a.{left}.{right} %d, %a, %b, %c;", [left, right, out], inputs, out, four)
    for part, first in (("lo", 0), ("hi", 2)):
        check(
            f"dp2a.{part}.{left}.{right} %d, %a, %b, %c;",
            [left, right, out],
            inputs,
            out,
            lambda a, b, c, first=first: (
                c + sum(signed(a >> 16 * k, 16, left) * y for k, y in enumerate(bytes_of(b, first, 2)))
            ),
        )


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_division(kind: str, rng: np.random.Generator) -> None:
    a, b = integers(kind, rng, 2)
    keep = (b != 0) & ~((a == np.iinfo(a.dtype).min) & (b == -1) if kind[0] == "s" else np.zeros(len(b), bool))
    a, b = a[keep], b[keep]
    check(f"div.{kind} %d, %a, %b;", [kind] * 2, [a, b], kind, quotient)
    check(f"rem.{kind} %d, %a, %b;", [kind] * 2, [a, b], kind, lambda x, y: x - quotient(x, y) * y)


def test_division_by_zero_is_an_error() -> None:
    with pytest.raises(ArithmeticFault, match=r"division by zero[\s\S]*div.s32[\s\S]*thread \(2, 0, 0\)"):
        evaluate("div.s32 %d, %a, %b;", ["s32", "s32"], [np.ones(4), np.array([1, 2, 0, 4])], "s32")


ONE: dict[str, tuple[str, str, Callable[[int], int]]] = {
    "neg.s32": ("s32", "s32", lambda a: -a),
    "abs.s64": ("s64", "s64", abs),
    "not.b32": ("u32", "u32", lambda a: ~a),
    "not.b64": ("u64", "u64", lambda a: ~a),
    "cnot.b32": ("u32", "u32", lambda a: int(a == 0)),
    "popc.b32": ("u32", "u32", lambda a: a.bit_count()),
    "popc.b64": ("u64", "u32", lambda a: a.bit_count()),
    "clz.b32": ("u32", "u32", lambda a: 32 - a.bit_length()),
    "clz.b64": ("u64", "u32", lambda a: 64 - a.bit_length()),
    "brev.b32": ("u32", "u32", lambda a: int(f"{a:032b}"[::-1], 2)),
    "brev.b64": ("u64", "u64", lambda a: int(f"{a:064b}"[::-1], 2)),
    "bfind.u32": ("u32", "u32", lambda a: a.bit_length() - 1),
}


@pytest.mark.parametrize("name", ONE)
def test_one_operand(name: str, rng: np.random.Generator) -> None:
    kind, out, oracle = ONE[name]
    check(f"{name} %d, %a;", [kind], integers(kind, rng, 1), out, oracle)


@pytest.mark.parametrize("kind", ["b32", "s32", "u32", "b64", "s64", "u64"])
def test_shifts(kind: str, rng: np.random.Generator) -> None:
    """Amounts of the width and more clear the value, or fill it with the sign."""
    width = int(kind[1:])
    a = integers(kind, rng, 1)[0]
    amounts = np.resize(np.array([0, 1, 5, 16, 31, 32, 33, 63, 64, 65, 200, 2**31]), len(a)).astype(np.uint32)
    if kind[0] == "b":
        check(f"shl.{kind} %d, %a, %b;", [kind, "u32"], [a, amounts], kind, lambda x, n: x << min(n, 64))
    check(f"shr.{kind} %d, %a, %b;", [kind, "u32"], [a, amounts], kind, lambda x, n: x >> min(n, width))


def test_funnel_shifts(rng: np.random.Generator) -> None:
    a, b, c = integers("u32", rng)
    three = ["u32"] * 3
    pair = lambda x, y: y << 32 | x  # noqa: E731
    check("shf.l.wrap.b32 %d, %a, %b, %c;", three, [a, b, c], "u32", lambda x, y, n: pair(x, y) << (n & 31) >> 32)
    check("shf.r.wrap.b32 %d, %a, %b, %c;", three, [a, b, c], "u32", lambda x, y, n: pair(x, y) >> (n & 31))
    check("shf.l.clamp.b32 %d, %a, %b, %c;", three, [a, b, c], "u32", lambda x, y, n: pair(x, y) << min(n, 32) >> 32)
    check("shf.r.clamp.b32 %d, %a, %b, %c;", three, [a, b, c], "u32", lambda x, y, n: pair(x, y) >> min(n, 32))


def extract(kind: str) -> Callable[[int, int, int], int]:
    """bfe by the text of the PTX manual, bit by bit."""
    top = int(kind[1:]) - 1

    def oracle(a: int, b: int, c: int) -> int:
        start, length = b & 255, c & 255
        sign = 0 if kind[0] == "u" or length == 0 else a >> min(start + length - 1, top) & 1
        bits = [(a >> (start + k) & 1) if k < length and start + k <= top else sign for k in range(top + 1)]
        return sum(bit << k for k, bit in enumerate(bits))

    return oracle


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_fields(kind: str, rng: np.random.Generator) -> None:
    a, b = integers(kind, rng, 2)
    pick = np.array([0, 1, 4, 8, 30, 31, 32, 33, 40, 63, 64, 65, 255], np.uint32)
    start, length = rng.choice(pick, len(a)), rng.choice(pick, len(a))
    check(f"bfe.{kind} %d, %a, %b, %c;", [kind, "u32", "u32"], [a, start, length], kind, extract(kind))
    width = int(kind[1:])
    mask = lambda n, s: sum(1 << k for k in range(s, min(s + n, width)))  # noqa: E731
    code = f"bfi.b{width} %d, %a, %b, 5, 11;"
    check(code, [kind, kind], [a, b], kind, lambda x, y: (y & ~mask(11, 5)) | (x << 5 & mask(11, 5)))
    code = f"bfi.b{width} %d, %a, %a, %b, %c;"
    check(
        code, [kind, "u32", "u32"], [a, start, length], kind, lambda x, s, n: (x & ~mask(n, s)) | (x << s & mask(n, s))
    )


def test_permute_and_truth_tables(rng: np.random.Generator) -> None:
    a, b, c = integers("u32", rng)

    def permute(x: int, y: int, selector: int) -> int:
        octets = x.to_bytes(4, "little") + y.to_bytes(4, "little")
        picked = [octets[selector >> 4 * k & 7] for k in range(4)]
        signs = [selector >> 4 * k & 8 for k in range(4)]
        return int.from_bytes(bytes((255 if v & 128 else 0) if s else v for v, s in zip(picked, signs)), "little")

    check("prmt.b32 %d, %a, %b, %c;", ["u32"] * 3, [a, b, c], "u32", permute)
    check("lop3.b32 %d, %a, %b, %c, 0xCA;", ["u32"] * 3, [a, b, c], "u32", lambda x, y, z: x & y | ~x & z)
    check("lop3.b32 %d, %a, %b, %c, 0x96;", ["u32"] * 3, [a, b, c], "u32", lambda x, y, z: x ^ y ^ z)
    check("sad.s32 %d, %a, %b, %c;", ["s32"] * 3, integers("s32", rng), "s32", lambda x, y, z: z + abs(x - y))


def test_carries(rng: np.random.Generator) -> None:
    """64-bit sums and products from 32-bit halves."""
    a, b = integers("u64", rng, 2)
    halves = "mov.b64 {%r0, %r1}, %a;\n mov.b64 {%r2, %r3}, %b;\n"
    join = "\n mov.b64 %d, {%r4, %r5};"
    code = halves + "add.cc.u32 %r4, %r0, %r2;\n addc.u32 %r5, %r1, %r3;" + join
    check(code, ["u64"] * 2, [a, b], "u64", lambda x, y: x + y)
    code = halves + "sub.cc.u32 %r4, %r0, %r2;\n subc.u32 %r5, %r1, %r3;" + join
    check(code, ["u64"] * 2, [a, b], "u64", lambda x, y: x - y)
    code = (
        halves
        + "mul.lo.u32 %r4, %r0, %r2; mul.hi.u32 %r5, %r0, %r2; mad.lo.cc.u32 %r4, %r1, 1, %r4; addc.u32 %r5, %r5, 0;"
    )
    check(code + join, ["u64"] * 2, [a, b], "u64", lambda x, y: (x & 0xFFFFFFFF) * (y & 0xFFFFFFFF) + (x >> 32))


def test_saturating_integers(rng: np.random.Generator) -> None:
    limits = np.iinfo(np.int32)
    clamp = lambda v: max(limits.min, min(limits.max, v))  # noqa: E731
    check("add.sat.s32 %d, %a, %b;", ["s32"] * 2, integers("s32", rng, 2), "s32", lambda a, b: clamp(a + b))
    check("sub.sat.s32 %d, %a, %b;", ["s32"] * 2, integers("s32", rng, 2), "s32", lambda a, b: clamp(a - b))


COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("name", COMPARISONS)
def test_integer_comparisons(name: str, kind: str, rng: np.random.Generator) -> None:
    code = f"setp.{name}.{kind} %p0, %a, %b;\n selp.u32 %d, 7, 3, %p0;"
    oracle = COMPARISONS[name]
    check(code, [kind, kind], integers(kind, rng, 2), "u32", lambda a, b: 7 if oracle(a, b) else 3)


def test_predicates(rng: np.random.Generator) -> None:
    """Two results, a third condition, logic on predicates, guards in both senses, set and slct."""
    a, b = integers("s32", rng, 2)
    code = "setp.lt.s32 %p0|%p1, %a, %b;\n selp.u32 %r0, 1, 0, %p0;\n selp.u32 %r1, 2, 0, %p1;\n add.u32 %d, %r0, %r1;"
    check(code, ["s32"] * 2, [a, b], "u32", lambda x, y: 1 if x < y else 2)
    code = "setp.gt.s32 %p2, %a, 5;\n setp.lt.and.s32 %p0, %a, %b, !%p2;\n selp.u32 %d, 1, 0, %p0;"
    check(code, ["s32"] * 2, [a, b], "u32", lambda x, y: int(x < y and x <= 5))
    code = "setp.gt.s32 %p0, %a, 5;\n setp.gt.s32 %p1, %b, 5;\n xor.pred %p2, %p0, %p1;\n not.pred %p3, %p2;\n"
    code += "mov.u32 %d, 0;\n @%p2 mov.u32 %d, 1;\n @!%p2 add.u32 %d, %d, 8;\n @%p3 add.u32 %d, %d, 16;"
    check(code, ["s32"] * 2, [a, b], "u32", lambda x, y: 1 if (x > 5) != (y > 5) else 24)
    check("set.lt.u32.s32 %d, %a, %b;", ["s32"] * 2, [a, b], "u32", lambda x, y: -int(x < y))
    check(
        "slct.u32.s32 %d, %a, %b, %c;",
        ["u32", "u32", "s32"],
        [*integers("u32", rng, 2), b],
        "u32",
        lambda x, y, z: x if z >= 0 else y,
    )


def test_moves_split_and_join(rng: np.random.Generator) -> None:
    a, b = integers("u64", rng, 2)
    swap = "mov.b64 {%r0, %r1}, %a;\n mov.b64 %d, {%r1, %r0};"
    check(swap, ["u64"], [a], "u64", lambda x: x >> 32 | x << 32)
    quarters = "mov.b64 {%h0, %h1, %h2, %h3}, %a;\n mov.b64 %d, {%h3, %h2, %h1, %h0};"
    reversal = lambda x: sum((x >> 16 * k & 0xFFFF) << 16 * (3 - k) for k in range(4))  # noqa: E731
    check(quarters, ["u64"], [a], "u64", reversal)
    scoped = "{ .reg .b64 %a2; mov.b64 %a2, %b; add.u64 %d, %a, %a2; }"
    check(scoped, ["u64", "u64"], [a, b], "u64", lambda x, y: x + y)


@pytest.mark.parametrize("source", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("out", ["s8", "u8", "s32", "u32", "s64", "u64"])
def test_integer_conversions(source: str, out: str, rng: np.random.Generator) -> None:
    a = integers(source, rng, 1)
    check(f"cvt.{out}.{source} %d, %a;", [source], a, out, lambda x: x)
    limits = np.iinfo(DTYPES[out])
    check(f"cvt.sat.{out}.{source} %d, %a;", [source], a, out, lambda x: max(limits.min, min(limits.max, x)))


def test_unknown_instructions_say_so() -> None:
    text = elementwise_text("wmma.load.a.sync %d, %a;", ["u32"], "u32")
    with pytest.raises(UnsupportedInstruction, match="not implemented: wmma.load.a.sync"):
        PtxKernel(text).launch(1, 1, [np.zeros(1, np.uint32), np.zeros(1, np.uint32)])
