"""PTX of emitted kernels for tests: every different text is compiled once, in this process and in those before it.

numba-cuda takes 50 to 300 ms for a kernel. Tests meet the same kernel many times: in steps that differ elsewhere, and in
run after run. A kernel is known by its text with the names taken out, the helpers that it calls, the types of its
arguments, its block, the target, and the versions of the compilers.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fusegraph.codegen.cuda.helpers import helpers_source
from fusegraph.codegen.cuda.kernel import CudaKernel
from fusegraph.codegen.cuda.step import CudaStep
from fusegraph.runtime.cuda_compile import DEFAULT_TARGET, CudaModule, capability

UNUSED_AFTER = 7 * 24 * 3600  # seconds, after which a kernel that no test has asked for is removed from the folder


class PtxStore:
    """PTX texts by key, in memory and, once `folder` is set, on disk."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.known: dict[str, str] = {}
        self.compiled = 0

    def use(self, folder: Path) -> None:
        """Keep texts in `folder` too, without those that nobody has asked for in a while."""
        self.folder = folder
        limit = time.time() - UNUSED_AFTER
        for path in folder.glob("*.ptx"):
            if path.stat().st_mtime < limit:
                path.unlink(missing_ok=True)

    def get(self, key: str) -> str | None:
        """The text, if it is known."""
        if key not in self.known and self.folder is not None:
            path = self.folder / f"{key}.ptx"
            try:
                self.known[key] = path.read_text(encoding="utf-8")
                os.utime(path)
            except OSError:
                return None
        return self.known.get(key)

    def put(self, key: str, text: str) -> None:
        """Remember a text. The file appears whole or not at all: several processes test at once."""
        self.known[key] = text
        self.compiled += 1
        if self.folder is None:
            return
        with tempfile.NamedTemporaryFile("w", dir=self.folder, delete=False, encoding="utf-8") as file:
            file.write(text)
        os.replace(file.name, self.folder / f"{key}.ptx")


STORE = PtxStore()


class _Anonymous(ast.NodeTransformer):
    """Numbers instead of the names of a function's arguments and variables."""

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        node.id = self.names.get(node.id, node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.arg = self.names[node.arg]
        return node


@cache
def without_names(source: str) -> str:
    """The text of a function without its name, docstring and comments, arguments and variables numbered."""
    tree = ast.parse(source)
    *parts, function = tree.body
    assert isinstance(function, ast.FunctionDef)
    if parts:  # several loops in one kernel: device functions, known by their names
        return source
    if ast.get_docstring(function) is not None:
        del function.body[0]
    own = [arg.arg for arg in function.args.args]
    own += [n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    function.name = "kernel"
    return ast.unparse(_Anonymous({name: f"v{i}" for i, name in enumerate(dict.fromkeys(own))}).visit(tree))


@cache
def _compilers() -> str:
    """What else the PTX depends on: versions of packages, and our own intrinsics."""
    found = []
    for package in ("numba", "numba-cuda", "llvmlite", "nvidia-nvvm"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    modules = map(
        importlib.util.find_spec,
        (
            "fusegraph.codegen.cuda.device",
            "fusegraph.codegen.cuda.device_storage",
            "fusegraph.codegen.cuda.intrinsics",
            CudaModule.__module__,
        ),
    )
    sources = [Path(str(spec.origin)).read_text(encoding="utf-8") for spec in modules if spec is not None]
    return "\n".join(found + sources)


def kernel_key(step: CudaStep, kernel: CudaKernel, target: str) -> str:
    """What the PTX of a kernel depends on, as a digest."""
    helpers = helpers_source(kernel.helpers)
    parts = [without_names(kernel.source), *helpers, *step.types(kernel), str(kernel.threads), target, _compilers()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


@contextmanager
def _for_more_targets(targets: Sequence[str], found: dict[str, str]) -> Iterator[None]:
    """While a kernel is compiled: NVVM makes PTX of its LLVM IR for `targets` too. The way to LLVM IR is the slow part."""
    from numba.cuda.codegen import CUDACodeLibrary

    original = CUDACodeLibrary.get_asm_strs

    def for_all(library: Any, cc: Any = None) -> list[str]:
        for target in targets:
            found[target] = "\n".join(original(library, cc=capability(target)))
        return list(original(library, cc=cc))

    CUDACodeLibrary.get_asm_strs = for_all
    try:
        yield
    finally:
        CUDACodeLibrary.get_asm_strs = original


@contextmanager
def _quicker_numba() -> Iterator[None]:
    """numba remembers the types that calls of its functions have, which it looks up anew for each operation, and no garbage
    is searched for meanwhile: the same PTX in 60 % of the time.
    """
    from numba.core.types.functions import BaseFunction

    look_up = BaseFunction.get_call_type

    def remembered(function: Any, context: Any, args: Any, kws: Any) -> Any:
        if kws:
            return look_up(function, context, args, kws)
        known = function.__dict__.setdefault("_call_types", {})
        if tuple(args) not in known:
            known[tuple(args)] = look_up(function, context, args, kws)
        return known[tuple(args)]

    BaseFunction.get_call_type = remembered
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        BaseFunction.get_call_type = look_up


class StepPtx:
    """The PTX of a step's kernels for one target, compiled where it is not known."""

    def __init__(self, step: CudaStep, target: str = DEFAULT_TARGET) -> None:
        self.step, self.target = step, target
        self._module: CudaModule | None = None

    def ptx(self, kernel: CudaKernel, also: Sequence[str] = ()) -> str:
        """The PTX of one kernel. Its entry may bear the name of another kernel with the same text.

        also: other targets for which the same text will be asked for.
        """
        key = kernel_key(self.step, kernel, self.target)
        text = STORE.get(key)
        if text is None:
            if self._module is None:
                self._module = CudaModule(self.step, self.target)
            others: dict[str, str] = {}
            with _for_more_targets(also, others), _quicker_numba():
                text = self._module.ptx(kernel.name)
            STORE.put(key, text)
            for target, other in others.items():
                STORE.put(kernel_key(self.step, kernel, target), other)
        return text


@lru_cache(maxsize=128)
def interpreter(ptx: str) -> Any:
    """A PtxKernel of the text: parsed once, launched often."""
    from tests.ptx import PtxKernel

    return PtxKernel(ptx)
