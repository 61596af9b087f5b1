"""Where in the user's program an operation was written: file, line and module path."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fusegraph.errors import OptionError
from fusegraph.records import dataclass, replace

_PACKAGE = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
_PACKAGE_FOLDERS = (
    f"{_PACKAGE}/",
    *(f"{os.path.dirname(_PACKAGE)}/{name}/" for name in ("passes", "codegen")),
)
_module_path: list[str] = []
_regions: list[str] = [""]
_forced: list[Location] = []


@dataclass(frozen=True)
class Location:
    """A place in the user's program; `module` is a path such as ``Net.conv`` ("" outside of a module).

    region: the name that the user gave to this part of the program (see `region`; "" outside of all).
    """

    file: str = ""
    line: int = 0
    module: str = ""
    region: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.file else "?"
        return f"{where} {self.module}".rstrip()

    @property
    def short(self) -> str:
        """The file's own name and the line, without folders."""
        return f"{os.path.basename(self.file)}:{self.line}" if self.file else "?"


NOWHERE = Location()


def is_users(file: str) -> bool:
    """Whether a file is part of the user's program, not of this package or of Python's own start."""
    return not file.startswith(_PACKAGE_FOLDERS) and not file.startswith("<frozen")


def user_location() -> Location:
    """The innermost frame outside of this package, with the module that is running."""
    if _forced:
        forced, current = _forced[-1], _regions[-1]
        return forced if forced.region == current else replace(forced, region=current)
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if is_users(name):
            return Location(name, frame.f_lineno, ".".join(_module_path), _regions[-1])
        if frame.f_back is None:
            break
        frame = frame.f_back
    return Location("", 0, ".".join(_module_path), _regions[-1])


@contextmanager
def module_scope(name: str) -> Iterator[None]:
    """Operations inside belong to the module called `name` (nested in the modules that are running)."""
    _module_path.append(name)
    try:
        yield
    finally:
        _module_path.pop()


def module_path() -> str:
    """The dotted path of the module that is running ("" outside of all)."""
    return ".".join(_module_path)


@contextmanager
def located(location: Location) -> Iterator[None]:
    """Operations inside belong to `location`: a gradient belongs to the line of the operation that it is the gradient of."""
    _forced.append(location)
    try:
        yield
    finally:
        _forced.pop()


@contextmanager
def region(name: str) -> Iterator[None]:
    """Operations that are applied inside belong to the region `name`: reports say so, and `fuse="require"` checks it.

        with fg.region("norm"):
            y = (x - x.mean(1, keepdim=True)) * scale

    `fg.compile(function, fuse="require")` raises FusionError unless one kernel computes all of a region. What counts is when an
    operation is applied: the gradients of a region's operations belong to it only if `backward()` is called inside. A region
    within another is part of that as well ("outer/inner"). Raises OptionError for a name that is empty or has a "/".
    """
    if not isinstance(name, str) or not name or "/" in name:
        raise OptionError(f"a region's name is a text without '/', not {name!r}")
    _regions.append(f"{_regions[-1]}/{name}" if _regions[-1] else name)
    try:
        yield
    finally:
        _regions.pop()
