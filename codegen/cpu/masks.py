"""Masks that compare positions, i >= j, and what they say of values: where these are 0, and where nobody looks at them.

Everything is an affine index of a loop's axes with the property that outside of the mask, where the index is < 0, a value is 0,
or of no use.
"""

from __future__ import annotations

from collections.abc import Callable

from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Loop, Program, Store
from fusegraph.ir.scalar import Expr, Load, indirect_values, walk

__all__ = ["lowest_outside", "unread_outside", "unused_outside", "zero_outside", "zero_value_outside"]

_COMPARISONS = {"ge": (1, 0), "gt": (1, -1), "le": (-1, 0), "lt": (-1, -1)}  # sign and constant of left - right >= 0
_Rule = Callable[[Expr, Program, Loop, int], "Index | None"]
_DEPTH = 12  # operations that are looked through for a mask


# -- what is known of a buffer -----------------------------------------------------------------------------------------


def zero_outside(load: Load, program: Program) -> Index | None:
    """The index with the property that where it is < 0 what is loaded is 0, or its whole row is NaN."""
    return _loaded(load, program, None, _is_zero, _DEPTH)


def zero_value_outside(value: Expr, program: Program, loop: Loop) -> Index | None:
    """The index with the property that where it is < 0, an expression of `loop` is 0, or NaN with the whole row."""
    return _is_zero(value, program, loop, _DEPTH)


def lowest_outside(value: Expr, program: Program, loop: Loop) -> Index | None:
    """The index with the property that where it is < 0, an expression of `loop` is -inf, or NaN with the whole row."""
    return _is_lowest(value, program, loop, _DEPTH)


def _loaded(load: Load, program: Program, loop: Loop | None, rule: _Rule, depth: int) -> Index | None:
    """What `rule` says of the value that was stored to what is loaded, in the axes of the loading loop."""
    role = program.buffers[load.buffer].role
    if role not in ("temp", "local") or load.mask or depth == 0:
        return None
    writers = (loop,) if role == "local" else program.writers.get(load.buffer, ())
    if len(writers) != 1 or writers[0] is None:
        return None
    stores = [store for stage in writers[0].stages for store in stage.stores if store.buffer == load.buffer]
    if len(stores) != 1 or stores[0].mode != "store":
        return None
    index = rule(stores[0].value, program, writers[0], depth - 1)
    places = {part.axis: at for part, at in zip(stores[0].index, load.index, strict=True) if part.axis is not None}
    same = set(writers[0].space) if role == "local" else set()  # a local buffer is one point's own
    if index is None or not index.is_affine or not index.axes <= places.keys() | same:
        return None
    return index.substitute(places)


def _is_zero(value: Expr, program: Program, loop: Loop, depth: int) -> Index | None:
    """The index with the property that where it is < 0, `value` is 0."""
    if depth == 0:
        return None
    if value.op == "load":
        return _loaded(value.attribute, program, loop, _is_zero, depth)
    if value.op == "where":
        return _condition(value.args[0]) if _is_constant(value.args[2], 0.0) else None
    if value.op in ("mul", "div"):
        factors = value.args if value.op == "mul" else value.args[:1]
        found = (_is_zero(factor, program, loop, depth - 1) for factor in factors)
        return next((index for index in found if index is not None), None)
    return _is_lowest(value.args[0], program, loop, depth - 1) if value.op == "exp" else None


def _is_lowest(value: Expr, program: Program, loop: Loop, depth: int) -> Index | None:
    """The index with the property that where it is < 0, `value` is -inf, or NaN with the whole row."""
    if depth == 0:
        return None
    if value.op == "load":
        return _loaded(value.attribute, program, loop, _is_lowest, depth)
    if value.op == "where":
        return _condition(value.args[0]) if _is_constant(value.args[2], float("-inf")) else None
    return _is_lowest(value.args[0], program, loop, depth - 1) if value.op == "sub" else None


def _is_constant(value: Expr, number: float) -> bool:
    return value.op == "const" and value.attribute == number


def _condition(value: Expr) -> Index | None:
    """The index with the property that `value`, a comparison of positions, holds where it is >= 0."""
    if value.op not in _COMPARISONS:
        return None
    sides = [_position(side) for side in value.args]
    if sides[0] is None or sides[1] is None:
        return None
    sign, constant = _COMPARISONS[value.op]
    return (sides[0] - sides[1]) * sign + constant


