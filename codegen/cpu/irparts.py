"""A module in parts: functions that are finished leave as modules of their own, while more are being written.

Parts can be compiled while the next one is written, and side by side. A function that another part calls is exported;
one that is inlined, and a constant table, is in each part that mentions it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from fusegraph.codegen.cpu.irtext import FunctionBuilder, Module
from fusegraph.codegen.cpu.irtypes import module_text

PART_LINES = 1000
"""A part has so many lines of functions at least, the first one, that LLVM waits for, half. LLVM takes 3 ms for a module
however small, and 50 ms for so many lines."""

_MENTIONED = re.compile(r"@([\w.]+)")


class ModuleParts:
    """Cuts `module` into parts, and hands the text of each to `take`. Cuts depend on nothing but the functions."""

    def __init__(self, module: Module, take: Callable[[str], None], least: int = PART_LINES) -> None:
        self._module, self._take, self._least = module, take, least
        self._left: set[str] = set()

    def cut(self) -> None:
        """Let what was written since the last part go, if it is enough. Functions that call each other must be complete."""
        module = self._module
        least = self._least if self._left else self._least // 2
        if sum(fn.size for name, fn in module.functions.items() if name not in self._left) >= least:
            self.finish()

    def finish(self, runtime: str = "") -> None:
        """Let all that is there go. `runtime`: text with further functions for this part."""
        module = self._module
        module.merge_equal()
        own = [fn for name, fn in module.functions.items() if name not in self._left]
        self._left.update(fn.name for fn in own)
        bodies = {fn.name: fn.text(exported=not fn.inlined) for fn in own}
        mentioned = self._mentioned(bodies)
        foreign = [fn for name, fn in module.functions.items() if name in mentioned and name not in bodies]
        outside = {name: text for fn in own for name, text in fn.declarations.items()}
        for fn in foreign:
            outside.update({name: text for name, text in fn.declarations.items() if fn.inlined})
            outside.update({} if fn.inlined else {fn.name: fn.declaration()})
        bodies |= {fn.name: fn.text() for fn in foreign if fn.inlined}
        tables = {name: text for name, text in module.globals.items() if name in mentioned}
        declarations = [outside[name] for name in sorted(outside) if name not in bodies]
        self._take(runtime + module_text(tables, list(bodies.values()), declarations, module.metadata))

    def _mentioned(self, bodies: dict[str, str]) -> set[str]:
        """Names that the bodies mention, and those that the inlined functions among these mention."""
        found: set[str] = set()
        new = _names(bodies.values())
        while new:
            found |= new
            inlined = [fn for name in new if (fn := self._module.functions.get(name)) is not None and fn.inlined]
            new = _names(_texts(inlined)) - found
        return found


def _texts(functions: Iterable[FunctionBuilder]) -> Iterable[str]:
    return (fn.text() for fn in functions)


def _names(texts: Iterable[str]) -> set[str]:
    return {name for text in texts for name in _MENTIONED.findall(text)}
