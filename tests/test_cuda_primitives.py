"""Every entry of the table of primitives as emitted CUDA kernels, run by the PTX interpreter beside the numpy reference.

Samples alone, samples wrapped in other work, gradients, odd shapes, integers and bools, edges and special numbers. Operations
are compiled many in one step; the groups of primitives are there for parallel tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
from fusegraph.codegen.cuda.step import emit_step
from fusegraph.dtypes import SUPPORTED
from fusegraph.ir import PRIMITIVES, emit
from fusegraph.runtime import cuda_compile
from tests.cuda_models import Emulated
from tests.cuda_tools import sheet_mismatches
from tests.op_sheet_kinds import conversions, integer_edges, special_rows, special_sheet
from tests.op_sheets import Array, Case, Sheet, integer_cases, sheet_of, table_cases

pytestmark = pytest.mark.skipif(
    bool(cuda_compile.missing()), reason=f"kernels cannot be compiled: {cuda_compile.missing()}"
)
GROUPS = 6
NAMES = sorted(PRIMITIVES)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


def members(group: int) -> set[str]:
    """Primitives of one group: every sixth."""
    return set(NAMES[group::GROUPS])


def cases_of(group: int, dtype: str, most: int | None = None) -> list[Case]:
    """Samples (or the largest) of a group's primitives."""
    chosen = [case for case in table_cases(dtype, most) if case.name in members(group)]
    assert {case.name for case in chosen} == members(group)
    return chosen


# -- the table ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", range(GROUPS))
def test_every_sample_alone(group: int) -> None:
    assert sheet_mismatches(sheet_of(cases_of(group, "float32")), fuse=False) == []


@pytest.mark.parametrize("group", range(GROUPS))
def test_the_largest_samples_in_float64(group: int) -> None:
    assert sheet_mismatches(sheet_of(cases_of(group, "float64", 1))) == []


@pytest.mark.parametrize("group", range(GROUPS))
def test_the_largest_samples_wrapped_in_other_work(group: int) -> None:
    assert sheet_mismatches(sheet_of(cases_of(group, "float32", 1), SUPPORTED["float32"])) == []


def gradients(cases: list[Case]) -> list[str]:
    """Which gradients of the sum of squares of each case differ from the reference's."""

    def all_gradients(operands: list[list[fg.Tensor]], weights: list[fg.Tensor]) -> list[list[fg.Tensor]]:
        found = []
        for case, tensors, weight in zip(cases, operands, weights, strict=True):
            leaves = [x.detach().requires_grad_() if x.dtype.kind == "f" else x for x in tensors]
            wanted = [x for x in leaves if x.requires_grad]
            total = (emit.bind(case.name, *leaves, **case.params) * weight).sum()
            made = fg.autograd.grad(total, wanted, allow_unused=True)
            found.append([g for g in made if g is not None])
        return found

    rng = np.random.default_rng(3)
    shapes = [PRIMITIVES[case.name].infer(case.arrays, case.params)[0] for case in cases]
    weights = [rng.uniform(0.5, 1.5, shape).astype(np.float32) for shape in shapes]
    arguments: tuple[Any, ...] = ([list(case.arrays) for case in cases], weights)
    compiled = fg.compile(all_gradients, backend="reference")
    artifact = compiled.compiled_for(*arguments).artifact
    artifact.executable = emulator = Emulated(artifact, emit_step(artifact.fused[0]))
    compiled(*arguments)
    assert emulator.runs == 1
    return emulator.problems


def differentiable(group: int) -> list[Case]:
    """The two largest samples of a group's primitives that gradients flow through."""
    found = [c for c in table_cases("float32", 2) if c.name in members(group) and PRIMITIVES[c.name].differentiable]
    return [c for c in found if c.name != "cast" and any(a.dtype.kind == "f" and a.size for a in c.arrays)]


@pytest.mark.parametrize("group", range(GROUPS))
def test_gradients(group: int) -> None:
    cases = differentiable(group)
    assert {c.name for c in cases} == {n for n in members(group) if PRIMITIVES[n].differentiable} - {"cast"}
    assert gradients(cases) == []


# -- odd shapes -----------------------------------------------------------------------------------------------------------

ODD = (0, 1, 7, 33, 129)


def odd_maps(dtype: str, n: int) -> Sheet:
    """All maps and zips of n elements, on shared inputs: few, large kernels."""
    rng, sheet = np.random.default_rng(n), Sheet()
    x, y = (rng.uniform(0.2, 0.9, (n,)).astype(dtype) for _ in range(2))
    condition = rng.random(n) < 0.5
    for name, primitive in PRIMITIVES.items():
        if primitive.kind == "map" and name not in ("cast", "logical_not"):
            sheet.add(Case(name, (x,), {}))
        elif primitive.kind == "zip" and not name.startswith(("bit", "shift", "floordiv", "mod", "where")):
            sheet.add(Case(name, (x, y), {}))
    sheet.add(Case("where", (condition, x, y), {}))
    sheet.add(Case("logical_not", (condition,), {}))
    sheet.add(Case("cast", (condition,), {"dtype": dtype}))
    return sheet


