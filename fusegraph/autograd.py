"""Reverse mode: records of what was applied, and the walk back over them.

The same walk serves eager tensors and traced ones: VJP rules apply primitives, and a primitive applied to a traced tensor
becomes a node of the graph. So a gradient is an ordinary value, and can itself be differentiated.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from fusegraph import tree
from fusegraph.errors import GradientError
from fusegraph.ir import emit
from fusegraph.ir.location import located
from fusegraph.ir.primitives import PRIMITIVES

if TYPE_CHECKING:
    from fusegraph.tensor import Tensor

_F = TypeVar("_F", bound=Callable[..., Any])
_sequence = itertools.count()


class _GradMode(threading.local):
    enabled = True


_mode = _GradMode()


def is_grad_enabled() -> bool:
    """Whether operations on tensors that require a gradient are recorded."""
    return _mode.enabled


class set_grad_enabled:
    """Record (or do not record) operations inside; a context manager and a decorator."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before.append(_mode.enabled)
        _mode.enabled = self._enabled

    def __exit__(self, *exc: object) -> None:
        _mode.enabled = self._before.pop()

    def __call__(self, function: _F) -> _F:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with set_grad_enabled(self._enabled):
                return function(*args, **kwargs)

        return wrapped  # type: ignore[return-value]


def no_grad() -> set_grad_enabled:
    """Do not record operations inside: ``with fg.no_grad(): ...`` or ``@fg.no_grad()``."""
    return set_grad_enabled(False)


def enable_grad() -> set_grad_enabled:
    """Record operations inside, also within `no_grad`."""
    return set_grad_enabled(True)


class Record:
    """One applied operation: its inputs, and how their cotangents follow from its outputs' cotangents."""

    __slots__ = ("inputs", "versions", "sequence", "outputs", "pull")

    def __init__(self, inputs: Sequence[Tensor], outputs: int, pull: Callable[[list[Any]], Sequence[Any]]) -> None:
        self.inputs = tuple(inputs)
        self.versions = tuple(value._version for value in inputs)
        self.outputs = outputs
        self.pull = pull
        self.sequence = next(_sequence)

    def check_versions(self) -> None:
        """Raise GradientError if an input was overwritten since it was used."""
        check_unchanged(zip(self.inputs, self.versions, strict=True))


def check_unchanged(used: Iterable[tuple[Tensor, int]]) -> None:
    """Raise GradientError if one of the tensors was overwritten since it had the version beside it."""
    for value, version in used:
        if value._version != version:
            raise GradientError(
                f"a tensor of shape {list(value.shape)} that the gradient needs was changed in place after it was used; "
                "call backward() before the update, or compute the forward pass again"
            )


def record_primitive(name: str, inputs: Sequence[Tensor], params: Any, out: Tensor) -> None:
    """Remember that `out` is primitive `name` of `inputs`, if a gradient may be asked for."""
    primitive = PRIMITIVES[name]
    if primitive.vjp is None or out.dtype.kind != "f":
        return
    value, trace, vjp = out._value, out._trace, primitive.vjp

    def pull(cotangents: list[Any]) -> Sequence[Any]:
        again = type(out)._make(value, True, record, 0)
        again._trace = trace
        if trace is None:
            return vjp(cotangents[0], again, inputs, params)
        with located(value.location):
            return vjp(cotangents[0], again, inputs, params)

    record = Record(inputs, 1, pull)
    out.requires_grad, out._record = True, record


def with_vjp(compute: Callable[..., Tensor], inputs: Sequence[Tensor], vjp: Callable[..., Sequence[Any]]) -> Tensor:
    """`compute(*inputs)` with a rule of its own: `vjp(cotangent, output, *inputs)` gives one cotangent (or None) an input.

    The rule is made of operations on tensors, so gradients of gradients follow from it.
    """
    from fusegraph.trace import current_trace

    trace = current_trace()
    if trace is not None:  # a captured tensor may be assigned before the rule runs
        inputs = [trace.lift(value) for value in inputs]
    with no_grad():
        out = compute(*inputs)
    if not (is_grad_enabled() and any(value.requires_grad for value in inputs)):
        return out
    value = out._value

    def pull(cotangents: list[Any]) -> Sequence[Any]:
        again = type(out)._make(value, True, record, 0)
        again._trace = trace
        if trace is None:
            return vjp(cotangents[0], again, *inputs)
        with located(value.location):
            return vjp(cotangents[0], again, *inputs)

    record = Record(inputs, 1, pull)
    out.requires_grad, out._record, out._output = True, record, 0
    return out


Key = tuple[int, int]


def _key(value: Tensor) -> Key:
    """What a cotangent is collected under: an operation's output, or a leaf."""
    if value._record is not None:
        return (id(value._record), value._output)
    return (id(value.leaf), -1)


