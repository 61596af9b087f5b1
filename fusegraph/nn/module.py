"""Module: parameters, buffers and other modules under names; and Parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fusegraph import autograd
from fusegraph.dtypes import as_dtype, float64, is_float
from fusegraph.errors import DTypeError, FusegraphError, StateError, UnsupportedError
from fusegraph.ir.location import module_path, module_scope
from fusegraph.nn.parameter import Parameter, clear_grad, name_tensor, set_value
from fusegraph.tensor import Tensor, as_tensor, user_error
from fusegraph.trace import configuration_changed, current_trace

M = TypeVar("M", bound="Module")
_PLAIN = (bool, int, float, str, type(None))


class LoadResult(NamedTuple):
    """What `load_state_dict` did not find, and what it had no place for."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """Base of all layers and networks: assign parameters and modules to attributes, and write `forward`.

    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.fc = nn.Linear(4, 2)
    ...     def forward(self, x):
    ...         return self.fc(x).relu()
    """

    training: bool
    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]

    def __init__(self) -> None:
        fields = self.__dict__
        fields["_parameters"], fields["_buffers"], fields["_modules"] = {}, {}, {}
        fields["_transient"] = set()  # names of buffers that are not saved
        fields["_scope"] = ""  # the attribute of its parent that it is
        fields["training"] = True

    # -- registration -------------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        if "_parameters" not in self.__dict__:
            if isinstance(value, (Tensor, Module)):
                raise AttributeError(f"{type(self).__name__}: call super().__init__() before assigning {name!r}")
            object.__setattr__(self, name, value)
        elif isinstance(value, Parameter):
            self.register_parameter(name, value)
        elif isinstance(value, Module):
            self.add_module(name, value)
        elif name in self._parameters:
            if value is not None:
                raise TypeError(
                    f"{name!r} is a parameter of {type(self).__name__}: assign a Parameter or None, "
                    f"not {type(value).__name__}"
                )
            self._parameters[name] = None
        elif name in self._modules and value is None:
            self._modules[name] = None
        elif name in self._buffers:
            self._set_buffer(name, value)
        else:
            configuration_changed()
            self._modules.pop(name, None)
            object.__setattr__(self, name, value)

    def _set_buffer(self, name: str, value: Any) -> None:
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(
                f"{name!r} is a buffer of {type(self).__name__}: assign a tensor or None, not {type(value).__name__}"
            )
        if isinstance(value, Tensor) and value.is_symbol:
            self._write_buffer(name, value)
            return
        self._buffers[name] = value
        configuration_changed()

    def _write_buffer(self, name: str, value: Tensor) -> None:
        """A traced value is assigned: the compiled function writes it into the buffer's memory at each call."""
        held = self._buffers[name]
        if held is None or (held.shape, held.dtype) != (value.shape, value.dtype) or value.requires_grad:
            raise user_error(
                UnsupportedError,
                f"buffer {name!r} is assigned in a compiled function: it must be there, of the same shape and dtype (now "
                f"{value.dtype.name}{list(value.shape)}), and the value without a gradient (.detach() it)",
            )
        with autograd.no_grad():
            held.copy_(value)

    def __getattr__(self, name: str) -> Any:
        for kind in ("_parameters", "_buffers", "_modules"):
            found = self.__dict__.get(kind)
            if found is not None and name in found:
                return found[name]
        hint = "" if "_parameters" in self.__dict__ else " (was super().__init__() called?)"
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}")

    def __delattr__(self, name: str) -> None:
        for found in (self._parameters, self._buffers, self._modules):
            if name in found:
                del found[name]
                configuration_changed()
                return
        object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._parameters, *self._buffers, *self._modules})

    def _claim(self, name: str, kind: dict[str, Any]) -> None:
        """Make `name` free for an entry of `kind`."""
        configuration_changed()
        if not isinstance(name, str) or not name or "." in name:
            raise KeyError(f"{type(self).__name__}: a name must be a string without dots, got {name!r}")
        if "_parameters" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__}: call super().__init__() before assigning {name!r}")
        if name not in kind and callable(getattr(type(self), name, None)):
            raise KeyError(f"{type(self).__name__}: the name {name!r} is taken by a method")
        for other in (self.__dict__, self._parameters, self._buffers, self._modules):
            if other is not kind:
                other.pop(name, None)

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter (or None) under `name`."""
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(f"{name!r}: register_parameter takes a Parameter or None, got {type(param).__name__}")
        self._claim(name, self._parameters)
        self._parameters[name] = param
        if param is not None:
            name_tensor(param, name)

    def register_buffer(self, name: str, tensor: Any, persistent: bool = True) -> None:
        """Add a tensor that is state but not learned, under `name`; not saved unless `persistent`."""
        self._claim(name, self._buffers)
        self._buffers[name] = None if tensor is None else as_tensor(tensor)
        (self._transient.discard if persistent else self._transient.add)(name)
        if tensor is not None:
            name_tensor(self._buffers[name], name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a module (or None) under `name`."""
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"{name!r}: add_module takes a Module or None, got {type(module).__name__}")
        self._claim(name, self._modules)
        self._modules[name] = module
        if module is not None:
            module._set_scope(name)

    register_module = add_module

    def _set_scope(self, scope: str) -> None:
        object.__setattr__(self, "_scope", scope)

    # -- walking ------------------------------------------------------------------------------------------------------

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """This module (under `prefix`) and all inside of it, under dotted names; each once."""
        seen: set[Module] = set() if memo is None else memo
        if remove_duplicate and self in seen:
            return
        seen.add(self)
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                yield from module.named_modules(seen, f"{prefix}.{name}" if prefix else name, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        """This module and all inside of it."""
        return (module for _, module in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly inside of this one."""
        seen = set()
        for name, module in self._modules.items():
            if module is not None and module not in seen:
                seen.add(module)
                yield name, module

    def children(self) -> Iterator[Module]:
        """The modules directly inside of this one."""
        return (module for _, module in self.named_children())

    def _named(self, kind: str, prefix: str, recurse: bool, remove_duplicate: bool) -> Iterator[tuple[str, Any]]:
        seen = set()
        modules = self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate) if recurse else [(prefix, self)]
        for path, module in modules:
            for name, value in module.__dict__[kind].items():
                if value is None or (remove_duplicate and id(value) in seen):
                    continue
                seen.add(id(value))
                full = f"{path}.{name}" if path else name
                name_tensor(value, full)
                yield full, value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """All parameters under dotted names; a shared one once."""
        return self._named("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """All parameters; a shared one once."""
        return (param for _, param in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """All buffers under dotted names; a shared one once."""
        return self._named("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """All buffers; a shared one once."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    def get_submodule(self, target: str) -> Module:
        """The module at a dotted path ("" is this one). Raises AttributeError."""
        module = self
        for part in target.split(".") if target else []:
            found = module._modules.get(part)
            if found is None:
                raise AttributeError(f"{type(module).__name__} has no module {part!r} (looking for {target!r})")
            module = found
        return module

    def get_parameter(self, target: str) -> Parameter:
        """The parameter at a dotted path. Raises AttributeError."""
        path, _, name = target.rpartition(".")
        found = self.get_submodule(path)._parameters.get(name)
        if found is None:
            raise AttributeError(f"{type(self).__name__} has no parameter {target!r}")
        return found

    # -- calling ------------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes: written by each class."""
        raise user_error(
            UnsupportedError,
            f"{type(self).__name__} has no forward(self, ...): define it, or call a module inside of it",
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if "_parameters" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__}: call super().__init__() in its __init__")
        trace, inside = current_trace(), module_path()
        if trace is not None and not inside:
            self._name_state()
        with module_scope((self._scope if inside else "") or type(self).__name__):
            if trace is not None:
                trace.guard(f"training mode of {module_path()}", self._is_training)
                trace.guard(f"settings of {module_path()}", self._settings)
            return self.forward(*args, **kwargs)

    def _is_training(self) -> bool:
        return self.training

    def _settings(self) -> dict[str, Any]:
        """What `forward` may depend on: plain attributes, and which parameters, buffers and modules there are."""
        plain = {
            name: value
            for name, value in self.__dict__.items()
            if isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(isinstance(v, _PLAIN) for v in value))
        }
        parts = {
            name: id(part) for kind in (self._parameters, self._buffers, self._modules) for name, part in kind.items()
        }
        return {**plain, **parts, "training": None, "_scope": None}

    def _name_state(self) -> None:
        """Give parameters and buffers their dotted names (they become names of the graph's inputs)."""
        for walk in (self.named_parameters(), self.named_buffers()):
            for _ in walk:
                pass

    # -- modes and conversions ----------------------------------------------------------------------------------------

    def train(self: M, mode: bool = True) -> M:
        """Training mode (dropout, batch statistics), or not, for this module and all inside of it."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """Evaluation mode: `train(False)`."""
        return self.train(False)

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Collect (or do not collect) gradients for all parameters."""
        for param in self.parameters():
            param.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters (or make them 0)."""
        for param in self.parameters():
            clear_grad(param, set_to_none)

    def apply(self: M, fn: Callable[[Module], Any]) -> M:
        """Call `fn` on all modules inside, then on this one."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    def to(self: M, dtype: Any = None, **ignored: Any) -> M:
        """Floating point parameters and buffers as `dtype`, in place.

        Devices do not exist here: `to("cpu")` does nothing.
        """
        if dtype is None or (isinstance(dtype, str) and dtype == "cpu"):
            return self
        kind = as_dtype(dtype)
        if not is_float(kind):
            raise user_error(DTypeError, f"a module can be made float32 or float64, not {kind.name}")
        for tensor in (*self.parameters(), *self.buffers()):
            if is_float(tensor.dtype) and tensor.dtype != kind:
                set_value(tensor, tensor._value.astype(kind))
                tensor.grad = None if tensor.grad is None else tensor.grad.detach().to(kind)
        return self

    def float(self: M) -> M:
        """Floating point state as float32."""
        return self.to("float32")

    def double(self: M) -> M:
        """Floating point state as float64."""
        return self.to(float64)

    # -- state --------------------------------------------------------------------------------------------------------

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        for path, module in self.named_modules(remove_duplicate=False):
            for kind in (module._parameters, module._buffers):
                for name, tensor in kind.items():
                    if tensor is not None and not (kind is module._buffers and name in module._transient):
                        yield f"{path}.{name}" if path else name, tensor

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and persistent buffers by dotted name. They share memory with the module."""
        return {prefix + name: tensor.detach() for name, tensor in self._state()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Copy values (tensors or arrays) into parameters and buffers, in place.

        With `strict` names must agree exactly. Raises StateError, which names every entry that is missing, unexpected
        or of another shape or type; then nothing was changed.
        """
        if not isinstance(state_dict, Mapping):
            raise StateError(f"load_state_dict takes a mapping of names to tensors, got {type(state_dict).__name__}")
        own = dict(self._state())
        missing = [name for name in own if name not in state_dict]
        unexpected = [name for name in state_dict if name not in own]
        faults = []
        if strict and missing:
            faults.append(f"missing: {', '.join(missing)}")
        if strict and unexpected:
            faults.append(f"unexpected: {', '.join(map(str, unexpected))}")
        values = {}
        for name, tensor in own.items():
            if name in state_dict:
                values[name] = _fitting(name, tensor, state_dict[name], faults)
        if faults:
            raise StateError(
                f"the state does not fit {type(self).__name__} (nothing was loaded)\n  " + "\n  ".join(faults)
            )
        with autograd.no_grad():
            for name, value in values.items():
                own[name].copy_(value)
        return LoadResult(missing, unexpected)

    # -- text ---------------------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What a class adds to its text."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        children = [f"({name}): " + repr(module).replace("\n", "\n  ") for name, module in self._modules.items()]
        if not children:
            return f"{type(self).__name__}({extra})"
        lines = ([extra] if extra else []) + children
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"


def _fitting(name: str, tensor: Tensor, value: Any, faults: list[str]) -> Any:
    """`value` as an array that fits `tensor`; what is wrong with it is added to `faults`."""
    try:
        array = np.asarray(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, FusegraphError) as error:
        faults.append(f"{name}: not an array ({error})")
        return None
    if array.dtype.kind not in "biuf":
        faults.append(f"{name}: {array.dtype} values, should be {tensor.dtype.name}")
    elif array.shape != tensor.shape:
        faults.append(f"{name}: shape {list(array.shape)}, should be {list(tensor.shape)}")
    elif is_float(array.dtype) and not is_float(tensor.dtype):
        faults.append(f"{name}: {array.dtype.name} values, should be {tensor.dtype.name}")
    return array
