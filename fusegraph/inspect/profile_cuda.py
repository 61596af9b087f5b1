"""Timing the kernels of a step on the GPU: a second load of the same kernels, launched one by one with events around each.

The step that runs keeps its graph and its memory; states change in copies. A time holds the few microseconds that a launch on an
idle stream takes, which a CUDA graph mostly hides: of short kernels only the order of size is right.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fusegraph.build import Artifact

Array = np.ndarray[Any, Any]
_NUMBER = re.compile(r"k\d+(?=_)")


def time_cuda(artifact: Artifact, inputs: list[Array], steps: int, warm_up: int) -> Array:
    """Nanoseconds [step, the one stream, kernel, arrived/begun/ended] since each step began; `inputs` change.

    Raises UnsupportedError without a GPU, IndexRangeError and DeviceError as the step does.
    """
    from fusegraph.runtime.cuda import current_device
    from fusegraph.runtime.cuda.loaded import LoadedStep

    executable: Any = artifact.executable
    loops = artifact.fused[0].loops
    kernels = {match[0]: place for place, loop in enumerate(loops) if (match := _NUMBER.match(loop.name))}
    device = current_device()
    with device.using():
        loaded = LoadedStep(device, executable.plan(device))
        times = _launch_by_launch(loaded)
        found = np.zeros((steps, 1, len(loops), 3))
        for step in range(-warm_up, steps):
            times.clear()
            loaded.run(inputs)
            if step >= 0:
                found[step, 0] = _stamps(times, kernels, len(loops))
    return found


def _launch_by_launch(loaded: Any) -> list[tuple[str, float]]:
    """From now on `loaded` launches without a graph, and notes (kernel, nanoseconds) of each launch in the list that is given."""
    graphs, driver, times = loaded.graphs, loaded.device.driver, list[tuple[str, float]]()
    graphs.enabled = False

    def queue(call: Any) -> None:
        sizes, blocks = graphs.blocks.sizes, graphs.blocks
        for name in call.staged:
            driver.copy_in(blocks.device_address(name), blocks.pinned_address(name), sizes[name])
        for launch in graphs.plan.launches:
            addresses = [graphs._address(call, base) + offset for base, offset in launch.arguments]
            kernel, arguments = graphs._kernels[launch.kernel], driver.arguments(addresses)

            def one(launch: Any = launch, kernel: Any = kernel, arguments: Any = arguments) -> None:
                driver.launch(kernel, launch.grid, launch.block, arguments)

            times.append((launch.kernel, 1e6 * driver.elapsed_ms(one)))
        for name in call.back:
            if sizes[name]:
                driver.copy_out(blocks.pinned_address(name), blocks.device_address(name), sizes[name])

    graphs._queue = queue
    return times


def _stamps(times: list[tuple[str, float]], kernels: dict[str, int], count: int) -> Array:
    """Launches laid end to end; several of one kernel (a loop that was split for the GPU) as one."""
    taken, now = np.zeros(count), 0.0
    stamps = np.zeros((count, 3))
    for name, nanoseconds in times:
        match = _NUMBER.match(name)
        place = kernels.get(match[0]) if match else None
        if place is not None:
            stamps[place, :2] = stamps[place, :2] if taken[place] else now
            taken[place] += nanoseconds
        now += nanoseconds
    stamps[:, 2] = stamps[:, 1] + taken
    return stamps
