"""Checks of index arguments. (Not in `loops`: a step that comes from the disk cache needs nothing else of that file.)"""

from __future__ import annotations

from fusegraph.records import dataclass


@dataclass(frozen=True)
class Guard:
    """Before a program runs: every element of `buffer` (an input) lies in [low, high), or is `allow`; else IndexRangeError."""

    buffer: str
    low: int
    high: int
    allow: int | None
    what: str
    where: str


@dataclass(frozen=True)
class Check:
    """As a Guard, for an index that is part of an input or computed from inputs: `graph` (text) makes it of `inputs` (buffers)."""

    graph: str
    inputs: tuple[str, ...]
    low: int
    high: int
    allow: int | None
    what: str
    where: str
