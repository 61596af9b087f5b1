"""The one exception family. A message says what, where, which shapes and dtypes, and what to do."""

from __future__ import annotations


class FusegraphError(Exception):
    """Base of every error raised by fusegraph."""


class ShapeError(FusegraphError, ValueError):
    """Shapes do not fit the operation."""


class DTypeError(FusegraphError, TypeError):
    """An element type does not fit the operation."""


class IndexRangeError(FusegraphError, IndexError):
    """A label, token id or index lies outside of its axis."""


class TraceError(FusegraphError):
    """A function cannot be traced: its Python control flow needs a value that is known only at run time."""


class GradientError(FusegraphError):
    """A gradient was asked for that does not exist."""


class OptionError(FusegraphError, ValueError):
    """An option has a value that is not allowed."""


class MemoryBudgetError(OptionError):
    """No program is found whose memory keeps to `memory_budget`; the message says what is alive at the peak."""


class GraphError(FusegraphError):
    """A graph breaks a rule of its stage (found by the verifier), or its text cannot be parsed."""


class CompilerError(FusegraphError):
    """The compiler made something that it should not have: a bug in fusegraph."""


class UnsupportedError(FusegraphError, NotImplementedError):
    """A combination that is not supported, with what to use in its place."""


class DeviceError(FusegraphError):
    """The GPU or its driver reports an error.

    out_of_memory: an allocation failed; everything else is as it was.
    lost: this process cannot use the device any more (an illegal access in a kernel, say).
    """

    def __init__(self, message: str, *, out_of_memory: bool = False, lost: bool = False) -> None:
        super().__init__(message)
        self.out_of_memory, self.lost = out_of_memory, lost


class FusionError(FusegraphError):
    """A region that `fuse="require"` wants as one kernel is several; the message names what was refused, and the lines."""


class StateError(FusegraphError):
    """Saved state does not fit the object that it is loaded into."""


class CacheWarning(UserWarning):
    """The disk cache cannot be used; compiling goes on without it."""
