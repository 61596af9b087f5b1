"""`compile(autotune="on")`: programs that differ in one choice of fusion are timed on the first calls; the fastest is kept.

A function's program is compiled as always, and again without one or another choice (fusegraph.passes.choices), without some
passes, and unfused; what gives the same program is left out. First the default program settles on its number of threads. Then
each call runs one of them, by turns: what a call changes (parameters, random counters) lies outside of the programs, so that it
advances once a call, whichever runs. After some rounds the fastest is kept, unless the default is almost as fast. The choice is
stored beside the object code, by graph, machine and number of threads: another process compiles or loads that program alone.
"""

from __future__ import annotations

import json
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fusegraph import events
from fusegraph.cache_key import cache_key
from fusegraph.passes.choices import CHOICES
from fusegraph.records import dataclass, field
from fusegraph.runtime.executable import NativeStep
from fusegraph.runtime.threads import ThreadSetting, asked_threads, get_num_threads

if TYPE_CHECKING:
    from fusegraph.build import Artifact, Options

Array = np.ndarray[Any, Any]
DEFAULT = "default"
PASSES = ("sparse_cotangents", "split_reduce", "pool_masks")  # that are not clear gains everywhere
NOT_FUSION = ("rereads", "blocks", "stretches")  # choices that leave the kernels as they are
WARM_UP = 2  # calls of each program before the first round
ROUNDS = 7
BLOCK = 3  # calls of a program in a round; the first is not counted: what it needs has been evicted by the others
HOPELESS, HOPELESS_ROUNDS = 1.5, 2  # a program that takes so much longer than the fastest, after so many rounds, is out
MARGIN = 0.97  # the default is left only for a program that takes less than this share of its time


def variants(options: Options) -> dict[str, dict[str, Any]]:
    """Options that differ from those given, by the name of the variant; the default comes first, without any.

    With fuse="require" only those that leave the kernels as they are.
    """
    names = NOT_FUSION if options.fuse == "require" else (*CHOICES, *PASSES)
    found: dict[str, dict[str, Any]] = {DEFAULT: {}}
    if options.fuse is True:
        found["unfused"] = {"fuse": False}
    if options.fuse:
        new = (name for name in names if name not in options.disable)
        found |= {f"without {name}": {"disable": (*options.disable, name)} for name in new}
    return found


@dataclass
class Tuned:
    """What was tried. chosen: "" while it is being tried; seconds: of a call, by variant; stored: whether it was known already.

    threads: how many ran.
    """

    threads: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    chosen: str = ""
    stored: bool = False

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {name: getattr(self, name) for name in ("threads", "seconds", "chosen", "stored")}

    def sentence(self) -> str:
        """In words."""
        if not self.chosen:
            return "autotune: programs are being tried by the calls"
        if not self.seconds:
            return "autotune: nothing to choose, all programs are the same"
        times = ", ".join(f"{name} {1e6 * time:.1f} us" for name, time in sorted(self.seconds.items(), key=_by_time))
        known = ", as stored" if self.stored else ""
        return f"autotune: {self.chosen} was the fastest on {self.threads} thread(s){known} ({times})"


def _by_time(item: tuple[str, float]) -> float:
    return item[1]


def build_tuned(artifact: Artifact) -> Artifact:
    """Give the artifact its native code: that of the stored choice; else programs that are tried by the first calls."""
    from fusegraph.build import Artifact, build_native

    options = artifact.options.changed(autotune="off")
    names = variants(options)

    def variant(name: str) -> Artifact:
        return Artifact(artifact.source, options.changed(**names[name]), artifact.executable, origin=artifact.origin)

    known = _stored(artifact)
    if known is not None and known.chosen in names:
        artifact.become(build_native(variant(known.chosen)), known)
        return artifact
    default = build_native(variant(DEFAULT))
    programs = {DEFAULT: default}
    seen = {default.code_hash}
    for name in list(names)[1:]:
        other = variant(name)
        if _may_differ(default, other, name):
            build_native(other)
            if other.code_hash not in seen:
                seen.add(other.code_hash)
                programs[name] = other
    artifact.become(default, Tuned(chosen="" if len(programs) > 1 else DEFAULT))
    if len(programs) > 1:
        artifact.executable = Tuner(artifact, programs)
    return artifact


def _may_differ(default: Artifact, other: Artifact, name: str) -> bool:
    """Whether the programs can differ: without generating code, where that shows."""
    from fusegraph.codegen.cpu.batch_blocks import batch_blocked
    from fusegraph.ir.loops_text import print_program
    from fusegraph.runtime.llvm import target

    program, _ = default.fused
    if name == "without stretches":
        return default.from_cache or bool(default.stretches)
    if name == "without blocks":
        return not default.options.exact and batch_blocked(program, target().vector_bits) is not program
    return print_program(program) != print_program(other.fused[0])


# -- what is remembered -------------------------------------------------------------------------------------------------------


def _place(artifact: Artifact) -> tuple[Any, str]:
    asked = "asked for" if asked_threads() is not None else "at most"
    return cache_key(artifact.source, artifact.options, f"autotune, {asked} {get_num_threads()} threads")


