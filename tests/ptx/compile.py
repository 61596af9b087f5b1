"""From a Python kernel to PTX by numba-cuda, which needs neither a GPU nor a driver for that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any


@contextmanager
def target(cc: tuple[int, int]) -> Iterator[None]:
    """Functions under cuda.jit(device=True) compile for `cc`: numba asks the current device, and there is none."""
    from numba.cuda import dispatcher

    asked = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=cc)
    try:
        yield
    finally:
        dispatcher.get_current_device = asked


def compile_ptx(function: Callable[..., Any], signature: Any, cc: tuple[int, int] = (9, 0), **options: Any) -> str:
    """The PTX text of a kernel for the compute capability `cc`; options as of numba.cuda.compile_ptx (fastmath, ...).

    Device functions that the kernel calls are compiled for the first `cc` that asks for them, then kept by numba.
    Raises ImportError without numba-cuda.
    """
    from numba import cuda

    with target(cc):
        text, _ = cuda.compile_ptx(function, signature, cc=cc, **options)
    return str(text)


def missing() -> str | None:
    """What is missing for compiling kernels, in words; None where nothing is."""
    try:
        import numba_cuda  # noqa: F401
        from numba.cuda.cudadrv import nvvm
    except ImportError:
        return "numba-cuda is not installed: there is nothing that compiles kernels to PTX"
    return None if nvvm.is_available() else "the NVVM library of CUDA is not installed: pip install 'numba-cuda[cu13]'"
