"""For the reference: columns in a docstring (`name   what it is`, continued by indented lines) become a list.

Loaded by mkdocstrings as an extension of griffe; see mkdocs.yml.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ENTRY = re.compile(r"^(\w[\w, *.]*?) {2,}(\S.*)$")


def as_list(text: str) -> str:
    """`text` with its columns written as a Markdown list."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        entry = ENTRY.match(line)
        if entry is not None:
            if not inside and lines and lines[-1]:
                lines.append("")
            lines.append(f"- `{entry[1].strip()}`: {entry[2]}")
            inside = True
        elif inside and line.startswith("   ") and line.strip():
            lines.append(f"    {line.strip()}")
        else:
            if inside and line.strip():
                lines.append("")
            lines.append(line)
            inside = False
    return "\n".join(lines)


class Columns(Extension):
    """Rewrites the docstring of every object that is loaded."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called by griffe for each object."""
        if obj.docstring is not None:
            obj.docstring.value = as_list(obj.docstring.value)
