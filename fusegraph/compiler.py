"""`fusegraph.compile`: a model or a function becomes fused native code, one version for each signature.

A signature is what the trace depends on: shapes and dtypes of array arguments, values of all others, settings such as train
or eval. A bounded number of versions is kept; why a new one was made is logged and kept in `reasons`.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusegraph import autograd, events, tree
from fusegraph.build import Artifact, Options, build
from fusegraph.errors import DTypeError, FusegraphError, OptionError, UnsupportedError
from fusegraph.ir.graph import Graph, Node
from fusegraph.partition import Joint, split_joint
from fusegraph.repeat import MADE, MISS, Repeat, no_repeat, now, repeat_of
from fusegraph.tensor import Tensor, as_tensor
from fusegraph.trace import Guard, Trace, configuration_version, current_trace, tracing

Array = np.ndarray[Any, Any]
Key = tuple[Any, ...]
DEFAULT_VERSIONS = 64
_compiling = (
    threading.RLock()
)  # one for all: expressions are interned by the process, and traces set and restore gradients
MAX_REPEATS = 4  # signatures that are tried the short way before a key is made


def compile(
    target: Any = None,
    *,
    backend: str = "cpu",
    fuse: bool = True,
    exact: bool = False,
    verify: bool = False,  # noqa: A001
    disable: Sequence[str] = (),
    versions: int = DEFAULT_VERSIONS,
) -> Any:
    """Compile a module or a function; also a decorator, with or without options.

    The result is called as the original is. Array arguments may be tensors or numpy arrays; numbers, strings, bools and None
    are part of the signature. What the function assigns (parameters through an optimizer, running statistics, random counters)
    is written in place by the native code. Under `.backward()` a compiled model runs a fused forward and a fused backward.

    backend   "cpu" (LLVM), "numba" (the readable Python source, compiled by numba), "python" (the same source, interpreted),
              "reference" (the graph, by numpy), "cuda" (numba-cuda kernels; not run on a GPU yet)
    fuse      False: every materialised value gets a kernel of its own
    exact     library functions and strict floating point instead of polynomials and reassociated sums
    verify    run the numpy reference beside every call and raise CompilerError at the first operation that differs
    disable   names of passes to leave out (see `fusegraph.passes.PIPELINE`)
    versions  how many signatures are kept; the one used longest ago goes first

    Raises OptionError for a wrong option; TraceError, when first called, if the function's Python control flow depends on
    values of tensors.
    """
    if versions < 1:
        raise OptionError(f"versions must be at least 1, got {versions}")
    options = Options(backend, fuse, exact, verify, tuple(disable))
    if target is None:
        return lambda function: Compiled(function, options, versions)
    if not callable(target):
        raise OptionError(f"fusegraph.compile takes a module or a function, got {type(target).__name__}")
    return Compiled(target, options, versions)


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
    calls: int = field(default=0)
    used: int = field(default_factory=now)
    signatures: list[tuple[Any, ...]] = field(init=False)
    learned: list[Tensor] = field(init=False)
    dense: bool = field(init=False)
    spans: Array | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.signatures = [_signature(tensor) for tensor in self.captured]
        self.learned = [
            t for t in self.captured if t.requires_grad and type(t) is Tensor
        ]  # a Parameter reports a change itself
        self.dense = all(tensor._value.flags.c_contiguous for tensor in self.captured)

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


class Compiled:
    """A compiled module or function. Attributes of the original (parameters, train, eval, ...) are reached through it."""

    def __init__(self, function: Callable[..., Any], options: Options, versions: int = DEFAULT_VERSIONS) -> None:
        self._function, self._options, self._limit = function, options, versions
        self._versions: dict[int, Version] = {}
        self._by_key: dict[Key, list[int]] = {}
        self._made = 0
        self._last: Version | None = None
        self._repeats: tuple[Repeat, ...] = ()  # what is tried the short way, the one used last first
        self._repeat: Callable[[tuple[Any, ...], dict[str, Any]], Any] = no_repeat
        self.reasons: list[str] = []
        functools.update_wrapper(self, function, updated=())
        self._names = _parameter_names(function)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._function, name)

    def __repr__(self) -> str:
        return f"<fusegraph.compile of {_title(self._function)}: {len(self._versions)} version(s), backend {self._options.backend}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._repeat(args, kwargs)
        return result if result is not MISS else self._call(args, kwargs)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if current_trace() is not None:
            return self._function(*args, **kwargs)
        for repeat in self._repeats[1:]:
            result = repeat.run(args, kwargs)
            if result is not MISS:
                self._put_first(repeat)
                return result
        leaves, rebuild = tree.flatten((args, kwargs), Tensor)
        key = self._key(leaves, args, kwargs)
        version = self._last
        if version is None or version.key != key or not version.holds():
            version = self._version(key, leaves, rebuild)
        result = self._run(version, leaves)
        self._add_repeat(version, args, kwargs)
        return result

    def _add_repeat(self, version: Version, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """From now on such a call goes the short way."""
        found = next((repeat for repeat in self._repeats if repeat.version is version), None) or repeat_of(
            version, args, kwargs
        )
        if found is not None:
            self._put_first(found)

    def _put_first(self, first: Repeat) -> None:
        """`first` is tried first from now on."""
        self._repeats = (first, *(repeat for repeat in self._repeats if repeat is not first))[:MAX_REPEATS]
        self._repeat, first.version.used = first.run, now()
        self._last = first.version

    # -- finding the version ------------------------------------------------------------------------------------------

    def _key(self, leaves: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
        parts: list[Any] = [autograd.is_grad_enabled(), len(args), *kwargs]
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                parts.append((leaf._value.shape, leaf._value.dtype.num, leaf.requires_grad))
            elif isinstance(leaf, np.ndarray):
                parts.append((leaf.shape, leaf.dtype.num, False))
            else:
                parts.append((type(leaf), _in_key(leaf)))
        if any(isinstance(arg, (list, tuple, dict)) for arg in (*args, *kwargs.values())):
            parts.append(_shape_of(args, kwargs))
        return tuple(parts)

    def _version(self, key: Key, leaves: list[Any], rebuild: Callable[[list[Any]], Any]) -> Version:
        with _compiling:
            for number in self._by_key.get(key, ()):
                version = self._versions[number]
                if version.holds():
                    self._last = version
                    return version
            version = self._compile(key, leaves, rebuild)
            self._remember(version)
            return version

    def _remember(self, version: Version) -> None:
        self._versions[self._made] = version
        self._by_key.setdefault(version.key, []).append(self._made)
        self._made += 1
        self._last = version
        while len(self._versions) > self._limit:
            number = min(self._versions, key=lambda number: self._versions[number].used)
            old = self._versions.pop(number)
            self._by_key[old.key].remove(number)
            self._repeats = tuple(repeat for repeat in self._repeats if repeat.version is not old)
            self._repeat = self._repeats[0].run if self._repeats else no_repeat

    def _reason(self, key: Key, names: list[str]) -> str:
        """Why the versions at hand do not serve."""
        if not self._versions:
            return "first call"
        known = max(self._versions.values(), key=lambda version: version.used)
        for number in self._by_key.get(key, ()):
            return "; ".join(self._versions[number].changes()) or "a setting changed"
        return _difference(known.key, key, names)

    # -- making one ---------------------------------------------------------------------------------------------------

    def _compile(self, key: Key, leaves: list[Any], rebuild: Callable[[list[Any]], Any]) -> Version:
        reason = self._reason(key, _leaf_names(self._names, leaves, rebuild))
        self.reasons.append(reason)
        events.event("recompile", f"{_title(self._function)}: {reason}")
        tensors = [_as_argument(leaf) for leaf in leaves]
        with tracing() as trace:
            names = _leaf_names(self._names, leaves, rebuild)
            symbols = [
                trace.argument(name, t) if isinstance(t, Tensor) else t for name, t in zip(names, tensors, strict=True)
            ]
            args, kwargs = rebuild(list(symbols))
            try:
                result = self._function(*args, **kwargs)
                return self._finish(key, trace, symbols, result)
            finally:
                for tensor, before in trace.grads_before.values():
                    tensor._grad = before

    def _finish(self, key: Key, trace: Trace, symbols: list[Any], result: Any) -> Version:
        results, rebuild = tree.flatten(result, Tensor)
        lifted = [trace.lift(leaf) if isinstance(leaf, Tensor) else leaf for leaf in results]
        outputs = [leaf for leaf in lifted if isinstance(leaf, Tensor)]
        arguments = [symbol for symbol in symbols if isinstance(symbol, Tensor)]
        grads = _left_gradients(trace, arguments, outputs)
        assigned = [(c.input, c.value._value) for c in trace.captured.values() if c.assigned]
        assigned += [
            (node, symbol._value)
            for node, symbol in zip(trace.builder.inputs, arguments, strict=False)
            if symbol._value is not node
        ]
        joint = self._joint(trace, symbols, outputs) if not trace.grads_before else None
        graph = trace.builder.finish([out._value for out in outputs], assigned, _identifier(_title(self._function)))
        captured = {c.input: c.tensor for c in trace.captured.values()}
        read = [captured[node] for node in graph.inputs if node in captured]
        first = len(arguments)
        owners = [(first + i, owner) for i, t in enumerate(read) if (owner := trace.grad_owners.get(id(t))) is not None]
        inputs = [*trace.builder.inputs[:first], *(node for node in graph.inputs if node in captured)]
        written = [inputs.index(node) for node, _ in assigned]
        backward = None
        if joint is not None:
            graph, joint, backward_graph = split_joint(graph, joint, self._options)
            backward = build(backward_graph, self._options)
        return Version(
            key,
            build(graph, self._options),
            read,
            owners,
            written,
            [g.again() for g in trace.guards],
            rebuild,
            [MADE if isinstance(leaf, Tensor) else leaf for leaf in lifted],
            grads,
            list(trace.grads_read.values()),
            list(trace.values_read.values()),
            joint,
            backward,
        )

    def _joint(self, trace: Trace, symbols: list[Any], outputs: list[Tensor]) -> Joint | None:
        """What the backward pass computes, when a gradient may be asked for outside of the function."""
        roots = [(i, out) for i, out in enumerate(outputs) if out.requires_grad]
        if not roots or not autograd.is_grad_enabled():
            return None
        seeds = [trace.argument(f"grad_output_{i}", out.detach()) for i, out in roots]
        found, leaves = autograd.pull_back([out for _, out in roots], seeds, False)
        wanted = [s for s in symbols if isinstance(s, Tensor) and s.requires_grad] + [
            c.tensor for c in trace.captured.values() if c.tensor.requires_grad
        ]
        pairs = [(t, found[(id(t), -1)]._value) for t in wanted if (id(t), -1) in found]
        nodes = [out._value for out in outputs]
        return Joint(
            [i for i, _ in roots], [seed._value for seed in seeds], [t for t, _ in pairs], [g for _, g in pairs], nodes
        )

    # -- running ------------------------------------------------------------------------------------------------------

    def _run(self, version: Version, leaves: list[Any]) -> Any:
        arguments = [t for t in map(_as_argument, leaves) if isinstance(t, Tensor)]
        sources = version.sources(arguments)
        arrays = [tensor._value for tensor in sources]
        dense = len(arguments) if version.dense and not version.owners else len(arrays)
        arrays[:dense] = map(_dense, arrays[:dense])
        for position in version.written:
            if not sources[position]._value.flags.writeable:
                raise UnsupportedError(
                    f"{sources[position].name or 'an argument'} of shape {list(sources[position].shape)} is overwritten "
                    "by the compiled function, but its memory is read-only (a view?): pass a copy"
                )
        before = (
            {position: arrays[position].copy() for position in version.joint.overwritten}
            if version.joint is not None
            else {}
        )
        _check_apart(version, arguments, sources)
        made = version.artifact.run(arrays)
        version.calls += 1
        version.used = now()
        for position in version.written:
            sources[position]._version += 1
            if arrays[position] is not sources[position]._value:
                np.copyto(sources[position]._value, arrays[position])
        outputs = [Tensor._make(value) for value in made[: len(made) if version.joint is None else version.joint.count]]
        _leave_gradients(version, arguments, outputs)
        if version.joint is not None and version.backward is not None:
            version.joint.attach(version, sources, arrays, outputs, made, before)
        rest = iter(outputs)
        return version.rebuild([next(rest) if leaf is MADE else leaf for leaf in version.results])

    # -- looking inside -----------------------------------------------------------------------------------------------

    def compiled_for(self, *args: Any, **kwargs: Any) -> Version:
        """The version that these arguments would run (compiled if need be, not run); without arguments the last used one."""
        if not args and not kwargs and self._last is not None:
            return self._last
        leaves, rebuild = tree.flatten((args, kwargs), Tensor)
        return self._version(self._key(leaves, args, kwargs), leaves, rebuild)

    def explain(self, *args: Any, **kwargs: Any) -> Any:
        """A report of the version for these arguments (or the last used): kernels, what was fused, what was refused and why."""
        from fusegraph.inspect.explain import Explanation

        version = self.compiled_for(*args, **kwargs)
        return Explanation([version.artifact, *([version.backward] if version.backward is not None else [])])

    def dump(self, folder: Any, *args: Any, **kwargs: Any) -> Any:
        """Write every stage of the version for these arguments (or the last used) into `folder`; gives the list of files."""
        from fusegraph.inspect.dump import dump

        version = self.compiled_for(*args, **kwargs)
        return dump([version.artifact, *([version.backward] if version.backward is not None else [])], folder)


# -- gradients and state ------------------------------------------------------------------------------------------------------


def _left_gradients(trace: Trace, arguments: list[Tensor], outputs: list[Tensor]) -> list[tuple[Any, int | None]]:
    """(whose gradient the function has set: a leaf, or the number of an argument; which output it is, or None). Adds to `outputs`.

    A gradient that an optimizer has used up is not handed out (the step would have to write it to memory), unless the next call
    would add to it: the function does not clear gradients before it collects new ones.
    """
    found: list[tuple[Any, int | None]] = []
    place = {id(symbol): number for number, symbol in enumerate(arguments)}
    for tensor, _ in trace.grads_before.values():
        owner = place.get(id(tensor), tensor)
        used_up = id(tensor) in trace.consumed_grads and id(tensor) not in trace.grads_read
        if tensor._grad is None or used_up:
            if owner is tensor:
                found.append((tensor, None))
        else:
            found.append((owner, len(outputs)))
            outputs.append(trace.lift(tensor._grad))
    return found


def _leave_gradients(version: Version, arguments: list[Tensor], outputs: list[Tensor]) -> None:
    """Set `.grad` of leaves, and add to that of arguments, as the function did."""
    for owner, position in version.grads:
        if not isinstance(owner, int):
            owner._grad = None if position is None else outputs[position]
        elif position is not None:
            argument = arguments[owner]
            argument.grad = outputs[position] if argument.grad is None else argument.grad + outputs[position]


def _check_apart(version: Version, arguments: list[Tensor], sources: list[Tensor]) -> None:
    """Raise UnsupportedError if something that the function overwrites is also another input of it.

    The uncompiled function would see the change in both; the compiled one reads each input as it was, or not, as kernels fall.
    """
    if not version.written:
        return
    first, written = len(arguments), set(version.written)
    if version.spans is None:  # addresses of captured tensors, kept until a setting changes
        moving = {position for position, _ in version.owners}  # gradients lie somewhere else at each call
        version.spans = np.array(
            [(0, 0) if first + i in moving else _span(t) for i, t in enumerate(sources[first:])], np.int64
        ).reshape(-1, 2)
        for position in (p for p in written if p >= first):
            _refuse_overlap(version.spans, position - first, sources[position])
    for number, argument in enumerate(arguments):
        chosen = [p - first for p in written if p >= first] if number not in written else slice(None)
        _refuse_overlap(version.spans[chosen], None, argument)
        if number in written:
            _refuse_overlap(np.array([_span(a) for a in arguments], np.int64), number, argument)


def _span(tensor: Tensor) -> tuple[int, int]:
    """First and last byte (exclusive) of a tensor's memory."""
    return np.lib.array_utils.byte_bounds(tensor._value) if tensor._value.size else (0, 0)


