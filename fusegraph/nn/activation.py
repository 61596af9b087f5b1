"""Activations as modules."""

from __future__ import annotations

from typing import Any

from fusegraph import functional as F
from fusegraph.nn.module import Module
from fusegraph.tensor import Tensor

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "LogSigmoid",
    "LogSoftmax",
    "Mish",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softmin",
    "Softplus",
    "Softsign",
    "Tanh",
]


class _Activation(Module):
    """A function of one tensor whose options are attributes of the module, in the order of `_options`."""

    _function: str
    _options: dict[str, Any] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        inplace = kwargs.pop(
            "inplace", False
        )  # accepted for PyTorch's sake: the compiler decides what is written in place
        del inplace
        unknown = set(kwargs) - set(self._options)
        if len(args) > len(self._options) or unknown:
            raise TypeError(f"{type(self).__name__} takes the options {list(self._options)}")
        values = {**self._options, **dict(zip(self._options, args)), **kwargs}
        for name, value in values.items():
            setattr(self, name, value)

    def forward(self, x: Any) -> Tensor:
        """Any shape; the same shape comes out."""
        options = {name: getattr(self, name) for name in self._options}
        return getattr(F, self._function)(x, **options)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self._options)


class ReLU(_Activation):
    """max(x, 0)."""

    _function = "relu"


class ReLU6(_Activation):
    """x kept inside of [0, 6]."""

    _function = "relu6"


class GELU(_Activation):
    """x times the normal distribution function; approximate: "none" or "tanh"."""

    _function, _options = "gelu", {"approximate": "none"}


class SiLU(_Activation):
    """x * sigmoid(x)."""

    _function = "silu"


class Mish(_Activation):
    """x * tanh(softplus(x))."""

    _function = "mish"


class Tanh(_Activation):
    """The hyperbolic tangent."""

    _function = "tanh"


class Sigmoid(_Activation):
    """1 / (1 + exp(-x))."""

    _function = "sigmoid"


class LogSigmoid(_Activation):
    """log(sigmoid(x))."""

    _function = "logsigmoid"


class Softplus(_Activation):
    """log(1 + exp(beta x)) / beta; x itself where beta x > threshold."""

    _function, _options = "softplus", {"beta": 1.0, "threshold": 20.0}


class Softsign(_Activation):
    """x / (1 + |x|)."""

    _function = "softsign"


class ELU(_Activation):
    """x where positive, else alpha (exp(x) - 1)."""

    _function, _options = "elu", {"alpha": 1.0}


class CELU(_Activation):
    """x where positive, else alpha (exp(x / alpha) - 1)."""

    _function, _options = "celu", {"alpha": 1.0}


class LeakyReLU(_Activation):
    """x where positive, else negative_slope x."""

    _function, _options = "leaky_relu", {"negative_slope": 0.01}


class Hardtanh(_Activation):
    """x kept inside of [min_val, max_val]."""

    _function, _options = "hardtanh", {"min_val": -1.0, "max_val": 1.0}


class Hardsigmoid(_Activation):
    """x / 6 + 1/2 kept inside of [0, 1]."""

    _function = "hardsigmoid"


class Hardswish(_Activation):
    """x * hardsigmoid(x)."""

    _function = "hardswish"


class Softmax(_Activation):
    """exp(x) divided by its sum over `dim`."""

    _function, _options = "softmax", {"dim": -1}


class Softmin(_Activation):
    """softmax(-x)."""

    _function, _options = "softmin", {"dim": -1}


class LogSoftmax(_Activation):
    """log(softmax(x)) over `dim`."""

    _function, _options = "log_softmax", {"dim": -1}
