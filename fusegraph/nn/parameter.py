"""Parameter, and what modules and optimizers do to tensors that are state."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from fusegraph.errors import TraceError
from fusegraph.ir import emit
from fusegraph.tensor import Tensor, as_tensor, user_error
from fusegraph.trace import configuration_changed


class Parameter(Tensor):
    """A tensor that a module learns: assigned to an attribute of a module it becomes one of its parameters."""

    __slots__ = ()

    def __new__(cls, data: Any, requires_grad: bool = True) -> Parameter:
        source = as_tensor(data)
        if source.is_symbol:
            raise user_error(TraceError, "a Parameter is made of values; make it outside of the compiled function")
        array = source._value
        self = cls._make(array if array.flags.writeable else array.copy())
        assert isinstance(self, Parameter)
        self.requires_grad_(requires_grad)
        return self

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        pass

    @property
    def requires_grad(self) -> bool:  # type: ignore[override]
        """Whether a gradient is collected for it. Compiled functions notice a change."""
        return Tensor.requires_grad.__get__(self)  # type: ignore[attr-defined, no-any-return]

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        Tensor.requires_grad.__set__(self, bool(value))  # type: ignore[attr-defined]
        configuration_changed()

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"


def set_value(tensor: Tensor, array: np.ndarray[Any, Any]) -> None:
    """Give `tensor` other memory (of another dtype, maybe)."""
    tensor._value = array
    tensor._version += 1
    configuration_changed()


def name_tensor(tensor: Any, path: str) -> None:
    """Remember the longest dotted path that ends in what the tensor was called before."""
    clean = re.sub(r"[^\w.]", "_", path)
    if not tensor.name or clean.endswith("." + tensor.name):
        tensor.name = clean


def clear_grad(param: Tensor, set_to_none: bool = True) -> None:
    """Set `.grad` to None (or to zeros, where there is one); while tracing, remembering what it was."""
    if set_to_none:
        param.grad = None
    elif (held := param.grad) is not None:
        param.grad = emit.full_like(held.detach(), 0.0)
