"""The runner of emitted steps checked: mistakes planted in a whole training step must be found."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fusegraph.codegen.cuda.step import ARENA, CudaStep
from fusegraph.runtime import cuda_compile
from tests.cuda_models import Emulated, batches, emulated
from tests.ptx import GlobalRace, OutOfBounds, PtxError, Uninitialised

pytestmark = pytest.mark.skipif(
    bool(cuda_compile.missing()), reason=f"kernels cannot be compiled: {cuda_compile.missing()}"
)
WRONG = None  # no error, but the comparison finds it


def run(name: str, mend: Callable[[CudaStep], CudaStep]) -> Emulated:
    """One training step of a small model with changed launches or kernels."""
    compiled, emulator = emulated(name, "sgd")
    emulator.step = mend(emulator.step)
    compiled(*next(batches(name)))
    return emulator


def without(step: CudaStep, number: int) -> CudaStep:
    """A launch is forgotten."""
    return replace(step, launches=step.launches[:number] + step.launches[number + 1 :])


def swapped(step: CudaStep, number: int) -> CudaStep:
    """Two neighbouring launches change places."""
    a, b = step.launches[number : number + 2]
    return replace(step, launches=(*step.launches[:number], b, a, *step.launches[number + 2 :]))


def with_small_grid(step: CudaStep, number: int) -> CudaStep:
    """The last block of a launch is missing."""
    old = step.launches[number]
    grid = max(old.grid[0] - 1, 1), old.grid[1], old.grid[2]
    assert grid != old.grid
    launches = (*step.launches[:number], replace(old, grid=grid), *step.launches[number + 1 :])
    return replace(step, launches=launches)


def with_arena_moved(step: CudaStep, number: int) -> CudaStep:
    """A temp is written a few elements beside its place."""
    old = step.launches[number]
    moved = tuple((base, at + 64 if base == ARENA else at) for base, at in old.arguments)
    assert moved != old.arguments
    return replace(
        step, launches=(*step.launches[:number], replace(old, arguments=moved), *step.launches[number + 1 :])
    )


def with_text(pattern: str, by: str) -> Callable[[CudaStep], CudaStep]:
    """The first kernel whose text holds `pattern` is changed."""

    def changed(step: CudaStep) -> CudaStep:
        kernel = next(k for k in step.kernels if re.search(pattern, k.source))
        source = re.sub(pattern, by, kernel.source, count=1)
        kernels = tuple(replace(k, source=source) if k is kernel else k for k in step.kernels)
        return replace(step, kernels=kernels, source=step.source.replace(kernel.source, source))

    return changed


def last_to_write_arena(step: CudaStep) -> int:
    """The number of the last launch that writes a temp."""
    written = [set(loop.writes()) & set(step.memory.arena) for loop in step.program.loops]
    names = {k.name for k, temps in zip(step.kernels, written, strict=False) if temps}
    return max(i for i, launch in enumerate(step.launches) if launch.kernel in names)


MUTANTS: dict[str, tuple[str, Callable[[CudaStep], CudaStep], type[PtxError] | None]] = {
    "first launch forgotten": ("mlp", lambda step: without(step, 0), Uninitialised),
    "last writer of a temp forgotten": ("mlp", lambda step: without(step, last_to_write_arena(step)), Uninitialised),
    "last launch forgotten": ("mlp", lambda step: without(step, len(step.launches) - 1), WRONG),
    "launches in another order": ("mlp", lambda step: swapped(step, 0), Uninitialised),
    "temp beside its place": ("mlp", lambda step: with_arena_moved(step, 0), Uninitialised),
    "guard of a map off by one": ("bag", with_text(r"if point < (\d+):\n", r"if point <= \1:\n"), OutOfBounds),
    "atomic addition dropped": ("bag", with_text(r"atomic_add\((\w+), (.*), (.*)\)", r"\1[\2] += \3"), GlobalRace),
    "guard of a tile dropped": ("mlp", with_text(r"if row < \d+ and column < \d+:", "if True:"), OutOfBounds),
}


def test_the_unchanged_steps_pass() -> None:
    for name in {name for name, _, _ in MUTANTS.values()}:
        assert run(name, lambda step: step).problems == []


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_mistakes_are_found(name: str) -> None:
    model, mend, error = MUTANTS[name]
    if error is None:
        assert run(model, mend).problems
        return
    with pytest.raises(error):
        run(model, mend)


def test_a_missing_block_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it should have written is read by a later launch, or is not what the reference has."""
    grids: list[Any] = []

    def mend(step: CudaStep) -> CudaStep:
        number = next(i for i, launch in enumerate(step.launches) if launch.grid[0] > 1)
        grids.append(step.launches[number].grid)
        return with_small_grid(step, number)

    with pytest.raises(Uninitialised):
        run("transformer", mend)
    assert grids


def test_modules_share_device_functions_that_are_the_same_to_the_last_call() -> None:
    """numba compiles a device function once for all modules; one that calls another function of the same name is another."""
    helper = "@cuda.jit(device=True)\ndef {name}(x):\n    return {body}\n"
    texts = [
        "from numba import cuda\n\n\n"
        + helper.format(name="inner", body=body)
        + helper.format(name="outer", body="inner(x)")
        for body in ("x + 1", "x + 1", "x + 2")
    ]
    first, same, other = (cuda_compile._load(text, "module", (9, 0)) for text in texts)
    for name in ("inner", "outer"):
        assert same[name] is first[name] and other[name] is not first[name]
    assert cuda_compile._load(texts[0], "module", (7, 5))["inner"] is not first["inner"], "another card, another code"
