"""One system on one workload, in a process of its own, driven over its pipes: a JSON object a line, in and out.

    python -m benchmarks.systems.worker '{"system": "jax", "case": "mlp-64", "threads": 2, "dtype": "float32"}'

What the process says first: {"version", "import_s"}. Then it answers orders:
    {"do": "first", "save": PATH, "steps": n}   prepare, run n steps, save results and weights; seconds of the first step
    {"do": "round", "seconds": s}               warm up, then steps for about s seconds; seconds a step
    {"do": "memory"}                            bytes that the process has grown by at its peak, over what it had before "first"
An order that fails is answered with {"error": text}. The process ends when its input does.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import dataclasses  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, TextIO  # noqa: E402


def bind(threads: int) -> None:
    """Bind the process to `threads` of its cores: what every system takes its number of threads from."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:threads])


class Memory:
    """Growth of the resident memory, from Linux's /proc; None elsewhere."""

    def __init__(self) -> None:
        self.before: int | None = None

    def start(self) -> None:
        """Count from here: the peak is set back to what is resident now."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return  # not Linux, or not allowed: the peak of the past would be counted
        self.before = self._status("VmRSS")

    def growth(self) -> int | None:
        """Bytes at the peak since `start`, beyond what there was."""
        peak = self._status("VmHWM")
        return None if self.before is None or peak is None else max(0, peak - self.before)

    @staticmethod
    def _status(name: str) -> int | None:
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), None)


class Worker:
    """Answers the orders. `spec` is the JSON object of the command line."""

    def __init__(self, spec: dict[str, Any]) -> None:
        from benchmarks.systems import SYSTEMS
        from benchmarks.systems.cases import CASES

        self.spec, self.system = spec, SYSTEMS[spec["system"]]
        self.case = dataclasses.replace(CASES[spec["case"]], **spec.get("changes", {}))
        self.module = importlib.import_module(f"benchmarks.systems.{self.system.module}")
        self.import_seconds = time.perf_counter() - STARTED
        self.memory = Memory()
        self.number = 0

    def hello(self) -> dict[str, Any]:
        """What is said first."""
        return {"version": self.module.version(), "import_s": self.import_seconds}

    def first(self, order: dict[str, Any]) -> dict[str, Any]:
        """Prepare and run the first steps, from the same weights and data in all systems."""
        import numpy as np

        weights, batches = self.case.parameters(), self.case.batches()
        self.memory.start()
        start = time.perf_counter()
        spec = self.spec
        self.session = self.module.prepare(
            self.case, self.system.variant, spec["threads"], spec["dtype"], weights, batches
        )
        result = self._step()
        self.session.wait(result)
        seconds = time.perf_counter() - start
        found = {f"0/{i}": value for i, value in enumerate(self.session.values(result))}
        for step in range(1, order["steps"]):
            found |= {f"{step}/{i}": value for i, value in enumerate(self.session.values(self._step()))}
        if order.get("save"):
            after = {f"weight/{name}": value for name, value in self.session.parameters().items()}
            np.savez(order["save"], **found, **after)
        return {"first_s": seconds}

    def round(self, order: dict[str, Any]) -> dict[str, Any]:
        """Time steps for about the given seconds, after a fifth of that untimed."""
        self._run_for(order["seconds"] / 5, 2)
        steps, seconds = self._run_for(order["seconds"], 3)
        return {"step_s": seconds / steps, "steps": steps}

    def _run_for(self, seconds: float, least: int) -> tuple[int, float]:
        """Steps and seconds; the clock is read seldom where steps are short."""
        start = time.perf_counter()
        self.session.wait(self._step())
        block = max(1, min(1000, int(seconds / 10 / max(1e-7, time.perf_counter() - start))))
        steps, start = 0, time.perf_counter()
        while True:
            for _ in range(block):
                result = self._step()
            steps += block
            if steps >= least and time.perf_counter() - start >= seconds:
                break
        self.session.wait(result)
        return steps, time.perf_counter() - start

    def _step(self) -> Any:
        self.number += 1
        return self.session.step(self.number - 1)

    def memory_growth(self, order: dict[str, Any]) -> dict[str, Any]:
        """Bytes, or null where they are not known."""
        return {"peak_bytes": self.memory.growth()}

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """The answer to an order; an error is one too."""
        actions = {"first": self.first, "round": self.round, "memory": self.memory_growth}
        try:
            return actions[order["do"]](order)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}


def main(text: str, orders: TextIO, answers: TextIO) -> None:
    """Say hello, then answer one order after the other."""

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    spec = json.loads(text)
    bind(spec["threads"])
    try:
        worker = Worker(spec)
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return
    say(worker.hello())
    for line in orders:
        say(worker.answer(json.loads(line)))


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")  # what a framework prints must not come between the answers
    os.dup2(2, 1)
    main(sys.argv[1], sys.stdin, channel)
