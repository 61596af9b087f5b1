"""Emitted CUDA source: the lint's rules, golden texts, what is said without a GPU, and results under the PTX interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
from fusegraph.codegen.cuda.contract_plan import TILES, Tile, choose_tile
from fusegraph.codegen.cuda.lint import lint
from fusegraph.codegen.cuda.step import emit_step
from fusegraph.errors import OptionError, UnsupportedError
from fusegraph.ir import GraphBuilder, interpret
from fusegraph.ir.graph import Graph
from fusegraph.runtime import cuda, cuda_compile
from tests.cuda_tools import mnist_artifact, run_step, step_of
from tests.op_sheets import Case, compare, sheet_of, table_cases

GOLDEN = Path(__file__).parent / "golden"
F32 = np.dtype(np.float32)
needs_wheels = pytest.mark.skipif(
    bool(cuda_compile.missing()), reason=f"kernels cannot be compiled: {cuda_compile.missing()}"
)


def product(left: tuple[int, ...], right: tuple[int, ...], name: str = "product") -> Graph:
    builder = GraphBuilder()
    a, b = builder.input("a", left, F32), builder.input("b", right, F32)
    out = builder.add("relu", (builder.add("matmul", (a, b), {}),), {})
    return builder.finish([out], name=name)


def mapped() -> Graph:
    builder = GraphBuilder()
    x, y = builder.input("x", (64, 256), F32), builder.input("y", (64, 256), F32)
    return builder.finish([builder.add("relu", (builder.add("mul", (x, y), {}),), {})], name="map")


def softmax() -> Graph:
    builder = GraphBuilder()
    x = builder.input("x", (40, 512), F32)

    def wide(node: Any) -> Any:
        return builder.add("expand", (builder.add("reshape", (node,), {"shape": (40, 1)}),), {"shape": (40, 512)})

    powers = builder.add("exp", (builder.add("sub", (x, wide(builder.add("max", (x,), {"axes": (1,)})))),), {})
    out = builder.add("div", (powers, wide(builder.add("sum", (powers,), {"axes": (1,)}))))
    return builder.finish([out], name="row")


def column_sums() -> Graph:
    builder = GraphBuilder()
    x = builder.input("x", (300, 70), F32)
    return builder.finish([builder.add("sum", (x,), {"axes": (0,)})], name="columns")


GRAPHS = {"map": mapped, "row": softmax, "column": column_sums, "tile": lambda: product((70, 40), (40, 50))}


@pytest.mark.parametrize("name", GRAPHS)
def test_golden_texts(name: str, request: pytest.FixtureRequest) -> None:
    text = "\n\n\n".join(kernel.source for kernel in step_of(GRAPHS[name](), readable=name == "tile").kernels) + "\n"
    path = GOLDEN / f"cuda_{name}.txt"
    if request.config.getoption("--update-golden"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_kernels_in_the_documentation_are_those_of_today() -> None:
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "docs/cuda_kernels.py", "--check"], cwd=root, check=False)
    assert done.returncode == 0, "run python docs/cuda_kernels.py"


# -- lint ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_emitted_kernel_is_clean(dtype: str) -> None:
    step = step_of(sheet_of(table_cases(dtype, 2)).graph)
    assert sum(len(kernel.loops) for kernel in step.kernels) > 100
    assert lint(step.source) == []
    assert lint(emit_step(mnist_artifact().fused[0]).source) == []


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("x[uint32(i)] = x[uint32(i)] * 0.5", "bare float"),
        ("x[i * 4 + 1] = float32(0.5)", "not wrapped"),
        ("load4(x, i * 4)", "not wrapped"),
        ("s = cuda.shared.array(n, float32)", "not a number"),
        ("x[0] = mystery(x[0])", "not known"),
    ],
)
def test_what_the_lint_finds(body: str, rule: str) -> None:
    found = lint(f"def kernel(x):\n    i = uint32(0)\n    {body}\n")
    assert len(found) == 1 and rule in found[0] and found[0].startswith("line 3, kernel:")


def test_what_the_lint_allows() -> None:
    text = "def kernel(x):\n    i = uint32(1)\n    x[i] = float32(-0.5)\n    x[0] = x[uint32(i * 4)] + float32(-math.inf)\n"
    assert lint(text) == []


# -- without a GPU --------------------------------------------------------------------------------------------------------


def test_running_without_a_gpu_says_what_is_missing() -> None:
    if not cuda.unavailable():
        pytest.skip("this machine has a GPU")
    compiled = fg.compile(lambda x: x * 2, backend="cuda")
    with pytest.raises(UnsupportedError, match=r"backend='cuda' cannot run here: .+; dump\(\) works"):
        compiled(np.ones(4, np.float32))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cuda_compile.missing() == "the package numba-cuda is not installed (pip install 'fusegraph[cuda]')"
    with pytest.raises(UnsupportedError, match="numba-cuda is not installed"):
        cuda_compile.CudaModule(step_of(mapped()))


def test_unknown_target() -> None:
    with pytest.raises(OptionError, match="sm_61"):
        cuda_compile.capability("sm_61")


@needs_wheels
def test_dump_writes_source_and_ptx(tmp_path: Path) -> None:
    compiled = fg.compile(lambda x: x.exp() * 2, backend="cuda")
    files = {path.suffix: path.read_text() for path in compiled.dump(tmp_path, np.ones(400, np.float32))}
    assert "load4(" in files[".py"] and ".entry" in files[".ptx"]


# -- results --------------------------------------------------------------------------------------------------------------


def check(graph: Graph, rng: np.random.Generator, **options: Any) -> None:
    inputs = [rng.standard_normal(node.shape).astype(np.float32) for node in graph.inputs]
    wanted = interpret.run(graph, [array.copy() for array in inputs])[0]
    got = run_step(step_of(graph, **options), inputs)
    labels = [str(node.op) for node in graph.outputs]
    assert compare([g.reshape(w.shape) for g, w in zip(got, wanted, strict=True)], wanted, labels) == []


@needs_wheels
@pytest.mark.parametrize("name", GRAPHS)
def test_golden_kernels_are_right(name: str, rng: np.random.Generator) -> None:
    check(GRAPHS[name](), rng, readable=name == "tile")


@needs_wheels
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_tile_at_odd_sizes(tile: Tile, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards on all sides, an odd number of steps along the sums; operands through registers (test_cuda_contract: cp.async)."""
    monkeypatch.setattr("fusegraph.codegen.cuda.contract_plan.choose_tile", lambda *sizes: tile)
    check(product((tile.rows + 2, 3 * tile.depth - 1), (3 * tile.depth - 1, tile.columns + 3)), rng, capability=(7, 5))


