"""`dataclass`, `field` and `replace` of the standard library, in a tenth of the time.

The standard library compiles half a dozen methods for each class when its module is imported: 0.5 ms a class, 50 ms for
the classes of the compiler, which is a tenth of what a small step takes to compile. Here methods are shared by all classes,
but for `__init__`, which is compiled when the first instance is made. Instances are dataclasses for everybody else
(`dataclasses.fields`, `asdict` and `replace` take them).

Left out, as nothing here needs it: `order`, `slots`, `kw_only`, `match_args`, `InitVar`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError, field
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform, overload

__all__ = ["dataclass", "field", "replace"]

T = TypeVar("T")
_FIELD = getattr(dataclasses, "_FIELD")  # noqa: B009  (how `dataclasses.fields` knows a field)
_FACTORY = object()  # stands for "not given" where the default is made anew each time


@overload
def dataclass(cls: type[T]) -> type[T]: ...


@overload
def dataclass(*, frozen: bool = False, eq: bool = True, repr: bool = True) -> Callable[[type[T]], type[T]]: ...


@dataclass_transform(field_specifiers=(field,))
def dataclass(
    cls: type[T] | None = None, *, frozen: bool = False, eq: bool = True, repr: bool = True
) -> type[T] | Callable[[type[T]], type[T]]:
    """As `dataclasses.dataclass`, for these options."""

    def make(cls: type[T]) -> type[T]:
        return _made(cls, frozen, eq, repr)

    return make if cls is None else make(cls)


def replace(instance: T, /, **changes: Any) -> T:
    """As `dataclasses.replace`: a copy with some fields changed. Raises TypeError for what is not a field."""
    fields = instance.__dataclass_fields__  # type: ignore[attr-defined]
    values = {name: getattr(instance, name) for name, one in fields.items() if one.init and one._field_type is _FIELD}
    values.update(changes)
    return type(instance)(**values)


def _made(cls: type[T], frozen: bool, eq: bool, repr_: bool) -> type[T]:
    fields = _fields_of(cls)
    own = cls.__dict__
    methods: dict[str, Any] = {"__init__": _first_init(cls, fields, frozen)}
    compared = tuple([name for name, one in fields.items() if one.compare])
    if repr_ and "__repr__" not in own:
        methods["__repr__"] = _repr_of(tuple([name for name, one in fields.items() if one.repr]))
    if eq:
        values = _values_of(compared)
        if "__eq__" not in own:
            methods["__eq__"] = _eq_of(values)
        if frozen and own.get("__hash__") is None:
            methods["__hash__"] = _hash_of(values)
        elif not frozen and "__hash__" not in own:
            methods["__hash__"] = None
    if frozen:
        methods["__setattr__"], methods["__delattr__"] = _refuse_set, _refuse_delete
    for name, method in methods.items():
        setattr(cls, name, method)
    return cls


def _fields_of(cls: type) -> dict[str, Field[Any]]:
    """Fields by name, those of base classes first; class attributes become their defaults."""
    fields: dict[str, Field[Any]] = {}
    for base in cls.__mro__[-1:0:-1]:
        fields.update(getattr(base, "__dataclass_fields__", {}))
    for name, type_ in cls.__dict__.get("__annotations__", {}).items():
        if str(type_).startswith(("ClassVar", "typing.ClassVar")):
            continue
        default = cls.__dict__.get(name, MISSING)
        one: Any = default if isinstance(default, Field) else field(default=default)
        if isinstance(default, Field):
            if one.default is MISSING:
                delattr(cls, name)
            else:
                setattr(cls, name, one.default)
        one.name, one.type, one._field_type = name, type_, _FIELD
        fields[name] = one
    cls.__dataclass_fields__ = fields  # type: ignore[attr-defined]
    return fields


def _first_init(cls: type, fields: dict[str, Field[Any]], frozen: bool) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init = _init_of(cls, fields, frozen)
        if cls.__dict__["__init__"] is __init__:  # no other thread was first
            type.__setattr__(cls, "__init__", init)
        init(self, *args, **kwargs)

    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    return __init__


def _init_of(cls: type, fields: dict[str, Field[Any]], frozen: bool) -> Callable[..., None]:
    """`__init__`, compiled."""
    known: dict[str, Any] = {"_set": object.__setattr__, "_factory": _FACTORY}
    parameters, body = ["self"], []
    for name, one in fields.items():
        value, given = name, name
        if one.default is not MISSING:
            known[f"_default_{name}"] = one.default
            given, value = f"{name}=_default_{name}", name if one.init else f"_default_{name}"
        elif one.default_factory is not MISSING:
            known[f"_make_{name}"] = one.default_factory
            given, value = f"{name}=_factory", f"_make_{name}() if {name} is _factory else {name}"
            value = value if one.init else f"_make_{name}()"
        if one.init:
            parameters.append(given)
        elif value == name:  # __post_init__ sets it
            continue
        body.append(f"_set(self, {name!r}, {value})" if frozen else f"self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    lines = "\n    ".join(body or ["pass"])
    exec(f"def __init__({', '.join(parameters)}):\n    {lines}", known)
    init: Callable[..., None] = known["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    return init


def _values_of(names: tuple[str, ...]) -> Callable[[Any], Any]:
    """The values of the fields of an instance, as one object to compare and to hash."""
    if len(names) == 1:
        return lambda self: (getattr(self, names[0]),)
    return attrgetter(*names) if names else type


def _eq_of(values: Callable[[Any], Any]) -> Callable[[Any, object], bool]:
    def __eq__(self: Any, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return bool(values(self) == values(other))

    return __eq__


def _hash_of(values: Callable[[Any], Any]) -> Callable[[Any], int]:
    def __hash__(self: Any) -> int:
        return hash(values(self))

    return __hash__


def _repr_of(names: tuple[str, ...]) -> Callable[[Any], str]:
    def __repr__(self: Any) -> str:
        inside = ", ".join([f"{name}={getattr(self, name)!r}" for name in names])
        return f"{self.__class__.__qualname__}({inside})"

    return __repr__


def _refuse_set(self: Any, name: str, value: Any) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_delete(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")
