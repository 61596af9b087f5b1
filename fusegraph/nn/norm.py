"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusegraph import functional as F
from fusegraph import ops
from fusegraph.autograd import no_grad
from fusegraph.dtypes import float32, int64
from fusegraph.errors import OptionError, ShapeError
from fusegraph.nn import init
from fusegraph.nn.layers import new_parameter
from fusegraph.nn.module import Module
from fusegraph.tensor import Tensor, as_tensor, user_error
from fusegraph.trace import suspended

__all__ = ["BatchNorm1d", "BatchNorm2d", "GroupNorm", "LayerNorm", "RMSNorm"]


class _BatchNorm(Module):
    _axes: tuple[int, ...]
    _wanted: str

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.register_parameter("weight", new_parameter(num_features, dtype=dtype, fill=1.0) if affine else None)
        self.register_parameter("bias", new_parameter(num_features, dtype=dtype) if affine else None)
        with suspended():
            kind = dtype or float32
            self.register_buffer("running_mean", ops.zeros(num_features, dtype=kind) if track_running_stats else None)
            self.register_buffer("running_var", ops.ones(num_features, dtype=kind) if track_running_stats else None)
            self.register_buffer("num_batches_tracked", ops.zeros((), dtype=int64) if track_running_stats else None)

    def reset_parameters(self) -> None:
        """Statistics, weight and bias as at the beginning."""
        for tensor, value in (
            (self.running_mean, 0.0),
            (self.running_var, 1.0),
            (self.num_batches_tracked, 0),
            (self.weight, 1.0),
            (self.bias, 0.0),
        ):
            if tensor is not None:
                init.constant_(tensor, value)

    def forward(self, x: Any) -> Tensor:
        """[N, C, ...]: each channel with the statistics of this batch (training), or with the running ones
        (evaluation).
        """
        x = as_tensor(x)
        if x.ndim not in self._axes or x.shape[1] != self.num_features:
            raise user_error(
                ShapeError,
                f"{type(self).__name__}({self.num_features}): the input should be {self._wanted} with "
                f"C = {self.num_features}, got {list(x.shape)}",
            )
        tracks = self.running_mean is not None
        momentum: Any = self.momentum
        if self.training and tracks:
            with no_grad():
                self.num_batches_tracked.copy_(self.num_batches_tracked + 1)
            if momentum is None:  # the mean over all batches so far
                momentum = 1.0 / ops.cast(self.num_batches_tracked, x.dtype)
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not tracks,
            momentum,
            self.eps,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of [N, C] or [N, C, L]."""

    _axes, _wanted = (2, 3), "[N, C] or [N, C, L]"


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of [N, C, H, W]."""

    _axes, _wanted = (4,), "[N, C, H, W]"


class LayerNorm(Module):
    """The last axes (of `normalized_shape`) brought to mean 0 and variance 1, then times weight plus bias."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        self.register_parameter(
            "weight", new_parameter(*self.normalized_shape, dtype=dtype, fill=1.0) if elementwise_affine else None
        )
        self.register_parameter(
            "bias", new_parameter(*self.normalized_shape, dtype=dtype) if elementwise_affine and bias else None
        )

    def forward(self, x: Any) -> Tensor:
        """[..., *normalized_shape]."""
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class RMSNorm(Module):
    """The last axes divided by the root of their mean square, then times weight. eps None: the dtype's epsilon."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        self.register_parameter(
            "weight", new_parameter(*self.normalized_shape, dtype=dtype, fill=1.0) if elementwise_affine else None
        )

    def forward(self, x: Any) -> Tensor:
        """[..., *normalized_shape]."""
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class GroupNorm(Module):
    """Each of `num_groups` groups of channels brought to mean 0 and variance 1, then times weight plus bias a
    channel.
    """

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True, dtype: Any = None
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_channels % num_groups:
            raise user_error(OptionError, f"GroupNorm: {num_channels} channels do not divide into {num_groups} groups")
        self.num_groups, self.num_channels, self.eps, self.affine = num_groups, num_channels, eps, affine
        self.register_parameter("weight", new_parameter(num_channels, dtype=dtype, fill=1.0) if affine else None)
        self.register_parameter("bias", new_parameter(num_channels, dtype=dtype) if affine else None)

    def forward(self, x: Any) -> Tensor:
        """[N, C, ...]."""
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"
