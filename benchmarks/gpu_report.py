"""What a run on a GPU found, as tables in Markdown."""

from __future__ import annotations

import datetime
import platform
from dataclasses import dataclass, field
from typing import Any

Row = tuple[Any, ...]


@dataclass
class Section:
    """One table. failures: what was wrong, in words; skipped: why there is no table."""

    title: str
    columns: tuple[str, ...] = ()
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    skipped: str = ""

    def markdown(self) -> str:
        """The section as text."""
        parts = [f"## {self.title}"]
        if self.skipped:
            parts.append(f"Not run: {self.skipped}.")
        if self.rows:
            lines = [self.columns, ("---",) * len(self.columns), *self.rows]
            parts.append("\n".join("| " + " | ".join(map(shown, line)) + " |" for line in lines))
        parts += self.notes
        if self.failures:
            parts.append("**Wrong:**\n\n" + "\n".join(f"- {failure}" for failure in self.failures))
        return "\n\n".join(parts)


def shown(value: Any) -> str:
    """A cell: three digits of a number; nothing for None."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def page(sections: list[Section], card: str, facts: dict[str, str]) -> str:
    """All sections, with the card's name in the title."""
    today = datetime.datetime.now(datetime.UTC).date()
    facts = {"date": str(today), "Python": platform.python_version(), "machine": platform.platform(), **facts}
    head = [f"# fusegraph on {card}", "\n".join(f"- {name}: {value}" for name, value in facts.items())]
    wrong = sum(len(section.failures) for section in sections)
    head.append("Everything that was compared agrees." if not wrong else f"**{wrong} comparisons are wrong.**")
    return "\n\n".join([*head, *(section.markdown() for section in sections)]) + "\n"
