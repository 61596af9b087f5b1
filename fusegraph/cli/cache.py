"""`cache info|clear`: the disk cache."""

from __future__ import annotations

import argparse

from fusegraph.inspect.explain import bytes_text
from fusegraph.runtime.cache import DiskCache


def cache(args: argparse.Namespace) -> None:
    """Print the state of the cache, or empty it."""
    store = DiskCache()
    if args.action == "clear":
        print(f"removed {store.clear()} entries from {store.folder}")
        return
    print(state(store))


def state(store: DiskCache) -> str:
    """Where the cache is and how full."""
    info = store.info()
    if not info.usable:
        return f"{info.folder}: turned off (FUSEGRAPH_CACHE_SIZE_MB=0)"
    return f"{info.folder}: {info.entries} entries, {bytes_text(info.nbytes)} of {bytes_text(info.limit)}"
