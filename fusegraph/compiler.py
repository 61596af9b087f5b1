"""`fusegraph.compile`: a model or a function becomes fused native code, one version for each signature.

A signature is what the trace depends on: shapes and dtypes of array arguments, values of all others, settings such as train
or eval. A bounded number of versions is kept; why a new one was made is logged and kept in `reasons`.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusegraph import autograd, log, tree
from fusegraph.build import Artifact, Options, build
from fusegraph.errors import DTypeError, FusegraphError, OptionError
from fusegraph.ir.graph import Graph, Node
from fusegraph.partition import Joint, split_joint
from fusegraph.tensor import Tensor, as_tensor
from fusegraph.trace import Guard, Trace, configuration_version, current_trace, tracing

Array = np.ndarray[Any, Any]
Key = tuple[Any, ...]
DEFAULT_VERSIONS = 64
_MADE = object()  # stands for a tensor among a function's results


def compile(target: Any = None, *, backend: str = "cpu", fuse: bool = True, exact: bool = False, verify: bool = False,  # noqa: A001
            disable: Sequence[str] = (), versions: int = DEFAULT_VERSIONS) -> Any:
    """Compile a module or a function; also a decorator, with or without options.

    The result is called as the original is. Array arguments may be tensors or numpy arrays; numbers, strings, bools and None
    are part of the signature. What the function assigns (parameters through an optimizer, running statistics, random counters)
    is written in place by the native code. Under `.backward()` a compiled model runs a fused forward and a fused backward.

    backend   "cpu" (LLVM), "numba" (the readable Python source, compiled by numba), "python" (the same source, interpreted),
              "reference" (the graph, by numpy)
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
    updated: list[Tensor]
    guards: list[Guard]
    rebuild: Callable[[list[Any]], Any]
    results: list[Any]
    grads: list[tuple[Tensor, int | None]]
    grads_seen: list[tuple[Tensor, bool]]
    joint: Joint | None = None
    backward: Artifact | None = None
    checked: int = -1
    calls: int = field(default=0)

    def holds(self) -> bool:
        """Whether the settings that the trace depended on are as they were."""
        version = configuration_version()
        if self.checked != version:
            if any(guard.read() != guard.value for guard in self.guards):
                return False
            self.checked = version
        return all((tensor.grad is None) == was_none for tensor, was_none in self.grads_seen)


