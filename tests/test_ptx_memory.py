"""The PTX interpreter's memories, calls and faults, in hand-written PTX that numba-cuda would not emit alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ptx import (
    BudgetExceeded,
    DivergentBarrier,
    GlobalRace,
    LaunchError,
    Misaligned,
    OutOfBounds,
    ParseError,
    Placed,
    PtxKernel,
    SharedRace,
    Trap,
    Uninitialised,
    UnsupportedInstruction,
)
from ptx.snippet import evaluate, kernel_text, run_body

F32 = np.float32
INDEX = "mul.wide.u32 %rd4, %r0, 4;\n add.s64 %rd5, %rd0, %rd4;\n"  # %rd5: this thread's element of array 0
SHARED = ".shared .align 16 .b8 s[512];\n"


ATOMICS: dict[str, Callable[[list[int]], int]] = {
    "add.u32": lambda v: sum(v),
    "min.s32": min,
    "max.u32": max,
    "and.b32": lambda v: int(np.bitwise_and.reduce(v)),
    "or.b32": lambda v: int(np.bitwise_or.reduce(v)),
    "xor.b32": lambda v: int(np.bitwise_xor.reduce(v)),
    "exch.b32": lambda v: v[-1],
}


@pytest.mark.parametrize("returned", [False, True])
@pytest.mark.parametrize("name", ATOMICS)
def test_atomics(name: str, returned: bool) -> None:
    """Threads that meet at an element update it in turn; a result that is used is the value of just before."""
    total, old, values = np.array([100], np.uint32), np.zeros(48, np.uint32), np.arange(7, 55, dtype=np.uint32)
    keep = "add.s64 %rd6, %rd1, %rd4;\n st.global.u32 [%rd6], %r2;" if returned else ""
    body = INDEX.replace("%rd0", "%rd2") + "ld.global.u32 %r1, [%rd5];\n"
    run_body(body + f"atom.global.{name} %r2, [%rd0], %r1;\n" + keep, [total, old, values], 1, 48)
    steps = [ATOMICS[name]([100, *values[:k].tolist()]) for k in range(49)]
    assert total[0] == steps[-1]
    if returned:
        assert old.tolist() == steps[:-1]


def test_float_atomics_and_compare_and_swap() -> None:
    total, value = np.zeros(1, F32), np.full(64, 0.5, F32)
    run_body(
        INDEX.replace("%rd0", "%rd1") + "ld.global.f32 %f0, [%rd5];\n red.global.add.f32 [%rd0], %f0;",
        [total, value],
        2,
        32,
    )
    assert total[0] == 32
    loop = """
    mov.u32 %r1, 0;
