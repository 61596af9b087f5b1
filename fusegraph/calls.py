"""A call of a compiled function: arguments into the native step, results and gradients out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from fusegraph.donation import Taken, check_donated, give_away
from fusegraph.errors import UnsupportedError
from fusegraph.repeat import MADE, now
from fusegraph.signature import as_argument
from fusegraph.tensor import Tensor
from fusegraph.version import Version

Array = np.ndarray[Any, Any]


def run(version: Version, leaves: list[Any], make: Callable[[Array], Tensor] = Tensor._make) -> Any:
    """Run a version on the parts of a call's arguments; gives what the function returns, and leaves gradients as it does.

    make: what makes a tensor of an output.

    Raises UnsupportedError, before anything is changed, where memory that is overwritten is read-only or shared.
    """
    arguments = [t for t in map(as_argument, leaves) if isinstance(t, Tensor)]
    check_donated(version.results, arguments)
    sources = version.sources(arguments)
    arrays = [tensor._value for tensor in sources]
    dense = len(arguments) if version.dense and not version.owners else len(arrays)
    arrays[:dense] = map(_dense, arrays[:dense])
    for position in version.written:
        if not sources[position]._value.flags.writeable:
            raise UnsupportedError(
                f"{sources[position].name or 'an argument'} of shape {list(sources[position].shape)} is overwritten "
                "by the compiled function, but its memory is read-only (a view?): pass a copy"
            )
    before = (
        {position: arrays[position].copy() for position in version.joint.overwritten}
        if version.joint is not None
        else {}
    )
    _check_apart(version, arguments, sources)
    made = version.artifact.run(arrays)
    version.calls += 1
    version.used = now()
    for position in version.written:
        sources[position]._version += 1
        if arrays[position] is not sources[position]._value:
            np.copyto(sources[position]._value, arrays[position])
    outputs = [make(value) for value in made[: len(made) if version.joint is None else version.joint.count]]
    _leave_gradients(version, arguments, outputs)
    if version.joint is not None and version.backward is not None:
        version.joint.attach(version, sources, arrays, outputs, made, before)
    rest = iter(outputs)
    taken = {leaf.number: make(arguments[leaf.number]._value) for leaf in version.results if type(leaf) is Taken}
    give_away(version.results, arguments)
    return version.rebuild([_result(leaf, rest, taken) for leaf in version.results])


def _result(leaf: Any, made: Iterator[Tensor], taken: Mapping[int, Tensor]) -> Any:
    """A part of what the function returns: the next output, what lies in an argument's memory, or the same at each call."""
    if leaf is MADE:
        return next(made)
    return taken[leaf.number] if type(leaf) is Taken else leaf


def _dense(array: Array) -> Array:
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _leave_gradients(version: Version, arguments: list[Tensor], outputs: list[Tensor]) -> None:
    """Set `.grad` of leaves, and add to that of arguments, as the function did."""
    for owner, position in version.grads:
        if not isinstance(owner, int):
            owner._grad = None if position is None else outputs[position]
        elif position is not None:
            argument = arguments[owner]
            argument.grad = outputs[position] if argument.grad is None else argument.grad + outputs[position]


def _check_apart(version: Version, arguments: list[Tensor], sources: list[Tensor]) -> None:
    """Raise UnsupportedError if something that the function overwrites is also another input of it.

    The uncompiled function would see the change in both; the compiled one reads each input as it was, or not, as kernels fall.
    """
    if not version.written:
        return
    first, written = len(arguments), set(version.written)
    if version.spans is None:  # addresses of captured tensors, kept until a setting changes
        moving = {position for position, _ in version.owners}  # gradients lie somewhere else at each call
        version.spans = np.array(
            [(0, 0) if first + i in moving else _span(t) for i, t in enumerate(sources[first:])], np.int64
        ).reshape(-1, 2)
        for position in (p for p in written if p >= first):
            _refuse_overlap(version.spans, position - first, sources[position])
    for number, argument in enumerate(arguments):
        chosen = [p - first for p in written if p >= first] if number not in written else slice(None)
        _refuse_overlap(version.spans[chosen], None, argument)
        if number in written:
            _refuse_overlap(np.array([_span(a) for a in arguments], np.int64), number, argument)


def _span(tensor: Tensor) -> tuple[int, int]:
    """First and last byte (exclusive) of a tensor's memory."""
    return np.lib.array_utils.byte_bounds(tensor._value) if tensor._value.size else (0, 0)


def _refuse_overlap(spans: Array, own: int | None, tensor: Tensor) -> None:
    low, high = _span(tensor)
    hit = (spans[:, 0] < high) & (low < spans[:, 1])
    if own is not None:
        hit[own] = False
    if hit.any():
        raise UnsupportedError(
            f"a tensor of shape {list(tensor.shape)} ({tensor.name or 'an argument'}) shares memory with another one that "
            "the compiled function reads, and one of them is overwritten: pass a .clone(), or use one of them only"
        )
