"""LLVM IR text -> object code -> function addresses, through llvmlite alone.

Only three passes run before code generation: always-inline, removal of unused functions and instruction combining.
Generated code already is explicit-vector code, so that the full pipeline costs three times the compile time and gives
nothing (whole LeNet step: 182 ms against 619 ms, same speed). `vectorize=True` asks for the full pipeline; it serves
scalar loops that need LLVM's own loop vectoriser.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fusegraph.errors import CompilerError

_library_number = itertools.count()


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
    """Compile LLVM IR text to a relocatable object for the host.

    `times` receives the seconds of each phase. Raises CompilerError if LLVM refuses the text.
    """
    times = CompileTimes() if times is None else times
    module = _optimized(text, vectorize, times)
    start = time.perf_counter()
    code = _machine().emit_object(module)
    times.codegen += time.perf_counter() - start
    return code


def assembly(text: str, *, vectorize: bool = False) -> str:
    """The host's assembly for LLVM IR text: what `compile_ir` would put into the object. For reading."""
    return _machine().emit_assembly(_optimized(text, vectorize, CompileTimes()))


def optimized_ir(text: str, *, vectorize: bool = False) -> str:
    """The IR text as it reaches code generation. For reading."""
    return str(_optimized(text, vectorize, CompileTimes()))


class LoadedCode:
    """Object code in memory; its addresses are valid for as long as this instance lives."""

    def __init__(self, tracker: Any, symbols: tuple[str, ...]) -> None:
        self._tracker = tracker
        self._addresses = {name: int(tracker[name]) for name in symbols}

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names that `address` knows."""
        return tuple(self._addresses)

    def address(self, symbol: str) -> int:
        """Address of an exported function or global. Raises CompilerError for a name that was not asked for."""
        try:
            return self._addresses[symbol]
        except KeyError:
            raise CompilerError(f"symbol {symbol!r} was not loaded; loaded: {', '.join(self._addresses)}") from None


def load(code: bytes, symbols: Sequence[str]) -> LoadedCode:
    """Link an object into the process and look up `symbols`. libm and libc resolve from the process.

    Raises CompilerError if the object is not one for this host, or a symbol is missing or undefined.
    """
    llvm = _binding()
    builder = llvm.JITLibraryBuilder().add_object_img(code).add_current_process()
    for name in symbols:
        builder.export_symbol(name)
    try:
        tracker = builder.link(_jit(), f"fusegraph.{next(_library_number)}")
    except RuntimeError as error:
        raise CompilerError(f"cannot load object code ({len(code)} bytes, symbols {list(symbols)}): {error}") from error
    return LoadedCode(tracker, tuple(symbols))


@lru_cache(maxsize=1)
def _binding() -> Any:
    """llvmlite.binding with the native target initialised; imported here so that importing this file stays cheap."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()  # inline assembly: the spin-wait hint
    _never_fork_inside(llvm)
    return llvm


def _never_fork_inside(llvm: Any) -> None:
    """Fork only while no other thread is inside of LLVM: a child would wait for llvmlite's lock for ever.

    The collector may free code, which takes that lock, in any thread at any time.
    """
    lock = getattr(getattr(llvm.ffi, "lib", None), "_lock", None)
    if lock is None or not hasattr(os, "register_at_fork"):
        return
    os.register_at_fork(
        before=lock.__enter__,
        after_in_parent=lambda: lock.__exit__(None, None, None),
        after_in_child=lambda: lock.__exit__(None, None, None),
    )


@lru_cache(maxsize=1)
def _machine() -> Any:
    host = target()
    # opt=1: more changes no step's time by more than 1 % (LeNet, MLP, transformer block, Kim CNN, layer norm), and takes a
    # fifth more time
    return (
        _binding()
        .Target.from_triple(host.triple)
        .create_target_machine(cpu=host.cpu, features=host.features, opt=1, reloc="pic", codemodel="default", jit=True)
    )


@lru_cache(maxsize=1)
def _jit() -> Any:
    """One ORC engine for the process. Never disposed: worker threads may run its code until the process ends."""
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
    engine = _binding().create_lljit_compiler(_machine(), use_jit_link=sys.platform != "win32")
    engine._owned = True  # llvmlite: not ours to dispose of
    return engine


def _optimized(text: str, vectorize: bool, times: CompileTimes) -> Any:
    llvm, machine = _binding(), _machine()
    start = time.perf_counter()
    try:
        # a context of its own: what is uniqued in it (types, constants) is freed with the module
        module = llvm.parse_assembly(text, llvm.create_context())
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
    passes.run(module, builder)
    times.parse += parsed - start
    times.opt += time.perf_counter() - parsed
    return module
