"""Contractions: batched matrix product, and 2-d convolution with its two transposes (closed under differentiation)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusegraph.dtypes import DType
from fusegraph.errors import DTypeError, ShapeError
from fusegraph.ir import emit as e
from fusegraph.ir.primitives.base import Array, Params, Primitive, Sample, Shape, register, require, require_float

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


def _infer_matmul(inputs: Any, params: Params) -> tuple[Shape, DType]:
    a, b = inputs
    text = f"matmul: shapes {list(a.shape)} and {list(b.shape)}"
    require(a.dtype == b.dtype, lambda: f"matmul: dtypes {a.dtype.name} and {b.dtype.name} differ", DTypeError)
    require(a.dtype.kind in "fi", lambda: f"matmul does not take {a.dtype.name}", DTypeError)
    require(len(a.shape) == len(b.shape) >= 2 and a.shape[:-2] == b.shape[:-2], f"{text}: batch axes differ")
    require(a.shape[-1] == b.shape[-2], f"{text}: the inner sizes {a.shape[-1]} and {b.shape[-2]} differ")
    return (*a.shape[:-1], b.shape[-1]), a.dtype


def _vjp_matmul(ct: Any, out: Any, inputs: Any, params: Params) -> tuple[Any, Any]:
    a, b = inputs
    return e.matmul(ct, e.swap_last(b)), e.matmul(e.swap_last(a), ct)


def _matmul_samples(rng: np.random.Generator) -> list[Sample]:
    shapes: list[tuple[Shape, Shape]] = [
        ((1, 1), (1, 1)),
        ((3, 5), (5, 2)),
        ((7, 33), (33, 17)),
        ((2, 3, 4), (2, 4, 5)),
        ((2, 2, 9, 3), (2, 2, 3, 8)),
        ((0, 4), (4, 3)),
        ((3, 0), (0, 2)),
        ((20, 18), (18, 40)),
    ]
    return [((rng.uniform(-1, 1, a), rng.uniform(-1, 1, b)), {}) for a, b in shapes]


register(
    Primitive(
        "matmul",
        "contract",
        _infer_matmul,
        lambda a, b: np.matmul(a, b),
        vjp=_vjp_matmul,
        cost="fma",
        samples=_matmul_samples,
        errors=lambda: [
            ((np.zeros((2, 3)), np.zeros((4, 2))), {}, ShapeError, "inner sizes 3 and 4 differ"),
            ((np.zeros((2, 3)), np.zeros((3, 2), np.float32)), {}, DTypeError, "dtypes"),
        ],
    )
)


# Convolution (cross-correlation, as PyTorch): x [N, C, H, W], w [O, C / groups, KH, KW] -> [N, O, OH, OW].
#   out[n, o, y, x] = sum over c, i, j of  in[n, c, y * stride + i * dilation - padding, ...] * w[o, c, i, j]
# `conv_input_grad` and `conv_weight_grad` are its transposes; each one's VJP is written with the other two.


def conv_output_size(size: int, kernel: int, stride: int, padding: Pair, dilation: int) -> int:
    """Positions that a window takes along one axis."""
    return (size + padding[0] + padding[1] - dilation * (kernel - 1) - 1) // stride + 1


def _conv_params(params: Params) -> tuple[Pair, Padding, Pair, int]:
    return params["stride"], params["padding"], params["dilation"], params["groups"]


def _infer_conv(inputs: Any, params: Params) -> tuple[Shape, DType]:
    x, w = inputs
    stride, padding, dilation, groups = _conv_params(params)
    text = f"conv: input {list(x.shape)}, weight {list(w.shape)}"
    require_float("conv", x)
    require(x.dtype == w.dtype, lambda: f"conv: dtypes {x.dtype.name} and {w.dtype.name} differ", DTypeError)
    require(len(x.shape) == 4 and len(w.shape) == 4, f"{text}: both need 4 axes")
    require(
        x.shape[1] == w.shape[1] * groups,
        f"{text}: {x.shape[1]} channels do not fit weights for {w.shape[1]} x {groups} groups",
    )
    require(w.shape[0] % groups == 0, f"{text}: {w.shape[0]} output channels do not divide into {groups} groups")
    sizes = tuple(conv_output_size(x.shape[2 + d], w.shape[2 + d], stride[d], padding[d], dilation[d]) for d in (0, 1))
    require(min(sizes) >= 1, f"{text}: the kernel is larger than the padded input")
    return (x.shape[0], w.shape[0], *sizes), x.dtype


def _infer_conv_input_grad(inputs: Any, params: Params) -> tuple[Shape, DType]:
    ct, w = inputs
    require_float("conv_input_grad", ct)
    return (ct.shape[0], w.shape[1] * params["groups"], *params["size"]), ct.dtype


def _infer_conv_weight_grad(inputs: Any, params: Params) -> tuple[Shape, DType]:
    x, ct = inputs
    require_float("conv_weight_grad", x)
    return (ct.shape[1], x.shape[1] // params["groups"], *params["kernel"]), x.dtype


def _windows(x: Array, kernel: Pair, params: Params) -> Array:
    """A view [N, C, OH, OW, KH, KW] of the padded input's windows."""
    stride, padding, dilation, _ = _conv_params(params)
    padded = np.pad(x, ((0, 0), (0, 0), *padding))
    sizes = [conv_output_size(x.shape[2 + d], kernel[d], stride[d], padding[d], dilation[d]) for d in (0, 1)]
    s = padded.strides
    return np.lib.stride_tricks.as_strided(
        padded,
        (*x.shape[:2], *sizes, *kernel),
        (s[0], s[1], s[2] * stride[0], s[3] * stride[1], s[2] * dilation[0], s[3] * dilation[1]),
        writeable=False,
    )


