"""Is it right on the GPU? Every primitive and every model beside the numpy reference, whole trainings, compute-sanitizer."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import fusegraph as fg
from benchmarks.gpu_report import Section
from benchmarks.models import MODELS, make_step
from fusegraph.ir import PRIMITIVES

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-4  # of the largest value: sums of float32 in another order, after a few steps
A_SHEET = 12  # primitives that are compiled as one step
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


def primitives(names: Sequence[str] | None = None) -> Section:
    """Every sample of the table of primitives, alone and fused."""
    from tests.op_sheets import sheet_of, table_cases

    chosen = sorted(names or PRIMITIVES)
    section = Section("Primitives", ("kernels", "samples", "wrong"))
    cases = [case for case in table_cases("float32") if case.name in chosen]
    for fuse in (False, True):
        wrong: list[str] = []
        with np.errstate(all="ignore"):
            for first in range(0, len(chosen), A_SHEET):
                members = set(chosen[first : first + A_SHEET])
                wrong += sheet_of([case for case in cases if case.name in members]).mismatches("cuda", fuse)
        how = "fused" if fuse else "one a primitive"
        section.rows.append((how, len(cases), len(wrong)))
        section.failures += [f"{how}: {text}" for text in wrong]
    section.notes.append(f"{len(chosen)} primitives, against numpy, to 1e-5 of the largest value.")
    return section


def model_steps(names: Sequence[str], batch: int | None = None, steps: int = 3) -> Section:
    """Forward, backward and update of the models: losses and all parameters after some steps."""
    section = Section("Training steps against the numpy reference", ("model", "batch", "largest difference"))
    for name in names:
        section.rows.append((name, batch or MODELS[name].batch, error := _step_error(name, batch, steps)))
        if not error <= TOLERANCE:
            section.failures.append(f"{name}: parameters or losses differ by {error:.3g} of the largest value")
    section.notes.append(f"{steps} steps of Adam; the difference is relative to the largest value of an array.")
    return section


def _step_error(name: str, batch: int | None, steps: int) -> float:
    found = []
    for backend in ("reference", "cuda"):
        training = make_step(name, batch)
        step = fg.compile(training.step, backend=backend)
        losses = [step(*arrays).item() for arrays in training.batches(steps)]
        found.append([np.array(losses), *(np.array(p.detach().numpy()) for p in training.model.parameters())])
    errors = [np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-3) for wanted, got in zip(*found, strict=True)]
    return float(np.max(errors))  # a NaN stays one


def trainings(limit: int | None = None, epochs: int | None = None) -> Section:
    """The examples, from their data to the accuracy on what was held out."""
    section = Section("Whole trainings", ("example", "model", "steps", "median step, ms", "accuracy"))
    try:
        from examples import mnist, sentiment
    except ImportError as error:
        section.skipped = (
            f"the examples need packages that are not installed ({error}): pip install 'fusegraph[examples]'"
        )
        return section
    # Least accuracies: what the examples reach on the CPU, less a margin for another order of sums.
    runs: tuple[tuple[str, Callable[..., object], str, float], ...] = (
        ("mnist", mnist.main, "minitorch", 0.94),
        ("mnist", mnist.main, "lenet", 0.95),
        ("sentiment", sentiment.main, "cnn", 0.60),
        ("sentiment", sentiment.main, "bag", 0.60),
    )
    for example, main, model, least in runs:
        options = ["--backend", "cuda", "--model", model]
        options += ["--limit", str(limit)] if limit else []
        options += ["--epochs", str(epochs)] if epochs else []
        with TemporaryDirectory() as folder:
            history = main([*options, "--out", folder])
        accuracy, times = history.accuracy, history.step_seconds  # type: ignore[attr-defined]
        section.rows.append((example, model, len(times), 1e3 * float(np.median(times)), f"{accuracy:.2%}"))
        if not limit and accuracy < least:
            section.failures.append(f"{example} {model}: accuracy {accuracy:.2%}, expected at least {least:.0%}")
    return section


def sanitizer(arguments: Sequence[str]) -> Section:
    """The numerics once more under each tool of compute-sanitizer. `arguments` for this program."""
    section = Section("compute-sanitizer", ("tool", "errors"))
    program = shutil.which("compute-sanitizer")
    if program is None:
        section.skipped = "compute-sanitizer is not installed (it comes with the CUDA toolkit)"
        return section
    for tool in TOOLS:
        command = [program, "--tool", tool, sys.executable, "-m", "benchmarks.gpu", "--only", "numerics", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        found = re.search(r"ERROR SUMMARY: (\d+) error", done.stdout + done.stderr)
        section.rows.append((tool, int(found.group(1)) if found else None))
        if done.returncode or found is None or int(found.group(1)):
            last = "; ".join((done.stdout + done.stderr).strip().splitlines()[-3:])
            section.failures.append(f"{tool}: exit status {done.returncode}: {last}")
    return section
