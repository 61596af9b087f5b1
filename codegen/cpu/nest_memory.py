"""Loads and stores of vectors: contiguous, reversed, strided, gathered; with masks and partly filled vectors.

Memory that a mask or a vector's count excludes is never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusegraph.codegen.cpu.irtext import Operand, element_bytes
from fusegraph.codegen.cpu.irvector import VectorOps
from fusegraph.codegen.cpu.nest_index import constant_of
from fusegraph.codegen.cpu.nest_ops import memory_element
from fusegraph.codegen.cpu.nest_stream import alignment
from fusegraph.dtypes import DType, bool_
from fusegraph.errors import CompilerError
from fusegraph.ir.index import Atom, Axis, Index
from fusegraph.ir.loops import Store
from fusegraph.ir.scalar import Expr, indirect_values

if TYPE_CHECKING:
    from fusegraph.codegen.cpu.body import Copy, Evaluator

Term = tuple[Atom, int]
MOST_STEP = 4  # elements that are at most so far apart are loaded as whole vectors
_REGISTER_BYTES = 32  # of AVX2; AVX-512 registers take two pieces


class MemoryWriter:
    """Writes loads and stores for an evaluator."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._e = evaluator
        self.streamed: frozenset[str] = frozenset()  # buffers that are written past the caches

    # -- addresses ----------------------------------------------------------------------------------------------------

    def _offset(self, pointer: str, offset: str | int, element: str) -> str:
        """No "inbounds": the address of an element that a mask excludes may lie outside of the buffer."""
        if str(offset) == "0":
            return pointer
        return self._e.fn.op(f"getelementptr {element}, ptr {pointer}, i64 {offset}", "p")

    def pointer(self, buffer: str, index: Index, copy: Copy | None) -> str:
        """The address of the element of a copy's first lane. Only the vector axis itself may vary in `index`."""
        pointer, constant = self._prefix(buffer, index, copy, everything=True)
        return self._offset(pointer, constant, self._element(buffer))

    def hoist_address(self, buffer: str, index: Index) -> None:
        """Compute the part of an address that is known here."""
        self._prefix(buffer, index, None, everything=False)

    def prefetch(self, buffer: str, index: Index, copy: Copy | None, written: bool) -> None:
        """Ask for the cache line of an element, which need not exist. `written`: in order to be overwritten."""
        pointer = self.pointer(buffer, index, copy)
        args: list[tuple[str, Operand]] = [("ptr", pointer), ("i32", int(written)), ("i32", 3), ("i32", 1)]
        self._e.fn.intrinsic("void", "prefetch.p0", args)

    def _element(self, buffer: str) -> str:
        return memory_element(self._e.buffers[buffer].dtype)

    def _prefix(self, buffer: str, index: Index, copy: Copy | None, everything: bool) -> tuple[str, int]:
        """The address of what is known, added up loop by loop from the outside, and the constant that is left over."""
        constant = index.constant
        levels: dict[int, list[Term]] = {}
        for atom, c in index.terms:
            level = self._level(atom, copy, everything)
            if level is None:
                continue
            if isinstance(atom, Axis):
                position, _ = self._e.position(atom, copy)
                constant += c * position.offset
                if position.name is None:
                    continue
            levels.setdefault(level, []).append((atom, c))
        pointer, terms = self._e.pointers[buffer], Index()
        for level in sorted(levels):
            terms = Index(0, terms.terms + tuple(levels[level]))
            pointer = self._advanced(buffer, pointer, terms, levels[level], copy)
        return pointer, constant

    def _level(self, atom: Atom, copy: Copy | None, everything: bool) -> int | None:
        """The depth of the loop at which an atom is known; None if it is not known here."""
        e = self._e
        if isinstance(atom, Axis):
            if everything:
                return e.position(atom, copy)[1]
            placed = None if e.frame is not None and atom == e.frame.axis else e.place(atom)
            return placed[1] if placed else None
        single = Index(0, ((atom, 1),))
        if not everything and not (all(e.bound(a) for a in single.axes) and all(map(e.ready, indirect_values(single)))):
            return None
        if not everything and e.indices.varies(single):
            return None
        if any(e.needs(v).written or e.needs(v).accumulators for v in indirect_values(single)):
            return e.depth
        return max((e.position(a, copy)[1] for a in single.axes), default=0)

    def _advanced(self, buffer: str, pointer: str, terms: Index, last: list[Term], copy: Copy | None) -> str:
        names = tuple(self._e.position(a, copy)[0].name for a, _ in terms.terms if isinstance(a, Axis))
        key = ("pointer", buffer, terms, names)
        known = self._e.lookup(key)
        if known is not None:
            return known
        offset = self._e.fn.affine([(c, self._variable(atom, copy)) for atom, c in last])
        return self._e.remember(key, self._offset(pointer, offset, self._element(buffer)))

    def _variable(self, atom: Atom, copy: Copy | None) -> str:
        """An atom's value; of an axis only the loop variable (constants are added last: copies share addresses)."""
        if isinstance(atom, Axis):
            return self._e.position(atom, copy)[0].name or "0"
        return self._e.indices.atom(atom)

    # -- loads --------------------------------------------------------------------------------------------------------

    def load(self, node: Expr, copy: Copy | None) -> str:
        """The value of a load: a scalar, or a vector for `copy`."""
        buffer, index = node.attribute.buffer, node.attribute.index[0]
        shared, lanes = self._e.indices.mask(node.attribute.mask, copy)
        v = self._e.ops(copy.lanes if copy else 1).of(node.dtype)
        if shared is False or self._e.buffers[buffer].size == 0:
            return v.constant(0)
        if copy is None:
            return self._load_scalar(buffer, index, shared, node.dtype)
        step = self._e.indices.step(index)
        if step == 0:
            return self._load_broadcast(buffer, index, shared, lanes, copy, node.dtype)
        if isinstance(shared, str) and lanes is None and step is not None:
            return self._load_all_or_nothing(buffer, index, shared, copy, node.dtype, step)
        if isinstance(shared, str):
            wide = self._e.ops(copy.lanes).of(bool_).broadcast(shared)
            lanes = wide if lanes is None else self._e.ops(copy.lanes).of(bool_).binary("and", lanes, wide)
        if step in (1, -1):
            return self._load_contiguous(buffer, index, lanes, copy, node.dtype, reverse=step == -1)
        return self._load_gathered(buffer, index, lanes, copy, node.dtype, step)

    def _load_all_or_nothing(self, buffer: str, index: Index, shared: str, copy: Copy, dtype: DType, step: int) -> str:
        """A mask that all lanes share: where it fails the buffer's first elements are loaded, and dropped."""
        v = self._e.ops(copy.lanes).element(memory_element(dtype))
        span = abs(step) * (copy.count - 1)
        if self._e.buffers[buffer].size <= span:  # too small for the mask ever to hold
            return self._e.ops(copy.lanes).of(dtype).constant(0)
        first = index - span if step < 0 else index
        pointer = self._e.fn.select(shared, "ptr", self.pointer(buffer, first, copy), self._e.pointers[buffer])
        if abs(step) == 1:
            value = self._load_first(v, pointer, copy.count)
        elif 2 <= abs(step) <= MOST_STEP and copy.lanes > 2:
            value = self._load_every(v, pointer, copy.count, abs(step))
        else:
            value = self._load_each(
                v, [self._offset(pointer, abs(step) * lane, v.element) for lane in range(copy.count)]
            )
        if step < 0:
            value = self._reversed(v, value, copy.count)
        chosen = self._e.fn.op(f"select i1 {shared}, {v.type} {value}, {v.type} {v.constant(0)}")
        return self._from_memory(chosen, dtype, copy.lanes)

    def _load_each(self, v: VectorOps, addresses: Sequence[str]) -> str:
        """One element a lane; lanes without an address are zero."""
        vector = "zeroinitializer" if len(addresses) < v.lanes else "poison"
        for lane, address in enumerate(addresses):
            vector = v.insert(vector, self._e.fn.load(v.element, address), lane)
        return vector

    def _from_memory(self, value: str, dtype: DType, lanes: int) -> str:
        if dtype.kind != "b":
            return value
        v = self._e.ops(lanes).element("i8")
        return v.compare("ne", value, v.constant(0))

    def _load_scalar(self, buffer: str, index: Index, shared: str | bool, dtype: DType) -> str:
        fn, element = self._e.fn, memory_element(dtype)
        if not isinstance(shared, str):
            return self._from_memory(fn.load(element, self.pointer(buffer, index, None)), dtype, 1)
        # element 0 exists; its value is dropped
        pointer = fn.select(shared, "ptr", self.pointer(buffer, index, None), self._e.pointers[buffer])
        value = fn.load(element, pointer)
        v = self._e.ops(1).element(element)
        return self._from_memory(v.select(shared, value, v.constant(0)), dtype, 1)

    def _load_broadcast(
        self, buffer: str, index: Index, shared: str | bool, lanes: str | None, copy: Copy, dtype: DType
    ) -> str:
        """One address, but a mask that differs between lanes."""
        masks, v = self._e.ops(copy.lanes).of(bool_), self._e.ops(copy.lanes).of(dtype)
        if lanes is None:
            return v.broadcast(self._load_scalar(buffer, index, shared, dtype))
        wanted = masks.any(self._only_counted(lanes, copy))
        if isinstance(shared, str):
            wanted = self._e.fn.binary("and", "i1", wanted, shared)
        value = self._load_scalar(buffer, index, wanted, dtype)
        return v.select(lanes, v.broadcast(value), v.constant(0))

    def _only_counted(self, lanes: str, copy: Copy) -> str:
        v = self._e.ops(copy.lanes).of(bool_)
        return lanes if copy.count == copy.lanes else v.binary("and", lanes, v.first_mask(copy.count))

    def _load_contiguous(
        self, buffer: str, index: Index, lanes: str | None, copy: Copy, dtype: DType, reverse: bool
    ) -> str:
        v = self._e.ops(copy.lanes).element(memory_element(dtype))
        if lanes is None:
            pointer = self.pointer(buffer, index, copy)
            value = self._load_first(
                v, self._offset(pointer, 1 - copy.count, v.element) if reverse else pointer, copy.count
            )
        else:
            value = self._load_where(v, buffer, index, copy, reverse)
        if reverse:
            value = self._reversed(v, value, copy.count)
        if lanes is not None:
            value = v.select(lanes, value, v.constant(0))
        return self._from_memory(value, dtype, copy.lanes)

    def _load_first(self, v: VectorOps, pointer: str, count: int) -> str:
        """The first `count` elements, in pieces of at most one register (wider masked loads: see _load_where)."""
        width = min(v.lanes, max(1, _REGISTER_BYTES // element_bytes(v.element)))
        if count >= v.lanes or width == v.lanes:
            return v.load_first(pointer, count)
        piece = VectorOps(self._e.fn, width, v.element)
        pieces = [
            piece.load_first(self._offset(pointer, at, v.element), min(count - at, width))
            if at < count
            else piece.constant(0)
            for at in range(0, v.lanes, width)
        ]
        while len(pieces) > 1:
            pieces = [
                piece.shuffle(a, b, range(2 * piece.lanes)) for a, b in zip(pieces[::2], pieces[1::2], strict=True)
            ]
            piece = VectorOps(self._e.fn, 2 * piece.lanes, v.element)
        return pieces[0]

    def _load_where(self, v: VectorOps, buffer: str, index: Index, copy: Copy, reverse: bool) -> str:
        """Neighbouring elements of which some may lie outside of the buffer (those lanes hold anything).

        One load where all of them are inside, else one a lane, at a place moved inside. Not llvm.masked.load: where
        LLVM finds out late that a part of a mask is false (LLVM 22, x86), it loads that part without a mask.
        """
        fn, size = self._e.fn, self._e.buffers[buffer].size
        first = index - (copy.count - 1) if reverse else index
        offset = self._e.indices.scalar(first, copy)
        known = constant_of(offset)
        if known is not None and 0 <= known <= size - copy.count:
            return self._load_first(v, self._offset(self._e.pointers[buffer], offset, v.element), copy.count)
        if size < copy.lanes or copy.count < copy.lanes or known is not None:
            return self._load_lanes_inside(v, buffer, offset, copy.count)
        with fn.if_else(fn.compare("ule", "i64", offset, size - copy.lanes), [v.type]) as branch:
            with branch.then():
                branch.give(v.load(self._offset(self._e.pointers[buffer], offset, v.element)))
            with branch.otherwise():
                branch.give(self._load_lanes_inside(v, buffer, offset, copy.count))
        return branch.results[0]

    def _load_lanes_inside(self, v: VectorOps, buffer: str, offset: str, count: int) -> str:
        """`count` elements from `offset` on; places outside of the buffer are moved to its last element."""
        fn, last = self._e.fn, self._e.buffers[buffer].size - 1
        vector = "zeroinitializer"
        for lane in range(count):
            place = fn.affine([(1, offset)], lane)
            number = constant_of(place)
            if number is None:
                place = fn.select(fn.compare("ult", "i64", place, last), "i64", place, last)
            elif not 0 <= number <= last:
                continue
            vector = v.insert(
                vector, fn.load(v.element, self._offset(self._e.pointers[buffer], place, v.element)), lane
            )
        return vector

    def _reversed(self, v: VectorOps, value: str, count: int) -> str:
        """The first `count` lanes the other way round."""
        return v.shuffle(value, "poison", [*range(count - 1, -1, -1), *range(count, v.lanes)]) if v.lanes > 1 else value

    def _load_gathered(
        self, buffer: str, index: Index, lanes: str | None, copy: Copy, dtype: DType, step: int | None
    ) -> str:
        """Neighbours a few elements apart by whole vectors and shuffles; else scalar loads, one a lane.

        Those are faster than the gather instructions of most processors.
        """
        v = self._e.ops(copy.lanes).element(memory_element(dtype))
        if step is not None and 2 <= step <= MOST_STEP and lanes is None and copy.lanes > 2:
            return self._from_memory(
                self._load_every(v, self.pointer(buffer, index, copy), copy.count, step), dtype, copy.lanes
            )
        if step is not None and lanes is None:
            pointer = self.pointer(buffer, index, copy)
            addresses = [self._offset(pointer, step * lane, v.element) for lane in range(copy.count)]
        else:
            addresses = self._lane_addresses(buffer, index, lanes, copy)
        vector = self._load_each(v, addresses)
        if lanes is not None:
            vector = v.select(lanes, vector, v.constant(0))
        return self._from_memory(vector, dtype, copy.lanes)

    def _load_every(self, v: VectorOps, pointer: str, count: int, step: int) -> str:
        """Every `step`-th element, `count` of them. Nothing behind the last one is read: vectors overlap instead."""
        span = step * (count - 1) + 1
        starts = [min(start, max(span - v.lanes, 0)) for start in range(0, span, v.lanes)]
        vectors = [self._load_first(v, self._offset(pointer, start, v.element), min(v.lanes, span)) for start in starts]
        place = [(step * lane // v.lanes, step * lane) for lane in range(count)]
        result, filled = "zeroinitializer", 0
        for number, (start, vector) in enumerate(zip(starts, vectors, strict=True)):
            mine = [element - start for which, element in place if which == number]
            chosen = [*range(filled), *(v.lanes + k for k in mine), *range(filled + len(mine), v.lanes)]
            result, filled = v.shuffle(result, vector, chosen), filled + len(mine)
        return result

    def _lane_addresses(self, buffer: str, index: Index, lanes: str | None, copy: Copy) -> list[str]:
        """One address for each lane that counts; element 0 where the mask fails."""
        if lanes is None and copy.base is None and self._is_known_lane_by_lane(index):
            return self._known_lanes(buffer, index, copy)
        element = "i32" if self._e.indices.is_small(index) else "i64"
        v = self._e.ops(copy.lanes).element(element)
        offsets = self._e.indices.lanes(index, copy, element)
        if lanes is not None:
            offsets = v.select(lanes, offsets, v.constant(0))
        base, addresses = self._e.pointers[buffer], []
        for lane in range(copy.count):
            offset = v.extract(offsets, lane)
            if element == "i32":
                offset = self._e.fn.cast("sext", "i32", offset, "i64")
            addresses.append(self._offset(base, offset, self._element(buffer)))
        return addresses

    def _is_known_lane_by_lane(self, index: Index) -> bool:
        """Whether only the vector axis itself differs between lanes: no value that was read does."""
        return not any(self._e.varies(value) for value in indirect_values(index))

    def _known_lanes(self, buffer: str, index: Index, copy: Copy) -> list[str]:
        """The addresses where the positions along the vector axis are numbers: quotients of them are numbers too."""
        assert self._e.frame is not None
        axis, addresses = self._e.frame.axis, []
        for lane in range(copy.count):
            addresses.append(self.pointer(buffer, index.substitute({axis: Index(copy.offset + lane)}), None))
        return addresses

    # -- stores -------------------------------------------------------------------------------------------------------

    def store(self, store: Store, copy: Copy | None, value: str) -> None:
        """Store a value (a scalar, or the vector of a copy); mode "add" adds it to what is there."""
        dtype, index = self._e.buffers[store.buffer].dtype, store.index[0]
        step = self._e.indices.step(index) if copy is not None else 0
        lanes = copy.lanes if copy else 1
        v = self._e.ops(lanes).element(memory_element(dtype))
        if store.mode == "add" and dtype.kind == "b":
            raise CompilerError(f"a bool buffer ({store.buffer}) cannot be added to")
        if dtype.kind == "b":
            value = self._e.ops(lanes).of(bool_).convert("zext", value, "i8")
        if copy is None:
            self._store_one(v, value, self.pointer(store.buffer, index, None), store.mode)
        elif step == 1:
            self._store_contiguous(v, value, store, copy)
        elif step == -1 and store.mode == "store":
            pointer = self._offset(self.pointer(store.buffer, index, copy), 1 - copy.count, v.element)
            v.store_first(self._reversed(v, value, copy.count), pointer, copy.count)
        else:
            self._store_lanes(v, value, store, copy, step)

    def _store_one(self, v: VectorOps, value: str, pointer: str, mode: str) -> None:
        one = self._e.ops(1).element(v.element)
        one.store(one.add(one.load(pointer), value) if mode == "add" else value, pointer)

    def _store_contiguous(self, v: VectorOps, value: str, store: Store, copy: Copy) -> None:
        pointer = self.pointer(store.buffer, store.index[0], copy)
        if store.buffer in self.streamed and self._e.frame is not None:
            align = alignment(store.index[0], self._e.frame.axis, copy, self._e.buffers[store.buffer].dtype.itemsize)
            if align is not None:
                self._e.fn.store(v.type, value, pointer, align, past_caches=True)
                return
        if store.mode == "add":
            value = v.add(v.load_first(pointer, copy.count), value)
        v.store_first(value, pointer, copy.count)

    def _store_lanes(self, v: VectorOps, value: str, store: Store, copy: Copy, step: int | None) -> None:
        index = store.index[0]
        if step is not None:
            pointer = self.pointer(store.buffer, index, copy)
            addresses = [self._offset(pointer, step * lane, v.element) for lane in range(copy.count)]
        else:
            addresses = self._lane_addresses(store.buffer, index, None, copy)
        for lane, address in enumerate(addresses):
            self._store_one(v, v.extract(value, lane), address, store.mode)
