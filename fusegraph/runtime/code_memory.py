"""Memory that machine code lies in: written first, then made executable, never both at once.

For POSIX systems. Without the C library's `mmap` through ctypes the address of a mapping, which code is placed by, could
not be told for as long as the mapping is to live.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache

from fusegraph.errors import CompilerError

PAGE = 4096  # bytes; protection is by pages. x86-64 has no others for memory that is not asked for as huge
_READ, _WRITE, _EXECUTE = 1, 2, 4  # PROT_*
_PRIVATE = 2  # MAP_PRIVATE
_FAILED = ctypes.c_void_p(-1).value  # MAP_FAILED


def page_end(nbytes: int) -> int:
    """`nbytes` rounded up to whole pages."""
    return -(-nbytes // PAGE) * PAGE


class CodeMemory:
    """Zeroed pages for at least `nbytes` bytes, writable until `protect`. Unmapped when the last reference goes.

    Raises CompilerError if the system gives no memory.
    """

    def __init__(self, nbytes: int) -> None:
        self.address, self.nbytes = 0, page_end(max(nbytes, 1))
        # MAP_ANONYMOUS has another number on macOS
        flags = _PRIVATE | (0x1000 if sys.platform == "darwin" else 0x20)
        address = _c_library().mmap(None, self.nbytes, _READ | _WRITE, flags, -1, 0)
        if address is None or address == _FAILED:
            raise CompilerError(f"no memory for {nbytes} bytes of code: {os.strerror(ctypes.get_errno())}")
        self.address = address
        self._unmap = _c_library().munmap

    def writable(self) -> memoryview:
        """All bytes; to be written to before `protect` only."""
        return memoryview((ctypes.c_ubyte * self.nbytes).from_address(self.address)).cast("B")

    def protect(self, start: int, end: int, *, execute: bool) -> None:
        """Let the pages of bytes start..end be read, and executed if asked for, and written to no more.

        Raises CompilerError if the system forbids it.
        """
        if start == end:
            return
        allowed = _READ | _EXECUTE if execute else _READ
        if _c_library().mprotect(self.address + start, page_end(end) - start, allowed):
            raise CompilerError(
                f"the system does not let memory become {'executable' if execute else 'read-only'}: "
                f"{os.strerror(ctypes.get_errno())}"
            )

    def __del__(self) -> None:
        # at the end of the process worker threads may still be in the code
        if self.address and not sys.is_finalizing():
            self._unmap(self.address, self.nbytes)


@lru_cache(maxsize=1)
def _c_library() -> ctypes.CDLL:
    """The C library's calls for pages, with their types."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_ssize_t]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library
