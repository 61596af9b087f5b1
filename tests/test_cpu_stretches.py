"""Kernels that run together block of rows by block of rows: which may, where their memory lies, and the same bits."""

from __future__ import annotations

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph.build import step_code
from fusegraph.codegen.cpu.barriers import place_buffers
from fusegraph.codegen.cpu.kernel import EmittedKernel
from fusegraph.codegen.cpu.row_blocks import blocks_of_buffers
from fusegraph.codegen.cpu.stretches import Stretch, find_stretches
from fusegraph.codegen.memory import plan_memory
from fusegraph.dtypes import float32
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Loop, Program, Reduce, Stage, Store
from fusegraph.ir.scalar import acc, load, make

ROWS, WIDTH = 2048, 512
R, C, H = Axis("r", 8), Axis("c", 4), Axis("h", 2)


@pytest.mark.parametrize(
    ("index", "size", "blocks", "expected"),
    [
        (Index.of(R) * 4 + Index.of(C), 32, 8, ((4, 8),)),
        (Index.of(R) * 4 + Index.of(C), 32, 4, ((8, 4),)),  # two rows in a block
        (Index.of(R) * 4, 32, 8, ((4, 8),)),  # a part of each row
        (Index.of(R), 8, 8, ((1, 8),)),  # one number for each row
        (Index.of(R) * 4 + Index.of(C) + 1, 32, 8, None),  # runs into the next row
        (Index.of(R) * 4 + Index.of(C) - 1, 32, 8, None),
        (Index.of(R) * 2 + Index.of(C), 32, 8, None),
        (Index.of(C), 4, 8, None),  # all rows read the same
        (Index.of(R) * -4 + Index.of(C) + 28, 32, 8, None),
        (Index.of(R) * 4 + (Index.of(R) + Index.of(C)) % 4, 32, 8, ((4, 8),)),  # anywhere in its own row
        (Index.of(R) * 8 + Index.of(H) * 4 + Index.of(C), 64, 16, ((4, 16),)),  # two axes that are one number
        (Index.of(R) * 8 + Index.of(C) * 2 + Index.of(H), 64, 16, ((8, 8), (1, 2))),  # every other element
        (Index.of(R) * 16 + Index.of(C) * 4 + Index.of(H) + 1, 129, 16, None),  # h = 1 is where h = 0 would be next
        (Index.of(R) * 16 + Index.of(C) * 4 + Index.of(H) * 2 + 2, 130, 16, None),
        (Index.of(R) * 16 + Index.of(C) * 4 + Index.of(H) * 2 + 129, 258, 16, ((16, 8), (2, 2))),  # in another half
        (Index.of(H) * 32 + Index.of(R) * 4 + Index.of(C), 64, 16, ((4, 8), (32, 2))),  # digits in another order
    ],
)
def test_where_the_blocks_of_a_buffer_lie(index, size, blocks, expected):
    value = load("x", (Index.of(R),), float32)
    loop = Loop("k", (R, H), (Stage((C,), (), (), (Store("y", (index,), value, "store"),)),))
    buffers = {"x": Buffer("x", (8,), float32, "input"), "y": Buffer("y", (size,), float32, "temp")}
    assert blocks_of_buffers(loop, blocks, buffers).get("y") == expected


def test_blocks_that_end_inside_of_a_point_have_no_parts():
    value = load("x", (Index.of(R), Index.of(C)), float32)
    loop = Loop("k", (R,), (Stage((), (C,), (Reduce("a", "sum", value, float32),), ()),
                            Stage((), (), (), (Store("y", (Index.of(R),), acc("a", float32), "store"),))))  # fmt: skip
    buffers = {"x": Buffer("x", (8, 4), float32, "input"), "y": Buffer("y", (8,), float32, "temp")}
    assert blocks_of_buffers(loop, 8, buffers) == {"x": ((4, 8),), "y": ((1, 8),)}
    assert blocks_of_buffers(loop, 2, buffers) == {"x": ((16, 2),), "y": ((4, 2),)}
    assert blocks_of_buffers(loop, 3, buffers) == blocks_of_buffers(loop, 16, buffers) == {}


def test_kinds_of_places_in_one_loop():
    """A buffer that a loop reads by rows and by columns is nobody's."""
    both = make(
        "add", (load("x", (Index.of(R), Index.of(R)), float32), load("x", (Index.of(C), Index.of(R)), float32)), float32
    )
    loop = Loop("k", (R,), (Stage((C,), (), (), (Store("y", (Index.of(R), Index.of(C)), both, "store"),)),))
    buffers = {"x": Buffer("x", (8, 8), float32, "input"), "y": Buffer("y", (8, 4), float32, "temp")}
    assert blocks_of_buffers(loop, 8, buffers) == {"y": ((4, 8),)}


