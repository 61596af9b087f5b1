"""`doctor`: what runs on this machine, and what is missing for the rest."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys

import fusegraph
from fusegraph.cli.cache import state
from fusegraph.runtime import calibration, llvm
from fusegraph.runtime.cache import DiskCache
from fusegraph.runtime.threads import asked_threads, available_cores, get_num_threads

PACKAGES = ("numpy", "llvmlite", "numba", "networkx", "numba-cuda", "rich")
WIDEST = ("avx512f", "avx2", "fma", "avx", "sse4.2", "neon", "sve")


def doctor(args: argparse.Namespace) -> None:
    """Print a line for each thing that matters."""
    if args.calibrate:
        calibration.measure_again()
    for name, text in lines():
        print(f"{name:<12} {text}")


def lines() -> list[tuple[str, str]]:
    """(what, its state) of everything."""
    host = llvm.target()
    known = calibration.stored()
    return [
        ("fusegraph", f"{fusegraph.__version__}, Python {platform.python_version()}, {sys.platform} {platform.machine()}"),
        ("packages", ", ".join(f"{name} {_version(name)}" for name in PACKAGES)),
        ("cpu", f"{host.cpu} ({host.triple}), {host.vector_bits}-bit vectors; {_features(host.features)}"),
        ("threads", f"{get_num_threads()} of {available_cores()} cores{_asked()}"),
        ("limits", known.sentence() if known else "not measured yet (doctor --calibrate, or the first profile)"),
        ("cuda", _cuda()),
        ("cache", state(DiskCache())),
    ]  # fmt: skip


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _features(features: str) -> str:
    have = {name[1:] for name in features.split(",") if name.startswith("+")}
    return " ".join(name for name in WIDEST if name in have) or "no vector features detected"


def _asked() -> str:
    return ", as asked for" if asked_threads() is not None else ", chosen by timing"


def _cuda() -> str:
    """Whether kernels can be compiled, and whether they can run."""
    from fusegraph.runtime.cuda import unavailable
    from fusegraph.runtime.cuda_compile import missing

    if problem := missing():
        return f"kernels cannot be compiled: {problem}"
    if problem := unavailable():
        return f"kernels can be compiled and dumped, not run: {problem}"
    return "kernels can be compiled and run"
