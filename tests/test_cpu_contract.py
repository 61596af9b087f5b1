"""Matrix products of every layout with epilogues, against numpy in float64."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from contract_tools import CompiledLoop, assert_close, program_of

from fusegraph.codegen.cpu.contract import plan_contract
from fusegraph.dtypes import bool_, float32, float64, int64, uint32
from fusegraph.ir.index import Axis, Index, Indirect
from fusegraph.ir.loops import Buffer, Loop, Program, Reduce, Stage, Store
from fusegraph.ir.scalar import Bound, Expr, acc, const, load, op, philox

SHAPES = [
    (1, 10, 7), (7, 1, 5), (64, 10, 128), (6, 16, 8), (12, 32, 3), (13, 33, 17), (5, 24, 1), (3, 8, 64),
    (64, 96, 530), (45, 130, 600), (64, 100, 50), (17, 47, 33), (2, 129, 9), (50, 3, 20), (0, 5, 4), (4, 0, 4),
    (9, 40, 100), (20, 40, 900),
    (70, 40, 5000),
]  # fmt: skip
LAYOUTS = ["nn", "nt", "tn", "tt"]


def matmul(
    shape: tuple[int, int, int], layout: str, epilogue=None, dtype=float32, extra=(), batch=()
) -> tuple[Loop, Program]:
    """out[..., m, n] = epilogue(sum over k of a * b); each of a and b is normal ("n") or transposed ("t") in memory."""
    m, n, k = (Axis(name, extent) for name, extent in zip("mnk", shape, strict=True))
    lead = tuple(Axis(f"g{i}", extent) for i, extent in enumerate(batch))
    first, second = ((m, k) if layout[0] == "n" else (k, m)), ((k, n) if layout[1] == "n" else (n, k))
    product = op("mul", read("a", (*lead, *first), dtype), read("b", (*lead, *second), dtype))
    total = acc("acc0", dtype)
    value = total if epilogue is None else epilogue(total, m, n)
    stores = value if isinstance(value, tuple) else (Store("out", at((*lead, m, n)), value),)
    loop = Loop(
        "kernel", (*lead, m, n),
        (Stage(reduce_axes=(k,), reduces=(Reduce("acc0", "sum", product, dtype),)), Stage(stores=stores)), "contract",
    )  # fmt: skip
    buffers = [
        Buffer("a", tuple(x.extent for x in (*lead, *first)), dtype, "input"),
        Buffer("b", tuple(x.extent for x in (*lead, *second)), dtype, "input"),
        Buffer("out", tuple(x.extent for x in (*lead, m, n)), dtype, "output"),
        *extra,
    ]
    return loop, program_of(loop, buffers)


def at(axes: tuple[Axis, ...]) -> tuple[Index, ...]:
    """The index expressions that are just these axes."""
    return tuple(Index.of(axis) for axis in axes)


def read(buffer: str, axes: tuple[Axis, ...], dtype=float32) -> Expr:
    """A load at these axes."""
    return load(buffer, at(axes), dtype)


def inputs(program: Program, seed: int = 0) -> dict[str, np.ndarray]:
    """Random values for every buffer but the outputs."""
    rng = np.random.default_rng(seed)
    return {b.name: rng.uniform(-1, 1, b.shape).astype(b.dtype) for b in program.buffers.values() if b.role != "output"}


def product(arrays: dict[str, np.ndarray], layout: str) -> np.ndarray:
    """The matrix product in float64."""
    a, b = arrays["a"].astype(np.float64), arrays["b"].astype(np.float64)
    return np.matmul(a if layout[0] == "n" else a.swapaxes(-1, -2), b if layout[1] == "n" else b.swapaxes(-1, -2))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layouts_and_sizes(shape: tuple[int, int, int], layout: str) -> None:
    loop, program = matmul(shape, layout)
    arrays = inputs(program)
    compiled = CompiledLoop(loop, program)
    assert compiled.kernel is not None
    assert_close(compiled.run(arrays)["out"], product(arrays, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_do_not_change_a_bit(layout: str, threads: int) -> None:
    loop, program = matmul((37, 77, 41), layout)
    arrays = inputs(program)
    compiled = CompiledLoop(loop, program)
    np.testing.assert_array_equal(compiled.run(arrays, threads)["out"], compiled.run(arrays, 1)["out"])


@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
@pytest.mark.parametrize("shape", [(512, 128, 512), (403, 128, 600), (220, 128, 9000)], ids=str)
def test_threads_copy_their_own_rows_of_a_transposed_operand(shape: tuple[int, int, int], dtype) -> None:
    """A tall gradient of a weight: each thread's scratch holds the rows that it needs, and those alone."""
    loop, program = matmul(shape, "tn", lambda total, m, n: op("add", total, read("out", (m, n), dtype)), dtype)
    arrays = {**inputs(program), "out": np.ones(shape[:2], dtype)}
    compiled = CompiledLoop(loop, program, 256)
    assert re.search(r"call void @kernel_stage_narrow\(ptr %p\d, ptr %\w+, i64 %\w+, i64 %\w+\)", compiled.text)
    found = compiled.run(arrays, 1)["out"]
    assert_close(found, product(arrays, "tn") + 1, 1e-5 if dtype == float32 else 1e-13)
    for threads in (2, 3, 7, 100):
        np.testing.assert_array_equal(compiled.run(arrays, threads)["out"], found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float64(layout: str) -> None:
    loop, program = matmul((13, 21, 34), layout, dtype=float64)
    arrays = inputs(program)
    assert_close(CompiledLoop(loop, program).run(arrays)["out"], product(arrays, layout), 1e-14)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batched(layout: str) -> None:
    loop, program = matmul((9, 17, 12), layout, batch=(3, 2))
    arrays = inputs(program)
    compiled = CompiledLoop(loop, program)
    assert_close(compiled.run(arrays, 3)["out"], product(arrays, layout))


@pytest.mark.parametrize("vector_bits", [128, 256])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_vector_widths(layout: str, vector_bits: int) -> None:
    loop, program = matmul((13, 27, 18), layout)
    arrays = inputs(program)
    assert_close(CompiledLoop(loop, program, vector_bits).run(arrays)["out"], product(arrays, layout))


@pytest.mark.parametrize("shape", [(13, 33, 17), (64, 10, 20), (5, 1, 9)], ids=str)
def test_bias_and_relu(shape: tuple[int, int, int]) -> None:
    extra = [Buffer("bias", (shape[1],), float32, "input")]
    loop, program = matmul(shape, "nn", lambda y, m, n: op("relu", op("add", y, read("bias", (n,)))), extra=extra)
    arrays = inputs(program)
    expected = np.maximum(product(arrays, "nn") + arrays["bias"], 0)
    assert_close(CompiledLoop(loop, program).run(arrays, 2)["out"], expected)


def test_row_bias_residual_and_mask() -> None:
    extra = [Buffer("bias", (13,), float32, "input"), Buffer("rest", (13, 33), float32, "input")]

    def epilogue(y: Expr, m: Axis, n: Axis) -> Expr:
        rest = read("rest", (m, n))
        return op(
            "where",
            op("gt", rest, const(0.0, float32)),
            op("add", y, read("bias", (m,))),
            op("mul", y, rest),
            dtype=float32,
        )

    loop, program = matmul((13, 33, 17), "nt", epilogue, extra=extra)
    arrays = inputs(program)
    y, rest = product(arrays, "nt"), arrays["rest"]
    assert_close(
        CompiledLoop(loop, program).run(arrays, 2)["out"], np.where(rest > 0, y + arrays["bias"][:, None], y * rest)
    )


def test_relu_keeps_nan() -> None:
    loop, program = matmul((3, 5, 4), "nn", lambda y, m, n: op("relu", y))
    arrays = inputs(program)
    arrays["a"][1, 2] = np.nan
    assert np.isnan(CompiledLoop(loop, program).run(arrays)["out"][1]).all()


@pytest.mark.parametrize("shape", [(21, 35, 16), (190, 175, 16)])
def test_momentum_update_in_place(shape: tuple[int, int, int]) -> None:
    """Two state buffers, several stores: what follows the weight gradient in a training step. Large ones are prefetched."""
    extra = [Buffer(name, shape[:2], float32, "state") for name in ("w", "v")]

    def epilogue(y: Expr, m: Axis, n: Axis) -> tuple[Store, ...]:
        velocity = op("add", op("mul", read("v", (m, n)), const(0.9, float32)), y)
        weight = op("sub", read("w", (m, n)), op("mul", velocity, const(0.05, float32)))
        return Store("v", at((m, n)), velocity), Store("w", at((m, n)), weight)

    loop, program = matmul(shape, "tn", epilogue, extra=extra)
    arrays = inputs(program)
    compiled = CompiledLoop(loop, program)
    assert "columns (n)" in str(plan_contract(loop, program, vector_bits=256))  # m is strided in the states
    assert ("@llvm.prefetch" in compiled.text) == (shape[0] > 100)
    found = compiled.run(arrays, 3)
    velocity = 0.9 * arrays["v"].astype(np.float64) + product(arrays, "tn")
    assert_close(found["v"], velocity)
    assert_close(found["w"], arrays["w"] - 0.05 * velocity)


def test_later_stage_reads_what_an_earlier_one_stored() -> None:
    extra = [Buffer("s", (6, 20), float32, "state")]
    loop, program = matmul((6, 20, 5), "nn", extra=extra)
    m, n = loop.space
    stored = op("add", acc("acc0", float32), read("s", (m, n)))
    stages = (
        loop.stages[0], Stage(stores=(Store("s", at((m, n)), stored),)),
        Stage(stores=(Store("out", at((m, n)), op("mul", read("s", (m, n)), const(2.0, float32))),)),
    )  # fmt: skip
    loop = Loop("kernel", loop.space, stages, "contract")
    arrays = inputs(program)
    found = CompiledLoop(loop, program).run(arrays)
    assert_close(found["s"], product(arrays, "nn") + arrays["s"])
    assert_close(found["out"], 2 * (product(arrays, "nn") + arrays["s"]))


def test_heads_sliced_out_of_a_joint_projection() -> None:
    """scores[g, i, j] = q . k, g = sample * heads + head, read from qkv[sample, i, part * width + head * depth + d]."""
    samples, heads, tokens, depth = 2, 3, 11, 8
    g, i, j, d = Axis("g", samples * heads), Axis("i", tokens), Axis("j", tokens), Axis("d", depth)
    width = heads * depth

    def part(number: int, token: Axis) -> Expr:
        index = (Index.of(g) // heads, Index.of(token), (Index.of(g) % heads) * depth + d + number * width)
        return load("qkv", index, float32)

    reduce = Reduce("acc0", "sum", op("mul", part(0, i), part(1, j)), float32)
    store = Store("out", at((g, i, j)), op("mul", acc("acc0", float32), const(0.5, float32)))
    loop = Loop("kernel", (g, i, j), (Stage(reduce_axes=(d,), reduces=(reduce,)), Stage(stores=(store,))), "contract")
    buffers = [
        Buffer("qkv", (samples, tokens, 3 * width), float32, "input"),
        Buffer("out", (g.extent, tokens, tokens), float32, "output"),
    ]  # fmt: skip
    program = program_of(loop, buffers)
    arrays = inputs(program)
    qkv = arrays["qkv"].astype(np.float64).reshape(samples, tokens, 3, heads, depth).transpose(2, 0, 3, 1, 4)
    expected = 0.5 * (qkv[0] @ qkv[1].swapaxes(-1, -2)).reshape(g.extent, tokens, tokens)
    compiled = CompiledLoop(loop, program)
    assert compiled.kernel is not None
    assert_close(compiled.run(arrays, 2)["out"], expected)


def test_rows_of_two_axes_share_a_weight() -> None:
    """out[s, b, n] = sum of x[b, s, k] * w[k, n]: rows that cannot be merged."""
    s, b, n, k = Axis("s", 5), Axis("b", 4), Axis("n", 19), Axis("k", 6)
    reduce = Reduce("acc0", "sum", op("mul", read("x", (b, s, k)), read("w", (k, n))), float32)
    stages = (
        Stage(reduce_axes=(k,), reduces=(reduce,)),
        Stage(stores=(Store("out", at((s, b, n)), acc("acc0", float32)),)),
    )
    loop = Loop("kernel", (s, b, n), stages, "contract")
    buffers = [
        Buffer("x", (4, 5, 6), float32, "input"), Buffer("w", (6, 19), float32, "input"),
        Buffer("out", (5, 4, 19), float32, "output"),
    ]  # fmt: skip
    program = program_of(loop, buffers)
    arrays = inputs(program)
    compiled = CompiledLoop(loop, program)
    assert compiled.kernel is not None
    for threads in (1, 3):
        assert_close(compiled.run(arrays, threads)["out"], np.einsum("bsk,kn->sbn", arrays["x"], arrays["w"]))


def test_transposed_output() -> None:
    """out[n, m]: the roles of the operands change so that vectors stay contiguous in the output."""
    m, n, k = Axis("m", 23), Axis("n", 14), Axis("k", 9)
    reduce = Reduce("acc0", "sum", op("mul", read("a", (m, k)), read("b", (k, n))), float32)
    stages = (
        Stage(reduce_axes=(k,), reduces=(reduce,)),
        Stage(stores=(Store("out", at((n, m)), acc("acc0", float32)),)),
    )
    loop = Loop("kernel", (m, n), stages, "contract")
    program = program_of(loop, [Buffer("a", (23, 9), float32, "input"), Buffer("b", (9, 14), float32, "input"),
                                Buffer("out", (14, 23), float32, "output")])  # fmt: skip
    arrays = inputs(program)
    assert_close(CompiledLoop(loop, program).run(arrays, 2)["out"], product(arrays, "nn").T)


def test_exact_sums_in_order_without_fused_products() -> None:
    loop, program = matmul((7, 19, 33), "nn")
    arrays = inputs(program)
    expected = np.zeros((7, 19), np.float32)
    for k in range(33):
        expected += arrays["a"][:, k : k + 1] * arrays["b"][k]
    np.testing.assert_array_equal(CompiledLoop(loop, program, exact=True).run(arrays)["out"], expected)


def test_refuses_what_is_no_float_contraction() -> None:
    loop, program = matmul((4, 4, 4), "nn", dtype=int64)
    assert CompiledLoop(loop, program).kernel is None
    for shape in ((4, 4, 0), (1, 1, 8)):
        assert CompiledLoop(*matmul(shape, "nn")).kernel is None


def test_plans_say_what_they_do() -> None:
    def plan(shape: tuple[int, int, int], layout: str) -> str:
        return str(plan_contract(*matmul(shape, layout), vector_bits=256))

    assert plan((64, 256, 784), "nn").endswith("packed panels")
    assert plan((12, 16, 8), "nn") == "12 rows x 16 columns (n) in tiles of 6 rows x 2 vectors of 8"
    assert plan((1, 64, 256), "nt") == "1 rows x 64 columns (n) in tiles of dot products of 1 rows x 8 columns"
    assert plan((512, 512, 512), "tn").endswith("packed panels, a staged")
    assert plan((120, 40, 9000), "nt").endswith("packed panels, sums in 4 blocks")


def test_text_is_deterministic() -> None:
    loop, program = matmul((64, 100, 50), "nt")
    assert CompiledLoop(loop, program).text == CompiledLoop(loop, program).text


def test_long_epilogue_with_dropout() -> None:
    """gelu, a random mask, and a second output: too long to be written out for every vector of a tile."""
    shape = (26, 43, 11)
    extra = [Buffer("key", (), uint32, "input"), Buffer("kept", shape[:2], bool_, "output")]

    def epilogue(y: Expr, m: Axis, n: Axis) -> tuple[Store, ...]:
        gelu = op(
            "mul",
            op("mul", y, const(0.5, float32)),
            op("add", op("erf", op("mul", y, const(0.70710678, float32))), const(1.0, float32)),
        )
        bits = philox(load("key", (), uint32), const(3, uint32), Index.of(m) * shape[1] + n)
        kept = op("lt", bits, const(1 << 31, uint32), dtype=bool_)
        value = op("where", kept, op("mul", gelu, const(2.0, float32)), const(0.0, float32), dtype=float32)
        return Store("out", at((m, n)), value), Store("kept", at((m, n)), kept)

    loop, program = matmul(shape, "nt", epilogue, extra=extra)
    arrays = inputs(program) | {"key": np.array(1234, np.uint32)}
    compiled = CompiledLoop(loop, program)
    found = compiled.run(arrays, 1)
    y = product(arrays, "nt")
    gelu = 0.5 * y * (1 + np.vectorize(math.erf)(y * 0.70710678))
    assert_close(found["out"], np.where(found["kept"], 2 * gelu, 0.0), 1e-5)
    assert 0.4 < found["kept"].mean() < 0.6
    for threads in (2, 3):
        np.testing.assert_array_equal(compiled.run(arrays, threads)["out"], found["out"])


def test_epilogue_that_looks_up_a_row_and_masks_a_load() -> None:
    shape = (14, 22, 9)
    extra = [
        Buffer("label", (14,), int64, "input"),
        Buffer("table", (5, 22), float32, "input"),
        Buffer("rest", (14, 20), float32, "input"),
    ]

    def epilogue(y: Expr, m: Axis, n: Axis) -> Expr:
        chosen = Index(0, ((Indirect(read("label", (m,), int64), 5), 1),))
        shifted = Index.of(n) - 1
        rest = load("rest", (Index.of(m), shifted), float32, (Bound(shifted, 0, 20),))
        return op("add", op("mul", y, load("table", (chosen, Index.of(n)), float32)), rest)

    loop, program = matmul(shape, "nn", epilogue, extra=extra)
    arrays = inputs(program) | {"label": np.arange(14) % 5}
    expected = product(arrays, "nn") * arrays["table"][arrays["label"]] + np.pad(arrays["rest"], ((0, 0), (1, 1)))
    assert_close(CompiledLoop(loop, program).run(arrays, 2)["out"], expected)
