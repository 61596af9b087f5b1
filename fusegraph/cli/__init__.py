"""The command line: `python -m fusegraph COMMAND` (or `fusegraph COMMAND`) on functions and modules by their name.

Exit codes: 0 all went well; 1 an error of the target, its inputs or an option's value, told in one line; 2 wrong usage; 3
`bisect` has found a fusion that changes a result.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from fusegraph.cli.errors import UserError, one_line
from fusegraph.cli.options import parser
from fusegraph.errors import FusegraphError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives its exit code. `argv`: the arguments (those of the process if None)."""
    args = parser().parse_args(argv)
    sys.path[:0] = [os.getcwd()] if os.getcwd() not in sys.path and "" not in sys.path else []
    try:
        return int(args.run(args) or 0)
    except (UserError, FusegraphError) as error:
        if args.traceback:
            raise
        print(f"fusegraph: error: {one_line(error)}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
