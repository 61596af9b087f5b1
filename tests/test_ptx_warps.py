"""The PTX interpreter's warp-wide instructions: shuffles, votes and tensor-core products."""

from __future__ import annotations

import numpy as np
import pytest
from ptx import DivergentWarp
from ptx.snippet import evaluate, run_body

F32 = np.float32
POISON = 0x7FC0DEAD


def shuffled(mode: str, step: int, width: int, lane: int) -> int:
    """The lane that shfl_*_sync(mask, value, step, width) reads from, after the CUDA programming guide.

    An exchange (bfly) may reach into earlier segments, but not into later ones.
    """
    if mode == "bfly":
        return lane ^ step if lane ^ step < (lane // width + 1) * width else lane
    first = lane // width * width
    place = lane - first
    to = {"up": place - step, "down": place + step, "idx": step % width}[mode]
    return first + to if 0 <= to < width else lane


@pytest.mark.parametrize("width", [32, 16, 8])
@pytest.mark.parametrize(("mode", "step"), [("up", 1), ("up", 5), ("down", 4), ("bfly", 1), ("bfly", 16), ("idx", 3)])
def test_shuffles(mode: str, step: int, width: int) -> None:
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    code = f"shfl.sync.{mode}.b32 %d|%p0, %a, {step}, {clamp}, -1;\n @!%p0 add.u32 %d, %d, 1000;"
    values = np.arange(64, dtype=np.uint32) * 10
    got = evaluate(code, ["u32"], [values], "u32")
    for thread in range(64):
        warp, lane = thread // 32 * 32, thread % 32
        source = shuffled(mode, step, width, lane)
        inside = source != lane or (mode == "idx" and step == lane % width)
        assert got[thread] == values[warp + source] + (0 if inside else 1000)


def test_a_shuffle_from_a_lane_that_is_not_there_gives_poison() -> None:
    got = evaluate("shfl.sync.down.b32 %d, %a, 4, 31, -1;", ["u32"], [np.arange(40, dtype=np.uint32)], "u32")
    assert got[:28].tolist() == list(range(4, 32))
    assert got[32:36].tolist() == [36, 37, 38, 39]
    assert (got[36:] == POISON).all()


def test_votes() -> None:
    a = np.arange(64, dtype=np.uint32)
    setp = "setp.ge.u32 %p0, %a, 20;\n"
    ballot = evaluate(setp + "vote.sync.ballot.b32 %d, %p0, -1;", ["u32"], [a], "u32")
    assert ballot.tolist() == [0xFFF00000] * 32 + [0xFFFFFFFF] * 32
    for mode, expected in (("any", (1, 1)), ("all", (0, 1)), ("uni", (0, 1))):
        got = evaluate(setp + f"vote.sync.{mode}.pred %p1, %p0, -1;\n selp.u32 %d, 1, 0, %p1;", ["u32"], [a], "u32")
        assert (got[0], got[-1]) == expected
    assert evaluate("activemask.b32 %d;", ["u32"], [a[:40]], "u32").tolist() == [0xFFFFFFFF] * 32 + [0xFF] * 8
    match = evaluate("match.any.sync.b32 %d, %a, -1;", ["u32"], [a % 2], "u32")
    assert match.tolist() == [0x55555555, 0xAAAAAAAA] * 32
    assert evaluate("redux.sync.add.s32 %d, %a, -1;", ["s32"], [a], "s32").tolist() == [496] * 32 + [1520] * 32
    assert evaluate("redux.sync.max.u32 %d, %a, -1;", ["u32"], [a], "u32").tolist() == [31] * 32 + [63] * 32


@pytest.mark.parametrize(
    ("mask", "match"), [("-1", "do not execute this instruction"), ("0xFF", "leaves it out"), ("0x1FFFF", "do not")]
)
def test_warp_instructions_by_a_part_of_the_mask(mask: str, match: str) -> None:
    code = f"mov.u32 %d, 0;\n setp.ge.u32 %p0, %a, 16;\n @%p0 bra DONE;\n shfl.sync.up.b32 %d, %a, 1, 0, {mask};\nDONE:"
    with pytest.raises(DivergentWarp, match=match):
        evaluate(code, ["u32"], [np.arange(32)], "u32")
    evaluate(code.replace(mask, "0xFFFF"), ["u32"], [np.arange(32)], "u32")


RARE_CODE = """
    mov.u32 %d, 0;
    setp.ge.u32 %p0, %a, 16;
    @%p0 bra RARE;
JOIN:
    shfl.sync.bfly.b32 %d, %a, 16, 31, -1;
    bra DONE;
RARE:
    add.u32 %a, %a, 100;
    bra JOIN;
DONE:"""


def test_lanes_wait_for_those_in_code_further_down() -> None:
    """Compilers put rare code behind everything else; the warp meets again at the shuffle."""
    got = evaluate(RARE_CODE, ["u32"], [np.arange(32)], "u32")
    assert got.tolist() == [*range(116, 132), *range(16)]
    with pytest.raises(DivergentWarp, match="do not execute"):
        evaluate(RARE_CODE.replace("bra JOIN", "bra DONE"), ["u32"], [np.arange(32)], "u32")
    apart = RARE_CODE.replace("bra JOIN;", "shfl.sync.bfly.b32 %d, %a, 16, 31, -1;\n bar.warp.sync -1;")
    with pytest.raises(DivergentWarp, match="do not execute"):
        evaluate(apart, ["u32"], [np.arange(32)], "u32")


@pytest.mark.parametrize("kind", ["tf32", "f16", "bf16"])
def test_tensor_core_products(kind: str, rng: np.random.Generator) -> None:
    """The fragments of m16n8k8 and m16n8k16 as the PTX manual lays them out."""
    depth = 8 if kind == "tf32" else 16
    a, b = rng.integers(-8, 9, (16, depth)).astype(F32), rng.integers(-8, 9, (depth, 8)).astype(F32)
    lane = np.arange(32)
    group, quad = lane >> 2, lane & 3

    def bits(rows: np.ndarray, columns: np.ndarray, source: np.ndarray) -> np.ndarray:
        values = source[rows, columns]
        narrow = values.astype(np.float16).view(np.uint16) if kind == "f16" else values.view(np.uint32) >> 16
        return values.view(np.uint32) if kind == "tf32" else narrow.astype(np.uint32)

    def operand(row: int, step: int, source: np.ndarray, flip: bool) -> np.ndarray:
        result = np.zeros(32, np.uint32)
        for half in range(1 if kind == "tf32" else 2):
            along = quad + 4 * step if kind == "tf32" else 2 * quad + half + 8 * step
            place = (along, group) if flip else (group + 8 * row, along)
            result |= bits(*place, source) << np.uint32(16 * half)
        return result

    packed = np.stack(
        [operand(k & 1, k >> 1, a, False) for k in range(4)] + [operand(0, k, b, True) for k in range(2)], 1
    )
    loads = "\n".join(f"ld.global.b32 %r{k + 1}, [%rd6+{4 * k}];" for k in range(6))
    body = f"""
    mad.wide.u32 %rd6, %r0, 24, %rd1;
    {loads}
    mov.f32 %f0, 0f3F800000;
    mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32
        {{%f1, %f2, %f3, %f4}}, {{%r1, %r2, %r3, %r4}}, {{%r5, %r6}}, {{%f0, %f0, %f0, %f0}};
    mad.wide.u32 %rd7, %r0, 16, %rd0;
    st.global.v4.f32 [%rd7], {{%f1, %f2, %f3, %f4}};"""
    out = np.zeros((32, 4), F32)
    run_body(body, [out, np.ascontiguousarray(packed)], 1, 32)
    product = a @ b + 1
    for k in range(4):
        np.testing.assert_array_equal(out[:, k], product[group + 8 * (k >> 1), 2 * quad + (k & 1)])
