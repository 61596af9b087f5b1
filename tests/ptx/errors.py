"""What can be wrong with a kernel: one class a kind, so that a test can ask for the kind it planted."""

from __future__ import annotations

from collections.abc import Sequence


class PtxError(Exception):
    """Base of every fault that the interpreter reports; the message names the PTX line, the block and the thread."""


class ParseError(PtxError):
    """The text is not PTX that the parser understands."""


class UnsupportedInstruction(PtxError):
    """Well-formed PTX, but an instruction or form that the interpreter does not implement."""


class LaunchError(PtxError):
    """Arguments, grid or block do not fit the kernel."""


class OutOfBounds(PtxError):
    """An access outside of every array, shared variable or local frame, or a store to read-only memory."""


class Misaligned(PtxError):
    """An address that is not a multiple of the size of the access (the whole vector for .v2 and .v4)."""


class Uninitialised(PtxError):
    """Shared memory or a register read before anything was written to it."""


class SharedRace(PtxError):
    """Two threads of a block touch one shared element, one of them writing, with no barrier between."""


class GlobalRace(PtxError):
    """Two threads touch one global element, one of them writing, with neither barrier, fence nor atomics between."""


class DivergentBarrier(PtxError):
    """Threads of one block wait at different barriers, or some have left the kernel."""


class DivergentWarp(PtxError):
    """A warp-wide instruction (shfl, vote, mma) reached by a part of the lanes that its mask names.

    absent: the lanes that are named but did not come (they may still be on their way).
    """

    absent: Sequence[int] = ()


class ArithmeticFault(PtxError):
    """Integer division by zero, whose result PTX leaves open."""


class BudgetExceeded(PtxError):
    """The instruction budget ran out: most likely a loop that does not end."""


class Trap(PtxError):
    """The kernel executed trap."""