def pull_back(
    roots: Sequence[Tensor], cotangents: Sequence[Tensor], create_graph: bool
) -> tuple[dict[Key, Any], dict[int, Any]]:
    """Walk back from `roots`. Gives every cotangent by key, and the leaves that were reached."""
    found: dict[Key, Any] = {}
    leaves: dict[int, Any] = {}
    heap: list[tuple[int, int, Record]] = []
    queued: set[int] = set()

    def collect(value: Tensor, cotangent: Any) -> None:
        if not value.requires_grad or cotangent is None:
            return
        key = _key(value)
        found[key] = emit.add(found[key], cotangent) if key in found else cotangent
        record = value._record
        if record is None:
            leaves[id(value.leaf)] = value.leaf
        elif id(record) not in queued:
            queued.add(id(record))
            heapq.heappush(heap, (-record.sequence, id(record), record))

    with set_grad_enabled(create_graph):
        for root, cotangent in zip(roots, cotangents, strict=True):
            collect(root, cotangent)
        while heap:
            _, _, record = heapq.heappop(heap)
            record.check_versions()
            outputs = [found.get((id(record), index)) for index in range(record.outputs)]
            for value, cotangent in zip(record.inputs, record.pull(outputs), strict=True):
                collect(value, cotangent)
    return found, leaves


def _seed(output: Tensor, given: Any) -> Any:
    if given is not None:
        from fusegraph.tensor import as_tensor

        given = as_tensor(given, dtype=output.dtype)
        if given.shape != output.shape:
            raise GradientError(
                f"the gradient of an output of shape {list(output.shape)} has shape {list(given.shape)}"
            )
        return given
    if output.size() != () and output.numel() != 1:
        raise GradientError(
            f"backward() of a tensor of shape {list(output.shape)}: pass `gradient`, or reduce it to a scalar first"
        )
    return emit.full_like(output, 1.0)


def _require_root(output: Any) -> None:
    if not hasattr(output, "_record"):
        raise GradientError(
            f"a gradient is taken of a tensor, got {type(output).__name__} (does the function return its value?)"
        )
    if not output.requires_grad:
        raise GradientError(
            f"a tensor of shape {list(output.shape)} does not depend on anything that requires a gradient "
            "(was it made under no_grad, detached, or rounded to integers?)"
        )


def backward(output: Tensor, gradient: Any = None, create_graph: bool = False) -> None:
    """Add d output / d leaf to `.grad` of every leaf that requires a gradient. Raises GradientError."""
    _require_root(output)
    found, leaves = pull_back([output], [_seed(output, gradient)], create_graph)
    for leaf in leaves.values():
        leaf._accumulate(found[(id(leaf), -1)])


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    *,
    create_graph: bool = False,
    allow_unused: bool = False,
    retain_graph: bool | None = None,
) -> tuple[Any, ...]:
    """The gradients of the sum of `outputs` with respect to `inputs` (as torch.autograd.grad); no `.grad` is touched.

    Raises GradientError for an output without a gradient, or an input that the outputs do not depend on
    (unless `allow_unused`, then its gradient is None).
    """
    outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    targets = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    given = list(grad_outputs) if isinstance(grad_outputs, (list, tuple)) else [grad_outputs] * len(outputs)
    for output in outputs:
        _require_root(output)
    found, _ = pull_back(outputs, [_seed(o, g) for o, g in zip(outputs, given, strict=True)], create_graph)
    results = tuple(found.get(_key(target)) for target in targets)
    for position, (target, result) in enumerate(zip(targets, results, strict=True)):
        if result is None and not allow_unused:
            raise GradientError(
                f"input {position} of shape {list(target.shape)} was not used by the outputs; pass allow_unused=True "
                "to get None for it"
            )
    return results


@contextmanager
def _leaves_of(args: tuple[Any, ...], argnums: tuple[int, ...]) -> Iterator[tuple[list[Any], list[list[Any]]]]:
    """`args` with the chosen ones turned into tensors that require a gradient; and those tensors, an argument each."""
    from fusegraph.tensor import Tensor, as_tensor

    changed, leaves = list(args), []
    for argnum in argnums:
        flat, rebuild = tree.flatten(args[argnum], Tensor)
        flat = [
            value if isinstance(value, Tensor) and value.requires_grad else as_tensor(value).detach().requires_grad_()
            for value in flat
        ]
        changed[argnum] = rebuild(flat)
        leaves.append(flat)
    yield changed, leaves


def value_and_grad(
    function: Callable[..., Any], argnums: int | tuple[int, ...] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that gives (value, gradient): `function`'s scalar value, and its gradient for argument(s) `argnums`.

    As jax.value_and_grad: an argument may be a tensor, an array or a nest of lists, tuples and dicts of them; the gradient has
    its form. With `has_aux` the function gives (value, aux) and the result is ((value, aux), gradient).
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        from fusegraph.tensor import Tensor

        with enable_grad(), _leaves_of(args, numbers) as (changed, leaves):
            result = function(*changed, **kwargs)
            value = result[0] if has_aux else result
            flat = [leaf for group in leaves for leaf in group]
            outer = any(
                isinstance(a, Tensor) and a.requires_grad for n in numbers for a in tree.flatten(args[n], Tensor)[0]
            )
            grads = iter(grad(value, flat, create_graph=outer, allow_unused=True))
        filled = [[emit.full_like(leaf, 0.0) if g is None else g for leaf, g in zip(group, grads)] for group in leaves]
        built = tuple(tree.flatten(args[n], Tensor)[1](group) for n, group in zip(numbers, filled, strict=True))
        return result, (built[0] if isinstance(argnums, int) else built)

    return wrapped


def grad_of(
    function: Callable[..., Any], argnums: int | tuple[int, ...] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that gives the gradient of `function` (as jax.grad); with `has_aux`, (gradient, aux)."""
    both = value_and_grad(function, argnums, has_aux)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        value, gradient = both(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return wrapped
