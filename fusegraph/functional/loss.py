"""Losses. `reduction` is "mean", "sum" or "none"."""

from __future__ import annotations

from typing import Any

from fusegraph import ops
from fusegraph.dtypes import int32, int64, is_float, is_integer
from fusegraph.errors import DTypeError, OptionError, ShapeError
from fusegraph.functional.activation import log_softmax
from fusegraph.ir import emit
from fusegraph.tensor import Tensor, as_tensor, user_error

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "mse_loss",
    "nll_loss",
    "smooth_l1_loss",
]


def _check_reduction(name: str, reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise user_error(OptionError, f"{name}: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    return losses if reduction == "none" else ops.mean(losses) if reduction == "mean" else ops.sum(losses)


def _labels(name: str, x: Tensor, target: Any, ignore_index: int) -> Tensor:
    """Labels [N, ...] for scores [N, C, ...] (or one label for scores [C]), checked."""
    target = as_tensor(target)
    if not is_integer(target.dtype):
        raise user_error(DTypeError, f"{name}: labels must be integers, got {target.dtype.name}{list(target.shape)}")
    if x.ndim == 0:
        raise user_error(ShapeError, f"{name}: scores need a class axis, got a 0-d tensor")
    expected = () if x.ndim == 1 else (x.shape[0], *x.shape[2:])
    if target.shape != expected:
        raise user_error(
            ShapeError,
            f"{name}: scores {list(x.shape)} need labels of shape {list(expected)}, got {list(target.shape)}",
        )
    classes = x.shape[0 if x.ndim == 1 else 1]
    label = ops.check_index(target, 0, classes, "label", allow=ignore_index)
    return label if label.dtype in (int32, int64) else ops.cast(label, int64)  # unsigned ones cannot hold ignore_index


def _class_weight(name: str, weight: Any, x: Tensor, classes: int) -> Tensor | None:
    if weight is None:
        return None
    weight = as_tensor(weight)
    if weight.shape != (classes,):
        raise user_error(
            ShapeError,
            f"{name}: weight must be [{classes}], one for each class of {list(x.shape)}, got {list(weight.shape)}",
        )
    return weight


def _at_label(x: Tensor, label: Tensor) -> Tensor:
    """The score of each label: x [N, C, ...], label [N, ...] -> [N, ...]."""
    axis = 0 if x.ndim == 1 else 1
    return ops.squeeze(emit.bind("take_along", x, ops.unsqueeze(label, axis), axis=axis), axis)


def nll_loss(
    input: Any,  # noqa: A002
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Minus the log-probability of each label: input [N, C, ...], labels [N, ...] (or [C] and one label).

    weight [C] scales each class, and "mean" divides by the sum of the weights; labels equal to `ignore_index` do not
    count. Raises IndexRangeError for another label outside of [0, C): it names the label and its place.
    """
    x = as_tensor(input)
    _check_reduction("nll_loss", reduction)
    label = _labels("nll_loss", x, target, ignore_index)
    losses, weights = _nll(x, label, _class_weight("nll_loss", weight, x, x.shape[min(x.ndim - 1, 1)]), ignore_index)
    return ops.sum(losses) / ops.sum(weights) if reduction == "mean" else _reduced(losses, reduction)


def _nll(x: Tensor, label: Tensor, weight: Tensor | None, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The loss and the weight of each label; 0 where it is ignored."""
    counts = label != ignore_index
    safe = ops.where(counts, label, 0)
    losses = ops.neg(_at_label(x, safe))
    if weight is None:
        return ops.where(counts, losses, 0.0), ops.cast(counts, x.dtype)
    weights = ops.where(counts, emit.bind("take", weight, safe, axis=0), 0.0)
    return ops.where(counts, losses * weights, 0.0), weights


def cross_entropy(
    input: Any,  # noqa: A002
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """nll_loss(log_softmax(input), target): scores [N, C, ...] with labels [N, ...], or with probabilities [N, C, ...].

    label_smoothing mixes the target with the uniform distribution. Raises IndexRangeError for a label outside of [0,
    C).
    """
    x, target = as_tensor(input), as_tensor(target)
    _check_reduction("cross_entropy", reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise user_error(OptionError, f"cross_entropy: label_smoothing must be in [0, 1], got {label_smoothing}")
    if x.ndim == 0:
        raise user_error(ShapeError, "cross_entropy: scores need a class axis, got a 0-d tensor")
    axis = min(x.ndim - 1, 1)
    weight = _class_weight("cross_entropy", weight, x, x.shape[axis])
    logs = log_softmax(x, axis)
    if is_float(target.dtype):
        return _soft_cross_entropy(logs, target, weight, reduction, label_smoothing)
    label = _labels("cross_entropy", x, target, ignore_index)
    losses, weights = _nll(logs, label, weight, ignore_index)
    if label_smoothing:
        spread = ops.neg(ops.sum(logs if weight is None else logs * _along(weight, logs, axis), axis))
        spread = ops.where(label != ignore_index, spread, 0.0)
        losses = losses * (1.0 - label_smoothing) + spread * (label_smoothing / x.shape[axis])
    return ops.sum(losses) / ops.sum(weights) if reduction == "mean" else _reduced(losses, reduction)


def _along(weight: Tensor, x: Tensor, axis: int) -> Tensor:
    return ops.reshape(weight, tuple(-1 if i == axis else 1 for i in range(x.ndim)))


def _soft_cross_entropy(
    logs: Tensor, target: Tensor, weight: Tensor | None, reduction: str, smoothing: float
) -> Tensor:
    if target.shape != logs.shape:
        raise user_error(
            ShapeError,
            f"cross_entropy: probabilities {list(target.shape)} should have the shape of the scores {list(logs.shape)}",
        )
    axis = min(logs.ndim - 1, 1)
    if smoothing:
        target = target * (1.0 - smoothing) + smoothing / logs.shape[axis]
    terms = logs * target if weight is None else logs * target * _along(weight, logs, axis)
    losses = ops.neg(ops.sum(terms, axis))
    return _reduced(losses, reduction)


def _pair(name: str, x: Any, target: Any) -> tuple[Tensor, Tensor]:
    x, target = as_tensor(x), as_tensor(target)
    ops.elementwise.broadcast_shapes(name, x.shape, target.shape)
    return x, target


def _same_shape(name: str, x: Any, target: Any) -> tuple[Tensor, Tensor]:
    x, target = as_tensor(x), as_tensor(target)
    if x.shape != target.shape:
        raise user_error(
            ShapeError, f"{name}: input {list(x.shape)} and target {list(target.shape)} must have the same shape"
        )
    if not is_float(target.dtype):
        target = ops.cast(target, x.dtype)
    return x, target


def binary_cross_entropy(input: Any, target: Any, weight: Any = None, reduction: str = "mean") -> Tensor:  # noqa: A002
    """-(target log(input) + (1 - target) log(1 - input)) of probabilities; each logarithm is at least -100, as in
    PyTorch.
    """
    _check_reduction("binary_cross_entropy", reduction)
    x, target = _same_shape("binary_cross_entropy", input, target)
    yes = ops.clamp(ops.log(x), min=-100.0)
    no = ops.clamp(ops.log1p(ops.neg(x)), min=-100.0)
    losses = (target - 1.0) * no - target * yes
    return _reduced(losses if weight is None else losses * weight, reduction)


def binary_cross_entropy_with_logits(
    input: Any,  # noqa: A002
    target: Any,
    weight: Any = None,
    reduction: str = "mean",
    pos_weight: Any = None,
) -> Tensor:
    """binary_cross_entropy(sigmoid(input), target), without overflow; pos_weight scales the positive class."""
    _check_reduction("binary_cross_entropy_with_logits", reduction)
    x, target = _same_shape("binary_cross_entropy_with_logits", input, target)
    # -log(sigmoid(x)) = softplus(-x) = max(-x, 0) + log(1 + exp(-|x|))
    minus_log = ops.maximum(ops.neg(x), 0.0) + ops.log1p(ops.exp(ops.neg(ops.abs(x))))
    scale = 1.0 if pos_weight is None else (as_tensor(pos_weight) - 1.0) * target + 1.0
    losses = (1.0 - target) * x + minus_log * scale
    return _reduced(losses if weight is None else losses * weight, reduction)


def mse_loss(input: Any, target: Any, reduction: str = "mean") -> Tensor:  # noqa: A002
    """(input - target) ** 2."""
    _check_reduction("mse_loss", reduction)
    x, target = _pair("mse_loss", input, target)
    return _reduced(ops.square(x - target), reduction)


def l1_loss(input: Any, target: Any, reduction: str = "mean") -> Tensor:  # noqa: A002
    """|input - target|."""
    _check_reduction("l1_loss", reduction)
    x, target = _pair("l1_loss", input, target)
    return _reduced(ops.abs(x - target), reduction)


def huber_loss(input: Any, target: Any, reduction: str = "mean", delta: float = 1.0) -> Tensor:  # noqa: A002
    """Half the squared difference up to `delta`, linear beyond."""
    _check_reduction("huber_loss", reduction)
    if delta <= 0:
        raise user_error(OptionError, f"huber_loss: delta must be positive, got {delta}")
    x, target = _pair("huber_loss", input, target)
    error = ops.abs(x - target)
    return _reduced(ops.where(error < delta, error * error * 0.5, (error - 0.5 * delta) * delta), reduction)


def smooth_l1_loss(input: Any, target: Any, reduction: str = "mean", beta: float = 1.0) -> Tensor:  # noqa: A002
    """Half the squared difference / beta below `beta`, |difference| - beta / 2 beyond."""
    _check_reduction("smooth_l1_loss", reduction)
    if beta < 0:
        raise user_error(OptionError, f"smooth_l1_loss: beta must not be negative, got {beta}")
    if beta == 0:
        return l1_loss(input, target, reduction)
    x, target = _pair("smooth_l1_loss", input, target)
    error = ops.abs(x - target)
    return _reduced(ops.where(error < beta, error * error * (0.5 / beta), error - 0.5 * beta), reduction)


def kl_div(input: Any, target: Any, reduction: str = "mean", log_target: bool = False) -> Tensor:  # noqa: A002
    """target * (log(target) - input): input holds log-probabilities. "batchmean" divides by the first axis."""
    if reduction != "batchmean":
        _check_reduction("kl_div", reduction)
    x, target = _pair("kl_div", input, target)
    if log_target:
        losses = ops.exp(target) * (target - x)
    else:
        positive = target > 0
        losses = ops.where(positive, target * ops.log(ops.where(positive, target, 1.0)), 0.0) - target * x
    if reduction == "batchmean":
        return ops.sum(losses) / losses.shape[0]
    return _reduced(losses, reduction)
