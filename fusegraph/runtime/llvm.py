"""LLVM IR text -> object code -> function addresses, through llvmlite (and, on Linux, a loader of our own: `object_loader`).

Only three passes run before code generation: always-inline, removal of unused functions and instruction combining.
Generated code already is explicit-vector code, so that the full pipeline costs three times the compile time and gives
nothing (whole LeNet step: 182 ms against 619 ms, same speed). `vectorize=True` asks for the full pipeline; it serves
scalar loops that need LLVM's own loop vectoriser.

Several threads may compile at once: llvmlite lets one thread into LLVM at a time, but modules of different contexts have
nothing in common, so that the slow calls go past its lock (see `_Gate`).
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from fusegraph.errors import CompilerError
from fusegraph.records import dataclass
from fusegraph.runtime import object_loader
from fusegraph.runtime.object_loader import LoadedCode, load

__all__ = [
    "CompileTimes",
    "LoadedCode",
    "Target",
    "assembly",
    "compile_ir",
    "linked",
    "load",
    "optimized_ir",
    "prepare",
    "target",
    "vector_bits",
]

_library_number = itertools.count()
_starting = threading.RLock()  # what is made once for the process is made by one thread


@dataclass(frozen=True)
class Target:
    """The machine that code is generated for: the host of this process."""

    triple: str
    cpu: str
    features: str
    vector_bits: int

    @property
    def arch(self) -> str:
        """First part of the triple: x86_64, aarch64 or arm64, ..."""
        return self.triple.split("-", 1)[0]

    @property
    def float_lanes(self) -> int:
        """float32 elements in one vector register: 16 (AVX-512), 8 (AVX2) or 4 (NEON, SSE)."""
        return self.vector_bits // 32


@dataclass
class CompileTimes:
    """Seconds spent on one module (or the sum over several, see `add`), for the compile report."""

    parse: float = 0.0
    opt: float = 0.0
    codegen: float = 0.0

    @property
    def total(self) -> float:
        """Sum of the three phases, in seconds."""
        return self.parse + self.opt + self.codegen

    def add(self, other: CompileTimes) -> None:
        """Add the seconds of another module to this one."""
        self.parse += other.parse
        self.opt += other.opt
        self.codegen += other.codegen


def vector_bits(features: str) -> int:
    """Widest vector register that generated code may use, from an LLVM feature string (`+avx2,-avx512f,...`)."""
    have = {name[1:] for name in features.split(",") if name.startswith("+")}
    if {"avx512f", "avx512vl", "avx512dq"} <= have:
        return 512
    return 256 if {"avx2", "fma"} <= have else 128


@lru_cache(maxsize=1)
def target() -> Target:
    """The host as LLVM sees it. Cached."""
    llvm = _binding()
    try:
        features = llvm.get_host_cpu_features().flatten()
    except RuntimeError:  # LLVM cannot detect features on this platform: the CPU name alone decides
        features = ""
    return Target(llvm.get_process_triple(), llvm.get_host_cpu_name(), features, vector_bits(features))


def compile_ir(text: str, *, vectorize: bool = False, times: CompileTimes | None = None) -> bytes:
    """Compile LLVM IR text to a relocatable object for the host. Threads may call this at the same time.

    `times` receives the seconds of each phase. Raises CompilerError if LLVM refuses the text.
    """
    times = CompileTimes() if times is None else times
    with _machine() as machine:
        module = _optimized(machine, text, vectorize, times)
        start = time.perf_counter()
        code = _emit_object(machine, module)
        times.codegen += time.perf_counter() - start
        del module  # before another thread has the machine
    return code


def assembly(text: str, *, vectorize: bool = False) -> str:
    """The host's assembly for LLVM IR text: what `compile_ir` would put into the object. For reading."""
    with _machine() as machine:
        return machine.emit_assembly(_optimized(machine, text, vectorize, CompileTimes()))  # type: ignore[no-any-return]


def optimized_ir(text: str, *, vectorize: bool = False) -> str:
    """The IR text as it reaches code generation. For reading."""
    with _machine() as machine:
        return str(_optimized(machine, text, vectorize, CompileTimes()))


def prepare() -> None:
    """Do what the first call of `compile_ir` and of `load` would do once for the process."""
    with _machine():
        if not object_loader.supported():
            _jit()


def linked(objects: Sequence[bytes], symbols: Sequence[str]) -> LoadedCode:
    """Link objects by LLVM's linker, and look up `symbols`. Raises RuntimeError. `load` calls this where it has to."""
    llvm = _binding()
    builder = llvm.JITLibraryBuilder().add_current_process()
    for image in objects:
        builder.add_object_img(image)
    for name in symbols:
        builder.export_symbol(name)
    tracker = builder.link(_jit(), f"fusegraph.{next(_library_number)}")
    return LoadedCode({name: int(tracker[name]) for name in symbols}, tracker)


def _binding() -> Any:
    """llvmlite.binding with the native target initialised; imported here so that importing this file stays cheap."""
    with _starting:
        return _initialised()


@lru_cache(maxsize=1)
def _initialised() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()  # inline assembly: the spin-wait hint
    return llvm


