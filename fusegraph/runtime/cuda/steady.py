"""The short way of a step that is called again and again: fill the pinned memory, launch the graph, wait, hand out the results.

It is taken while nothing has happened that the long way would have to look at: nobody looked at, or replaced, a tensor that is on
the device (`looks` counts that), the arguments are host arrays as the graph expects them, and the graph is still there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fusegraph.repeat import MADE, MISS, now
from fusegraph.runtime.cuda.mirrors import find, looks
from fusegraph.runtime.cuda.residency import is_watched, raw
from fusegraph.tensor import Tensor

if TYPE_CHECKING:
    from fusegraph.compiler import Version
    from fusegraph.runtime.cuda.device import Device
    from fusegraph.runtime.cuda.loaded import Call, LoadedStep

Array = np.ndarray[Any, Any]


def steady_of(version: Version, device: Device, looks_before: int) -> Steady | None:
    """The short way of a version whose last call, just over, went the long way; None where it has none.

    looks_before: `looks.count` before that call: if it has changed since, something was looked at in the call itself.
    """
    loaded: LoadedStep = version.artifact.executable.on(device)  # type: ignore[attr-defined]
    call, first = loaded.last, len(version.artifact.source.inputs) - len(version.captured)
    if call is None or version.joint is not None or version.owners or looks.count != looks_before:
        return None
    if any(type(owner) is int for owner, _ in version.grads) or any(place < first for place in version.written):
        return None
    inputs = loaded.plan.layout.inputs
    if call.moves_more or list(call.staged) != list(inputs[:first]) or not all(map(is_watched, version.captured)):
        return None
    if loaded.graphs.graph_of(call.key) is None:
        return None
    return Steady(version, loaded, call, first)


class Steady:
    """See the module. `run(leaves)` gives the function's result, or MISS, and then has changed nothing."""

    def __init__(self, version: Version, loaded: LoadedStep, call: Call, count: int) -> None:
        self._loaded, self._looks = loaded, looks.count
        self._key, self._arena = call.key, call.arena
        self._graph = loaded.graphs.graph_of(call.key)
        layout, blocks, slots = loaded.plan.layout, loaded.blocks, loaded.slots
        self._staging = [blocks.pinned(name, slots[name]) for name in layout.inputs[:count]]
        nodes = version.artifact.source.outputs
        self._results = [
            blocks.pinned(name, slots[name]).reshape(node.shape)
            for name, node in zip(layout.outputs, nodes, strict=True)
        ]
        self._names = layout.inputs[:count]
        self._written = [version.captured[place - count] for place in version.written]
        self._guarded = bool(layout.guards or layout.checks)

    def run(self, version: Version, leaves: list[Any], device: Device) -> Any:
        """The call, if nothing stands against it. Raises IndexRangeError and DeviceError as any call does."""
        arrays = self._arrays(leaves)
        loaded = self._loaded
        if arrays is None or loaded.device is not device:
            return MISS
        with device.using() as driver:
            if looks.count != self._looks or not device.has_arena(self._arena):
                return MISS
            if loaded.graphs.graph_of(self._key) is not self._graph:
                return MISS
            if self._guarded:
                loaded.check(dict(zip(self._names, arrays, strict=True)))
            for place, array in zip(self._staging, arrays, strict=True):
                np.copyto(place, array)
            try:
                driver.launch_graph(self._graph)
                driver.synchronise()
            except BaseException:
                loaded.drain()
                raise
            loaded.graphs.launches["graph"] += 1
            made = [Tensor._make(place.copy()) for place in self._results]
        return self._wrap(version, made)

    def _arrays(self, leaves: list[Any]) -> list[Array] | None:
        """The arguments, if they are host arrays of the right form."""
        arrays = []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                if is_watched(leaf):
                    return None
                leaf = raw(leaf)
            if isinstance(leaf, np.ndarray):
                arrays.append(leaf)
            elif hasattr(leaf, "__dlpack__"):
                return None
        if len(arrays) != len(self._staging):
            return None
        for array, place in zip(arrays, self._staging, strict=True):
            if array.dtype != place.dtype or array.shape != place.shape or find(array) is not None:
                return None
        return arrays

    def _wrap(self, version: Version, made: list[Tensor]) -> Any:
        version.calls += 1
        version.used = now()
        for tensor in self._written:
            tensor._version += 1
        for owner, position in version.grads:
            owner._grad = None if position is None else made[position]
        rest = iter(made)
        return version.rebuild([next(rest) if leaf is MADE else leaf for leaf in version.results])
