"""Building: an op graph becomes something that runs. Passes, fusion, code generation, the disk cache.

`build` gives an Artifact: the executable, and what is needed to explain it. The stages are kept as functions of the graph (they
are pure and deterministic), so that `explain` and `dump` show exactly what was compiled, also after a hit of the disk cache.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fusegraph import events
from fusegraph.cache_key import cache_key
from fusegraph.errors import CompilerError, OptionError
from fusegraph.ir import interpret
from fusegraph.ir.graph import Graph
from fusegraph.records import dataclass, field, replace

if TYPE_CHECKING:
    from fusegraph.autotune import Tuned
    from fusegraph.codegen.cpu.step import StepCode
    from fusegraph.codegen.cpu.stretches import Stretch
    from fusegraph.ir.loops import Program
    from fusegraph.passes import PipelineLog
    from fusegraph.passes.budget import Fitted
    from fusegraph.passes.fuse import FusionReport
    from fusegraph.passes.pipeline_log import Origin
    from fusegraph.runtime.executable import StepLayout

Array = np.ndarray[Any, Any]
BACKENDS = ("cpu", "numba", "python", "reference", "cuda")
PRECISIONS = ("float32", "tf32", "float16", "bfloat16")


@dataclass(frozen=True)
class Options:
    """How to compile: see `fusegraph.compile`. `disable` names passes, and choices of fusegraph.passes.choices."""

    backend: str = "cpu"
    fuse: bool | str = True
    exact: bool = False
    verify: bool = False
    disable: tuple[str, ...] = ()
    target: str | None = None
    precision: str = "float32"
    fuse_limit: int | None = None
    memory_budget: int | None = None
    autotune: str = "off"

    def __post_init__(self) -> None:
        if self.fuse not in (True, False, "require"):
            raise OptionError(f"fuse is True, False or 'require', not {self.fuse!r}")
        if self.fuse_limit is not None and (type(self.fuse_limit) is not int or self.fuse_limit < 0):
            raise OptionError(f"fuse_limit is the number of fusions that are done, 0 or more, not {self.fuse_limit!r}")
        if self.backend not in BACKENDS:
            raise OptionError(f"backend {self.backend!r} does not exist; use one of {', '.join(BACKENDS)}")
        if self.precision not in PRECISIONS:
            raise OptionError(f"precision {self.precision!r} does not exist; use one of {', '.join(PRECISIONS)}")
        if self.backend != "cuda" and (self.target is not None or self.precision != "float32"):
            given = f"target={self.target!r}" if self.target is not None else f"precision={self.precision!r}"
            raise OptionError(f"{given} is an option of backend='cuda', not of backend={self.backend!r}")
        if self.exact and self.precision != "float32":
            raise OptionError(
                f"exact=True computes in float32 throughout, precision={self.precision!r} rounds what products read: "
                "leave one of the two out"
            )
        if self.memory_budget is not None:
            from fusegraph.memory_budget import bytes_of

            object.__setattr__(self, "memory_budget", bytes_of(self.memory_budget))
        if self.memory_budget is not None and self.backend == "reference":
            raise OptionError("memory_budget bounds the memory of compiled programs; backend='reference' has none")
        if self.autotune not in ("off", "on"):
            raise OptionError(f"autotune is 'off' or 'on', not {self.autotune!r}")
        if self.autotune == "on" and (self.backend != "cpu" or self.memory_budget is not None):
            other = f"backend={self.backend!r}" if self.backend != "cpu" else "memory_budget"
            raise OptionError(f"autotune='on' is an option of backend='cpu', and does not go together with {other}")
        if self.target is not None:
            from fusegraph.runtime.cuda_compile import capability

            capability(self.target)

    @property
    def without(self) -> frozenset[str]:
        """Names of choices that are switched off."""
        from fusegraph.passes.choices import CHOICES

        return frozenset(self.disable) & CHOICES.keys()

    def changed(self, **options: Any) -> Options:
        """The same with some options changed. Raises OptionError as for new ones."""
        return replace(self, **{**options, **({"disable": tuple(options["disable"])} if "disable" in options else {})})


class Executable(Protocol):
    """Runs a compiled graph on arrays in the order of its inputs; updated inputs change in place."""

    def run(self, inputs: Sequence[Array]) -> list[Array]: ...


class ReferenceExecutable:
    """The numpy interpreter."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._updated = [graph.inputs.index(old) for old, _ in graph.updates]
        self._lock = threading.Lock()

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """All values first, then the updates: an error leaves everything as it was. One call at a time."""
        with self._lock:
            outputs, updates = interpret.run(self.graph, inputs)
            outputs = [np.array(value) for value in outputs]
            updates = [np.array(value) for value in updates]
            for position, value in zip(self._updated, updates, strict=True):
                np.copyto(inputs[position], value)
            return outputs


