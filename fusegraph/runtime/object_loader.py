"""Object code into memory without LLVM: ELF objects for x86-64 on Linux.

What a process does with a step from the disk cache is to load it; LLVM's library alone takes longer to import than that whole
process should, and 40 MB. `load` calls LLVM's own linker for what is not known here.

All objects of a step lie in one piece of memory, so that they reach each other with 32 bits:

    functions | stubs || constants | table of addresses || variables

(|| where protection changes). A function of the C library may lie anywhere: it is called through a stub, which jumps to
what stands in the table.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from fusegraph.errors import CompilerError
from fusegraph.runtime.code_memory import CodeMemory, page_end
from fusegraph.runtime.elf import (
    EXECUTE,
    LOCAL,
    WEAK,
    WRITE,
    DamagedObject,
    ObjectFile,
    Relocation,
    Symbol,
    UnknownObject,
    read,
)

# relocation types (psABI for AMD64, table 4.9)
_NONE, _ABSOLUTE64, _RELATIVE32, _CALL32, _TABLE32, _RELATIVE64 = 0, 1, 2, 4, 9, 24
_TABLE = (_TABLE32, 41, 42)  # the last two may be made shorter, and need not

_ALIGN_CODE = 64  # a function starts at a cache line, whatever lies in front of it
_MOST_ALIGN = 4096
_MOST_BYTES = 1 << 30  # of a step's code: with more of it 32 bits would not reach from end to end
_STUB = struct.Struct("<HiH")
_JUMP, _JUMP_BYTES, _TRAP = 0x25FF, 6, 0xCCCC  # jmp *[rip + distance], then two int3
_ADDRESS = struct.Struct("<Q")
_DISTANCE = struct.Struct("<i")
_FIELDS = {_ABSOLUTE64: _ADDRESS, _RELATIVE64: struct.Struct("<q"), _RELATIVE32: _DISTANCE, _CALL32: _DISTANCE}
_FIELDS |= dict.fromkeys(_TABLE, _DISTANCE)  # what is written, by type of relocation

Place = tuple[int, int]  # object and section
Name = str | tuple[int, int]  # of a symbol: as other objects know it, or (object, number) of one that is local


class LoadedCode:
    """Object code in memory; its addresses are valid for as long as this instance lives."""

    def __init__(self, addresses: Mapping[str, int], memory: Any) -> None:
        self._addresses, self._memory = addresses, memory

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names that `address` knows."""
        return tuple(self._addresses)

    def address(self, symbol: str) -> int:
        """Address of an exported function or global. Raises CompilerError for a name that was not asked for."""
        try:
            return self._addresses[symbol]
        except KeyError:
            raise CompilerError(f"symbol {symbol!r} was not loaded; loaded: {', '.join(self._addresses)}") from None


@lru_cache(maxsize=1)
def supported() -> bool:
    """Whether objects for this process are of the kind that is loaded here."""
    return sys.platform.startswith("linux") and os.uname().machine == "x86_64" and sys.maxsize > 1 << 32


def load(code: bytes | Sequence[bytes], symbols: Sequence[str]) -> LoadedCode:
    """Link an object, or several that know each other's symbols, into the process and look up `symbols`.

    libm and libc resolve from the process. Raises CompilerError if an object is not one for this host, or a symbol is
    missing or undefined.
    """
    objects = [code] if isinstance(code, bytes) else code
    try:
        if supported():
            with contextlib.suppress(UnknownObject):
                return load_objects(objects, symbols)
        from fusegraph.runtime import llvm

        return llvm.linked(objects, symbols)
    except (CompilerError, RuntimeError) as error:
        size = sum(map(len, objects))
        raise CompilerError(f"cannot load object code ({size} bytes, symbols {list(symbols)}): {error}") from error


