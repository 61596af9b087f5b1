"""What the printed Python of loop programs computes, as it stands and compiled by numba, against numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import python_loops as loops

from fusegraph.dtypes import SUPPORTED, DType, bool_, float32, float64, int32, int64
from fusegraph.errors import DTypeError
from fusegraph.ir import scalar
from fusegraph.ir.graph import GraphBuilder
from fusegraph.ir.index import Index
from fusegraph.ir.interpret import apply
from fusegraph.ir.interpret import run as interpret
from fusegraph.ir.loops import Buffer, Loop, Program, Stage, Store
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.ir.primitives.sources import philox
from fusegraph.passes.fuse import fuse
from fusegraph.runtime.numba_backend import NumbaExecutable, PythonExecutable

GOLDEN = Path(__file__).parent / "golden"
EXECUTABLES = [PythonExecutable, NumbaExecutable]
Of = Index.of

executables = pytest.mark.parametrize("executable", EXECUTABLES)
rng = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    """Standard normal float32."""
    return rng.normal(size=shape).astype(np.float32)


# -- every operation of the table -----------------------------------------------------------------------------------


FLOATS = [-np.inf, -3e38, -2.5, -1.5, -1.0, -1e-40, -0.0, 0.0, 0.3, 0.5, 1.0, 1.5, 2.5, 88.0, np.inf, np.nan]


def edge_values(dtype: DType) -> np.ndarray:
    """Values of `dtype` at which operations tend to go wrong."""
    if dtype.kind == "f":
        return np.array(FLOATS, dtype)
    if dtype.kind == "b":
        return np.array([False, True])
    limits = np.iinfo(dtype)
    small = [value for value in (-33, -7, -1, 0, 1, 2, 3, 7, 8, 31, 32, 63, 64) if value >= limits.min]
    return np.array([limits.min, limits.min + 1, *small, limits.max - 1, limits.max], dtype)


def elementwise(dtype: DType) -> list[str]:
    """Maps and zips (but for cast and where) that take `dtype`."""
    found = []
    build = GraphBuilder()
    for name, primitive in PRIMITIVES.items():
        if primitive.kind not in ("map", "zip") or name in ("cast", "where"):
            continue
        operand = build.input(name, (), dtype)
        try:
            primitive.infer([operand] * (2 if primitive.kind == "zip" else 1), {})
        except DTypeError:
            continue
        found.append(name)
    return found


def same(actual: np.ndarray, wanted: np.ndarray, name: str, ulps: float = 4) -> None:
    """Equal, up to a few units in the last place where a C library's function took part."""
    assert actual.dtype == wanted.dtype, name
    if wanted.dtype.kind == "f":
        tolerance = ulps * float(np.finfo(wanted.dtype).eps)
        np.testing.assert_allclose(actual, wanted, rtol=tolerance, atol=np.finfo(wanted.dtype).tiny, err_msg=name)
    else:
        np.testing.assert_array_equal(actual, wanted, err_msg=name)


@executables
@pytest.mark.parametrize("dtype", SUPPORTED.values(), ids=str)
def test_maps_and_zips(executable: Any, dtype: DType) -> None:
    edges = edge_values(dtype)
    a, b = (part.ravel().copy() for part in np.meshgrid(edges, edges, indexing="ij"))
    (e,) = loops.axes(e0=a.size)
    x, y = scalar.load("a", (Of(e),), dtype), scalar.load("b", (Of(e),), dtype)
    names = elementwise(dtype)
    assert "eq" in names and len(names) >= (7 if dtype.kind == "b" else 17), names
    outputs, wanted = {}, {}
    for name in names:
        args = (x, y) if PRIMITIVES[name].kind == "zip" else (x,)
        wanted[name] = apply(name, (a, b)[: len(args)], {})
        outputs[f"{name}_of"] = scalar.op(name, *args, dtype=wanted[name].dtype)
    program = loops.operation_program("ops", outputs, {"a": a, "b": b}, a.size)
    found = loops.run(executable(program), {"a": a, "b": b})
    for name in names:
        same(found[f"{name}_of"], wanted[name], f"{name} {dtype}")


