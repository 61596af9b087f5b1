"""Attention layers."""

from __future__ import annotations

from typing import Any

from fusegraph import functional as F
from fusegraph import ops
from fusegraph.dtypes import bool_
from fusegraph.errors import OptionError, ShapeError
from fusegraph.functional.activation import check_probability
from fusegraph.functional.attention import attention_weights
from fusegraph.nn import init
from fusegraph.nn.containers import ModuleList
from fusegraph.nn.layers import Dropout, Linear, new_parameter
from fusegraph.nn.module import Module
from fusegraph.nn.norm import LayerNorm
from fusegraph.tensor import Tensor, as_tensor, user_error

__all__ = ["MultiheadAttention", "TransformerEncoder", "TransformerEncoderLayer"]


def _as_bias(name: str, mask: Any, dtype: Any, *shapes: tuple[int, ...]) -> Tensor:
    """A mask as numbers to add: -inf where a bool mask is True. Raises ShapeError unless it has one of `shapes`."""
    mask = as_tensor(mask)
    if mask.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise user_error(ShapeError, f"MultiheadAttention: {name} {list(mask.shape)} should be {wanted}")
    return ops.where(mask, float("-inf"), ops.zeros((), dtype=dtype)) if mask.dtype == bool_ else ops.cast(mask, dtype)


