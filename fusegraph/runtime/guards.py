"""Checks of a program's inputs, before anything is changed: labels and indices lie inside of their axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusegraph.errors import IndexRangeError
from fusegraph.ir.loops import Buffer, Guard, Program

Array = np.ndarray[Any, Any]


def check_guards(program: Program, arrays: Mapping[str, Array]) -> None:
    """Raise IndexRangeError unless every guard of `program` holds for `arrays` (by buffer name; flat or shaped)."""
    for guard in program.guards:
        check_guard(guard, program.buffers[guard.buffer], arrays[guard.buffer])


def check_guard(guard: Guard, buffer: Buffer, array: Array) -> None:
    """Raise IndexRangeError, naming the first element that is outside of the guard's range, and the user's line."""
    if not array.size or (array.min() >= guard.low and array.max() < guard.high):
        return
    bad = (array < guard.low) | (array >= guard.high)
    if guard.allow is not None:
        bad &= array != guard.allow
    if bad.any():
        raise IndexRangeError(_message(guard, buffer, array.ravel(), int(np.argmax(bad.ravel()))))


def _message(guard: Guard, buffer: Buffer, flat: Array, place: int) -> str:
    position = ", ".join(str(int(i)) for i in np.unravel_index(place, buffer.shape)) if buffer.shape else ""
    allowed = f" (or be {guard.allow})" if guard.allow is not None else ""
    where = f"; used at {guard.where}" if guard.where else ""
    return (
        f"{guard.what} {int(flat[place])} at [{position}] of {buffer.name!r}, {buffer.dtype.name}{list(buffer.shape)}, "
        f"is outside of [{guard.low}, {guard.high}){where}: every value must lie in {guard.low} ... {guard.high - 1}"
        f"{allowed}. Nothing was changed"
    )
