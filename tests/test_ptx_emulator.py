"""The PTX interpreter on whole kernels compiled by numba-cuda: results against numpy, counters against hand counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ptx import LaunchError, Placed, PtxKernel, samples
from ptx.compile import missing

if reason := missing():
    pytest.skip(reason, allow_module_level=True)

F32 = np.float32


def kernel(source: str, **options: bool) -> PtxKernel:
    """A sample kernel, compiled (once) and parsed."""
    return PtxKernel(samples.compile_source(source, **options))


def uniform(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """float32 in [0, 1)."""
    return rng.random(shape, dtype=F32)


@pytest.mark.parametrize("n", [1, 31, 256, 1000])
def test_axpy(n: int, rng: np.random.Generator) -> None:
    x, y, out = uniform(rng, n), uniform(rng, n), np.zeros(n, F32)
    counters = kernel(samples.AXPY).launch(-(-n // 128), 128, [out, 2.5, x, y, n])
    np.testing.assert_allclose(out, F32(2.5) * x + y, rtol=1e-6)
    assert counters.load.sectors == counters.load.ideal == counters.load.compulsory == 2 * -(-n // 8)
    assert counters.store.sectors == -(-n // 8)
    assert counters.instructions["fma"] == -(-n // 32)
    assert counters.threads["fma"] == n
    assert counters.instructions["f64"] == 0


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (16, 16, 16), (33, 17, 5), (40, 35, 50)])
def test_tiled_matmul(m: int, n: int, k: int, rng: np.random.Generator) -> None:
    a, b, out = uniform(rng, m, k), uniform(rng, k, n), np.zeros((m, n), F32)
    counters = kernel(samples.MATMUL).launch((-(-n // 16), -(-m // 16)), (16, 16), [out, a, b, m, n, k])
    np.testing.assert_allclose(out, a @ b, rtol=1e-5)
    blocks, tiles = -(-n // 16) * -(-m // 16), -(-k // 16)
    assert counters.barriers == 2 * blocks * tiles
    assert counters.instructions["fma"] == blocks * 8 * tiles * 16
    assert counters.bank_conflicts == 0
    assert counters.shared_bytes == 2 * 16 * 16 * 4


@pytest.mark.parametrize("fastmath", [False, True])
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 128), (5, 300)])
def test_softmax_rows(rows: int, n: int, fastmath: bool, rng: np.random.Generator) -> None:
    x = rng.standard_normal((rows, n)).astype(F32)
    out = np.zeros_like(x)
    counters = kernel(samples.SOFTMAX, fastmath=fastmath).launch(rows, 128, [out, x, n])
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    np.testing.assert_allclose(out, powers / powers.sum(axis=1, keepdims=True), rtol=1e-5)
    assert counters.instructions["warp"] == rows * 4 * 10  # five shuffles for the maximum, five for the sum


def test_histogram(rng: np.random.Generator) -> None:
    x, counts = rng.integers(0, 16, 1000).astype(np.int32), np.zeros(16, np.int32)
    counters = kernel(samples.HISTOGRAM).launch(8, 128, [counts, x])
    np.testing.assert_array_equal(counts, np.bincount(x, minlength=16))
    assert counters.shared_atomic.requests == 32  # every warp has elements: 1000 of 1024
    assert counters.atomic.requests == 8
    assert counters.atomic.compulsory == 2


@pytest.mark.parametrize("n", [1, 100, 1000])
def test_tree_reduction(n: int, rng: np.random.Generator) -> None:
    x, blocks = uniform(rng, n), -(-n // 128)
    out = np.zeros(blocks, F32)
    kernel(samples.TREE).launch(blocks, 128, [out, x, n])
    np.testing.assert_allclose(out.sum(), x.sum(), rtol=1e-5)


def test_last_block_reduction(rng: np.random.Generator) -> None:
    """Blocks hand their sums over through global memory, with a fence and an atomic ticket."""
    x, out, ticket = uniform(rng, 5 * 64), np.zeros(1, F32), np.zeros(1, np.int32)
    kernel(samples.LAST_BLOCK).launch(5, 64, [out, np.zeros(5, F32), ticket, x])
    np.testing.assert_allclose(out[0], x.sum(), rtol=1e-5)
    assert ticket[0] == 5


def test_transpose(rng: np.random.Generator) -> None:
    """The padded tile has no bank conflicts, and both sides of the copy are coalesced."""
    x = uniform(rng, 64, 96)
    out = np.zeros((96, 64), F32)
    counters = kernel(samples.TRANSPOSE).launch((3, 2), (32, 32), [out, x, 64, 96])
    np.testing.assert_array_equal(out, x.T)
    assert counters.bank_conflicts == 0
    assert counters.sectors == counters.ideal_sectors == counters.compulsory_sectors == 2 * 64 * 96 // 8


def test_warp_scan(rng: np.random.Generator) -> None:
    """syncwarp orders accesses inside of a warp."""
    x, out = uniform(rng, 32), np.zeros(32, F32)
    kernel(samples.WARP_SCAN).launch(1, 32, [out, x])
    np.testing.assert_allclose(out, np.cumsum(x), rtol=1e-6)


def test_local_arrays(rng: np.random.Generator) -> None:
    x, index, out = uniform(rng, 100), rng.integers(0, 96, 50).astype(np.int32), np.zeros(50, F32)
    counters = kernel(samples.GATHER).launch(1, 64, [out, x, index, 50])
    np.testing.assert_array_equal(out, x[index + (index & 3)])
    assert counters.local_bytes >= 16


def test_vector_copy(rng: np.random.Generator) -> None:
    """16-byte accesses: a request of a full warp touches 16 sectors."""
    x, out = uniform(rng, 512), np.zeros(512, F32)
    counters = kernel(samples.COPY4).launch(1, 128, [out, x, 512])
    np.testing.assert_array_equal(out, x)
    assert (counters.load.requests, counters.load.sectors, counters.load.ideal) == (4, 64, 64)
    assert (counters.store.requests, counters.store.sectors) == (4, 64)


FUNCTIONS = [
    "sin",
    "cos",
    "tan",
    "exp",
    "log",
    "sqrt",
    "tanh",
    "erf",
    "lgamma",
    "expm1",
    "log1p",
    "atan",
    "sinh",
    "floor",
]


@pytest.mark.parametrize(("kind", "tolerance"), [("float32", 3e-6), ("float64", 1e-14)])
def test_functions_of_the_device_library(kind: str, tolerance: float, rng: np.random.Generator) -> None:
    """Whole library functions, among them calls that are not inlined and table look-ups for great arguments."""
    x = np.concatenate([rng.random(62) * 3 + 0.1, [1e5, 700.0 if kind == "float64" else 80.0]]).astype(kind)
    for name in FUNCTIONS:
        out = np.zeros_like(x)
        kept = x[:62] if name in ("exp", "expm1", "sinh") else x
        kernel(samples.FUNCTION.replace("FUNCTION", name).replace("KIND", kind)).launch(1, 64, [out, kept])
        expected = np.array([getattr(math, name)(float(v)) for v in kept])
        np.testing.assert_allclose(out[: len(kept)], expected, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(("stride", "sectors"), [(0, 1), (1, 4), (2, 8), (4, 16), (8, 32), (9, 32)])
def test_sectors_of_strided_loads(stride: int, sectors: int) -> None:
    """One warp reads 32 floats: 4 sectors when they are neighbours, one each from stride 8 on."""
    x, out = np.zeros(1024, F32), np.zeros(32, F32)
    counters = kernel(samples.STRIDED).launch(1, 32, [out, x, stride])
    assert counters.load.requests == 1
    assert counters.load.sectors == sectors
    assert counters.load.ideal == (4 if stride else 1)
    assert counters.store.sectors == 4


def test_a_view_that_straddles_sectors_costs_one_more() -> None:
    x, out = np.zeros(32, F32), np.zeros(32, F32)
    counters = kernel(samples.STRIDED).launch(1, 32, [out, Placed(x, offset=4), 1])
    assert (counters.load.sectors, counters.load.ideal) == (5, 4)


@pytest.mark.parametrize(("stride", "ways"), [(0, 1), (1, 1), (2, 2), (3, 1), (4, 4), (16, 16), (31, 1)])
def test_bank_conflicts_of_strided_shared_loads(stride: int, ways: int) -> None:
    """Equal words are broadcast; stride s makes gcd(s, 32) lanes meet in a bank."""
    x, out = np.arange(1024, dtype=F32), np.zeros(32, F32)
    counters = kernel(samples.BANKS).launch(1, 32, [out, x, stride])
    np.testing.assert_array_equal(out, x[np.arange(32) * stride])
    assert counters.shared_load.waves == ways
    assert counters.shared_load.extra_waves == ways - 1
    assert counters.shared_store.extra_waves == 0


def test_compulsory_sectors_count_re_reading_once(rng: np.random.Generator) -> None:
    """Softmax in three passes loads its row three times: three times the compulsory sectors."""
    x, out = rng.standard_normal((2, 256)).astype(F32), np.zeros((2, 256), F32)
    counters = kernel(samples.SOFTMAX).launch(2, 128, [out, x, 256])
    assert counters.load.compulsory == 2 * 256 // 8
    assert counters.load.sectors == 3 * counters.load.compulsory


def test_hottest_instructions_name_their_lines(rng: np.random.Generator) -> None:
    a, b, out = uniform(rng, 16, 64), uniform(rng, 64, 16), np.zeros((16, 16), F32)
    counters = kernel(samples.MATMUL).launch((1, 1), (16, 16), [out, a, b, 16, 16, 64])
    issues, text = counters.hottest(1)[0]
    assert issues == 8 * 4
    assert text.split(":")[0].isdigit()
    assert sum(counters.instructions.values()) == counters.issues.sum()


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ([np.zeros(4, F32)], "5 parameters, but 1 arguments"),
        ([np.zeros((4, 4), F32)[:, ::2], 1.0, np.zeros(4, F32), np.zeros(4, F32), 4], "C-contiguous"),
    ],
)
def test_arguments_that_do_not_fit(args: list[object], match: str) -> None:
    with pytest.raises(LaunchError, match=match):
        kernel(samples.AXPY).launch(1, 32, args)


def test_a_block_has_at_most_1024_threads() -> None:
    with pytest.raises(LaunchError, match="2048 threads a block"):
        kernel(samples.AXPY).launch(1, 2048, [np.zeros(1, F32), 1.0, np.zeros(1, F32), np.zeros(1, F32), 1])