class _Gate:
    """Threads inside are in LLVM without llvmlite's lock; the process forks only while nobody is inside.

    A child would wait for ever for a lock that another thread held.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0

    def __enter__(self) -> None:
        with self._changed:
            self._inside += 1

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until nobody is inside, and let nobody in until `open`."""
        self._changed.acquire()
        while self._inside:
            self._changed.wait()

    def open(self) -> None:
        """Undo `close`."""
        self._changed.release()


_gate = _Gate()


def _slow_call(name: str, *args: Any) -> Any:
    """Call a function of llvmlite's library past llvmlite's lock: only on objects that no other thread has."""
    function = getattr(_binding().ffi.lib, name)
    with _gate:
        return getattr(function, "_cfn", function)(*args)


def _llvmlite_lock() -> Any:
    """What llvmlite holds while it is in LLVM; nothing if it has not been used yet."""
    if not _initialised.cache_info().currsize:
        return contextlib.nullcontext()
    return getattr(getattr(_initialised().ffi, "lib", None), "_lock", contextlib.nullcontext())


def _before_fork() -> None:
    """Fork only while no other thread is inside of LLVM, or at its start: a child would wait for their locks for ever.

    The collector may free code, which takes llvmlite's lock, in any thread at any time: also in one that has just come
    back from LLVM and not left the gate yet, or one that starts LLVM. Hence that lock last.
    """
    _starting.acquire()
    _gate.close()
    _llvmlite_lock().__enter__()


def _after_fork() -> None:
    _llvmlite_lock().__exit__(None, None, None)
    _gate.open()
    _starting.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


_machines: list[Any] = []  # that no thread uses now


@contextlib.contextmanager
def _machine() -> Iterator[Any]:
    """A target machine that no other thread has for as long."""
    try:
        machine = _machines.pop()
    except IndexError:
        host = target()
        # opt=1: more changes no step's time by more than 1 % (LeNet, MLP, transformer block, Kim CNN, layer norm), and
        # takes a fifth more time
        machine = (
            _binding()
            .Target.from_triple(host.triple)
            .create_target_machine(
                cpu=host.cpu, features=host.features, opt=1, reloc="pic", codemodel="default", jit=True
            )
        )
    try:
        yield machine
    finally:
        _machines.append(machine)


def _jit() -> Any:
    """One ORC engine for the process. Never disposed: worker threads may run its code until the process ends."""
    with _starting:
        return _engine()


@lru_cache(maxsize=1)
def _engine() -> Any:
    if sys.platform.startswith("linux"):
        # libm may be known to numpy only (RTLD_LOCAL); this makes exp, expf, ... visible to the process-wide search.
        for name in ("libm.so.6", "libm.so"):
            try:
                ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
                break
            except OSError:
                continue
    # JITLink puts the sections of an object side by side and reports a relocation that does not reach; the older
    # RuntimeDyld truncates it silently. Its COFF support is young, hence not on Windows.
    with _machine() as machine:
        engine = _binding().create_lljit_compiler(machine, use_jit_link=sys.platform != "win32")
    engine._owned = True  # llvmlite: not ours to dispose of
    return engine


def _parsed(text: str) -> Any:
    """A module in a context of its own: what is uniqued in it (types, constants) is freed with the module."""
    llvm = _binding()
    context = llvm.create_context()
    with llvm.ffi.OutputString() as message:
        reference = _slow_call("LLVMPY_ParseAssembly", context, ctypes.c_char_p(text.encode()), message)
        module = llvm.ModuleRef(reference, context)
        if message:
            raise RuntimeError(str(message))
    return module


def _emit_object(machine: Any, module: Any) -> bytes:
    llvm = _binding()
    lib = llvm.ffi.lib
    with llvm.ffi.OutputString() as message:
        buffer = _slow_call("LLVMPY_TargetMachineEmitToMemory", machine, module, 1, message)
        if not buffer:
            raise CompilerError(f"LLVM cannot generate code: {message}")
    try:
        return ctypes.string_at(lib.LLVMPY_GetBufferStart(buffer), lib.LLVMPY_GetBufferSize(buffer))
    finally:
        lib.LLVMPY_DisposeMemoryBuffer(buffer)


def _optimized(machine: Any, text: str, vectorize: bool, times: CompileTimes) -> Any:
    llvm = _binding()
    start = time.perf_counter()
    try:
        module = _parsed(text)
        module.triple = target().triple
        module.data_layout = str(machine.target_data)
        module.verify()
    except RuntimeError as error:
        raise CompilerError(f"LLVM refuses generated IR ({text.count(chr(10)) + 1} lines): {error}") from error
    parsed = time.perf_counter()
    options = llvm.create_pipeline_tuning_options(speed_level=3 if vectorize else 1)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = vectorize
    builder = llvm.create_pass_builder(machine, options)
    if vectorize:
        passes = builder.getModulePassManager()
    else:
        passes = llvm.create_new_module_pass_manager()
        passes.add_always_inliner_pass()
        passes.add_global_dead_code_eliminate_pass()
        passes.add_instruction_combine_pass()
    _slow_call("LLVMPY_RunNewModulePassManager", passes, module, builder)
    times.parse += parsed - start
    times.opt += time.perf_counter() - parsed
    return module
