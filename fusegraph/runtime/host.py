"""Which machine this is, told without LLVM where that can be: by what the CPU itself says.

LLVM derives the CPU's name and features from the `cpuid` instruction and from which registers the system saves; so that two
hosts where these say the same have the same code. Object code in a cache folder that several machines share is found by it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable
from functools import lru_cache

from fusegraph.runtime.code_memory import CodeMemory
from fusegraph.runtime.object_loader import supported

# void cpuid(u32 leaf, u32 subleaf, u32 out[4])
_CPUID = bytes.fromhex(
    "53"  # push rbx
    "4989d0"  # mov r8, rdx
    "89f8"  # mov eax, edi
    "89f1"  # mov ecx, esi
    "0fa2"  # cpuid
    "418900"  # mov [r8], eax
    "41895804"  # mov [r8+4], ebx
    "41894808"  # mov [r8+8], ecx
    "4189500c"  # mov [r8+12], edx
    "5b"  # pop rbx
    "c3"  # ret
)
# u64 xgetbv(): which registers the system saves
_XGETBV = bytes.fromhex(
    "31c9"  # xor ecx, ecx
    "0f01d0"  # xgetbv
    "48c1e220"  # shl rdx, 32
    "4809d0"  # or rax, rdx
    "c3"  # ret
)
_XGETBV_AT = 64
_EAX, _EBX, _ECX, _EDX = range(4)
_OSXSAVE = 1 << 27  # leaf 1, ecx: xgetbv may be used
_MANUFACTURER, _EXTENDED = 0, 1 << 31
# What LLVM reads: (leaf, subleaf, registers). Left out are registers that say which core this is (leaf 1, ebx).
_LEAVES = (
    (0, 0, (_EAX, _EBX, _ECX, _EDX)),
    (1, 0, (_EAX, _ECX, _EDX)),
    (7, 0, (_EAX, _EBX, _ECX, _EDX)),
    (7, 1, (_EAX, _EBX, _ECX, _EDX)),
    (0xD, 1, (_EAX,)),
    (0x14, 0, (_EBX,)),
    (0x19, 0, (_EBX,)),
    (0x1E, 1, (_EAX,)),
    (0x24, 0, (_EBX,)),
    (0x29, 0, (_EBX,)),
    (_EXTENDED, 0, (_EAX,)),
    (_EXTENDED + 1, 0, (_ECX, _EDX)),
    (_EXTENDED + 8, 0, (_EBX,)),
    (_EXTENDED + 0x21, 0, (_EAX,)),
)


@lru_cache(maxsize=1)
def arch() -> str:
    """First part of the host's triple: x86_64, aarch64 or arm64, ..."""
    if supported():
        return "x86_64"
    from fusegraph.runtime.llvm import target

    return target().arch


@lru_cache(maxsize=1)
def identity() -> tuple[str, ...]:
    """What object code depends on beside its source: the host and the compiler."""
    if supported():
        return ("linux x86_64", _cpu(), *_compiler())
    from fusegraph.runtime.llvm import target

    host = target()
    return (host.triple, host.cpu, host.features, *_compiler())


def _compiler() -> tuple[str, ...]:
    """llvmlite's version and the size of its library, without importing it."""
    spec = importlib.util.find_spec("llvmlite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        try:
            with open(os.path.join(folder, "_version.py"), encoding="utf-8") as file:
                version = file.read()
            with os.scandir(os.path.join(folder, "binding")) as entries:
                sizes = [f"{one.name} {one.stat().st_size}" for one in entries if "llvmlite." in one.name]
        except OSError:
            continue
        return (version, *sorted(sizes))
    import llvmlite  # it is not laid out as files

    return (llvmlite.__version__,)


def _cpu() -> str:
    """What the CPU says of itself, in hexadecimal."""
    memory = CodeMemory(_XGETBV_AT + len(_XGETBV))
    view = memory.writable()
    view[: len(_CPUID)] = _CPUID
    view[_XGETBV_AT : _XGETBV_AT + len(_XGETBV)] = _XGETBV
    view.release()
    memory.protect(0, memory.nbytes, execute=True)
    cpuid = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(memory.address)
    xgetbv = ctypes.CFUNCTYPE(ctypes.c_uint64)(memory.address + _XGETBV_AT)
    return describe(cpuid, xgetbv)


def describe(cpuid: Callable[[int, int, int], None], xgetbv: Callable[[], int]) -> str:
    """The leaves that LLVM reads, as far as this CPU has them, and the registers that the system saves."""
    found = (ctypes.c_uint32 * 4)()
    address = ctypes.addressof(found)
    cpuid(_MANUFACTURER, 0, address)
    last = {0: found[_EAX]}
    cpuid(_EXTENDED, 0, address)
    last[_EXTENDED] = found[_EAX]
    words = []
    saves = False
    for leaf, subleaf, registers in _LEAVES:
        if leaf > last[leaf & _EXTENDED]:
            continue
        cpuid(leaf, subleaf, address)
        saves |= leaf == 1 and bool(found[_ECX] & _OSXSAVE)
        words.append(f"{leaf:x}.{subleaf}:" + ",".join(f"{found[register]:x}" for register in registers))
    words.append(f"{xgetbv():x}" if saves else "-")
    return " ".join(words)
