"""Gradients of convolutions below max-pooling: products with the winners alone.

The cotangent of what was pooled is zero but at one position of each window, the winner's. Written out it has as many elements
as windows have positions for each value; convolutions' gradients then multiply zeros. Here the values and their places are
kept instead, and both gradients run over those:

    weight gradient   dw[o, i, j, c] = sum over n, p, q of value[o, n, p, q] * x[n, place[o, n, p, q] + (i, j), c]
    input gradient    dx[n, place[o, n, p, q] + (i, j), c] += value[o, n, p, q] * w[o, i, j, c]

with the channels innermost, so that the row of a window (its taps j and channels c) is one piece of memory. That is a quarter
of the products for windows of 2 x 2. Products of a zero with an infinity or a NaN are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fusegraph.dtypes import int32
from fusegraph.ir.graph import Node
from fusegraph.ir.index import Axis, Div, Index, Indirect, Mod
from fusegraph.ir.loops import Buffer, Loop, Program, Reduce, Stage, Store
from fusegraph.ir.scalar import Bound, Expr, acc, const, index_value, load, make, op, walk

__all__ = ["with_winners"]

_GRADIENTS = ("conv_weight_grad", "conv_input_grad")
_FEWEST_IMAGES = 8  # threads share images in the input gradient

# Cycles for each winner and row of a window's elements, and for each vector of 8 floats of it, on Zen 3: with 5 x 5 taps of 32
# channels 16 and 33, of which a quarter is saved where relu leaves a quarter of the winners zero. All products take half a
# cycle for a vector and a position that can win, the input's gradient a little more.
_WEIGHT_ROW, _WEIGHT_VECTOR = 4.0, 0.6
_INPUT_ROW, _INPUT_VECTOR = 3.0, 1.5
_LANES = 8


@dataclass(frozen=True)
class _Winners:
    """A cotangent of pooled values: `value` at the element of each window that `chosen` says, zero elsewhere.

    axes     of the windows: image, channel, row, column
    window   rows and columns of a window
    chosen   for each element of a window, in C order, whether it is the winner
    """

    buffer: str
    axes: tuple[Axis, ...]
    window: tuple[int, int]
    chosen: tuple[Expr, ...]
    value: Expr


def with_winners(program: Program) -> tuple[Program, dict[str, str]]:
    """`program` with gradients of convolutions that run over winners alone; for each new loop the one that it came from."""
    origin: dict[str, str] = {}
    for loop in program.loops:
        found = _winners(loop)
        if found is None or program.buffers[found.buffer].role != "temp":
            continue
        gradients = [g for other in program.loops if (g := _gradient(other, found, program)) and g.pays(found)]
        if gradients:
            program = _Rewriting(program, loop, found, origin).program(gradients)
    return program, origin


# -- finding -----------------------------------------------------------------------------------------------------------


def _winners(loop: Loop) -> _Winners | None:
    """What a loop that does nothing else writes as winners of windows."""
    if loop.schedule != "nest" or len(loop.stages) != 1 or len(loop.stages[0].stores) != 1 or loop.stages[0].reduces:
        return None
    (store,) = loop.stages[0].stores
    places = [index.axis for index in store.index]
    if len(places) != 4 or None in places or len(set(places)) < 4 or store.value.dtype.kind != "f":
        return None
    n, o, y, x = (axis for axis in places if axis is not None)
    height, width = _divisor(store.value, y), _divisor(store.value, x)
    if height * width < 2 or y.extent % height or x.extent % width:
        return None
    p, q = Axis(f"{y.name}_p", y.extent // height), Axis(f"{x.name}_q", x.extent // width)
    chosen: list[Expr] = []
    values: set[Expr] = set()
    for row in range(height):
        for column in range(width):
            at = {y: Index.of(p) * height + row, x: Index.of(q) * width + column}
            value = store.value.substitute(at)
            if not _is_winner(value, len(chosen)):
                return None
            chosen.append(value.args[0])
            values.add(value.args[1])
    return (
        _Winners(store.buffer, (n, o, p, q), (height, width), tuple(chosen), values.pop()) if len(values) == 1 else None
    )


def _divisor(value: Expr, axis: Axis) -> int:
    """What the indices divide an axis by: the size of the windows along it."""
    found = {
        atom.divisor
        for node in walk([value]) for index in node.indices() for atom, _ in index.terms
        if isinstance(atom, (Div, Mod)) and atom.index.axis is axis
    }  # fmt: skip
    return found.pop() if len(found) == 1 else 0


def _is_winner(value: Expr, number: int) -> bool:
    """where(number == position of the winner, ..., 0)"""
    if value.op != "where" or value.args[2].op != "const" or value.args[2].attribute != 0 or value.args[0].op != "eq":
        return False
    kinds = {arg.op: arg for arg in value.args[0].args}
    return kinds.keys() == {"index", "load"} and kinds["index"].attribute == Index(number)


@dataclass(frozen=True)
class _Gradient:
    """A gradient of a convolution that reads winners. `other`: the load of the other operand, `taps`: its loop's axes.

    node      the operation
    channels, kernel, image   extents of the operation's input channels, taps, and input
    """

    loop: Loop
    node: Node
    other: str
    channels: int
    kernel: tuple[int, ...]
    image: tuple[int, ...]

    @property
    def padded(self) -> tuple[int, ...]:
        """Rows and columns of the image with its padding."""
        return tuple(size + sum(pair) for size, pair in zip(self.image, self.node.params["padding"], strict=True))

    @property
    def is_weight(self) -> bool:
        """Whether it is the weight's; else the input's."""
        return self.node.op == "conv_weight_grad"

    def pays(self, found: _Winners) -> bool:
        """Whether products with winners alone take less time than all of them."""
        joined = self.node.params["dilation"][1] == 1
        row = self.channels * (self.kernel[1] if joined else 1)
        vectors = -(-row // _LANES)
        if self.is_weight:
            return row >= _LANES and _WEIGHT_ROW + _WEIGHT_VECTOR * vectors < row / _LANES / 2 * len(found.chosen)
        # vectors that are stored at one offset and loaded at another wait for each other: not where windows overlap
        apart = self.channels % _LANES == 0 or self.kernel[1] <= found.window[1]
        if row < _LANES or not apart or found.axes[0].extent < _FEWEST_IMAGES:
            return False
        return _INPUT_ROW + _INPUT_VECTOR * vectors < row / _LANES / 2 * len(found.chosen)


def _gradient(loop: Loop, found: _Winners, program: Program) -> _Gradient | None:
    """The gradient that a loop computes from winners, where it can run over them; None for any other reader."""
    nodes = [node for node in loop.nodes if node.op in _GRADIENTS]
    if loop.schedule != "contract" or len(nodes) != 1 or len(loop.space) != 4 or len(loop.stages[0].reduces) != 1:
        return None
    (node,), product = nodes, loop.stages[0].reduces[0].value
    loads = [arg.attribute for arg in product.args if arg.op == "load"]
    if product.op != "mul" or sorted(part.buffer == found.buffer for part in loads) != [False, True]:
        return None
    mine, other = sorted(loads, key=lambda part: part.buffer != found.buffer)
    is_weight = node.op == "conv_weight_grad"
    source = node.inputs[0 if is_weight else 1]
    plain = (other.index, mine.index) == (_image if is_weight else _cotangent)(loop, node)
    if not plain or node.params["groups"] != 1 or program.buffers[other.buffer].shape != source.shape:
        return None
    later = [x for stage in loop.stages[1:] for x in walk(stage.expressions()) if x.op == "load"]
    if any(x.attribute.buffer == found.buffer for x in later):
        return None
    image, weight = (source, node) if is_weight else (node, source)
    return _Gradient(loop, node, other.buffer, weight.shape[1], weight.shape[2:], image.shape[2:])


def _image(loop: Loop, node: Node) -> tuple[tuple[Index, ...], tuple[Index, ...]]:
    """Where the weight gradient reads the convolution's input, and its cotangent."""
    (maps, c, *taps), (n, *places) = loop.space, loop.stages[0].reduce_axes
    stride, dilation, padding = (node.params[key] for key in ("stride", "dilation", "padding"))
    reach = (Index.of(places[d]) * stride[d] + Index.of(taps[d]) * dilation[d] - padding[d][0] for d in range(2))
    return (Index.of(n), Index.of(c), *reach), tuple(map(Index.of, (n, maps, *places)))