@needs_wheels
def test_batches_and_transposed_operands(rng: np.random.Generator) -> None:
    check(product((3, 18, 20), (3, 20, 17)), rng)
    builder = GraphBuilder()
    a, b = builder.input("a", (40, 24), F32), builder.input("b", (36, 40), F32)
    turned = [builder.add("permute", (x,), {"axes": (1, 0)}) for x in (a, b)]
    check(builder.finish([builder.add("matmul", turned, {})], name="turned"), rng)


@needs_wheels
def test_both_operands_of_a_weight_gradient_divide_the_same_sums(rng: np.random.Generator) -> None:
    """Coordinates of the left operand's element must not be taken for those of the right one."""
    image, maps = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 6, 14, 14), (4, 16, 10, 10)))
    params = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1, "kernel": (5, 5)}
    sheet = sheet_of([Case("conv_weight_grad", (image, maps), params)])
    assert (
        compare(run_step(step_of(sheet.graph), sheet.arrays), interpret.run(sheet.graph, sheet.arrays)[0], sheet.labels)
        == []
    )


def test_tiles_follow_the_sizes() -> None:
    assert choose_tile(1, 4096, 4096, 4096) == Tile(128, 128, 8, 8, 8)
    assert choose_tile(1, 64, 10, 128).columns == 16