@executables
@pytest.mark.parametrize("dtype", SUPPORTED.values(), ids=str)
def test_casts(executable: Any, dtype: DType) -> None:
    """To every type; numbers out of an integer's range only where a wrap-around is defined (from integers)."""
    if dtype.kind == "f":
        edges = np.array([0.0, 0.4, 0.5, 1.0, 1.9, 100.7, 254.5], dtype)
    else:
        edges = edge_values(dtype)
    (e,) = loops.axes(e0=edges.size)
    x = scalar.load("a", (Of(e),), dtype)
    outputs = {f"to_{name}": scalar.op("cast", x, dtype=to) for name, to in SUPPORTED.items()}
    outputs["of_sum"] = scalar.op("cast", scalar.op("cast", x, dtype=bool_), dtype=int32)
    program = loops.operation_program("casts", outputs, {"a": edges}, edges.size)
    found = loops.run(executable(program), {"a": edges})
    with np.errstate(all="ignore"):
        for name, to in SUPPORTED.items():
            same(found[f"to_{name}"], edges.astype(to), f"{dtype} to {name}")
    same(found["of_sum"], edges.astype(bool).astype(np.int32), "bool to int32")


@executables
def test_casts_of_signed_and_special_floats(executable: Any) -> None:
    a = np.array([-2.9, -1.0, -0.5, -0.0, 0.9, 1e6], np.float32)
    b = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 0.0], np.float32)
    (e,) = loops.axes(e0=a.size)
    x, y = scalar.load("a", (Of(e),), float32), scalar.load("b", (Of(e),), float32)
    outputs = {
        "int32": scalar.op("cast", x, dtype=int32),
        "int64": scalar.op("cast", x, dtype=int64),
        "truth": scalar.op("cast", y, dtype=bool_),
        "double": scalar.op("cast", y, dtype=float64),
    }
    found = loops.run(executable(loops.operation_program("casts", outputs, {"a": a, "b": b}, a.size)), {"a": a, "b": b})
    np.testing.assert_array_equal(found["int32"], [-2, -1, 0, 0, 0, 1_000_000])
    np.testing.assert_array_equal(found["int64"], [-2, -1, 0, 0, 0, 1_000_000])
    np.testing.assert_array_equal(found["truth"], [True, True, True, False, True, False])
    np.testing.assert_array_equal(found["double"], b.astype(np.float64))


@executables
def test_where_index_and_constants(executable: Any) -> None:
    a, b = normal(6), normal(6)
    (e,) = loops.axes(e0=6)
    x, y, number = (
        scalar.load("a", (Of(e),), float32),
        scalar.load("b", (Of(e),), float32),
        scalar.index_value(Of(e) * 3 - 4),
    )
    condition = scalar.op("lt", number, scalar.const(5, int64), dtype=bool_)
    outputs = {
        "chosen": scalar.op("where", condition, x, y),
        "number": number,
        "squared": scalar.op("mul", number, number),
        "real": scalar.op("cast", number, dtype=float32),
        "below": scalar.op("floordiv", number, scalar.const(2, int64)),
        "nan": scalar.op("add", x, scalar.const(np.nan, float32)),
        "inf": scalar.op("minimum", x, scalar.const(-np.inf, float32)),
        "tenth": scalar.op("mul", x, scalar.const(0.1, float32)),
        "inner": scalar.inside((scalar.Bound(Of(e) - 2, 0, 3), scalar.Divides(Of(e), 2))),
    }
    found = loops.run(executable(loops.operation_program("mixed", outputs, {"a": a, "b": b}, 6)), {"a": a, "b": b})
    numbers = np.arange(6) * 3 - 4
    wanted = {
        "chosen": np.where(numbers < 5, a, b),
        "number": numbers,
        "squared": numbers**2,
        "real": numbers.astype(np.float32),
        "below": numbers // 2,
        "nan": np.full(6, np.nan, np.float32),
        "inf": np.full(6, -np.inf, np.float32),
        "tenth": a * np.float32(0.1),
        "inner": np.array([0, 0, 1, 0, 1, 0], bool),
    }
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        assert found[name].dtype == value.dtype


# -- reductions -----------------------------------------------------------------------------------------------------


def reduce_inputs(dtype: DType) -> np.ndarray:
    """(3, 4, 5) with ties; floats also with rows of NaN and of infinities only."""
    if dtype.kind == "b":
        return rng.random((3, 4, 5)) < 0.5
    values = rng.integers(0, 4, (3, 4, 5)).astype(dtype)
    if dtype.kind == "f":
        values[0, 1, 2] = values[0, 3, 0] = values[1, 0, 4] = np.nan
        values[1, 2] = -np.inf
        values[2, 3] = np.inf
    elif dtype.kind == "i":
        values[1] -= 2
        values[2, 2] = np.iinfo(dtype).max
    return values


@pytest.mark.parametrize("executable", [PythonExecutable])
@pytest.mark.parametrize("dtype", SUPPORTED.values(), ids=str)
@pytest.mark.parametrize("op", ["sum", "prod", "max", "min", "argmax", "argmin"])
def test_reductions(executable: Any, op: str, dtype: DType) -> None:
    check_reductions(executable, op, dtype, [(0,), (1,), (2,), (0, 2), (0, 1, 2)])