def _conv(x: Array, w: Array, **params: Any) -> Array:
    groups = params["groups"]
    windows = _windows(x, w.shape[2:], params)
    parts = [
        np.tensordot(part, kernel, ((1, 4, 5), (1, 2, 3)))
        for part, kernel in zip(np.split(windows, groups, 1), np.split(w, groups, 0), strict=True)
    ]
    return np.ascontiguousarray(np.concatenate(parts, -1).transpose(0, 3, 1, 2)).astype(x.dtype, copy=False)


def _conv_input_grad(ct: Array, w: Array, **params: Any) -> Array:
    stride, padding, dilation, groups = _conv_params(params)
    height, width = params["size"]
    padded = np.zeros((ct.shape[0], w.shape[1] * groups, height + sum(padding[0]), width + sum(padding[1])), ct.dtype)
    channels, maps = w.shape[1], w.shape[0] // groups
    for g in range(groups):
        part, kernel = ct[:, g * maps : (g + 1) * maps], w[g * maps : (g + 1) * maps]
        target = padded[:, g * channels : (g + 1) * channels]
        for i in range(w.shape[2]):
            for j in range(w.shape[3]):
                rows = slice(i * dilation[0], i * dilation[0] + (ct.shape[2] - 1) * stride[0] + 1, stride[0])
                columns = slice(j * dilation[1], j * dilation[1] + (ct.shape[3] - 1) * stride[1] + 1, stride[1])
                target[:, :, rows, columns] += np.tensordot(part, kernel[:, :, i, j], ((1,), (0,))).transpose(
                    0, 3, 1, 2
                )
    (top, _), (left, _) = padding
    return np.ascontiguousarray(padded[:, :, top : top + height, left : left + width])


def _conv_weight_grad(x: Array, ct: Array, **params: Any) -> Array:
    groups = params["groups"]
    windows = _windows(x, params["kernel"], params)[:, :, : ct.shape[2], : ct.shape[3]]
    parts = [
        np.tensordot(part, image, ((0, 2, 3), (0, 2, 3))).transpose(3, 0, 1, 2)
        for part, image in zip(np.split(windows, groups, 1), np.split(ct, groups, 1), strict=True)
    ]
    return np.ascontiguousarray(np.concatenate(parts, 0)).astype(x.dtype, copy=False)


def _shared(params: Params) -> dict[str, Any]:
    return {key: params[key] for key in ("stride", "padding", "dilation", "groups")}