# -- which kernels may run together ------------------------------------------------------------------------------------


def _program(*kernels: tuple[str, tuple[str, ...], str], turned: tuple[str, str] = ("", "")) -> Program:
    """A chain of kernels (name, what it reads, what it writes) over matrices of 4 MB, all by rows.

    turned: (kernel, buffer) that it touches from the last row to the first.
    """
    shape, row, column = (2048, 512), Axis("i", 2048), Axis("j", 512)
    loops, buffers = [], {}

    def index(kernel, buffer):
        place = Index.of(row) if (kernel, buffer) != turned else Index.of(row) * -1 + 2047
        return place, Index.of(column)

    for name, reads, write in kernels:
        value = None
        for read in reads:
            buffers.setdefault(read, Buffer(read, shape, float32, "input"))
            loaded = load(read, index(name, read), float32)
            value = loaded if value is None else make("add", (value, loaded), float32)
        buffers.setdefault(write, Buffer(write, shape, float32, "temp"))
        loops.append(
            Loop(name, (row,), (Stage((column,), (), (), (Store(write, index(name, write), value, "store"),)),))
        )
    outputs = (kernels[-1][2],)
    buffers[outputs[0]] = Buffer(outputs[0], shape, float32, "output")
    return Program("p", buffers, tuple(loops), tuple(n for n, b in buffers.items() if b.role == "input"), outputs)


def _kernels(program: Program, rows: dict[str, int]) -> list[EmittedKernel]:
    return [
        EmittedKernel(loop.name, loop.reads() + loop.writes(), 0, True, rows.get(loop.name, 2048))
        for loop in program.loops
    ]


CHAIN = (("a", ("x",), "y"), ("b", ("y",), "z"), ("c", ("x", "z"), "w"))


@pytest.mark.parametrize(
    ("rows", "turned", "expected"),
    [
        ({}, ("", ""), (Stretch(0, 3, 256, ("y", "z")),)),
        ({"b": 64}, ("", ""), (Stretch(0, 3, 64, ("y", "z")),)),  # blocks that all can be cut into
        ({"b": 0}, ("", ""), ()),  # one in the middle is split in another way
        ({"c": 0}, ("", ""), (Stretch(0, 2, 256, ("y",)),)),
        ({"b": 2049}, ("", ""), ()),  # nothing in common
        ({}, ("b", "y"), (Stretch(1, 3, 256, ("z",)),)),  # b reads rows that another block of a writes
        ({}, ("c", "x"), (Stretch(0, 3, 256, ("y", "z")),)),  # what all only read may be read anywhere
        ({}, ("c", "z"), (Stretch(0, 2, 256, ("y",)),)),
        ({}, ("a", "y"), (Stretch(1, 3, 256, ("z",)),)),
    ],
)
def test_stretches_of_a_chain(rows, turned, expected):
    program = _program(*CHAIN, turned=turned)
    assert find_stretches(program, _kernels(program, rows)) == expected


def test_a_write_of_what_an_earlier_kernel_reads_elsewhere_is_refused():
    chain = ("a", ("x",), "y"), ("b", ("y",), "x")
    program = _program(*chain)
    assert find_stretches(program, _kernels(program, {})) == (Stretch(0, 2, 256, ("y",)),)
    program = _program(*chain, turned=("a", "x"))
    assert find_stretches(program, _kernels(program, {})) == ()


def test_kernels_that_share_little_stay_apart():
    program = _program(("a", ("x",), "y"), ("b", ("z",), "w"))
    assert find_stretches(program, _kernels(program, {})) == ()


def test_what_a_stretch_touches_is_alive_during_all_of_it():
    program = _program(
        ("a", ("x",), "y"), ("b", ("y",), "z"), ("c", ("z",), "w"), ("d", ("w",), "v"), ("e", ("v",), "u")
    )
    alone = plan_memory(program, in_place=lambda loop: False)
    together = plan_memory(program, in_place=lambda loop: False, together=[range(0, 3)])
    assert alone.arena["y"] == alone.arena["w"]  # y is dead when w is written
    assert len({together.arena[name] for name in "yzw"}) == 3
    assert together.arena["v"] in {together.arena["y"], together.arena["z"]}


def test_what_only_a_stretch_touches_lies_in_workspaces():
    program = _program(*CHAIN)
    (stretch,) = find_stretches(program, _kernels(program, {}))
    memory = place_buffers(program, _kernels(program, {}), (stretch,))
    assert memory.arena == {} and memory.arena_bytes == 0
    assert memory.local_bytes == 2 * 4 * 2048 * 512 // 256 and set(memory.locals) == {"y", "z"}


