"""Every entry of the table of primitives on every backend, beside the numpy reference.

Many operations are compiled in one graph (a sheet): alone with `fuse=False`, wrapped in other work, side by side on
shared inputs, and in random composites. "python" runs the very source that "numba" compiles; it takes all samples,
numba the largest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fusegraph as fg
from fusegraph.build import Artifact, Options, build, step_code
from fusegraph.codegen.cpu import gemm, nest_plan, scatter
from fusegraph.dtypes import SUPPORTED
from fusegraph.errors import IndexRangeError
from fusegraph.ir import PRIMITIVES, interpret
from fusegraph.ir.graph import Graph
from fusegraph.runtime import llvm
from fusegraph.runtime.threads import ThreadSetting
from tests.op_sheet_kinds import conversions, integer_edges, large_sheet, sizes_sheet, special_rows, special_sheet
from tests.op_sheets import Array, Sheet, compare, integer_cases, sheet_of, table_cases
from tests.random_graphs import random_graph

FLOATS = ["float32", "float64"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def free_threads() -> Iterator[None]:
    """The thread setting as it was."""
    count = ThreadSetting.count
    yield
    ThreadSetting.count = count
    ThreadSetting.version += 1


# -- the comparison itself --------------------------------------------------------------------------------------------


def test_compare_finds_what_differs() -> None:
    x = np.array([1.0, 2.0, np.nan], np.float32)
    assert compare([x], [x.copy()], ["same"]) == []
    for other in ([1.0, 2.0001, np.nan], [1.0, 2.0, 3.0], [1.0, np.inf, np.nan]):
        assert compare([np.array(other, np.float32)], [x], ["other"])
    assert compare([np.array([1e-9], np.float32)], [np.array([1.1e-9], np.float32)], ["small"])
    assert compare([np.array([1, 2])], [np.array([1, 3])], ["integers"])
    assert compare([x.astype(np.float64)], [x], ["dtype"])


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("backend", ["cpu", "python", "reference"])
def test_every_sample_alone(backend: str, dtype: str) -> None:
    sheet = sheet_of(table_cases(dtype))
    assert {label.partition("(")[0] for label in sheet.labels} == set(PRIMITIVES)
    assert sheet.mismatches(backend, fuse=False) == []


def test_the_largest_samples_alone_with_numba() -> None:
    assert sheet_of(table_cases("float32", 1)).mismatches("numba", fuse=False) == []


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("backend", ["cpu", "python"])
def test_the_largest_samples_wrapped_in_other_work(backend: str, dtype: str) -> None:
    assert sheet_of(table_cases(dtype, 2), SUPPORTED[dtype]).mismatches(backend) == []


@pytest.mark.parametrize("backend", ["cpu", "python", "reference"])
def test_integers_and_bools(backend: str) -> None:
    cases = list(integer_cases())
    assert len(cases) > 300
    assert {a.dtype.name for case in cases for a in case.arrays} == {"bool", "uint8", "int32", "uint32", "int64"}
    assert sheet_of(cases).mismatches(backend, fuse=False) == []


# -- edges of integer arithmetic --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "python"])
def test_edges_of_integers(backend: str) -> None:
    assert integer_edges().mismatches(backend) == []
    assert conversions().mismatches(backend) == []


# -- NaN, infinities, large and tiny numbers --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("backend", ["cpu", "python"])
def test_special_numbers(backend: str, dtype: str) -> None:
    assert special_sheet(dtype).mismatches(backend, elementwise=True) == []
    assert special_rows(dtype).mismatches(backend) == []


@pytest.mark.parametrize("dtype", FLOATS)
def test_special_numbers_with_numba(dtype: str) -> None:
    """All maps share an input, all zips two, so that numba gets few, large kernels."""
    assert special_sheet(dtype).mismatches("numba", elementwise=True) == []


# -- sizes and layouts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("backend", ["cpu", "python"])
def test_sizes_around_the_vector_length(backend: str, dtype: str) -> None:
    assert sizes_sheet(dtype).mismatches(backend) == []


@pytest.mark.parametrize("bits", [128, 512])
def test_code_for_other_vector_widths(bits: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LLVM splits or joins registers, so that code made for another machine's width runs here."""
    host = replace(llvm.target(), vector_bits=bits)
    monkeypatch.setattr(llvm, "target", lambda: host)
    monkeypatch.setenv("FUSEGRAPH_CACHE_DIR", str(tmp_path))
    assert sheet_of(table_cases("float32", 1), SUPPORTED["float32"]).mismatches("cpu") == []
    assert special_sheet("float32").mismatches("cpu", elementwise=True) == []
    for sheet in (sizes_sheet("float32"), large_sheet("float64"), special_rows("float64"), integer_edges()):
        assert sheet.mismatches("cpu") == []


