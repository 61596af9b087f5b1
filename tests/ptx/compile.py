"""From a Python kernel to PTX by numba-cuda, which needs neither a GPU nor a driver for that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def compile_ptx(function: Callable[..., Any], signature: Any, cc: tuple[int, int] = (9, 0), **options: Any) -> str:
    """The PTX text of a kernel for the compute capability `cc`; options as of numba.cuda.compile_ptx (fastmath, ...).

    Raises ImportError without numba-cuda.
    """
    from numba import cuda

    text, _ = cuda.compile_ptx(function, signature, cc=cc, **options)
    return str(text)
