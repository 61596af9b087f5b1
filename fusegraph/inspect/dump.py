"""`dump(folder)`: every stage of a compilation as a file, the texts of every kernel, and one page that shows them together.

    00-op-graph.txt, 01-op-graph.dot     the graph as it was traced
    02-after-simplify.txt, ...           after each pass that changed it, in order
    ..-optimised.dot, ..-fused.dot       the graph that was fused; the kernels and what goes between them
    ..-loops.txt, ..-source.py           all kernels as loop programs, and as one readable Python module
    ..-step.ll, ..-step.s                cpu: the module as LLVM gets it, and the host's assembly
    ..-cuda.py                           cuda: the module that numba-cuda compiles
    kernels/k0_....txt .py .ll .s .ptx   the same, kernel by kernel
    report.json, explain.txt, explain.md, index.html

A model is two programs, and the names begin with `forward-` and `backward-`; `joint-` is the graph before it was cut in two.
"""

from __future__ import annotations

import json
import linecache
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fusegraph.build import Artifact, stages_of, step_code
from fusegraph.errors import OptionError
from fusegraph.inspect.dot import graph_dot, program_dot
from fusegraph.inspect.explain import Explanation
from fusegraph.inspect.report import Report
from fusegraph.inspect.texts import Texts, assembly_of, kernel_texts

SUFFIXES = {"loop": ".txt", "python": ".py", "llvm": ".ll", "asm": ".s", "cuda": ".cuda.py", "ptx": ".ptx"}


def dump(artifacts: Sequence[Artifact], folder: Any, explanation: Explanation | None = None) -> list[Path]:
    """Write the stages of `artifacts` into `folder` (made if need be); gives the files in the order of the stages.

    explanation: the report to write (one with measured times, say). Files of an earlier dump that have the same names are
    replaced; all others in the folder stay. Raises OptionError if the folder cannot be made or written.
    """
    folder = Path(folder)
    explanation = Explanation(artifacts) if explanation is None else explanation
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_written(folder / name, text) for name, text in _files(artifacts, explanation)]
    except OSError as error:
        raise OptionError(f"cannot write a dump to {folder}: {error.strerror or error}; name another folder") from None


def _written(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _files(artifacts: Sequence[Artifact], explanation: Explanation) -> Iterator[tuple[str, str]]:
    """(name in the folder, text) of every file."""
    texts: list[Texts] = []
    for place, (name, text) in enumerate(_joint_stages(artifacts[0])):
        yield f"joint-{place:02}-{name}", text
    for number, artifact in enumerate(artifacts):
        prefix = "" if len(artifacts) == 1 else ("forward-", "backward-")[number]
        for place, (name, text) in enumerate(_stages(artifact)):
            yield f"{prefix}{place:02}-{name}", text
        texts.append(kernel_texts(artifact))
        loops = artifact.fused[0].loops
        for kernel, parts in texts[-1].items():
            for kind, text in parts.items():
                yield f"kernels/{prefix}{loops[kernel].name}{SUFFIXES[kind]}", f"{text}\n"
    report = explanation.to_dict()
    yield "report.json", json.dumps(report, indent=1) + "\n"
    yield "explain.txt", f"{explanation}\n"
    yield "explain.md", explanation.to_markdown()
    yield "index.html", page(report, texts)


def page(report: Report, texts: Sequence[Texts] | None = None) -> str:
    """The report as one self-contained HTML page, with the lines of the user's files that it names."""
    from fusegraph.inspect.page import render

    return render(report, None if texts is None else list(texts), sources_of(report))


def sources_of(report: Report) -> dict[str, list[str]]:
    """The lines of every file that a node of the report comes from (those that can be read; cells of a notebook too)."""
    files = {
        node["file"]: None
        for program in report["programs"]
        for graph in (program["graph"], program["optimised"])
        for node in graph["nodes"]
        if node["file"]
    }
    found = {file: [line.rstrip("\n") for line in linecache.getlines(file)] for file in files}
    return {file: lines for file, lines in found.items() if lines}


def _joint_stages(artifact: Artifact) -> Iterator[tuple[str, str]]:
    """Of a model: the graph of forward and gradients in one, after each pass, until it is cut in two."""
    if artifact.origin is not None:
        yield "op-graph.txt", f"{artifact.traced}\n"
        yield "op-graph.dot", graph_dot(artifact.traced)
        for name, graph in stages_of(artifact.traced, artifact.options):
            yield f"after-{name}.txt", f"{graph}\n"


def _stages(artifact: Artifact) -> Iterator[tuple[str, str]]:
    """(file name, text) of each stage."""
    from fusegraph.codegen.python import print_program_source

    yield "op-graph.txt", f"{artifact.source}\n"
    yield "op-graph.dot", graph_dot(artifact.source)
    for name, graph in artifact.stages:
        yield f"after-{name}.txt", f"{graph}\n"
    program, _ = artifact.fused
    yield "optimised.dot", graph_dot(artifact.graph)
    yield "fused.dot", program_dot(program)
    yield "loops.txt", f"{program}\n"
    yield "source.py", print_program_source(program)
    if artifact.options.backend == "cpu":
        text = step_code(artifact).text
        yield "step.ll", text
        yield "step.s", assembly_of(text)
    if artifact.options.backend == "cuda":
        yield "cuda.py", artifact.executable.step.source  # type: ignore[attr-defined]
