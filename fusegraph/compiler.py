"""`fusegraph.compile`: a model or a function becomes fused native code, one version for each signature.

A signature is what the trace depends on: shapes and dtypes of array arguments, values of all others, settings such as train
or eval. A bounded number of versions is kept; why a new one was made is logged and kept in `reasons`.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fusegraph import autograd, events, tree
from fusegraph.build import Options, build
from fusegraph.calls import run
from fusegraph.donation import Taken, argument_numbers, matches, parts_given_away
from fusegraph.errors import FusegraphError, OptionError
from fusegraph.repeat import MADE, MISS, Repeat, no_repeat, now, repeat_of
from fusegraph.signature import (
    Key,
    as_argument,
    difference,
    identifier_of,
    key_of,
    leaf_names,
    parameter_names,
    title_of,
)
from fusegraph.sized import SizedBuilder, one_row_more
from fusegraph.tensor import Tensor
from fusegraph.trace import Trace, current_trace, tracing
from fusegraph.version import Version

if TYPE_CHECKING:
    from pathlib import Path

    from fusegraph.build import Artifact
    from fusegraph.inspect.explain import Explanation
    from fusegraph.inspect.profile import Profile
    from fusegraph.ir.graph import Graph
    from fusegraph.partition import Joint
    from fusegraph.passes.pipeline_log import Origin

__all__ = ["Compiled", "Version", "compile"]

DEFAULT_VERSIONS = 64
_compiling = threading.RLock()  # one for all: expressions are interned by the process, traces set and restore gradients
MAX_REPEATS = 4  # signatures that are tried the short way before a key is made


def compile(
    function: Any = None,
    /,
    *,
    backend: str = "cpu",
    fuse: bool | str = True,
    exact: bool = False,
    verify: bool = False,  # noqa: A001
    disable: Sequence[str] = (),
    versions: int = DEFAULT_VERSIONS,
    target: str | None = None,
    precision: str = "float32",
    fuse_limit: int | None = None,
    memory_budget: int | str | None = None,
    dynamic: bool | None = None,
    donate_argnums: int | Sequence[int] = (),
    autotune: str = "off",
) -> Any:
    """Compile a module or a function; also a decorator, with or without options.

    The result is called as the original is. Array arguments may be tensors or numpy arrays; numbers, strings, bools and None
    are part of the signature. What the function assigns (parameters through an optimizer, running statistics, random counters)
    is written in place by the native code. Under `.backward()` a compiled model runs a fused forward and a fused backward.

    backend   "cpu" (LLVM), "numba" (the readable Python source, compiled by numba), "python" (the same source, interpreted),
              "reference" (the graph, by numpy), "cuda" (numba-cuda kernels; not run on a GPU yet)
    fuse      False: every materialised value gets a kernel of its own; "require": raise FusionError, when first called, unless
              every region that the function names (`with fusegraph.region("name"):`) is computed by one kernel
    exact     library functions and strict floating point instead of polynomials and reassociated sums
    verify    run the numpy reference beside every call and raise CompilerError at the first operation that differs
    disable   names of passes to leave out (see `fusegraph.passes.PIPELINE`), and of choices (`fusegraph.passes.choices.CHOICES`)
    versions  how many signatures are kept; the one used longest ago goes first
    target    of backend="cuda": "sm_75" ... "sm_120"; None: the GPU at hand (to look at code without one: "sm_90")
    precision  of what products and convolutions read on a GPU, their sums are float32 in any case: "float32"; "tf32" (tensor
              cores, operands rounded to 10 bits); "float16" or "bfloat16" (temporary operands are kept in 16 bits in memory;
              parameters, inputs, outputs and all arithmetic stay float32). Not together with exact
    fuse_limit  only the first so many fusions are done, in an order that is the same in every run: to find, by halving, the one
              that changes a result (`python -m fusegraph bisect` does that)
    memory_budget  the most bytes (or a text: "64MB", "1.5GiB") that the arena may have, in which everything lives that a call
              computes and does not return; of a model that is called for its gradient, what is kept from the forward program to
              the backward one counts as well. Values are computed again rather than kept until that is so; MemoryBudgetError,
              when first called, if there is no way
    dynamic   of backend="cpu": None: the second different size of a leading (batch) axis compiles a program for every size up to
              the larger one, where that can be; True: from the first call on; False: every size has a program of its own
    donate_argnums  positional arguments (numbers, from 0) that the caller gives away: a result of the same shape and type takes
              the memory of each tensor or array in them. Such a tensor cannot be used any more, an array holds the result
    autotune  of backend="cpu": "on": programs that differ in one choice of fusion are compiled too (ten times the compile time at
              most) and timed by turns on the first calls, about two hundred; the fastest is kept, and remembered in the disk cache.
              Results of different programs differ in rounding. Programs for many sizes (`dynamic`) are not tried

    Raises OptionError for a wrong option; TraceError, when first called, if the function's Python control flow depends on
    values of tensors.
    """
    if versions < 1:
        raise OptionError(f"versions must be at least 1, got {versions}")
    if dynamic not in (None, True, False):
        raise OptionError(f"dynamic is None, True or False, not {dynamic!r}")
    if dynamic and (backend != "cpu" or memory_budget is not None):
        other = f"backend={backend!r}" if backend != "cpu" else "memory_budget"
        raise OptionError(f"dynamic=True is an option of backend='cpu', and does not go together with {other}")
    donated = argument_numbers(donate_argnums)
    if donated and backend == "cuda":
        raise OptionError("donate_argnums is no option of backend='cuda', whose results stay on the device")
    if dynamic and autotune == "on":
        raise OptionError(
            "autotune='on' times programs of a fixed size, dynamic=True makes others: leave one of the two out"
        )
    if isinstance(memory_budget, str):
        from fusegraph.memory_budget import bytes_of

        memory_budget = bytes_of(memory_budget)
    options = Options(
        backend, fuse, exact, verify, tuple(disable), target, precision, fuse_limit, memory_budget, autotune
    )
    if function is None:
        return lambda decorated: Compiled(decorated, options, versions, dynamic, donated)
    if not callable(function):
        raise OptionError(f"fusegraph.compile takes a module or a function, got {type(function).__name__}")
    return Compiled(function, options, versions, dynamic, donated)


class Compiled:
    """A compiled module or function. Attributes of the original (parameters, train, eval, ...) are reached through it."""

    def __init__(
        self,
        function: Callable[..., Any],
        options: Options,
        versions: int = DEFAULT_VERSIONS,
        dynamic: bool | None = None,
        donated: tuple[int, ...] = (),
    ) -> None:
        self._function, self._options, self._limit, self._donated = function, options, versions, donated
        sized = dynamic is not False and options.backend == "cpu" and options.memory_budget is None
        self._builders = (SizedBuilder(dynamic is True), SizedBuilder(dynamic is True)) if sized else None
        self._versions: dict[int, Version] = {}
        self._by_key: dict[Key, list[int]] = {}
        self._made = 0
        self._last: Version | None = None
        self._repeats: tuple[Repeat, ...] = ()  # what is tried the short way, the one used last first
        self._repeat: Callable[[tuple[Any, ...], dict[str, Any]], Any] = no_repeat
        self.reasons: list[str] = []
        functools.update_wrapper(self, function, updated=())
        self._names = parameter_names(function)
        self._run: Callable[..., Any] = run
        if options.backend == "cuda":
            from fusegraph.runtime.cuda.residency import run_on_device

            self._run = run_on_device

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._function, name)

    def __repr__(self) -> str:
        return f"<fusegraph.compile of {title_of(self._function)}: {len(self._versions)} version(s), backend {self._options.backend}>"

    def _repr_html_(self) -> str:
        from fusegraph.inspect.html_repr import compiled_html

        rows = []
        for version in self._versions.values():
            report = version.artifact.report
            shapes = [f"{part['name']} {part['dtype']}{part['shape']}" for part in report["signature"]]
            arguments = ", ".join(shapes[: len(shapes) - len(version.captured)]) or "no arrays"
            rows.append((arguments, version.reason, report))
        return compiled_html(repr(self).strip("<>"), rows)

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
        if self._options.backend == "cuda":
            from fusegraph.runtime.cuda.interop import adopt  # arrays of other libraries on the GPU

            leaves = list(map(adopt, leaves))
        key = key_of(leaves, args, kwargs)
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
        return difference(known.key, key, names)

    # -- making one ---------------------------------------------------------------------------------------------------

    def _compile(self, key: Key, leaves: list[Any], rebuild: Callable[[list[Any]], Any]) -> Version:
        reason = self._reason(key, leaf_names(self._names, leaves, rebuild))
        self.reasons.append(reason)
        events.event("recompile", f"{title_of(self._function)}: {reason}")
        tensors = [as_argument(leaf) for leaf in leaves]
        if not self._versions and self._builders is not None and self._builders[0].at_once:
            self._look_ahead(key, tensors, rebuild)
        version = self._traced(key, tensors, rebuild)
        notes = dict.fromkeys(note for builder in self._builders or () for note in builder.notes)
        version.reason = self.reasons[-1] = "; ".join([reason, *notes])
        return version

    def _look_ahead(self, key: Key, tensors: list[Any], rebuild: Callable[[list[Any]], Any]) -> None:
        """Trace the function for one row more as well: what depends on the number of rows shows before the first program is made."""
        assert self._builders is not None
        try:
            for builder in self._builders:
                builder.watching = True
            self._traced(key, one_row_more(tensors), rebuild)
        except FusegraphError as error:
            events.event("recompile", f"{title_of(self._function)}: no other number of rows can be traced: {error}")
        finally:
            for builder in self._builders:
                builder.watching = False

    def _traced(self, key: Key, tensors: list[Any], rebuild: Callable[[list[Any]], Any]) -> Version:
        """Run the function on symbols for `tensors`, and build the program that this gives."""
        with tracing() as trace:
            names = leaf_names(self._names, tensors, rebuild)
            symbols = [
                trace.argument(name, t) if isinstance(t, Tensor) else t for name, t in zip(names, tensors, strict=True)
            ]
            args, kwargs = rebuild(list(symbols))
            given = parts_given_away(args, self._donated)
            try:
                result = self._function(*args, **kwargs)
                return self._finish(key, trace, symbols, result, given)
            finally:
                for tensor, before in trace.grads_before.values():
                    tensor._grad = before

    def _finish(self, key: Key, trace: Trace, symbols: list[Any], result: Any, given: frozenset[int]) -> Version:
        results, rebuild = tree.flatten(result, Tensor)
        lifted = [trace.lift(leaf) if isinstance(leaf, Tensor) else leaf for leaf in results]
        arguments = [symbol for symbol in symbols if isinstance(symbol, Tensor)]
        takes = matches(arguments, trace.builder.inputs, given, lifted)
        outputs = [leaf for place, leaf in enumerate(lifted) if isinstance(leaf, Tensor) and place not in takes]
        grads = _left_gradients(trace, arguments, outputs)
        assigned = [(c.input, c.value._value) for c in trace.captured.values() if c.assigned]
        assigned += [
            (node, symbol._value)
            for node, symbol in zip(trace.builder.inputs, arguments, strict=False)
            if symbol._value is not node
        ]
        assigned += [(trace.builder.inputs[number], lifted[place]._value) for place, number in takes.items()]
        joint = self._joint(trace, symbols, outputs) if not trace.grads_before else None
        graph = trace.builder.finish([out._value for out in outputs], assigned, identifier_of(title_of(self._function)))
        captured = {c.input: c.tensor for c in trace.captured.values()}
        read = [captured[node] for node in graph.inputs if node in captured]
        first = len(arguments)
        owners = [(first + i, owner) for i, t in enumerate(read) if (owner := trace.grad_owners.get(id(t))) is not None]
        inputs = [*trace.builder.inputs[:first], *(node for node in graph.inputs if node in captured)]
        written = [inputs.index(node) for node, _ in assigned]
        backward, options, origin = None, self._options, None
        if joint is not None:
            from fusegraph.partition import split_joint

            graph, joint, backward_graph = split_joint(graph, joint, self._options)
            origin, origin_of_backward = joint.origins or (None, None)
            options, options_of_backward = (self._options.changed(memory_budget=b) for b in joint.budgets)
            backward = self._build(backward_graph, options_of_backward, origin_of_backward, 1)
        artifact = self._build(graph, options, origin, 0)
        if self._options.fuse == "require":
            from fusegraph.inspect.require import require_fused

            require_fused([artifact] if backward is None else [artifact, backward])
        return Version(
            key,
            artifact,
            read,
            owners,
            written,
            [g.again() for g in trace.guards],
            rebuild,
            [
                Taken(takes[place]) if place in takes else MADE if isinstance(leaf, Tensor) else leaf
                for place, leaf in enumerate(lifted)
            ],
            grads,
            list(trace.grads_read.values()),
            list(trace.values_read.values()),
            joint,
            backward,
        )

    def _build(self, graph: Graph, options: Options, origin: Origin | None, which: int) -> Artifact:
        """Compile the program (0) or the backward one (1)."""
        if self._builders is None:
            return build(graph, options, origin)
        return self._builders[which].build(graph, options, origin)

    def _joint(self, trace: Trace, symbols: list[Any], outputs: list[Tensor]) -> Joint | None:
        """What the backward pass computes, when a gradient may be asked for outside of the function."""
        roots = [(i, out) for i, out in enumerate(outputs) if out.requires_grad]
        if not roots or not autograd.is_grad_enabled():
            return None
        seeds = [trace.argument(f"grad_output_{i}", out.detach()) for i, out in roots]
        from fusegraph.partition import Joint

        found, leaves = autograd.pull_back([out for _, out in roots], seeds, False)
        wanted = [s for s in symbols if isinstance(s, Tensor) and s.requires_grad] + [
            c.tensor for c in trace.captured.values() if c.tensor.requires_grad
        ]
        pairs = [(t, found[(id(t), -1)]._value) for t in wanted if (id(t), -1) in found]
        nodes = [out._value for out in outputs]
        return Joint(
            [i for i, _ in roots], [seed._value for seed in seeds], [t for t, _ in pairs], [g for _, g in pairs], nodes
        )

    # -- looking inside -----------------------------------------------------------------------------------------------

    def compiled_for(self, *args: Any, **kwargs: Any) -> Version:
        """The version that these arguments would run (compiled if need be, not run); without arguments the last used one."""
        if not args and not kwargs and self._last is not None:
            return self._last
        leaves, rebuild = tree.flatten((args, kwargs), Tensor)
        return self._version(key_of(leaves, args, kwargs), leaves, rebuild)

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """A report of the version for these arguments (or the last used): kernels, what was fused, what was refused and why.

        With measured times, once `profile` has run for this version.
        """
        from fusegraph.inspect.explain import Explanation

        version = self.compiled_for(*args, **kwargs)
        return version.profiled or Explanation(version.artifacts)

    def profile(
        self, *args: Any, steps: int = 30, warm_up: int = 3, threads: int | None = None, **kwargs: Any
    ) -> Profile:
        """Time every kernel of the version for these arguments: ns, GB/s, GFLOP/s, share of the machine's roofline, waiting.

        It runs on copies, by code that is compiled for this alone: parameters and machine code stay as they are. `threads`: how
        many to use (None: as many as calls use at present). The first profile on a machine measures it, for about a second.
        Raises OptionError for wrong counts, UnsupportedError where there is no clock (backend "cuda": no GPU).
        """
        from fusegraph.inspect.profile import profile

        version = self.compiled_for(*args, **kwargs)
        made = profile(version, args, kwargs, steps, warm_up, threads)
        version.profiled = made.explanation
        return made

    def dump(self, folder: Any, *args: Any, **kwargs: Any) -> list[Path]:
        """Write every stage of the version for these arguments (or the last used) into `folder`; gives the list of files."""
        from fusegraph.inspect.dump import dump

        version = self.compiled_for(*args, **kwargs)
        return dump(version.artifacts, folder, version.profiled)


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


def _after_fork() -> None:
    """In the child: a thread that it does not have may have been compiling."""
    global _compiling
    _compiling = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
