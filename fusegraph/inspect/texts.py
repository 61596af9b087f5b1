"""The texts of every kernel: loop program, readable Python, and what the target's compiler made of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fusegraph.ir.loops import Program

if TYPE_CHECKING:
    from fusegraph.build import Artifact
    from fusegraph.codegen.cuda.step import CudaStep

Texts = dict[int, dict[str, str]]
KINDS = ("loop", "python", "llvm", "asm", "cuda", "ptx")
_FUNCTION = re.compile(r'^define [^@]*@"?([\w.$]+)"?\(.*?^\}$', re.MULTILINE | re.DOTALL)
_LABEL = re.compile(r'^_?"?([A-Za-z][\w.$]*)"?:', re.MULTILINE)


def kernel_texts(artifact: Artifact) -> Texts:
    """For each kernel (by its number in the report) its texts: "loop" and "python"; besides, by backend:

    cpu    "llvm" (the IR as it is handed to LLVM) and "asm" (the host's assembly)
    cuda   "cuda" (numba-cuda source) and, where the CUDA wheels are installed, "ptx"; no GPU is needed
    """
    from fusegraph.codegen.python import print_loop_source
    from fusegraph.ir.loops_text import print_loop

    program, _ = artifact.fused
    texts: Texts = {
        number: {"loop": print_loop(loop), "python": print_loop_source(loop, program)}
        for number, loop in enumerate(program.loops)
    }
    added: Mapping[int, Mapping[str, str]] = {}
    if artifact.options.backend == "cpu":
        added = native_texts(artifact)
    elif artifact.options.backend == "cuda":
        executable: Any = artifact.executable
        added = cuda_texts(executable.step, program, executable.target)
    for number, more in added.items():
        texts[number].update(more)
    return texts


def native_texts(artifact: Artifact) -> Texts:
    """IR and assembly of each kernel, with the functions that belong to it. Kernels of equal code show the same text."""
    from fusegraph.build import step_code

    code = step_code(artifact)
    names = {kernel.name for kernel in code.kernels}
    ir = _by_kernel(_ir_functions(code.text), names)
    assembly = _by_kernel(_assembly_functions(assembly_of(code.text)), names)
    return {
        number: {"llvm": ir.get(kernel.name, ""), "asm": assembly.get(kernel.name, "")}
        for number, kernel in enumerate(code.kernels)
    }


@lru_cache(maxsize=1)
def assembly_of(text: str) -> str:
    """The host's assembly for the IR of a step; a dump needs it whole and by kernel."""
    from fusegraph.runtime import llvm

    return llvm.assembly(text)


def cuda_texts(step: CudaStep, program: Program, target: str) -> Texts:
    """Source and PTX (for `target`) of each kernel; a loop that was split in two for the GPU has both."""
    from fusegraph.runtime.cuda_compile import CudaModule, missing

    problem = missing()
    module = None if problem else CudaModule(step, target)
    texts: Texts = {}
    for number, loop in enumerate(program.loops):
        kernels = [kernel for kernel in step.kernels if _owner(kernel.name, {loop.name}) is not None]
        texts[number] = {"cuda": "\n\n\n".join(kernel.source for kernel in kernels)}
        ptx = [module.ptx(kernel.name) for kernel in kernels] if module is not None else [f"// not compiled: {problem}"]
        texts[number]["ptx"] = "\n".join(ptx)
    return texts


def _owner(name: str, kernels: set[str]) -> str | None:
    """Which kernel a function belongs to: its own name, or that with something behind it."""
    while name not in kernels:
        name, found, _ = name.rpartition("_")
        if not found:
            return None
    return name


def _by_kernel(functions: Iterator[tuple[str, str]], kernels: set[str]) -> dict[str, str]:
    """Texts of functions put together by the kernel that they belong to: `k3_conv` and `k3_conv_pack16`."""
    found: dict[str, str] = {}
    for name, text in functions:
        kernel = _owner(name, kernels)
        if kernel is not None:
            found[kernel] = f"{found[kernel]}\n\n{text}" if kernel in found else text
    return found


def _ir_functions(text: str) -> Iterator[tuple[str, str]]:
    for match in _FUNCTION.finditer(text):
        yield match[1], match[0]


def _assembly_functions(text: str) -> Iterator[tuple[str, str]]:
    """(name, text) of each function: from its label to the next."""
    places = list(_LABEL.finditer(text))
    for match, after in zip(places, [*places[1:], None], strict=True):
        yield match[1], text[match.start() : after.start() if after else len(text)].rstrip()
