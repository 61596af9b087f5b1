"""Axes whose extent is known at run time only: bounds of their loops.

A kernel over such an axis takes the number of rows of this call, n, as its parameter %n. The axis has `rows` points for each of
them (a block of `per` of those is one point, where it says so), and at most `extent`: memory, and everything that is planned,
is for that many.
"""

from __future__ import annotations

from collections.abc import Iterable

from fusegraph.codegen.cpu.irtext import FunctionBuilder
from fusegraph.ir.index import Axis

SIZE = "%n"

__all__ = ["SIZE", "Refused", "bound", "ceiling", "points", "product", "whole_part"]


class Refused(Exception):
    """Why a program cannot have an axis of run-time extent, in words that follow "because"."""


def product(fn: FunctionBuilder, factors: Iterable[int | str]) -> int | str:
    """The product of numbers and of values of the function; a number where all are."""
    number, names = 1, []
    for factor in factors:
        if isinstance(factor, int):
            number *= factor
        else:
            names.append(factor)
    if not names or number == 0:
        return number
    total = names[0]
    for name in names[1:]:
        total = fn.op(f"mul i64 {total}, {name}")
    return fn.affine([(number, total)])


def bound(fn: FunctionBuilder, axis: Axis) -> int | str:
    """How many points an axis has in this call."""
    return ceiling(fn, product(fn, (axis.rows, SIZE)), axis.per) if axis.rows else axis.extent


def points(fn: FunctionBuilder, axes: Iterable[Axis]) -> int | str:
    """How many points the axes have together in this call."""
    return product(fn, [bound(fn, axis) for axis in axes])


def whole_part(fn: FunctionBuilder, count: int | str, unit: int) -> int | str:
    """The largest multiple of `unit` that is not more than `count`."""
    if isinstance(count, int):
        return count // unit * unit
    return fn.op(f"sub i64 {count}, {fn.op(f'urem i64 {count}, {unit}')}")


def ceiling(fn: FunctionBuilder, count: int | str, unit: int) -> int | str:
    """How many pieces of `unit` cover `count`."""
    if unit == 1:
        return count
    if isinstance(count, int):
        return -(-count // unit)
    return fn.op(f"udiv i64 {fn.op(f'add i64 {count}, {unit - 1}')}, {unit}")
