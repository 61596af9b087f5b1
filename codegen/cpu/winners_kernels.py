"""Kernels of the two products with winners (winners.py), a row of a window's taps and channels at a time.

    sums[o, row, :]                       += value[o, n, w] * image[n, place[o, n, w] + row, :]      weight gradient
    image[n, place[o, n, w] + row, :]     += value[o, n, w] * weights[o, row, :]                     input gradient

The values of the windows w of an image that are not zero are put side by side first, with their places. A row of the sums lies
in registers, in pieces if it is long, while they go by. Images are the outer loop: each stays in the first-level cache.
Where many winners share a place, those of an image are sorted by it, and a row of the image lies in registers in its turn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusegraph.codegen.cpu.gemm import decode, for_each_part, thread_range
from fusegraph.codegen.cpu.irtext import FAST_MATH, Module, element_bytes
from fusegraph.codegen.cpu.irvector import VectorOps
from fusegraph.codegen.cpu.kernel import EmittedKernel, kernel_buffers, kernel_function
from fusegraph.codegen.cpu.nest import describe
from fusegraph.codegen.cpu.nest_ops import element_of, memory_element
from fusegraph.codegen.cpu.run_time import bound
from fusegraph.ir.index import Axis, Index, Indirect, flatten_index
from fusegraph.ir.loops import Loop, Program, Store
from fusegraph.ir.scalar import Load

__all__ = ["emit_winners"]

_PIECE = 12  # vectors of a row in registers; with one more for the value and one for a product 16 are enough
_LEAST_GROUP = 3  # winners of one place, on average: fewer do not pay for being sorted
_MOST_SORTED = 1 << 15  # winners of an image: their list stays in the second-level cache
_GROUP = 10  # vectors of the image that are loaded before the first of them is stored
_PARALLEL_PRODUCTS = 32_768


@dataclass(frozen=True)
class _Product:
    """Such a loop, read.

    value, place   flat indices of a winner's value and place, by buffer
    pixels, pitch  places are below the first, and elements of the image so far apart
    image, dense   flat indices of the image's element (but for the place) and of the sums or weights
    maps, images   axes; `windows` those of the windows of an image
    taps           outer axes of the window's elements; `row` elements lie side by side in image and sums
    """

    value: tuple[str, Index]
    place: tuple[str, Index]
    pixels: int
    pitch: int
    image: tuple[str, Index]
    dense: tuple[str, Index]
    maps: Axis
    images: Axis
    windows: int
    taps: tuple[Axis, ...]
    row: int
    gathers: bool


def emit_winners(module: Module, loop: Loop, program: Program, vector_bits: int) -> EmittedKernel | None:
    """Write the kernel of a product with winners into `module`; None for any other loop."""
    found = _product(loop, program)
    return None if found is None else _Emitter(module, loop, program, found, vector_bits).emit()


def _product(loop: Loop, program: Program) -> _Product | None:
    stages = loop.stages
    if loop.schedule == "nest" and len(stages) == 2 and len(stages[0].reduces) == len(stages[1].stores) == 1:
        (reduce,), (store,) = stages[0].reduces, stages[1].stores
        plain = store.value.op == "acc" and reduce.op == "sum" and not stages[1].axes and len(loop.space) > 2
        if not plain or len(stages[0].reduce_axes) < 2:
            return None
        (maps, *taps), (images, *windows), value = loop.space, stages[0].reduce_axes, reduce.value
    elif loop.schedule == "scatter" and len(stages) == 1 and len(stages[0].stores) == 1 and len(stages[0].axes) == 7:
        (store,), (images, maps, *rest) = stages[0].stores, stages[0].axes
        windows, taps, value = rest[:2], rest[2:], store.value
    else:
        return None
    if value.op != "mul" or any(arg.op != "load" or arg.attribute.mask for arg in value.args):
        return None
    first, second = (arg.attribute for arg in value.args)
    return _read(loop, program, store, (first, second), (maps, images, tuple(windows), tuple(taps)))


def _read(
    loop: Loop, program: Program, store: Store, loads: tuple[Load, Load],
    axes: tuple[Axis, Axis, tuple[Axis, ...], tuple[Axis, ...]],
) -> _Product | None:  # fmt: skip
    maps, images, windows, taps = axes

    def flat(buffer: str, index: Sequence[Index]) -> tuple[str, Index]:
        return buffer, flatten_index(index, program.buffers[buffer].shape)

    value, other = (flat(part.buffer, part.index) for part in loads)
    stored, gathers = flat(store.buffer, store.index), loop.schedule == "nest"
    image, dense = (other, stored) if gathers else (stored, other)
    indirect = [(atom, factor) for atom, factor in image[1].terms if isinstance(atom, Indirect)]
    if len(indirect) != 1 or indirect[0][1] < 1 or indirect[0][0].value.op != "load":
        return None
    rest = Index(image[1].constant, tuple(term for term in image[1].terms if term[0] is not indirect[0][0]))
    place_load: Load = indirect[0][0].value.attribute
    place = flat(place_load.buffer, place_load.index)
    if place[1] != value[1] or not all(index.is_affine for index in (rest, dense[1], value[1])):
        return None
    count = math.prod(axis.extent for axis in windows)
    allowed = ((value[1], {maps, images, *windows}), (rest, {images, *taps}), (dense[1], {maps, *taps}))
    if any(not index.axes <= wanted for index, wanted in allowed) or not _in_order(value[1], windows):
        return None
    outer, row = list(taps), 1
    while outer and (outer[-1].extent == 1 or rest.coefficient(outer[-1]) == dense[1].coefficient(outer[-1]) == row):
        row *= outer.pop().extent
    lanes = 32 // program.buffers[value[0]].dtype.itemsize
    if row < lanes:
        return None
    pixels, pitch = indirect[0][0].extent, indirect[0][1]
    return _Product(
        value, place, pixels, pitch, (image[0], rest), dense, maps, images, count, tuple(outer), row, gathers
    )


def _in_order(index: Index, axes: Sequence[Axis]) -> bool:
    """Whether `axes` run through neighbouring elements, in C order."""
    step = 1
    for axis in reversed(axes):
        if axis.extent != 1 and index.coefficient(axis) != step:
            return False
        step *= axis.extent
    return True


class _Emitter:
    def __init__(self, module: Module, loop: Loop, program: Program, found: _Product, vector_bits: int) -> None:
        self.loop, self.program, self.found = loop, program, found
        self.buffers = kernel_buffers(loop)
        self.element = element_of(program.buffers[found.value[0]].dtype)
        self.fn = kernel_function(module, loop)
        self.lanes = vector_bits // (8 * element_bytes(self.element))
        self.ops = VectorOps(self.fn, self.lanes, self.element, FAST_MATH)

    def emit(self) -> EmittedKernel:
        describe(self.fn, self.loop, self.program)
        found = self.found
        winners = found.maps.extent * found.windows
        grouped = not found.gathers and _LEAST_GROUP * found.pixels <= winners <= _MOST_SORTED
        self.slots = found.windows * (found.maps.extent if grouped else 1)
        sizes = [
            (self.slots + 1) * element_bytes(self.element),
            (self.slots + 1) * 8,
            found.pixels * 8 if grouped else 0,
        ]
        offsets = [sum(-(-size // 64) * 64 for size in sizes[:place]) for place in range(4)]
        self.values, self.places, self.ends = (self.fn.gep("%scratch", offset, "i8") for offset in offsets[:3])
        if found.gathers:
            self._gathered()
        else:
            self._scattered(grouped)
        products = found.images.extent * winners * found.row * math.prod(axis.extent for axis in found.taps)
        return EmittedKernel(
            self.loop.name, self.buffers, offsets[3], products >= _PARALLEL_PRODUCTS, 0, products / _PARALLEL_PRODUCTS
        )

    def _gathered(self) -> None:
        """Threads share the rows of the sums; each goes through all images."""
        fn, found = self.fn, self.found
        rows = math.prod(axis.extent for axis in found.taps)
        low, high = thread_range(fn, found.maps.extent * rows)

        def part(number: str, first: str, last: str) -> None:
            place = {found.images: image.index, found.maps: number}
            count = self._compacted(place)
            with fn.loop(first, last) as row:
                self._pieces({**place, **decode(fn, row.index, found.taps)}, count)

        with fn.loop(0, bound(fn, found.images)) as image:
            for_each_part(fn, low, high, rows, part)

    def _compacted(self, place: Mapping[Axis, str]) -> str:
        """Values and places of the winners of one image that are not zero, side by side in scratch; gives how many."""
        fn, found = self.fn, self.found
        with fn.loop(0, found.windows, carried=[("i64", "0")]) as window:
            (count,) = window.phis
            value, pixel, kept = self._winner(place, window.index)
            fn.store(self.element, value, fn.gep(self.values, count, self.element))
            fn.store("i64", fn.affine([(found.pitch, pixel)]), fn.gep(self.places, count, "i64"))
            window.next(fn.binary("add", "i64", count, fn.cast("zext", "i1", kept, "i64")))
        return window.results[0]

    def _winner(self, place: Mapping[Axis, str], window: str) -> tuple[str, str, str]:
        """A winner's value, its place, and whether it is not zero."""
        fn, found = self.fn, self.found
        element = memory_element(self.program.buffers[found.place[0]].dtype)
        value = fn.load(self.element, fn.gep(self._pointer(found.value, place), window, self.element))
        number = fn.load(element, fn.gep(self._pointer(found.place, place), window, element))
        wide = number if element == "i64" else fn.cast("sext", element, number, "i64")
        pixel = fn.max_i64(fn.min_i64(wide, str(found.pixels - 1)), "0")
        return value, pixel, fn.compare("une", self.element, value, "0.0")

    def _scattered(self, grouped: bool) -> None:
        """Threads share the images."""
        fn, found = self.fn, self.found
        low, high = thread_range(fn, bound(fn, found.images))
        with fn.loop(low, high) as image:
            place = {found.images: image.index}
            if grouped:
                self._sort(place)
                with fn.loop(0, math.prod(axis.extent for axis in found.taps)) as row:
                    self._pieces({**place, **decode(fn, row.index, found.taps)}, None)
                return
            with fn.loop(0, found.maps.extent) as map_:
                self._spread({**place, found.maps: map_.index})

    def _sort(self, place: Mapping[Axis, str]) -> None:
        """The winners of an image by place: values and offsets of weights in scratch; `ends`: where those of a place end."""
        fn, found = self.fn, self.found
        with fn.loop(0, found.pixels) as pixel:
            fn.store("i64", 0, fn.gep(self.ends, pixel.index, "i64"))
        with fn.loop(0, found.maps.extent) as map_, fn.loop(0, found.windows) as window:
            _, at, kept = self._winner({**place, found.maps: map_.index}, window.index)
            end = fn.gep(self.ends, at, "i64")
            fn.store("i64", fn.binary("add", "i64", fn.load("i64", end), fn.cast("zext", "i1", kept, "i64")), end)
        with fn.loop(0, found.pixels, carried=[("i64", "0")]) as pixel:
            end = fn.gep(self.ends, pixel.index, "i64")
            total = fn.binary("add", "i64", pixel.phis[0], fn.load("i64", end))
            fn.store("i64", pixel.phis[0], end)
            pixel.next(total)
        step = found.dense[1].coefficient(found.maps)
        with fn.loop(0, found.maps.extent) as map_, fn.loop(0, found.windows) as window:
            value, at, kept = self._winner({**place, found.maps: map_.index}, window.index)
            end = fn.gep(self.ends, at, "i64")
            number = fn.load("i64", end)
            slot = fn.select(kept, "i64", number, str(self.slots))  # the last one takes what is left out
            fn.store(self.element, value, fn.gep(self.values, slot, self.element))
            fn.store("i64", fn.affine([(step, map_.index)]), fn.gep(self.places, slot, "i64"))
            fn.store("i64", fn.binary("add", "i64", number, fn.cast("zext", "i1", kept, "i64")), end)

    def _pieces(self, place: Mapping[Axis, str], count: str | None) -> None:
        """The products of one image with a row, piece by piece. `count`: of the winners (None: they are sorted)."""
        vectors = -(-self.found.row // self.lanes)
        size = -(-vectors // -(-vectors // _PIECE))
        for first in range(0, vectors, size):
            lanes = [min(self.lanes, self.found.row - v * self.lanes) for v in range(first, min(first + size, vectors))]
            if count is None:
                self._add_groups(place, first * self.lanes, lanes)
            else:
                self._sum(place, first * self.lanes, lanes, count)

    def _add_groups(self, place: Mapping[Axis, str], first: int, lanes: list[int]) -> None:
        """Add what the winners of a place give, place after place."""
        fn, found = self.fn, self.found
        image, weights = self._pointer(found.image, place, first), self._pointer(found.dense, place, first)
        with fn.loop(0, found.pixels, carried=[("i64", "0")]) as pixel:
            (start,) = pixel.phis
            end = fn.load("i64", fn.gep(self.ends, pixel.index, "i64"))
            with fn.if_(fn.compare("slt", "i64", start, end)):
                sums = fn.gep(image, fn.affine([(found.pitch, pixel.index)]), self.element)
                self._add_products(sums, self._read(sums, lanes), weights, lanes, (start, end))
            pixel.next(end)

    def _add_products(
        self, sums: str, old: Sequence[str], source: str, lanes: Sequence[int], winners: tuple[str, str]
    ) -> None:
        """sums = old + values * rows, over some winners in scratch; their rows lie at their places from `source` on."""
        fn, ops = self.fn, self.ops
        with fn.loop(*winners, carried=[(ops.type, total) for total in old]) as one:
            factor = ops.load_scalar_broadcast(fn.gep(self.values, one.index, self.element))
            row = fn.gep(source, fn.load("i64", fn.gep(self.places, one.index, "i64")), self.element)
            one.next(*(ops.fma(factor, x, total) for x, total in zip(self._read(row, lanes), one.phis, strict=True)))
        for number, (total, count) in enumerate(zip(one.results, lanes, strict=True)):
            ops.store_first(total, fn.gep(sums, number * self.lanes, self.element), count)

    def _read(self, base: str, lanes: Sequence[int]) -> list[str]:
        """Vectors side by side."""
        places = (self.fn.gep(base, number * self.lanes, self.element) for number in range(len(lanes)))
        return [self.ops.load_first(at, count) for at, count in zip(places, lanes, strict=True)]

    def _pointer(self, part: tuple[str, Index], place: Mapping[Axis, str], offset: int = 0) -> str:
        buffer, index = part
        terms = [(factor, place[atom]) for atom, factor in index.terms if isinstance(atom, Axis) and atom in place]
        element = memory_element(self.program.buffers[buffer].dtype)
        base = self.fn.gep(f"%p{self.buffers.index(buffer)}", self.fn.affine(terms, index.constant), element)
        return self.fn.gep(base, offset, element)

    def _sum(self, place: Mapping[Axis, str], first: int, lanes: list[int], count: str) -> None:
        """Add the products of one image's winners to a row of the sums, which start from zero."""
        fn, ops, found = self.fn, self.ops, self.found
        image, sums = self._pointer(found.image, place, first), self._pointer(found.dense, place, first)
        fresh = fn.compare("eq", "i64", place[found.images], 0)
        old = [fn.select(fresh, ops.type, ops.constant(0), x) for x in self._read(sums, lanes)]
        self._add_products(sums, old, image, lanes, ("0", count))

    def _spread(self, place: Mapping[Axis, str]) -> None:
        fn, found = self.fn, self.found
        count = self._compacted(place)
        image, weights = self._pointer(found.image, place), self._pointer(found.dense, place)
        vectors = -(-self.found.row // self.lanes)
        with fn.loop(0, count) as window:
            factor = self.ops.load_scalar_broadcast(fn.gep(self.values, window.index, self.element))
            first = fn.gep(image, fn.load("i64", fn.gep(self.places, window.index, "i64")), self.element)
            with fn.loop(0, math.prod(axis.extent for axis in found.taps)) as row:
                taps = decode(fn, row.index, found.taps)
                at = self._moved(first, found.image[1], taps)
                weight = self._moved(weights, found.dense[1], taps)
                for v in range(0, vectors, _GROUP):
                    self._add(factor, at, weight, range(v, min(v + _GROUP, vectors)))

    def _moved(self, base: str, index: Index, place: Mapping[Axis, str]) -> str:
        terms = [(factor, place[atom]) for atom, factor in index.terms if isinstance(atom, Axis) and atom in place]
        return self.fn.gep(base, self.fn.affine(terms), self.element)

    def _add(self, factor: str, at: str, weight: str, vectors: range) -> None:
        ops, fn = self.ops, self.fn
        counts = [min(self.lanes, self.found.row - v * self.lanes) for v in vectors]
        places = [fn.gep(at, v * self.lanes, self.element) for v in vectors]
        old = [ops.load_first(p, c) for p, c in zip(places, counts, strict=True)]
        w = [
            ops.load_first(fn.gep(weight, v * self.lanes, self.element), c)
            for v, c in zip(vectors, counts, strict=True)
        ]
        new = [ops.fma(factor, x, y) for x, y in zip(w, old, strict=True)]
        for x, p, c in zip(new, places, counts, strict=True):
            ops.store_first(x, p, c)
