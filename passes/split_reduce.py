"""Large reductions in two steps, so that threads can share the first one. Not bit-exact; left out when `exact`.

    sum(x[n, ...])  ->  sum(sum(reshape(x, [chunks, n / chunks, ...])))

for more than 2**16 elements and fewer than 64 results; and over the rows of matrices that no cache holds, so that these can
be added up block by block beside something else that reads the rows (codegen/cpu/stretches.py). The number of chunks depends
on the shape alone, never on how many threads there are: the result is the same on any machine. What is left over when the
chunks do not divide the axis is added at the end.
"""

from __future__ import annotations

import math

from fusegraph.ir.graph import Graph, Node
from fusegraph.passes.base import Pass, RewriteBuilder, Rules, Value, constant_value, rewrite
from fusegraph.passes.reductions import below_reshapes
from fusegraph.passes.simplify_reduce import is_large

SPLIT = Rules()
Inputs = tuple[Node, ...]
Found = Node | Value | None

# 64 chunks keep any likely number of threads busy; 128 partial results are still a trifle to add up.
FEWEST_CHUNKS = 64
MOST_CHUNKS = 128
# So many images stay whole: where their axis is cut they cannot lie in blocks (codegen/cpu/batch_blocks.py), and the gradient
# of a convolution is five times as slow.
MOST_IMAGES = 1024
_COMBINE = {"sum": "add", "prod": "mul", "max": "maximum", "min": "minimum"}


def _chunks(extent: int) -> int:
    """The largest divisor of `extent` that is a good number of chunks, or 0."""
    return next((n for n in range(min(MOST_CHUNKS, extent), FEWEST_CHUNKS - 1, -1) if extent % n == 0), 0)


@SPLIT.on(*_COMBINE)
def in_two_steps(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """reduce(x) -> reduce(reduce(chunks of x))"""
    (x,) = inputs
    axes = node.params["axes"]
    if not is_large(x, axes) or (node.op in ("max", "min") and node.dtype.kind == "b"):
        return None
    x, axes = _joined(build, x, axes)
    axis = axes[0]
    extent = x.shape[axis]
    if extent < FEWEST_CHUNKS:
        return None
    images = x.ndim > 3 and axis == 0 and len(axes) > 1 and extent <= MOST_IMAGES
    chunks = extent if images else _chunks(extent)
    if chunks:
        return _split(build, node.op, x, axes, chunks)
    even = extent - extent % FEWEST_CHUNKS
    main = _part(build, x, axis, 0, even)
    rest = _part(build, x, axis, even, extent - even)
    total = _split(build, node.op, main, axes, _chunks(even))
    return build.add(_COMBINE[node.op], (total, build.reduce(node.op, rest, axes)))


def _joined(build: RewriteBuilder, x: Node, axes: tuple[int, ...]) -> tuple[Node, tuple[int, ...]]:
    """`x` with its first reduced axis long enough to be cut: the reduced axes after it are joined to it as needed."""
    first, last = axes[0], axes[0]
    while math.prod(x.shape[first : last + 1]) < FEWEST_CHUNKS and last + 1 in axes:
        last += 1
    shape = (*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :])
    gone = last - first
    return build.reshape(x, shape), (first, *(axis - gone for axis in axes if axis > last))


def _split(build: RewriteBuilder, op: str, x: Node, axes: tuple[int, ...], chunks: int) -> Node:
    first = axes[0]
    cut = build.reshape(x, (*x.shape[:first], chunks, x.shape[first] // chunks, *x.shape[first + 1 :]))
    partial = build.reduce(op, cut, (axis + 1 for axis in axes))
    return build.reduce(op, partial, (first,))


def _part(build: RewriteBuilder, x: Node, axis: int, start: int, size: int) -> Node:
    begin = tuple(start if i == axis else 0 for i in range(x.ndim))
    return build.slice(x, begin, tuple(size if i == axis else n for i, n in enumerate(x.shape)))


@SPLIT.on("sum")
def variance_of_parts(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """sum(sum((x - mean)^2)) -> sum(sum((x - m)^2) + n * (m - mean)^2)  with the mean m of each part of n elements

    A part is read twice while it is near, x from memory once. No accuracy is lost: all differences are from a mean.
    """
    (inner,) = inputs
    if inner.op != "sum" or not build.is_single_use(inner) or node.dtype.kind != "f":
        return None
    square = below_reshapes(inner.inputs[0])
    centred = square.inputs[0] if square.op == "mul" and square.inputs[0] is square.inputs[1] else square
    if centred.op != "sub" or centred is square or centred.inputs[1].op != "expand":
        return None
    shape, inside, axes = inner.inputs[0].shape, inner.params["axes"], node.params["axes"]
    x = build.reshape(centred.inputs[0], shape)
    part = build.reduce("sum", x, inside)
    mean = below_reshapes(centred.inputs[1].inputs[0])
    if not _is_mean(mean, build.reduce("sum", part, axes), x.size // max(node.size, 1)):
        return None
    count = part.dtype.type(x.size // max(part.size, 1))
    own = build.add("mul", (part, build.full(1 / count, part.shape, part.dtype)))
    kept = tuple(1 if axis in inside else n for axis, n in enumerate(shape))
    near = build.add("sub", (x, build.expand(build.reshape(own, kept), shape)))
    spread = build.reduce("sum", build.add("mul", (near, near)), inside)
    whole = build.reshape(mean, tuple(1 if axis in axes else n for axis, n in enumerate(part.shape)))
    apart = build.add("sub", (own, build.expand(whole, part.shape)))
    between = build.add("mul", (build.add("mul", (apart, apart)), build.full(count, part.shape, part.dtype)))
    return build.reduce("sum", build.add("add", (spread, between)), axes)


def _is_mean(mean: Node, total: Node, count: int) -> bool:
    """Whether `mean` is total / count."""
    for one, factor in (mean.inputs, mean.inputs[::-1]) if mean.op == "mul" else ():
        if below_reshapes(one) is total and constant_value(factor) == float(total.dtype.type(1 / count)):
            return True
    return False


def split_reduce(graph: Graph) -> Graph:
    """`graph` with large reductions to few results done in two steps."""
    return rewrite(graph, SPLIT)


SPLIT_REDUCE = Pass("split_reduce", split_reduce, exact=False, needs=frozenset(_COMBINE))
