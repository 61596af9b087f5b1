"""Random op graphs over all kinds of primitives, with tame inputs, for tests that two ways to compute a graph agree.

    graph, arrays = random_graph(seed=7, steps=20)

The same seed gives the same graph. Values are computed along the way: a node whose values are not finite or large, or
that would jump if an operand changed by rounding (a comparison of nearly equal numbers, say), is not taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fusegraph.dtypes import DType, as_dtype
from fusegraph.errors import FusegraphError
from fusegraph.ir.graph import Graph, GraphBuilder, Node
from fusegraph.ir.interpret import apply
from fusegraph.ir.primitives import PRIMITIVES

LARGEST = 1e3  # absolute values above this are not kept: differences are to stay near rounding
MARGIN = 1e-5  # operands of a jump (comparison, floor, argmax) are at least this far from it
MOST_ELEMENTS = 4000
EXTENTS = (1, 2, 3, 4, 5, 7)

Maker = Callable[["RandomGraph"], "Node | None"]
MAKERS: list[Maker] = []


def maker(weight: int) -> Callable[[Maker], Maker]:
    """Register a function that adds one random node (or gives None); it is chosen in proportion to `weight`."""

    def register(function: Maker) -> Maker:
        MAKERS.extend([function] * weight)
        return function

    return register


class RandomGraph:
    """A graph under construction: its builder, and the value of each node."""

    def __init__(self, seed: int, dtype: DType, zero_extents: bool, special: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.build = GraphBuilder()
        self.values: dict[Node, np.ndarray] = {}
        self.dtype = dtype
        self.zero_extents = zero_extents
        self.special = special

    # -- choices ------------------------------------------------------------------------------------------------------

    def choice(self, items: Any) -> Any:
        """One of `items`."""
        items = list(items)
        return items[int(self.rng.integers(len(items)))]

    def chance(self, probability: float) -> bool:
        """True with `probability`."""
        return bool(self.rng.random() < probability)

    def shape(self, most_axes: int = 4) -> tuple[int, ...]:
        """A random shape, now and then with an axis of size 0."""
        shape = [int(self.choice(EXTENTS)) for _ in range(int(self.rng.integers(0, most_axes + 1)))]
        if shape and self.zero_extents and self.chance(0.03):
            shape[int(self.rng.integers(len(shape)))] = 0
        return tuple(shape)

    def axis(self, node: Node) -> int:
        """One of the axes of `node`."""
        return int(self.rng.integers(node.ndim))

    def node(
        self, kinds: str = "f", least_axes: int = 0, condition: Callable[[Node], bool] = lambda node: True
    ) -> Node | None:
        """A node of a dtype among `kinds`; late ones are likelier, so that graphs become deep."""
        fitting = [n for n in self.values if n.dtype.kind in kinds and n.ndim >= least_axes and condition(n)]
        if kinds == "f":
            fitting = [n for n in fitting if n.dtype == self.dtype]
        if not fitting:
            return None
        return fitting[max(0, len(fitting) - 1 - int(self.rng.exponential(5)))]

    # -- nodes --------------------------------------------------------------------------------------------------------

    def input(self, shape: tuple[int, ...], dtype: DType, low: int = 0, high: int = 4) -> Node:
        """A new input, filled with tame numbers (integers of [low, high))."""
        node = self.build.input(f"x{len(self.build.inputs)}", shape, dtype)
        if dtype.kind == "f":
            value = self.rng.uniform(-2, 2, shape)
            if self.special:
                special = self.rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0], shape)
                value = np.where(self.rng.random(shape) < 0.15, special, value)
        else:
            value = self.rng.integers(low, high, shape)
        self.values[node] = np.asarray(value).astype(dtype)
        return node

    def zeros(self, shape: tuple[int, ...], dtype: DType) -> Node:
        """Zeros."""
        node = self.add("constant", (), value=0.0, dtype=dtype.name)
        assert node is not None
        return self.expand(node, shape)

    def constant(self, shape: tuple[int, ...], dtype: DType) -> Node:
        """A constant; often one that rules look for."""
        floats = (0, 1, -1, 2, 0.5, -0.25, 3, self.rng.uniform(-2, 2))
        value = self.choice(floats if dtype.kind == "f" else (0, 1, 2, 3))
        node = self.add("constant", (), value=dtype.type(value).item(), dtype=dtype.name)
        assert node is not None
        return self.expand(node, shape)

    def add(self, op: str, inputs: tuple[Node, ...], **params: Any) -> Node | None:
        """The node op(inputs, **params), if it obeys its rule and its values are tame."""
        try:
            shape, dtype = PRIMITIVES[op].infer(inputs, params)
        except (FusegraphError, ValueError, IndexError):
            return None
        if int(np.prod(shape, dtype=np.int64)) > MOST_ELEMENTS:
            return None
        operands = [self.values[x] for x in inputs]
        if not self.special and _jumps(op, operands, params):
            return None
        value = apply(op, operands, params)
        assert value.shape == tuple(shape), (op, value.shape, shape)
        assert value.dtype == dtype, (op, value.dtype, dtype)
        if not self.special and not _is_tame(value):
            return None
        node = self.build.add(op, inputs, params)
        self.values.setdefault(node, value)
        return node

    def expand(self, x: Node, shape: tuple[int, ...]) -> Node:
        """`x` repeated to `shape`."""
        if x.shape == shape:
            return x
        node = self.add("expand", (x,), shape=shape)
        assert node is not None
        return node

    def like(self, x: Node) -> Node:
        """Another operand of `x`'s shape and dtype: a node, a smaller one repeated, a constant, or an input."""
        kind = self.rng.random()
        if kind < 0.2:
            return self.constant(x.shape, x.dtype)
        if kind < 0.85:
            fitting = [n for n in self.values if n.dtype == x.dtype and _broadcasts(n.shape, x.shape)]
            if fitting:
                return self.expand(self.choice(fitting), x.shape)
        small = tuple(1 if self.chance(0.3) else n for n in x.shape)
        return self.expand(self.input(small[int(self.rng.integers(0, x.ndim + 1)) :], x.dtype), x.shape)

    def index(self, shape: tuple[int, ...], extent: int) -> Node:
        """Integers of [0, extent): an input, perhaps checked, now and then one that has to be clamped."""
        wild = self.chance(0.1)
        dtype = as_dtype(self.choice(("int32", "int64")))
        node = self.input(shape, dtype, -2 if wild else 0, extent + 2 if wild else extent)
        if wild or self.chance(0.5):
            return node
        return self.add("check_index", (node,), low=0, high=extent, allow=None, what="index") or node


