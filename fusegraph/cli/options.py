"""The parser of the command line: commands and their options."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from typing import Any

from fusegraph.cli import inputs, targets

EXAMPLE = """examples:
  python -m fusegraph explain examples.mnist:step --input 64x1x28x28:float32 --input 64:int64:0..9
  python -m fusegraph dump examples.mnist:Net --input 64x1x28x28 --out out/
  python -m fusegraph profile examples.mnist:step --input 64x1x28x28 --input 64:int64:0..9 --trace trace.json
  python -m fusegraph doctor

exit codes: 0 all went well, 1 an error told in one line, 2 wrong usage, 3 bisect has found a fusion that changes a result"""


def parser() -> argparse.ArgumentParser:
    """All commands."""
    import fusegraph
    from fusegraph.cli import bench, cache, commands, doctor

    top = argparse.ArgumentParser(
        prog="fusegraph",
        description="Look inside of compiled models: what was fused, why not, where the time goes.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"fusegraph {fusegraph.__version__}")
    chosen = top.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")

    made = _on_target(chosen, "explain", commands.explain, "kernels, what was fused into each, what was not and why")
    form = made.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the report as JSON")
    form.add_argument("--markdown", action="store_true", help="the report as Markdown")

    made = _on_target(chosen, "dump", commands.dump, "every stage as a file, and one page that shows them (index.html)")
    made.add_argument("--out", "-o", default="fusegraph-dump", metavar="FOLDER", help="where (default: %(default)s)")
    made.add_argument("--profile", action="store_true", help="measure the kernels too, for the page")

    made = _on_target(chosen, "profile", commands.profile, "time of every kernel, beside what the machine can do")
    made.add_argument("--steps", type=int, default=30, metavar="N", help="measured runs (default: %(default)s)")
    made.add_argument("--trace", metavar="FILE", help="write a trace that Perfetto and chrome://tracing open")
    made.add_argument("--json", action="store_true", help="the report, with times, as JSON")

    made = _on_target(chosen, "bench", bench.bench, "time of whole calls, beside other ways to run the same")
    made.add_argument("--calls", type=int, default=100, metavar="N", help="measured calls (default: %(default)s)")
    made.add_argument("--against", action="append", choices=bench.WAYS, metavar="WAY", default=None,
                      help=f"also: {', '.join(bench.WAYS)} (may be repeated)")  # fmt: skip
    made.add_argument("--json", action="store_true", help="the times as JSON")

    made = _on_target(chosen, "bisect", commands.bisect, "find the fusion that changes a result")
    made.add_argument("--tolerance", type=float, default=None, metavar="T",
                      help="largest difference that is rounding, relative to the largest value (default: by dtype)")  # fmt: skip

    made = _command(chosen, "cache", cache.cache, "the disk cache: where, how large; or empty it")
    made.add_argument("action", choices=("info", "clear"))
    made = _command(
        chosen, "doctor", doctor.doctor, "versions, CPU, threads, CUDA, cache: what runs here and what does not"
    )
    made.add_argument("--calibrate", action="store_true", help="measure this machine's limits again (a second)")
    return top


def _command(chosen: Any, name: str, run: Callable[..., Any], text: str, epilog: str | None = None) -> Any:
    made = chosen.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--traceback", action="store_true", help="show an error's whole traceback")
    made.set_defaults(run=run)
    return made


def _on_target(chosen: Any, name: str, run: Callable[..., Any], text: str) -> Any:
    """A command on a target with inputs."""
    notes = "\n\n".join(textwrap.fill(part, 100) for part in (targets.HELP, inputs.HELP))
    made = _command(chosen, name, run, text, notes)
    made.add_argument("target", metavar="MODULE:NAME", help="what to compile")
    made.add_argument(
        "--input", "-i", action="append", metavar="SHAPE[:DTYPE[:LOW..HIGH]]", help="one a call's argument"
    )
    made.add_argument("--call", action="store_true", help="the target is a function that makes what to compile")
    made.add_argument(
        "--backend", choices=("cpu", "numba", "python", "reference", "cuda"), help="default: the target's, or cpu"
    )
    made.add_argument(
        "--target", dest="cuda_target", metavar="SM", help="backend cuda: compile for this GPU, sm_90 for example"
    )
    made.add_argument(
        "--precision",
        metavar="P",
        help="backend cuda: float32, tf32 (products on tensor cores), float16 or bfloat16 (storage of their operands)",
    )
    made.add_argument("--threads", type=int, metavar="N", help="run on exactly N threads")
    made.add_argument("--exact", action="store_true", help="library functions and strict floating point")
    made.add_argument("--no-fuse", action="store_true", help="a kernel for every value that is kept")
    made.add_argument("--fuse-limit", type=int, metavar="N", help="only the first N fusions")
    made.add_argument("--disable", action="append", metavar="PASS", help="leave out a pass (may be repeated)")
    made.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of weights, dropout and inputs (default: %(default)s)"
    )
    return made