def _position(value: Expr) -> Index | None:
    """The index that an integer expression is."""
    while value.op == "cast" and value.dtype.kind == "i" and value.args[0].dtype.kind == "i":
        value = value.args[0]
    if value.op == "const" and value.dtype.kind == "i":
        return Index(value.attribute)
    if value.op in ("add", "sub") and value.dtype.kind == "i":
        left, right = (_position(side) for side in value.args)
        return None if left is None or right is None else left + right * (1 if value.op == "add" else -1)
    return value.attribute if value.op == "index" else None


# -- what is made of a sum ---------------------------------------------------------------------------------------------


def unused_outside(loop: Loop) -> Index | None:
    """The index with the property that where it is < 0 no result depends on the sum."""
    reduce = loop.stages[0].reduces[0]
    stores = [store for stage in loop.stages[1:] for store in stage.stores]
    found: set[Index | None] = set()
    for store in stores:
        if any(expr.op == "load" and expr.attribute.buffer in loop.writes() for expr in walk([store.value])):
            return None
        if _depends(store.value, reduce.name):
            found.add(_unused_by(store.value, reduce.name))
    return found.pop() if len(found) == 1 else None


def _unused_by(value: Expr, accumulator: str) -> Index | None:
    if value.op != "where" or any(_depends(value.args[place], accumulator) for place in (0, 2)):
        return None
    return _condition(value.args[0])


def _depends(value: Expr, accumulator: str) -> bool:
    return any(expr.op == "acc" and expr.attribute == accumulator for expr in walk([value]))


def unread_outside(loop: Loop, program: Program) -> Index | None:
    """The index with the property that where it is < 0 all readers of a contraction's one result multiply it by 0, or do not
    look at it. Another number may stand there; it must not be NaN or infinite.
    """
    stores = [store for stage in loop.stages for store in stage.stores]
    if len(stores) != 1 or not _is_scaled_sum(stores[0].value) or program.buffers[stores[0].buffer].role != "temp":
        return None
    readers = [other for other in program.loops if stores[0].buffer in other.reads()]
    if len(program.writers[stores[0].buffer]) != 1:
        return None
    found: set[Index | None] = set()
    for reader in readers:
        found |= _Use(reader, program, stores[0]).masks()
    return found.pop() if len(found) == 1 else None


def _is_scaled_sum(value: Expr) -> bool:
    """Whether it is 0 if the sum is."""
    factors = value.args if value.op == "mul" else (value,)
    return all(factor.op in ("acc", "const") for factor in factors)


class _Use:
    """How a loop uses what `stored` has stored."""

    def __init__(self, reader: Loop, program: Program, stored: Store) -> None:
        self._reader, self._program, self._stored = reader, program, stored
        places = [index for stage in reader.stages for store in stage.stores for index in store.index]
        self._roots = [value for stage in reader.stages for value in stage.expressions()]
        self._roots += [value for index in places for value in indirect_values(index)]
        self._using: set[Expr] = set()  # the expressions that depend on it
        for node in walk(self._roots):  # operands first
            if self._is_load(node) or any(part in self._using for part in node.below):
                self._using.add(node)

    def _is_load(self, node: Expr) -> bool:
        return node.op == "load" and node.attribute.buffer == self._stored.buffer

    def masks(self) -> set[Index | None]:
        """The masks of all uses, in the axes of the loop that stores; None among them: a use that has none."""
        found: set[Index | None] = set()
        seen: set[Expr] = set()
        stack = [node for node in self._roots if node in self._using]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            mask = self._mask(node)
            if mask is not None:
                loads = [below.attribute for below in walk([node]) if self._is_load(below)]
                found |= {self._where_stored(mask, load) for load in loads}
            elif self._is_load(node) or any(part in self._using and part not in node.args for part in node.below):
                found.add(None)
            else:
                stack += [part for part in node.args if part in self._using]
        return found

    def _mask(self, node: Expr) -> Index | None:
        """The mask outside of which this operation takes no notice of the value."""
        if node.op == "where" and node.args[0] not in self._using and node.args[2] not in self._using:
            return _condition(node.args[0])
        others = [part for part in node.args if part not in self._using] if node.op == "mul" else []
        known = (_is_zero(other, self._program, self._reader, _DEPTH) for other in others)
        return next((index for index in known if index is not None), None)

    def _where_stored(self, mask: Index, load: Load) -> Index | None:
        places: dict[Axis, Index] = {}
        for part, at in zip(self._stored.index, load.index, strict=True):
            if at.axis is not None and part.axis is not None:
                places[at.axis] = part
        if load.mask or not mask.is_affine or not mask.axes <= places.keys():
            return None
        return mask.substitute(places)
