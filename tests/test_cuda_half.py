"""Temps that products read, kept in 16 bits (precision="float16" and "bfloat16"), under the PTX interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
from fusegraph.codegen.cuda.contract_plan import Tile
from fusegraph.codegen.cuda.kernel import CudaKernel
from fusegraph.codegen.cuda.lint import lint
from fusegraph.codegen.cuda.step import CudaStep, emit_step
from fusegraph.codegen.python import print_program_source
from fusegraph.codegen.python_names import ProgramNames, kernel_buffers
from fusegraph.ir import GraphBuilder, interpret
from fusegraph.ir.graph import Graph
from fusegraph.runtime import cuda_compile
from fusegraph.verify import ROUNDED, differs, run_verified
from tests import cuda_runtime_tools as runtime
from tests.cuda_models import batches, emulated
from tests.cuda_ptx import StepPtx, interpreter
from tests.cuda_tools import StepMemory, run_step, step_of

pytestmark = pytest.mark.skipif(
    bool(cuda_compile.missing()), reason=f"kernels cannot be compiled: {cuda_compile.missing()}"
)
Array = np.ndarray[Any, Any]
F32 = np.dtype(np.float32)
CARDS = {"sm_75": (7, 5), "sm_90": (9, 0)}
KINDS = ("float16", "bfloat16")
ROUGH = {"float16": 1e-3, "bfloat16": 1e-2}  # of the largest value, from float32
STEP = {"float16": 2.0**-10, "bfloat16": 2.0**-7}  # from one number to the next
SMALL, QUADS = Tile(32, 32, 16, 4, 1), Tile(32, 128, 8, 4, 4)


# -- the reference: the loops of the program in plain Python, with elements that are rounded where they are stored -----------


def bits_of(values: Array, kind: str) -> Array:
    """float32 rounded to nearest, ties to even, as uint16; NaN as one NaN."""
    values = np.asarray(values, np.float32)
    if kind == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)


def values_of(bits: Array, kind: str) -> Array:
    """What 16 bits mean, as float32."""
    if kind == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(values: Array, kind: str) -> Array:
    """Values as they are read again."""
    return values_of(bits_of(values, kind), kind)


class Kept:
    """A flat array that rounds what is stored in it."""

    def __init__(self, values: Array, kind: str) -> None:
        self.values, self.kind = values, kind

    def __getitem__(self, place: int) -> Any:
        return self.values[place]

    def __setitem__(self, place: int, value: Any) -> None:
        self.values[place] = rounded(np.asarray([value], np.float32), self.kind)[0]


class Reference:
    """Runs the loops of single launches."""

    def __init__(self, step: CudaStep) -> None:
        self.step, self.names = step, ProgramNames(step.program)
        self.module: dict[str, Any] = {}
        exec(print_program_source(step.program), self.module)

    def run(self, kernel: CudaKernel, found: dict[str, Array]) -> dict[str, Array]:
        """What the launch leaves in its buffers, given what lies there before. All flat, as float32 where kept in 16 bits."""
        left = {name: array.copy() for name, array in found.items()}
        narrow = self.step.narrow
        with np.errstate(all="ignore"):
            for loop in (loop for loop in self.step.program.loops if loop.name in kernel.loops):
                for name in {*loop.reads(), *loop.writes()} - set(left):  # in registers only
                    buffer = self.step.program.buffers[name]
                    left[name] = np.zeros(buffer.size, buffer.dtype)
                given = [Kept(left[b], narrow[b]) if b in narrow else left[b] for b in kernel_buffers(loop)]
                self.module[self.names.kernels[loop.name]](*given)
        return {name: left[name] for name in found}


def check_launches(step: CudaStep, inputs: list[Array], target: str = "sm_90") -> list[Array]:
    """Runs the step; what every launch writes is what the reference makes of the same memory, to 1e-5 of the largest value
    (and, where it is stored in 16 bits, one step of those). Gives the outputs."""
    memory, ptx, reference = StepMemory(step, inputs), StepPtx(step, target), Reference(step)
    for launch in step.launches:
        kernel = step.kernel(launch.kernel)
        arguments = memory.arguments(kernel, launch)
        wanted = reference.run(kernel, _values(step, kernel, arguments))
        interpreter(ptx.ptx(kernel)).launch(launch.grid, launch.block, arguments, traffic=False)
        got = _values(step, kernel, arguments)
        written = {name for loop in step.program.loops if loop.name in kernel.loops for name in loop.writes()}
        for name in written & set(got):
            close(got[name], wanted[name], 1e-5, STEP[step.narrow[name]] if name in step.narrow else 0, name)
    return [memory.arrays[name] for name in step.program.outputs]


def _values(step: CudaStep, kernel: CudaKernel, arguments: list[Any]) -> dict[str, Array]:
    found = {}
    for name, placed in zip(kernel.buffers, arguments, strict=True):
        array = placed.array.copy()
        if name in step.narrow:
            array = values_of(array, step.narrow[name])
        found[name] = array.view(np.bool_) if step.program.buffers[name].dtype.kind == "b" else array
    return found


def close(got: Array, wanted: Array, tolerance: float, relative: float = 0, label: str = "") -> None:
    """Within a part of the largest value."""
    wanted = np.asarray(wanted, np.float64)
    scale = max(1.0, float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0)))
    np.testing.assert_allclose(
        np.asarray(got, np.float64).reshape(wanted.shape) / scale, wanted / scale, rtol=relative, atol=tolerance,
        err_msg=label,
    )  # fmt: skip


# -- conversions --------------------------------------------------------------------------------------------------------------


SPECIAL = [
    0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1.0, -1.0, 65504.0, 65519.9, 65520.0, -65536.0, 3.4e38, 2.0**-14, 2.0**-15,
    2.0**-24, 2.0**-25, 1.5 * 2.0**-25, 1e-30, 1e-45, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 1 + 3 * 2.0**-8,
]  # fmt: skip


@pytest.mark.parametrize(("kind", "card"), [("float16", "sm_90"), ("bfloat16", "sm_90"), ("bfloat16", "sm_75")])
@pytest.mark.parametrize("fours", [False, True])
def test_conversions(kind: str, card: str, fours: bool, rng: np.random.Generator) -> None:
    """Nearest, ties to even; subnormal numbers, overflow, infinities, NaN. One by one, and by four neighbours in 64 bits."""
    from numba import cuda, uint32
    from numba.cuda import types

    from fusegraph.codegen.cuda.device import as_stored, load4, store4
    from fusegraph.codegen.cuda.device_storage import pointer_type

    def singly(x: Any, kept: Any, back: Any, again: Any) -> None:
        i = uint32(cuda.threadIdx.x)
        kept[i] = x[i]
        back[i] = kept[i]
        again[i] = as_stored(kept, x[i])

    def by_four(x: Any, kept: Any, back: Any, again: Any) -> None:
        i = uint32(cuda.threadIdx.x * 4)
        a, b, c, d = load4(x, i)
        store4(kept, i, a, b, c, d)
        a, b, c, d = load4(kept, i)
        store4(back, i, a, b, c, d)
        store4(again, i, a, b, c, d)

    values = rng.integers(0, 1 << 32, 256, np.uint64).astype(np.uint32).view(np.float32)
    values[: len(SPECIAL)] = SPECIAL
    values[128:] = rng.standard_normal(128)
    plain = types.CPointer(types.float32)
    signature = types.void(plain, pointer_type(kind, CARDS[card]), plain, plain)
    with cuda_compile.compiling_for(CARDS[card]):
        ptx, _ = cuda.compile_ptx(by_four if fours else singly, signature, cc=CARDS[card])
    assert ("cvt.rn.bf16.f32" in ptx) == (kind == "bfloat16" and card == "sm_90")
    assert ("st.global.v4.u16" in ptx or "st.global.v4.b16" in ptx or "st.global.v2" in ptx) == fours
    kept, back, again = np.zeros(256, np.uint16), np.zeros(256, np.float32), np.zeros(256, np.float32)
    interpreter(ptx).launch((1, 1, 1), (64 if fours else 256, 1, 1), [values, kept, back, again])
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(kept[numbers], bits_of(values, kind)[numbers])
    assert np.isnan(values_of(kept, kind)[~numbers]).all()
    np.testing.assert_array_equal(back, values_of(kept, kind))
    np.testing.assert_array_equal(again, back)


def check_needs(step: CudaStep, card: str) -> None:
    """ptxas spills nothing."""
    if cuda_compile.tool_folder() is None:
        return
    ptx = StepPtx(step, card)
    needs = {kernel.name: cuda_compile.assemble(ptx.ptx(kernel), card)[1] for kernel in step.kernels}
    assert {name: (need.spills, need.stack) for name, need in needs.items() if need.spills or need.stack} == {}


# -- products -----------------------------------------------------------------------------------------------------------------


def product(m: int, k: int, n: int, turned: str = "NN") -> Graph:
    """x.exp() @ y.exp(), both stored; turned: T where one lies transposed in memory."""
    builder = GraphBuilder()

    def operand(name: str, shape: tuple[int, int], side: str) -> Any:
        node = builder.add("exp", (builder.input(name, shape[::-1] if side == "T" else shape, F32),), {})
        return builder.add("permute", (node,), {"axes": (1, 0)}) if side == "T" else node

    a, b = operand("x", (m, k), turned[0]), operand("y", (k, n), turned[1])
    return builder.finish([builder.add("matmul", (a, b), {})], name="product")


@pytest.fixture
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tile that every product of the test uses."""
    monkeypatch.setattr("fusegraph.codegen.cuda.contract_plan.choose_tile", lambda *sizes: request.param)


