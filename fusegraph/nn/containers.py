"""Modules that hold others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fusegraph.nn.module import Module
from fusegraph.nn.parameter import Parameter

__all__ = ["ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "Sequential"]


class _Holder(Module):
    """A module that is not called itself: what it holds is found under its own name and the entry's ("layers.0")."""

    def _set_scope(self, scope: str) -> None:
        super()._set_scope(scope)
        for name, module in self._modules.items():
            if module is not None:
                module._set_scope(f"{scope}.{name}")

    def add_module(self, name: str, module: Module | None) -> None:
        super().add_module(name, module)
        if module is not None and self._scope:
            module._set_scope(f"{self._scope}.{name}")

    register_module = add_module


class _Numbered(Module):
    """Modules under the names "0", "1", ..."""

    def _list(self) -> list[Any]:
        return list(self._modules.values())

    def _refill(self, modules: Iterable[Module]) -> None:
        modules = list(modules)
        self._modules.clear()
        for index, module in enumerate(modules):
            self.add_module(str(index), module)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._list())

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)._of(self._list()[index])
        return self._list()[index]

    def __setitem__(self, index: int, module: Module) -> None:
        modules = self._list()
        modules[index] = module
        self._refill(modules)

    def __delitem__(self, index: int | slice) -> None:
        modules = self._list()
        del modules[index]
        self._refill(modules)

    def append(self, module: Module) -> Any:
        """Add a module at the end."""
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Any:
        """Add modules at the end."""
        for module in modules:
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> Any:
        """Put a module before the one at `index`."""
        modules = self._list()
        modules.insert(index, module)
        self._refill(modules)
        return self

    @classmethod
    def _of(cls, modules: Iterable[Module]) -> Any:
        raise NotImplementedError


class Sequential(_Numbered):
    """Modules that run one after the other: `Sequential(a, b)` or `Sequential({"first": a, "second": b})`."""

    def __init__(self, *modules: Any) -> None:
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, module in modules[0].items():
                self.add_module(name, module)
        else:
            self._refill(modules)

    @classmethod
    def _of(cls, modules: Iterable[Module]) -> Sequential:
        return cls(*modules)

    def forward(self, x: Any) -> Any:
        """`x` through all of them."""
        for module in self._modules.values():
            assert module is not None
            x = module(x)
        return x


class ModuleList(_Holder, _Numbered):
    """A list of modules that its owner calls."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self._refill(modules)

    @classmethod
    def _of(cls, modules: Iterable[Module]) -> ModuleList:
        return cls(modules)


class ModuleDict(_Holder):
    """Modules by name that their owner calls."""

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        super().__init__()
        self.update(modules or {})

    def update(self, modules: Mapping[str, Module]) -> None:
        """Add all of `modules`."""
        for name, module in modules.items():
            self[name] = module

    def __getitem__(self, name: str) -> Any:
        return self._modules[name]

    def __setitem__(self, name: str, module: Module) -> None:
        self.add_module(name, module)

    def __delitem__(self, name: str) -> None:
        del self._modules[name]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def keys(self) -> Any:
        """The names."""
        return self._modules.keys()

    def values(self) -> Any:
        """The modules."""
        return self._modules.values()

    def items(self) -> Any:
        """Names and modules."""
        return self._modules.items()


class ParameterList(Module):
    """A list of parameters that its owner uses; tensors and arrays become parameters."""

    def __init__(self, values: Iterable[Any] = ()) -> None:
        super().__init__()
        self.extend(values)

    def append(self, value: Any) -> ParameterList:
        """Add a parameter at the end."""
        self.register_parameter(str(len(self)), value if isinstance(value, Parameter) else Parameter(value))
        return self

    def extend(self, values: Iterable[Any]) -> ParameterList:
        """Add parameters at the end."""
        for value in values:
            self.append(value)
        return self

    def __len__(self) -> int:
        return len(self._parameters)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._parameters.values())

    def __getitem__(self, index: int) -> Any:
        return list(self._parameters.values())[index]

    def __setitem__(self, index: int, value: Any) -> None:
        name = list(self._parameters)[index]
        self.register_parameter(name, value if isinstance(value, Parameter) else Parameter(value))


class ParameterDict(Module):
    """Parameters by name that their owner uses; tensors and arrays become parameters."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        for name, value in (values or {}).items():
            self[name] = value

    def __getitem__(self, name: str) -> Any:
        return self._parameters[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.register_parameter(name, value if isinstance(value, Parameter) else Parameter(value))

    def __len__(self) -> int:
        return len(self._parameters)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    def keys(self) -> Any:
        """The names."""
        return self._parameters.keys()

    def items(self) -> Any:
        """Names and parameters."""
        return self._parameters.items()
