"""New tensors: constants, ranges, random numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fusegraph.dtypes import as_dtype, float32, int64
from fusegraph.errors import OptionError
from fusegraph.ir import emit
from fusegraph.ops import elementwise as ew
from fusegraph.ops.shape import _sizes
from fusegraph.random import Generator, default_generator
from fusegraph.tensor import Tensor, as_tensor
from fusegraph.trace import current_trace

__all__ = [
    "arange",
    "empty",
    "empty_like",
    "eye",
    "full",
    "full_like",
    "linspace",
    "ones",
    "ones_like",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "zeros",
    "zeros_like",
    "bernoulli",
]


def _anchor() -> Tensor:
    """Something that knows whether a trace is running."""
    return Tensor._make(np.zeros((), np.float32))


def full(size: Any, fill_value: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of shape `size`, all `fill_value`."""
    shape = (size,) if isinstance(size, int) else tuple(size)
    kind = as_dtype(dtype) if dtype is not None else as_tensor(fill_value).dtype
    if current_trace() is None:
        return Tensor._make(np.full(shape, fill_value, kind)).requires_grad_(requires_grad)
    return emit.expand(emit.constant(fill_value, _anchor(), kind), shape)  # type: ignore[no-any-return]


def zeros(*size: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """All 0 (float32 unless `dtype` says otherwise)."""
    return full(_sizes(size), 0, dtype or float32, requires_grad)


def ones(*size: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """All 1 (float32 unless `dtype` says otherwise)."""
    return full(_sizes(size), 1, dtype or float32, requires_grad)


def empty(*size: Any, dtype: Any = None) -> Tensor:
    """As `zeros`: memory is never handed out with old contents."""
    return zeros(*size, dtype=dtype)


def zeros_like(x: Any, dtype: Any = None) -> Tensor:
    """All 0, of `x`'s shape."""
    return full(as_tensor(x).shape, 0, dtype or as_tensor(x).dtype)


def ones_like(x: Any, dtype: Any = None) -> Tensor:
    """All 1, of `x`'s shape."""
    return full(as_tensor(x).shape, 1, dtype or as_tensor(x).dtype)


def empty_like(x: Any, dtype: Any = None) -> Tensor:
    """As `zeros_like`."""
    return zeros_like(x, dtype)


def full_like(x: Any, fill_value: Any, dtype: Any = None) -> Tensor:
    """All `fill_value`, of `x`'s shape."""
    return full(as_tensor(x).shape, fill_value, dtype or as_tensor(x).dtype)


def arange(start: Any, end: Any = None, step: Any = 1, dtype: Any = None) -> Tensor:
    """start, start + step, ... below `end`; int64 for whole numbers, else float32."""
    if end is None:
        start, end = 0, start
    if step == 0:
        raise OptionError("arange: step must not be 0")
    whole = all(isinstance(v, (int, np.integer)) for v in (start, end, step))
    kind = as_dtype(dtype) if dtype is not None else int64 if whole else float32
    count = max(0, math.ceil((end - start) / step))
    ramp = emit.iota(count, int64 if whole else kind, _anchor())
    if step != 1:
        ramp = ew.mul(ramp, step)
    return ew.cast(ew.add(ramp, start) if start != 0 else ramp, kind)


def linspace(start: float, end: float, steps: int, dtype: Any = None) -> Tensor:
    """`steps` equally spaced values from `start` to `end`, both included."""
    kind = as_dtype(dtype or float32)
    ramp = emit.iota(steps, kind, _anchor())
    return ew.add(ew.mul(ramp, (end - start) / max(steps - 1, 1)), start)


def eye(n: int, m: int | None = None, dtype: Any = None) -> Tensor:
    """1 on the diagonal, else 0."""
    columns = emit.iota(m if m is not None else n, int64, _anchor())
    rows = emit.reshape(emit.iota(n, int64, _anchor()), (n, 1))
    return ew.cast(ew.eq(rows, columns), dtype or float32)


def rand(*size: Any, dtype: Any = None, generator: Generator | None = None) -> Tensor:
    """Uniform on [0, 1): multiples of 2**-24."""
    bits = (generator or default_generator()).bits(_sizes(size))
    top = emit.bind("shift_right", bits, emit.full_like(bits, 8))
    return ew.cast(ew.mul(ew.cast(top, float32), 2.0**-24), dtype or float32)


def randn(*size: Any, dtype: Any = None, generator: Generator | None = None) -> Tensor:
    """Standard normal, by Box and Muller's transform of two uniform numbers."""
    source = generator or default_generator()
    shape = _sizes(size)
    radius = ew.sqrt(ew.mul(ew.log(ew.sub(1.0, rand(shape, generator=source))), -2.0))
    angle = ew.mul(rand(shape, generator=source), 2 * math.pi)
    return ew.cast(ew.mul(radius, ew.cos(angle)), dtype or float32)


def randint(low: int, high: int, size: Any, dtype: Any = None, generator: Generator | None = None) -> Tensor:
    """Integers in [low, high) (int64); the bias of the modulus is below (high - low) / 2**32."""
    if not 0 < high - low < 2**32:
        raise OptionError(f"randint: [{low}, {high}) is empty or too wide")
    bits = (generator or default_generator()).bits(_sizes((size,) if isinstance(size, int) else tuple(size)))
    return ew.cast(ew.add(ew.remainder(ew.cast(bits, int64), high - low), low), dtype or int64)


def rand_like(x: Any) -> Tensor:
    """Uniform on [0, 1), of `x`'s shape and dtype."""
    return rand(as_tensor(x).shape, dtype=as_tensor(x).dtype)


def randn_like(x: Any) -> Tensor:
    """Standard normal, of `x`'s shape and dtype."""
    return randn(as_tensor(x).shape, dtype=as_tensor(x).dtype)


def bernoulli(p: float, shape: Any, dtype: Any = None, generator: Generator | None = None) -> Tensor:
    """1 with probability `p`, else 0 (bool unless `dtype` says otherwise)."""
    return ew.cast(ew.lt(rand(shape, generator=generator), p), dtype or bool)
