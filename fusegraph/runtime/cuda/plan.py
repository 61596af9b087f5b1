"""A step in plain data: what a GPU needs to run it. It can be stored, and run by a process that has no compiler.

The key of a stored plan covers the graph, the options, this package's source, the target and the versions of numba-cuda and ptxas.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from fusegraph.runtime.cache import Entry
from fusegraph.runtime.cuda.driver import Dim3, Driver
from fusegraph.runtime.cuda_compile import CudaModule, entry_name, tool_folder
from fusegraph.runtime.executable import Slot, StepLayout

if TYPE_CHECKING:
    from fusegraph.codegen.cuda.step import CudaStep

FORMAT = 1
ARENA = "arena"  # as codegen.cuda.step has it


@dataclass(frozen=True)
class PlannedLaunch:
    """One kernel launch. arguments: (ARENA or a buffer's name, bytes behind its start)."""

    kernel: str
    grid: Dim3
    block: Dim3
    arguments: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class CudaPlan:
    """layout: buffers and checks; images: code of each kernel; entries: the kernels' names in their images.

    written: buffers that launches write.
    """

    target: str
    layout: StepLayout
    launches: tuple[PlannedLaunch, ...]
    entries: dict[str, str]
    images: dict[str, bytes]
    written: frozenset[str]

    def to_blobs(self) -> dict[str, bytes]:
        """As named blobs for the disk cache."""
        data = {
            "format": FORMAT,
            "target": self.target,
            "layout": self.layout.to_json(),
            "launches": [[launch.kernel, launch.grid, launch.block, launch.arguments] for launch in self.launches],
            "entries": self.entries,
            "written": sorted(self.written),
        }
        return {"plan.json": json.dumps(data).encode()} | {f"kernel:{name}": code for name, code in self.images.items()}

    @staticmethod
    def from_entry(entry: Entry) -> CudaPlan | None:
        """From an entry of the disk cache; None if it is not a plan of this format."""
        try:
            data = json.loads(entry["plan.json"])
            if data["format"] != FORMAT:
                return None
            return CudaPlan(
                str(data["target"]),
                StepLayout.from_json(data["layout"]),
                tuple(_launch(*launch) for launch in data["launches"]),
                {str(name): str(entry_point) for name, entry_point in data["entries"].items()},
                {name: entry[f"kernel:{name}"] for name in data["entries"]},
                frozenset(data["written"]),
            )
        except (KeyError, TypeError, ValueError):
            return None


def _launch(kernel: str, grid: Sequence[int], block: Sequence[int], arguments: Any) -> PlannedLaunch:
    return PlannedLaunch(
        str(kernel), _dim3(grid), _dim3(block), tuple((str(base), int(offset)) for base, offset in arguments)
    )


def _dim3(extents: Sequence[int]) -> Dim3:
    x, y, z = (int(extent) for extent in extents)
    return x, y, z


def make_plan(step: CudaStep, target: str, driver: Driver) -> CudaPlan:
    """Compile all kernels of `step`. Raises UnsupportedError that says what is not installed."""
    module = CudaModule(step, target)
    texts = {kernel.name: module.ptx(kernel.name) for kernel in step.kernels}
    program, memory = step.program, step.memory
    slots = tuple(
        Slot(b.name, b.role, b.shape, b.dtype.name) for b in (program.buffers[name] for name in memory.externals)
    )
    layout = StepLayout(
        slots,
        program.inputs,
        program.outputs,
        program.guards,
        memory.arena_bytes,
        0,
        tuple(kernel.name for kernel in step.kernels),
        0,
        memory.unshared_bytes,
        program.checks,
    )
    return CudaPlan(
        target,
        layout,
        tuple(_launch(launch.kernel, launch.grid, launch.block, launch.arguments) for launch in step.launches),
        {name: entry_name(text) for name, text in texts.items()},
        {name: driver.image(text, target) for name, text in texts.items()},
        frozenset(name for loop in program.loops for name in loop.writes()),
    )


@lru_cache(maxsize=1)
def toolchain() -> str:
    """Names and versions of what makes images; without importing any of it."""
    found = [f"plan {FORMAT}"]
    for package in ("numba-cuda", "numba", "nvidia-cuda-nvcc", "nvidia-nvvm"):
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    folder = tool_folder()
    if folder is not None:
        status = (folder / "ptxas").stat()
        found.append(f"ptxas {status.st_size} {status.st_mtime_ns}")
    return "; ".join(found)
