"""Pooling: extremes and means of windows."""

from __future__ import annotations

from typing import Any

from fusegraph import ops
from fusegraph.dtypes import int64, is_float
from fusegraph.errors import DTypeError, OptionError, ShapeError, UnsupportedError
from fusegraph.functional.conv import Sizes, as_sizes
from fusegraph.ir import emit
from fusegraph.tensor import Tensor, as_tensor, user_error

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "max_pool1d",
    "max_pool2d",
]


class _Window:
    """The windows along one axis of `size` elements."""

    def __init__(self, size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> None:
        self.size, self.kernel, self.stride, self.padding, self.dilation = size, kernel, stride, padding, dilation
        span = dilation * (kernel - 1) + 1
        room = size + 2 * padding - span
        self.count = (-(-room // stride) if ceil_mode else room // stride) + 1
        if ceil_mode and (self.count - 1) * stride >= size + padding:
            self.count -= 1  # a window must begin inside of the input or its low padding
        self.high = max(padding, (self.count - 1) * stride + span - size - padding)


def _windows(name: str, x: Tensor, options: tuple[Any, ...], axes: int) -> list[_Window]:
    kernel, stride, padding, dilation, ceil_mode = options
    kernels = as_sizes(f"{name}: kernel_size", kernel, axes)
    strides = kernels if stride is None else as_sizes(f"{name}: stride", stride, axes)
    pads = as_sizes(f"{name}: padding", padding, axes, 0)
    dilations = as_sizes(f"{name}: dilation", dilation, axes)
    if any(2 * p > k for p, k in zip(pads, kernels, strict=True)):
        raise user_error(OptionError, f"{name}: padding {pads} should be at most half of the kernel {kernels}")
    found = [
        _Window(*row, ceil_mode)
        for row in zip(x.shape[x.ndim - axes :], kernels, strides, pads, dilations, strict=True)
    ]
    if any(window.count < 1 for window in found):
        raise user_error(ShapeError, f"{name}: the kernel {kernels} is larger than the input {list(x.shape)}")
    return found


def _check_input(name: str, x: Any, axes: int) -> Tensor:
    x = as_tensor(x)
    if x.ndim not in (axes + 1, axes + 2):
        wanted = "[N, C, H, W] or [C, H, W]" if axes == 2 else "[N, C, L] or [C, L]"
        raise user_error(ShapeError, f"{name}: the input should be {wanted}, got {list(x.shape)}")
    if not is_float(x.dtype):
        raise user_error(DTypeError, f"{name} takes floating point, got {x.dtype.name}{list(x.shape)}")
    return x


def _unfolded(x: Tensor, windows: list[_Window], fill: float) -> Tensor:
    """`x` with the last axes replaced by window numbers, and the windows' elements as new last axes."""
    first = x.ndim - len(windows)
    low = [window.padding for window in windows]
    high = [window.high for window in windows]
    if any(low) or any(high):
        x = emit.bind("pad", x, low=(0,) * first + tuple(low), high=(0,) * first + tuple(high), value=fill)
    for axis, window in enumerate(windows):
        x = ops.unfold(x, first + axis, window.kernel, window.stride, window.dilation)
        if (
            x.shape[first + axis] != window.count
        ):  # the high padding of floor mode may leave room for no more than `count`
            x = ops.shape.slice_axis(x, first + axis, 0, window.count)
    return x


def _max_pool(name: str, x: Any, options: tuple[Any, ...], axes: int, return_indices: bool) -> Any:
    if return_indices:
        raise user_error(UnsupportedError, f"{name}: return_indices is not supported")
    x = _check_input(name, x, axes)
    cells = _unfolded(x, _windows(name, x, options, axes), float("-inf"))
    return emit.bind("max", cells, axes=tuple(range(cells.ndim - axes, cells.ndim)))


def max_pool1d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """The largest of each window of x [N, C, L]; of equal ones the first takes the gradient."""
    options = (kernel_size, stride, padding, dilation, ceil_mode)
    return _max_pool("max_pool1d", x, options, 1, return_indices)  # type: ignore[no-any-return]


def max_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """The largest of each window of x [N, C, H, W]; of equal ones the first (row by row) takes the gradient."""
    options = (kernel_size, stride, padding, dilation, ceil_mode)
    return _max_pool("max_pool2d", x, options, 2, return_indices)  # type: ignore[no-any-return]


def _elements(window: _Window, include_pad: bool, like: Tensor) -> Tensor:
    """How many elements each window along one axis counts, as floats [count]."""
    start = emit.iota(window.count, int64, like) * window.stride - window.padding
    low, high = (-window.padding, window.size + window.padding) if include_pad else (0, window.size)
    inside = ops.minimum(start + window.kernel, high) - ops.maximum(start, low)
    return ops.cast(inside, like.dtype)


def _avg_pool(name: str, x: Any, options: tuple[Any, ...], axes: int, include_pad: bool, divisor: int | None) -> Tensor:
    x = _check_input(name, x, axes)
    windows = _windows(name, x, options, axes)
    cells = _unfolded(x, windows, 0.0)
    total = ops.sum(cells, tuple(range(cells.ndim - axes, cells.ndim)))
    if divisor is not None:
        if divisor == 0:
            raise user_error(OptionError, f"{name}: divisor_override must not be 0")
        return total * (1.0 / divisor)
    whole = all(w.high == w.padding or w.high == 0 for w in windows) and (
        include_pad or not any(w.padding for w in windows)
    )
    if whole:
        count = 1
        for window in windows:
            count *= window.kernel
        return total * (1.0 / count)
    counts = _elements(windows[0], include_pad, x)
    if axes == 2:
        counts = ops.unsqueeze(counts, -1) * _elements(windows[1], include_pad, x)
    return total / counts


def avg_pool1d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of x [N, C, L]; padding counts as zeros unless count_include_pad is False."""
    return _avg_pool("avg_pool1d", x, (kernel_size, stride, padding, 1, ceil_mode), 1, count_include_pad, None)


def avg_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window of x [N, C, H, W]; padding counts as zeros unless count_include_pad is False."""
    options = (kernel_size, stride, padding, 1, ceil_mode)
    return _avg_pool("avg_pool2d", x, options, 2, count_include_pad, divisor_override)


def _bins(x: Tensor, axis: int, parts: int, fill: float) -> tuple[Tensor, Tensor | float]:
    """`axis` in `parts` overlapping bins, whose elements are a new axis after it; and how many elements each bin has.

    Bin i holds floor(i n / parts) .. ceil((i + 1) n / parts) (as PyTorch); short bins are filled up with `fill`.
    """
    extent = x.shape[axis]
    if extent % parts == 0:
        size = extent // parts
        return ops.reshape(x, (*x.shape[:axis], parts, size, *x.shape[axis + 1 :])), float(size)
    number = emit.iota(parts, int64, x)
    start = ops.floor_divide(number * extent, parts)
    length = ops.floor_divide((number + 1) * extent + (parts - 1), parts) - start
    longest = max(-(-(i + 1) * extent // parts) - i * extent // parts for i in range(parts))
    offset = emit.iota(longest, int64, x)
    cells = emit.bind("take", x, ops.minimum(ops.unsqueeze(start, 1) + offset, extent - 1), axis=axis)
    valid = ops.reshape(offset < ops.unsqueeze(length, 1), (parts, longest, *(1,) * (x.ndim - axis - 1)))
    return ops.where(valid, cells, fill), ops.cast(length, x.dtype)


def _adaptive(name: str, x: Any, output_size: Any, axes: int, largest: bool) -> Tensor:
    x = _check_input(name, x, axes)
    given = output_size if isinstance(output_size, (tuple, list)) else (output_size,) * axes
    first = x.ndim - axes
    wanted: Sizes = as_sizes(
        f"{name}: output_size", tuple(x.shape[first + i] if n is None else n for i, n in enumerate(given)), axes
    )
    if any(n == 0 for n in x.shape[first:]):
        raise user_error(ShapeError, f"{name}: the input {list(x.shape)} is empty")
    counts: Any = 1.0
    for i, parts in enumerate(wanted):  # every axis that is done has become two
        x, count = _bins(x, first + 2 * i, parts, float("-inf") if largest else 0.0)
        if i + 1 < axes and isinstance(count, Tensor):
            count = ops.unsqueeze(count, -1)  # [parts, 1, ...] broadcast beside the bins of the next axis
        counts = count * counts
    cells = tuple(first + 2 * i + 1 for i in range(axes))
    if largest:
        return emit.bind("max", x, axes=cells)  # type: ignore[no-any-return]
    total = ops.sum(x, cells)
    return total * (1.0 / counts) if isinstance(counts, float) else total / counts


def adaptive_avg_pool1d(x: Any, output_size: Any) -> Tensor:
    """x [N, C, L] -> [N, C, output_size]: the mean of as many bins."""
    return _adaptive("adaptive_avg_pool1d", x, output_size, 1, False)


def adaptive_avg_pool2d(x: Any, output_size: Any) -> Tensor:
    """x [N, C, H, W] -> [N, C, *output_size]: the mean of as many bins (None keeps an axis)."""
    return _adaptive("adaptive_avg_pool2d", x, output_size, 2, False)


def adaptive_max_pool1d(x: Any, output_size: Any) -> Tensor:
    """x [N, C, L] -> [N, C, output_size]: the largest of as many bins."""
    return _adaptive("adaptive_max_pool1d", x, output_size, 1, True)


def adaptive_max_pool2d(x: Any, output_size: Any) -> Tensor:
    """x [N, C, H, W] -> [N, C, *output_size]: the largest of as many bins (None keeps an axis)."""
    return _adaptive("adaptive_max_pool2d", x, output_size, 2, True)
