"""Convolution and its two gradients as contractions, against the numpy reference of the primitives in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contract_tools import CompiledLoop, assert_close, program_of

from fusegraph.dtypes import float32
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Loop, Program, Reduce, Stage, Store
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.ir.scalar import Bound, Divides, Expr, acc, load, op, simplify_mask

Case = dict[str, Any]


def case(
    image: tuple[int, ...], weight: tuple[int, ...], stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1
) -> Case:
    """Shapes and options of one convolution."""
    size = tuple(
        (image[2 + d] + sum(padding[d]) - dilation[d] * (weight[2 + d] - 1) - 1) // stride[d] + 1 for d in (0, 1)
    )
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return {"image": image, "weight": weight, "out": (image[0], weight[0], *size), "options": options}


PAD1, PAD2 = ((1, 1), (1, 1)), ((2, 2), (2, 2))
CASES = {
    "plain": case((2, 3, 7, 8), (4, 3, 3, 3)),
    "padded": case((2, 3, 7, 8), (4, 3, 3, 3), padding=PAD1),
    "mnist1": case((3, 1, 28, 28), (4, 1, 3, 3), padding=PAD1),
    "mnist2": case((3, 4, 28, 28), (8, 4, 3, 3), padding=PAD1),
    "lenet1": case((2, 1, 28, 28), (6, 1, 5, 5), padding=PAD2),
    "lenet2": case((2, 6, 14, 14), (16, 6, 5, 5)),
    "wide": case((2, 32, 12, 12), (40, 32, 3, 3), padding=PAD1),
    "text": case((3, 10, 1, 21), (20, 10, 1, 4)),
    "text_padded": case((3, 10, 1, 21), (20, 10, 1, 5), padding=((0, 0), (2, 1))),
    "tiny_image": case((4, 5, 4, 4), (7, 5, 3, 3), padding=PAD1),
    "pointwise": case((2, 12, 5, 5), (9, 12, 1, 1)),
    "uneven_padding": case((2, 3, 6, 9), (5, 3, 2, 3), padding=((1, 0), (0, 2))),
    "strided": case((2, 3, 11, 13), (6, 3, 3, 3), stride=(2, 2), padding=PAD1),
    "strided_uneven": case((2, 3, 12, 9), (6, 3, 3, 2), stride=(3, 2), padding=PAD1),
    "dilated": case((2, 3, 11, 13), (6, 3, 3, 3), padding=PAD2, dilation=(2, 2)),
    "groups": case((2, 6, 9, 10), (8, 3, 3, 3), padding=PAD1, groups=2),
    "groups_strided": case((3, 4, 8, 6), (6, 2, 3, 2), (2, 1), ((1, 0), (0, 1)), (1, 2), 2),
    "flat_strided": case((2, 3, 1, 2), (4, 3, 2, 1), stride=(2, 2), padding=((1, 1), (0, 0))),
    "single": case((1, 2, 5, 5), (3, 2, 5, 5)),
}
KINDS = ["conv", "conv_input_grad", "conv_weight_grad"]


def read(buffer: str, index: tuple[Any, ...], mask=()) -> Expr:
    return load(buffer, tuple(map(Index.of, index)), float32, simplify_mask(mask))


def window(at: Axis, tap: Axis, d: int, options: Case) -> Index:
    """The image's row that a tap reads for an output row."""
    return Index.of(at) * options["stride"][d] + Index.of(tap) * options["dilation"][d] - options["padding"][d][0]


