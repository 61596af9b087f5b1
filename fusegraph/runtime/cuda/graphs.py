"""The launches of a step: recorded once as a CUDA graph, then one launch a call; one by one where there are no graphs.

A graph holds addresses. Those of a step's own buffers and of resident states stay the same, so that one graph serves all calls;
where addresses keep changing, a step goes on without graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fusegraph import events
from fusegraph.errors import DeviceError
from fusegraph.runtime.cuda.device import Device
from fusegraph.runtime.cuda.memory import Blocks
from fusegraph.runtime.cuda.plan import ARENA, CudaPlan

if TYPE_CHECKING:
    from fusegraph.runtime.cuda.loaded import Call

MAX_GRAPHS = 8  # kept for one step
MAX_CAPTURES = 64  # a step whose addresses change more often gains nothing by graphs


class Graphs:
    """Launches a step. Every method is called under `device.using`.

    enabled: False to launch kernel by kernel. launches: what was launched so far, ("graph" | "kernel") -> how often.
    """

    def __init__(self, device: Device, plan: CudaPlan, blocks: Blocks) -> None:
        self.device, self.plan, self.blocks = device, plan, blocks
        self.enabled = True
        self.launches = {"graph": 0, "kernel": 0}
        self._kernels: dict[str, Any] = {}
        self._graphs: dict[tuple[Any, ...], Any] = {}
        self._proven: set[tuple[Any, ...]] = set()
        self._captures = 0
        self._last: Callable[[], None] = lambda: None

    def launch(self, call: Call) -> None:
        """Queue copies in, kernels and copies out of a call.

        Raises DeviceError; unless the device is lost, states are as they were.
        """
        graph = self._graph(call) if self.enabled else None
        if graph is not None:
            self.device.driver.launch_graph(graph)
            self.launches["graph"] += 1
            self._last = lambda: self.device.driver.launch_graph(graph)
        else:
            self._one_by_one(call)
            self._last = lambda: self._queue(call)

    def graph_of(self, key: tuple[Any, ...]) -> Any:
        """The graph of calls with that key; None if there is none, or graphs are not wanted."""
        return self._graphs.get(key) if self.enabled else None

    def replay_ms(self, times: int) -> float:
        """The GPU's time for one of `times` repetitions of the last call, without what the host does for it.

        For measurements: states go on with each repetition. What the last call used must still be alive.
        """

        def queue() -> None:
            for _ in range(times):
                self._last()

        return self.device.driver.elapsed_ms(queue) / times

    def _load(self) -> None:
        for name, image in self.plan.images.items():
            if name not in self._kernels:
                self._kernels[name] = self.device.driver.load(image, self.plan.entries[name])

    def reserve(self, call: Call) -> None:
        """Load the kernels and take all memory that the call needs: nothing is allocated while something is queued."""
        self._load()
        for slot in self.plan.layout.slots:
            if slot.name not in call.addresses:
                self.blocks.device_address(slot.name)
        for name in (*call.staged, *call.back):
            self.blocks.pinned_address(name)

    def _graph(self, call: Call) -> Any:
        key = call.key
        if key in self._graphs:
            return self._graphs[key]
        if self._captures >= MAX_CAPTURES or not self.device.driver.begin_capture():
            self.enabled = False
            events.event("kernels", "the step is launched kernel by kernel, without a CUDA graph")
            return None
        try:
            self._queue(call)
        except DeviceError:
            self.device.driver.abandon_capture()
            raise
        graph = self.device.driver.end_capture()
        self._captures += 1
        if len(self._graphs) >= MAX_GRAPHS:
            self.device.driver.free_graph(self._graphs.pop(next(iter(self._graphs))))
        self._graphs[key] = graph
        return graph

    def _queue(self, call: Call) -> None:
        driver, blocks, sizes = self.device.driver, self.blocks, self.blocks.sizes
        for name in call.staged:
            driver.copy_in(blocks.device_address(name), blocks.pinned_address(name), sizes[name])
        for launch in self.plan.launches:
            addresses = [self._address(call, base) + offset for base, offset in launch.arguments]
            driver.launch(self._kernels[launch.kernel], launch.grid, launch.block, driver.arguments(addresses))
        for name in call.back:
            if sizes[name]:
                driver.copy_out(blocks.pinned_address(name), blocks.device_address(name), sizes[name])

    def _address(self, call: Call, base: str) -> int:
        if base == ARENA:
            return call.arena
        return call.addresses[base] if base in call.addresses else self.blocks.device_address(base)

    def _one_by_one(self, call: Call) -> None:
        """A launch that the driver refuses comes after others that may have changed states: those are put back then."""
        saved = [] if call.key in self._proven else self._saved_states(call)
        driver = self.device.driver
        try:
            self._queue(call)
        except DeviceError as error:
            if not error.lost:
                for copy, mirror in saved:
                    driver.copy(mirror.address, copy, mirror.nbytes)
                driver.synchronise()
            raise
        finally:
            for copy, mirror in saved:  # the next owner's work is queued behind the copy
                self.device.release(copy, mirror.nbytes)
        if len(self._proven) < MAX_CAPTURES:
            self._proven.add(call.key)
        self.launches["kernel"] += len(self.plan.launches)

    def _saved_states(self, call: Call) -> list[tuple[int, Any]]:
        states = [m for name, m in call.mirrors.items() if name in self.plan.written and m.nbytes]
        saved: list[tuple[int, Any]] = []
        try:
            for mirror in states:
                saved.append((self.device.alloc(mirror.nbytes), mirror))
        except DeviceError:
            for copy, mirror in saved:
                self.device.release(copy, mirror.nbytes)
            raise
        for copy, mirror in saved:
            self.device.driver.copy(copy, mirror.address, mirror.nbytes)
        return saved

    def close(self) -> None:
        """Give graphs and kernels back."""
        for graph in self._graphs.values():
            self.device.driver.free_graph(graph)
        for kernel in self._kernels.values():
            self.device.driver.unload(kernel)
        self._graphs.clear()
        self._kernels.clear()
        self._last = lambda: None