class MultiheadAttention(Module):
    """Several attentions side by side, each on its own projection of queries, keys and values (Vaswani et al., NIPS
    2017).

    Masks follow torch.nn.MultiheadAttention: True in a bool mask means "must not be looked at", and a float mask is
    added.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise user_error(
                OptionError, f"MultiheadAttention: embed_dim {embed_dim} does not divide into {num_heads} heads"
            )
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.dropout, self.batch_first = check_probability("MultiheadAttention", dropout), batch_first
        self.kdim, self.vdim = kdim or embed_dim, vdim or embed_dim
        self._joined = self.kdim == embed_dim and self.vdim == embed_dim
        if self._joined:
            self.in_proj_weight = new_parameter(3 * embed_dim, embed_dim, dtype=dtype)
        else:
            self.q_proj_weight = new_parameter(embed_dim, embed_dim, dtype=dtype)
            self.k_proj_weight = new_parameter(embed_dim, self.kdim, dtype=dtype)
            self.v_proj_weight = new_parameter(embed_dim, self.vdim, dtype=dtype)
        self.register_parameter("in_proj_bias", new_parameter(3 * embed_dim, dtype=dtype) if bias else None)
        self.out_proj = Linear(embed_dim, embed_dim, bias=bias, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """New initial values."""
        names = ("in_proj_weight",) if self._joined else ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        for name in names:
            init.xavier_uniform_(getattr(self, name))
        if self.in_proj_bias is not None:
            init.zeros_(self.in_proj_bias)
            init.zeros_(self.out_proj.bias)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        biases = [None] * 3 if self.in_proj_bias is None else ops.chunk(self.in_proj_bias, 3)
        if not self._joined:
            weights: Any = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        elif query is key and key is value:  # one product for all three
            return list(ops.chunk(F.linear(query, self.in_proj_weight, self.in_proj_bias), 3, -1))
        else:
            weights = ops.chunk(self.in_proj_weight, 3)
        return [F.linear(x, weight, bias) for x, weight, bias in zip((query, key, value), weights, biases, strict=True)]

    def _mask(self, attn_mask: Any, padding: Any, batch: int, rows: int, columns: int, dtype: Any) -> Tensor | None:
        """Both masks as numbers that are added to the scores [N, heads, L, S]."""
        parts = []
        if attn_mask is not None:
            mask = _as_bias("attn_mask", attn_mask, dtype, (rows, columns), (batch * self.num_heads, rows, columns))
            parts.append(mask if mask.ndim == 2 else ops.reshape(mask, (batch, self.num_heads, rows, columns)))
        if padding is not None:
            mask = _as_bias("key_padding_mask", padding, dtype, (batch, columns))
            parts.append(ops.reshape(mask, (batch, 1, 1, columns)))
        return parts[0] + parts[1] if len(parts) == 2 else parts[0] if parts else None

    def forward(
        self,
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """query [L, N, E], key and value [S, N, E] ([N, L, E] with batch_first;

        N may be left out) -> (output, weights [N, L, S] or None).
        """
        query, key, value = as_tensor(query), as_tensor(key), as_tensor(value)
        if query.ndim not in (2, 3) or not query.ndim == key.ndim == value.ndim or query.shape[-1] != self.embed_dim:
            raise user_error(
                ShapeError,
                f"MultiheadAttention: query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)} "
                f"should have 3 axes (2 without a batch), the query's last of size {self.embed_dim}",
            )
        batched, self_attention = query.ndim == 3, query is key and key is value
        if not batched:
            query, key, value = (ops.unsqueeze(x, 0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else ops.unsqueeze(key_padding_mask, 0)
        elif not self.batch_first:
            query, key, value = (ops.transpose(x, 0, 1) for x in (query, key, value))
        if self_attention:
            key = value = query
        if is_causal and attn_mask is None:
            attn_mask = ops.unsqueeze(ops.arange(query.shape[1]), 1) < ops.arange(key.shape[1])
        out, weights = self._attend(query, key, value, key_padding_mask, attn_mask)
        if batched and not self.batch_first:
            out = ops.transpose(out, 0, 1)
        weights = ops.mean(weights, 1) if average_attn_weights else weights
        if not batched:
            out, weights = ops.squeeze(out, 0), ops.squeeze(weights, 0)
        return out, (weights if need_weights else None)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Any, attn_mask: Any
    ) -> tuple[Tensor, Tensor]:
        """[N, L, E], [N, S, E] -> output [N, L, E] and weights [N, heads, L, S]."""
        batch, rows, columns = query.shape[0], query.shape[1], key.shape[1]
        heads = [
            ops.transpose(ops.reshape(x, (batch, x.shape[1], self.num_heads, self.head_dim)), 1, 2)
            for x in self._projected(query, key, value)
        ]
        mask = self._mask(attn_mask, key_padding_mask, batch, rows, columns, heads[0].dtype)
        weights = F.dropout(attention_weights(heads[0], heads[1], mask, False, None), self.dropout, self.training)
        out = ops.reshape(ops.transpose(ops.matmul(weights, heads[2]), 1, 2), (batch, rows, self.embed_dim))
        return self.out_proj(out), weights


class TransformerEncoderLayer(Module):
    """Self-attention and a two-layer network, each with a residual connection and layer normalisation."""

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Any = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(d_model, nhead, dropout, bias, batch_first=batch_first, dtype=dtype)
        self.linear1 = Linear(d_model, dim_feedforward, bias, dtype)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, dtype)
        self.norm_first = norm_first
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype)
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)
        if isinstance(activation, str) and activation not in ("relu", "gelu"):
            raise user_error(OptionError, f"activation must be 'relu', 'gelu' or a function, got {activation!r}")
        self.activation = getattr(F, activation) if isinstance(activation, str) else activation

    def forward(
        self, src: Any, src_mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool = False
    ) -> Tensor:
        """[L, N, E] ([N, L, E] with batch_first) -> the same shape."""
        x = as_tensor(src)
        if self.norm_first:
            x = x + self._attention(self.norm1(x), src_mask, src_key_padding_mask)
            return x + self._network(self.norm2(x))
        x = self.norm1(x + self._attention(x, src_mask, src_key_padding_mask))
        return self.norm2(x + self._network(x))  # type: ignore[no-any-return]

    def _attention(self, x: Tensor, mask: Any, padding: Any) -> Tensor:
        return self.dropout1(self.self_attn(x, x, x, padding, need_weights=False, attn_mask=mask)[0])  # type: ignore[no-any-return]

    def _network(self, x: Tensor) -> Tensor:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))  # type: ignore[no-any-return]


class TransformerEncoder(Module):
    """`num_layers` copies of a layer, one after the other."""

    def __init__(self, encoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        super().__init__()
        import copy

        self.layers = ModuleList([copy.deepcopy(encoder_layer) for _ in range(num_layers)])
        self.num_layers = num_layers
        self.norm = norm

    def forward(self, src: Any, mask: Any = None, src_key_padding_mask: Any = None) -> Tensor:
        """As the layer."""
        x = src
        for layer in self.layers:
            x = layer(x, mask, src_key_padding_mask)
        return x if self.norm is None else self.norm(x)  # type: ignore[no-any-return]
