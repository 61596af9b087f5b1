"""What a compiled program is stored under in the disk cache: all that its code depends on."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusegraph.build import Options
    from fusegraph.ir.graph import Graph
    from fusegraph.runtime.cache import DiskCache


@lru_cache(maxsize=1)
def generator_digest() -> str:
    """A digest of this package's own source: code in the cache that other source made is never used."""
    folders = [os.path.dirname(__file__)]
    for name in ("fusegraph.passes", "fusegraph.codegen"):  # found, not imported: a warm start does not need them
        spec = importlib.util.find_spec(name)
        folders += (spec.submodule_search_locations or []) if spec else []
    digest = hashlib.sha256()
    for folder in folders:
        for line in sorted(_source_files(folder, "")):
            digest.update(line.encode())
    return digest.hexdigest()


def _source_files(folder: str, inside: str) -> Iterator[str]:
    """Name, size and time of every Python file below `folder`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".py"):
                status = entry.stat()
                yield f"{inside}{entry.name}:{status.st_size}:{status.st_mtime_ns};"
            elif entry.is_dir() and entry.name != "__pycache__":
                yield from _source_files(entry.path, f"{inside}{entry.name}/")


def cache_key(graph: Graph, options: Options, sizes: str = "") -> tuple[DiskCache, str]:
    """The disk cache, and what a program for `graph` is stored under. sizes: what else it depends on."""
    from fusegraph.runtime.cache import DiskCache
    from fusegraph.runtime.executable import data_field

    cache = DiskCache()
    text = repr(graph.structure())
    chosen = (
        bool(options.fuse),
        options.exact,
        options.disable,
        data_field(),
        options.fuse_limit,
        options.memory_budget,
    )
    return cache, cache.key("step", text, repr(chosen), generator_digest(), *([sizes] if sizes else []))