def load_objects(objects: Sequence[bytes], symbols: Sequence[str]) -> LoadedCode:
    """Link objects with each other, with libc and libm, and look up `symbols`.

    Raises UnknownObject for what is not loaded here, and CompilerError if an object is damaged, or a symbol missing.
    """
    image = _Image([read(code) for code in objects])
    memory = image.load()
    return LoadedCode({name: memory.address + image.offset_of(name) for name in symbols}, memory)


class _Image:
    """Objects, and where in the memory that they are to share each part of them goes.

    defined    (object, symbol) of each name that objects know of each other
    offsets    of sections
    stubs      offsets of jumps to functions that are elsewhere
    table      offsets of addresses in the table
    ends       of the three parts
    """

    def __init__(self, objects: Sequence[ObjectFile]) -> None:
        self.objects = objects
        self.defined = _defined(objects)
        self.offsets: dict[Place, int] = {}
        self.stubs, self.table = self._wanted()
        self.ends = self._placed()

    def offset_of(self, name: str) -> int:
        """Of a symbol that an object defines. Raises CompilerError if none does."""
        if name not in self.defined:
            raise CompilerError(f"no object defines {name!r}")
        number, symbol = self.defined[name]
        assert symbol.section is not None
        return self.offsets[number, symbol.section] + symbol.value

    def load(self) -> CodeMemory:
        """The objects in memory, ready to run."""
        end_of_code, end_of_constants, end = self.ends
        memory = CodeMemory(end)
        view = memory.writable()
        for (number, place), offset in self.offsets.items():
            data = self.objects[number].sections[place].data
            if data is not None:
                view[offset : offset + len(data)] = data
        for name, offset in self.table.items():
            _ADDRESS.pack_into(view, offset, self._address(name, memory.address))
        for name, offset in self.stubs.items():
            _STUB.pack_into(view, offset, _JUMP, self.table[name] - (offset + _JUMP_BYTES), _TRAP)
        for number, relocation in self._relocations():
            self._relocate(view, number, relocation, memory.address)
        view.release()
        memory.protect(0, end_of_code, execute=True)
        memory.protect(end_of_code, end_of_constants, execute=False)
        return memory

    def _relocations(self) -> Iterator[tuple[int, Relocation]]:
        for number, one in enumerate(self.objects):
            for relocation in one.relocations:
                if relocation.kind != _NONE:
                    yield number, relocation

    def _symbol(self, number: int, relocation: Relocation) -> tuple[Name, int | None, Symbol]:
        """The name of a relocation's symbol, the object that defines it (None: none of them), and the symbol there."""
        symbol = self.objects[number].symbols[relocation.symbol]
        if symbol is None:
            raise UnknownObject(f"not known to this loader: what symbol {relocation.symbol} refers to")
        if symbol.binding == LOCAL and symbol.section is not None:
            return (number, relocation.symbol), number, symbol
        place, symbol = self.defined.get(symbol.name, (None, symbol))
        return symbol.name, place, symbol

    def _wanted(self) -> tuple[dict[Name, int], dict[Name, int]]:
        """Stubs and entries of the table that relocations need; where they go is not known yet."""
        stubs: dict[Name, int] = {}
        table: dict[Name, int] = {}
        for number, relocation in self._relocations():
            name, place, _ = self._symbol(number, relocation)
            if relocation.kind in _TABLE:
                table[name] = 0
            elif place is None and relocation.kind == _CALL32:
                stubs[name] = table[name] = 0
        return stubs, table

    def _placed(self) -> tuple[int, int, int]:
        """Give everything its offset; returns the ends of the three parts."""
        end = self._place_sections(0, lambda flags: bool(flags & EXECUTE), _ALIGN_CODE)
        end = _place(self.stubs, end, _STUB.size)
        ends = [page_end(end)]
        end = self._place_sections(ends[0], lambda flags: not flags & (EXECUTE | WRITE))
        ends.append(page_end(_place(self.table, end, _ADDRESS.size)))
        ends.append(self._place_sections(ends[1], lambda flags: bool(flags & WRITE)))
        if ends[2] > _MOST_BYTES:
            raise UnknownObject(f"not known to this loader: {ends[2]} bytes of code")
        return ends[0], ends[1], ends[2]

    def _place_sections(self, start: int, wanted: Callable[[int], bool], align: int = 1) -> int:
        for number, one in enumerate(self.objects):
            for place, section in one.sections.items():
                if not wanted(section.flags):
                    continue
                if section.align > _MOST_ALIGN:
                    raise UnknownObject(f"not known to this loader: a section aligned to {section.align} bytes")
                start = _aligned(start, max(section.align, align))
                self.offsets[number, place] = start
                start += section.size
        return start

    def _address(self, name: Name, base: int) -> int:
        """Of what the table has an entry for."""
        if isinstance(name, str):
            return base + self.offset_of(name) if name in self.defined else process_symbol(name)
        number, index = name
        symbol = self.objects[number].symbols[index]
        assert symbol is not None and symbol.section is not None
        return base + self.offsets[number, symbol.section] + symbol.value

    def _relocate(self, view: memoryview, number: int, relocation: Relocation, base: int) -> None:
        """Write one address, or distance, into the code."""
        name, owner, symbol = self._symbol(number, relocation)
        kind = relocation.kind
        if kind in _TABLE:
            target = self.table[name]
        elif owner is not None:
            assert symbol.section is not None
            target = self.offsets[owner, symbol.section] + symbol.value
        elif kind == _CALL32:
            target = self.stubs[name]
        else:
            raise UnknownObject(f"not known to this loader: relocation {kind} with {symbol.name!r}, which is elsewhere")
        field = _FIELDS.get(kind)
        if field is None:
            raise UnknownObject(f"not known to this loader: relocation {kind}")
        section = self.objects[number].sections[relocation.section]
        if relocation.offset + field.size > section.size:
            raise DamagedObject("a damaged object file: a relocation reaches beyond its section")
        place = self.offsets[number, relocation.section] + relocation.offset
        value = target + relocation.addend + (base if kind == _ABSOLUTE64 else -place)
        try:
            field.pack_into(view, place, value)
        except struct.error as error:
            raise DamagedObject(f"a damaged object file: relocation {kind} does not reach: {error}") from error


