"""The checker checked: mistakes planted in good kernels must be found, each by the error or the count it deserves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from ptx import (
    BudgetExceeded,
    Counters,
    DivergentBarrier,
    DivergentWarp,
    GlobalRace,
    LaunchError,
    Misaligned,
    OutOfBounds,
    Placed,
    PtxError,
    PtxKernel,
    SharedRace,
    Uninitialised,
    samples,
)
from ptx.compile import missing

if reason := missing():
    pytest.skip(reason, allow_module_level=True)

F32 = np.float32


@dataclass
class Case:
    """A launch of a sample kernel and what it must give; arguments are made anew for each run."""

    source: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    args: Callable[[np.random.Generator], list[Any]]
    expected: Callable[..., np.ndarray]
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, source: str, rng: np.random.Generator) -> tuple[bool, Counters]:
        """Launch a (changed) source; whether the result is right, and the counters."""
        args = self.args(rng)
        plain = [a.array if isinstance(a, Placed) else a for a in args]
        expected = self.expected(*[a.copy() if isinstance(a, np.ndarray) else a for a in plain])
        counters = PtxKernel(samples.compile_source(source)).launch(self.grid, self.block, args, **self.options)
        return bool(np.allclose(plain[0], expected, rtol=1e-4, atol=1e-5)), counters


def undefined(array: np.ndarray) -> Placed:
    """An output that nothing was written to."""
    return Placed(array, defined=np.zeros(array.nbytes, bool))


def frozen(array: np.ndarray) -> np.ndarray:
    """A read-only array: an input of a kernel."""
    array.flags.writeable = False
    return array


def softmax(out: np.ndarray, x: np.ndarray, n: int) -> np.ndarray:
    """Rows of x as probabilities."""
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """A read-only float32 input."""
    return frozen(rng.standard_normal(shape).astype(F32))


CASES: dict[str, Case] = {
    "axpy": Case(
        samples.AXPY,
        (4,),
        (64,),
        lambda rng: [np.zeros(200, F32), 2.5, floats(rng, 200), floats(rng, 200), 200],
        lambda out, a, x, y, n: F32(a) * x + y,
        {"max_steps": 3_000},
    ),
    "fresh": Case(
        samples.AXPY,
        (4,),
        (64,),
        lambda rng: [undefined(np.zeros(200, F32)), 2.5, floats(rng, 200), floats(rng, 200), 200],
        lambda out, a, x, y, n: F32(a) * x + y,
    ),
    "copy4": Case(
        samples.COPY4, (1,), (64,), lambda rng: [np.zeros(128, F32), floats(rng, 128), 128], lambda out, x, n: x
    ),
    "matmul": Case(
        samples.MATMUL,
        (3, 2),
        (16, 16),
        lambda rng: [np.zeros((20, 35), F32), floats(rng, 20, 40), floats(rng, 40, 35), 20, 35, 40],
        lambda out, a, b, m, n, k: a @ b,
    ),
    "softmax": Case(
        samples.SOFTMAX, (2,), (128,), lambda rng: [np.zeros((2, 300), F32), floats(rng, 2, 300), 300], softmax
    ),
    "histogram": Case(
        samples.HISTOGRAM,
        (4,),
        (64,),
        lambda rng: [np.zeros(16, np.int32), rng.integers(0, 16, 250).astype(np.int32)],
        lambda counts, x: np.bincount(x, minlength=16),
    ),
    "tree": Case(
        samples.TREE,
        (2,),
        (128,),
        lambda rng: [np.zeros(2, F32), floats(rng, 200), 200],
        lambda out, x, n: np.array([x[:128].sum(), x[128:].sum()]),
        {"max_steps": 3_000},
    ),
    "last_block": Case(
        samples.LAST_BLOCK,
        (3,),
        (64,),
        lambda rng: [np.zeros(1, F32), np.zeros(3, F32), np.zeros(1, np.int32), rng.standard_normal(192).astype(F32)],
        lambda out, partial, ticket, x: x.sum(keepdims=True),
    ),
    "transpose": Case(
        samples.TRANSPOSE,
        (2, 1),
        (32, 32),
        lambda rng: [np.zeros((64, 32), F32), floats(rng, 32, 64), 32, 64],
        lambda out, x, rows, cols: x.T,
    ),
    "warp_scan": Case(
        samples.WARP_SCAN,
        (1,),
        (32,),
        lambda rng: [np.zeros(32, F32), rng.standard_normal(32).astype(F32)],
        lambda out, x: np.cumsum(x),
    ),
    "gather": Case(
        samples.GATHER,
        (1,),
        (64,),
        lambda rng: [np.zeros(50, F32), floats(rng, 100), frozen(rng.integers(0, 96, 50).astype(np.int32)), 50],
        lambda out, x, index, n: x[index + (index & 3)],
    ),
}


@dataclass(frozen=True)
class Mutant:
    """A change of one kernel and how it is found: an error, a wrong result (None), or a count that must differ."""

    name: str
    case: str
    old: str
    new: str
    found: type[PtxError] | str


def barrier(comment: str) -> str:
    """The line of a barrier, without its indentation."""
    return f"cuda.syncthreads()  # {comment}\n"


WRONG = "a wrong result"
MUTANTS = [
    Mutant("no barrier before the tiles are used", "matmul", barrier("tiles are complete"), "pass\n", SharedRace),
    Mutant("no barrier after the tiles were used", "matmul", barrier("tiles are used up"), "pass\n", SharedRace),
    Mutant("barrier in a branch", "tree", barrier("one level is summed"), "if t < step: cuda.syncthreads()\n", DivergentBarrier),
    Mutant("two barriers for one", "tree",
           barrier("values are there"),
           "if t < 64: cuda.syncthreads()\n    else: cuda.syncthreads(); s[t] += 1\n", DivergentBarrier),
    Mutant("early return before a barrier", "matmul",
           "    acc = float32(0)\n",
           "    acc = float32(0)\n    if row >= m: return\n", DivergentBarrier),
    Mutant("row guard off by one", "matmul", "if row < m and start", "if row <= m and start", OutOfBounds),
    Mutant("no guard of the contracted axis", "matmul", "if start + ty < k and col < n", "if col < n", OutOfBounds),
    Mutant("no column guard at the store", "matmul",
           "if row < m and col < n:\n        out",
           "if row < m:\n        out", OutOfBounds),
    Mutant("wrong stride of b", "matmul", "(start + ty) * n + col", "(start + ty) * k + col", OutOfBounds),
    Mutant("wrong stride of a", "matmul", "row * k + start", "row * n + start", WRONG),
    Mutant("swapped operands", "matmul", "sa[ty, q] * sb[q, tx]", "sb[ty, q] * sa[q, tx]", WRONG),
    Mutant("accumulator not reset by a store of zero", "matmul", "sa[ty, tx] = float32(0)\n", "pass\n", Uninitialised),
    Mutant("float64 literal", "matmul", "acc = float32(0)\n", "acc = 0.0\n", "f64"),
    Mutant("shared tile too small", "matmul", "sb = cuda.shared.array((16, 16)", "sb = cuda.shared.array((15, 16)", OutOfBounds),
    Mutant("shared memory beyond the limit", "matmul",
           "sb = cuda.shared.array((16, 16)",
           "sb = cuda.shared.array((999, 16)", LaunchError),
    Mutant("tile read by columns", "matmul", "sa[ty, q]", "sa[q, ty]", WRONG),
    Mutant("guard off by one", "axpy", "if i < n", "if i <= n", OutOfBounds),
    Mutant("no guard", "axpy", "if i < n", "if i < n + 64", OutOfBounds),
    Mutant("output and input exchanged", "axpy", "out[i] = a * x[i] + y[i]", "y[i] = a * x[i] + out[i]", OutOfBounds),
    Mutant("block index forgotten", "axpy", "cuda.grid(1)", "cuda.threadIdx.x", GlobalRace),
    Mutant("neighbour read while it is written", "axpy", "+ y[i]", "+ out[(i + 1) % n]", GlobalRace),
    Mutant("added to an output that nothing wrote", "fresh", "out[i] = a", "out[i] += a", Uninitialised),
    Mutant("every second element left out, its neighbour read", "fresh",
           "out[i] = a * x[i] + y[i]",
           "out[i - i % 2] = a * x[i] + y[i] + out[i | 1]", Uninitialised),
    Mutant("grid stride forgotten", "axpy", "if i < n:\n        out", "while i < n:\n        out", BudgetExceeded),
    Mutant("elements far apart", "axpy", "    if i < n", "    i = (i * uint32(67)) % n\n    if cuda.grid(1) < n", "sectors"),
    Mutant("vector load off its alignment", "copy4", "load4(x, i)", "load4(x, i - i % 8 + 1)", Misaligned),
    Mutant("vector store beyond the end", "copy4", "if i < n", "if i < n + 4", OutOfBounds),
    Mutant("shared atomic dropped", "histogram", "cuda.atomic.add(local, x[i], 1)", "local[x[i]] += 1", SharedRace),
    Mutant("global atomic dropped", "histogram", "cuda.atomic.add(counts, t, local[t])", "counts[t] += local[t]", GlobalRace),
    Mutant("bins not cleared", "histogram", "if t < 16:\n        local[t] = 0\n", "pass\n", Uninitialised),
    Mutant("bins cleared without a barrier", "histogram", barrier("all bins are zero"), "pass\n", SharedRace),
    Mutant("a bin too many", "histogram", "if t < 16:\n        cuda.atomic", "if t < 17:\n        cuda.atomic", OutOfBounds),
    Mutant("no barrier between levels", "tree", barrier("one level is summed"), "pass\n", SharedRace),
    Mutant("no barrier before the first level", "tree", barrier("values are there"), "pass\n", SharedRace),
    Mutant("level too wide", "tree", "if t < step", "if t <= step", OutOfBounds),
    Mutant("first level forgotten", "tree", "step = uint32(64)", "step = uint32(32)", WRONG),
    Mutant("step never halved", "tree", "step >>= uint32(1)", "step >>= uint32(0)", BudgetExceeded),
    Mutant("padding values not written", "tree", "s[t] = x[i] if i < n else float32(0)", "if i < n: s[t] = x[i]", Uninitialised),
    Mutant("shuffle width halved", "softmax", "(16, 8, 4, 2, 1):\n        total", "(8, 4, 2, 1):\n        total", WRONG),
    Mutant("shuffle with a narrow segment", "softmax",
           "total += cuda.shfl_xor_sync(0xFFFFFFFF, total, d)",
           "total += cuda.shfl_down_sync(0xFFFF, total, d)", DivergentWarp),
    Mutant("shuffle by a part of the warp", "softmax",
           "total += cuda.shfl_xor_sync(0xFFFFFFFF, total, d)",
           "if lane < 16: total += cuda.shfl_xor_sync(0xFFFFFFFF, total, d)", DivergentWarp),
    Mutant("a partial sum of a warp that is not there", "softmax", "range(uint32(4))", "range(uint32(5))", Uninitialised),
    Mutant("maximum overwritten while it is read", "softmax", barrier("the maxima were read"), "pass\n", SharedRace),
    Mutant("one warp's sum left out", "softmax", " + part[3]", "", WRONG),
    Mutant("float64 constant", "softmax", "total = float32(0)", "total = 0.0", "f64"),
    Mutant("no fence before the ticket", "last_block", "cuda.threadfence()", "pass", GlobalRace),
    Mutant("no ticket after the fence", "last_block",
           "last[0] = cuda.atomic.add(ticket, 0, 1)",
           "last[0] = cuda.blockIdx.x", GlobalRace),
    Mutant("ticket without an atomic", "last_block",
           "last[0] = cuda.atomic.add(ticket, 0, 1)",
           "last[0] = ticket[0]; ticket[0] += 1", GlobalRace),
    Mutant("tile without padding", "transpose", "(32, 33)", "(32, 32)", "bank_conflicts"),
    Mutant("no syncwarp after the values", "warp_scan", "cuda.syncwarp()  # values are there", "pass", SharedRace),
    Mutant("a shuffle for a syncwarp", "warp_scan",
           "cuda.syncwarp()  # values are there",
           "s[t] = cuda.shfl_sync(0xFFFFFFFF, x[t], t)", SharedRace),
    Mutant("no syncwarp between read and write", "warp_scan", "cuda.syncwarp()  # neighbours were read", "pass", SharedRace),
    Mutant("local index out of range", "gather", "window[index[i] & 3]", "window[index[i] & 7]", OutOfBounds),
    Mutant("wrong element of a local array", "gather", "window[index[i] & 3]", "window[index[i] & 1]", WRONG),
]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_unchanged_kernels_pass(name: str, rng: np.random.Generator) -> None:
    """Without a mistake there is no error, the result is right and the counts are clean."""
    right, counters = CASES[name].run(CASES[name].source, rng)
    assert right
    assert counters.instructions["f64"] == 0
    assert counters.bank_conflicts == 0


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.case}: {m.name}")
def test_mutants_are_found(mutant: Mutant, rng: np.random.Generator) -> None:
    case = CASES[mutant.case]
    assert case.source.count(mutant.old) >= 1, "the text to change is not in the kernel"
    changed = case.source.replace(mutant.old, mutant.new, 1)
    if isinstance(mutant.found, type):
        with pytest.raises(mutant.found):
            case.run(changed, rng)
        return
    right, counters = case.run(changed, rng)
    if mutant.found == WRONG:
        assert not right
    elif mutant.found == "f64":
        assert counters.instructions["f64"] > 0
    elif mutant.found == "sectors":
        assert counters.sectors > 1.05 * counters.ideal_sectors
    else:
        assert counters.bank_conflicts > 0


def test_enough_mutants() -> None:
    """Every kind of error is planted somewhere, and no two mutants are the same."""
    kinds = {m.found for m in MUTANTS}
    expected = {OutOfBounds, Misaligned, Uninitialised, SharedRace, GlobalRace, DivergentBarrier, DivergentWarp}
    assert expected <= kinds
    assert len({(m.case, m.old, m.new) for m in MUTANTS}) == len(MUTANTS) >= 12
