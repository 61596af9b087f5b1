"""Commands on a target: explain, dump, profile, bisect."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fusegraph.cli.targets import arguments, attempt, compiled


def explain(args: argparse.Namespace) -> None:
    """Print the report of the target."""
    positional, named = arguments(args)
    function = compiled(args)
    explanation = attempt(args, lambda: function.explain(*positional, **named))
    if args.json:
        print(json.dumps(explanation.to_dict(), indent=1))
    elif args.markdown:
        print(explanation.to_markdown())
    else:
        explanation.show()


def dump(args: argparse.Namespace) -> None:
    """Write all stages into a folder; print where the page is."""
    positional, named = arguments(args)
    function = compiled(args)
    if args.profile:
        attempt(args, lambda: function.profile(*positional, **named))
    files = attempt(args, lambda: function.dump(args.out, *positional, **named))
    print(f"{len(files)} files in {args.out}; open {Path(args.out) / 'index.html'}")


def profile(args: argparse.Namespace) -> None:
    """Print a table of kernels, the slowest first; write a trace if asked for."""
    positional, named = arguments(args)
    function = compiled(args)
    made = attempt(args, lambda: function.profile(*positional, steps=args.steps, threads=args.threads, **named))
    if args.trace:
        made.to_chrome_trace(args.trace)
    print(json.dumps(made.to_dict(), indent=1) if args.json else made)
    if args.trace and not args.json:
        print(f"trace: {args.trace} (open it in https://ui.perfetto.dev)")


def bisect(args: argparse.Namespace) -> int:
    """Name the fusion that changes a result; 3 if there is one."""
    from fusegraph.inspect.bisect import bisect as search

    positional, named = arguments(args)
    function = compiled(args)
    found = attempt(args, lambda: search(function, *positional, tolerance=args.tolerance, **named))
    print(found)
    return 3 if found.culprit is not None else 0
