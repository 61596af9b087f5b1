"""What an entry of the table of primitives is, and how entries get into the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fusegraph.dtypes import DType
from fusegraph.errors import DTypeError, ShapeError
from fusegraph.records import dataclass, field

Shape = tuple[int, ...]
Params = Mapping[str, Any]
Array = np.ndarray[Any, Any]


class Typed(Protocol):
    """Anything with a shape and a dtype: a graph node, a tensor, an array."""

    @property
    def shape(self) -> Shape: ...

    @property
    def dtype(self) -> DType: ...


InferRule = Callable[[Sequence[Typed], Params], tuple[Shape, DType]]
ReferenceRule = Callable[..., Array]
VjpRule = Callable[..., Sequence[Any]]
Sample = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Primitive:
    """One entry: everything that the system knows about one operation.

    name        as in the text form of a graph
    kind        map | zip | reduce | contract | view | gather | scatter | source
    infer       (inputs, params) -> (shape, dtype); raises ShapeError / DTypeError
    reference   (*arrays, **params) -> array, in numpy: what every target is compared with
    vjp         (cotangent, output, inputs, params) -> one cotangent (or None) an input, in terms of primitives
    cost        cheap | fma | div | transcendental: the class of work an element
    traits      pure facts that passes read: commutative, random, boolean, ...
    samples     inputs (arrays) and params that tests iterate over; errors: inputs, params, exception type, text
    """

    name: str
    kind: str
    infer: InferRule
    reference: ReferenceRule
    vjp: VjpRule | None = None
    cost: str = "cheap"
    traits: frozenset[str] = frozenset()
    samples: Callable[[np.random.Generator], list[Sample]] = field(default=lambda rng: [])
    errors: Callable[[], list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]] = field(default=lambda: [])

    @property
    def differentiable(self) -> bool:
        """Whether cotangents flow through it."""
        return self.vjp is not None


PRIMITIVES: dict[str, Primitive] = {}


def register(primitive: Primitive) -> Primitive:
    """Put `primitive` into the table; names are unique."""
    if primitive.name in PRIMITIVES:
        raise ValueError(f"primitive {primitive.name!r} is registered twice")
    PRIMITIVES[primitive.name] = primitive
    return primitive


def require(condition: bool, message: str | Callable[[], str], error: type[Exception] = ShapeError) -> None:
    """Raise `error(message)` unless `condition`. message: a function where it takes time to write."""
    if not condition:
        raise error(message if isinstance(message, str) else message())


def require_float(name: str, value: Typed) -> None:
    """Raise DTypeError unless `value` is floating point."""
    require(
        value.dtype.kind == "f",
        lambda: f"{name} takes float32 or float64, got {value.dtype.name}{list(value.shape)}",
        DTypeError,
    )


def normalized_axis(name: str, axis: int, ndim: int) -> int:
    """`axis` counted from the front. Raises ShapeError when it is outside of [-ndim, ndim)."""
    require(-ndim <= axis < ndim, f"{name}: axis {axis} is outside of a tensor with {ndim} axes")
    return axis % ndim
