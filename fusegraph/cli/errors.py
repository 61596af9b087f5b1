"""Errors of the command line's user: told in one line."""

from __future__ import annotations

import traceback


class UserError(Exception):
    """What is wrong with a target, an input or an option."""


def one_line(error: BaseException) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def raised_at(error: BaseException) -> str:
    """What was raised, and where: the last line of the user's program in its traceback."""
    from fusegraph.ir.location import is_users

    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {one_line(error)}{where}"
