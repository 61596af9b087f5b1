"""Signatures: what a trace depends on of a call's arguments, names for them, and in words how two calls differ."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from fusegraph import autograd, tree
from fusegraph.errors import DTypeError
from fusegraph.tensor import Tensor, as_tensor

Key = tuple[Any, ...]


def key_of(leaves: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
    """The signature of a call: `leaves` are all parts of its arguments."""
    parts: list[Any] = [autograd.is_grad_enabled(), len(args), *kwargs]
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            parts.append((leaf.shape, leaf.dtype.num, leaf.requires_grad))
        elif isinstance(leaf, np.ndarray):
            parts.append((leaf.shape, leaf.dtype.num, False))
        else:
            parts.append((type(leaf), _in_key(leaf)))
    if any(isinstance(arg, (list, tuple, dict)) for arg in (*args, *kwargs.values())):
        parts.append(_shape_of(args, kwargs))
    return tuple(parts)


def title_of(function: Any) -> str:
    """What a function or module is called."""
    return getattr(function, "__qualname__", None) or type(function).__name__


def identifier_of(title: str) -> str:
    """A title as the name of a graph."""
    return "".join(c if c.isalnum() or c in "_." else "_" for c in title).replace("_locals_.", "").strip("_") or "graph"


def parameter_names(function: Any) -> tuple[str, ...]:
    """Names of the parameters of a function, or of a module's forward."""
    forward = getattr(type(function), "forward", None)
    try:
        names = list(inspect.signature(forward or function).parameters)
    except (TypeError, ValueError):
        return ()
    return tuple(names[1:] if forward is not None else names)


def leaf_names(names: tuple[str, ...], leaves: list[Any], rebuild: Callable[[list[Any]], Any]) -> list[str]:
    """A name for each leaf: its parameter's, numbered where a parameter is a nest."""
    args, kwargs = rebuild(list(range(len(leaves))))
    out = [""] * len(leaves)
    named = [(names[i] if i < len(names) else f"arg{i}", arg) for i, arg in enumerate(args)] + list(kwargs.items())
    for name, value in named:
        parts, _ = tree.flatten(value)
        for position, leaf in enumerate(parts):
            out[leaf] = name if len(parts) == 1 else f"{name}_{position}"
    return out


class _Same:
    """Stands in a signature for an object that cannot be hashed: equal to itself only (and kept alive, so that it stays unique)."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.held is self.held

    def __hash__(self) -> int:
        return id(self.held)

    def __repr__(self) -> str:
        return repr(self.held)


def _in_key(leaf: Any) -> Any:
    """A value as part of a signature: -0.0 is not 0.0; objects are kept alive, so that no other one can take their place."""
    if type(leaf) is float and leaf == 0.0:
        return str(leaf)
    try:
        hash(leaf)
    except TypeError:
        return _Same(leaf)
    return leaf


def _shape_of(*values: Any) -> str:
    """The nesting of containers, as text."""
    leaves, rebuild = tree.flatten(values, Tensor)
    return repr(rebuild([0] * len(leaves)))


def as_argument(leaf: Any) -> Any:
    """Arrays as tensors; anything else as it is. Raises DTypeError for a numpy scalar."""
    if isinstance(leaf, Tensor):
        return leaf
    if isinstance(leaf, np.ndarray) or (hasattr(leaf, "__dlpack__") and hasattr(leaf, "shape")):
        return as_tensor(leaf)
    if isinstance(leaf, np.generic):
        raise DTypeError(
            f"a numpy scalar ({type(leaf).__name__}) is an argument: pass a Python number (part of the signature) or an array"
        )
    return leaf


def difference(old: Key, new: Key, names: list[str]) -> str:
    """What differs between two signatures, in words."""
    if len(old) != len(new) or old[:2] != new[:2]:
        return (
            "gradients are recorded now"
            if new[0] and not old[0]
            else "gradients are not recorded now"
            if old[0] != new[0]
            else "another number or nesting of arguments"
        )
    texts = []
    first = next((i for i, part in enumerate(new) if isinstance(part, tuple)), 0)
    for position, (before, after) in enumerate(zip(old, new, strict=True)):
        if before == after or not isinstance(before, tuple) or not isinstance(after, tuple):
            continue
        place = position - first
        name = names[place] if 0 <= place < len(names) else f"argument {place}"
        texts.append(_leaf_difference(name, before, after))
    return "; ".join(texts) or "another nesting of arguments"


def _leaf_difference(name: str, before: tuple[Any, ...], after: tuple[Any, ...]) -> str:
    if len(before) == 3 and len(after) == 3:
        if before[1] != after[1]:
            return f"argument `{name}` had another dtype"
        if len(before[0]) != len(after[0]):
            return f"argument `{name}` had {len(before[0])} axes, now {len(after[0])}"
        axes = [
            f"axis {i} was {a}, now {b}" for i, (a, b) in enumerate(zip(before[0], after[0], strict=True)) if a != b
        ]
        return (
            f"argument `{name}` {', '.join(axes)}"
            if axes
            else f"argument `{name}` requires a gradient now, or no longer"
        )
    return f"argument `{name}` was {before[-1]!r}, now {after[-1]!r}"
