"""Runs systems beside each other: a process for each, interleaved rounds, results compared with a float64 run first.

A workload goes like this. The reference process (fusegraph, not compiled, float64) and then every system run the same first
steps from the same weights; a system whose results differ is reported as wrong and not timed. Then they take turns (ours,
rival, ours, rival, ...), while the others wait for their pipe; the figure is the median of the rounds. At last each system
is started once more, with what it keeps on disk from the first time: the warm start.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.systems import REFERENCE, SYSTEMS
from benchmarks.systems.cases import CASES, Case

ROOT = Path(__file__).resolve().parent.parent
CHECKED_STEPS = 3
PAUSE = 0.02  # seconds between rounds: idle OpenMP threads spin for some milliseconds after their last work
TOLERANCE = 1e-4  # of the largest value
HALF_UNIT = 2.0**-24  # largest relative error of rounding to float32
# The first two are tuned for one library: no fair setting for its rivals. Without bytecode on disk, which an installation
# makes, a warm start would read source.
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "PYTHONDONTWRITEBYTECODE")
START_LIMIT, STEP_LIMIT = 120.0, 300.0  # seconds until a process is given up: its imports, its first step


class WorkerError(Exception):
    """A worker reports an error, died, or does not answer."""


@dataclass(frozen=True)
class Settings:
    """What to run. `rounds` of `seconds` each; `warm`: measure warm starts too."""

    systems: tuple[str, ...]
    cases: tuple[str, ...]
    threads: int = 2
    rounds: int = 7
    seconds: float = 0.2
    warm: bool = True
    changes: dict[str, Any] = field(default_factory=dict)  # fields of the cases to set, for tests


@dataclass
class Result:
    """One system on one workload. A figure that could not be had is None; then `note` says why."""

    system: str
    version: str = ""
    step_s: float | None = None
    rounds_s: list[float] = field(default_factory=list)
    error: float | None = None  # largest difference from the float64 run, relative to the largest value
    import_s: float | None = None
    cold_s: float | None = None  # first step with nothing on disk: tracing, compiling, running
    warm_s: float | None = None  # first step of a second process
    warm_import_s: float | None = None
    cold_peak_bytes: int | None = None
    warm_peak_bytes: int | None = None
    note: str = ""


class Process:
    """A worker, and the orders that it is given."""

    def __init__(self, system: str, case: Case, threads: int, folder: Path, dtype: str = "float32",
                 changes: dict[str, Any] | None = None) -> None:  # fmt: skip
        spec = {"system": system, "case": case.name, "threads": threads, "dtype": dtype, "changes": changes or {}}
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.systems.worker", json.dumps(spec)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, cwd=ROOT, env=environment(threads, folder),
        )  # fmt: skip
        self._answers: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._what = f"{system} on {case.name}"
        try:
            self.hello = self._answer(START_LIMIT)
        except WorkerError:
            self.close()
            raise

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, do: str, limit: float = STEP_LIMIT, **order: Any) -> dict[str, Any]:
        """Give an order and wait for the answer. Raises WorkerError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **order}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerError(f"the process died: {self._last_words()}") from None
        return self._answer(limit)

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                if pipe is self._process.stdin and pipe is not None:
                    pipe.close()
            except OSError:
                pass
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(b"")

    def _answer(self, limit: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=limit)
        except queue.Empty:
            self._process.kill()
            raise WorkerError(f"no answer within {limit:g} s") from None
        if not line:
            raise WorkerError(f"the process died: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {self._process.poll()}"


def environment(threads: int, folder: Path) -> dict[str, str]:
    """Environment of a worker: caches on disk in `folder`, so that the first start is cold and the second is warm."""
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    kept.pop("FUSEGRAPH_NUM_THREADS", None)
    return kept | {
        "OMP_NUM_THREADS": str(threads),
        "FUSEGRAPH_CACHE_DIR": str(folder / "fusegraph"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_PLATFORMS": "cpu",
        "CACHEDB": str(folder / "tinygrad.db"),
        "PYTHONPATH": str(ROOT),
    }


def installed(system: str) -> bool:
    """Whether the package that a system needs can be imported. It is not imported."""
    return importlib.util.find_spec(SYSTEMS[system].package) is not None


def run(settings: Settings, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Run everything and give what the JSON file holds, but for the machine: {"settings", "workloads"}."""
    workloads = []
    for name in settings.cases:
        say(f"{name}: {CASES[name].title}")
        results = run_case(CASES[name], settings, say)
        workloads.append({"name": name, "title": CASES[name].title, "flops": CASES[name].flops,
                          "nbytes": CASES[name].nbytes, **summary(results),
                          "systems": {result.system: asdict(result) for result in results}})  # fmt: skip
    return {"settings": asdict(settings), "workloads": workloads}


def run_case(case: Case, settings: Settings, say: Callable[[str], None] = lambda text: None) -> list[Result]:
    """One workload in every system."""
    results = [Result(system) for system in settings.systems]
    with tempfile.TemporaryDirectory(prefix="fusegraph-bench-") as name:
        folder = Path(name)
        wanted = _reference(case, settings, folder)
        running: list[tuple[Result, Process]] = []
        try:
            for result in results:
                process = _first_steps(result, case, settings, folder, wanted)
                if process is not None:
                    running.append((result, process))
            _rounds(running, settings)
        finally:
            for _, process in running:
                process.close()
        if settings.warm:
            for result, _ in running:
                _warm_start(result, case, settings, folder)
    for result in results:
        say("  " + line(result))
    return results


def _reference(case: Case, settings: Settings, folder: Path) -> dict[str, Any]:
    with Process(REFERENCE, case, settings.threads, folder, "float64", settings.changes) as process:
        process.ask("first", save=str(folder / "reference.npz"), steps=CHECKED_STEPS)
    return dict(np.load(folder / "reference.npz"))


def _first_steps(
    result: Result, case: Case, settings: Settings, folder: Path, wanted: dict[str, Any]
) -> Process | None:
    """A process that has run its first steps and got them right, or None and a note why not."""
    if not installed(result.system):
        result.note = "not installed"
        return None
    process = None
    try:
        process = Process(result.system, case, settings.threads, folder / result.system, changes=settings.changes)
        result.version, result.import_s = process.hello["version"], process.hello["import_s"]
        saved = folder / f"{result.system}.npz"
        result.cold_s = process.ask("first", save=str(saved), steps=CHECKED_STEPS)["first_s"]
        result.error = largest_difference(dict(np.load(saved)), wanted, case.parameters(), case.optimizer == "adam")
        if not result.error <= TOLERANCE:
            raise WorkerError(f"wrong results: off by {result.error:.1e} of the largest value")
        return process
    except WorkerError as error:
        result.note = " ".join(str(error).split())[:300]
        if process is not None:
            process.close()
        return None


def _rounds(running: list[tuple[Result, Process]], settings: Settings) -> None:
    """Interleaved rounds; a system that fails in between is out."""
    for _ in range(settings.rounds):
        for result, process in running:
            if result.note:
                continue
            time.sleep(PAUSE)
            try:
                result.rounds_s.append(process.ask("round", seconds=settings.seconds)["step_s"])
            except WorkerError as error:
                result.note = str(error)[:300]
    for result, process in running:
        if not result.note:
            result.step_s = median(result.rounds_s)
            result.cold_peak_bytes = process.ask("memory")["peak_bytes"]


def _warm_start(result: Result, case: Case, settings: Settings, folder: Path) -> None:
    try:
        with Process(
            result.system, case, settings.threads, folder / result.system, changes=settings.changes
        ) as process:
            result.warm_import_s = process.hello["import_s"]
            result.warm_s = process.ask("first", steps=1)["first_s"]
            process.ask("round", seconds=settings.seconds)
            result.warm_peak_bytes = process.ask("memory")["peak_bytes"]
    except WorkerError as error:
        result.note = f"warm start: {error}"[:300]


def largest_difference(
    found: dict[str, Any], wanted: dict[str, Any], weights: dict[str, Any], adam: bool = False
) -> float:
    """Largest |found - wanted| over all results, each relative to its largest value. Infinity if one is missing or not finite.

    Of a trained weight its change since the beginning counts, which is the sum of its gradients; what float32 cannot tell
    apart in the weight itself, half a unit in its last place at each step, is no difference. Adam divides a gradient by its own
    size, also one that is rounding error alone, so that single weights differ by a whole step: with `adam` the root of the mean
    square over a weight's elements counts, not the largest.
    """
    worst = 0.0
    for name, exact in wanted.items():
        value = found.get(name)
        if value is None or value.shape != exact.shape or not np.isfinite(value).all():
            return float("inf")
        difference, change = np.abs(value.astype(np.float64) - exact), exact
        if name.startswith("weight/"):
            start = weights[name.removeprefix("weight/")].astype(np.float64)
            change = exact - start
            difference = np.maximum(0, difference - CHECKED_STEPS * HALF_UNIT * np.abs(exact))
        size = np.sqrt(np.mean(difference**2)) if adam and name.startswith("weight/") else difference.max()
        worst = max(worst, float(size) / max(float(np.abs(change).max()), 1e-30))
    return worst


def summary(results: list[Result]) -> dict[str, Any]:
    """The best rival, and how many times faster we are: {"best_rival", "ratio"}; None where there is none."""
    ours = next((r.step_s for r in results if r.system == "ours"), None)
    rivals = [(r.step_s, r.system) for r in results if not r.system.startswith("ours") and r.step_s is not None]
    best = min(rivals, default=None)
    ratio = best[0] / ours if best is not None and ours is not None else None
    return {"best_rival": best[1] if best is not None else None, "ratio": ratio}


def line(result: Result) -> str:
    """A result in words."""
    if result.step_s is None:
        return f"{result.system:>14}: {result.note}"
    warm = f", warm {result.warm_s:.3f} s" if result.warm_s is not None else ""
    return (f"{result.system:>14}: {result.step_s * 1e6:10.1f} us   first step {result.cold_s or 0:.3f} s{warm}, "
            f"off by {result.error:.0e}{'; ' + result.note if result.note else ''}")  # fmt: skip