@pytest.mark.parametrize("dtype", [float32, int32, bool_], ids=str)
@pytest.mark.parametrize("op", ["sum", "prod", "max", "min", "argmax", "argmin"])
def test_reductions_compiled(op: str, dtype: DType) -> None:
    check_reductions(NumbaExecutable, op, dtype, [(0, 2)])


def check_reductions(executable: Any, op: str, dtype: DType, cases: list[tuple[int, ...]]) -> None:
    """`op` over each of `cases` axes."""
    x = reduce_inputs(dtype)
    for reduced in cases:
        if op in ("sum", "prod") and dtype.kind == "b":
            continue
        found = loops.run(executable(loops.reduce_program(op, dtype, x.shape, reduced)), {"x": x})["out"]
        same(found, apply(op, (x,), {"axes": reduced}), f"{op} {dtype} {reduced}", ulps=60)


def test_reductions_of_nothing() -> None:
    """A sum over no elements is 0, a product 1; no points of `space` store nothing."""
    for op, wanted in (("sum", 0), ("prod", 1)):
        x = np.zeros((3, 0), np.float32)
        found = loops.run(PythonExecutable(loops.reduce_program(op, float32, (3, 0), (1,))), {"x": x})["out"]
        np.testing.assert_array_equal(found, np.full(3, wanted, np.float32))
        x = np.zeros((0, 3), np.float32)
        assert loops.run(PythonExecutable(loops.reduce_program(op, float32, (0, 3), (1,))), {"x": x})["out"].shape == (
            0,
        )


def test_first_extreme_wins() -> None:
    """As numpy: ties go to the first, a NaN beats every number, an all -inf row has its first element."""
    x = np.array([[1, 3, 3, 2], [-np.inf] * 4, [1, np.nan, 9, np.nan]], np.float32)
    found = loops.run(PythonExecutable(loops.reduce_program("argmax", float32, (3, 4), (1,))), {"x": x})["out"]
    np.testing.assert_array_equal(found, [1, 0, 1])


# -- kernels --------------------------------------------------------------------------------------------------------


@executables
def test_softmax(executable: Any) -> None:
    x = normal(4, 9)
    found = loops.run(executable(loops.softmax(4, 9)), {"x": x})["out"]
    e = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(found, e / e.sum(1, keepdims=True), rtol=1e-5)


@executables
def test_matmul_with_epilogue(executable: Any) -> None:
    x, w, b = normal(5, 7), normal(3, 7), normal(3)
    found = loops.run(executable(loops.linear_relu(5, 3, 7)), {"x": x, "fc.weight": w, "fc.bias": b})["out"]
    np.testing.assert_allclose(found, np.maximum(x @ w.T + b, 0), rtol=1e-5, atol=1e-6)


@executables
def test_convolution_with_masks(executable: Any) -> None:
    image, weight = normal(2, 3, 5, 5), normal(4, 3, 3, 3)
    found = loops.run(executable(loops.conv(2, 3, 4, 5, 3, 1)), {"image": image, "weight": weight})["out"]
    options = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
    np.testing.assert_allclose(found, apply("conv", (image, weight), options), rtol=1e-5, atol=1e-5)


@executables
def test_scatter_adds_in_order_and_clamps(executable: Any) -> None:
    ids, gradient, table = np.array([3, 0, 3, -5, 99, 3]), normal(6, 4), normal(5, 4)
    found = loops.run(
        executable(loops.embedding_gradient(6, 5, 4)), {"ids": ids, "gradient": gradient, "table": table}
    )["table"]
    np.testing.assert_array_equal(found, apply("put_add", (table, ids, gradient), {"axis": 0}))


@executables
def test_random_bits_and_several_stores(executable: Any) -> None:
    x = normal(6, 11)
    found = loops.run(
        executable(loops.dropout(6, 11)), {"key": np.uint32(0xDEADBEEF), "counter": np.uint32(0xFFFFFFFF), "x": x}
    )
    bits = philox(0xDEADBEEF, 0xFFFFFFFF, (6, 11))
    np.testing.assert_array_equal(found["bits"], bits)
    kept = (bits >> np.uint32(8)).astype(np.float32) * np.float32(2**-24) < np.float32(0.9)
    np.testing.assert_array_equal(found["kept"], kept)
    np.testing.assert_array_equal(found["out"], np.where(kept, x / np.float32(0.9), np.float32(0)))


