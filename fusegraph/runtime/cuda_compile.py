"""From emitted CUDA source to PTX and cubins, with numba-cuda and NVIDIA's wheels; no GPU is needed.

numba-cuda compiles a kernel for any compute capability, but the device functions that it calls only for "the current device".
`compiling_for` answers that question with the chosen capability, so that machines without a GPU can compile (and test) kernels.
"""

from __future__ import annotations

import ast
import importlib.util
import linecache
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusegraph.errors import CompilerError, OptionError, UnsupportedError

if TYPE_CHECKING:
    from fusegraph.codegen.cuda.step import CudaStep

Capability = tuple[int, int]
TARGETS: dict[str, Capability] = {
    "sm_75": (7, 5),
    "sm_80": (8, 0),
    "sm_90": (9, 0),
    "sm_100": (10, 0),
    "sm_120": (12, 0),
}
DEFAULT_TARGET = "sm_90"
INSTALL = "pip install 'fusegraph[cuda]'"
_lock = threading.Lock()  # the patch below is global
_numbers = count()


def missing() -> str:
    """What must be installed before kernels can be compiled, in words; "" if nothing."""
    for module in ("numba_cuda", "cuda.bindings"):
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"the package {module.partition('.')[0].replace('_', '-')} is not installed ({INSTALL})"
    return ""


def capability(target: str) -> Capability:
    """(9, 0) for "sm_90". Raises OptionError for a target that is not known."""
    if target not in TARGETS:
        raise OptionError(f"CUDA target {target!r} is not known; use one of {', '.join(TARGETS)}")
    return TARGETS[target]


@contextmanager
def compiling_for(chosen: Capability) -> Iterator[None]:
    """numba-cuda takes a device of this capability for the current one."""
    from numba.cuda import dispatcher

    class Device:
        compute_capability = chosen

    with _lock:
        before = dispatcher.get_current_device
        dispatcher.get_current_device = Device
        try:
            yield
        finally:
            dispatcher.get_current_device = before


class CudaModule:
    """An emitted module, loaded: compiles its kernels one by one to PTX, for one target."""

    def __init__(self, step: CudaStep, target: str = DEFAULT_TARGET) -> None:
        if problem := missing():
            raise UnsupportedError(f"CUDA kernels cannot be compiled: {problem}")
        self.step, self.target = step, target
        self._capability = capability(target)
        self._functions = _load(step.source, step.program.name, self._capability)
        self._ptx: dict[str, str] = {}

    def ptx(self, name: str) -> str:
        """The PTX of the kernel called `name`. The only .entry in it is the kernel."""
        if name not in self._ptx:
            from numba import cuda
            from numba.cuda import types

            from fusegraph.codegen.cuda.device_storage import pointer_type

            kernel = self.step.kernel(name)
            pointers = (pointer_type(kind, self._capability) for kind in self.step.types(kernel))
            with compiling_for(self._capability):
                text, _ = cuda.compile_ptx(
                    self._functions[name], types.void(*pointers), cc=self._capability, launch_bounds=kernel.threads
                )
            self._ptx[name] = text
        return self._ptx[name]


def _load(source: str, name: str, chosen: Capability) -> dict[str, Any]:
    """The module's functions. Its text is registered so that tracebacks show it."""
    file = f"<fusegraph cuda {name} {next(_numbers)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    namespace: dict[str, Any] = {"__name__": f"fusegraph_cuda_{name}"}
    tree = ast.parse(source, file)
    exec(compile(tree, file, "exec"), namespace)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            function = namespace[node.name]
            used = (namespace[n] for n in function.py_func.__code__.co_names if n in namespace)
            namespace[node.name] = _first_of(chosen, ast.unparse(node), tuple(used)).setdefault("function", function)
    return namespace


@lru_cache(maxsize=256)
def _first_of(chosen: Capability, text: str, used: tuple[Any, ...]) -> dict[str, Any]:
    """A place for the first device function with this text that calls these: numba compiles one and the same function only
    once, and device functions (helpers, the same in all modules) take half of the time of a kernel.
    """
    return {}


def entry_name(ptx: str) -> str:
    """The (mangled) name of the kernel in a PTX text."""
    found = re.search(r"\.entry\s+([\w$]+)", ptx)
    if found is None:
        raise CompilerError("a PTX text has no kernel")
    return found.group(1)


# -- ptxas ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resources:
    """What ptxas says that a kernel needs: registers a thread, bytes of shared memory a block, of stack and spills a thread."""

    registers: int
    shared: int
    stack: int
    spills: int


@lru_cache(maxsize=1)
def tool_folder() -> Path | None:
    """Where the wheels (or a toolkit) have put ptxas; None where there is none."""
    spec = importlib.util.find_spec("nvidia") if importlib.util.find_spec("nvidia") else None
    roots = [Path(root) / "cu13" / "bin" for root in (spec.submodule_search_locations or [])] if spec else []
    roots.append(Path("/usr/local/cuda/bin"))
    return next((root for root in roots if (root / "ptxas").exists()), None)


def _tool(name: str) -> Path:
    folder = tool_folder()
    if folder is None or not (folder / name).exists():
        raise UnsupportedError(f"{name} is not installed ({INSTALL})")
    return folder / name


def assemble(ptx: str, target: str = DEFAULT_TARGET, options: Sequence[str] = ()) -> tuple[bytes, Resources]:
    """The cubin of a PTX text, and what it needs. Raises CompilerError with what ptxas says."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx, encoding="utf-8")
        command = [str(_tool("ptxas")), "-v", "-arch", target, str(source), "-o", str(cubin), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompilerError(f"ptxas refuses a kernel for {target}: {done.stderr.strip()}")
        return cubin.read_bytes(), _resources(done.stderr)


def _resources(log: str) -> Resources:
    def number(pattern: str) -> int:
        return sum(int(n) for n in re.findall(pattern, log))

    spills = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    return Resources(
        number(r"Used (\d+) registers"), number(r"(\d+) bytes smem"), number(r"(\d+) bytes stack frame"), spills
    )


def disassemble(cubin: bytes) -> str:
    """The SASS of a cubin. Raises UnsupportedError where nvdisasm is not installed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        done = subprocess.run([str(_tool("nvdisasm")), "-c", str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompilerError(f"nvdisasm: {done.stderr.strip()}")
        return done.stdout


_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)(.*)")


def loops(sass: str) -> list[list[str]]:
    """The opcodes of each loop (a backward branch and what it jumps over), the longest last."""
    places: dict[str, int] = {}
    opcodes: list[tuple[str, str]] = []
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            places[label.group(1)] = len(opcodes)
        if found := _INSTRUCTION.search(line):
            opcodes.append((found.group(1), found.group(2)))
    found_loops = []
    for end, (opcode, rest) in enumerate(opcodes):
        target = re.search(r"`\((\.L_x_\d+)\)", rest) if opcode.startswith("BRA") else None
        if target and places.get(target.group(1), end) < end - 1:
            found_loops.append([name for name, _ in opcodes[places[target.group(1)] : end + 1]])
    return sorted(found_loops, key=len)
