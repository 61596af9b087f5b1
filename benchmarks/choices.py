"""Whether fusion pays on every workload: our program beside the unfused one, and beside programs without one of its choices.

    python -m benchmarks.choices [--cases mlp-64,...] [--threads 2] [--seconds 0.3] [--rounds 7] [--json FILE] [--markdown FILE]

All programs of a workload run in one process, on weights of their own, in interleaved rounds: the figure is the median over the
rounds of a round's fastest block. Programs whose machine code is that of the default are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import fusegraph as fg
from benchmarks.systems import Session, ours
from benchmarks.systems.cases import CASES, Case
from fusegraph.passes.choices import CHOICES

PASSES = ("sparse_cotangents", "split_reduce", "pool_masks")  # that are not clear gains everywhere
BLOCKS = 5  # timed blocks of a round; the fastest counts
ALTERNATES: dict[str, dict[str, Any]] = {
    "unfused": {"fuse": False},
    **{f"without {name}": {"disable": (name,)} for name in (*CHOICES, *PASSES)},
}


@dataclass
class Row:
    """A workload's times: seconds a step of the default program, and of the others that differ from it."""

    case: str
    default: float
    others: dict[str, float]

    @property
    def ratios(self) -> dict[str, float]:
        """Time of each other program over that of the default: below 1 the default is beaten."""
        return {name: seconds / self.default for name, seconds in self.others.items()}


def prepared(case: Case, threads: int, **options: Any) -> tuple[Session, Callable[[], int]]:
    """A session of our program with these options, and what tells its machine code from another's once it has run."""
    made: list[Any] = []
    compile_ = fg.compile

    def recording(*args: Any, **kwargs: Any) -> Any:
        made.append(compile_(*args, **kwargs))
        return made[-1]

    fg.compile = recording
    try:
        session = ours.prepare(case, "compiled", threads, "float32", case.parameters(), case.batches(), **options)
    finally:
        fg.compile = compile_
    return session, lambda: made[0].compiled_for().artifact.code_hash


def measured(case: Case, threads: int, rounds: int, seconds: float) -> Row:
    """Times of all programs of a workload, in `rounds` rounds of about `seconds` for each program."""
    sessions: dict[str, Session] = {}
    seen = set()
    for name, options in {"default": {}, **ALTERNATES}.items():
        session, code = prepared(case, threads, **options)
        session.step(0)
        if code() not in seen:
            seen.add(code())
            sessions[name] = session
    steps = {name: max(1, int(seconds / BLOCKS / _block(session, 3))) for name, session in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            session.step(0)  # what the others have evicted
            times[name].append(min(_block(session, steps[name]) for _ in range(BLOCKS)))
    figures = {name: median(rounds) for name, rounds in times.items()}
    return Row(case.name, figures.pop("default"), figures)


def _block(session: Session, steps: int) -> float:
    """Seconds a step."""
    start = time.perf_counter()
    for number in range(steps):
        result = session.step(number)
    session.wait(result)
    return (time.perf_counter() - start) / steps


def table(rows: Sequence[Row], threads: int) -> str:
    """As Markdown: times of each other program over those of the default."""
    names = [name for name in ALTERNATES if any(name in row.others for row in rows)]
    lines = [
        f"| workload, {threads} thread(s) | us a step | {' | '.join(names)} |",
        "| --- | ---: |" + " ---: |" * len(names),
    ]
    for row in rows:
        cells = [f"{row.ratios[name]:.2f}" if name in row.ratios else "" for name in names]
        lines.append(f"| {row.case} | {1e6 * row.default:,.1f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Measure, print the table as it grows, write files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choices", description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", default=",".join(CASES), help="names, comma separated (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.1, help="of a round, for each program")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args(arguments)
    fg.set_num_threads(given.threads)
    rows: list[Row] = []
    for name in given.cases.split(","):
        rows.append(measured(CASES[name], given.threads, given.rounds, given.seconds))
        print(table(rows[-1:], given.threads), flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if given.markdown:
        given.markdown.write_text(table(rows, given.threads))
    print(table(rows, given.threads))


if __name__ == "__main__":
    main(sys.argv[1:])