@executables
def test_stores_of_a_stage_read_what_was_before(executable: Any) -> None:
    lr, gradient, weight, velocity = np.float32(0.25), normal(9), normal(9), normal(9)
    found = loops.run(
        executable(loops.momentum_step(9)), {"lr": lr, "gradient": gradient, "weight": weight, "velocity": velocity}
    )
    faster = velocity * np.float32(0.9) + gradient
    np.testing.assert_allclose(found["velocity"], faster, rtol=1e-6)
    np.testing.assert_allclose(found["weight"], weight - lr * (velocity + faster), rtol=1e-6)


@executables
def test_division_and_divisibility_of_indices(executable: Any) -> None:
    x, y = normal(4), normal(4, 3)
    found = loops.run(executable(loops.dilated(4, 3)), {"x": x, "y": y})
    wanted = np.zeros(12, np.float32)
    wanted[::3] = x
    np.testing.assert_array_equal(found["out"], wanted)
    np.testing.assert_array_equal(found["back"], y.T)


@executables
def test_local_buffers_and_stages(executable: Any) -> None:
    x, scale, shift = normal(3, 8), normal(8), normal(8)
    found = loops.run(executable(loops.normalise(3, 8)), {"x": x, "scale": scale, "shift": shift})["out"]
    centred = x - x.mean(1, keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * scale + shift
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def in_place_chain() -> Program:
    """a = a + 1, then b = 2 * a (the new one), over the same points; `a` is read in both stages."""
    (i,) = loops.axes(i0=5)
    a = scalar.load("a", (Of(i),), float32)
    doubled = scalar.op("mul", a, scalar.const(2, float32))
    stages = (
        Stage(
            stores=(Store("b", (Of(i),), doubled), Store("a", (Of(i),), scalar.op("add", a, scalar.const(1, float32))))
        ),
        Stage(stores=(Store("c", (Of(i),), doubled),)),
    )
    buffers = [
        Buffer("a", (5,), float32, "state"),
        Buffer("b", (5,), float32, "output"),
        Buffer("c", (5,), float32, "output"),
    ]
    return loops.program(Loop("chain", (i,), stages), *buffers)


def test_a_later_stage_reads_memory_anew() -> None:
    """An expression over memory that the loop writes is not kept in a variable from one stage to the next."""
    a = normal(5)
    found = loops.run(PythonExecutable(in_place_chain()), {"a": a})
    np.testing.assert_array_equal(found["b"], 2 * a)
    np.testing.assert_array_equal(found["c"], 2 * (a + np.float32(1)))


def test_a_failing_mask_touches_no_memory() -> None:
    """The index that the mask shuts out lies far outside: it would raise IndexError."""
    (i,) = loops.axes(e0=6)
    value = scalar.load("x", (Of(i) * 1000 - 2000,), float32, (scalar.Bound(Of(i) * 1000 - 2000, 0, 3),))
    program = loops.operation_program("masked", {"out": value}, {"x": np.ones(3, np.float32)}, 6)
    found = loops.run(PythonExecutable(program), {"x": np.ones(3, np.float32)})["out"]
    np.testing.assert_array_equal(found, [0, 0, 1, 0, 0, 0])


# -- whole graphs ---------------------------------------------------------------------------------------------------


def run_fused(
    graph: Any, arrays: list[np.ndarray], merge: bool, executable: Any = PythonExecutable
) -> list[np.ndarray]:
    """Outputs of `graph` through fusion and the printed Python, then the updated inputs."""
    program, _ = fuse(graph, merge)
    found = loops.run(executable(program), dict(zip(program.inputs, arrays, strict=True)))
    inputs = dict(zip(graph.inputs, program.inputs, strict=True))
    outputs = [found[name].reshape(node.shape) for name, node in zip(program.outputs, graph.outputs, strict=True)]
    return outputs + [found[inputs[old]] for old, _ in graph.updates]


@pytest.mark.parametrize("name", PRIMITIVES)
def test_every_primitive_fused_and_printed(name: str) -> None:
    """Each sample of the table, in float64 and in float32."""
    for arrays, params in PRIMITIVES[name].samples(np.random.default_rng(3)):
        for real in (np.float64, np.float32):
            converted = [
                np.asarray(a).astype(real) if np.asarray(a).dtype == np.float64 else np.asarray(a) for a in arrays
            ]
            build = GraphBuilder()
            inputs = [build.input(f"x{i}", array.shape, array.dtype) for i, array in enumerate(converted)]
            graph = build.finish([build.add(name, inputs, params)])
            (found,), (wanted,) = run_fused(graph, converted, True), interpret(graph, converted)[0]
            assert found.dtype == wanted.dtype and found.shape == wanted.shape
            tolerance = 1e-11 if wanted.dtype == np.float64 else 1e-5
            np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance, err_msg=f"{name} {params}")
