"""`dump(folder)`: every stage of a compilation as a file: graphs, loop programs, source, LLVM IR, assembly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusegraph.build import Artifact, step_code
from fusegraph.inspect.dot import graph_dot, program_dot
from fusegraph.inspect.explain import Explanation


def dump(artifacts: Sequence[Artifact], folder: Any) -> list[Path]:
    """Write the stages of `artifacts` into `folder` (made if need be); gives the files in the order of the stages."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for number, artifact in enumerate(artifacts):
        prefix = "" if len(artifacts) == 1 else ("forward-", "backward-")[number]
        for name, text in _stages(artifact):
            path = folder / f"{prefix}{name}"
            path.write_text(text, encoding="utf-8")
            written.append(path)
    report = folder / "explain.txt"
    report.write_text(str(Explanation(artifacts)) + "\n", encoding="utf-8")
    return [*written, report]


def _stages(artifact: Artifact) -> list[tuple[str, str]]:
    """(file name, text) of each stage, numbered."""
    from fusegraph.codegen.python import print_program_source

    files = [("op-graph.txt", f"{artifact.source}\n"), ("op-graph.dot", graph_dot(artifact.source))]
    files += [(f"after-{name}.txt", f"{graph}\n") for name, graph in artifact.stages]
    program, _ = artifact.fused
    files += [
        ("optimised.dot", graph_dot(artifact.graph)),
        ("fused.dot", program_dot(program)),
        ("loops.txt", f"{program}\n"),
        ("source.py", print_program_source(program)),
    ]
    if artifact.options.backend == "cpu":
        from fusegraph.runtime import llvm

        text = step_code(artifact).text
        files += [("step.ll", text), ("step.s", llvm.assembly(text))]
    if artifact.options.backend == "cuda":
        from fusegraph.runtime.cuda_compile import CudaModule, missing

        step = artifact.executable.step  # type: ignore[attr-defined]
        files.append(("cuda.py", step.source))
        if not missing():
            module = CudaModule(step)
            files += [(f"{kernel.name}.ptx", module.ptx(kernel.name)) for kernel in step.kernels]
    return [(f"{number:02}-{name}", text) for number, (name, text) in enumerate(files)]
