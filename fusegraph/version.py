"""A version: the code for one signature of a compiled function, and what its trace depended on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fusegraph.build import Artifact
from fusegraph.records import dataclass, field
from fusegraph.repeat import now
from fusegraph.signature import Key
from fusegraph.tensor import Tensor
from fusegraph.trace import Guard, configuration_version

if TYPE_CHECKING:
    from fusegraph.partition import Joint

Array = np.ndarray[Any, Any]


@dataclass
class Version:
    """One signature's code, and how a call's arguments and results map onto it."""

    key: Key
    artifact: Artifact
    captured: list[Tensor]
    owners: list[tuple[int, Tensor]]
    written: list[int]
    guards: list[Guard]
    rebuild: Callable[[list[Any]], Any]
    results: list[Any]
    grads: list[tuple[Any, int | None]]
    grads_seen: list[tuple[Tensor, bool]]
    values_seen: list[tuple[Tensor, int]]
    joint: Joint | None = None
    backward: Artifact | None = None
    checked: int = -1
    reason: str = ""  # why it was made
    profiled: Any = None  # an Explanation with measured times, once `profile` has run
    calls: int = field(default=0)
    used: int = field(default_factory=now)
    signatures: list[tuple[Any, ...]] = field(init=False)
    learned: list[Tensor] = field(init=False)
    dense: bool = field(init=False)
    spans: Array | None = field(init=False, default=None)
    steady: Any = field(init=False, default=None)  # the short way of a call on a GPU (runtime/cuda/steady.py)

    def __post_init__(self) -> None:
        self.signatures = [_signature(tensor) for tensor in self.captured]
        self.learned = [
            t for t in self.captured if t.requires_grad and type(t) is Tensor
        ]  # a Parameter reports a change itself
        self.dense = all(tensor._value.flags.c_contiguous for tensor in self.captured)

    @property
    def artifacts(self) -> list[Artifact]:
        """The program, and the backward one if there is one."""
        return [self.artifact] if self.backward is None else [self.artifact, self.backward]

    def holds(self) -> bool:
        """Whether everything that the trace depended on is as it was."""
        version = configuration_version()
        if self.checked != version:
            if any(guard.read() != guard.value for guard in self.guards):
                return False
            if any(_signature(tensor) != known for tensor, known in zip(self.captured, self.signatures, strict=True)):
                return False
            self.dense = all(tensor._value.flags.c_contiguous for tensor in self.captured)
            self.checked, self.spans = version, None
        return self.unchanged()

    def unchanged(self) -> bool:
        """Whether what can change without a change of the configuration is as it was."""
        for tensor, was_none in self.grads_seen:
            if (tensor._grad is None) != was_none:
                return False
        for tensor, seen in self.values_seen:
            if tensor._version != seen:
                return False
        for tensor in self.learned:
            if not tensor.requires_grad:
                return False
        return True

    def changes(self) -> list[str]:
        """What is not as it was, in words."""
        names = [(t, t.name or f"a tensor of shape {list(t.shape)}") for t in self.captured]
        found = [_guard_change(guard) for guard in self.guards if guard.read() != guard.value]
        found += [
            f"{name} was {_in_words(known)}, now {_in_words(_signature(t))}"
            for (t, name), known in zip(names, self.signatures, strict=True)
            if _signature(t) != known
        ]
        found += [
            f"the gradient of {t.name or 'a parameter'} was {'None' if none else 'there'}, now it is "
            f"{'there' if none else 'None'}"
            for t, none in self.grads_seen
            if (t._grad is None) != none
        ]
        found += [
            f"the value of {t.name or f'a {t.dtype.name}{list(t.shape)} tensor'} was read by Python code, and has changed"
            for t, seen in self.values_seen
            if t._version != seen
        ]
        return found

    def sources(self, arguments: list[Tensor]) -> list[Tensor]:
        """The tensors behind the graph's inputs: arguments, then captured ones (a gradient is its owner's present one)."""
        found = [*arguments, *self.captured]
        for position, owner in self.owners:
            found[position] = owner._grad  # type: ignore[assignment]
        return found


def _signature(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor.shape, tensor.dtype, tensor.requires_grad)


def _guard_change(guard: Guard) -> str:
    old, new = guard.value, guard.read()
    if not isinstance(old, dict) or not isinstance(new, dict):
        return f"{guard.what} was {old!r}, now {new!r}"
    parts = [
        f"`{name}` was {old.get(name)!r}, now {new.get(name)!r}"
        if max(map(_digits, (old.get(name), new.get(name)))) < 10
        else f"`{name}` was replaced"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]
    return f"{guard.what}: {', '.join(parts)}"


def _digits(value: Any) -> int:
    """An object's identity, among plain numbers, is known by its length."""
    return len(str(value)) if type(value) is int else 0


def _in_words(signature: tuple[Any, ...]) -> str:
    shape, dtype, learned = signature
    return f"{dtype.name}{list(shape)}{', with a gradient' if learned else ''}"
