"""`render`: the HTML text. Everything is inside of the file: style, scripts, the report, the texts of the kernels."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

# In the order in which they need each other. dagre is the bundled layout; its licence stands at its head.
SCRIPTS = (
    "dagre.min.js",
    "base.js",
    "data.js",
    "why.js",
    "hints.js",
    "groups.js",
    "layout.js",
    "canvas.js",
    "graphs.js",
    "detail.js",
    "ask.js",
    "dock.js",
    "panels.js",
    "main.js",
)
COMPRESS_FROM = 20_000  # characters of texts; shorter ones stay readable in the file
CONTEXT = 8  # lines around each line of the user's program that go into the page

Texts = Mapping[Any, Mapping[str, str]]  # kernel id -> form -> text


def render(report: Mapping[str, Any], texts: Sequence[Texts] | None, sources: Mapping[str, Sequence[str]]) -> str:
    """The page as one text of HTML, which fetches nothing and is the same for the same arguments.

    report: `Explanation.to_dict()`. texts: for each program a mapping from kernel id to its forms ("loop", "python", "cuda", "llvm",
    "asm", "ptx"; None: no texts). sources: the lines of the files that the report's nodes name; only those near
    a node go into the page, and a missing file is no error. Raises KeyError when the report lacks a program's parts.
    """
    data = {**report, "sources": _near_lines(report, sources)}
    scripts = [_resource(name) for name in SCRIPTS]
    kind, packed = _packed([{str(kernel): dict(forms) for kernel, forms in program.items()} for program in texts or ()])
    parts = {
        "POLICY": _policy(scripts),
        "TITLE": html.escape(f"{report['name']}: what fusegraph made of it"),
        "STYLE": _resource("page.css"),
        "REPORT": _json(data),
        "TEXTS_TYPE": kind,
        "TEXTS": packed,
        "SCRIPTS": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    pieces = _resource("page.html").split("@@")  # text, name, text, name, ..., text
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


@cache
def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _json(data: Any) -> str:
    """JSON that can stand inside of a script element: no `<` (hence no end tag, no comment) and no line separators."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _packed(texts: list[dict[str, dict[str, str]]]) -> tuple[str, str]:
    """(type of the script element, its content): JSON, or JSON compressed by zlib in base64 if it is long."""
    plain = _json(texts)
    if len(plain) < COMPRESS_FROM:
        return "application/json", plain
    return "application/zlib", base64.b64encode(zlib.compress(plain.encode("utf-8"), 9)).decode("ascii")


def _policy(scripts: Iterable[str]) -> str:
    """A content security policy: nothing is fetched, and no script runs but ours."""
    digests = (base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii") for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; form-action 'none'"


def _near_lines(report: Mapping[str, Any], sources: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """For each file: line number -> text, for the lines that nodes come from and their surroundings."""
    wanted: dict[str, set[int]] = {}
    for program in report["programs"]:
        for name in ("graph", "optimised"):
            for node in program[name]["nodes"]:
                if node["file"]:
                    line = node["line"]
                    wanted.setdefault(node["file"], set()).update(range(line - CONTEXT, line + CONTEXT + 1))
    return {
        file: {str(n): sources[file][n - 1] for n in sorted(numbers) if 1 <= n <= len(sources[file])}
        for file, numbers in sorted(wanted.items())
        if file in sources
    }
