"""`explain()`: what a compiled function consists of, in words and figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fusegraph.inspect.report import Report, lines_of

if TYPE_CHECKING:
    from fusegraph.build import Artifact
    from fusegraph.runtime.calibration import Calibration

__all__ = ["Explanation", "bytes_text", "lines_of"]


class Explanation:
    """A report of compiled programs: a step, or a model's forward and backward.

    Print it (plain text), `show()` it (in colours, where rich is installed and the terminal has them), or take `to_dict()` (plain
    data, JSON-serialisable) or `to_markdown()`. Reports of `artifacts` are made or read when first asked for.
    """

    def __init__(self, artifacts: Sequence[Artifact], name: str = "") -> None:
        self.artifacts = list(artifacts)
        self._name = name
        self._data: Report | None = None

    def to_dict(self) -> Report:
        """The report as plain data: `{"fusegraph", "name", "backend", "programs": [...]}`, a program each."""
        if self._data is None:
            self._data = self._collect()
        return self._data

    @property
    def programs(self) -> list[Report]:
        """The reports of the programs, in the order in which they run."""
        return self.to_dict()["programs"]  # type: ignore[no-any-return]

    @property
    def kernels(self) -> int:
        """How many kernels run."""
        return sum(len(program["kernels"]) for program in self.programs)

    def to_markdown(self) -> str:
        """The report as Markdown: a table of kernels for each program, and one of refused fusions."""
        from fusegraph.inspect.explain_markdown import markdown

        return markdown(self.to_dict())

    def show(self) -> None:
        """Print the report on the terminal: tables in colours where rich is installed and stdout is a terminal, else text."""
        if sys.stdout.isatty():
            try:
                from rich.console import Console
            except ImportError:
                pass
            else:
                Console().print(self)
                return
        print(self)

    def _repr_html_(self) -> str:
        from fusegraph.inspect.html_repr import explanation_html

        return explanation_html(self.to_dict())

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from fusegraph.inspect.explain_rich import renderables

        yield from renderables(self.to_dict())

    def __str__(self) -> str:
        from fusegraph.inspect.explain_text import text

        return text(self.to_dict())

    __repr__ = __str__

    def _collect(self) -> Report:
        import fusegraph
        from fusegraph.runtime import calibration

        gpu = any(artifact.options.backend == "cuda" for artifact in self.artifacts)
        machine = None if gpu else calibration.stored()  # which is this CPU's
        phases = ("step",) if len(self.artifacts) == 1 else ("forward", "backward")
        programs = [a.report | {"phase": phase} for a, phase in zip(self.artifacts, phases, strict=True)]
        for program in programs:
            program["kernels"] = [kernel | {"floor_ns": _floor_ns(kernel, machine)} for kernel in program["kernels"]]
        return {
            "fusegraph": fusegraph.__version__,
            "name": self._name or programs[0]["name"],
            "backend": programs[0]["backend"],
            "programs": programs,
        }


def _floor_ns(kernel: Report, machine: Calibration | None) -> float | None:
    """The least time that a kernel can take on this machine; None where it has not been measured."""
    if machine is None:
        return None
    return machine.roofline(kernel["threads"]).floor_ns(kernel["bytes_read"] + kernel["bytes_written"], kernel["flops"])


def bytes_text(count: float) -> str:
    """A number of bytes with its unit."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
