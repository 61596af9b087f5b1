"""The short way of a call that looks like one before it: check that nothing differs, run the native step, wrap what it made.

The long way (fusegraph.compiler) takes containers apart, makes a key and finds or compiles the version. A `Repeat` is Python
source made for one version and the plain arguments that it takes (a loop over descriptions of them would take half as long
again). It compares, and either runs, or gives MISS and leaves everything as it was: then the long way decides.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fusegraph import autograd
from fusegraph.runtime.executable import TABLE_ERROR, NativeStep
from fusegraph.tensor import Tensor
from fusegraph.trace import Settings, active

if TYPE_CHECKING:
    from fusegraph.version import Version

Array = np.ndarray[Any, Any]
MISS: Any = object()  # no result: the call is not a repetition
MADE: Any = object()  # stands for a tensor among a function's results
now = itertools.count().__next__  # a clock that orders the uses of versions
_CONTAINERS = (list, tuple, dict)
_BY_VALUE = (bool, int, float, str, bytes, type(None))
_HEAD = """def repeat(args, kwargs):
    if {kwargs} or len(args) != {count} or active.trace is not None or recording.enabled is not {recording}:
        return MISS"""
_ARRAY = """    # {name}: {dtype}{shape}
    {array} = {name}
    if type({name}) is Tensor:
        if {name}.requires_grad is not {gradient}:
            return MISS
        {array} = {name}._value{otherwise}
    if type({array}) is not ndarray or {array}.dtype is not {name}_dtype or {array}.shape != {shape}:
        return MISS
    if not {array}.flags.c_contiguous:
        return MISS{apart}"""
_APART = """
    base = {array}.base
    if base is None:
        if id({array}) in this.overwritten:
            return MISS
    elif type(base) is not ndarray or base.base is not None or id(base) in this.overwritten:
        return MISS"""
_SETTINGS = """    if settings.version != this.settings and not this.refresh(){unchanged}:
        return MISS"""
_RUN = """    acquire()
    try:
{stores}
        call(pointer)
        if table[{error}]:
            step.explain_guard([{arrays}, *this.held])
    finally:
        release()
    version.calls += 1"""


def no_repeat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The short way of a function that has none."""
    return MISS