class ProgramExecutable:
    """A backend that runs a Program's Python source on arrays by name (numba, or plain Python)."""

    def __init__(self, program: Program, inner: Any) -> None:
        self.program, self.inner = program, inner
        self._lock = threading.Lock()

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run on `inputs`; outputs are made anew. Concurrent callers wait for each other: temporary memory is shared."""
        arrays = dict(zip(self.program.inputs, inputs, strict=True))
        for name in self.program.outputs:
            buffer = self.program.buffers[name]
            arrays[name] = np.empty(buffer.shape, buffer.dtype)
        with self._lock:
            self.inner.run(arrays)
        outputs = self.program.outputs
        return [arrays[name].copy() if name in outputs[:i] else arrays[name] for i, name in enumerate(outputs)]


@dataclass
class Artifact:
    """A compiled graph. `seconds`: time of each stage of the compilation; `from_cache`: whether code came from the disk.

    stored_report  the report that lay beside the code (see fusegraph.inspect.report)
    shared         for each kernel, whether threads share it; None: found out when asked for
    placed         the program with its temps as they lie in memory; None: found out when asked for
    stretches      kernels that are run together, block by block (codegen.cpu.stretches); known once `shared` is
    code_hash      equal for equal machine code, in this process; 0: there is none
    tuned          what autotune has tried (see fusegraph.autotune)
    origin         the traced graph that `source` was cut from; None: `source` is as it was traced
    """

    source: Graph
    options: Options
    executable: Executable
    seconds: dict[str, float] = field(default_factory=dict)
    from_cache: bool = False
    stored_report: bytes | None = None
    shared: tuple[bool, ...] | None = None
    placed: Program | None = None
    stretches: tuple[Stretch, ...] = ()
    origin: Origin | None = None
    code_hash: int = 0
    tuned: Tuned | None = None

    @cached_property
    def stages(self) -> list[tuple[str, Graph]]:
        """The graph after each pass that was run, by name."""
        found = stages_of(self.source, self.options)
        return found if self.fitted is None or not self.fitted.copies else [*found, ("recompute", self.graph)]

    @cached_property
    def fitted(self) -> Fitted | None:
        """The program under the memory budget; None: there is no budget. Raises MemoryBudgetError."""
        if self.options.memory_budget is None:
            return None
        from fusegraph.memory_budget import fitted

        return fitted(self._optimised[0], self.options)

    @cached_property
    def _optimised(self) -> tuple[Graph, PipelineLog]:
        return optimised(self.source, self.options)

    @property
    def traced(self) -> Graph:
        """The graph as it was traced: of a model, forward and gradients in one."""
        return self.source if self.origin is None else self.origin.graph

    @property
    def graph(self) -> Graph:
        """The optimised op graph."""
        return self._optimised[0] if self.fitted is None else self.fitted.fused.graph

    @property
    def log(self) -> PipelineLog:
        """What the passes did."""
        log = self._optimised[1]
        return log if self.fitted is None else replace(log, became=log.became | self.fitted.became)

    @cached_property
    def fused(self) -> tuple[Program, FusionReport]:
        """The fused program, and what fusion says of it."""
        from fusegraph.inspect.narrate import tell_fusion

        if self.fitted is not None:
            program, report = self.fitted.fused.program, self.fitted.fused.report
        else:
            program, report = fused_program(self.graph, self.options)
        tell_fusion(self.graph, report)
        return program, report

    @cached_property
    def threads(self) -> list[int | str]:
        """For each kernel how many threads may run it: "all", or 1."""
        if self.options.backend == "cpu" and self.shared is None:
            self.note(step_code(self))
        shared = self.shared or (self.options.backend == "cuda",) * len(self.fused[0].loops)
        return ["all" if parallel else 1 for parallel in shared]

    @cached_property
    def report(self) -> dict[str, Any]:
        """The report of this program as plain data: from beside the code in the disk cache, if it names this program's lines."""
        from fusegraph.inspect.report import decode, program_report

        found = decode(self.stored_report, self.traced) if self.stored_report is not None else None
        if found is None:
            return program_report(self) | self._autotune
        return found | {"from_cache": True, "seconds": found["seconds"] | self.seconds} | self._autotune

    @property
    def _autotune(self) -> dict[str, Any]:
        return {} if self.tuned is None else {"autotune": self.tuned.to_json() | {"text": self.tuned.sentence()}}

    def become(self, other: Artifact, tuned: Tuned) -> None:
        """From now on this is the other program, for the same graph."""
        self.__dict__ = {**other.__dict__, "tuned": tuned}

    def note(self, step: StepCode) -> None:
        """Keep what reports need of a step's code."""
        self.shared, self.placed = tuple(kernel.parallel for kernel in step.kernels), step.program
        self.stretches = step.stretches

    def in_memory(self) -> Program:
        """The fused program with its temps as they lie in memory; kernels are the same, in the same order."""
        if self.options.backend == "cpu" and self.placed is None:
            self.note(step_code(self))
        return self.placed or self.fused[0]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run on arrays in the order of the graph's inputs. Outputs have the shapes of the graph's outputs."""
        if self.options.verify:
            from fusegraph.verify import run_verified

            results = run_verified(self, inputs)
        else:
            results = self.executable.run(inputs)
        return [value.reshape(node.shape) for value, node in zip(results, self.source.outputs, strict=True)]


def _pass_names(options: Options) -> tuple[str, ...]:
    """Passes that are not to run. A GPU multiplies zeros faster than it finds out where they are not; and long sums are
    cut for its many blocks when loops are (codegen/cuda/split.py)."""
    unfit = ("sparse_cotangents", "split_reduce") if options.backend == "cuda" else ()
    return (*unfit, *(name for name in options.disable if name != "fuse" and name not in options.without))


def optimised(graph: Graph, options: Options) -> tuple[Graph, PipelineLog]:
    """The graph after the passes, and what they did."""
    from fusegraph.inspect.narrate import tell_passes
    from fusegraph.passes import PipelineLog, run_pipeline

    log = PipelineLog()
    after = run_pipeline(graph, disable=_pass_names(options), exact=options.exact, log=log)
    tell_passes(graph, log)
    return after, log


def fused_program(graph: Graph, options: Options, save_memory: bool = False) -> tuple[Program, FusionReport]:
    """The fused program of an optimised graph, and what fusion says of it. save_memory: as in `fuse`."""
    from fusegraph.passes.fuse import fuse

    without, limit = options.without, options.fuse_limit
    program, report = fuse(graph, bool(options.fuse), limit, save_memory=save_memory, without=without)
    if options.backend == "cpu" and options.fuse and not options.exact and not save_memory:
        from fusegraph.codegen.cpu.rereads import without_rereads
        from fusegraph.codegen.cpu.winners import with_winners

        program = program if "rereads" in without else without_rereads(program)
        program, origin = (program, {}) if "winners" in without else with_winners(program)
        if origin:
            nodes = dict(report.kernels)
            report.kernels = [(loop.name, nodes[origin.get(loop.name, loop.name)]) for loop in program.loops]
    return program, report


def stages_of(graph: Graph, options: Options) -> list[tuple[str, Graph]]:
    """(name, graph after it) of each pass that changes something."""
    from fusegraph.passes import run_pipeline

    record: list[tuple[str, Graph]] = []
    run_pipeline(graph, disable=_pass_names(options), record=record, exact=options.exact)
    return record


def build(graph: Graph, options: Options, origin: Origin | None = None) -> Artifact:
    """Compile `graph`. origin: for reports, what it was cut from.

    Raises OptionError for an unknown pass in `disable`, UnsupportedError for a missing backend, MemoryBudgetError.
    """
    artifact = Artifact(graph, options, ReferenceExecutable(graph), origin=origin)
    if options.backend == "reference":
        return artifact
    if options.backend == "cpu" and options.autotune == "on":
        from fusegraph.autotune import build_tuned

        return build_tuned(artifact)
    if options.backend == "cpu":
        return build_native(artifact)
    if options.backend == "cuda":
        from fusegraph.runtime.cuda import CudaExecutable

        artifact.executable = CudaExecutable(artifact, options.target)
        return artifact
    program, _ = artifact.fused
    from fusegraph.runtime import numba_backend

    maker = numba_backend.NumbaExecutable if options.backend == "numba" else numba_backend.PythonExecutable
    artifact.executable = ProgramExecutable(program, maker(program))
    return artifact


def build_native(artifact: Artifact, sizes: str = "") -> Artifact:
    """Give the artifact its native code, from the disk cache if it is there. sizes: as of `cache_key`."""
    from fusegraph.runtime.executable import NativeStep, StepLayout

    graph, options = artifact.source, artifact.options
    start = time.perf_counter()
    shapes = [node.shape for node in graph.outputs]
    cache, key = cache_key(graph, options, sizes)
    entry = cache.get(key)
    if entry is not None:
        try:
            layout = StepLayout.from_json(json.loads(entry["layout.json"]))
            stored = _objects(entry.blobs)
            step = NativeStep(stored, layout, shapes)
        except (CompilerError, KeyError, TypeError, ValueError):
            entry = None
        else:
            events.event(
                "cache", f"{graph.name}: loaded from the disk cache in {1e3 * (time.perf_counter() - start):.1f} ms"
            )
            artifact.executable, artifact.from_cache, artifact.code_hash = step, True, hash(tuple(stored))
            artifact.seconds["load"] = time.perf_counter() - start
            artifact.stored_report = entry.blobs.get("report.json")
            return artifact
    events.event("cache", f"{graph.name}: not in the disk cache ({key[:12]})")
    objects, layout = _generate(artifact)
    started = time.perf_counter()
    artifact.executable = NativeStep(objects, layout, shapes)
    artifact.seconds["load"], artifact.code_hash = time.perf_counter() - started, hash(tuple(objects))
    blobs = {f"object{number}": code for number, code in enumerate(objects)}
    blobs |= {"layout.json": json.dumps(layout.to_json()).encode(), "report.json": _report(artifact)}
    cache.put(key, blobs)
    events.event(
        "kernels",
        f"{graph.name}: {len(layout.kernels)} kernels, {layout.barriers} barriers, arena {layout.arena_bytes} bytes, "
        f"compiled in {time.perf_counter() - start:.3f} s",
    )
    return artifact


def _objects(blobs: Mapping[str, bytes]) -> list[bytes]:
    """The objects of an entry of the disk cache. Raises KeyError if it has none."""
    names = [f"object{number}" for number in range(sum(name.startswith("object") for name in blobs))]
    return [blobs[name] for name in names or ["object0"]]


def _report(artifact: Artifact) -> bytes:
    """What lies beside the code in the disk cache, for `explain` in processes that do not compile."""
    from fusegraph.inspect.report import encode, program_report

    return encode(program_report(artifact), artifact.traced)


def step_code(artifact: Artifact, clock: str | None = None, take: Callable[[str], None] | None = None) -> StepCode:
    """The LLVM IR of an artifact's fused program; with notes of `clock`, for profiling.

    take: is given the IR part by part, as it is written (see `emit_step`).
    """
    from fusegraph.codegen.cpu.step import emit_step
    from fusegraph.runtime import llvm
    from fusegraph.runtime.executable import data_field
    from fusegraph.runtime.pool import barrier_ir

    bits, options = llvm.target().vector_bits, artifact.options
    return emit_step(artifact.fused[0], bits, barrier_ir(), options.exact, data_field(), clock, take, options.without)


def compiled_step(artifact: Artifact, clock: str) -> tuple[Sequence[bytes], StepLayout]:
    """Machine code of the same step with notes of `clock`, and its layout. Not kept anywhere."""
    from fusegraph.runtime.compile_queue import CompileQueue

    with CompileQueue() as queue:
        step = step_code(artifact, clock, queue.add)
        return queue.finish(), _layout(artifact.fused[0], step)


def _generate(artifact: Artifact) -> tuple[Sequence[bytes], StepLayout]:
    """Machine code and layout. The first parts of the IR are compiled while the others are written."""
    from fusegraph.runtime import collector
    from fusegraph.runtime.compile_queue import CompileQueue

    seconds = artifact.seconds
    clock = time.perf_counter()
    with collector.resting(), CompileQueue() as queue:
        artifact.graph  # noqa: B018  (computed and kept)
        seconds["passes"], clock = time.perf_counter() - clock, time.perf_counter()
        program, _ = artifact.fused
        seconds["fusion"], clock = time.perf_counter() - clock, time.perf_counter()
        step = step_code(artifact, take=queue.add)
        artifact.note(step)
        seconds["code generation"], clock = time.perf_counter() - clock, time.perf_counter()
        objects = queue.finish()
        seconds["llvm"] = time.perf_counter() - clock
    return objects, _layout(program, step)


def _layout(program: Program, step: StepCode) -> StepLayout:
    from fusegraph.runtime.executable import Slot, StepLayout, data_field

    slots = tuple(
        Slot(b.name, b.role, b.shape, b.dtype.name) for b in (program.buffers[name] for name in step.memory.externals)
    )
    return StepLayout(
        slots,
        program.inputs,
        program.outputs,
        program.guards,
        step.memory.arena_bytes,
        step.workspace_bytes,
        tuple(loop.name for loop in program.loops),
        step.barriers,
        step.memory.unshared_bytes,
        program.checks,
        data_field(),
    )


def text_without_locations(graph: Graph) -> str:
    """The text form without comments: equal for graphs that compute the same."""
    from fusegraph.ir.text import print_graph

    return "\n".join(line.partition("  # ")[0] for line in print_graph(graph).splitlines())