def _vjp_conv(ct: Any, out: Any, inputs: Any, params: Params) -> tuple[Any, Any]:
    x, w = inputs
    shared = _shared(params)
    return (
        e.bind("conv_input_grad", ct, w, size=tuple(x.shape[2:]), **shared),
        e.bind("conv_weight_grad", x, ct, kernel=tuple(w.shape[2:]), **shared),
    )


def _vjp_conv_input_grad(ct: Any, out: Any, inputs: Any, params: Params) -> tuple[Any, Any]:
    image, w = inputs
    shared = _shared(params)
    return (e.bind("conv", ct, w, **shared), e.bind("conv_weight_grad", ct, image, kernel=tuple(w.shape[2:]), **shared))


def _vjp_conv_weight_grad(ct: Any, out: Any, inputs: Any, params: Params) -> tuple[Any, Any]:
    x, image = inputs
    shared = _shared(params)
    return (e.bind("conv_input_grad", image, ct, size=tuple(x.shape[2:]), **shared), e.bind("conv", x, ct, **shared))


# (input, weight, stride, padding, dilation, groups): every option, odd sizes, strides that do not divide, 1-d shapes.
CONV_CASES: tuple[tuple[Shape, Shape, Pair, Padding, Pair, int], ...] = (
    ((2, 3, 7, 8), (4, 3, 3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((2, 3, 7, 8), (4, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((1, 1, 9, 9), (5, 1, 5, 5), (2, 2), ((2, 2), (2, 2)), (1, 1), 1),
    ((3, 4, 8, 6), (6, 2, 3, 2), (2, 1), ((1, 0), (0, 1)), (1, 2), 2),
    ((2, 4, 6, 5), (4, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 4),
    ((2, 5, 1, 17), (7, 5, 1, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((1, 2, 5, 5), (3, 2, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((2, 2, 10, 10), (3, 2, 3, 3), (3, 3), ((0, 0), (0, 0)), (2, 2), 1),
)


def _conv_options(case: Any) -> dict[str, Any]:
    return dict(zip(("stride", "padding", "dilation", "groups"), case[2:], strict=True))


def _conv_samples(rng: np.random.Generator) -> list[Sample]:
    return [((rng.uniform(-1, 1, case[0]), rng.uniform(-1, 1, case[1])), _conv_options(case)) for case in CONV_CASES]


def _output_shape(case: Any) -> Shape:
    x, w = np.zeros(case[0]), np.zeros(case[1])
    return _infer_conv((x, w), _conv_options(case))[0]


def _input_grad_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        (
            (rng.uniform(-1, 1, _output_shape(case)), rng.uniform(-1, 1, case[1])),
            {"size": case[0][2:], **_conv_options(case)},
        )
        for case in CONV_CASES
    ]


def _weight_grad_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        (
            (rng.uniform(-1, 1, case[0]), rng.uniform(-1, 1, _output_shape(case))),
            {"kernel": case[1][2:], **_conv_options(case)},
        )
        for case in CONV_CASES
    ]


register(
    Primitive(
        "conv",
        "contract",
        _infer_conv,
        _conv,
        vjp=_vjp_conv,
        cost="fma",
        samples=_conv_samples,
        errors=lambda: [
            ((np.zeros((1, 3, 5, 5)), np.zeros((4, 2, 3, 3))), _conv_options(CONV_CASES[0]), ShapeError, "3 channels"),
            ((np.zeros((1, 3, 2, 5)), np.zeros((4, 3, 3, 3))), _conv_options(CONV_CASES[0]), ShapeError, "larger"),
        ],
    )
)
register(
    Primitive(
        "conv_input_grad",
        "contract",
        _infer_conv_input_grad,
        _conv_input_grad,
        vjp=_vjp_conv_input_grad,
        cost="fma",
        samples=_input_grad_samples,
    )
)
register(
    Primitive(
        "conv_weight_grad",
        "contract",
        _infer_conv_weight_grad,
        _conv_weight_grad,
        vjp=_vjp_conv_weight_grad,
        cost="fma",
        samples=_weight_grad_samples,
    )
)