class Compiled:
    """A compiled module or function. Attributes of the original (parameters, train, eval, ...) are reached through it."""

    def __init__(self, function: Callable[..., Any], options: Options, versions: int = DEFAULT_VERSIONS) -> None:
        self._function, self._options, self._limit = function, options, versions
        self._versions: OrderedDict[int, Version] = OrderedDict()
        self._by_key: dict[Key, list[int]] = {}
        self._lock = threading.RLock()
        self._made = 0
        self._last: Version | None = None
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
        if current_trace() is not None:
            return self._function(*args, **kwargs)
        leaves, rebuild = tree.flatten((args, kwargs), Tensor)
        key = self._key(leaves, args, kwargs)
        version = self._last
        if version is None or version.key != key or not version.holds():
            version = self._version(key, leaves, rebuild)
        return self._run(version, leaves)

    # -- finding the version ------------------------------------------------------------------------------------------

    def _key(self, leaves: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
        parts: list[Any] = [autograd.is_grad_enabled(), len(args), *kwargs]
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                parts.append((leaf._value.shape, leaf._value.dtype.num, leaf.requires_grad))
            elif isinstance(leaf, np.ndarray):
                parts.append((leaf.shape, leaf.dtype.num, False))
            else:
                parts.append((type(leaf), leaf if isinstance(leaf, (bool, int, float, str, bytes, type(None))) else id(leaf)))
        if any(isinstance(arg, (list, tuple, dict)) for arg in (*args, *kwargs.values())):
            parts.append(_shape_of(args, kwargs))
        return tuple(parts)

    def _version(self, key: Key, leaves: list[Any], rebuild: Callable[[list[Any]], Any]) -> Version:
        with self._lock:
            for number in self._by_key.get(key, ()):
                version = self._versions[number]
                if version.holds():
                    self._versions.move_to_end(number)
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
            number, old = self._versions.popitem(last=False)
            self._by_key[old.key].remove(number)

    def _reason(self, key: Key, leaves: list[Any]) -> str:
        """Why the versions at hand do not serve."""
        if not self._versions:
            return "first call"
        known = next(reversed(self._versions.values()))
        for number in self._by_key.get(key, ()):
            same = self._versions[number]
            changed = [f"{g.what} was {g.value!r}, now {g.read()!r}" for g in same.guards if g.read() != g.value]
            changed += [f"the gradient of {t.name or 'a parameter'} was {'None' if none else 'there'}, now it is "
                        f"{'there' if none else 'None'}" for t, none in same.grads_seen if (t.grad is None) != none]
            return "; ".join(changed) or "a setting changed"
        return _difference(known.key, key, self._names, leaves)

    # -- making one ---------------------------------------------------------------------------------------------------

    def _compile(self, key: Key, leaves: list[Any], rebuild: Callable[[list[Any]], Any]) -> Version:
        reason = self._reason(key, leaves)
        self.reasons.append(reason)
        log.event("recompile", f"{_title(self._function)}: {reason}")
        tensors = [_as_argument(leaf) for leaf in leaves]
        with tracing() as trace:
            names = _leaf_names(self._names, leaves, rebuild)
            symbols = [trace.argument(name, t) if isinstance(t, Tensor) else t for name, t in zip(names, tensors, strict=True)]
            args, kwargs = rebuild(list(symbols))
            try:
                result = self._function(*args, **kwargs)
                return self._finish(key, trace, symbols, result)
            finally:
                for tensor, before in trace.grads_before.values():
                    tensor.grad = before

    def _finish(self, key: Key, trace: Trace, symbols: list[Any], result: Any) -> Version:
        results, rebuild = tree.flatten(result, Tensor)
        lifted = [trace.lift(leaf) if isinstance(leaf, Tensor) else leaf for leaf in results]
        outputs = [leaf for leaf in lifted if isinstance(leaf, Tensor)]
        grads: list[tuple[Tensor, int | None]] = []
        for tensor, _ in trace.grads_before.values():
            if tensor.grad is None or id(tensor) in trace.consumed_grads:
                grads.append((tensor, None))
            else:
                grads.append((tensor, len(outputs)))
                outputs.append(trace.lift(tensor.grad))
        assigned = [c for c in trace.captured.values() if c.assigned]
        updates = [(c.input, c.value._value) for c in assigned]
        joint = self._joint(trace, symbols, outputs) if not trace.grads_before else None
        nodes = [out._value for out in outputs]
        graph = trace.builder.finish(nodes, updates, _identifier(_title(self._function)))
        captured = {c.input: c.tensor for c in trace.captured.values()}
        read = [captured[node] for node in graph.inputs if node in captured]
        backward = None
        if joint is not None:
            graph, joint, backward_graph = split_joint(graph, joint, self._options)
            backward = build(backward_graph, self._options)
        artifact = build(graph, self._options)
        seen = [(tensor, before is None) for tensor, before in trace.grads_before.values()
                if any(t is tensor and position is not None for t, position in grads)]
        return Version(key, artifact, read, [c.tensor for c in assigned], list(trace.guards), rebuild,
                       [_MADE if isinstance(leaf, Tensor) else leaf for leaf in lifted], grads, seen, joint, backward)

    def _joint(self, trace: Trace, symbols: list[Any], outputs: list[Tensor]) -> Joint | None:
        """What the backward pass computes, when a gradient may be asked for outside of the function."""
        roots = [(i, out) for i, out in enumerate(outputs) if out.requires_grad and out._record is not None]
        if not roots or not autograd.is_grad_enabled():
            return None
        seeds = [trace.argument(f"grad_output_{i}", out.detach()) for i, out in roots]
        found, leaves = autograd.pull_back([out for _, out in roots], seeds, False)
        wanted = [s for s in symbols if isinstance(s, Tensor) and s.requires_grad] + [
            c.tensor for c in trace.captured.values() if c.tensor.requires_grad]
        pairs = [(t, found[(id(t), -1)]._value) for t in wanted if (id(t), -1) in found]
        nodes = [out._value for out in outputs]
        return Joint([i for i, _ in roots], [seed._value for seed in seeds], [t for t, _ in pairs], [g for _, g in pairs], nodes)

    # -- running ------------------------------------------------------------------------------------------------------

    def _run(self, version: Version, leaves: list[Any]) -> Any:
        tensors = [_as_argument(leaf) for leaf in leaves]
        arguments = [t for t in tensors if isinstance(t, Tensor)]
        arrays = [_dense(t._value) for t in arguments] + [t._value for t in version.captured]
        made = version.artifact.run(arrays)
        version.calls += 1
        for tensor in version.updated:
            tensor._version += 1
        outputs = [Tensor._make(value) for value in made[:len(made) if version.joint is None else version.joint.count]]
        for tensor, position in version.grads:
            tensor.grad = None if position is None else outputs[position]
        if version.joint is not None and version.backward is not None:
            version.joint.attach(version, arguments, arrays, outputs, made)
        rest = iter(outputs)
        return version.rebuild([next(rest) if leaf is _MADE else leaf for leaf in version.results])

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
        raise DTypeError(f"a numpy scalar ({type(leaf).__name__}) is an argument: pass a Python number (part of the signature) or an array")
    return leaf


def _dense(array: Array) -> Array:
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _difference(old: Key, new: Key, names: tuple[str, ...], leaves: list[Any]) -> str:
    """What differs between two signatures, in words."""
    if len(old) != len(new) or old[:2] != new[:2]:
        return "gradients are recorded now" if new[0] and not old[0] else "gradients are not recorded now" if old[0] != new[0] \
            else "another number or nesting of arguments"
    texts = []
    for position, (before, after) in enumerate(zip(old, new, strict=True)):
        if before == after or not isinstance(before, tuple) or not isinstance(after, tuple):
            continue
        place = position - 2
        name = names[place] if 0 <= place < len(names) else f"argument {place}"
        texts.append(_leaf_difference(name, before, after))
    return "; ".join(texts) or "another nesting of arguments"


def _leaf_difference(name: str, before: tuple[Any, ...], after: tuple[Any, ...]) -> str:
    if len(before) == 3 and len(after) == 3:
        if before[1] != after[1]:
            return f"argument `{name}` had another dtype"
        if len(before[0]) != len(after[0]):
            return f"argument `{name}` had {len(before[0])} axes, now {len(after[0])}"
        axes = [f"axis {i} was {a}, now {b}" for i, (a, b) in enumerate(zip(before[0], after[0], strict=True)) if a != b]
        return f"argument `{name}` {', '.join(axes)}" if axes else f"argument `{name}` requires a gradient now, or no longer"
    return f"argument `{name}` was {before[-1]!r}, now {after[-1]!r}"


__all__ = ["Compiled", "Version", "compile", "FusegraphError", "Graph", "Node"]