def _refuse_overlap(spans: Array, own: int | None, tensor: Tensor) -> None:
    low, high = _span(tensor)
    hit = (spans[:, 0] < high) & (low < spans[:, 1])
    if own is not None:
        hit[own] = False
    if hit.any():
        raise UnsupportedError(
            f"a tensor of shape {list(tensor.shape)} ({tensor.name or 'an argument'}) shares memory with another one that "
            "the compiled function reads, and one of them is overwritten: pass a .clone(), or use one of them only"
        )


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


def _after_fork() -> None:
    """In the child: a thread that it does not have may have been compiling."""
    global _compiling
    _compiling = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# -- arguments -------------------------------------------------------------------------------------------------------------


def _title(function: Any) -> str:
    return getattr(function, "__qualname__", None) or type(function).__name__


def _identifier(title: str) -> str:
    return "".join(c if c.isalnum() or c in "_." else "_" for c in title).replace("_locals_.", "").strip("_") or "graph"


def _parameter_names(function: Any) -> tuple[str, ...]:
    forward = getattr(type(function), "forward", None)
    try:
        names = list(inspect.signature(forward or function).parameters)
    except (TypeError, ValueError):
        return ()
    return tuple(names[1:] if forward is not None else names)


def _leaf_names(names: tuple[str, ...], leaves: list[Any], rebuild: Callable[[list[Any]], Any]) -> list[str]:
    """A name for each leaf: its parameter's, numbered where a parameter is a nest."""
    args, kwargs = rebuild(list(range(len(leaves))))
    out = [""] * len(leaves)
    named = [(names[i] if i < len(names) else f"arg{i}", arg) for i, arg in enumerate(args)] + list(kwargs.items())
    for name, value in named:
        parts, _ = tree.flatten(value)
        for position, leaf in enumerate(parts):
            out[leaf] = name if len(parts) == 1 else f"{name}_{position}"
    return out