def _defined(objects: Sequence[ObjectFile]) -> dict[str, tuple[int, Symbol]]:
    """(object, symbol) by name; a weak definition gives way to another."""
    found: dict[str, tuple[int, Symbol]] = {}
    for number, one in enumerate(objects):
        for symbol in one.symbols:
            if symbol is None or symbol.section is None or symbol.binding == LOCAL:
                continue
            before = found.get(symbol.name)
            if before is None or before[1].binding == WEAK:
                found[symbol.name] = number, symbol
            elif symbol.binding != WEAK:
                raise CompilerError(f"two objects define {symbol.name!r}")
    return found


def process_symbol(name: str) -> int:
    """Address of a function of the C library, of libm, or of what the process has loaded for everybody.

    Raises CompilerError if there is none of that name.
    """
    for library in _libraries():
        try:
            address = ctypes.cast(library[name], ctypes.c_void_p).value
        except AttributeError:
            continue
        if address:
            return address
    raise CompilerError(f"neither an object nor the process defines {name!r}")


@lru_cache(maxsize=1)
def _libraries() -> tuple[ctypes.CDLL, ...]:
    """What the process has loaded for everybody, then libm: numpy may be the only one to know it."""
    found = [ctypes.CDLL(None)]
    for name in ("libm.so.6", "libm.so"):
        try:
            return found[0], ctypes.CDLL(name)
        except OSError:
            continue
    return tuple(found)


def _place(names: dict[Name, int], start: int, size: int) -> int:
    """Give each name an offset, one behind the other; returns the end."""
    start = _aligned(start, size)
    for name in names:
        names[name] = start
        start += size
    return start


def _aligned(offset: int, align: int) -> int:
    return -(-offset // align) * align
