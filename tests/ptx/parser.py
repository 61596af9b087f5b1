"""From PTX text to an `Entry`: a scanner of statements with scopes, and a parser of operands.

Only what NVVM writes for one kernel, and what inline PTX in braces adds to it, is understood; anything else is a
`ParseError` that names the line.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator

from .errors import ParseError
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
    """Parses the statements between the braces of one kernel into its Entry."""

    def __init__(self, text: str, start: int, lines: list[int], entry: Entry) -> None:
        self.text, self.pos, self.lines, self.entry = text, start, lines, entry
        self.scopes: list[dict[str, str]] = [{}]
        self.serial = 0

    def parse(self) -> None:
        for kind, value, line in self._statements():
            if kind == "label":
                self.entry.labels[value] = len(self.entry.code)
            elif value.startswith(".reg"):
                self._registers(value, line)
            elif value.startswith("."):
                variable = _variable(value)
                if variable:
                    self.entry.variables[variable.name] = variable
            else:
                self.entry.code.append(self._instruction(value, line))
        self.entry.code.append(Instr("ret", (), (), None, self._line(self.pos), "ret (end of the kernel)"))

    def _line(self, pos: int) -> int:
        return bisect.bisect_left(self.lines, pos) + 1

    def _statements(self) -> Iterator[tuple[str, str, int]]:
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
                if not self.scopes:
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
                unique = declared
                if len(self.scopes) > 1:  # inline PTX in braces: its names hide those outside
                    self.serial += 1
                    unique = f"{declared}'{self.serial}"
                self.scopes[-1][declared] = unique
                self.entry.registers[unique] = match.group(1)

    def _instruction(self, statement: str, line: int) -> Instr:
        match = INSTRUCTION.match(statement)
        if match is None:
            raise ParseError(f"line {line}: cannot read {statement!r}")
        negated, guard, opcode, mods, rest = match.groups()
        pred = Reg(self._resolve(guard), negated == "!") if guard else None
        operands = tuple(self._operand(part, line) for part in _split(rest))
        text = re.sub(r"\s+", " ", statement)
        return Instr(opcode, tuple(m for m in mods.replace("::", "_").split(".") if m), operands, pred, line, text)

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
        return Symbol(bare)

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
