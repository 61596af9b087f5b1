"""Many operations in one graph, so that one compilation tests them all, and the samples that fill such sheets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fusegraph.build import Artifact, Options, build
from fusegraph.dtypes import SUPPORTED, DType
from fusegraph.errors import DTypeError
from fusegraph.ir import PRIMITIVES, GraphBuilder, interpret
from fusegraph.ir.graph import Graph, Node

Array = np.ndarray[Any, Any]
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


@dataclass(frozen=True)
class Case:
    """One application of a primitive."""

    name: str
    arrays: tuple[Array, ...]
    params: dict[str, Any]

    def __str__(self) -> str:
        operands = ", ".join(f"{a.dtype.name}{list(a.shape)}" for a in self.arrays)
        return f"{self.name}({operands}{''.join(f', {k}={v}' for k, v in self.params.items())})"


class Sheet:
    """Operations side by side in one graph. An array object that several operations read is one input."""

    def __init__(self) -> None:
        self.builder = GraphBuilder()
        self.arrays: list[Array] = []
        self.outputs: list[Node] = []
        self.labels: list[str] = []
        self._known: dict[int, Node] = {}

    def input(self, array: Array) -> Node:
        """The graph input for `array`."""
        if id(array) not in self._known:
            self._known[id(array)] = self.builder.input(f"x{len(self.arrays)}", array.shape, array.dtype)
            self.arrays.append(array)
        return self._known[id(array)]

    def number(self, value: float, like: Node) -> Node:
        """`value` in the shape and dtype of `like`."""
        return self.builder.full(value, like.shape, like.dtype)

    def output(self, node: Node, label: object) -> Node:
        """Compare this node's value."""
        self.outputs.append(node)
        self.labels.append(str(label))
        return node

    def add(self, case: Case) -> Node:
        """The primitive alone."""
        return self.output(self.builder.add(case.name, [self.input(a) for a in case.arrays], case.params), case)

    def add_wrapped(self, case: Case, dtype: DType) -> None:
        """The primitive with work before it, after it, and a sum of what comes out: something to fuse on all sides."""
        add = self.builder.add
        inputs = [self.input(a) for a in case.arrays]
        scaled = [add("mul", (x, self.number(0.9, x))) if x.dtype.kind == "f" else x for x in inputs]
        out = add(case.name, scaled, case.params)
        out = out if out.dtype.kind == "f" else add("cast", (out,), {"dtype": dtype.name})
        after = add("add", (add("mul", (out, out)), self.number(0.5, out)))
        self.output(after, f"{case} wrapped")
        if after.shape:
            self.output(add("sum", (after,), {"axes": tuple(range(after.ndim))}), f"sum of {case} wrapped")

    @property
    def graph(self) -> Graph:
        """The graph of all operations."""
        return self.builder.finish(self.outputs, name="sheet")

    def build(self, backend: str, fuse: bool = True) -> Artifact:
        """The compiled graph."""
        return build(self.graph, Options(backend, fuse=fuse))

    def mismatches(self, backend: str, fuse: bool = True, elementwise: bool = False) -> list[str]:
        """Compile, run beside the numpy reference, and say which operations differ."""
        kept = [a.copy() for a in self.arrays]
        got = self.build(backend, fuse).run(self.arrays)
        wanted = interpret.run(self.graph, kept)[0]
        for before, after in zip(kept, self.arrays, strict=True):
            np.testing.assert_array_equal(before, after, "an input was overwritten")
        return compare(got, wanted, self.labels, elementwise)