def conv_loop(shape: Case, kind: str, epilogue=None, extra=()) -> tuple[Loop, Program]:
    """The loop that the compiler makes of one convolution primitive (operands `first` and `second`, result `out`)."""
    build = {"conv": _forward, "conv_input_grad": _input_grad, "conv_weight_grad": _weight_grad}[kind]
    space, sums, product = build(shape)
    total = acc("acc0", float32)
    stores = (Store("out", tuple(map(Index.of, space)), total),) if epilogue is None else epilogue(total, space)
    stages = (Stage(reduce_axes=sums, reduces=(Reduce("acc0", "sum", product, float32),)), Stage(stores=stores))
    loop = Loop("kernel", space, stages, "contract")
    first, second, out = shapes(shape, kind)
    buffers = [Buffer("first", first, float32, "input"), Buffer("second", second, float32, "input"),
               Buffer("out", out, float32, "output"), *extra]  # fmt: skip
    return loop, program_of(loop, buffers)


def shapes(shape: Case, kind: str) -> tuple[tuple[int, ...], ...]:
    image, weight, out = shape["image"], shape["weight"], shape["out"]
    return {
        "conv": (image, weight, out),
        "conv_input_grad": (out, weight, image),
        "conv_weight_grad": (image, out, weight),
    }[kind]


def _axes(letters: str, extents: tuple[int, ...]) -> tuple[Axis, ...]:
    return tuple(Axis(letter, extent) for letter, extent in zip(letters, extents, strict=True))


def _image_mask(shape: Case, rows: Index, columns: Index) -> tuple[Bound, ...]:
    return Bound(rows, 0, shape["image"][2]), Bound(columns, 0, shape["image"][3])