def _stored(artifact: Artifact) -> Tuned | None:
    cache, key = _place(artifact)
    entry = cache.get(key)
    if entry is None:
        return None
    try:
        data = json.loads(entry["choice.json"])
        seconds = {str(name): float(value) for name, value in data["seconds"].items()}
        return Tuned(int(data["threads"]), seconds, str(data["chosen"]), stored=True)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


# -- trying -------------------------------------------------------------------------------------------------------------------


class _Timed:
    """Stands in for a step's choice of threads while programs are tried: always so many, and timed."""

    def __init__(self, step: NativeStep, threads: int) -> None:
        step.workspace_for(threads)
        self._bound, self.threads, self.seconds = step.bound, threads, 0.0

    def call(self, table_ptr: int) -> None:
        """Run the step once."""
        start = time.perf_counter()
        self._bound(table_ptr, self.threads)
        self.seconds = time.perf_counter() - start


class _Candidate:
    """A program that is tried."""

    def __init__(self, name: str, artifact: Artifact) -> None:
        assert isinstance(artifact.executable, NativeStep)
        self.name, self.artifact, self.step = name, artifact, artifact.executable
        self.choice = self.step.choice  # its own, put back in the end
        self.times: list[float] = []

    @property
    def seconds(self) -> float:
        """The lower quartile: what disturbs a few calls does not count."""
        return sorted(self.times)[len(self.times) // 4]


class Tuner:
    """Runs one of several programs at each call, and makes the artifact the fastest of them in the end."""

    def __init__(self, artifact: Artifact, programs: dict[str, Artifact]) -> None:
        self._artifact = artifact
        self._candidates = [_Candidate(name, program) for name, program in programs.items()]
        self._winner: NativeStep | None = None
        self._lock = threading.Lock()
        self._pending: tuple[_Candidate, bool] | None = None  # a turn whose call has raised an error
        self._turns = self._schedule()
        self._version = ThreadSetting.version
        _tuners.add(self)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run the program whose turn it is. As `NativeStep.run`; a call that raises is no turn."""
        with self._lock:
            if self._winner is None:
                return self._turn(inputs)
        return self._winner.run(inputs)

    def _turn(self, inputs: Sequence[Array]) -> list[Array]:
        if self._version != ThreadSetting.version:  # what was measured is of another number of threads
            self._version, self._turns, self._pending = ThreadSetting.version, self._schedule(), None
        self._pending = candidate, counts = self._pending or next(self._turns)
        results = candidate.step.run(inputs)
        self._pending = None
        if counts and isinstance(timed := candidate.step.choice, _Timed):
            candidate.times.append(timed.seconds)
        if self._finished:
            self._settle()
        return results

    def _schedule(self) -> Iterator[tuple[_Candidate, bool]]:
        """Whose turn it is, and whether that counts. What is measured begins anew."""
        self._finished = False
        default = self._candidates[0]
        for candidate in self._candidates:
            candidate.times, candidate.step.choice = [], candidate.choice
        return self._all_turns(default)

    def _all_turns(self, default: _Candidate) -> Iterator[tuple[_Candidate, bool]]:
        while not default.choice.settled:
            yield default, False
        self._threads = default.choice.threads
        for candidate in self._candidates:
            candidate.step.choice = _Timed(candidate.step, self._threads)  # type: ignore[assignment]
        for candidate in self._candidates:
            yield from [(candidate, False)] * WARM_UP
        tried = self._candidates
        for number in range(ROUNDS):
            for candidate in tried:
                for call in range(BLOCK):
                    self._finished = number == ROUNDS - 1 and candidate is tried[-1] and call == BLOCK - 1
                    yield candidate, call > 0
            if number + 1 >= HOPELESS_ROUNDS:
                least = min(candidate.seconds for candidate in tried)
                tried = [c for c in tried if c is default or c.seconds <= HOPELESS * least]

    def _settle(self) -> None:
        """Make the artifact the fastest program, and store which one that is."""
        default = self._candidates[0]
        best = min(self._candidates, key=lambda candidate: candidate.seconds)
        best = best if best.seconds < MARGIN * default.seconds else default
        for candidate in self._candidates:
            candidate.step.choice = candidate.choice
        made = Tuned(self._threads, {c.name: c.seconds for c in self._candidates}, best.name)
        cache, key = _place(self._artifact)
        cache.put(key, {"choice.json": json.dumps(made.to_json()).encode()})
        self._winner = best.step
        self._artifact.become(best.artifact, made)
        events.event("kernels", f"{self._artifact.source.name}: {made.sentence()}")
        self._candidates, self._turns = [best], iter(())  # the others' memory is free

    def _after_fork(self) -> None:
        self._lock = threading.Lock()  # a thread that the child does not have may have held it


_tuners: weakref.WeakSet[Tuner] = weakref.WeakSet()


def _after_fork() -> None:
    for tuner in list(_tuners):
        tuner._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