def compare(
    got: Sequence[Array],
    wanted: Sequence[Array],
    labels: Sequence[str],
    elementwise: bool = False,
    tolerance: Mapping[str, float] = TOLERANCE,
) -> list[str]:
    """What differs, in words. Integers and bools must be equal, floats within the tolerance of the largest magnitude.

    elementwise: within the tolerance of each element instead (below the smallest normal number all are equal).
    """
    found = []
    for label, a, b in zip(labels, got, wanted, strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            found.append(f"{label}: {a.dtype}{list(a.shape)} instead of {b.dtype}{list(b.shape)}")
        elif a.dtype.kind != "f":
            if not np.array_equal(a, b):
                count = int((a != b).sum())
                found.append(f"{label}: {count} of {a.size} differ: got {a.ravel()[:12]}, wanted {b.ravel()[:12]}")
        elif problem := _float_difference(a, b, elementwise, tolerance[b.dtype.name]):
            found.append(f"{label}: {problem}")
    return found


def _float_difference(a: Array, b: Array, elementwise: bool, tolerance: float) -> str:
    special = ~np.isfinite(b)
    if not np.array_equal(a[special], b[special], equal_nan=True) or not np.isfinite(a[~special]).all():
        wrong = ~((a == b) | (np.isnan(a) & np.isnan(b))) & (special | ~np.isfinite(a))
        places = np.argwhere(wrong)[:8].tolist()
        return f"NaN or inf at other places: got {a[wrong][:8]}, wanted {b[wrong][:8]} at {places}"
    error = np.abs(a[~special].astype(np.float64) - b[~special])
    size = np.abs(b[~special].astype(np.float64))
    tiny = float(np.finfo(b.dtype).smallest_normal)
    scale = size if elementwise else size.max(initial=0.0)
    bad = error > tolerance * np.maximum(scale, tiny) + (tiny if elementwise else 0.0)
    if not bad.any():
        return ""
    examples = f"got {a[~special][bad][:6]}, wanted {b[~special][bad][:6]}"
    return f"difference {error.max():.3g} of {size.max():.4g}: {examples}"


# -- what sheets are filled with --------------------------------------------------------------------------------------


def table_cases(dtype: str, most: int | None = None) -> list[Case]:
    """All samples of the table (or the `most` largest of each primitive), floating point operands as `dtype`."""
    found = []
    for name, primitive in PRIMITIVES.items():
        cases = [
            Case(name, tuple(_as_float(np.asarray(a), dtype) for a in arrays), params)
            for arrays, params in primitive.samples(np.random.default_rng(0))
        ]
        assert cases, f"{name} has no samples"
        found += cases if most is None else sorted(cases, key=_elements)[-most:]
    return found


def _as_float(array: Array, dtype: str) -> Array:
    return np.ascontiguousarray(array.astype(dtype)).reshape(array.shape) if array.dtype.kind == "f" else array


def _elements(case: Case) -> int:
    return sum(a.size for a in case.arrays)


def integer_cases(most: int = 2) -> Iterator[Case]:
    """The largest samples of each primitive with integer and bool operands, for each type that the primitive takes."""
    rng = np.random.default_rng(5)
    for case in table_cases("float64", most):
        if case.name in ("cast", "constant", "iota", "random_bits"):
            continue
        for dtype in SUPPORTED.values():
            changed = replace(case, arrays=tuple(_as_integer(case, i, dtype, rng) for i in range(len(case.arrays))))
            if case.name == "pad":
                changed = replace(changed, params=case.params | {"value": 1})
            if dtype.kind != "f" and _takes(changed):
                yield changed


def _as_integer(case: Case, position: int, dtype: DType, rng: np.random.Generator) -> Array:
    """Operand `position` as `dtype`: indices and conditions stay as they are, divisors are not 0, shifts are small."""
    array, kind = case.arrays[position], PRIMITIVES[case.name].kind
    if (kind in ("gather", "scatter") and position == 1) or (case.name == "where" and position == 0):
        return array
    if case.name == "check_index":
        return array.astype(dtype)
    if dtype.kind == "b":
        return rng.random(array.shape) < 0.5
    low = -20 if dtype.kind == "i" else 0
    values = np.asarray(rng.integers(low, 21, array.shape))
    if position == 1 and case.name in ("floordiv", "mod"):
        values = np.where(values == 0, 3, values)
    if position == 1 and case.name.startswith("shift"):
        values = np.abs(values) % 7
    return np.asarray(values).astype(dtype)


def _takes(case: Case) -> bool:
    try:
        PRIMITIVES[case.name].infer(case.arrays, case.params)
    except DTypeError:
        return False
    return True


def sheet_of(cases: Sequence[Case], wrapped: DType | None = None) -> Sheet:
    """A sheet of these cases, each alone, or wrapped in work of type `wrapped`."""
    sheet = Sheet()
    for case in cases:
        if wrapped is None:
            sheet.add(case)
        else:
            sheet.add_wrapped(case, wrapped)
    return sheet
