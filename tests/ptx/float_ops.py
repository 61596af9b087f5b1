"""Floating-point arithmetic: f16, f32, f64 with flush to zero, saturation and directed rounding.

f32 results are computed in double precision and rounded once more; that differs from a true fma by at most one unit
in the last place in about one case of 2**29. The .approx functions give the correctly rounded value, better than the
2**-22 of the hardware (2**-11 for tanh): tolerances of tests have to allow for the hardware, not for the interpreter.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .ir import Instr
from .lanes import Action
from .registry import Machine, elementwise, op

TINY = np.float32(np.finfo(np.float32).tiny)
ROUNDINGS = ("rn", "rz", "rm", "rp")
Function = Callable[..., np.ndarray]
WIDE: dict[str, np.dtype] = {"f16": np.dtype("f4"), "f32": np.dtype("f8"), "f64": np.dtype(np.longdouble)}


def flush(values: np.ndarray) -> np.ndarray:
    """Subnormal float32 to a zero of the same sign."""
    return np.where(np.abs(values) < TINY, np.copysign(np.float32(0), values), values)


def round_to(wide: np.ndarray, dtype: np.dtype, mode: str = "rn") -> np.ndarray:
    """A wider float rounded to `dtype`: to nearest even, or directed (rz, rm, rp)."""
    nearest = np.asarray(wide).astype(dtype)
    if mode == "rn":
        return nearest
    back = nearest.astype(np.asarray(wide).dtype)
    below = np.where(back > wide, np.nextafter(nearest, dtype.type(-np.inf)), nearest)
    above = np.where(back < wide, np.nextafter(nearest, dtype.type(np.inf)), nearest)
    if mode == "rz":
        return np.where(np.asarray(wide) >= 0, below, above)
    return below if mode == "rm" else above


def finished(instr: Instr, function: Function) -> Function:
    """The function with the modifiers .ftz and .sat applied around it."""
    if instr.has("ftz"):
        inner = function
        function = lambda *args: flush(inner(*map(flush, args)))  # noqa: E731
    if instr.has("sat"):
        unclamped = function
        function = lambda *args: np.clip(np.nan_to_num(unclamped(*args), nan=0.0), 0, 1).astype(instr.dtype)  # noqa: E731
    return function


def rounding(instr: Instr) -> str:
    """The rounding modifier, rn where there is none."""
    return next((m for m in instr.mods if m in ROUNDINGS), "rn")


def _check(instr: Instr, machine: Machine) -> None:
    if instr.type in ("bf16", "bf16x2", "f16x2"):
        raise machine.lanes.unsupported(instr)


ARITHMETIC: dict[str, Function] = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


def arithmetic(instr: Instr, machine: Machine) -> Action:
    """add, sub, mul."""
    _check(instr, machine)
    function, mode, dtype = ARITHMETIC[instr.opcode], rounding(instr), instr.dtype
    if mode != "rn":
        wide = WIDE[instr.type]
        exact = function
        function = lambda a, b: round_to(exact(a.astype(wide), b.astype(wide)), dtype, mode)  # noqa: E731
    return elementwise(instr, machine, finished(instr, function), instr.type)


@op("fma")
def fused_multiply_add(instr: Instr, machine: Machine) -> Action:
    """fma and the mad of floats; .relu is not implemented."""
    _check(instr, machine)
    mode, dtype, wide = rounding(instr), instr.dtype, WIDE[instr.type]
    if instr.has("relu"):
        raise machine.lanes.unsupported(instr)

    def run(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return round_to(a.astype(wide) * b + c, dtype, mode)

    return elementwise(instr, machine, finished(instr, run), instr.type)


def divide(instr: Instr, machine: Machine) -> Action:
    """div.rn, .approx and .full."""
    _check(instr, machine)
    mode, dtype, wide = rounding(instr), instr.dtype, WIDE[instr.type]
    function: Function = np.divide
    if mode != "rn":
        function = lambda a, b: round_to(a.astype(wide) / b, dtype, mode)  # noqa: E731
    return elementwise(instr, machine, finished(instr, function), instr.type)


def min_max(instr: Instr, machine: Machine) -> Action:
    """NaN loses against a number (but wins with .NaN), -0 is less than +0."""
    _check(instr, machine)
    if len(instr.operands) != 3 or instr.has("xorsign"):
        raise machine.lanes.unsupported(instr)
    low = instr.opcode == "min"
    if instr.has("NaN"):
        pick: Function = np.minimum if low else np.maximum
    else:
        pick = np.fmin if low else np.fmax

    def run(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        first = np.signbit(a) if low else ~np.signbit(a)
        return np.where(a == b, np.where(first, a, b), pick(a, b))

    return elementwise(instr, machine, finished(instr, run), instr.type)


def sign(instr: Instr, machine: Machine) -> Action:
    """neg and abs."""
    _check(instr, machine)
    function = np.negative if instr.opcode == "neg" else np.abs
    return elementwise(instr, machine, finished(instr, function), instr.type)


@op("copysign")
def _copysign(instr: Instr, machine: Machine) -> Action:
    return elementwise(instr, machine, lambda a, b: np.copysign(b, a), instr.type)


@op("testp")
def _testp(instr: Instr, machine: Machine) -> Action:
    tests: dict[str, Function] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & (np.abs(a) >= np.finfo(a.dtype).tiny),
        "subnormal": lambda a: (a != 0) & (np.abs(a) < np.finfo(a.dtype).tiny),
    }
    return elementwise(instr, machine, tests[instr.mods[0]], instr.type, "pred")


def _wide(function: Function) -> Function:
    """A function of float32 (or float16) computed in double precision; float64 stays as it is."""
    return lambda a: function(np.asarray(a).astype(np.float64)).astype(np.asarray(a).dtype)


def _rounded(function: Function, mode: str) -> Function:
    return lambda a: round_to(function(np.asarray(a).astype(np.float64)), np.asarray(a).dtype, mode)


FUNCTIONS: dict[str, Function] = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "rsqrt": lambda a: 1 / np.sqrt(a),
}
ROUNDED_FUNCTIONS: dict[str, Function] = {"sqrt": np.sqrt, "rcp": np.reciprocal}


@op(*FUNCTIONS)
def _function(instr: Instr, machine: Machine) -> Action:
    _check(instr, machine)
    return elementwise(instr, machine, finished(instr, _wide(FUNCTIONS[instr.opcode])), instr.type)


@op(*ROUNDED_FUNCTIONS)
def _rounded_function(instr: Instr, machine: Machine) -> Action:
    _check(instr, machine)
    function = ROUNDED_FUNCTIONS[instr.opcode]
    function = function if instr.type == "f64" else _rounded(function, rounding(instr))
    return elementwise(instr, machine, finished(instr, function), instr.type)
