"""`CudaExecutable`: a compiled graph for the GPU. It can be made, and dumped, anywhere; `run` needs a GPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fusegraph import events
from fusegraph.errors import UnsupportedError
from fusegraph.runtime.cache import DiskCache
from fusegraph.runtime.cuda.device import Device, current_device, unavailable
from fusegraph.runtime.cuda.loaded import LoadedStep
from fusegraph.runtime.cuda.plan import CudaPlan, make_plan, toolchain
from fusegraph.runtime.cuda_compile import DEFAULT_TARGET, TARGETS

if TYPE_CHECKING:
    from fusegraph.build import Artifact
    from fusegraph.codegen.cuda.step import CudaStep

Array = np.ndarray[Any, Any]


class CudaExecutable:
    """A step on the GPU, of an artifact's fused program. target: "sm_90", say; None: the GPU at hand, or DEFAULT_TARGET."""

    def __init__(self, artifact: Artifact, target: str | None = None) -> None:
        self._artifact, self._wanted = artifact, target
        self._lock = threading.Lock()
        self._loaded: LoadedStep | None = None

    @cached_property
    def target(self) -> str:
        """What it is compiled for."""
        if self._wanted is not None:
            return self._wanted
        return DEFAULT_TARGET if unavailable() else current_device().target

    @cached_property
    def step(self) -> CudaStep:
        """Kernels as source, launches, memory; made without a GPU."""
        from fusegraph.codegen.cuda.step import emit_step

        program, _ = self._artifact.fused
        start, options = time.perf_counter(), self._artifact.options
        step = emit_step(program, options.exact, capability=TARGETS[self.target], precision=options.precision)
        self._artifact.seconds["code generation"] = time.perf_counter() - start
        return step

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run on arrays in the order of the graph's inputs; states change in place (on the device, if they are resident).

        Raises UnsupportedError that says what is missing (GPU, driver, wheels), IndexRangeError for an index argument out of
        range, DeviceError if there is no room or the GPU fails; nothing has been changed then.
        """
        device = current_device()
        with device.using():
            return self.on(device).run(inputs)

    def on(self, device: Device) -> LoadedStep:
        """The step in a device's memory, loaded if need be. Under `device.using`."""
        loaded = self._loaded
        if loaded is None or loaded.device is not device:
            check_target(self.target, device)
            with self._lock:
                loaded = self._loaded = LoadedStep(device, self.plan(device))
        return loaded

    def plan(self, device: Device) -> CudaPlan:
        """The compiled kernels, from the disk cache or made. Raises UnsupportedError if the compiler is not installed."""
        start, artifact = time.perf_counter(), self._artifact
        cache = DiskCache()
        key = cache.key("cuda", *_parts(artifact), self.target, toolchain(), device.driver.image_kind)
        entry = cache.get(key)
        plan = CudaPlan.from_entry(entry) if entry is not None else None
        artifact.from_cache = plan is not None
        if plan is None:
            plan = make_plan(self.step, self.target, device.driver)
            cache.put(key, plan.to_blobs())
        seconds = time.perf_counter() - start
        artifact.seconds["load" if artifact.from_cache else "kernels"] = seconds
        how = "loaded from the disk cache" if artifact.from_cache else "compiled"
        events.event(
            "cache", f"{artifact.source.name}: {len(plan.images)} kernels for {self.target} {how} in {seconds:.3f} s"
        )
        return plan


def _parts(artifact: Artifact) -> tuple[str, str, str]:
    """What the source of a step depends on, apart from its target."""
    from fusegraph.cache_key import generator_digest

    options = replace(artifact.options, target=None, verify=False)  # all others change what is compiled
    return repr(artifact.source.structure()), repr(options), generator_digest()


def check_target(target: str, device: Device) -> None:
    """Raise UnsupportedError if code for `target` does not run on a device."""
    needed, given = TARGETS[target], device.capability
    if needed > given or (device.driver.image_kind == "cubin" and needed[0] != given[0]):
        name = f"sm_{given[0]}{given[1]}"
        raise UnsupportedError(
            f"this GPU ({device.driver.name()}) is {name}, the step was compiled for {target}: leave `target` out, or use "
            f"target={device.target!r}"
        )
