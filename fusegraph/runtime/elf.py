"""Relocatable object files of ELF for x86-64, read into plain data with every bound checked.

Names and numbers as in the System V ABI, and in its supplement for AMD64.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from fusegraph.errors import CompilerError

# sh_type
_PROGBITS, _SYMTAB, _RELA, _NOBITS, _REL, _UNWIND = 1, 2, 4, 8, 9, 0x70000001
# sh_flags
WRITE, ALLOC, EXECUTE, _THREAD_LOCAL = 1, 2, 4, 0x400
# st_shndx
UNDEFINED, _ABSOLUTE, _RESERVED = 0, 0xFFF1, 0xFF00
# st_info: binding and type
LOCAL, GLOBAL, WEAK = 0, 1, 2
_NOTYPE, _OBJECT, _FUNCTION, _SECTION, _FILE = 0, 1, 2, 3, 4

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QIIq")
_IDENT = b"\x7fELF\x02\x01\x01"  # 64 bits, little-endian, version 1
_MACHINE, _RELOCATABLE = 62, 1


class UnknownObject(CompilerError):
    """An object that is of another kind than those read here, or has something in it that is not."""


class DamagedObject(CompilerError):
    """An object that contradicts itself."""


# Plain classes: to make these named tuples would take a warm start as long as to read all objects of a step.


class Section:
    """A section that takes up memory. data: None where it is all zeros (.bss)."""

    __slots__ = ("align", "data", "flags", "size")

    def __init__(self, flags: int, size: int, align: int, data: memoryview | None) -> None:
        self.flags, self.size, self.align, self.data = flags, size, align, data


class Symbol:
    """section: None where another object or the process defines the symbol. value: offset in the section."""

    __slots__ = ("binding", "name", "section", "value")

    def __init__(self, name: str, binding: int, section: int | None, value: int) -> None:
        self.name, self.binding, self.section, self.value = name, binding, section, value


class Relocation:
    """Where in which section the address of which symbol goes, and how (`kind`: an R_X86_64_* number)."""

    __slots__ = ("addend", "kind", "offset", "section", "symbol")

    def __init__(self, section: int, offset: int, kind: int, symbol: int, addend: int) -> None:
        self.section, self.offset, self.kind, self.symbol, self.addend = section, offset, kind, symbol, addend


class ObjectFile:
    """sections: by their number in the file. Symbols that are of no use to a loader are None."""

    __slots__ = ("relocations", "sections", "symbols")

    def __init__(
        self, sections: dict[int, Section], symbols: list[Symbol | None], relocations: list[Relocation]
    ) -> None:
        self.sections, self.symbols, self.relocations = sections, symbols, relocations


class _Header:
    """Of a section, in the order of the file."""

    __slots__ = ("align", "entry", "flags", "info", "kind", "link", "offset", "size")

    def __init__(self, *fields: int) -> None:
        _, self.kind, self.flags, _, self.offset, self.size, self.link, self.info, self.align, self.entry = fields


def is_elf(code: bytes) -> bool:
    """Whether it starts like an object for x86-64."""
    return code[:7] == _IDENT and code[18:20] == _MACHINE.to_bytes(2, "little")


def read(code: bytes) -> ObjectFile:
    """The parts of an object file that a loader needs.

    Raises DamagedObject where the file contradicts itself, and UnknownObject for what is not read here.
    """
    if not is_elf(code):
        raise UnknownObject("this is not an ELF object for x86-64")
    try:
        return _read(memoryview(code))
    except (struct.error, UnicodeDecodeError) as error:
        raise DamagedObject(f"a damaged object file of {len(code)} bytes: {error}") from error


def _read(code: memoryview) -> ObjectFile:
    headers = _section_headers(code)
    sections = {n: _section(code, header) for n, header in enumerate(headers) if _is_loaded(header)}
    tables = [n for n, header in enumerate(headers) if header.kind == _SYMTAB]
    _require(len(tables) == 1, "it has no symbol table, or several")
    symbols = list(_symbols(code, headers, headers[tables[0]], sections))
    relocations: list[Relocation] = []
    for header in headers:
        if header.kind in (_RELA, _REL) and header.info in sections:
            _known(header.kind == _RELA, "relocations without addends")
            _require(header.link == tables[0], "relocations refer to another table than that of its symbols")
            relocations += _relocations(code, header, sections[header.info], symbols)
    return ObjectFile(sections, symbols, relocations)


def _section_headers(code: memoryview) -> list[_Header]:
    _, kind, _, _, _, _, start, _, _, _, _, size, count, _ = _HEADER.unpack_from(code)
    _known(kind == _RELOCATABLE, "a file that is not a relocatable object")
    _known(count > 0, "section numbers of more than 16 bits")  # they stand elsewhere then
    _require(size == _SECTION_HEADER.size, f"section headers of {size} bytes")
    table = _part(code, start, count * size, "the section headers")
    return [_Header(*fields) for fields in _SECTION_HEADER.iter_unpack(table)]


def _is_loaded(header: _Header) -> bool:
    """Whether a section takes up memory. Unwinding tables do not: nothing unwinds generated code."""
    if not header.flags & ALLOC or header.kind == _UNWIND:
        return False
    _known(header.kind in (_PROGBITS, _NOBITS), f"a section of type {header.kind:#x}")
    _known(not header.flags & _THREAD_LOCAL, "thread-local variables")
    _known(header.flags & (WRITE | EXECUTE) != WRITE | EXECUTE, "a section that is writable and executable")
    return True


def _section(code: memoryview, header: _Header) -> Section:
    align = max(header.align, 1)
    _require(align & (align - 1) == 0, f"a section aligned to {align} bytes")
    data = None if header.kind == _NOBITS else _part(code, header.offset, header.size, "a section")
    return Section(header.flags, header.size, align, data)


def _symbols(
    code: memoryview, headers: list[_Header], table: _Header, sections: dict[int, Section]
) -> Iterator[Symbol | None]:
    _require(table.entry == _SYMBOL.size and table.size % _SYMBOL.size == 0, "symbols of another size")
    _require(table.link < len(headers), "the names of symbols are in a section that does not exist")
    names = headers[table.link]
    texts = bytes(_part(code, names.offset, names.size, "the names"))
    for name, info, _, place, value, _ in _SYMBOL.iter_unpack(_part(code, table.offset, table.size, "the symbols")):
        binding, kind = info >> 4, info & 15
        if place in sections:
            _require(value <= sections[place].size, "a symbol lies outside of its section")
            _known(kind <= _SECTION and binding <= WEAK, f"a symbol of type {kind} and binding {binding}")
            yield Symbol(_text(texts, name), binding, place, value)
        elif place == UNDEFINED and binding == GLOBAL:
            _known(kind <= _FUNCTION, f"an undefined symbol of type {kind}")
            yield Symbol(_text(texts, name), binding, None, 0)
        else:  # of a file, of debugging information, of nothing
            _known(binding == LOCAL, f"{_text(texts, name)!r} is neither defined nor imported")
            yield None


def _relocations(
    code: memoryview, header: _Header, target: Section, symbols: list[Symbol | None]
) -> Iterator[Relocation]:
    _require(header.entry == _RELOCATION.size and header.size % _RELOCATION.size == 0, "relocations of another size")
    _require(target.data is not None, "relocations in a section that has no bytes")
    for offset, kind, symbol, addend in _RELOCATION.iter_unpack(_part(code, header.offset, header.size, "relocations")):
        if symbol >= len(symbols) or offset >= target.size:
            raise DamagedObject("a damaged object file: a relocation with a symbol or a place that does not exist")
        yield Relocation(header.info, offset, kind, symbol, addend)


def _part(code: memoryview, start: int, size: int, what: str) -> memoryview:
    _require(start + size <= len(code), f"{what} would end at byte {start + size}")
    return code[start : start + size]


def _text(texts: bytes, start: int) -> str:
    end = texts.find(b"\0", start)
    _require(start <= end, "a name without an end")
    return texts[start:end].decode()


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise DamagedObject(f"a damaged object file: {otherwise}")


def _known(condition: bool, otherwise: str) -> None:
    if not condition:
        raise UnknownObject(f"not known to this loader: {otherwise}")
