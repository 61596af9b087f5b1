"""Views of views: one view, or none.

The order that views are brought into, from the inside out: pad and concat, slice, permute, reshape, expand.
"""

from __future__ import annotations

from fusegraph.ir.graph import Node
from fusegraph.passes.base import RewriteBuilder, Rules, Value, constant_value, without_ones

VIEWS = Rules()
Inputs = tuple[Node, ...]
Found = Node | Value | None


@VIEWS.on("reshape")
def reshape_of_reshape(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """reshape to the same shape -> x;  reshape(reshape(x)) -> reshape(x)"""
    (x,) = inputs
    if x.shape == node.shape:
        return x
    return build.reshape(x.inputs[0], node.shape) if x.op == "reshape" else None


@VIEWS.on("permute")
def permute_of_permute(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """permute in the old order -> x;  permute(permute(x)) -> permute(x);  moving only axes of size 1 -> reshape"""
    (x,) = inputs
    axes = node.params["axes"]
    if axes == tuple(range(x.ndim)):
        return x
    if x.op == "permute":
        return build.permute(x.inputs[0], tuple(x.params["axes"][axis] for axis in axes))
    moved = [axis for axis in axes if x.shape[axis] != 1]
    return build.reshape(x, node.shape) if moved == sorted(moved) else None


@VIEWS.on("permute")
def permute_of_reshape(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """permute(reshape(x)) -> reshape(permute(x))  where the reshape only adds or removes axes of size 1"""
    (view,) = inputs
    if view.op != "reshape" or without_ones(view.inputs[0].shape) != without_ones(view.shape):
        return None
    (x,) = view.inputs
    real = [axis for axis, extent in enumerate(x.shape) if extent != 1]
    number = dict(zip((axis for axis, extent in enumerate(view.shape) if extent != 1), real))
    order = [number[axis] for axis in node.params["axes"] if axis in number]
    order += [axis for axis, extent in enumerate(x.shape) if extent == 1]
    return build.reshape(build.permute(x, tuple(order)), node.shape)


@VIEWS.on("slice")
def slice_of_all(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x[0:n] -> x;  the step of one element -> 1"""
    (x,) = inputs
    start, size, step = node.params["start"], node.params["size"], node.params["step"]
    plain = tuple(1 if count <= 1 else by for count, by in zip(size, step))
    if size == x.shape and not any(start) and plain == (1,) * x.ndim:
        return x
    return build.slice(x, start, size, plain) if plain != tuple(step) else None


@VIEWS.on("slice")
def slice_of_slice(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """x[a::s][b::t] -> x[a + b s :: s t]"""
    (x,) = inputs
    if x.op != "slice":
        return None
    first, by = x.params["start"], x.params["step"]
    start = tuple(at + begin * s for at, begin, s in zip(first, node.params["start"], by))
    step = tuple(s * t for s, t in zip(by, node.params["step"]))
    return build.slice(x.inputs[0], start, node.params["size"], step)


@VIEWS.on("slice")
def slice_of_view(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """slice(permute(x)) -> permute(slice(x));  slice(reshape(x)) -> reshape(slice(x))  if only axes of size 1 differ"""
    (view,) = inputs
    start, size, step = node.params["start"], node.params["size"], node.params["step"]
    if view.op == "permute":
        back = sorted(range(view.ndim), key=view.params["axes"].__getitem__)
        ranges = [tuple(values[axis] for axis in back) for values in (start, size, step)]
        return build.permute(build.slice(view.inputs[0], *ranges), view.params["axes"])
    if view.op != "reshape" or without_ones(view.inputs[0].shape) != without_ones(view.shape):
        return None
    if any(count == 0 and extent == 1 for count, extent in zip(size, view.shape)):
        return None
    (x,) = view.inputs
    real = iter([axis for axis, extent in enumerate(view.shape) if extent != 1])
    chosen = [next(real) if extent != 1 else None for extent in x.shape]
    ranges = [
        tuple(rest if axis is None else values[axis] for axis in chosen)
        for values, rest in ((start, 0), (size, 1), (step, 1))
    ]
    return build.reshape(build.slice(x, *ranges), node.shape)


@VIEWS.on("slice")
def slice_of_pad(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """slice(pad(x)) -> pad(slice(x)), with less padding;  all of it padding -> constant"""
    (padded,) = inputs
    if padded.op != "pad" or any(step != 1 for step in node.params["step"]):
        return None
    (x,) = padded.inputs
    begin = [at - low for at, low in zip(node.params["start"], padded.params["low"])]
    end = [at + count for at, count in zip(begin, node.params["size"])]
    start = tuple(min(max(at, 0), extent) for at, extent in zip(begin, x.shape))
    stop = tuple(max(min(at, extent), low) for at, extent, low in zip(end, x.shape, start))
    size = tuple(last - first for first, last in zip(start, stop))
    if 0 in size:
        return build.full(padded.params["value"], node.shape, node.dtype)
    low = tuple(first - at for first, at in zip(start, begin))
    high = tuple(at - last for last, at in zip(stop, end))
    if (low, high) == (padded.params["low"], padded.params["high"]):
        return None
    return build.add("pad", (build.slice(x, start, size),), {"low": low, "high": high, "value": padded.params["value"]})


@VIEWS.on("slice")
def slice_of_concat(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """slice(concat(a, b, ...)) -> slice(a)  if it lies in one part;  parts that it does not touch are left out"""
    (joined,) = inputs
    if joined.op != "concat" or 0 in node.shape:
        return None
    axis = joined.params["axis"]
    start, size, step = (node.params[key] for key in ("start", "size", "step"))
    ends = (start[axis], start[axis] + (size[axis] - 1) * step[axis])
    first, last = min(ends), max(ends)
    kept, skipped, at = [], 0, 0
    for part in joined.inputs:
        if at <= last and at + part.shape[axis] > first:
            kept.append(part)
        elif not kept:
            skipped += part.shape[axis]
        at += part.shape[axis]
    if len(kept) == len(joined.inputs):
        return None
    source = kept[0] if len(kept) == 1 else build.add("concat", kept, {"axis": axis})
    return build.slice(source, tuple(b - skipped if i == axis else b for i, b in enumerate(start)), size, step)


@VIEWS.on("pad")
def pad_of_pad(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """pad by nothing -> x;  pad(pad(x)) -> pad(x)  and  pad(constant) -> constant  for one value"""
    (x,) = inputs
    low, high, value = node.params["low"], node.params["high"], node.params["value"]
    if not any(low) and not any(high):
        return x
    fill = build.constant(value, node.dtype)
    if x.op == "pad" and build.constant(x.params["value"], node.dtype) is fill:
        low = tuple(a + b for a, b in zip(low, x.params["low"]))
        high = tuple(a + b for a, b in zip(high, x.params["high"]))
        return build.add("pad", x.inputs, {"low": low, "high": high, "value": value})
    if constant_value(x) is not None and x.op == "expand" and x.inputs[0] is fill:
        return build.expand(fill, node.shape)
    return None


@VIEWS.on("concat")
def concat_of_parts(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """concat(x) -> x;  empty parts are left out;  concat(concat(a, b), c) -> concat(a, b, c) along one axis"""
    axis = node.params["axis"]
    parts: list[Node] = []
    for x in inputs:
        if x.shape[axis]:
            nested = x.op == "concat" and x.params["axis"] == axis and build.is_single_use(x)
            parts += x.inputs if nested else (x,)
    if len(parts) == 1:
        return parts[0]
    return build.add("concat", parts, {"axis": axis}) if parts and parts != list(inputs) else None


@VIEWS.on("concat")
def concat_of_neighbours(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """concat(x[a:b], x[b:c]) -> x[a:c]"""
    axis = node.params["axis"]
    parts = [inputs[0]]
    for x in inputs[1:]:
        joined = _joined(build, parts[-1], x, axis)
        if joined is None:
            parts.append(x)
        else:
            parts[-1] = joined
    if len(parts) == len(inputs):
        return None
    return parts[0] if len(parts) == 1 else build.add("concat", parts, {"axis": axis})


def _joined(build: RewriteBuilder, a: Node, b: Node, axis: int) -> Node | None:
    if a.op != "slice" or b.op != "slice" or a.inputs != b.inputs or a.params["step"] != b.params["step"]:
        return None
    step = a.params["step"]
    ahead = tuple(n * s if i == axis else 0 for i, (n, s) in enumerate(zip(a.shape, step)))
    expected = tuple(at + by for at, by in zip(a.params["start"], ahead))
    if b.params["start"] != expected or step[axis] != 1:
        return None
    size = tuple(n + b.shape[axis] if i == axis else n for i, n in enumerate(a.shape))
    return build.slice(a.inputs[0], a.params["start"], size, step)


@VIEWS.on("window")
def window_of_one(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """windows of one element -> a slice with steps, with a new last axis"""
    (x,) = inputs
    if node.params["size"] != 1:
        return None
    axis = node.params["axis"]
    step = tuple(node.params["stride"] if i == axis else 1 for i in range(x.ndim))
    return build.reshape(build.slice(x, (0,) * x.ndim, node.shape[:-1], step), node.shape)


@VIEWS.on("check_index")
def checked_again(build: RewriteBuilder, node: Node, inputs: Inputs) -> Found:
    """check(check(x)) -> check(x)  for the same range"""
    (x,) = inputs
    same = x.op == "check_index" and all(x.params[key] == node.params[key] for key in ("low", "high", "allow"))
    return x if same else None
