"""Random op graphs for the tests of fusion: every primitive, odd sizes, shared values, updates in place.

`random_graph(seed)` gives a graph; `random_arrays(graph, seed)` its inputs. Graphs of mode "exact" hold small whole numbers and
only operations that round nothing, so that comparisons and positions of extremes must agree in every bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fusegraph.dtypes import bool_, float64, int64, uint32
from fusegraph.ir.graph import Graph, GraphBuilder, Node

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

_EXACT_MAPS = ("neg", "abs", "sign", "relu", "floor")
_REAL_MAPS = (*_EXACT_MAPS, "tanh", "sigmoid", "sin", "cos", "erf", "exp", "log1p", "sqrt", "rsqrt", "expm1")
_COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")


class GraphMaker:
    """Adds random operations to a builder; `pool` are the float values so far."""

    def __init__(self, seed: int, exact: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.exact = exact
        self.build = GraphBuilder()
        self.pool: list[Node] = []
        self.dims = [int(n) for n in self.rng.choice([1, 2, 2, 3, 3, 4, 5, 6], 3)]
        if self.rng.random() < 0.06:
            self.dims.append(0)

    # -- choices ------------------------------------------------------------------------------------------------------

    def pick(self, options: Sequence[Any]) -> Any:
        """One of `options`."""
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        """True in this share of the cases."""
        return bool(self.rng.random() < share)

    def shape(self, low: int = 0, high: int = 3) -> Shape:
        """A random shape of `low` to `high` axes."""
        return tuple(int(self.pick(self.dims)) for _ in range(int(self.rng.integers(low, high + 1))))

    def node(self, low: int = 0, nonempty: bool = False) -> Node:
        """A float value of at least `low` axes; late ones are more likely."""
        fits = [n for n in self.pool if n.ndim >= low and (n.size or not nonempty)]
        if not fits:
            return self.fit(self.pool[-1], tuple(max(1, int(self.pick(self.dims))) for _ in range(low)))
        place = len(fits) - 1 - min(int(self.rng.exponential(3)), len(fits) - 1)
        return fits[place]

    def add(self, op: str, inputs: Sequence[Node], **params: Any) -> Node:
        """A node."""
        return self.build.add(op, inputs, params)

    def full(self, value: float, shape: Shape) -> Node:
        """A constant."""
        return self.build.full(value, shape, float64)

    # -- bringing a value to a shape ------------------------------------------------------------------------------------

    def fit(self, x: Node, shape: Shape) -> Node:
        """Some view (or reduction) of `x` that has `shape`."""
        shape = tuple(shape)
        if x.shape == shape:
            return x
        if x.size == int(np.prod(shape)) and self.chance(0.6):
            return self.add("reshape", [x], shape=shape)
        while x.ndim > len(shape):
            x = (
                self.add(self.pick(["sum", "max"]) if x.shape[0] else "sum", [x], axes=(0,))
                if self.chance(0.5) or x.shape[0] == 0
                else self.add("reshape", [self._cut(x, (1, *x.shape[1:]))], shape=x.shape[1:])
            )
        if x.ndim < len(shape) and self.chance(0.5):
            x = self.add("reshape", [x], shape=(1,) * (len(shape) - x.ndim) + x.shape)
        lead = len(shape) - x.ndim
        target = tuple(
            1 if (n == 1 and self.chance(0.7)) else want for n, want in zip(x.shape, shape[lead:], strict=True)
        )
        x = self._cut(x, target)
        return x if x.shape == shape else self.add("expand", [x], shape=shape)

    def _cut(self, x: Node, shape: Shape) -> Node:
        """`x` cut or padded to `shape`."""
        size = tuple(min(a, b) for a, b in zip(x.shape, shape, strict=True))
        if size != x.shape:
            start, step = [], []
            for have, want in zip(x.shape, size, strict=True):
                most = (have - 1) // (want - 1) if want > 1 else 1
                k = int(self.rng.integers(1, most + 1))
                at = int(self.rng.integers(0, have - (want - 1) * k)) if want else 0
                if self.chance(0.3) and want:
                    at, k = at + (want - 1) * k, -k
                start.append(at)
                step.append(k)
            x = self.add("slice", [x], start=tuple(start), size=size, step=tuple(step))
        if size != shape:
            low = tuple(int(self.rng.integers(0, b - a + 1)) for a, b in zip(size, shape, strict=True))
            high = tuple(b - a - c for a, b, c in zip(size, shape, low, strict=True))
            x = self.add("pad", [x], low=low, high=high, value=float(self.pick([0.0, 0.0, 1.0])))
        return x

    def beside(self, shape: Shape) -> Node:
        """A value of `shape`: one that has it, or another one brought to it."""
        same = [n for n in self.pool if n.shape == shape]
        return self.pick(same) if same and self.chance(0.6) else self.fit(self.node(), shape)

    def tame(self, x: Node) -> Node:
        """`x` kept small, so that long chains of products do not overflow."""
        if not self.exact:
            return self.add("tanh", [x])
        return self.add("maximum", [self.add("minimum", [x, self.full(4.0, x.shape)]), self.full(-4.0, x.shape)])

    # -- operations -----------------------------------------------------------------------------------------------------

    def map(self) -> Node:
        x = self.node()
        op = self.pick(_EXACT_MAPS if self.exact else _REAL_MAPS)
        if op in ("exp", "expm1"):
            x = self.tame(x)
        if op in ("log1p", "sqrt", "rsqrt"):
            x = self.add("add", [self.add("abs", [x]), self.full(0.5, x.shape)])
        return self.add(op, [x])

    def zip(self) -> Node:
        a = self.node()
        b = self.beside(a.shape)
        op = self.pick(["add", "sub", "mul", "maximum", "minimum"] + ([] if self.exact else ["div"]))
        if op == "div":
            b = self.add("add", [self.add("abs", [b]), self.full(0.7, b.shape)])
        if op == "mul":
            b = self.tame(b)
        return self.add(op, [b, a] if self.chance(0.5) and op != "div" else [a, b])

    def choose(self) -> Node:
        a = self.node()
        condition = self.condition(a.shape)
        return self.add("where", [condition, a, self.beside(a.shape)])

    def condition(self, shape: Shape) -> Node:
        kind = self.rng.random()
        if kind < 0.6:
            return self.add(
                self.pick(_COMPARE),
                [self.beside(shape), self.beside(shape) if self.chance(0.5) else self.full(0.0, shape)],
            )
        if kind < 0.7 and shape:
            ramp = self.add("iota", [], size=shape[-1], dtype="int64")
            other = self.build.full(int(self.rng.integers(0, max(shape[-1], 1))), (shape[-1],), int64)
            return self.add("expand", [self.add("le", [ramp, other])], shape=shape)
        if kind < 0.8:
            return self.add("logical_not", [self.condition(shape)])
        return self.add(self.pick(["bit_and", "bit_or", "bit_xor"]), [self.condition(shape), self.condition(shape)])

    def reduce(self) -> Node:
        x = self.node(1)
        op = self.pick(["sum", "sum", "max", "min"] + ([] if self.exact else ["prod"]))
        axes = tuple(axis for axis in range(x.ndim) if self.chance(0.5)) or (int(self.rng.integers(x.ndim)),)
        if any(x.shape[axis] == 0 for axis in axes):
            op = "sum"
        return self.add(op, [self.tame(x) if op == "prod" else x], axes=axes)

    def position(self) -> Node:
        """The number of an extreme, as a float."""
        x = self.node(1, nonempty=True)
        axes = tuple(axis for axis in range(x.ndim) if self.chance(0.5)) or (int(self.rng.integers(x.ndim)),)
        found = self.add(self.pick(["argmax", "argmin"]), [x], axes=axes)
        return self.add("cast", [found], dtype="float64")

    def matmul(self) -> Node:
        a = self.node(2)
        if self.chance(0.3):
            a = self.permute(a)
        columns = int(self.pick(self.dims))
        b = (
            self.beside((*a.shape[:-2], columns, a.shape[-1]))
            if self.chance(0.5)
            else self.beside((*a.shape[:-2], a.shape[-1], columns))
        )
        if b.shape != (*a.shape[:-2], a.shape[-1], columns):
            order = (*range(a.ndim - 2), a.ndim - 1, a.ndim - 2)
            b = self.add("permute", [b], axes=order)
        return self.add("matmul", [a, b])

    def conv(self) -> Node:
        groups = self.pick([1, 1, 2])
        options = {
            "stride": (self.pick([1, 1, 2]), self.pick([1, 2, 3])),
            "dilation": (self.pick([1, 1, 2]), 1),
            "groups": groups,
            "padding": ((self.pick([0, 1]), self.pick([0, 1])), (self.pick([0, 1]), self.pick([0, 2]))),
        }
        n, c, o = (
            int(self.rng.integers(1, 3)),
            groups * int(self.rng.integers(1, 3)),
            groups * int(self.rng.integers(1, 3)),
        )
        kernel = (int(self.rng.integers(1, 4)), int(self.rng.integers(1, 3)))
        size = tuple(int(self.rng.integers(options["dilation"][d] * (kernel[d] - 1) + 1, 8)) for d in (0, 1))
        x, w = self.beside((n, c, *size)), self.beside((o, c // groups, *kernel))
        out = self.add("conv", [x, w], **options)
        kind = self.rng.random()
        if kind < 0.4:
            return out
        ct = self.beside(out.shape)
        if kind < 0.7:
            return self.add("conv_input_grad", [ct, w], size=size, **options)
        return self.add("conv_weight_grad", [x, ct], kernel=kernel, **options)

    def permute(self, x: Node) -> Node:
        """`x` with its axes in another order."""
        return self.add("permute", [x], axes=tuple(int(i) for i in self.rng.permutation(x.ndim)))

    def view(self) -> Node:
        x = self.node()
        kind = self.pick(["reshape", "permute", "expand", "slice", "pad", "concat", "window", "fold", "flatten"])
        if kind == "permute":
            return self.permute(x)
        if kind == "expand":
            return self.add("expand", [x], shape=(*self.shape(1, 1), *x.shape))
        if kind == "flatten":
            return self.add("reshape", [x], shape=(x.size,))
        if kind == "slice":
            return self._cut(
                x, tuple(int(self.rng.integers(0 if self.chance(0.05) else min(1, n), n + 1)) for n in x.shape)
            )
        if kind == "pad":
            return self._cut(x, tuple(n + int(self.rng.integers(0, 3)) for n in x.shape))
        if kind == "concat" and x.ndim:
            axis = int(self.rng.integers(x.ndim))
            others = [
                self.beside((*x.shape[:axis], int(self.pick(self.dims)), *x.shape[axis + 1 :]))
                for _ in range(self.pick([1, 1, 2]))
            ]
            parts = [x, *others]
            return self.add("concat", [parts[i] for i in self.rng.permutation(len(parts))], axis=axis)
        if kind in ("window", "fold") and x.ndim and max(x.shape) >= 2:
            return self.windows(x, kind)
        return self.add("reshape", [x], shape=self.factors(x.size))

    def factors(self, size: int) -> Shape:
        """A random shape of `size` elements."""
        if size == 0:
            return tuple(self.pick([(0,), (3, 0), (0, 2)]))
        out = []
        while size > 1 and len(out) < 3:
            part = int(self.pick([n for n in range(1, size + 1) if size % n == 0]))
            out.append(part)
            size //= part
        return tuple(out) if size == 1 else (*out, size)

    def windows(self, x: Node, kind: str) -> Node:
        """Sliding windows over an axis, or their transpose."""
        axis = int(self.pick([i for i, n in enumerate(x.shape) if n >= 2]))
        size, stride = int(self.rng.integers(1, min(x.shape[axis], 3) + 1)), int(self.rng.integers(1, 4))
        dilation = 1 if size == 1 or (size - 1) * 2 + 1 > x.shape[axis] else self.pick([1, 1, 2])
        out = self.add("window", [x], axis=axis, size=size, stride=stride, dilation=dilation)
        if kind == "window":
            return out
        out = self.add(self.pick(_EXACT_MAPS), [out]) if self.chance(0.5) else self.beside(out.shape)
        extent = x.shape[axis] + self.pick([0, 0, 1])
        return self.add("fold", [out], axis=axis, extent=extent, stride=stride, dilation=dilation)

    def index(self, shape: Shape, extent: int) -> Node:
        """Whole numbers inside of [0, extent), of a shape."""
        kind = self.rng.random()
        bound = self.build.full(max(extent, 1), shape, int64)
        if kind < 0.35:
            name = f"index{len(self.build.inputs)}"
            made = self.build.input(name, shape, int64)
            return self.add("mod", [made, bound])
        if kind < 0.6 and shape:
            ramp = self.add("iota", [], size=shape[-1], dtype="int64")
            return self.add("mod", [self.add("expand", [ramp], shape=shape), bound])
        if kind < 0.8:
            x = self.node(1, nonempty=True)
            found = self.add("argmax", [x], axes=(int(self.rng.integers(x.ndim)),))
            if found.ndim <= len(shape) and all(
                n in (1, m) for n, m in zip(found.shape, shape[len(shape) - found.ndim :], strict=True)
            ):
                return self.add(
                    "mod", [self.add("expand", [found], shape=shape) if found.shape != shape else found, bound]
                )
        source = (
            self.add("floor", [self.add("abs", [self.beside(shape)])])
            if self.exact
            else self.build.full(1.0, shape, float64)
        )
        return self.add("mod", [self.add("cast", [source], dtype="int64"), bound])

    def gather(self) -> Node:
        x = self.node(1, nonempty=True)
        axis = int(self.rng.integers(x.ndim))
        kind = self.pick(["take", "take_along", "put_add", "put_along_add"])
        if kind.endswith("along") or kind == "put_along_add":
            shape = (*x.shape[:axis], int(self.pick(self.dims)), *x.shape[axis + 1 :])
            index = self.index(shape, x.shape[axis])
            if kind == "take_along":
                return self.add("take_along", [x, index], axis=axis)
            return self.add("put_along_add", [x, index, self.beside(shape)], axis=axis)
        index = self.index(self.shape(0, 2), x.shape[axis])
        if kind == "take":
            return self.add("take", [x, index], axis=axis)
        return self.add(
            "put_add", [x, index, self.beside((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))], axis=axis
        )

    def random(self) -> Node:
        key = self.build.input(f"key{len(self.build.inputs)}", (), uint32)
        bits = self.add("random_bits", [key, self.build.constant(3, uint32)], shape=self.shape(0, 3))
        small = self.add("shift_right", [bits, self.build.full(29, bits.shape, uint32)])
        return self.add("cast", [small], dtype="float64")

    def softmax(self) -> Node:
        x = self.node(1, nonempty=True)
        axis = x.ndim - 1 if self.chance(0.7) else int(self.rng.integers(x.ndim))
        kept = tuple(1 if i == axis else n for i, n in enumerate(x.shape))

        def along(v: Node) -> Node:
            return self.add("expand", [self.add("reshape", [v], shape=kept)], shape=x.shape)

        centred = self.add("sub", [x, along(self.add("max", [x], axes=(axis,)))])
        top = self.add("abs" if self.exact else "exp", [centred])
        total = along(self.add("sum", [top], axes=(axis,)))
        return self.add("sub" if self.exact else "div", [top, total])

    def constant(self) -> Node:
        if self.chance(0.5):
            return self.full(float(self.rng.integers(-2, 3)), self.shape())
        return self.add("iota", [], size=int(self.pick(self.dims)), dtype="float64")

    # -- the graph ------------------------------------------------------------------------------------------------------

    def make(self, steps: int) -> Graph:
        """A graph of about `steps` operations."""
        for number in range(int(self.rng.integers(1, 4))):
            self.pool.append(self.build.input(f"x{number}", self.shape(0 if number else 1, 4), float64))
        actions: list[tuple[Callable[[], Node], float]] = [
            (self.map, 3),
            (self.zip, 4),
            (self.choose, 1),
            (self.reduce, 3),
            (self.position, 0.6),
            (self.matmul, 1.5),
            (self.conv, 0.6),
            (self.view, 3),
            (self.gather, 1),
            (self.random, 0.2),
            (self.softmax, 0.7),
            (self.constant, 0.3),
        ]
        weights = np.array([weight for _, weight in actions]) ** self.rng.uniform(0.5, 1.5)
        for _ in range(steps):
            made = actions[int(self.rng.choice(len(actions), p=weights / weights.sum()))][0]()
            if made.size <= 600:
                self.pool.append(
                    self.tame(made) if self.exact and made.op in ("matmul", "mul", "sum", "conv") else made
                )
        return self.finish()

    def finish(self) -> Graph:
        """Outputs and updates."""
        many = self.chance(0.3)  # every output is a value in memory: more kernels, and more ways to merge them
        outputs = [
            self.pick(self.pool) if many else self.node() for _ in range(int(self.rng.integers(1, 12 if many else 4)))
        ]
        if self.chance(0.15):
            outputs.append(self.pick(outputs))
        if self.chance(0.15):
            outputs.append(self.add("reshape", [outputs[0]], shape=self.factors(outputs[0].size)))
        if self.chance(0.15):
            outputs.append(self.pick(self.pool))
        if self.chance(0.1):
            outputs.append(self.constant())
        updates = []
        states = [n for n in self.build.inputs if n.dtype == float64]
        for old in states:
            if self.chance(0.5):
                updates.append((old, self.new_value(old, states)))
        if updates and self.chance(0.3):
            outputs.append(self.pick(updates)[1])
        if updates and self.chance(0.3):
            outputs.append(self.pick(updates)[0])
        if updates and self.chance(0.3):  # something that is computed from a new value
            new = self.pick(updates)[1]
            outputs.append(self.add("add", [new, self.beside(new.shape)]))
        return self.build.finish(outputs, updates, "random")

    def new_value(self, old: Node, states: Sequence[Node]) -> Node:
        """What `old` is overwritten with."""
        kind = self.rng.random()
        same = [n for n in states if n.shape == old.shape]
        if kind < 0.1:
            return self.pick(same)
        if kind < 0.2:
            return self.fit(self.permute(old), old.shape)
        if kind < 0.3 and old.ndim:
            flipped = tuple(-1 if n else 1 for n in old.shape)
            return self.add("slice", [old], start=tuple(max(n - 1, 0) for n in old.shape), size=old.shape, step=flipped)
        fitting = [n for n in self.pool if n.shape == old.shape]
        if kind < 0.5:
            return self.pick(fitting)
        if kind < 0.6:
            return self.fit(self.node(), old.shape)
        return self.add(self.pick(["sub", "add", "mul", "maximum"]), [old, self.beside(old.shape)])


class RowMaker(GraphMaker):
    """Graphs of values that share their axes: maps, reductions over some axes, and broadcasts back, as in norms and softmax.

    Nearly everything fuses here, so that the rules about stages, accumulators and values kept a row are put to the test.
    """

    def __init__(self, seed: int, exact: bool) -> None:
        super().__init__(seed, exact)
        equal = self.chance(0.4)  # axes of one extent are told apart by their place only
        extents = [int(n) for n in self.rng.integers(1 if self.chance(0.2) else 2, 5, 3)]
        self.full_shape = tuple(extents[0] if equal else n for n in extents[: int(self.rng.integers(2, 4))])

    def axes_of(self, x: Node) -> tuple[int, ...]:
        """Which of the full shape's axes `x` has (its axes stand in that order)."""
        return self.have[x]

    def put(self, node: Node, axes: tuple[int, ...]) -> None:
        """Remember a value."""
        if node not in self.have:
            self.have[node] = axes
            self.pool.append(node)

    def spread(self, x: Node, axes: tuple[int, ...]) -> Node:
        """`x` repeated over `axes`, which hold its own."""
        kept = tuple(self.full_shape[a] if a in self.have[x] else 1 for a in axes)
        shape = tuple(self.full_shape[a] for a in axes)
        x = x if x.shape == kept else self.add("reshape", [x], shape=kept)
        return x if x.shape == shape else self.add("expand", [x], shape=shape)

    def step(self) -> None:
        """One more value."""
        kind = self.rng.random()
        x = self.node()
        mine = self.have[x]
        if kind < 0.25 and mine:
            gone = tuple(i for i in range(len(mine)) if self.chance(0.4)) or (int(self.rng.integers(len(mine))),)
            op = self.pick(["sum", "max", "min", "sum"])
            made = self.add(op, [x], axes=gone)
            self.put(self.tame(made) if op == "sum" else made, tuple(a for i, a in enumerate(mine) if i not in gone))
        elif kind < 0.4:
            op = self.pick(_EXACT_MAPS if self.exact else ("exp", "tanh", "sin", "abs", "relu"))
            self.put(self.add(op, [self.tame(x) if op == "exp" else x]), mine)
        elif kind < 0.5 and len(mine) >= 2 and len({self.full_shape[a] for a in mine}) < len(mine):
            self.put(self.swapped(x), mine)
        elif kind < 0.56:
            flat = self.add("reshape", [x], shape=(x.size,))
            self.put(self.add("reshape", [self.add(self.pick(_EXACT_MAPS), [flat])], shape=x.shape), mine)
        elif kind < 0.62 and mine:
            flipped = tuple(-1 if self.chance(0.5) else 1 for _ in mine)
            start = tuple(n - 1 if s < 0 else 0 for n, s in zip(x.shape, flipped, strict=True))
            self.put(self.add("slice", [x], start=start, size=x.shape, step=flipped), mine)
        elif kind < 0.67 and mine:
            axis = int(self.rng.integers(len(mine)))
            index = self.add(
                "expand",
                [
                    self.add(
                        "reshape",
                        [self.add("argmax", [x], axes=(axis,))],
                        shape=(*x.shape[:axis], 1, *x.shape[axis + 1 :]),
                    )
                ],
                shape=x.shape,
            )
            self.put(
                self.add("take_along", [self.pick([n for n in self.pool if n.shape == x.shape]), index], axis=axis),
                mine,
            )
        else:
            y = self.node()
            axes = tuple(sorted(set(mine) | set(self.have[y])))
            self.put(
                self.add(
                    self.pick(["add", "sub", "maximum", "mul"]), [self.tame(self.spread(x, axes)), self.spread(y, axes)]
                ),
                axes,
            )

    def swapped(self, x: Node) -> Node:
        """`x` with two axes of one extent exchanged."""
        pairs = [(i, j) for i in range(x.ndim) for j in range(i) if x.shape[i] == x.shape[j]]
        i, j = self.pick(pairs)
        order = list(range(x.ndim))
        order[i], order[j] = j, i
        return self.add("permute", [x], axes=tuple(order))

    def make(self, steps: int) -> Graph:
        """A graph of about `steps` operations."""
        self.have: dict[Node, tuple[int, ...]] = {}
        rank = len(self.full_shape)
        for number in range(int(self.rng.integers(1, 4))):
            axes = tuple(range(rank)) if number == 0 else tuple(i for i in range(rank) if self.chance(0.6))
            self.put(self.build.input(f"x{number}", tuple(self.full_shape[i] for i in axes), float64), axes)
        for _ in range(steps):
            self.step()
        return self.finish()

    def new_value(self, old: Node, states: Sequence[Node]) -> Node:
        """What `old` is overwritten with."""
        fits = [n for n in self.pool if n.shape == old.shape]
        kind = self.rng.random()
        if kind < 0.2:
            return self.pick(fits)
        smaller = [n for n in self.pool if n in self.have and set(self.have[n]) <= set(self.have[old])]
        new = self.add(self.pick(["sub", "add", "maximum"]), [old, self.spread(self.pick(smaller), self.have[old])])
        self.put(new, self.have[old])
        for _ in range(int(self.rng.integers(0, 3))):  # readers of the new value
            self.step()
        return new


def random_graph(seed: int, steps: int | None = None) -> Graph:
    """A graph that `seed` names; even seeds give "exact" ones."""
    maker = (RowMaker if seed % 5 < 2 else GraphMaker)(seed, exact=seed % 2 == 0)
    return maker.make(int(maker.rng.integers(2, 14)) if steps is None else steps)


def random_arrays(graph: Graph, seed: int, whole: bool) -> list[Array]:
    """Inputs for `graph`; whole numbers if asked for."""
    rng = np.random.default_rng(seed)
    arrays: list[Array] = []
    for node in graph.inputs:
        if node.dtype == float64:
            values = rng.integers(-3, 4, node.shape) if whole else rng.uniform(-2, 2, node.shape)
            arrays.append(np.asarray(values, np.float64))
        elif node.dtype == bool_:
            arrays.append(np.asarray(rng.random(node.shape) < 0.5))
        else:
            arrays.append(np.asarray(rng.integers(0, 50, node.shape), node.dtype))
    return arrays
