"""Scalar DAGs as LLVM values: each expression once, at the outermost loop that knows everything it depends on.

Code is written for several *copies* of a vector at once. A copy is `lanes` neighbouring points along the vector axis.
What does not depend on the vector axis is a scalar, computed once for all copies, and broadcast where a vector needs
it.

Scopes follow the loops being written: each knows the axes that its loop binds, and the values computed inside of it,
which are forgotten when the loop is closed. Before a loop is opened, `hoist` computes what does not depend on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fusegraph.codegen.cpu.irtext import FunctionBuilder, Module
from fusegraph.codegen.cpu.nest_index import IndexWriter
from fusegraph.codegen.cpu.nest_memory import MemoryWriter
from fusegraph.codegen.cpu.nest_ops import COMPARISONS, PointOps
from fusegraph.codegen.cpu.nest_products import ProductWriter
from fusegraph.dtypes import int32, int64
from fusegraph.errors import CompilerError
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Store
from fusegraph.ir.scalar import Expr, load, walk
from fusegraph.records import dataclass, field

_NOT_YET = 1 << 30


class Copy(NamedTuple):
    """The points base + offset, ..., base + offset + lanes - 1 of the vector axis; only the first `count` exist.

    `base` names the loop variable, or is None where the position is known. A tuple, as it is part of every key.
    """

    base: str | None
    offset: int
    lanes: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here


@dataclass
class Frame:
    """The vector axis that code is written for. `accumulators_vary`: each point of it has accumulators of its own."""

    axis: Axis
    lanes: int
    accumulators_vary: bool
    copies: tuple[Copy, ...] = ()


@dataclass(frozen=True)
class Position:
    """Where a loop stands: the loop variable `name` (or nothing) plus `offset`."""

    name: str | None
    offset: int = 0


@dataclass
class Scope:
    """The inside of a loop: where its axes stand, and what has been computed there."""

    positions: dict[Axis, Position]
    values: dict[Any, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Needs:
    axes: frozenset[Axis]
    accumulators: frozenset[Expr]
    written: frozenset[str]


class Evaluator:
    """Writes the values of expressions into `fn`. `pointers`: the base address of each buffer."""

    def __init__(self, fn: FunctionBuilder, module: Module, buffers: Mapping[str, Buffer], pointers: Mapping[str, str],
                 written: Iterable[str], exact: bool) -> None:  # fmt: skip
        self.fn, self.exact = fn, exact
        self.buffers, self.pointers, self._written = buffers, pointers, frozenset(written)
        self.scalars = PointOps(fn, module, 1, exact)
        self.frame: Frame | None = None
        self._ops = {1: self.scalars}
        self._scopes = [Scope({})]
        self._point_depth = _NOT_YET
        self._needs: dict[Expr, _Needs] = {}
        self.indices = IndexWriter(self)
        self.memory = MemoryWriter(self)
        self.products = ProductWriter(self)

    def ops(self, lanes: int) -> PointOps:
        """Primitive operations on vectors of `lanes` points."""
        if lanes not in self._ops:
            self._ops[lanes] = self.scalars.with_lanes(lanes)
        return self._ops[lanes]

    # -- scopes -------------------------------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """How many loops are open."""
        return len(self._scopes) - 1

    @contextlib.contextmanager
    def scope(self, positions: Mapping[Axis, Position]) -> Iterator[Scope]:
        """The inside of a loop that binds axes; what is computed inside is forgotten at its end."""
        with self.again(Scope(dict(positions))) as scope:
            yield scope

    @contextlib.contextmanager
    def again(self, scope: Scope) -> Iterator[Scope]:
        """What was known in a scope is known once more, further inside of the loop that it stood in."""
        self._scopes.append(scope)
        yield scope
        self._scopes.pop()

    @contextlib.contextmanager
    def point(self) -> Iterator[None]:
        """Inside, all axes of the space are bound: values that the loop itself writes may be read."""
        self._point_depth = self.depth
        yield
        self._point_depth = _NOT_YET

    @contextlib.contextmanager
    def framed(self, frame: Frame | None) -> Iterator[None]:
        """Inside, code is written for this vector axis."""
        before, self.frame = self.frame, frame
        yield
        self.frame = before

    def lookup(self, key: Any) -> str | None:
        """A value that was computed in an open scope."""
        for scope in reversed(self._scopes):
            found = scope.values.get(key)
            if found is not None:
                return found
        return None

    def remember(self, key: Any, value: str) -> str:
        """Keep a value for as long as the innermost loop is open."""
        self._scopes[-1].values[key] = value
        return value

    def place(self, axis: Axis) -> tuple[Position, int] | None:
        """Where an axis stands and the depth of its loop; None if no open loop binds it."""
        depth = len(self._scopes)
        for scope in reversed(self._scopes):
            depth -= 1
            found = scope.positions.get(axis)
            if found is not None:
                return found, depth
        return None

    def position(self, axis: Axis, copy: Copy | None) -> tuple[Position, int]:
        """Where an axis stands for a copy (its first lane), and at which depth that is known."""
        placed = self.place(axis)
        if copy is not None and self.frame is not None and axis == self.frame.axis:
            return Position(copy.base, copy.offset), placed[1] if placed else 0
        if placed is None:
            raise CompilerError(f"axis {axis.name} (extent {axis.extent}) is used outside of its loop")
        return placed

    # -- what depends on what -----------------------------------------------------------------------------------------

    def needs(self, expr: Expr) -> _Needs:
        """Everything that must be known before `expr` can be computed."""
        known = self._needs.get(expr)
        if known is not None:
            return known
        stack = [expr]
        while stack:
            node = stack[-1]
            if node in self._needs:
                stack.pop()
                continue
            missing = [child for child in node.below if child not in self._needs]
            if missing:
                stack += missing
                continue
            below = [self._needs[child] for child in node.below]
            accumulators = frozenset().union(*(n.accumulators for n in below))
            written = frozenset().union(*(n.written for n in below))
            if node.op == "acc":
                accumulators |= {node}
            if node.op == "load" and node.attribute.buffer in self._written:
                written |= {node.attribute.buffer}
            self._needs[node] = _Needs(node.axes, accumulators, written)
            stack.pop()
        return self._needs[expr]

    def varies(self, expr: Expr) -> bool:
        """Whether the lanes of a vector have different values of `expr`."""
        frame = self.frame
        if frame is None:
            return False
        if frame.axis in expr.axes:
            return True
        return frame.accumulators_vary and bool(self.needs(expr).accumulators)

    def bound(self, axis: Axis) -> bool:
        """Whether the position of `axis` is known here."""
        if self.frame is not None and axis == self.frame.axis:
            return bool(self.frame.copies)
        return self.place(axis) is not None

    def ready(self, expr: Expr) -> bool:
        """Whether `expr` can be computed here."""
        needs = self.needs(expr)
        if needs.written and self.depth < self._point_depth:
            return False
        if not all(self.bound(axis) for axis in needs.axes):
            return False
        return all(self._has_accumulator(acc) for acc in needs.accumulators)

    def _has_accumulator(self, acc: Expr) -> bool:
        copy = self.frame.copies[0] if self.frame is not None and self.frame.copies else None
        return self.lookup((acc, copy)) is not None or self.lookup((acc, None)) is not None

    # -- values -------------------------------------------------------------------------------------------------------

    def _key(self, expr: Expr, copy: Copy | None) -> tuple[Expr, Copy | None]:
        return expr, copy if self.varies(expr) else None

    def value(self, expr: Expr, copy: Copy | None = None) -> str:
        """The value of `expr`: a vector for `copy` if it varies along the vector axis, else a scalar."""
        if expr.op == "const":
            return self._constant(expr, 1)
        known = self.lookup(self._key(expr, copy))
        if known is not None:
            return known
        stack = [expr]
        while stack:
            node = stack[-1]
            if node.op == "const" or self.lookup(self._key(node, copy)) is not None:
                stack.pop()
                continue
            missing = [c for c in node.below if c.op != "const" and self.lookup(self._key(c, copy)) is None]
            if missing:
                stack += reversed(missing)
                continue
            self.remember(self._key(node, copy), self._compute(node, copy if self.varies(node) else None))
            stack.pop()
        found = self.lookup(self._key(expr, copy))
        assert found is not None
        return found

    def compute_together(self, roots: Sequence[Expr], copies: Sequence[Copy | None]) -> None:
        """Compute `roots` for all copies, operation by operation: independent chains hide each other's latency."""
        if len(copies) < 2:
            return  # nothing to put side by side
        for node in walk(roots):
            if node.op not in ("const", "acc") and self.varies(node):
                for copy in copies:
                    self.value(node, copy)

    def vector(self, expr: Expr, copy: Copy | None) -> str:
        """The value of `expr` in all lanes of `copy` (a scalar without a copy)."""
        if copy is None:
            return self.value(expr)
        if expr.op == "const":
            return self._constant(expr, copy.lanes)
        value = self.value(expr, copy)
        if self.varies(expr):
            return value
        return self.splat(expr, value, copy.lanes, expr.dtype)

    def splat(self, key: Any, value: str, lanes: int, dtype: Any) -> str:
        """A scalar in all lanes; `key` tells it from others."""
        known = self.lookup((key, "splat", lanes))
        return known or self.remember((key, "splat", lanes), self.ops(lanes).of(dtype).broadcast(value))

    def _constant(self, expr: Expr, lanes: int) -> str:
        v, value = self.ops(lanes).of(expr.dtype), expr.attribute
        if expr.dtype.kind == "u":  # LLVM writes integers with a sign
            bits = 8 * expr.dtype.itemsize
            value = value - (1 << bits) if value >> (bits - 1) else value
        return v.constant(value)

    def _compute(self, node: Expr, copy: Copy | None) -> str:
        ops = self.ops(copy.lanes if copy else 1)
        if node.op == "load":
            return self.memory.load(node, copy)
        if node.op == "index":
            return self.indices.value(node.attribute, copy)
        if node.op == "inside":
            return self.indices.inside(node.attribute, copy)
        if node.op == "acc":
            raise CompilerError(f"accumulator {node.attribute} is read before the stage that reduces it is done")
        if node.op == "cast" and node.args[0].op == "index" and copy and self.indices.is_small(node.args[0].attribute):
            return ops.cast(self.indices.lanes(node.args[0].attribute, copy, "i32"), int32, node.dtype)
        if node.op == "div" and self.products.by_reciprocal(node):
            return self.products.divide(node, copy)
        if node.op in COMPARISONS and copy and all(map(self._is_small_index, node.args)):
            a, b = (self._small_index(arg, copy) for arg in node.args)
            return ops.compare(node.op, a, b, int32)
        if node.op in ("add", "sub") and self.products.is_sum_of_products(node):
            return self.products.sum(node, copy)
        args = [self.vector(arg, copy) for arg in node.args]
        if node.op == "philox":
            return ops.philox(args[0], args[1], self.indices.low_word(node.attribute, copy))
        return ops.apply(node.op, node.dtype, args, [arg.dtype for arg in node.args])

    def _is_small_index(self, node: Expr) -> bool:
        """Whether it is an int64 position, or a constant, that 32 bits hold: half as many registers."""
        if node.op == "const":
            return node.dtype == int64 and abs(node.attribute) < 1 << 31
        return node.op == "index" and self.indices.is_small(node.attribute)

    def _small_index(self, node: Expr, copy: Copy) -> str:
        if node.op == "const":
            return self.ops(copy.lanes).element("i32").constant(node.attribute)
        return self.indices.lanes(node.attribute, copy, "i32")

    def bind_accumulator(self, acc: Expr, copy: Copy | None, value: str) -> None:
        """The value of a closed accumulator, for the rest of the point of the space."""
        self.remember((acc, copy), value)

    # -- hoisting -----------------------------------------------------------------------------------------------------

    def hoist(self, roots: Sequence[Expr], stores: Sequence[Store]) -> None:
        """Compute, here, everything below `roots` that is ready but is needed by something that is not."""
        copies: Sequence[Copy | None] = (self.frame.copies if self.frame else ()) or (None,)
        seen: set[Expr] = set()
        stack = list(reversed(roots))
        while stack:
            node = stack.pop()
            if node in seen or node.op in ("const", "acc"):
                continue
            seen.add(node)
            if self.ready(node):
                self._hoist_value(node, copies)
                continue
            if node.op == "load":
                self.memory.hoist_address(node.attribute.buffer, node.attribute.index[0])
            if self.varies(node):
                self._hoist_broadcasts(node)
            stack += reversed(node.below)
        for store in stores:
            self.memory.hoist_address(store.buffer, store.index[0])

    def _hoist_value(self, node: Expr, copies: Sequence[Copy | None]) -> None:
        for copy in copies if self.varies(node) else (None,):
            self.value(node, copy)

    def _hoist_broadcasts(self, node: Expr) -> None:
        """Operands of a vector operation that are known scalars."""
        assert self.frame is not None
        if node.op == "div" and self.products.by_reciprocal(node) and self.ready(node.args[1]):
            self.products.reciprocal(node.args[1], self.frame.lanes)
            return
        for arg in node.args:
            if arg.op != "const" and not self.varies(arg) and self.ready(arg):
                self.splat(arg, self.value(arg), self.frame.lanes, arg.dtype)

    def forget_loads(self, buffers: Iterable[str]) -> None:
        """After stores to `buffers`: values that were read from them are out of date."""
        stored = frozenset(buffers)
        for scope in self._scopes:
            for key in [k for k in scope.values if self._reads(k, stored)]:
                del scope.values[key]

    def _reads(self, key: Any, stored: frozenset[str]) -> bool:
        first = key[0] if isinstance(key, tuple) else key
        if isinstance(first, Expr):
            return not self.needs(first).written.isdisjoint(stored)
        if isinstance(first, Index) or first == "pointer":
            return any(self.needs(value).written & stored for value in self.indices.values_read(key))
        return False

    def forward_store(self, store: Store, copy: Copy | None, value: str) -> None:
        """A stored value is what a later load of the same element gives."""
        loaded = load(store.buffer, store.index, self.buffers[store.buffer].dtype)
        if self.varies(loaded) == (copy is not None):
            self.remember((loaded, copy), value)