def _forward(shape: Case) -> tuple[tuple[Axis, ...], tuple[Axis, ...], Expr]:
    n, o, y, x = _axes("noyx", shape["out"])
    c, i, j = _axes("cij", shape["weight"][1:])
    per_group = shape["weight"][0] // shape["options"]["groups"]
    channel = Index.of(c) + (Index.of(o) // per_group) * c.extent
    rows, columns = window(y, i, 0, shape["options"]), window(x, j, 1, shape["options"])
    image = read("first", (n, channel, rows, columns), _image_mask(shape, rows, columns))
    return (n, o, y, x), (c, i, j), op("mul", image, read("second", (o, c, i, j)))


def _input_grad(shape: Case) -> tuple[tuple[Axis, ...], tuple[Axis, ...], Expr]:
    options, weight = shape["options"], shape["weight"]
    n, c, y, x = _axes("ncyx", shape["image"])
    o, i, j = _axes("oij", (weight[0] // options["groups"], *weight[2:]))
    maps = Index.of(o) + (Index.of(c) // weight[1]) * o.extent
    mask, places = [], []
    for at, tap, d in ((y, i, 0), (x, j, 1)):
        offset = Index.of(at) + options["padding"][d][0] - Index.of(tap) * options["dilation"][d]
        place = offset // options["stride"][d]
        mask += [Divides(offset, options["stride"][d]), Bound(place, 0, shape["out"][2 + d])]
        places.append(place)
    gradient = read("first", (n, maps, *places), tuple(mask))
    return (n, c, y, x), (o, i, j), op("mul", gradient, read("second", (maps, Index.of(c) % weight[1], i, j)))


def _weight_grad(shape: Case) -> tuple[tuple[Axis, ...], tuple[Axis, ...], Expr]:
    o, c, i, j = _axes("ocij", shape["weight"])
    n, y, x = _axes("nyx", (shape["out"][0], *shape["out"][2:]))
    per_group = shape["weight"][0] // shape["options"]["groups"]
    channel = Index.of(c) + (Index.of(o) // per_group) * c.extent
    rows, columns = window(y, i, 0, shape["options"]), window(x, j, 1, shape["options"])
    image = read("first", (n, channel, rows, columns), _image_mask(shape, rows, columns))
    return (o, c, i, j), (n, y, x), op("mul", image, read("second", (n, o, y, x)))


def inputs(program: Program, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {b.name: rng.uniform(-1, 1, b.shape).astype(b.dtype) for b in program.buffers.values() if b.role != "output"}


def reference(shape: Case, kind: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The primitive's numpy implementation in float64."""
    extra = {
        "conv": {},
        "conv_input_grad": {"size": shape["image"][2:]},
        "conv_weight_grad": {"kernel": shape["weight"][2:]},
    }
    operands = arrays["first"].astype(np.float64), arrays["second"].astype(np.float64)
    return PRIMITIVES[kind].reference(*operands, **extra[kind], **shape["options"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_against_the_reference(name: str, kind: str) -> None:
    loop, program = conv_loop(CASES[name], kind)
    arrays = inputs(program)
    compiled = CompiledLoop(loop, program)
    assert compiled.kernel is not None
    assert_close(compiled.run(arrays)["out"], reference(CASES[name], kind, arrays))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mnist2", "lenet2", "strided", "groups", "text"])
def test_threads_do_not_change_a_bit(name: str, kind: str) -> None:
    loop, program = conv_loop(CASES[name], kind)
    arrays = inputs(program)
    compiled = CompiledLoop(loop, program)
    alone = compiled.run(arrays, 1)["out"]
    for threads in (2, 3, 8):
        np.testing.assert_array_equal(compiled.run(arrays, threads)["out"], alone)


def random_case(rng: np.random.Generator) -> Case:
    """Small, with every option."""
    groups, kernel = int(rng.choice([1, 1, 2, 3])), [int(k) for k in rng.integers(1, 5, 2)]
    dilation, stride = [int(d) for d in rng.integers(1, 3, 2)], [int(s) for s in rng.integers(1, 4, 2)]
    padding = tuple(tuple(int(p) for p in rng.integers(0, 3, 2)) for _ in range(2))
    smallest = [max(1, dilation[d] * (kernel[d] - 1) + 1 - sum(padding[d])) for d in (0, 1)]
    size = [int(rng.integers(smallest[d], smallest[d] + 14)) for d in (0, 1)]
    channels, maps = (int(c) for c in rng.integers(1, 8, 2))
    image = (int(rng.integers(1, 4)), groups * channels, *size)
    return case(image, (groups * maps, channels, *kernel), tuple(stride), padding, tuple(dilation), groups)


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for kind in KINDS:
        shape = random_case(rng)
        loop, program = conv_loop(shape, kind)
        arrays = inputs(program, seed)
        compiled = CompiledLoop(loop, program)
        assert compiled.kernel is not None, shape
        alone = compiled.run(arrays)["out"]
        assert_close(alone, reference(shape, kind, arrays))
        np.testing.assert_array_equal(compiled.run(arrays, 3)["out"], alone)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["padded", "lenet2"])
def test_exact_sums_in_the_order_of_the_loop(name: str, kind: str) -> None:
    """Bit for bit what a scalar loop gives that multiplies and adds in float32."""
    loop, program = conv_loop(CASES[name], kind)
    arrays = inputs(program)
    found = CompiledLoop(loop, program, exact=True).run(arrays)["out"]
    np.testing.assert_array_equal(found, _in_order(loop, program, arrays))


def _in_order(loop: Loop, program: Program, arrays: dict[str, np.ndarray]) -> np.ndarray:
    reduce, space = loop.stages[0].reduces[0], loop.space
    grid = dict(zip(space, np.meshgrid(*(np.arange(a.extent) for a in space), indexing="ij"), strict=True))
    total = np.zeros([axis.extent for axis in space], np.float32)
    for point in np.ndindex(*(axis.extent for axis in loop.stages[0].reduce_axes)):
        at = grid | dict(zip(loop.stages[0].reduce_axes, point, strict=True))
        first, second = (_loaded(factor.attribute, arrays, at) for factor in reduce.value.args)
        total += first * second
    return total


def _loaded(place: Any, arrays: dict[str, np.ndarray], at: dict[Axis, Any]) -> np.ndarray:
    def value(index: Index) -> Any:
        return index.constant + sum(factor * at[atom] for atom, factor in index.terms)

    inside = np.bool_(True)
    for condition in place.mask:
        inside = inside & (condition.low <= value(condition.index)) & (value(condition.index) < condition.high)
    index = [np.clip(value(i), 0, n - 1) for i, n in zip(place.index, arrays[place.buffer].shape, strict=True)]
    return np.where(inside, arrays[place.buffer][tuple(index)], np.float32(0))


def test_bias_and_relu() -> None:
    shape = CASES["mnist2"]
    bias = Buffer("bias", (8,), float32, "input")

    def epilogue(total: Expr, space: tuple[Axis, ...]) -> tuple[Store, ...]:
        value = op("relu", op("add", total, read("bias", (space[1],))))
        return (Store("out", tuple(map(Index.of, space)), value),)

    loop, program = conv_loop(shape, "conv", epilogue, [bias])
    arrays = inputs(program)
    expected = np.maximum(reference(shape, "conv", arrays) + arrays["bias"][:, None, None], 0)
    assert_close(CompiledLoop(loop, program).run(arrays, 2)["out"], expected)


def test_update_of_the_weight_in_place() -> None:
    shape = CASES["lenet2"]
    weight = Buffer("w", shape["weight"], float32, "state")

    def epilogue(total: Expr, space: tuple[Axis, ...]) -> tuple[Store, ...]:
        index = tuple(map(Index.of, space))
        scaled = op("mul", total, read("scale", ()))
        return (Store("w", index, op("sub", read("w", space), scaled)),)

    loop, program = conv_loop(shape, "conv_weight_grad", epilogue, [weight, Buffer("scale", (), float32, "input")])
    arrays = inputs(program)
    found = CompiledLoop(loop, program).run(arrays, 3)
    assert_close(found["w"], arrays["w"] - arrays["scale"] * reference(shape, "conv_weight_grad", arrays))


@pytest.mark.parametrize("kind", KINDS)
def test_batch_innermost_layout(kind: str) -> None:
    """Buffers in [C][H][W][images]: the batch becomes the axis of vectors; nothing else is asked of the planner."""
    shape = CASES["mnist2"] | {"image": (16, 4, 28, 28), "out": (16, 8, 28, 28)}
    loop, program = conv_loop(shape, kind)
    arrays = inputs(program)
    expected = reference(shape, kind, arrays)
    batched = [name for name, buffer in program.buffers.items() if buffer.shape[0] == 16]
    moved = {name: buffer if name not in batched else Buffer(name, (*buffer.shape[1:], 16), buffer.dtype, buffer.role)
             for name, buffer in program.buffers.items()}  # fmt: skip
    loop = _batch_last(loop, batched)
    compiled = CompiledLoop(loop, program_of(loop, list(moved.values())))
    assert compiled.kernel is not None
    found = compiled.run({name: np.moveaxis(a, 0, -1) if name in batched else a for name, a in arrays.items()}, 2)[
        "out"
    ]
    assert_close(np.moveaxis(found, -1, 0) if "out" in batched else found, expected)


def _batch_last(loop: Loop, batched: list[str]) -> Loop:
    def moved(expr: Expr) -> Expr:
        place = expr.attribute
        if place.buffer not in batched:
            return expr
        return load(place.buffer, (*place.index[1:], place.index[0]), expr.dtype, place.mask)

    reduce = loop.stages[0].reduces[0]
    (store,) = loop.stages[1].stores
    index = (*store.index[1:], store.index[0]) if store.buffer in batched else store.index
    product = op("mul", *map(moved, reduce.value.args))
    stages = (Stage(reduce_axes=loop.stages[0].reduce_axes, reduces=(Reduce("acc0", "sum", product, float32),)),
              Stage(stores=(Store(store.buffer, index, store.value),)))  # fmt: skip
    space = (*loop.space[1:], loop.space[0]) if "out" in batched else loop.space
    return Loop(loop.name, space, stages, loop.schedule)
