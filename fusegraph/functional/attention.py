"""Attention."""

from __future__ import annotations

import math
from typing import Any

from fusegraph import ops
from fusegraph.dtypes import bool_
from fusegraph.errors import OptionError, ShapeError
from fusegraph.functional.activation import check_probability, dropout, softmax
from fusegraph.tensor import Tensor, as_tensor, user_error

__all__ = ["scaled_dot_product_attention"]


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    """softmax(query @ key.T * scale + mask) over the keys: [..., L, E], [..., S, E] -> [..., L, S].

    A bool mask is True where a key may be looked at; a row that may look at nothing has weights 0.
    """
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = ops.matmul(query * factor, ops.mT(key))
    if causal:  # a row always sees itself: no row is empty
        seen = ops.unsqueeze(ops.arange(scores.shape[-2]), 1) >= ops.arange(scores.shape[-1])
        return softmax(ops.where(seen, scores, float("-inf")), -1)
    if mask is None:
        return softmax(scores, -1)
    if mask.dtype != bool_:
        return softmax(scores + mask, -1)
    return ops.where(mask, softmax(ops.where(mask, scores, float("-inf")), -1), 0.0)


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """softmax(query @ key.T * scale) @ value: query [..., L, E], key [..., S, E], value [..., S, V] -> [..., L, V].

    attn_mask broadcasts to [..., L, S]: bool (True: may be looked at), or numbers that are added to the scores.
    is_causal: position i looks at keys 0 .. i. scale: 1 / sqrt(E) if None. Raises ShapeError, OptionError.
    """
    query, key, value = as_tensor(query), as_tensor(key), as_tensor(value)
    if (
        min(query.ndim, key.ndim, value.ndim) < 2
        or query.shape[-1] != key.shape[-1]
        or key.shape[-2] != value.shape[-2]
    ):
        raise user_error(
            ShapeError,
            f"scaled_dot_product_attention: query {list(query.shape)}, key {list(key.shape)}, "
            f"value {list(value.shape)}; they should be [..., L, E], [..., S, E], [..., S, V]",
        )
    check_probability("scaled_dot_product_attention", dropout_p)
    if is_causal and attn_mask is not None:
        raise user_error(OptionError, "scaled_dot_product_attention: give attn_mask or is_causal, not both")
    mask = None if attn_mask is None else as_tensor(attn_mask)
    weights = attention_weights(query, key, mask, is_causal, scale)
    return ops.matmul(dropout(weights, dropout_p), value)
