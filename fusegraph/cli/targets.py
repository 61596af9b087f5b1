"""`package.module:name`: finding what a command is about, and compiling it."""

from __future__ import annotations

import argparse
import importlib
import inspect
from typing import Any

from fusegraph.cli.errors import UserError, raised_at
from fusegraph.cli.inputs import make_inputs
from fusegraph.compiler import Compiled, compile
from fusegraph.errors import FusegraphError
from fusegraph.nn.module import Module

HELP = """A target is MODULE:NAME, for example examples.mnist:step: a compiled function, a function, a module (nn.Module) or its class (made
without arguments). With --call it is a function without arguments that gives one of these. MODULE is imported from
the current folder or from what is installed."""


def find(text: str, call: bool = False) -> Any:
    """The object that a target names. Raises UserError if there is none."""
    module_name, colon, path = text.partition(":")
    if not colon or not path or not module_name:
        raise UserError(f"{text}: a target is MODULE:NAME, for example examples.mnist:step")
    found = _module(module_name)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise UserError(f"{text}: {module_name} has no {name!r}{_near(found, name)}") from None
        except Exception as error:
            raise UserError(f"{text}: making {name!r} failed: {raised_at(error)}") from error
    if call or (inspect.isclass(found) and issubclass(found, Module)):
        found = _called(text, found)
    if not callable(found):
        raise UserError(f"{text} is {type(found).__name__}, not a function, a module or a compiled one of these")
    return found


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(missing + "."):
            raise UserError(f"there is no module {name!r}, neither here nor installed") from None
        raise UserError(f"{name} needs {missing!r}, which is not installed") from None
    except Exception as error:
        raise UserError(f"importing {name} failed: {raised_at(error)}") from error


def _near(holder: Any, name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, [other for other in dir(holder) if not other.startswith("_")], 3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _called(text: str, maker: Any) -> Any:
    if not callable(maker):
        raise UserError(f"{text} cannot be called (--call)")
    needed = [
        parameter.name
        for parameter in inspect.signature(maker).parameters.values()
        if parameter.default is parameter.empty and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]  # fmt: skip
    if needed:
        raise UserError(
            f"{text} needs arguments ({', '.join(needed)}): name a function without arguments that makes it, with --call"
        )
    try:
        return maker()
    except Exception as error:
        raise UserError(f"calling {text} failed: {raised_at(error)}") from error


def original(args: argparse.Namespace) -> Any:
    """The function or module behind the target, not compiled."""
    found = find(args.target, args.call)
    return found._function if isinstance(found, Compiled) else found


def compiled(args: argparse.Namespace, **more: Any) -> Compiled:
    """The target, compiled with the options of the command line; as it is if it is compiled and no option was given."""
    found = find(args.target, args.call)
    given = {
        "backend": args.backend,
        "exact": args.exact or None,
        "fuse": False if args.no_fuse else None,
        "fuse_limit": args.fuse_limit,
        "disable": args.disable,
        "target": args.cuda_target,
        "precision": args.precision,
    }
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    options |= more
    if isinstance(found, Compiled):
        return found if not options else Compiled(found._function, found._options.changed(**options))
    made = compile(found, **options)
    assert isinstance(made, Compiled)
    return made


def arguments(args: argparse.Namespace) -> tuple[list[Any], dict[str, Any]]:
    """What the target is called with. Settles the seed and the number of threads too."""
    import fusegraph

    fusegraph.manual_seed(args.seed)
    if args.threads is not None:
        fusegraph.set_num_threads(args.threads)
    return make_inputs(args.input or [], args.seed)


def attempt(args: argparse.Namespace, action: Any) -> Any:
    """`action()`; what the target itself raises becomes a UserError that names its line."""
    try:
        return action()
    except (FusegraphError, UserError):
        raise
    except Exception as error:
        given = ", ".join(args.input or []) or "no --input"
        raise UserError(f"{args.target} failed on {given}: {raised_at(error)} (--traceback shows all)") from error
