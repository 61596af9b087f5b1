"""Nests of lists, tuples and dicts: taken apart into leaves, and put together again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Rebuild = Callable[[list[Any]], Any]


def flatten(value: Any, *leaf_types: type) -> tuple[list[Any], Rebuild]:
    """The leaves of `value`, in order, and a function that puts as many new leaves in their places.

    Leaves are instances of `leaf_types` and arrays, and anything that is not a list, tuple or dict.
    """
    leaves: list[Any] = []
    spec = _spec(value, (*leaf_types, np.ndarray), leaves)

    def rebuild(new: list[Any]) -> Any:
        rest = iter(new)
        return _build(spec, rest)

    return leaves, rebuild


def _spec(value: Any, leaf_types: tuple[type, ...], leaves: list[Any]) -> Any:
    if not isinstance(value, leaf_types):
        if isinstance(value, dict):
            return ("dict", type(value), [(key, _spec(item, leaf_types, leaves)) for key, item in value.items()])
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return ("named", type(value), [_spec(item, leaf_types, leaves) for item in value])
        if isinstance(value, (list, tuple)):
            return ("list", type(value), [_spec(item, leaf_types, leaves) for item in value])
    leaves.append(value)
    return None


def _build(spec: Any, rest: Any) -> Any:
    if spec is None:
        return next(rest)
    kind, type_, parts = spec
    if kind == "dict":
        return type_((key, _build(part, rest)) for key, part in parts)
    built = [_build(part, rest) for part in parts]
    return type_(*built) if kind == "named" else type_(built)
