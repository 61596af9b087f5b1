"""Where in the user's program an operation was written: file, line and module path."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PACKAGE_FOLDERS = tuple(
    str(folder) + "/"
    for folder in (
        Path(__file__).resolve().parent.parent,
        *(Path(__file__).resolve().parent.parent.parent / name for name in ("passes", "codegen")),
    )
)
_module_path: list[str] = []
_forced: list[Location] = []


@dataclass(frozen=True, slots=True)
class Location:
    """A place in the user's program; `module` is a path such as ``Net.conv`` ("" outside of a module)."""

    file: str = ""
    line: int = 0
    module: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.file else "?"
        return f"{where} {self.module}".rstrip()

    @property
    def short(self) -> str:
        """The file's own name and the line, without folders."""
        return f"{os.path.basename(self.file)}:{self.line}" if self.file else "?"


NOWHERE = Location()


def user_location() -> Location:
    """The innermost frame outside of this package, with the module that is running."""
    if _forced:
        return _forced[-1]
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_PACKAGE_FOLDERS) and not name.startswith("<frozen"):
            return Location(name, frame.f_lineno, ".".join(_module_path))
        if frame.f_back is None:
            break
        frame = frame.f_back
    return Location("", 0, ".".join(_module_path))


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