def _broadcasts(small: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    lead = len(shape) - len(small)
    return lead >= 0 and all(n in (1, shape[lead + i]) for i, n in enumerate(small))


def _is_tame(value: np.ndarray) -> bool:
    if value.dtype.kind == "f":
        return bool(np.isfinite(value).all() and (np.abs(value) < LARGEST).all())
    return value.dtype.kind != "i" or bool((np.abs(value.astype(np.float64)) < 2**30).all())


def _near(distance: np.ndarray) -> bool:
    """Whether a distance is small without being 0 (a 0 comes from equal values, which stay equal)."""
    return bool(((distance < MARGIN) & (distance > 0)).any())


def _jumps(op: str, operands: list[np.ndarray], params: Any) -> bool:
    """Whether rounding in the operands could change the result by much."""
    x = operands[0] if operands else None
    if x is None or x.dtype.kind != "f":
        return False
    if op in ("eq", "ne", "lt", "le", "gt", "ge"):
        return bool((np.abs(x - operands[1]) < MARGIN).any())
    if op in ("floor", "ceil") or (op == "cast" and params["dtype"] not in ("float32", "float64", "bool")):
        return bool((np.abs(x - np.round(x)) < MARGIN).any())
    if op == "round":
        return bool((np.abs(np.abs(x - np.floor(x)) - 0.5) < MARGIN).any())
    if op in ("sign", "abs", "relu"):
        return op == "sign" and bool((np.abs(x) < MARGIN).any())
    if op in ("argmax", "argmin"):
        if x.size == 0:
            return False
        kept = [axis for axis in range(x.ndim) if axis not in params["axes"]]
        rows = np.transpose(x, (*kept, *params["axes"])).reshape(*(x.shape[axis] for axis in kept), -1)
        return bool((np.diff(np.sort(rows, -1), axis=-1) < MARGIN).any())
    if op == "cast" and params["dtype"] == "bool":
        return bool((np.abs(x) < MARGIN).any())
    return _steep(op, operands)


def _steep(op: str, operands: list[np.ndarray]) -> bool:
    """Whether a function has a pole, or no derivative, near an operand."""
    x = operands[0]
    if op in ("log", "rsqrt", "sqrt"):
        return bool((x < 0.05).any())
    if op == "log1p":
        return bool((x < -0.9).any())
    if op == "div":
        return bool((np.abs(operands[1]) < 0.05).any())
    if op == "pow":
        return bool((x < 0.05).any() or (np.abs(operands[1]) > 4).any())
    return False


# -- one node of each kind --------------------------------------------------------------------------------------------

_FLOAT_MAPS = (
    "neg",
    "abs",
    "sign",
    "floor",
    "ceil",
    "round",
    "exp",
    "expm1",
    "log",
    "log1p",
    "sqrt",
    "rsqrt",
    "tanh",
    "sigmoid",
    "erf",
    "sin",
    "cos",
    "relu",
)
_FLOAT_ZIPS = ("add", "add", "sub", "sub", "mul", "mul", "mul", "div", "div", "pow", "maximum", "minimum")
_INT_ZIPS = ("add", "sub", "mul", "maximum", "minimum", "bit_and", "bit_or", "bit_xor")
_COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")


@maker(5)
def _map(g: RandomGraph) -> Node | None:
    x = g.node()
    return g.add(g.choice((*_FLOAT_MAPS, "neg", "neg", "exp")), (x,)) if x else None


@maker(10)
def _zip(g: RandomGraph) -> Node | None:
    x = g.node()
    if x is None:
        return None
    pair = (x, g.like(x))
    return g.add(g.choice(_FLOAT_ZIPS), pair if g.chance(0.5) else pair[::-1])


@maker(2)
def _int_zip(g: RandomGraph) -> Node | None:
    x = g.node("iu")
    return g.add(g.choice(_INT_ZIPS), (x, g.like(x))) if x else None


@maker(1)
def _int_division(g: RandomGraph) -> Node | None:
    x = g.node("iu")
    if x is None:
        return None
    by = g.add("constant", (), value=int(g.choice((1, 2, 3))), dtype=x.dtype.name)
    return g.add(g.choice(("floordiv", "mod", "shift_left", "shift_right")), (x, g.expand(by, x.shape))) if by else None


@maker(2)
def _compare(g: RandomGraph) -> Node | None:
    x = g.node("fiu")
    return g.add(g.choice(_COMPARE), (x, g.like(x))) if x else None


@maker(2)
def _logic(g: RandomGraph) -> Node | None:
    x = g.node("b")
    if x is None:
        return None
    if g.chance(0.3):
        y = g.node()
        return g.add("isnan", (y,)) if y and g.chance(0.3) else g.add("logical_not", (x,))
    return g.add(g.choice(("bit_and", "bit_or", "bit_xor")), (x, g.like(x)))


@maker(3)
def _where(g: RandomGraph) -> Node | None:
    condition = g.node("b")
    if condition is None:
        return None
    a = g.node(condition=lambda n: n.shape == condition.shape) or g.constant(condition.shape, g.dtype)
    b = g.like(a)
    return g.add("where", (condition, a, b) if g.chance(0.5) else (condition, b, a))


@maker(2)
def _cast(g: RandomGraph) -> Node | None:
    x = g.node("biuf")
    if x is None:
        return None
    targets = ("int32", "int64", g.dtype.name)
    there = g.add("cast", (x,), dtype=g.choice(targets if x.dtype.kind == "f" else (*targets, "bool", "float32")))
    if there is None or there.dtype.kind == "f" or g.chance(0.5):
        return there
    return g.add("cast", (there,), dtype=g.dtype.name)


@maker(3)
def _reshape(g: RandomGraph) -> Node | None:
    x = g.node("fib")
    if x is None:
        return None
    shape = list(x.shape)
    kind = g.rng.random()
    if kind < 0.4:
        shape.insert(int(g.rng.integers(len(shape) + 1)), 1)
    elif kind < 0.6:
        shape = [n for n in shape if n != 1]
    elif kind < 0.8 and len(shape) >= 2:
        at = int(g.rng.integers(len(shape) - 1))
        shape[at : at + 2] = [shape[at] * shape[at + 1]]
    else:
        shape = [int(np.prod(shape, dtype=np.int64))]
    return g.add("reshape", (x,), shape=tuple(shape)) if len(shape) <= 5 else None


@maker(3)
def _permute(g: RandomGraph) -> Node | None:
    x = g.node("fib", 2)
    return g.add("permute", (x,), axes=tuple(int(i) for i in g.rng.permutation(x.ndim))) if x else None


@maker(4)
def _expand(g: RandomGraph) -> Node | None:
    x = g.node("fib")
    if x is None or x.ndim > 3:
        return None
    shape = tuple(int(g.choice(EXTENTS)) if n == 1 else n for n in x.shape)
    return g.add("expand", (x,), shape=shape if g.chance(0.5) else (int(g.choice(EXTENTS)), *shape))


@maker(3)
def _slice(g: RandomGraph) -> Node | None:
    x = g.node("fib", 1)
    if x is None:
        return None
    start, size, step = [], [], []
    for extent in x.shape:
        by = int(g.choice((1, 1, 1, 2, -1, -2)))
        count = int(g.rng.integers(1, extent + 1)) if extent else 0
        count = min(count, (extent - 1) // abs(by) + 1) if extent else 0
        room = extent - 1 - (count - 1) * abs(by) if count else 0
        low = int(g.rng.integers(0, room + 1)) if room >= 0 else 0
        start.append(low if by > 0 else low + (count - 1) * -by)
        size.append(count)
        step.append(by)
    return g.add("slice", (x,), start=tuple(max(s, 0) for s in start), size=tuple(size), step=tuple(step))


@maker(2)
def _pad(g: RandomGraph) -> Node | None:
    x = g.node("f", 1)
    if x is None:
        return None
    low, high = (tuple(int(n) for n in g.rng.integers(0, 3, x.ndim)) for _ in range(2))
    return g.add("pad", (x,), low=low, high=high, value=float(g.choice((0.0, 0.0, 1.5))))


@maker(2)
def _concat(g: RandomGraph) -> Node | None:
    x = g.node("fi", 1)
    if x is None:
        return None
    axis = g.axis(x)
    fitting = [
        n
        for n in g.values
        if n.dtype == x.dtype
        and n.ndim == x.ndim
        and all(a == b for i, (a, b) in enumerate(zip(n.shape, x.shape, strict=True)) if i != axis)
    ]
    return g.add("concat", tuple(g.choice(fitting) for _ in range(int(g.rng.integers(1, 4)))), axis=axis)


@maker(1)
def _split(g: RandomGraph) -> Node | None:
    """Two neighbouring slices, put together again or used apart."""
    x = g.node("f", 1, lambda n: max(n.shape) >= 2)
    if x is None:
        return None
    axis = int(np.argmax(x.shape))
    at = int(g.rng.integers(1, x.shape[axis]))
    parts = []
    for first, last in ((0, at), (at, x.shape[axis])):
        start = tuple(first if i == axis else 0 for i in range(x.ndim))
        size = tuple(last - first if i == axis else n for i, n in enumerate(x.shape))
        parts.append(g.add("slice", (x,), start=start, size=size, step=(1,) * x.ndim))
    low, high = parts
    if low is None or high is None or g.chance(0.5):
        return low
    return g.add("concat", (low, high), axis=axis)


@maker(2)
def _window(g: RandomGraph) -> Node | None:
    x = g.node("f", 1)
    if x is None or x.ndim > 4:
        return None
    return g.add(
        "window",
        (x,),
        axis=g.axis(x),
        size=int(g.choice((1, 2, 3))),
        stride=int(g.choice((1, 2, 3))),
        dilation=int(g.choice((1, 1, 2))),
    )


@maker(2)
def _fold(g: RandomGraph) -> Node | None:
    x = g.node("f", 2)
    if x is None:
        return None
    axis = int(g.rng.integers(x.ndim - 1))
    stride, dilation = int(g.choice((1, 2, 3))), int(g.choice((1, 1, 2)))
    extent = (x.shape[axis] - 1) * stride + dilation * (x.shape[-1] - 1) + 1 + int(g.choice((0, 0, 1)))
    if 0 in x.shape or extent < 1:
        return None
    return g.add("fold", (x,), axis=axis, extent=extent, stride=stride, dilation=dilation)


@maker(7)
def _reduce(g: RandomGraph) -> Node | None:
    op = g.choice(("sum", "sum", "sum", "sum", "max", "min", "prod", "argmax", "argmin"))
    x = g.node("f" if op != "sum" else "fi", 1)
    if x is None:
        return None
    axes = tuple(axis for axis in range(x.ndim) if g.chance(0.5)) or (g.axis(x),)
    out = g.add(op, (x,), axes=axes)
    if out is None or g.chance(0.4):
        return out
    kept = g.add("reshape", (out,), shape=tuple(1 if axis in axes else n for axis, n in enumerate(x.shape)))
    return g.expand(kept, x.shape) if kept is not None and g.chance(0.6) else kept


@maker(3)
def _matmul(g: RandomGraph) -> Node | None:
    a = g.node("f", 2)
    if a is None:
        return None
    columns = int(g.choice(EXTENTS))
    rows = (*a.shape[:-2], a.shape[-1])
    fitting = [n for n in g.values if n.dtype == a.dtype and n.ndim == a.ndim and n.shape[:-1] == rows]
    b = g.choice(fitting) if fitting and g.chance(0.7) else g.input((*rows, columns), a.dtype)
    out = g.add("matmul", (a, b))
    if out is None or g.chance(0.7):
        return out
    return g.add("permute", (out,), axes=(*range(a.ndim - 2), a.ndim - 1, a.ndim - 2))


@maker(2)
def _conv(g: RandomGraph) -> Node | None:
    x = g.node("f", 4, lambda n: n.ndim == 4 and n.size > 0)
    if x is None:
        return None
    channels = x.shape[1]
    groups = channels if g.chance(0.2) else 1
    options = {
        "stride": (1, int(g.choice((1, 2)))),
        "padding": ((1, 1), (int(g.choice((0, 1))), 1)),
        "dilation": (int(g.choice((1, 2))), 1),
        "groups": groups,
    }
    kernel = (int(g.choice((1, 2))), int(g.choice((1, 3))))
    w = g.input((groups * int(g.choice((1, 2))), channels // groups, *kernel), x.dtype)
    out = g.add("conv", (x, w), **options)
    if out is None or g.chance(0.5):
        return out
    if g.chance(0.5):
        return g.add("conv_input_grad", (out, w), size=tuple(x.shape[2:]), **options)
    return g.add("conv_weight_grad", (x, out), kernel=kernel, **options)


@maker(3)
def _take(g: RandomGraph) -> Node | None:
    x = g.node("f", 1, lambda n: n.size > 0)
    if x is None:
        return None
    axis = g.axis(x)
    if g.chance(0.5):
        return g.add("take", (x, g.index(g.shape(2), x.shape[axis])), axis=axis)
    shape = tuple(int(g.choice((1, 1, 3))) if i == axis else n for i, n in enumerate(x.shape))
    return g.add("take_along", (x, g.index(shape, x.shape[axis])), axis=axis)


@maker(3)
def _put(g: RandomGraph) -> Node | None:
    u = g.node("f", 1, lambda n: n.size > 0)
    if u is None:
        return None
    axis = g.axis(u)
    extent = int(g.choice(EXTENTS))
    shape = tuple(extent if i == axis else n for i, n in enumerate(u.shape))
    if int(np.prod(shape)) > MOST_ELEMENTS:
        return None
    base = g.zeros(shape, u.dtype) if g.chance(0.7) else g.input(shape, u.dtype)
    if g.chance(0.5):
        out = g.add("put_add", (base, g.index((u.shape[axis],), extent), u), axis=axis)
    else:
        out = g.add("put_along_add", (base, g.index(u.shape, extent), u), axis=axis)
    if out is None or g.chance(0.4):
        return out
    scaled = g.add("mul", (out, g.expand(g.input((), u.dtype), out.shape)))
    return g.add(g.choice(("add", "sub")), (g.like(out), scaled)) if scaled is not None else None


@maker(1)
def _one_hot(g: RandomGraph) -> Node | None:
    """The gradient of a gather of one element a row, used as it is or summed."""
    x = g.node("f", 1, lambda n: n.size > 0)
    if x is None:
        return None
    axis = g.axis(x)
    shape = tuple(1 if i == axis else n for i, n in enumerate(x.shape))
    index = g.index(shape, x.shape[axis])
    u = g.add("take_along", (x, index), axis=axis)
    out = g.add("put_along_add", (g.zeros(x.shape, x.dtype), index, u), axis=axis) if u is not None else None
    return g.add("sum", (out,), axes=(axis,)) if out is not None and g.chance(0.5) else out


@maker(1)
def _softmax(g: RandomGraph) -> Node | None:
    """softmax or log-softmax over an axis, and exp of it."""
    x = g.node("f", 1, lambda n: n.size > 0)
    if x is None:
        return None
    axis = g.axis(x)
    kept = tuple(1 if i == axis else n for i, n in enumerate(x.shape))

    def spread(node: Node | None) -> Node:
        assert node is not None
        column = g.add("reshape", (node,), shape=kept)
        assert column is not None
        return g.expand(column, x.shape)

    z = g.add("sub", (x, spread(g.add("max", (x,), axes=(axis,)))))
    e = g.add("exp", (z,)) if z is not None else None
    total = g.add("sum", (e,), axes=(axis,)) if e is not None else None
    if z is None or e is None or total is None:
        return None
    if g.chance(0.5):
        return g.add("div", (e, spread(total)))
    log = g.add("log", (total,))
    out = g.add("sub", (z, spread(log))) if log is not None else None
    return g.add("exp", (out,)) if out is not None and g.chance(0.6) else out


@maker(1)
def _source(g: RandomGraph) -> Node | None:
    if g.chance(0.3):
        counter, key = (g.input((), as_dtype("uint32"), 0, 100) for _ in range(2))
        bits = g.add("random_bits", (counter, key), shape=g.shape(3))
        drop = g.add("constant", (), value=24, dtype="uint32")
        if bits is None or drop is None:
            return None
        byte = g.add("shift_right", (bits, g.expand(drop, bits.shape)))
        return g.add("cast", (byte,), dtype=g.dtype.name) if byte is not None else None
    return g.add("iota", (), size=int(g.choice(EXTENTS)), dtype=g.choice(("int64", "int32", g.dtype.name)))


@maker(1)
def _input(g: RandomGraph) -> Node | None:
    return g.input(g.shape(), as_dtype(g.choice((g.dtype.name, g.dtype.name, "int64", "int32", "bool"))), 0, 2)


def random_graph(
    seed: int,
    steps: int = 20,
    *,
    dtype: str = "float64",
    zero_extents: bool = True,
    special: bool = False,
    without: tuple[str, ...] = (),
    name: str = "random",
) -> tuple[Graph, list[np.ndarray]]:
    """A random graph of about `steps` nodes beside inputs and repeated scalars, and arrays for its inputs.

    dtype: of the floating point values. special: inputs hold NaN, infinities and zeros of both signs (and no node is
    refused for its values). without: primitives that must not occur.
    """
    g = RandomGraph(seed, as_dtype(dtype), zero_extents, special)
    allowed = set(PRIMITIVES) - set(without)
    if without:
        plain_add = g.add
        g.add = lambda op, inputs, **params: (  # type: ignore[method-assign]
            plain_add(op, inputs, **params) if op in allowed else None
        )
    for _ in range(3):
        g.input(g.shape(), g.dtype)
    made: list[Node] = []
    for _ in range(steps * 4):
        node = g.choice(MAKERS)(g)
        if node is not None and node not in made and node.op != "input":
            made.append(node)
        if len(made) >= steps:
            break
    return _finished(g, made, name), [g.values[node] for node in g.build.inputs]


def _finished(g: RandomGraph, made: list[Node], name: str) -> Graph:
    """Outputs: every made node that nothing reads, and a few others; now and then an update of an input."""
    read = {x for node in g.build.nodes for x in node.inputs}
    outputs = [node for node in made if node not in read or g.chance(0.05)] or list(g.build.inputs[:1])
    updates: list[tuple[Node, Node]] = []
    for old in g.build.inputs:
        fitting = [n for n in made if (n.shape, n.dtype) == (old.shape, old.dtype)]
        if fitting and g.chance(0.5):
            updates.append((old, g.choice(fitting)))
    return g.build.finish(outputs, updates, name)
