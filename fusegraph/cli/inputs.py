"""`--input 64x1x28x28:float32`: arrays of a shape, a dtype and a range of values, the same in every run."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from fusegraph.cli.errors import UserError
from fusegraph.dtypes import SUPPORTED

HELP = """An input is SHAPE[:DTYPE[:LOW..HIGH]], for example 64x1x28x28:float32 or 64:int64:0..9, one --input an argument, in their order;
NAME=SHAPE... is an argument by keyword, "scalar" the shape of a single number. Floats are normally distributed (or even between
LOW and HIGH), ints 0 or 1 (or LOW to HIGH, both included). Values come from --seed."""
_FORM = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>[^:]+)(?::(?P<dtype>[^:]+)(?::(?P<range>[^:]+))?)?")


def make_inputs(texts: list[str], seed: int) -> tuple[list[Any], dict[str, Any]]:
    """(arguments, arguments by keyword) for the texts of --input. Raises UserError with the form that was expected."""
    rng = np.random.default_rng(seed)
    arguments: list[Any] = []
    named: dict[str, Any] = {}
    for text in texts:
        found = _FORM.fullmatch(text)
        if found is None:
            raise _wrong(text, "it does not have the form SHAPE[:DTYPE[:LOW..HIGH]]")
        array = _array(text, found["shape"], found["dtype"] or "float32", found["range"], rng)
        if found["name"] is None:
            arguments.append(array)
        else:
            named[found["name"]] = array
    return arguments, named


def _wrong(text: str, why: str) -> UserError:
    return UserError(f"--input {text}: {why}; an example: 64x1x28x28:float32, or 64:int64:0..9")


def _array(text: str, shape: str, dtype: str, bounds: str | None, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    sizes = [] if shape == "scalar" else shape.split("x")
    if not all(size.isdecimal() for size in sizes):
        raise _wrong(text, f"{shape!r} is not a shape")
    if dtype not in SUPPORTED:
        raise _wrong(text, f"{dtype!r} is not one of the dtypes {', '.join(SUPPORTED)}")
    extents, kind = tuple(map(int, sizes)), np.dtype(dtype)
    low, high = _bounds(text, bounds, kind)
    if kind.kind == "f":
        values = rng.standard_normal(extents) if bounds is None else rng.uniform(low, high, extents)
        return np.asarray(values).astype(kind)
    return np.asarray(rng.integers(int(low), int(high), extents, endpoint=True)).astype(kind)


def _bounds(text: str, bounds: str | None, kind: np.dtype[Any]) -> tuple[float, float]:
    if bounds is None:
        return (0, 1)
    try:
        low, high = (float(part) for part in bounds.split(".."))
    except ValueError:
        raise _wrong(text, f"{bounds!r} is not a range LOW..HIGH") from None
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise _wrong(text, f"the range {bounds} is empty")
    if kind.kind != "f":
        least, most = (0, 1) if kind.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
        if low != int(low) or high != int(high) or low < least or high > most:
            raise _wrong(text, f"{bounds} is no range of {kind.name}")
    return low, high