def odd_reductions(dtype: str, n: int) -> Sheet:
    """Reductions of rows, columns, all, and middle axes."""
    rng, sheet = np.random.default_rng(n), Sheet()
    for shape in ((n,), (3, n), (n, 5), (3, n, 7), (n, n)):
        x = rng.uniform(0.7, 1.3, shape).astype(dtype)
        for axes in {(0,), (len(shape) - 1,), tuple(range(len(shape)))}:
            sheet.add(Case("sum", (x,), {"axes": axes}))
            if n:
                # two operations at most where they share no kernel: each has one of its own
                for name in ("min", "argmax") if len(shape) == 3 or n == 7 else ("max", "argmin", "prod"):
                    sheet.add(Case(name, (x,), {"axes": axes}))
    return sheet


def odd_products(dtype: str, n: int) -> Sheet:
    """Products and convolutions with n in every place."""
    rng, sheet = np.random.default_rng(n), Sheet()

    def some(*shape: int) -> Array:
        return rng.uniform(-1, 1, shape).astype(dtype)

    for rows, depth, columns in ((n, 5, 3), (5, n, 3), (3, 5, n), (n, n, n)):
        sheet.add(Case("matmul", (some(rows, depth), some(depth, columns)), {}))
    sheet.add(Case("matmul", (some(2, n, 5), some(2, 5, 3)), {}))
    if n < 3:
        return sheet
    options = {"stride": (1, 2), "padding": ((1, 0), (1, 1)), "dilation": (1, 1), "groups": 1}
    image, kernel = some(2, 3, min(n, 17), min(n, 33)), some(5, 3, 3, 3)
    out = sheet.add(Case("conv", (image, kernel), options))
    maps = some(*out.shape)
    sheet.add(Case("conv_input_grad", (maps, kernel), options | {"size": image.shape[2:]}))
    sheet.add(Case("conv_weight_grad", (image, maps), options | {"kernel": (3, 3)}))
    return sheet


def odd_places(dtype: str, n: int) -> Sheet:
    """Views, gathers and scatters of n rows or columns."""
    rng, sheet = np.random.default_rng(n), Sheet()
    x = rng.uniform(-1, 1, (n, 5)).astype(dtype)
    y = np.ascontiguousarray(x.T)
    for array, axis in ((x, 0), (y, 1)):
        sheet.add(Case("permute", (array,), {"axes": (1, 0)}))
        sheet.add(Case("reshape", (array,), {"shape": (5 * n,)}))
        sheet.add(Case("pad", (array,), {"low": (1, 2), "high": (0, 3), "value": 0.5}))
        sheet.add(Case("concat", (array, array), {"axis": axis}))
        sheet.add(Case("expand", (array,), {"shape": (3, *array.shape)}))
        if not n:
            continue
        sheet.add(Case("slice", (array,), {"start": (array.shape[0] - 1, 0), "size": array.shape, "step": (-1, 1)}))
        index = rng.integers(0, n, 11)
        sheet.add(Case("take", (array, index), {"axis": axis}))
        along = rng.integers(0, n, array.shape)
        sheet.add(Case("take_along", (array, along), {"axis": axis}))
        sheet.add(Case("put_along_add", (array, along, array), {"axis": axis}))
        updates = rng.uniform(-1, 1, (11, 5) if axis == 0 else (5, 11)).astype(dtype)
        sheet.add(Case("put_add", (array, index, updates), {"axis": axis}))
        sheet.add(Case("window", (array,), {"axis": axis, "size": min(n, 3), "stride": 2, "dilation": 1}))
        if axis == 0:
            sheet.add(Case("fold", (array,), {"axis": 0, "extent": 2 * n + 3, "stride": 2, "dilation": 1}))
    sheet.add(Case("iota", (), {"size": n, "dtype": dtype}))
    number = np.asarray(np.uint32(5))
    sheet.add(Case("random_bits", (number, number), {"shape": (n, 3)}))
    return sheet


ODD_KINDS = {"maps": odd_maps, "reductions": odd_reductions, "products": odd_products, "places": odd_places}


@pytest.mark.parametrize("n", ODD)
@pytest.mark.parametrize("kind", ODD_KINDS)
def test_odd_shapes(kind: str, n: int) -> None:
    assert sheet_mismatches(ODD_KINDS[kind]("float32", n)) == []


@pytest.mark.parametrize("kind", ODD_KINDS)
def test_odd_shapes_in_float64(kind: str) -> None:
    assert sheet_mismatches(ODD_KINDS[kind]("float64", 33)) == []


@pytest.mark.parametrize("kind", ["reductions", "places"])
def test_odd_shapes_in_fixed_order(kind: str) -> None:
    assert sheet_mismatches(ODD_KINDS[kind]("float32", 33), exact=True) == []


# -- integers, bools, special numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", range(GROUPS))
def test_integers_and_bools(group: int) -> None:
    cases = [case for case in integer_cases(1) if case.name in members(group)]
    assert {a.dtype.name for case in cases for a in case.arrays} == {"bool", "uint8", "int32", "uint32", "int64"}
    assert sheet_mismatches(sheet_of(cases)) == []


def test_edges_of_integers() -> None:
    assert sheet_mismatches(integer_edges()) == []
    assert sheet_mismatches(conversions()) == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_special_numbers(dtype: str) -> None:
    assert sheet_mismatches(special_sheet(dtype)) == []


def test_special_numbers_in_rows() -> None:
    assert sheet_mismatches(special_rows("float32")) == []