class _Same:
    """Stands in a signature for an object that cannot be hashed: equal to itself only (and kept alive, so that it stays unique)."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.held is self.held

    def __hash__(self) -> int:
        return id(self.held)

    def __repr__(self) -> str:
        return repr(self.held)


def _in_key(leaf: Any) -> Any:
    """A value as part of a signature: -0.0 is not 0.0; objects are kept alive, so that no other one can take their place."""
    if type(leaf) is float and leaf == 0.0:
        return str(leaf)
    try:
        hash(leaf)
    except TypeError:
        return _Same(leaf)
    return leaf


def _shape_of(*values: Any) -> str:
    """The nesting of containers, as text."""
    leaves, rebuild = tree.flatten(values, Tensor)
    return repr(rebuild([0] * len(leaves)))


def _as_argument(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf
    if isinstance(leaf, np.ndarray) or (hasattr(leaf, "__dlpack__") and hasattr(leaf, "shape")):
        return as_tensor(leaf)
    if isinstance(leaf, np.generic):
        raise DTypeError(
            f"a numpy scalar ({type(leaf).__name__}) is an argument: pass a Python number (part of the signature) or an array"
        )
    return leaf


def _dense(array: Array) -> Array:
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _difference(old: Key, new: Key, names: list[str]) -> str:
    """What differs between two signatures, in words."""
    if len(old) != len(new) or old[:2] != new[:2]:
        return (
            "gradients are recorded now"
            if new[0] and not old[0]
            else "gradients are not recorded now"
            if old[0] != new[0]
            else "another number or nesting of arguments"
        )
    texts = []
    first = next((i for i, part in enumerate(new) if isinstance(part, tuple)), 0)
    for position, (before, after) in enumerate(zip(old, new, strict=True)):
        if before == after or not isinstance(before, tuple) or not isinstance(after, tuple):
            continue
        place = position - first
        name = names[place] if 0 <= place < len(names) else f"argument {place}"
        texts.append(_leaf_difference(name, before, after))
    return "; ".join(texts) or "another nesting of arguments"


def _leaf_difference(name: str, before: tuple[Any, ...], after: tuple[Any, ...]) -> str:
    if len(before) == 3 and len(after) == 3:
        if before[1] != after[1]:
            return f"argument `{name}` had another dtype"
        if len(before[0]) != len(after[0]):
            return f"argument `{name}` had {len(before[0])} axes, now {len(after[0])}"
        axes = [
            f"axis {i} was {a}, now {b}" for i, (a, b) in enumerate(zip(before[0], after[0], strict=True)) if a != b
        ]
        return (
            f"argument `{name}` {', '.join(axes)}"
            if axes
            else f"argument `{name}` requires a gradient now, or no longer"
        )
    return f"argument `{name}` was {before[-1]!r}, now {after[-1]!r}"


__all__ = ["Compiled", "Version", "compile", "FusegraphError", "Graph", "Node"]