def check_product(
    graph: Graph, kind: str, card: str, turned: str, rng: np.random.Generator, **options: Any
) -> CudaStep:
    """Against the product of the rounded operands exactly, against float32 roughly."""
    inputs = [rng.standard_normal(node.shape).astype(np.float32) for node in graph.inputs]
    step = step_of(graph, precision=kind, capability=CARDS[card], **options)
    (got,) = run_step(step, [array.copy() for array in inputs], card)
    temps = [np.exp(array.astype(np.float64)).astype(np.float32) for array in inputs]
    for operands, tolerance in ((temps, ROUGH[kind]), ([rounded(temp, kind) for temp in temps], 1e-5)):
        a, b = (array.T if side == "T" else array for array, side in zip(operands, turned, strict=True))
        close(got, a.astype(np.float64) @ b, tolerance)
    assert len(step.narrow) == 2 and lint(step.source) == []
    return step


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("tile", [SMALL], ids=str, indirect=True)
@pytest.mark.parametrize(
    ("turned", "kind", "card"),
    [("NN", "float16", "sm_90"), ("NT", "bfloat16", "sm_75"), ("TN", "float16", "sm_75")],
)
def test_products(turned: str, kind: str, card: str, rng: np.random.Generator) -> None:
    """At odd sizes element by element, else by fours."""
    for sizes in ((33, 35, 35), (36, 20, 36)):
        step = check_product(product(*sizes, turned), kind, card, turned, rng)
        assert "copy1_async" not in step.source and "copy4_async" not in step.source
        check_needs(step, card)
    assert "load4(exp, " in step.source


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("tile", [QUADS], ids=str, indirect=True)
def test_products_by_a_wider_tile(rng: np.random.Generator) -> None:
    check_product(product(36, 40, 132), "float16", "sm_90", "NN", rng)