AGAIN:
    add.u32 %r2, %r1, 3;
    atom.global.cas.b32 %r3, [%rd0], %r1, %r2;
    setp.ne.u32 %p0, %r3, %r1;
    mov.u32 %r1, %r3;
    @%p0 bra AGAIN;"""
    count = np.zeros(1, np.uint32)
    run_body(loop, [count], 3, 40)
    assert count[0] == 3 * 120


def test_generic_addresses_reach_every_memory() -> None:
    """One instruction, the even threads in shared and the odd ones in global memory."""
    body = (
        SHARED
        + INDEX
        + """
    mov.u64 %rd1, s;
    cvta.shared.u64 %rd1, %rd1;
    add.s64 %rd2, %rd1, %rd4;
    st.u32 [%rd2], %r0;
    and.b32 %r1, %r0, 1;
    setp.eq.u32 %p0, %r1, 1;
    selp.b64 %rd3, %rd5, %rd2, %p0;
    ld.u32 %r2, [%rd3];
    st.global.u32 [%rd5], %r2;"""
    )
    out = np.full(32, 77, np.uint32)
    run_body(body, [out], 1, 32)
    assert out.tolist() == [77 if t % 2 else t for t in range(32)]


def test_small_and_vector_accesses() -> None:
    octets = np.arange(256, dtype=np.uint8)
    out = np.zeros(64, np.int32)
    body = (
        "cvt.u64.u32 %rd4, %r0;\n add.s64 %rd5, %rd1, %rd4;\n ld.global.s8 %r1, [%rd5+100];\n"
        + INDEX
        + "st.global.s32 [%rd5], %r1;"
    )
    run_body(body, [out, octets], 1, 64)
    assert out.tolist() == octets[100:164].view(np.int8).tolist()
    x, y = np.arange(128, dtype=F32), np.zeros(128, F32)
    body = """
    mul.wide.u32 %rd4, %r0, 16;
    add.s64 %rd5, %rd1, %rd4;
    ld.global.nc.v4.f32 {%f0, %f1, %f2, %f3}, [%rd5];
    add.s64 %rd5, %rd0, %rd4;
    st.global.v2.f32 [%rd5], {%f3, %f2};
    st.global.v2.f32 [%rd5+8], {%f1, %f0};"""
    run_body(body, [y, x], 1, 32)
    np.testing.assert_array_equal(y, x.reshape(32, 4)[:, ::-1].reshape(-1))


def test_module_variables() -> None:
    """Constants can be read but not written."""
    module = ".const .align 4 .u32 table[4] = {10, 20, 30, 40};\n.common .global .align 8 .u64 unused;"
    body = (
        "mov.u64 %rd1, table;\n"
        + INDEX
        + "add.s64 %rd2, %rd1, %rd4;\n ld.const.u32 %r1, [%rd2];\n st.global.u32 [%rd5], %r1;"
    )
    out = np.zeros(4, np.uint32)
    run_body(body, [out], 1, 4, module)
    assert out.tolist() == [10, 20, 30, 40]
    with pytest.raises(OutOfBounds, match="read-only"):
        run_body("mov.u64 %rd1, table;\n st.global.u32 [%rd1], %r0;", [out], 1, 1, module)


def async_copy(wait: str) -> np.ndarray:
    """Two groups of cp.async, one of them waited for; returns what the threads find in shared memory."""
    body = """
    mul.wide.u32 %rd4, %r0, 16;
    add.s64 %rd5, %rd1, %rd4;
    mov.u64 %rd6, s;
    cvt.u32.u64 %r1, %rd6;
    mad.lo.u32 %r1, %r0, 16, %r1;
    cp.async.cg.shared.global [%r1], [%rd5], 16;
    cp.async.commit_group;
    cp.async.ca.shared.global [%r1+256], [%rd5+256], 16, 8;
    cp.async.commit_group;
    WAIT
    bar.sync 0;
    xor.b32 %r2, %r0, 1;
    mov.u64 %rd6, s;
    mul.wide.u32 %rd7, %r2, 16;
    add.s64 %rd6, %rd6, %rd7;
    ld.shared.f32 %f0, [%rd6+4];
    ld.shared.f32 %f1, [%rd6+FROM];
    add.f32 %f2, %f0, %f1;
    mul.wide.u32 %rd4, %r0, 4;
    add.s64 %rd5, %rd0, %rd4;
    st.global.f32 [%rd5], %f2;"""
    out, x = np.zeros(16, F32), np.arange(128, dtype=F32)
    start = "256" if "0" in wait else "8"
    run_body(SHARED + body.replace("WAIT", wait).replace("FROM", start), [out, x], 1, 16)
    return out


def test_async_copies_arrive_when_they_are_waited_for() -> None:
    rows = np.arange(64, dtype=F32).reshape(16, 4)[np.arange(16) ^ 1]
    np.testing.assert_array_equal(async_copy("cp.async.wait_group 1;"), rows[:, 1] + rows[:, 2])
    np.testing.assert_array_equal(async_copy("cp.async.wait_group 0;"), rows[:, 1] + rows[:, 0] + 64)
    with pytest.raises(Uninitialised):
        async_copy("cp.async.wait_group 2;")


STORE = SHARED + "mov.u64 %rd1, s;\n mad.wide.u32 %rd2, %r0, 4, %rd1;\n st.shared.u32 [%rd2], %r0;\n"
FAULTS = {
    "below the array": (INDEX + "st.global.u32 [%rd5-4], %r0;", OutOfBounds, r"byte -4 of argument 0 \(uint32\[32\], 128"),
    "behind the array": (INDEX + "st.global.u32 [%rd5+4], %r0;", OutOfBounds, r"byte 128[\s\S]*thread \(31, 0, 0\)"),
    "null": ("mov.u64 %rd1, 0;\n ld.global.u32 %r1, [%rd1];", OutOfBounds, "global access out of bounds"),
    "misaligned": (INDEX + "ld.global.u16 %h0, [%rd5+1];", Misaligned, r"misaligned global access: 2 bytes"),
    "vector": (INDEX + "ld.global.v2.u32 {%r1, %r2}, [%rd5];", Misaligned, r"8 bytes[\s\S]*thread \(1, 0, 0\)"),
    "behind shared": (STORE + "ld.shared.u32 %r1, [%rd1+512];", OutOfBounds, "shared access out of bounds"),
    "uninitialised": (STORE + "ld.shared.u32 %r1, [%rd1+256];", Uninitialised, r"at shared address 256[\s\S]*ld\.shared"),
    "read after write": (STORE + "ld.shared.u32 %r1, [%rd1+4];", SharedRace, r"another wrote[\s\S]*thread \(1, 0, 0\)"),
    "one element by all": (STORE + "bar.sync 0;\n st.shared.u32 [%rd1], %r0;", SharedRace, "in the same instruction"),
    "atomic beside a write": (STORE + "atom.shared.add.u32 %r1, [%rd1], 1;", SharedRace, "updates atomically"),
    "one global element by all": ("st.global.u32 [%rd0], %r0;", GlobalRace, "race in global memory"),
    "endless": ("AGAIN:\n bra AGAIN;", BudgetExceeded, "loop that does not end"),
    "trap": ("setp.eq.u32 %p0, %r0, 7;\n @%p0 trap;", Trap, r"thread \(7, 0, 0\)"),
    "different barriers": (
        "setp.lt.u32 %p0, %r0, 9;\n @%p0 bra LOW;\n bar.sync 0;\n bra.uni DONE;\nLOW:\n bar.sync 0;\nDONE:",
        DivergentBarrier,
        "different barriers",
    ),
    "exited threads": ("setp.lt.u32 %p0, %r0, 9;\n @%p0 ret;\n bar.sync 0;", DivergentBarrier, r"it has ended[\s\S]*bar\.sync"),
    "no such register": ("add.u32 %r1, %r2, 1;", ParseError, r"%r2 is read but never written"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_name_line_block_and_thread(name: str) -> None:
    body, error, match = FAULTS[name]
    with pytest.raises(error, match=match):
        run_body(body, [np.zeros(32, np.uint32)], 1, 32)


def test_exited_threads_can_be_allowed() -> None:
    text = kernel_text("mov.u32 %r0, %tid.x;\n" + FAULTS["exited threads"][0], [("u64", "array0")])
    PtxKernel(text).launch(1, 32, [np.zeros(4)], allow_exited=True)


def test_dynamic_shared_memory_has_the_size_of_the_launch() -> None:
    module = ".extern .shared .align 16 .b8 dyn[];"
    body = "mov.u32 %r0, %tid.x;\n mov.u64 %rd1, dyn;\n mad.wide.u32 %rd2, %r0, 4, %rd1;\n st.shared.u32 [%rd2], %r0;"
    kernel = PtxKernel(kernel_text(body, [("u64", "a")], module=module))
    assert kernel.launch(2, 32, [np.zeros(1)], dynamic_shared=128).shared_bytes == 128
    with pytest.raises(OutOfBounds, match=r"shared address 124[\s\S]*thread \(31, 0, 0\)"):
        kernel.launch(2, 32, [np.zeros(1)], dynamic_shared=124)
    with pytest.raises(LaunchError, match="limits are"):
        kernel.launch(1, 32, [np.zeros(1)], dynamic_shared=300_000)


def test_an_offset_view_is_misaligned_for_vectors() -> None:
    text = kernel_text("ld.param.u64 %rd0, [a];\n ld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%rd0];", [("u64", "a")])
    PtxKernel(text).launch(1, 1, [np.zeros(8, F32)])
    with pytest.raises(Misaligned):
        PtxKernel(text).launch(1, 1, [Placed(np.zeros(8, F32), offset=4)])


def test_divergent_paths_meet_again() -> None:
    """Both sides of a branch, a loop with a count of its own for each thread, and a nested condition."""
    code = """
    mov.u32 %d, 0;
    and.b32 %r1, %a, 1;
    setp.eq.u32 %p0, %r1, 0;
    @%p0 bra EVEN;
    mov.u32 %r2, %a;
