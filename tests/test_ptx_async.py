"""What the PTX interpreter says about pipelines of cp.async that forget to wait: one buffer, filled twice, read by neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx import PtxKernel, SharedRace, Uninitialised
from tests.ptx.snippet import kernel_text

THREADS = 64
ISSUE = "cp.async.ca.shared.global [%r1], [%rd3], 4;\n cp.async.commit_group;"
WAIT, BARRIER = "cp.async.wait_group 0;", "bar.sync 0;"
READ = "ld.shared.f32 %f1, [%r2];\n add.f32 %f0, %f0, %f1;"  # what another warp has copied
NEXT = f"add.s64 %rd3, %rd3, {4 * THREADS};"
GOOD = (ISSUE, WAIT, BARRIER, READ, BARRIER, NEXT, ISSUE, WAIT, BARRIER, READ)


def run(*steps: str) -> np.ndarray:
    """The sums that the threads find."""
    body = "\n".join(
        [
            "ld.param.u64 %rd0, [out];\n ld.param.u64 %rd1, [x];\n mov.u32 %r0, %tid.x;\n mul.wide.u32 %rd2, %r0, 4;",
            "add.s64 %rd3, %rd1, %rd2;\n add.s64 %rd4, %rd0, %rd2;\n mov.u32 %r3, buffer;",
            f"shl.b32 %r1, %r0, 2;\n xor.b32 %r2, %r1, {2 * THREADS};\n add.u32 %r1, %r1, %r3;\n add.u32 %r2, %r2, %r3;",
            "mov.f32 %f0, 0f00000000;",
            *steps,
            "st.global.f32 [%rd4], %f0;",
        ]
    )
    module = f".shared .align 16 .b8 buffer[{4 * THREADS}];"
    out, x = np.zeros(THREADS, np.float32), np.arange(2 * THREADS, dtype=np.float32)
    PtxKernel(kernel_text(body, [("u64", "out"), ("u64", "x")], module=module)).launch(1, THREADS, [out, x])
    return out


def without(position: int) -> tuple[str, ...]:
    return GOOD[:position] + GOOD[position + 1 :]


def test_a_pipeline_that_waits() -> None:
    other = np.arange(THREADS) ^ (THREADS // 2)
    np.testing.assert_array_equal(run(*GOOD), 2 * other + THREADS)


@pytest.mark.parametrize("forgotten", [1, 7])
def test_reading_before_the_copy_has_landed(forgotten: int) -> None:
    """Also where the buffer still holds what the first copy brought."""
    with pytest.raises(Uninitialised, match="uninitialised shared memory"):
        run(*without(forgotten))


@pytest.mark.parametrize("forgotten", [2, 8])
def test_reading_what_another_thread_waited_for(forgotten: int) -> None:
    with pytest.raises(SharedRace, match="another wrote"):
        run(*without(forgotten))


def test_copying_over_what_others_still_read() -> None:
    with pytest.raises(SharedRace, match="another read"):
        run(*without(4))
