"""Linear maps and lookups."""

from __future__ import annotations

from typing import Any

from fusegraph import ops
from fusegraph.dtypes import int64, is_float, is_integer
from fusegraph.errors import DTypeError, OptionError, ShapeError
from fusegraph.tensor import Tensor, as_tensor, user_error

__all__ = ["bilinear", "embedding", "embedding_one_hot", "linear", "one_hot"]


def linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    """x @ weight.T + bias: x [..., in], weight [out, in] (or [in]), bias [out] -> [..., out]. Raises ShapeError."""
    x, weight = as_tensor(x), as_tensor(weight)
    if weight.ndim not in (1, 2) or x.ndim < 1 or x.shape[-1] != weight.shape[-1]:
        raise user_error(
            ShapeError,
            f"linear: input {list(x.shape)} does not fit weight {list(weight.shape)}: "
            "the last axes must have the same size",
        )
    if x.dtype != weight.dtype:
        raise user_error(
            DTypeError,
            f"linear: input is {x.dtype.name}, weight is {weight.dtype.name}; convert one with .to(dtype)",
        )
    out = ops.matmul(x, weight.T)
    return out if bias is None else out + bias


def bilinear(x1: Any, x2: Any, weight: Any, bias: Any = None) -> Tensor:
    """x1 . weight[o] . x2 for each o: x1 [..., a], x2 [..., b], weight [out, a, b] -> [..., out]."""
    x1, x2, weight = as_tensor(x1), as_tensor(x2), as_tensor(weight)
    out_features, a, b = weight.shape
    pairs = ops.unsqueeze(x1, -1) * ops.unsqueeze(x2, -2)
    return linear(ops.reshape(pairs, (*x1.shape[:-1], a * b)), ops.reshape(weight, (out_features, a * b)), bias)


def _token_ids(name: str, ids: Any) -> Tensor:
    ids = as_tensor(ids)
    if not is_integer(ids.dtype):
        raise user_error(DTypeError, f"{name}: token ids must be integers, got {ids.dtype.name}{list(ids.shape)}")
    return ids


def one_hot(x: Any, num_classes: int = -1) -> Tensor:
    """1 (int64) at the class, else 0: labels [...] -> [..., num_classes]; -1 counts the classes (not in compiled
    code).
    """
    x = _token_ids("one_hot", x)
    if num_classes == -1:
        num_classes = int(ops.max(x).item()) + 1 if x.numel() else 0
    if num_classes < 1:
        raise user_error(OptionError, f"one_hot: num_classes must be positive, got {num_classes}")
    x = ops.check_index(x, 0, num_classes, "class")
    return ops.cast(ops.unsqueeze(x, -1) == ops.arange(num_classes), int64)


def embedding(input: Any, weight: Any, padding_idx: int | None = None) -> Tensor:  # noqa: A002
    """Rows of `weight` [tokens, features] at the ids `input` [...] -> [..., features].

    The row `padding_idx` gets no gradient. Raises IndexRangeError for an id outside of the table.
    """
    weight = as_tensor(weight)
    ids = _token_ids("embedding", input)
    if weight.ndim != 2:
        raise user_error(ShapeError, f"embedding: the table must have two axes, got {list(weight.shape)}")
    rows = ops.take(weight, ids, 0, what="token id")
    if padding_idx is None or not weight.requires_grad:
        return rows
    padding = ops.unsqueeze(ids == padding_index(padding_idx, weight.shape[0]), -1)
    return ops.where(padding, rows.detach(), rows)


def padding_index(padding_idx: int, tokens: int) -> int:
    """`padding_idx` counted from the front. Raises OptionError when it is outside of the table."""
    if not -tokens <= padding_idx < tokens:
        raise user_error(OptionError, f"padding_idx {padding_idx} is outside of a table of {tokens} rows")
    return padding_idx % tokens


def embedding_one_hot(input: Any, weight: Any) -> Tensor:  # noqa: A002
    """The same as `embedding`, written as a product with one-hot rows: work for every token of the table, but no
    scatter.
    """
    weight = as_tensor(weight)
    ids = _token_ids("embedding_one_hot", input)
    if weight.ndim != 2 or not is_float(weight.dtype):
        raise user_error(
            ShapeError, f"embedding_one_hot: the table must be floating point with two axes, got {list(weight.shape)}"
        )
    ids = ops.check_index(ids, 0, weight.shape[0], "token id")
    rows = ops.cast(ops.unsqueeze(ids, -1) == ops.arange(weight.shape[0]), weight.dtype)
    return ops.matmul(rows, weight)
