"""What an operation on several operands does first: one shape, one element type (PyTorch's rules)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fusegraph.dtypes import DType, promote, scalar_dtype
from fusegraph.errors import ShapeError
from fusegraph.ir import emit
from fusegraph.tensor import Tensor, as_tensor, user_error

Operand = Any


def is_scalar(value: Any) -> bool:
    """Whether `value` is a Python (or numpy) number, whose type gives way to a tensor's."""
    return isinstance(value, (bool, int, float, np.generic)) and not isinstance(value, np.ndarray)


def broadcast_shapes(name: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that all of `shapes` broadcast to. Raises ShapeError that names them."""
    try:
        return tuple(np.broadcast_shapes(*shapes))
    except ValueError:
        text = " and ".join(str(list(shape)) for shape in shapes)
        raise user_error(
            ShapeError,
            f"{name}: shapes {text} do not broadcast together (sizes must be equal, or 1, from the last axis)",
        ) from None


_CATEGORY = {"b": 0, "i": 1, "u": 1, "f": 2}


def common_dtype(operands: tuple[Operand, ...]) -> DType:
    """The type of an operation on `operands`, of which at least one is a tensor.

    PyTorch's rule: tensors with axes decide; a 0-d tensor counts only if it is of a higher category (bool, integer,
    float), and a Python number only if it is of a higher category still.
    """
    tensors = [value for value in operands if not is_scalar(value)]
    kind: DType | None = None
    for group in ([t for t in tensors if t.ndim], [t for t in tensors if not t.ndim]):
        if group:
            own = functools.reduce(promote, (value.dtype for value in group))
            kind = own if kind is None or _CATEGORY[own.kind] > _CATEGORY[kind.kind] else kind
    assert kind is not None
    for value in operands:
        if is_scalar(value):
            kind = scalar_dtype(value.item() if isinstance(value, np.generic) else value, kind)
    return kind


def prepare(name: str, *operands: Operand, dtype: DType | None = None) -> list[Tensor]:
    """`operands` as tensors of one shape and one dtype."""
    operands = tuple(value if is_scalar(value) else as_tensor(value) for value in operands)
    if all(is_scalar(value) for value in operands):
        operands = (as_tensor(operands[0]), *operands[1:])
    kind = dtype or common_dtype(operands)
    like = next(value for value in operands if not is_scalar(value))
    shape = broadcast_shapes(name, *(() if is_scalar(value) else value.shape for value in operands))
    made = [emit.constant(value, like, kind) if is_scalar(value) else emit.cast(value, kind) for value in operands]
    return [emit.expand(value, shape) for value in made]
