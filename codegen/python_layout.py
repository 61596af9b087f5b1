"""How generated Python is broken over lines: as black (and ruff) would, at 100 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

WIDTH = 100
INDENT = 4
_PAD = " " * INDENT
_OPERATORS = (  # those of one binding strength together, loosest first
    [" if ", " else "], [" or "], [" and "], [" | "], [" ^ "], [" & "], [" << ", " >> "], [" + ", " - "],
    [" * ", " / ", " // ", " % "],
)  # fmt: skip


def line_width(level: int) -> int:
    """Columns left for a line inside of a function and of `level` loops."""
    return WIDTH - INDENT * (level + 1)


def bracketed(head: str, parts: Sequence[str], tail: str, width: int) -> list[str]:
    """`head` (it ends with a bracket), comma-separated `parts`, `tail`: on one line, on three, or one part a line."""
    joined = ", ".join(parts)
    if len(head) + len(joined) + len(tail) <= width:
        return [head + joined + tail]
    if len(joined) + INDENT <= width:
        return [head, _PAD + joined, tail]
    return [head, *(f"{_PAD}{part}," for part in parts), tail]


def assignment(target: str, value: str, width: int, operator: str = "=") -> str:
    """`target = value` (or with another operator, such as +=), over several lines if need be."""
    head = f"{target} {operator} "
    if len(head) + len(value) <= width:
        return head + value
    operators = _outermost(value)
    if not operators and value[-1] in ")]":
        return _split_bracket(head, value, width)
    if len(value) + INDENT <= width or not operators:
        return f"{head}(\n{_PAD}{value}\n)"
    return f"{head}(\n{_PAD}" + f"\n{_PAD}".join(_split(value, operators)) + "\n)"


def _split_bracket(head: str, value: str, width: int) -> str:
    """Break inside of the last bracket: x[\\n    i * 10 + j\\n]."""
    start = max(place for place, depth in _depths(value) if depth == 1 and value[place] in "([")
    inner = value[start + 1 : -1]
    operators = _outermost(inner)
    lines = [inner] if len(inner) + INDENT <= width or not operators else list(_split(inner, operators))
    return "\n".join([head + value[: start + 1], *(_PAD + line for line in lines), value[-1]])


def _depths(text: str) -> Iterator[tuple[int, int]]:
    """(place, how many brackets are open behind it) for each character."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        yield place, depth


def _outermost(text: str) -> list[str]:
    """The loosest operators that stand outside of every bracket."""
    outside = "".join(letter if depth == 0 else "_" for letter, (_, depth) in zip(text, _depths(text), strict=True))
    return next(([o for o in group if o in outside] for group in _OPERATORS if any(o in outside for o in group)), [])


def _split(text: str, operators: Sequence[str]) -> Iterator[str]:
    """The parts of `text`, each but the first beginning with an outermost operator."""
    start = 0
    for place, depth in _depths(text):
        if depth == 0 and place > start and any(text.startswith(operator, place) for operator in operators):
            yield text[start:place]
            start = place + 1
    yield text[start:]