@pytest.mark.parametrize("backend", ["cpu", "numba", "python", "reference"])
def test_memory_layouts_of_arguments(backend: str) -> None:
    """Transposed, strided, backwards, broadcast and zero-size arrays go into a compiled function as they are."""
    rng = np.random.default_rng(3)
    base = rng.uniform(-2, 2, (8, 10)).astype(np.float32)
    views = [
        base[::2, ::2],
        base.T[:4, :5],
        base[3::-1, 4::-1],
        np.broadcast_to(base[0, :5], (4, 5)),
        base[1:5, -5:],
        np.broadcast_to(base[0, 0], (4, 5)),
    ]

    def function(x: fg.Tensor, y: fg.Tensor) -> tuple[fg.Tensor, ...]:
        return x * y + x.exp(), (x - y).sum(0), x @ y.T, x.amax(1)

    compiled = fg.compile(function, backend=backend)
    for x in views:
        for y in views:
            got = compiled(x, fg.from_numpy(y.copy()))
            wanted = (x * y + np.exp(x), (x - y).sum(0), x @ y.T, x.max(1))
            assert compare([np.asarray(g) for g in got], wanted, ["map", "sum", "matmul", "max"]) == []
    assert len(compiled.reasons) == 1, "another memory layout is no reason to compile again"
    empty = compiled(np.zeros((0, 5), np.float32), np.zeros((0, 5), np.float32))
    assert [tuple(e.shape) for e in empty] == [(0, 5), (5,), (0, 0), (0,)]
    assert not np.asarray(empty[1]).any()


# -- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_any_number_of_threads_gives_the_same_bits(dtype: str, free_threads: None) -> None:
    sheet = large_sheet(dtype)
    artifact: Artifact = sheet.build("cpu")
    shared = [kernel.parallel for kernel in step_code(artifact).kernels]
    assert sum(shared) > 0.7 * len(shared), "these cases are meant to be shared among threads"
    wanted = interpret.run(sheet.graph, sheet.arrays)[0]
    first: list[bytes] = []
    for count in (1, 2, 3, 8):
        fg.set_num_threads(count)
        got = artifact.run(sheet.arrays)
        assert compare(got, wanted, sheet.labels) == [], f"{count} threads"
        bits = [a.tobytes() for a in got]
        first = first or bits
        assert [label for label, a, b in zip(sheet.labels, first, bits, strict=True) if a != b] == [], (
            f"{count} threads against one"
        )


def test_indices_are_checked_before_a_step_changes_them(free_threads: None) -> None:
    """Every thread checks them; one that comes late must not see what another has already written."""
    sheet = Sheet()
    ids, table = np.arange(5, dtype=np.int32), np.arange(10.0)
    node = sheet.input(ids)
    checked = sheet.builder.add("check_index", (node,), {"low": 0, "high": 10, "allow": None, "what": "index"})
    taken = sheet.builder.add("take", (sheet.input(table), checked), {"axis": 0})
    moved = sheet.builder.add("add", (node, sheet.number(100, node)))
    artifact = build(Graph("moving", tuple(sheet.builder.inputs), (taken,), ((node, moved),)), Options("cpu"))
    for count in (1, 2, 3, 8):
        fg.set_num_threads(count)
        for _ in range(50):
            own = ids.copy()
            np.testing.assert_array_equal(artifact.run([own, table])[0], ids)
            np.testing.assert_array_equal(own, ids + 100)
            with pytest.raises(IndexRangeError, match="100"):
                artifact.run([own, table])
            np.testing.assert_array_equal(own, ids + 100)


# -- composites -------------------------------------------------------------------------------------------------------


# A chain of up to 30 operations, each with its rounding.
COMPOSITE_TOLERANCE = {"float32": 1e-4, "float64": 1e-10}


class Composite:
    """A random graph with its inputs, and what the reference makes of them."""

    def __init__(self, seed: int, dtype: str) -> None:
        self.graph, self.arrays = random_graph(1000 + seed, 28, dtype=dtype)
        outputs, updates = interpret.run(self.graph, [a.copy() for a in self.arrays])
        self.wanted = [*outputs, *updates]
        nodes = (*self.graph.outputs, *(new for _, new in self.graph.updates))
        self.labels = [f"seed {seed}: {node!r}" for node in nodes]

    def run(self, artifact: Artifact) -> list[Array]:
        """Outputs, then updated inputs."""
        own = [a.copy() for a in self.arrays]
        positions = [self.graph.inputs.index(old) for old, _ in self.graph.updates]
        return [*artifact.run(own), *(own[i] for i in positions)]

    def mismatches(self, got: list[Array]) -> list[str]:
        """What differs from the reference."""
        return compare(got, self.wanted, self.labels, tolerance=COMPOSITE_TOLERANCE)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("backend", ["cpu", "python"])
def test_random_composites(backend: str, dtype: str) -> None:
    for seed in range(12):
        random = Composite(seed, dtype)
        assert random.mismatches(random.run(build(random.graph, Options(backend)))) == []


def test_random_composites_with_numba() -> None:
    random = Composite(3, "float32")
    assert random.mismatches(random.run(build(random.graph, Options("numba")))) == []


def test_random_composites_shared_among_threads(
    free_threads: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every kernel, however small, on several threads: a missing barrier or a sum by thread would show."""
    monkeypatch.setenv("FUSEGRAPH_CACHE_DIR", str(tmp_path))
    for module, name in ((nest_plan, "_PARALLEL_WORK"), (scatter, "_PARALLEL_WORK"), (gemm, "_PARALLEL_PRODUCTS")):
        monkeypatch.setattr(module, name, 1)
    for seed in range(10):
        random = Composite(seed, FLOATS[seed % 2])
        artifact = build(random.graph, Options("cpu"))
        bits: set[bytes] = set()
        for count in (1, 2, 3, 8, 3, 2):
            fg.set_num_threads(count)
            got = random.run(artifact)
            assert random.mismatches(got) == [], f"{count} threads"
            bits.add(b"".join(a.tobytes() for a in got))
        assert len(bits) == 1, f"seed {seed}: other bits on another number of threads"
