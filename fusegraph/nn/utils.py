"""Gradient clipping, and parameters as one vector."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fusegraph import ops
from fusegraph.autograd import no_grad
from fusegraph.errors import GradientError, OptionError
from fusegraph.nn.parameter import Parameter
from fusegraph.tensor import Tensor, user_error
from fusegraph.trace import current_trace

__all__ = ["clip_grad_norm_", "clip_grad_value_", "parameters_to_vector", "vector_to_parameters"]


def _with_grads(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    return [param for param in given if param.grad is not None]


def set_grad(param: Tensor, gradient: Tensor) -> None:
    """Replace `param.grad`; while tracing, what it was is remembered."""
    trace = current_trace()
    if trace is not None:
        trace.set_grad(param, gradient)
    param.grad = gradient


@no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale all gradients so that the norm of all of them together is at most `max_norm`; gives the norm before.

    Raises GradientError for a norm that is not finite, if asked to (not in compiled code).
    """
    params = _with_grads(parameters)
    if not params:
        return ops.zeros(())
    norms = [ops.norm(param.grad, norm_type) for param in params]
    total = ops.norm(ops.stack(norms), norm_type) if len(norms) > 1 else norms[0]
    if error_if_nonfinite and not ops.isfinite(total).item():
        raise user_error(GradientError, f"the gradients' {norm_type}-norm is {total.item()}: it cannot be clipped")
    scale = ops.clamp(max_norm / (total + 1e-6), max=1.0)
    for param in params:
        assert param.grad is not None
        set_grad(param, param.grad * ops.cast(scale, param.dtype))
    return total


@no_grad()
def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Keep every element of every gradient inside of [-clip_value, clip_value]."""
    if clip_value < 0:
        raise user_error(OptionError, f"clip_grad_value_: clip_value must not be negative, got {clip_value}")
    for param in _with_grads(parameters):
        set_grad(param, ops.clamp(param.grad, -clip_value, clip_value))


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All parameters, flattened and joined."""
    return ops.cat([ops.reshape(param, (-1,)) for param in parameters])


@no_grad()
def vector_to_parameters(vec: Any, parameters: Iterable[Parameter]) -> None:
    """Copy the parts of one vector into parameters. Raises OptionError when the sizes do not add up."""
    params = list(parameters)
    total = sum(param.numel() for param in params)
    if vec.shape != (total,):
        raise user_error(OptionError, f"vector_to_parameters: {total} elements are needed, got shape {list(vec.shape)}")
    for param, part in zip(params, ops.split(vec, [param.numel() for param in params]), strict=True):
        param.copy_(ops.reshape(part, param.shape))