LOOP:
    add.u32 %d, %d, %r2;
    sub.u32 %r2, %r2, 1;
    setp.ne.u32 %p1, %r2, 0;
    @%p1 bra LOOP;
    bra.uni JOIN;
EVEN:
    setp.gt.u32 %p2, %a, 10;
    @%p2 mov.u32 %d, 1000;
JOIN:
    add.u32 %d, %d, 1;"""
    got = evaluate(code, ["u32"], [np.arange(40)], "u32")
    assert got.tolist() == [1 + (t * (t + 1) // 2 if t % 2 else 1000 * (t > 10)) for t in range(40)]


def test_overlapping_arguments_are_one_memory() -> None:
    """In place on one array, and on two views of one arena; between them there is no guard."""
    text = kernel_text(
        "mov.u32 %r0, %tid.x;\n ld.param.u64 %rd0, [a];\n ld.param.u64 %rd1, [b];\n mad.wide.u32 %rd2, %r0, 4, %rd1;\n"
        "mad.wide.u32 %rd3, %r0, 4, %rd0;\n ld.global.u32 %r1, [%rd2];\n add.u32 %r1, %r1, 1;\n st.global.u32 [%rd3], %r1;",
        [("u64", "a"), ("u64", "b")],
    )
    x = np.arange(32, dtype=np.uint32)
    PtxKernel(text).launch(1, 32, [x, x])
    assert x.tolist() == list(range(1, 33))
    arena = np.arange(64, dtype=np.uint32)
    PtxKernel(text).launch(1, 32, [arena, arena[32:]])
    assert arena.tolist() == [*range(33, 65), *range(32, 64)]
    with pytest.raises(GlobalRace):
        PtxKernel(text).launch(2, 32, [x, x])


def test_calls_of_device_functions_are_inlined() -> None:
    """Each call has registers, labels and local memory of its own; a guard and an early return inside work."""
    module = """