def _cotangent(loop: Loop, node: Node) -> tuple[tuple[Index, ...], tuple[Index, ...]]:
    """Where the input gradient reads the weights, and its cotangent."""
    (n, c, *places), (maps, *taps) = loop.space, loop.stages[0].reduce_axes
    stride, dilation, padding = (node.params[key] for key in ("stride", "dilation", "padding"))
    reach = ((Index.of(places[d]) + padding[d][0] - Index.of(taps[d]) * dilation[d]) // stride[d] for d in range(2))
    return tuple(map(Index.of, (maps, c, *taps))), (Index.of(n), Index.of(maps), *reach)


# -- rewriting -----------------------------------------------------------------------------------------------------------


class _Rewriting:
    """Replaces the loop that writes winners out, and the gradients that read them."""

    def __init__(self, program: Program, writer: Loop, found: _Winners, origin: dict[str, str]) -> None:
        self._program, self._writer, self._found, self._origin = program, writer, found, origin
        self._buffers = dict(program.buffers)
        self._dtype = program.buffers[found.buffer].dtype
        self._places: dict[tuple[object, ...], str] = {}

    def program(self, gradients: Sequence[_Gradient]) -> Program:
        """The new program."""
        of = {gradient.loop.name: gradient for gradient in gradients}
        others = [loop for loop in self._program.loops if loop.name not in of and self._found.buffer in loop.reads()]
        if not others:
            del self._buffers[self._found.buffer]
        values = self._values(gradients)
        parts = {name: self._parts(gradient) for name, gradient in of.items()}
        early = [name for name, gradient in of.items() if self._is_known(gradient)]
        loops: list[Loop] = []
        for loop in self._program.loops:
            if loop is self._writer:  # copies beside the list of winners: no barrier between them
                made = [(values, loop), *([(loop, loop)] if others else [])]
                made += [(new, of[name].loop) for name in early for new in parts[name][0]]
            elif loop.name in of:
                first, rest = parts[loop.name]
                made = [(new, loop) for new in (rest if loop.name in early else (*first, *rest))]
            else:
                made = [(loop, loop)]
            for new, source in made:
                if new is not source:
                    self._origin[new.name] = self._origin.get(source.name, source.name)
                loops.append(replace(new, nodes=source.nodes))
        return replace(self._program, buffers=self._buffers, loops=tuple(loops))

    def _is_known(self, gradient: _Gradient) -> bool:
        """Whether what a gradient copies has been written when the winners are found."""
        names = [loop.name for loop in self._program.loops]
        start, end = names.index(self._writer.name), names.index(gradient.loop.name)
        return not any(gradient.other in loop.writes() for loop in self._program.loops[start:end])

    def _parts(self, gradient: _Gradient) -> tuple[list[Loop], list[Loop]]:
        """The loops that copy what a gradient reads, and those of the gradient."""
        return self._weight_gradient(gradient) if gradient.is_weight else self._input_gradient(gradient)

    def _buffer(self, name: str, shape: Sequence[int], like: str | None = None) -> str:
        dtype = int32 if like == "place" else self._dtype
        self._buffers[name] = Buffer(name, tuple(shape), dtype, "temp")
        return name

    def _values(self, gradients: Sequence[_Gradient]) -> Loop:
        """Stores the value of each winner, and where it is: a pixel's number in the padded image."""
        found = self._found
        n, o, p, q = found.axes
        shape = [axis.extent for axis in (o, n, p, q)]
        index = tuple(map(Index.of, (o, n, p, q)))
        stores = [Store(self._buffer(f"{found.buffer}_values", shape), index, found.value)]
        for gradient in gradients:
            key = (gradient.node.params["stride"], gradient.padded[1])
            if key not in self._places:
                self._places[key] = name = self._buffer(f"{found.buffer}_places{len(self._places)}", shape, "place")
                stores.append(Store(name, index, self._place(gradient)))
        return Loop(f"{self._writer.name}_winners", (o, n, p, q), (Stage(stores=tuple(stores)),))

    def _place(self, gradient: _Gradient) -> Expr:
        """The number of the first pixel that a winner's window of the convolution touches."""
        (_, _, p, q), (height, width) = self._found.axes, self._found.window
        down, right = gradient.node.params["stride"]
        down *= gradient.padded[1]
        first = Index.of(p) * (height * down) + Index.of(q) * (width * right)
        inside = [row * down + column * right for row in range(height) for column in range(width)]
        offset = const(inside[0], int32)
        for chosen, number in zip(self._found.chosen[1:], inside[1:], strict=True):
            offset = op("where", chosen, const(number, int32), offset)
        return op("add", op("cast", index_value(first), dtype=int32), offset)

    def _taps(self, gradient: _Gradient, name: str) -> tuple[tuple[Axis, ...], Index]:
        """The axes of a window of the convolution, its channels innermost, and the offset of its elements in the image."""
        extents = (*gradient.kernel, gradient.channels)
        axes = tuple(Axis(f"{_short(name)}_{letter}", n) for letter, n in zip("ijc", extents, strict=True))
        (down, right), columns = gradient.node.params["dilation"], gradient.padded[1]
        i, j, c = axes
        return axes, (Index.of(i) * (down * columns) + Index.of(j) * right) * gradient.channels + c

    def _winner(self, gradient: _Gradient, name: str) -> tuple[tuple[Axis, ...], Expr, Index]:
        """New axes of the windows, a winner's value, and the number of its first element in the image."""
        o, n, p, q = (
            Axis(f"{_short(name)}_{letter}", self._found.axes[k].extent)
            for letter, k in zip("onpq", (1, 0, 2, 3), strict=True)
        )
        index = tuple(map(Index.of, (o, n, p, q)))
        key = (gradient.node.params["stride"], gradient.padded[1])
        place = load(self._places[key], index, int32)
        (down, right), (rows, columns) = gradient.node.params["dilation"], gradient.padded
        i, j = gradient.kernel
        extent = rows * columns - (i - 1) * down * columns - (j - 1) * right
        value = load(f"{self._found.buffer}_values", index, self._dtype)
        return (o, n, p, q), value, Index(0, ((Indirect(place, extent), gradient.channels),))

    def _weight_gradient(self, gradient: _Gradient) -> tuple[list[Loop], list[Loop]]:
        name, channels = gradient.loop.name, gradient.channels
        image = self._image_copy(gradient)
        (copy,) = image.writes()
        (o, n, p, q), value, place = self._winner(gradient, name)
        taps, offset = self._taps(gradient, name)
        rows, columns = gradient.padded
        at = place + Index.of(n) * (rows * columns * channels) + offset
        sums = self._buffer(f"{_short(name)}_sums", (o.extent, *(axis.extent for axis in taps)))
        total = acc(f"acc_{sums}", self._dtype)
        reduce = Reduce(f"acc_{sums}", "sum", op("mul", value, load(copy, (at,), self._dtype)), self._dtype)
        index = tuple(map(Index.of, (o, *taps)))
        stages = (Stage(reduce_axes=(n, p, q), reduces=(reduce,)), Stage(stores=(Store(sums, index, total),)))
        products = Loop(f"{name}_winners", (o, *taps), stages)
        maps, c, i, j = gradient.loop.space
        total = load(sums, tuple(map(Index.of, (maps, i, j, c))), self._dtype)
        return [image], [products, self._finish(gradient, total)]

    def _image_copy(self, gradient: _Gradient) -> Loop:
        """The image with its channels innermost and its padding around it."""
        name, (rows, columns), padding = gradient.loop.name, gradient.padded, gradient.node.params["padding"]
        extents = (self._found.axes[0].extent, rows, columns, gradient.channels)
        axes = tuple(Axis(f"{_short(name)}_{letter}", extent) for letter, extent in zip("nyxc", extents, strict=True))
        n, y, x, c = map(Index.of, axes)
        y_in, x_in = y - padding[0][0], x - padding[1][0]
        mask = tuple(
            Bound(index, 0, extent)
            for index, extent, pair in zip((y_in, x_in), gradient.image, padding, strict=True)
            if any(pair)
        )
        copy = self._buffer(f"{_short(name)}_image", (extents[0] * rows * columns * gradient.channels,))
        at = ((n * rows + y) * columns + x) * gradient.channels + c
        value = load(gradient.other, (n, c, y_in, x_in), self._dtype, mask)
        return Loop(f"{name}_image", axes, (Stage(stores=(Store(copy, (at,), value),)),))

    def _input_gradient(self, gradient: _Gradient) -> tuple[list[Loop], list[Loop]]:
        name, channels = gradient.loop.name, gradient.channels
        (o, n, p, q), value, place = self._winner(gradient, name)
        taps, offset = self._taps(gradient, name)
        weights = self._buffer(f"{_short(name)}_weights", (o.extent, *(axis.extent for axis in taps)))
        turned = tuple(map(Index.of, (o, *taps)))
        source = load(gradient.other, (turned[0], turned[3], turned[1], turned[2]), self._dtype)
        copy = Loop(f"{name}_weights", (o, *taps), (Stage(stores=(Store(weights, turned, source),)),))
        rows, columns = gradient.padded
        size = rows * columns * channels
        image = self._buffer(f"{_short(name)}_image", (n.extent, size))
        every = Axis(f"{_short(name)}_z", size)
        zero = Store(image, (Index.of(n), Index.of(every)), const(0, self._dtype))
        clear = Loop(f"{name}_zero", (n, every), (Stage(stores=(zero,)),))
        product = op("mul", value, load(weights, turned, self._dtype))
        store = Store(image, (Index.of(n), place + offset), product, "add")
        products = Loop(f"{name}_winners", (), (Stage(axes=(n, o, p, q, *taps), stores=(store,)),), "scatter")
        m, c, y, x = map(Index.of, gradient.loop.space)
        padding = gradient.node.params["padding"]
        at = ((y + padding[0][0]) * columns + x + padding[1][0]) * channels + c
        return [copy, clear], [products, self._finish(gradient, load(image, (m, at), self._dtype))]

    def _finish(self, gradient: _Gradient, total: Expr) -> Loop:
        """What follows the sum."""
        loop = gradient.loop
        (reduce,) = loop.stages[0].reduces

        def replaced(value: Expr) -> Expr:
            return _with_acc(value, reduce.name, total)

        stages = tuple(
            replace(stage, stores=tuple(replace(store, value=replaced(store.value)) for store in stage.stores))
            for stage in loop.stages[1:]
        )
        first, channel, *rest = loop.space  # in the order of what is read: its lines are used up before the next
        space = loop.space if gradient.is_weight else (first, *rest, channel)
        return Loop(loop.name, space, stages)


def _short(name: str) -> str:
    """A kernel's number: what is enough for the names of axes."""
    return name.partition("_")[0]


def _with_acc(value: Expr, name: str, total: Expr) -> Expr:
    """`value` with `total` in the place of an accumulator."""
    new: dict[Expr, Expr] = {}
    for node in walk([value]):
        if node.op == "acc" and node.attribute == name:
            new[node] = total
        else:
            new[node] = make(node.op, tuple(new[arg] for arg in node.args), node.dtype, node.attribute)
    return new[value]
