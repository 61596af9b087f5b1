"""Names of the device functions in device.py (which imports numba-cuda), and where each takes an index of global memory."""

from __future__ import annotations

# name -> position of the pointer whose index follows it; None: it takes none
INTRINSICS: dict[str, int | None] = {
    "load4": 0,
    "store4": 0,
    "atomic_add": 0,
    "as_stored": None,
    "copy1_async": 2,
    "copy4_async": 2,
    "copy1_async_where": 2,
    "copy4_async_where": 2,
    "commit_copies": None,
    "wait_copies": None,
    "wait_older_copies": None,
    "div_full": None,
    "sqrt_approx": None,
    "rsqrt_approx": None,
    "as_tf32": None,
    "mma_tf32": None,
}
ALWAYS_IMPORTED = ("atomic_add", "load4", "store4")


def import_line(text: str) -> str:
    """The import of those that `text` calls (and of three that nearly all modules need)."""
    names = [name for name in INTRINSICS if name in ALWAYS_IMPORTED or f"{name}(" in text]
    line = f"from fusegraph.codegen.cuda.device import {', '.join(sorted(names))}"
    if len(line) <= 120:
        return line
    return "from fusegraph.codegen.cuda.device import (\n" + "".join(f"    {name},\n" for name in sorted(names)) + ")"