# -- results -----------------------------------------------------------------------------------------------------------


def _with_gradients(function):
    def run(*arrays):
        inputs = [array.detach().requires_grad_() for array in arrays[:-1]]
        value = function(*inputs)
        return value.detach(), *fg.autograd.grad(value, inputs, arrays[-1])

    return run


def _layer_norm(x, weight, bias):
    return F.layer_norm(x, (x.shape[-1],), weight, bias)


def _rms_norm(x, weight, bias):
    return F.rms_norm(x, (x.shape[-1],), weight) + bias


def _arguments(dtype=np.float32):
    rng = np.random.default_rng(3)
    shapes = [(ROWS * 4, WIDTH // 2), (WIDTH // 2,), (WIDTH // 2,), (ROWS * 4, WIDTH // 2)]
    return [fg.tensor(rng.standard_normal(shape).astype(dtype)) for shape in shapes]


def _stretches(compiled) -> tuple[Stretch, ...]:
    return step_code(compiled._last.artifact).stretches


@pytest.fixture
def any_threads():
    before = fg.get_num_threads()
    yield
    fg.set_num_threads(before)


@pytest.mark.parametrize("function", [_layer_norm, _rms_norm])
def test_gradients_of_norms_run_beside_their_rows(function, any_threads):
    arguments = _arguments()
    wanted = _with_gradients(function)(*[argument.double() for argument in arguments])
    bits = None
    for threads in (1, 2, 3, 8):
        fg.set_num_threads(threads)
        compiled = fg.compile(_with_gradients(function))
        got = [value.numpy().copy() for value in compiled(*arguments)]
        assert len(_stretches(compiled)) == 1
        for value, expected in zip(got, wanted, strict=True):
            scale = float(np.abs(expected.numpy()).max())
            np.testing.assert_allclose(value, expected.numpy(), rtol=1e-4, atol=3e-6 * scale)
        bits = bits or [value.tobytes() for value in got]
        assert [value.tobytes() for value in got] == bits


def test_rows_that_need_their_neighbours_wait_for_them(any_threads):
    """A kernel that reads what other blocks of rows write is not run with the one that writes it."""
    fg.set_num_threads(2)

    def function(x):
        y = F.softmax(x, 1)
        return y, F.softmax(y.flip(0) * 3.0, 1), y.sum(0)

    x = fg.tensor(np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32))
    compiled = fg.compile(function)
    for got, wanted in zip(compiled(x), function(x), strict=True):
        np.testing.assert_allclose(got.numpy(), wanted.numpy(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_random_rows(seed, any_threads):
    """Kernels that are not merged, over rows of one matrix: together or apart, the results are those of eager code."""
    rng = np.random.default_rng(seed)
    operations = [
        lambda a, b: F.softmax(a, 1) + b,
        lambda a, b: a - b.mean(1, keepdim=True),
        lambda a, b: (a * b).sum(1, keepdim=True) * a,
        lambda a, b: a.flip(0) - b.amax(1, keepdim=True),
        lambda a, b: a - b.mean(0, keepdim=True),
        lambda a, b: (a + b).tanh(),
    ]
    chosen = [operations[number] for number in rng.integers(0, len(operations), 5)]

    def function(x):
        values = [x, x * 0.5]
        for operation in chosen:
            values.append(operation(values[-1], values[-2]))
        return tuple(values[2:])

    x = fg.tensor(rng.standard_normal((ROWS, WIDTH)).astype(np.float32))
    fg.set_num_threads(1 + seed % 3)
    for fuse in (True, False):
        for got, wanted in zip(fg.compile(function, fuse=fuse)(x), function(x), strict=True):
            scale = float(np.abs(wanted.numpy()).max())
            np.testing.assert_allclose(got.numpy(), wanted.numpy(), rtol=1e-4, atol=1e-5 * scale)


def test_explain_names_kernels_that_run_together():
    compiled = fg.compile(_with_gradients(_layer_norm))
    text = str(compiled.explain(*_arguments()))
    (stretch,) = _stretches(compiled)
    names = [loop.name for loop in compiled._last.artifact.fused[0].loops[stretch.first : stretch.last]]
    assert f"run together, block by block, without a barrier: {', '.join(names)} in {stretch.blocks} blocks" in text
    few = fg.compile(lambda x: F.softmax(x, 1))
    assert "run together" not in str(few.explain(fg.ones(8, 8)))
