"""From PTX text to an `Entry`: a scanner of statements with scopes, and a parser of operands.

Only what NVVM writes for one kernel, and what inline PTX in braces adds to it, is understood; anything else is a
`ParseError` that names the line.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterator
from dataclasses import replace

from .errors import ParseError, UnsupportedInstruction
from .ir import (
    DTYPES,
    Address,
    Entry,
    FloatBits,
    Imm,
    Instr,
    Operand,
    Pair,
    Param,
    Reg,
    Symbol,
    Variable,
    Vector,
    operand_registers,
)

NAME = r"[\w$%.]+"
LABEL = re.compile(r"([A-Za-z_$][\w$]*)\s*:(?!:)")
VARIABLE = re.compile(
    r"(?:\.(?:extern|visible|common|weak)\s+)*\.(shared|local|global|const)\s+(?:\.attribute\([^)]*\)\s*)?"
    r"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)\s*(\[\s*\d*\s*\])?\s*(?:=\s*(.*))?$",
    re.S,
)
PARAM = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?([\w$]+)(?:\[(\d+)\])?"
)
INSTRUCTION = re.compile(r"(?:@(!?)([\w$%]+)\s+)?([a-z][\w]*)((?:\.[\w:]+)*)\s*(.*)$", re.S)
LOCAL_PARAM = re.compile(r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)\s*(?:\[(\d+)\])?$")
CALL = re.compile(r"call(?:\.uni)?\s+(?:\(([^)]*)\)\s*,\s*)?([\w$]+)\s*(?:,\s*\(([^)]*)\))?$")
ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*(?:\((.*?)\))?\s*([^{]*)\{", re.S)


def parse_entry(text: str, name: str | None = None) -> Entry:
    """The kernel called `name` (the first one where None) of a PTX module."""
    clean = _blank_comments(text)
    lines = [m.start() for m in re.finditer("\n", clean)]
    head = next((m for m in ENTRY.finditer(clean) if name in (None, m.group(1))), None)
    if head is None:
        raise ParseError(f"no .entry {name or ''} in the PTX text")
    entry = Entry(head.group(1), _params(head.group(2) or ""))
    bounds = re.search(r"\.maxntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", head.group(3))
    if bounds:
        entry.max_threads = int(bounds.group(1)) * int(bounds.group(2) or 1) * int(bounds.group(3) or 1)
    _module_variables(clean[: clean.rfind(".entry", 0, head.end())], entry)
    _Body(clean, head.end(), lines, entry).parse()
    _check_registers(entry)
    return entry


def _blank_comments(text: str) -> str:
    keep_lines = lambda m: re.sub(r"[^\n]", " ", m.group(0))  # noqa: E731
    return re.sub(r"//[^\n]*", keep_lines, re.sub(r"/\*.*?\*/", keep_lines, text, flags=re.S))


def _params(text: str) -> tuple[Param, ...]:
    return tuple(Param(name, kind, int(count or 1)) for kind, name, count in PARAM.findall(text))


def _variable(statement: str) -> Variable | None:
    match = VARIABLE.match(statement)
    if match is None:
        return None
    space, align, kind, name, extent, init = match.groups()
    digits = extent.strip("[] \n\t") if extent else "1"
    values = tuple(_number(v) for v in re.findall(r"[^\s,{}]+", init)) if init else None
    size = DTYPES[kind].itemsize
    return Variable(name, space, int(align or size), kind, int(digits) if digits else None, values)


def _number(text: str) -> int | float:
    return float(text) if "." in text or re.search(r"\de", text) and "x" not in text else int(text, 0)


def _module_variables(head: str, entry: Entry) -> None:
    """Variables declared before the kernel; bodies of device functions are passed over."""
    depth_zero = re.sub(r"\.func[^{;]*\{.*?\n\}", " ", head, flags=re.S)
    for statement in depth_zero.split(";"):
        start = re.search(r"(\.(extern|visible|common|weak)\s+)*\.(shared|global|const)\s", statement)
        variable = _variable(statement[start.start() :].strip()) if start else None
        if variable:
            entry.variables[variable.name] = variable


class _Body:
    """Parses the statements between the braces of one kernel into its Entry; bodies of called functions likewise,
    put in the place of the call, with names of their own (they end in ' and a number)."""

    def __init__(self, text: str, start: int, lines: list[int], entry: Entry) -> None:
        self.text, self.pos, self.lines, self.entry = text, start, lines, entry
        self.scopes: list[dict[str, str]] = [{}]
        self.serial = itertools.count(1)
        self.calls: tuple[str, ...] = ()
        self.suffix = ""  # of labels; of the label behind an inlined body, too

    def parse(self) -> None:
        """Parse up to the brace that closes the body."""
        for kind, value, line in self._statements():
            if kind == "label":
                self.entry.labels[value + self.suffix] = len(self.entry.code)
            elif value.startswith(".reg"):
                self._registers(value, line)
            elif value.startswith("."):
                self._variable(value)
            elif re.match(r"call\b", value):
                self._inline(re.sub(r"\s+", " ", value), line)
            else:
                self.entry.code.append(self._instruction(value, line))
        if self.calls:
            self.entry.labels["end" + self.suffix] = len(self.entry.code)
        else:
            self.entry.code.append(Instr("ret", (), (), None, self._line(self.pos), "ret (end of the kernel)"))

    def _unique(self, name: str) -> str:
        """A name of this scope: as it stands in the kernel's own, else one that no other scope has."""
        unique = name if len(self.scopes) == 1 else f"{name}'{next(self.serial)}"
        self.scopes[-1][name] = unique
        return unique

    def _variable(self, statement: str) -> None:
        """.local, .shared, and .param, which is memory of the thread here."""
        if variable := _variable(statement):
            unique = self._unique(variable.name) if variable.space == "local" else variable.name
            self.entry.variables[unique] = replace(variable, name=unique)
        elif match := LOCAL_PARAM.match(statement):
            align, kind, name, count = match.groups()
            unique = self._unique(name)
            size = int(align or DTYPES[kind].itemsize)
            self.entry.variables[unique] = Variable(unique, "local", size, kind, int(count or 1))

    def _inline(self, statement: str, line: int) -> None:
        """The body of a called function in the place of the call."""
        match = CALL.match(statement)
        name = match.group(2) if match else ""
        head = re.search(rf"\.func\s+(?:\(([^)]*)\)\s*)?{re.escape(name)}\s*(?:\(([^)]*)\))?[^{{;]*\{{", self.text)
        if match is None or head is None or name in self.calls:
            why = "recursive" if name in self.calls else "indirect, or to a function that is not in the text"
            raise UnsupportedInstruction(f"line {line}: the call is {why}: {statement}")
        given = [a.strip() for group in (match.group(1), match.group(3)) for a in (group or "").split(",") if a.strip()]
        named = [param.name for group in head.groups() for param in _params(group or "")]
        body = _Body(self.text, head.end(), self.lines, self.entry)
        body.serial, body.calls = self.serial, (*self.calls, name)
        body.scopes = [{formal: self._resolve(actual) for formal, actual in zip(named, given)}, {}]
        body.suffix = f"'{next(self.serial)}"
        body.parse()

    def _line(self, pos: int) -> int:
        return bisect.bisect_left(self.lines, pos) + 1

    def _statements(self) -> Iterator[tuple[str, str, int]]:
        depth = len(self.scopes)
        while True:
            while self.text[self.pos : self.pos + 1].isspace():
                self.pos += 1
            char, line = self.text[self.pos : self.pos + 1], self._line(self.pos)
            if char == "{":
                self.scopes.append({})
                self.pos += 1
            elif char == "}":
                self.scopes.pop()
                self.pos += 1
                if len(self.scopes) < depth:
                    return
            elif char == ";":
                self.pos += 1
            elif match := LABEL.match(self.text, self.pos):
                self.pos = match.end()
                yield "label", match.group(1), line
            elif (end := self.text.find(";", self.pos)) >= 0:
                statement, self.pos = self.text[self.pos : end].strip(), end + 1
                yield "statement", statement, line
            else:
                raise ParseError(f"line {line}: the kernel's body does not end")

    def _registers(self, statement: str, line: int) -> None:
        match = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", statement, re.S)
        if match is None or match.group(1) not in DTYPES:
            raise ParseError(f"line {line}: cannot read the registers in {statement!r}")
        for item in match.group(2).split(","):
            name, _, count = item.strip().partition("<")
            for declared in [f"{name}{k}" for k in range(int(count[:-1]))] if count else [name]:
                self.entry.registers[self._unique(declared)] = match.group(1)

    def _instruction(self, statement: str, line: int) -> Instr:
        match = INSTRUCTION.match(statement)
        if match is None:
            raise ParseError(f"line {line}: cannot read {statement!r}")
        negated, guard, opcode, mods, rest = match.groups()
        pred = Reg(self._resolve(guard), negated == "!") if guard else None
        operands = tuple(self._operand(part, line) for part in _split(rest))
        text = re.sub(r"\s+", " ", statement)
        parts = tuple(m for m in mods.replace("::", "_").split(".") if m)
        if opcode == "ret" and self.calls:
            return Instr("bra", (), (Symbol("end" + self.suffix),), pred, line, text)
        if opcode == "bra":
            operands = tuple(Symbol(op.name + self.suffix) if isinstance(op, Symbol) else op for op in operands)
        if "param" in parts and any(self._is_local(op) for op in operands):
            parts = tuple("local" if m == "param" else m for m in parts)
        return Instr(opcode, parts, operands, pred, line, text)

    def _is_local(self, operand: Operand) -> bool:
        return (
            isinstance(operand, Address)
            and isinstance(operand.base, Symbol)
            and operand.base.name in self.entry.variables
        )

    def _resolve(self, name: str) -> str:
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), name)

    def _operand(self, text: str, line: int) -> Operand:
        if text.startswith("{"):
            return Vector(tuple(self._operand(part, line) for part in _split(text[1:-1])))
        if text.startswith("["):
            return self._address(text[1:-1].strip(), line)
        if "|" in text:
            first, second = text.split("|")
            return Pair(self._operand(first.strip(), line), self._operand(second.strip(), line))
        if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})", text):
            return FloatBits(int(match.group(1) or match.group(2), 16), 4 if match.group(1) else 8)
        if match := re.fullmatch(r"(-?(?:0[xX][0-9a-fA-F]+|\d+))U?", text):
            return Imm(int(match.group(1), 0))
        if re.fullmatch(r"-?\d+\.\d*(e[-+]?\d+)?", text):
            return Imm(float(text))
        bare = text.lstrip("!").strip()
        resolved = self._resolve(bare)
        if not re.fullmatch(NAME + "('\\d+)?", resolved):
            raise ParseError(f"line {line}: cannot read the operand {text!r}")
        if resolved in self.entry.registers or bare.startswith("%") or bare == "_":
            return Reg(resolved, text.startswith("!"))
        return Symbol(resolved)

    def _address(self, text: str, line: int) -> Address:
        match = re.fullmatch(r"([\w$%.]+)\s*(?:([+-])\s*(-?\w+))?", text)
        if match is None:
            raise ParseError(f"line {line}: cannot read the address [{text}]")
        base = self._operand(match.group(1), line)
        offset = int(match.group(3), 0) * (-1 if match.group(2) == "-" else 1) if match.group(3) else 0
        if not isinstance(base, Reg | Symbol | Imm):
            raise ParseError(f"line {line}: cannot read the address [{text}]")
        return Address(base, offset)


def _split(text: str) -> list[str]:
    """Operands separated by commas outside of brackets."""
    return [part.strip() for part in re.split(r",(?![^{\[(]*[}\])])", text) if part.strip()]


def _check_registers(entry: Entry) -> None:
    """A register that is read but written nowhere can only hold garbage."""
    stores = {"st", "red", "bra", "ret", "bar", "barrier", "cp"}
    written: set[str] = set()
    for instr in entry.code:
        if instr.opcode not in stores and instr.operands:
            written.update(operand_registers(instr.operands[0]))
    for instr in entry.code:
        sources = instr.operands if instr.opcode in stores else instr.operands[1:]
        for name in [r for op in sources for r in operand_registers(op)] + ([instr.guard.name] if instr.guard else []):
            if name in entry.registers and name not in written:
                raise ParseError(f"line {instr.line}: register {name} is read but never written: {instr.text}")