.func (.param .b32 back) clamp(.param .b32 value)
{
    .local .align 4 .b8 depot[4];
    .reg .b32 %r<3>;
    .reg .pred %p<2>;
    .reg .b64 %sp;
    ld.param.u32 %r1, [value];
    mov.u64 %sp, depot;
    st.local.u32 [%sp], %r1;
    setp.lt.u32 %p1, %r1, 10;
    @%p1 bra SMALL;
    mov.u32 %r1, 10;
    st.param.b32 [back+0], %r1;
    ret;
SMALL:
    ld.local.u32 %r2, [%sp];
    st.param.b32 [back+0], %r2;
    ret;
}"""
    call = """{
    .param .b32 given; .param .b32 result;
    st.param.b32 [given+0], %SOURCE;
    call.uni (result), clamp, (given);
    ld.param.b32 %TARGET, [result+0];
    }
"""
    body = call.replace("SOURCE", "r0").replace("TARGET", "r1") + "shl.b32 %r2, %r0, 1;\n"
    body += call.replace("SOURCE", "r2").replace("TARGET", "r3") + "mad.lo.u32 %r4, %r3, 100, %r1;\n" + INDEX
    out = np.zeros(32, np.uint32)
    run_body(body + "st.global.u32 [%rd5], %r4;", [out], 1, 32, module)
    assert out.tolist() == [100 * min(2 * t, 10) + min(t, 10) for t in range(32)]
    with pytest.raises(UnsupportedInstruction, match="not in the text"):
        run_body(call.replace("SOURCE", "r0").replace("TARGET", "r1"), [out], 1, 32)
