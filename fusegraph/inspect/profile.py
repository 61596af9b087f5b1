"""`profile()`: how long each kernel takes, how far that is from what the machine can do, how long threads wait.

cpu               native code with notes of the clock, compiled for this alone (profile_native.py)
numba, python     the same functions, called one by one with the clock read around each
cuda              events on the GPU around each launch (profile_cuda.py); its roofline is not known here
reference         numpy, operation by operation; an operation counts for the kernel that would compute it

Everything runs on copies of what the step changes: parameters, moments and random counters are as they were.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fusegraph import tree
from fusegraph.errors import OptionError
from fusegraph.inspect.explain import Explanation
from fusegraph.inspect.report import Report
from fusegraph.records import dataclass
from fusegraph.signature import as_argument
from fusegraph.tensor import Tensor

if TYPE_CHECKING:
    from fusegraph.build import Artifact
    from fusegraph.version import Version

Array = np.ndarray[Any, Any]
STEPS, WARM_UP = 30, 3
ARRIVED, BEGUN, ENDED = 0, 1, 2
_IMPOSSIBLE = 1.05  # of what the machine can do


@dataclass(frozen=True)
class Timing:
    """One program's times. stamps: nanoseconds [step, thread, kernel, arrived/begun/ended] since the step began."""

    stamps: Array
    shared: tuple[bool, ...]

    @property
    def threads(self) -> int:
        """How many threads ran."""
        return int(self.stamps.shape[1])

    def kernel_ns(self) -> Array:
        """[step, kernel]: the time that the busiest thread spent in it."""
        busy = self.stamps[..., ENDED] - self.stamps[..., BEGUN]
        return np.where(np.array(self.shared, bool), busy.max(1), busy[:, 0])

    def idle_ns(self) -> Array:
        """[step, kernel]: the time that threads waited before it, added up."""
        return (self.stamps[..., BEGUN] - self.stamps[..., ARRIVED]).sum(1)

    def total_ns(self) -> Array:
        """[step]: from the first note to the last."""
        if not self.stamps.size:  # a program without kernels
            return np.zeros(len(self.stamps))
        return self.stamps.max(axis=(1, 2, 3)) - self.stamps.min(axis=(1, 2, 3))

    def tail_ns(self) -> Array:
        """[step]: the time that threads which were done waited for the last one, added up."""
        ends = self.stamps[..., ENDED].max(2, initial=0.0)
        return (ends.max(1, keepdims=True) - ends).sum(1)

    def typical(self) -> int:
        """The number of the step whose time is the median."""
        return int(np.argsort(self.total_ns(), kind="stable")[len(self.stamps) // 2])


class Profile:
    """Times of a compiled function's kernels. `str()` or `show()` it; `to_dict()`; `to_chrome_trace(path)` for Perfetto.

    explanation: the report with the times in it, as `explain()` would print it.
    """

    def __init__(self, explanation: Explanation, timings: Sequence[Timing]) -> None:
        self.explanation, self.timings = explanation, list(timings)

    def to_dict(self) -> Report:
        """The report as plain data, with `profile` (threads, steps, total and idle time) in each program."""
        return self.explanation.to_dict()

    def show(self) -> None:
        """Print it: as `explain()` does, with the times."""
        self.explanation.show()
        print(self._summary())

    def to_markdown(self) -> str:
        """As Markdown."""
        return self.explanation.to_markdown()

    def to_chrome_trace(self, path: Any = None) -> dict[str, Any]:
        """One step (the one of median time) in the format of Chrome's tracing, which Perfetto opens; written to `path` if given.

        A row a thread: kernels, and waiting. Raises OptionError if the file cannot be written.
        """
        from fusegraph.inspect.profile_trace import chrome_trace

        trace = chrome_trace(self.explanation.programs, self.timings)
        if path is not None:
            try:
                Path(path).write_text(json.dumps(trace), encoding="utf-8")
            except OSError as error:
                raise OptionError(f"cannot write the trace to {path}: {error.strerror or error}") from None
        return trace

    def _summary(self) -> str:
        from fusegraph.inspect.profile_text import summary

        return summary(self.explanation.programs)

    def __str__(self) -> str:
        from fusegraph.inspect.profile_text import text

        return text(self.explanation.programs)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.explanation._repr_html_()


def profile(
    version: Version,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    steps: int = STEPS,
    warm_up: int = WARM_UP,
    threads: int | None = None,
) -> Profile:
    """Time `steps` runs of a version on a call's arguments.

    Raises OptionError for a wrong count, UnsupportedError where there is no clock.
    """
    if steps < 1 or warm_up < 0:
        raise OptionError(
            f"profile needs at least 1 step and no negative warm-up, got steps={steps}, warm_up={warm_up}"
        )
    timings = [time_artifact(version.artifact, copied_inputs(version, args, kwargs), steps, warm_up, threads)]
    if version.backward is not None:
        inputs = backward_inputs(version, copied_inputs(version, args, kwargs))
        timings.append(time_artifact(version.backward, inputs, steps, warm_up, threads))
    return Profile(_explained(version.artifacts, timings), timings)


def copied_inputs(version: Version, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Array]:
    """Copies of all that a call reads: arguments, then what the function has captured."""
    leaves, _ = tree.flatten((args, kwargs), Tensor)
    arguments = [tensor for tensor in map(as_argument, leaves) if isinstance(tensor, Tensor)]
    return [np.array(tensor._value, order="C") for tensor in version.sources(arguments)]


def backward_inputs(version: Version, inputs: list[Array]) -> list[Array]:
    """What the backward program reads: what it is handed of the forward's inputs and outputs, and ones for the seeds.

    Runs the forward program; `inputs` change.
    """
    joint = version.joint
    assert joint is not None
    made = version.artifact.run(inputs)
    kept = [inputs[position] for position in joint.passed] + made[joint.count :]
    return [np.array(a) for a in kept] + [np.ones(made[i].shape, made[i].dtype) for i in joint.roots]


def time_artifact(artifact: Artifact, inputs: list[Array], steps: int, warm_up: int, threads: int | None) -> Timing:
    """Time one program; `inputs` are changed."""
    backend = artifact.options.backend
    if backend == "cuda":
        from fusegraph.inspect.profile_cuda import time_cuda

        stamps = time_cuda(artifact, inputs, steps, warm_up)
        return Timing(stamps, (True,) * stamps.shape[2])
    if backend == "cpu":
        from fusegraph.inspect.profile_native import time_native

        stamps = time_native(artifact, inputs, steps, warm_up, threads)
    else:
        from fusegraph.inspect.profile_python import time_python

        stamps = time_python(artifact, inputs, steps, warm_up)
    return Timing(stamps, tuple(part == "all" for part in artifact.threads))


def _explained(artifacts: Sequence[Artifact], timings: Sequence[Timing]) -> Explanation:
    """The report with times in it, and the share of what the machine can do.

    A kernel that beats the machine shows that a neighbour was busy when it was measured: it is measured again.
    """
    from fusegraph.runtime import calibration

    if any(artifact.options.backend == "cuda" for artifact in artifacts):
        return _timed(artifacts, timings)
    calibration.calibration()  # stored now, so that the report has the floors
    explanation = _timed(artifacts, timings)
    shares = [kernel["share_of_roofline"] for program in explanation.programs for kernel in program["kernels"]]
    if max((share for share in shares if share is not None), default=0.0) > _IMPOSSIBLE:
        calibration.measure_again()
        explanation = _timed(artifacts, timings)
    return explanation


def _timed(artifacts: Sequence[Artifact], timings: Sequence[Timing]) -> Explanation:
    explanation = Explanation(artifacts)
    for program, timing in zip(explanation.programs, timings, strict=True):
        times, idle = np.median(timing.kernel_ns(), 0), np.median(timing.idle_ns(), 0)
        for kernel, time_ns, idle_ns in zip(program["kernels"], times, idle, strict=True):
            kernel |= _figures(kernel, float(time_ns), float(idle_ns))
        program["profile"] = {
            "threads": timing.threads,
            "steps": len(timing.stamps),
            "total_ns": float(np.median(timing.total_ns())),
            "idle_ns": float(np.median(timing.idle_ns().sum(1) + timing.tail_ns())),
        }
    return explanation


def _figures(kernel: Report, time_ns: float, idle_ns: float) -> Report:
    if time_ns <= 0:
        return {"time_ns": 0.0, "idle_ns": idle_ns}
    floor = kernel["floor_ns"]
    return {
        "time_ns": time_ns,
        "idle_ns": idle_ns,
        "gb_s": (kernel["bytes_read"] + kernel["bytes_written"]) / time_ns,
        "gflop_s": kernel["flops"] / time_ns,
        "share_of_roofline": None if floor is None else floor / time_ns,
    }
