"""Checks of a program's inputs, before anything is changed: labels and indices lie inside of their axes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from fusegraph.errors import IndexRangeError
from fusegraph.ir import interpret
from fusegraph.ir.graph import Graph
from fusegraph.ir.loops import Buffer, Check, Guard, Program

Array = np.ndarray[Any, Any]


def check_guards(program: Program, arrays: Mapping[str, Array]) -> None:
    """Raise IndexRangeError unless every guard and check of `program` holds for `arrays` (by buffer name; flat or shaped)."""
    for guard in program.guards:
        check_guard(guard, program.buffers[guard.buffer], arrays[guard.buffer])
    for check in program.checks:
        check_computed(check, arrays)


def check_guard(guard: Guard, buffer: Buffer, array: Array) -> None:
    """Raise IndexRangeError, naming the first element that is outside of the guard's range, and the user's line."""
    _check_values(guard, array.reshape(buffer.shape), f"{buffer.name!r}, {buffer.dtype.name}{list(buffer.shape)},")


def check_computed(check: Check, arrays: Mapping[str, Array]) -> None:
    """As `check_guard`, for an index that is computed from inputs."""
    graph = _parsed(check.graph)
    given = [arrays[name].reshape(node.shape) for name, node in zip(check.inputs, graph.inputs, strict=True)]
    ((values,), _) = interpret.run(graph, given)
    _check_values(check, values, f"what is computed from {', '.join(map(repr, check.inputs)) or 'constants'}")


@lru_cache(maxsize=256)
def _parsed(text: str) -> Graph:
    from fusegraph.ir.text import parse

    return parse(text)


def _check_values(guard: Guard | Check, values: Array, name: str) -> None:
    if not values.size or (values.min() >= guard.low and values.max() < guard.high):
        return
    bad = (values < guard.low) | (values >= guard.high)
    if guard.allow is not None:
        bad &= values != guard.allow
    if bad.any():
        raise IndexRangeError(_message(guard, values, tuple(int(i) for i in np.argwhere(bad)[0]), name))


def _message(guard: Guard | Check, values: Array, place: tuple[int, ...], name: str) -> str:
    allowed = f" (or be {guard.allow})" if guard.allow is not None else ""
    where = f"; used at {guard.where}" if guard.where else ""
    return (
        f"{guard.what} {int(values[place])} at [{', '.join(map(str, place))}] of {name} "
        f"is outside of [{guard.low}, {guard.high}){where}: every value must lie in {guard.low} ... {guard.high - 1}"
        f"{allowed}. Nothing was changed"
    )
