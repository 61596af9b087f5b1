"""Tracing: running a Python function on symbols, so that what it does becomes an op graph.

While a trace is active every primitive becomes a node. A concrete tensor that the function touches (a parameter, a running
statistic, a learning rate) is captured: it becomes an input that is read anew at each call. A captured tensor that the
function assigns becomes an update: the step writes its new value in place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from fusegraph.errors import TraceError
from fusegraph.ir.graph import GraphBuilder, Node
from fusegraph.ir.location import user_location
from fusegraph.records import dataclass, field

if TYPE_CHECKING:
    from fusegraph.tensor import Tensor


class _Active(threading.local):
    trace: Trace | None = None


active = _Active()


def current_trace() -> Trace | None:
    """The trace that is running in this thread."""
    return active.trace


class Settings:
    """What traces may depend on. `version` grows when a setting is changed: only then need their guards be read again."""

    version: ClassVar[int] = 0


def configuration_version() -> int:
    """See `Settings`."""
    return Settings.version


def configuration_changed() -> None:
    """Called when such a setting (training mode, `requires_grad`, an optimizer's option) is changed."""
    Settings.version += 1


@dataclass(frozen=True)
class Guard:
    """A setting that the traced function depends on: what it is, how it is read, what it was."""

    what: str
    read: Callable[[], Any]
    value: Any

    def again(self) -> Guard:
        """The guard with the value that the setting has now (a traced function may change settings itself)."""
        return Guard(self.what, self.read, self.read())


@dataclass
class Captured:
    """A concrete tensor that the traced function reads: its input node, and the value that it has by now."""

    tensor: Tensor
    input: Node
    value: Tensor
    assigned: bool = False


@dataclass
class Trace:
    """One run of a function on symbols."""

    builder: GraphBuilder = field(default_factory=GraphBuilder)
    captured: dict[int, Captured] = field(default_factory=dict)
    grads_before: dict[int, tuple[Tensor, Any]] = field(default_factory=dict)
    grads_read: dict[int, tuple[Tensor, bool]] = field(default_factory=dict)  # was it None, before the function set it?
    grad_owners: dict[int, Tensor] = field(default_factory=dict)  # a gradient's id -> whose it is
    values_read: dict[int, tuple[Tensor, int]] = field(default_factory=dict)  # by Python, at which version
    consumed_grads: set[int] = field(default_factory=set)
    guards: list[Guard] = field(default_factory=list)
    closed: bool = False

    def guard(self, what: str, read: Callable[[], Any]) -> None:
        """This trace holds while `read()` gives what it gives now; changing the setting must call `configuration_changed`."""
        if all(known.read != read for known in self.guards):
            self.guards.append(Guard(what, read, read()))

    def argument(self, name: str, tensor: Tensor) -> Tensor:
        """A symbol for an argument of the traced function, of `tensor`'s shape and dtype."""
        node = self.builder.input(name, tensor.shape, tensor.dtype)
        symbol = tensor._symbol_type()._make(node, tensor.requires_grad, None, 0)
        symbol._trace = self
        return symbol

    def lift(self, tensor: Tensor) -> Tensor:
        """`tensor` as a symbol of this trace; a concrete one is captured."""
        if isinstance(tensor._value, Node):
            if tensor._trace is not self:
                raise TraceError(
                    f"a tensor of shape {list(tensor.shape)} from another (finished) trace is used at {user_location()}; "
                    "a compiled function must return what is to be used outside of it"
                )
            return tensor
        known = self.captured.get(id(tensor))
        return known.value if known is not None else self._capture(tensor).value

    def _capture(self, tensor: Tensor) -> Captured:
        base = tensor.name or "captured"
        taken = {node.name for node in self.builder.inputs}
        name = base if base not in taken else next(f"{base}_{n}" for n in range(1, 10**6) if f"{base}_{n}" not in taken)
        node = self.builder.input(name, tensor.shape, tensor.dtype)
        captured = Captured(tensor, node, self._symbol(tensor, node))
        self.captured[id(tensor)] = captured
        return captured

    def _symbol(self, tensor: Tensor, node: Node) -> Tensor:
        symbol = tensor._symbol_type()._make(node, tensor.requires_grad, None, 0)
        symbol._leaf, symbol._trace = tensor, self
        return symbol

    def assign(self, tensor: Tensor, value: Tensor) -> None:
        """From now on captured `tensor` has the value of symbol `value`; the compiled step writes it in place."""
        self.lift(tensor)
        captured = self.captured[id(tensor)]
        captured.value, captured.assigned = self._symbol(tensor, value._value), True

    def set_grad(self, tensor: Tensor, value: Any) -> None:
        """Called when `tensor.grad` of a leaf is about to be set: remembers what to put back when tracing is over."""
        self.grads_before.setdefault(id(tensor), (tensor, tensor._grad))

    def read_grad(self, tensor: Tensor, gradient: Any) -> None:
        """Called when `tensor.grad` is read: its value before the call is an input of the step, whether it was None a guard."""
        if id(tensor) not in self.grads_before and not tensor.is_symbol:
            self.grads_read.setdefault(id(tensor), (tensor, gradient is None))
            if gradient is not None:
                self.grad_owners[id(gradient)] = tensor

    def add(self, name: str, inputs: list[Tensor], params: Any) -> Node:
        """A node for primitive `name`."""
        return self.builder.add(name, [value._value for value in inputs], params, user_location())


@contextmanager
def tracing() -> Iterator[Trace]:
    """A new trace, active inside."""
    before, trace = active.trace, Trace()
    active.trace = trace
    try:
        yield trace
    finally:
        active.trace = before
        trace.closed = True


@contextmanager
def suspended() -> Iterator[None]:
    """No trace is active inside: for work on concrete values (building a new module, say) during a trace."""
    before, active.trace = active.trace, None
    try:
        yield
    finally:
        active.trace = before