def repeat_of(version: Version, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Repeat | None:
    """The short way for calls such as this one, which has just been run the long way; None where it must go on as before."""
    step, values = version.artifact.executable, (*args, *kwargs.values())
    if not isinstance(step, NativeStep) or step.layout.checks or version.artifact.options.verify or not version.dense:
        return None
    arrays = [value._value if type(value) is Tensor else value for value in values if _is_array(value)]
    changes_arguments = any(position < len(arrays) for position in version.written)
    changes_arguments |= any(type(owner) is int for owner, _ in version.grads)
    if changes_arguments or version.owners or (version.joint is not None and version.joint.overwritten):
        return None
    if not all(_is_array(value) or _is_plain(value) for value in values):
        return None
    if any(
        array.dtype is not step.input_dtype(number) for number, array in enumerate(arrays)
    ):  # converted at each call
        return None
    return Repeat(version, step, values, tuple(kwargs))


def _is_array(value: Any) -> bool:
    return type(value._value if type(value) is Tensor else value) is np.ndarray


def _owner(array: Array) -> Array | None:
    """The array that owns the memory of `array`; None if something else does."""
    owner = array if array.base is None else array.base
    return owner if type(owner) is np.ndarray and owner.base is None else None


def _is_plain(value: Any) -> bool:
    """Whether an argument that is no array can be compared: by value, or as an object."""
    return not isinstance(value, (*_CONTAINERS, Tensor, np.ndarray, np.generic)) and not hasattr(value, "__dlpack__")


class Repeat:
    """Calls of `version`'s function on arguments such as `values` (the last ones by the keywords `names`).

    `run(args, kwargs)` gives the function's result, or MISS; `source` is its text. Raises IndexRangeError as any call does.
    """

    def __init__(self, version: Version, step: NativeStep, values: tuple[Any, ...], names: tuple[str, ...]) -> None:
        self.version, self._step, self._values = version, step, values
        self.settings, self.held = -1, list[Array]()
        self._arrays = [position for position, value in enumerate(values) if _is_array(value)]
        self._written = [version.captured[position - len(self._arrays)] for position in version.written]
        self.overwritten: frozenset[int] = frozenset()  # the arrays that own the memory of what is overwritten
        self._names: dict[str, Any] = {
            "active": active,
            "recording": autograd._mode,
            "settings": Settings,
            "version": version,
            "this": self,
            "step": step,
            "table": step.table,
            "pointer": step.pointer,
            "call": step.choice.call,
            "acquire": step.lock.acquire,
            "release": step.lock.release,
            "Tensor": Tensor,
            "ndarray": np.ndarray,
            "empty": np.empty,
            "make": Tensor._make,
            "MISS": MISS,
        }
        self.source = "\n".join([*self._checks(names), *self._call(), *self._results()]) + "\n"
        exec(compile(self.source, f"<repeated call of {version.artifact.source.name}>", "exec"), self._names)
        self.run: Callable[[tuple[Any, ...], dict[str, Any]], Any] = self._names["repeat"]
        # numbers, not objects, stand in the source for what is compared by value: nothing else of the call is kept alive
        self._values = ()

    def refresh(self) -> bool:
        """Read anew what can change only together with a setting. Whether the version still serves."""
        settings = Settings.version
        if (
            not self.version.holds()
            or not self.version.dense
            or not all(t._value.flags.writeable for t in self._written)
        ):
            return False
        owners = [_owner(tensor._value) for tensor in self._written]
        if self._arrays and any(owner is None for owner in owners):
            return False  # foreign memory: only addresses tell whether an argument lies there too
        self.held, self.settings = [tensor._value for tensor in self.version.captured], settings
        self.overwritten = frozenset(map(id, owners))
        return True

    def _checks(self, names: tuple[str, ...]) -> list[str]:
        wanted = f"tuple(kwargs) != {names!r}" if names else "kwargs"
        lines = [
            _HEAD.format(kwargs=wanted, count=len(self._values) - len(names), recording=autograd.is_grad_enabled())
        ]
        watched = self.version.grads_seen or self.version.values_seen or self.version.learned
        # before the arguments: those are compared with what a refresh reads
        lines.append(_SETTINGS.format(unchanged=" or not version.unchanged()" if watched else ""))
        if self._values:
            values = ", ".join(f"a{position}" for position in range(len(self._values)))
            lines.append(f"    {values}, = {'(*args, *kwargs.values())' if names else 'args'}")
        for position, value in enumerate(self._values):
            lines.append(
                self._check_array(position, value) if position in self._arrays else self._check_plain(position, value)
            )
        return lines

    def _check_array(self, position: int, value: Any) -> str:
        gradient = type(value) is Tensor and value.requires_grad
        array = value._value if type(value) is Tensor else value
        self._names[f"a{position}_dtype"] = array.dtype
        return _ARRAY.format(
            name=f"a{position}",
            array=f"x{position}",
            dtype=array.dtype,
            shape=array.shape,
            gradient=gradient,
            otherwise="\n    else:\n        return MISS" if gradient else "",
            apart=_APART.format(array=f"x{position}") if self._written else "",
        )

    def _check_plain(self, position: int, value: Any) -> str:
        name, kept = f"a{position}", f"a{position}_value"
        self._names[kept] = value
        same = f"{name} is not {kept}"
        if type(value) in _BY_VALUE and value == value and not (type(value) is float and value == 0.0):  # -0.0 == 0.0
            same += (
                f" and (type({name}) is not {type(value).__name__} or {name} != {kept})" if value is not None else ""
            )
        return f"    if {same}:\n        return MISS"

    def _call(self) -> list[str]:
        stores = ["if step.held is not this.held:", "    step.hold(this.held)"] if self.version.captured else []
        stores += [
            f"table[{place}] = {self._step.entry.format(f'x{position}')}"
            for position, place in zip(self._arrays, self._step.input_places, strict=False)
        ]
        for number, (place, shape, dtype) in enumerate(self._step.outputs):
            memory = self._step.memories[number]
            self._names[f"dtype{number}"] = dtype
            self._names[f"make{number}"] = memory and memory.make
            stores.append(f"out{number} = " + (f"make{number}()" if memory else f"empty({shape!r}, dtype{number})"))
            stores.append(f"table[{place}] = {self._step.entry.format(f'out{number}')}")
        self._names["address_of"] = self._step.address_of
        arrays = ", ".join(f"x{position}" for position in self._arrays)
        return [
            _RUN.format(
                stores="\n".join(f"        {line}" for line in stores), error=TABLE_ERROR, arrays=arrays
            ).replace("[, ", "[")
        ]

    def _results(self) -> list[str]:
        version, joint, lines = self.version, self.version.joint, []
        if self._written:
            self._names["written"] = self._written
            lines.append("    for tensor in written:\n        tensor._version += 1")
        again = self._step.twice or [(number, False, ()) for number in range(len(self._step.outputs))]
        made = [
            f"out{number}.copy().reshape({shape!r})" if repeated else f"out{number}"
            for number, repeated, shape in again
        ]
        if not version.grads and joint is None and version.results == [MADE] and version.rebuild([MADE]) is MADE:
            return [*lines, f"    return make({made[0]})"]
        return [
            *lines,
            f"    return this.wrap(args, kwargs, [{', '.join(f'x{p}' for p in self._arrays)}], [{', '.join(made)}])",
        ]

    def wrap(self, args: tuple[Any, ...], kwargs: dict[str, Any], arrays: list[Array], made: list[Array]) -> Any:
        """The function's result from the step's, with gradients set and the backward program attached."""
        version, joint = self.version, self.version.joint
        outputs = [Tensor._make(value) for value in (made if joint is None else made[: joint.count])]
        for owner, position in version.grads:
            owner._grad = None if position is None else outputs[position]
        if joint is not None:
            values = (*args, *kwargs.values())
            sources = [
                value if type(value := values[position]) is Tensor else Tensor._make(value) for position in self._arrays
            ]
            joint.attach(version, [*sources, *version.captured], arrays + self.held, outputs, made, {})
        rest = iter(outputs)
        return version.rebuild([next(rest) if leaf is MADE else leaf for leaf in version.results])