def test_the_readable_product(rng: np.random.Generator) -> None:
    check_product(product(19, 21, 17), "bfloat16", "sm_90", "NN", rng, readable=True)


def test_what_does_not_fit_and_nan(rng: np.random.Generator) -> None:
    """Beyond 65504 a float16 is an infinity, a bfloat16 is not; infinities and NaN reach the result."""
    x = rng.standard_normal((5, 9)).astype(np.float32)
    x[1, 2], x[2, 3], x[3, 4], x[4, 5] = 12.0, np.inf, np.nan, -np.inf
    graph = product(5, 9, 7)
    y = rng.standard_normal((9, 7)).astype(np.float32)
    rows = []
    for kind in KINDS:
        (got,) = run_step(step_of(graph, precision=kind), [x.copy(), y.copy()])
        got = got.reshape(5, 7)
        np.testing.assert_array_equal(got[2], np.inf)
        assert np.isnan(got[3]).all() and np.isfinite(got[[0, 4]]).all()
        rows.append(got[1])
    assert np.isinf(rows[0]).all()
    close(rows[1], np.exp(x[1].astype(np.float64)) @ np.exp(y), 1e-2)


# -- whole steps --------------------------------------------------------------------------------------------------------------


class Checked:
    """Runs a step beside the references: of each launch, and of the whole in float32."""

    def __init__(self, graph: Graph, step: CudaStep, card: str) -> None:
        self.graph, self.step, self.card, self.runs = graph, step, card, 0

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs; states change in place."""
        graph, rough = self.graph, ROUGH[next(iter(self.step.narrow.values()))]
        outputs, updates = interpret.run(graph, [array.copy() for array in inputs])
        got = check_launches(self.step, inputs, self.card)
        for value, wanted in zip(got, outputs, strict=True):
            close(value, wanted, rough)
        for (old, _), wanted in zip(graph.updates, updates, strict=True):
            close(inputs[graph.inputs.index(old)], wanted, rough)
        self.runs += 1
        return [value.reshape(wanted.shape) for value, wanted in zip(got, outputs, strict=True)]


@pytest.mark.parametrize(
    ("name", "kind", "card", "count"),
    [
        ("minitorch", "bfloat16", "sm_75", 7),
        ("kim", "bfloat16", "sm_90", 6),
        ("transformer", "float16", "sm_90", 13),
    ],
)
def test_training_steps(name: str, kind: str, card: str, count: int) -> None:
    """Forward, backward and update. Convolutions with both gradients, attention, loops that read again what they store."""
    compiled, emulator = emulated(name, "sgd")
    artifact, plain = emulator.artifact, emulator.step
    step = emit_step(artifact.fused[0], precision=kind, capability=CARDS[card])
    assert len(step.narrow) == count and lint(step.source) == []
    assert {step.program.buffers[name].role for name in step.narrow} == {"temp"}
    assert "as_stored(" in step.source
    assert step.memory.arena_bytes < plain.memory.arena_bytes
    assert sum(cost.bytes for cost in step.costs) < sum(cost.bytes for cost in plain.costs)
    artifact.executable = checked = Checked(artifact.graph, step, card)
    compiled(*next(batches(name)))
    assert checked.runs == 1
    check_needs(step, card)


def test_what_is_kept_in_16_bits() -> None:
    """Only temps that a product reads; memory and the bytes that move are as many as their elements have."""

    def function(x: fg.Tensor, w: fg.Tensor) -> tuple[fg.Tensor, fg.Tensor]:
        hidden = (x @ w).exp()
        return hidden @ w, (x * 2).softmax(0)

    x, w = np.ones((64, 32), np.float32), np.ones((32, 32), np.float32)
    steps = {
        precision: fg.compile(function, backend="cuda", target="sm_80", precision=precision)
        .compiled_for(x, w)
        .artifact.executable.step
        for precision in ("float32", *KINDS)
    }
    plain = steps["float32"]
    assert plain.narrow == {} and plain.in_memory.buffers == plain.program.buffers
    for kind in KINDS:
        step = steps[kind]
        (name,) = step.narrow
        assert step.program.buffers[name].shape == (64, 32) and step.narrow[name] == kind
        assert f"temp, written, {kind} in memory" in step.source
        types = {kernel.name: step.types(kernel) for kernel in step.kernels}
        assert all(set(kinds) <= {"float32", kind} for kinds in types.values()) and any(
            kind in t for t in types.values()
        )
        saved = 64 * 32 * 2
        assert step.memory.unshared_bytes == plain.memory.unshared_bytes - saved
        touched = sum((name in kernel.buffers) for kernel in step.kernels)
        assert sum(c.bytes for c in step.costs) == sum(c.bytes for c in plain.costs) - touched * saved


def test_verification_allows_for_the_rounding(rng: np.random.Generator) -> None:
    """verify=True compares with float32: results within the precision that was asked for are right, others are not."""
    compiled = fg.compile(lambda x, y: x.exp() @ y, backend="cuda", target="sm_90", precision="bfloat16", verify=True)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((33, 35), (35, 35))]
    artifact = compiled.compiled_for(*arrays).artifact
    artifact.executable = checked = Checked(artifact.graph, artifact.executable.step, "sm_90")
    (got,) = run_verified(artifact, arrays)
    close(got, np.exp(arrays[0].astype(np.float64)) @ arrays[1], 1e-2)
    assert checked.runs == 1 and checked.step.narrow
    exact = interpret.run(artifact.graph, arrays)[0][0]
    assert differs(got, exact) and not differs(got, exact, {"float32": ROUNDED["bfloat16"]})


def test_temps_that_are_added_to_stay_float32() -> None:
    """The gradient of an embedding is added up in place; atomic additions are of float32."""
    step = emit_step(emulated("kim", "sgd")[1].artifact.fused[0], precision="float16")
    added = {
        store.buffer
        for loop in step.program.loops
        for stage in loop.stages
        for store in stage.stores
        if store.mode == "add"
    }
    assert added and not added & set(step.narrow)


def test_training_by_compile(tmp_path: Any) -> None:
    """compile(precision=...) on an emulated GPU, compiled and from the disk cache: near float32, but not the same."""
    data = runtime.batches("mlp", 2)
    expected = runtime.Training("mlp", "cpu")
    losses = [expected.step(x, y).item() for x, y in data]
    for _ in range(2):
        with runtime.emulated(cache=tmp_path):
            training = runtime.Training("mlp", "cuda", precision="float16")
            got = [training.step(x, y).item() for x, y in data]
            state = training.state()
        np.testing.assert_allclose(got, losses, rtol=ROUGH["float16"])
        for name, value in expected.state().items():
            close(state[name], value, ROUGH["float16"])
        assert any((state[name] != value).any() for name, value in expected.state().items())
