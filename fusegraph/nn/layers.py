"""Layers with weights, and those that only move or drop elements."""

from __future__ import annotations

import math
from typing import Any

from fusegraph import functional as F
from fusegraph import ops
from fusegraph.dtypes import float32
from fusegraph.errors import OptionError, ShapeError
from fusegraph.functional.activation import check_probability
from fusegraph.functional.conv import as_sizes, resolve_padding
from fusegraph.functional.linear_maps import padding_index
from fusegraph.nn import init
from fusegraph.nn.module import Module
from fusegraph.nn.parameter import Parameter
from fusegraph.tensor import Tensor, as_tensor, user_error
from fusegraph.trace import suspended

__all__ = ["Bilinear", "Conv1d", "Conv2d", "Dropout", "Embedding", "Flatten", "Identity", "Linear", "Unflatten"]


def new_parameter(*shape: int, dtype: Any = None, fill: float = 0.0) -> Parameter:
    """A parameter of the given shape, all `fill`."""
    with suspended():
        return Parameter(ops.full(shape, fill, dtype or float32))


def _reset_weight_and_bias(weight: Parameter, bias: Parameter | None) -> None:
    """PyTorch's initial values of linear maps and convolutions: both uniform within 1 / sqrt(fan in)."""
    init.kaiming_uniform_(weight, a=math.sqrt(5))
    if bias is not None:
        inputs, _ = init.fan(weight.shape)
        bound = 1 / math.sqrt(inputs) if inputs else 0.0
        init.uniform_(bias, -bound, bound)


class Identity(Module):
    """Gives what it gets."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, x: Any) -> Any:
        """`x`."""
        return x


class Linear(Module):
    """x @ weight.T + bias: [..., in_features] -> [..., out_features]."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, dtype: Any = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = new_parameter(out_features, in_features, dtype=dtype)
        self.register_parameter("bias", new_parameter(out_features, dtype=dtype) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """New initial values."""
        _reset_weight_and_bias(self.weight, self.bias)

    def forward(self, x: Any) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Bilinear(Module):
    """x1 . weight[o] . x2 + bias[o] for each output o."""

    def __init__(
        self, in1_features: int, in2_features: int, out_features: int, bias: bool = True, dtype: Any = None
    ) -> None:
        super().__init__()
        self.in1_features, self.in2_features, self.out_features = in1_features, in2_features, out_features
        self.weight = new_parameter(out_features, in1_features, in2_features, dtype=dtype)
        self.register_parameter("bias", new_parameter(out_features, dtype=dtype) if bias else None)
        bound = 1 / math.sqrt(in1_features)
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)

    def forward(self, x1: Any, x2: Any) -> Tensor:
        """[..., in1], [..., in2] -> [..., out]."""
        return F.bilinear(x1, x2, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in1_features={self.in1_features}, in2_features={self.in2_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class _Conv(Module):
    _axes: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        dtype: Any = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if padding_mode != "zeros":
            raise user_error(OptionError, f"{name}: padding_mode {padding_mode!r} is not supported, only 'zeros'")
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise user_error(
                OptionError,
                f"{name}: {in_channels} input and {out_channels} output channels do not divide into {groups} groups",
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = as_sizes(f"{name}: kernel_size", kernel_size, self._axes)
        self.stride = as_sizes(f"{name}: stride", stride, self._axes)
        self.dilation = as_sizes(f"{name}: dilation", dilation, self._axes)
        resolve_padding(name, padding, self.kernel_size, self.stride, self.dilation)
        self.padding = padding if isinstance(padding, str) else as_sizes(f"{name}: padding", padding, self._axes, 0)
        self.weight = new_parameter(out_channels, in_channels // groups, *self.kernel_size, dtype=dtype)
        self.register_parameter("bias", new_parameter(out_channels, dtype=dtype) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """New initial values."""
        _reset_weight_and_bias(self.weight, self.bias)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, plain in (("padding", (0,) * self._axes), ("dilation", (1,) * self._axes), ("groups", 1)):
            if getattr(self, name) != plain:
                text += f", {name}={getattr(self, name)!r}"
        return text + ("" if self.bias is not None else ", bias=False")


class Conv1d(_Conv):
    """Convolution of [N, in_channels, L] -> [N, out_channels, L']."""

    _axes = 1

    def forward(self, x: Any) -> Tensor:
        """[N, C, L] -> [N, O, L'] (N may be left out)."""
        return F.conv1d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Conv2d(_Conv):
    """Convolution of [N, in_channels, H, W] -> [N, out_channels, H', W']."""

    _axes = 2

    def forward(self, x: Any) -> Tensor:
        """[N, C, H, W] -> [N, O, H', W'] (N may be left out)."""
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Embedding(Module):
    """A table of `num_embeddings` rows; ids [...] -> rows [..., embedding_dim].

    The row `padding_idx` starts as 0 and stays.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = None if padding_idx is None else padding_index(padding_idx, num_embeddings)
        self.weight = new_parameter(num_embeddings, embedding_dim, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """New initial values: standard normal."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            self.weight._value[self.padding_idx] = 0

    @classmethod
    def from_pretrained(cls, embeddings: Any, freeze: bool = True, padding_idx: int | None = None) -> Embedding:
        """A layer with the given table [tokens, features] (memory is shared); learned only if `freeze` is False."""
        table = as_tensor(embeddings)
        if table.ndim != 2:
            raise user_error(
                ShapeError, f"Embedding.from_pretrained: the table must have two axes, got {list(table.shape)}"
            )
        layer = cls.__new__(cls)
        Module.__init__(layer)
        layer.num_embeddings, layer.embedding_dim = table.shape
        layer.padding_idx = None if padding_idx is None else padding_index(padding_idx, table.shape[0])
        layer.weight = Parameter(table, requires_grad=not freeze)
        return layer

    def forward(self, ids: Any) -> Tensor:
        """[...] integers -> [..., embedding_dim]. Raises IndexRangeError."""
        return F.embedding(ids, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


class Dropout(Module):
    """In training, zero each element with probability `p` and scale the others by 1 / (1 - p)."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = check_probability("Dropout", p)

    def forward(self, x: Any) -> Tensor:
        """Any shape."""
        return F.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Flatten(Module):
    """Axes start_dim .. end_dim as one."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Any) -> Tensor:
        """[N, ...] -> [N, M]."""
        return ops.flatten(x, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Axis `dim` taken apart into `unflattened_size`."""

    def __init__(self, dim: int, unflattened_size: tuple[int, ...]) -> None:
        super().__init__()
        self.dim, self.unflattened_size = dim, tuple(unflattened_size)

    def forward(self, x: Any) -> Tensor:
        """One axis becomes several."""
        return ops.unflatten(x, self.dim, self.unflattened_size)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"
