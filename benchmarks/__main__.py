"""Speed beside other frameworks, in one command.

python -m benchmarks                                   ours, torch, torch.compile and JAX on everything
python -m benchmarks --quick                           one size of each workload, short rounds
python -m benchmarks --systems ours,jax --workloads mlp,lenet-64 --threads 1
python -m benchmarks --write docs/benchmarks.md --json out/benchmarks.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Settings, run
from benchmarks.report import markdown
from benchmarks.roofline import as_json, measure
from benchmarks.systems import DEFAULT_SYSTEMS, SYSTEMS
from benchmarks.systems.cases import CASES
from fusegraph.runtime.threads import available_cores


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    add("--systems", default=",".join(DEFAULT_SYSTEMS), help=f"of {', '.join(SYSTEMS)}; 'all' (default: %(default)s)")
    add("--workloads", default="", help=f"names, or the beginnings of names, of {', '.join(CASES)} (default: all)")
    add("--threads", type=int, default=available_cores(), help="cores that each system may use (default: %(default)s)")
    add("--quick", action="store_true", help="one size of each workload, 3 rounds of 0.1 s")
    add("--rounds", type=int, help="rounds of each system (default: 9, quick 3)")
    add("--seconds", type=float, help="of a round (default: 0.3, quick 0.1)")
    add("--no-warm", action="store_true", help="do not start everything a second time for warm starts")
    add("--no-roofline", action="store_true", help="do not measure what the machine can do at most")
    add("--json", type=Path, metavar="FILE", help="write all figures")
    add("--write", type=Path, metavar="FILE", help="write the tables as Markdown")
    return result


def settings_of(options: argparse.Namespace) -> Settings:
    """Settings from the options. Exits with a message for a name that does not exist."""
    systems = tuple(SYSTEMS) if options.systems == "all" else tuple(filter(None, options.systems.split(",")))
    for name in systems:
        if name not in SYSTEMS:
            sys.exit(f"there is no system {name!r}; there are: {', '.join(SYSTEMS)}, all")
    cases = [name for name, case in CASES.items() if case.quick or not options.quick]
    if options.workloads:
        cases = []
        for asked in options.workloads.split(","):
            found = [name for name in CASES if name == asked] or [name for name in CASES if name.startswith(asked)]
            if not found:
                sys.exit(f"there is no workload {asked!r}; there are: {', '.join(CASES)}")
            cases += [name for name in found if CASES[name].quick or not options.quick or name == asked]
    if not 1 <= options.threads <= available_cores():
        sys.exit(f"--threads must be from 1 to {available_cores()}, the cores of this process, not {options.threads}")
    rounds, seconds = (3, 0.1) if options.quick else (9, 0.3)
    return Settings(systems, tuple(dict.fromkeys(cases)), options.threads, options.rounds or rounds,
                    options.seconds or seconds, not options.no_warm)  # fmt: skip


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu(), "cores": available_cores(), "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(), "numpy": np.__version__,
    }  # fmt: skip


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run, print the tables, write what was asked for; gives the result."""
    options = parser().parse_args(arguments)
    settings = settings_of(options)
    about = machine() | {"load_before": _load()}
    roof = None
    if not options.no_roofline:
        measured = measure(settings.threads)
        roof = as_json(measured) | {"sentence": measured.sentence()}
    result = run(settings, lambda text: print(text, file=sys.stderr, flush=True))
    about["load_after"] = _load()
    date = datetime.datetime.now().astimezone().isoformat(timespec="minutes")
    result = {"date": date, "machine": about, "roofline": roof, **result}
    page = markdown(result)
    print(page)
    for path, text in ((options.json, json.dumps(result, indent=1) + "\n"), (options.write, page)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return result


if __name__ == "__main__":
    main()
