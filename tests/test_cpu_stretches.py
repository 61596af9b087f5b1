"""Kernels that run together block of rows by block of rows: which may, where their memory lies, and the same bits."""

from __future__ import annotations

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph.build import step_code
from fusegraph.codegen.cpu.kernel import EmittedKernel, RowSplit
from fusegraph.codegen.cpu.nest_rows import _stays_in_its_part
from fusegraph.codegen.cpu.stretches import Stretch, find_stretches
from fusegraph.codegen.memory import plan_memory
from fusegraph.dtypes import float32
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Loop, Program, Stage, Store
from fusegraph.ir.scalar import load, make

ROWS, WIDTH = 2048, 512
R, C = Axis("r", 8), Axis("c", 4)


@pytest.mark.parametrize(
    ("index", "size", "expected"),
    [
        (Index.of(R) * 4 + Index.of(C), 32, True),
        (Index.of(R) * 4, 32, True),  # a part of each row
        (Index.of(R), 8, True),  # one number for each row
        (Index.of(R) * 4 + Index.of(C) + 1, 32, False),  # runs into the next row
        (Index.of(R) * 4 + Index.of(C) - 1, 32, False),
        (Index.of(R) * 2 + Index.of(C), 32, False),
        (Index.of(R) * 4 + Index.of(C), 64, False),  # the first half of the buffer
        (Index.of(C), 4, False),  # all rows read the same
        (Index.of(R) * -4 + Index.of(C) + 28, 32, False),
        (Index.of(R) * 4 + (Index.of(R) + Index.of(C)) % 4, 32, False),
    ],
)
def test_whether_a_row_stays_in_its_part_of_a_buffer(index, size, expected):
    assert _stays_in_its_part(index, R, size) is expected


# -- which kernels may run together ------------------------------------------------------------------------------------


def _program(*kernels: tuple[str, tuple[str, ...], str]) -> Program:
    """A chain of kernels (name, what it reads, what it writes) over matrices of 4 MB."""
    shape, row, column = (2048, 512), Axis("i", 2048), Axis("j", 512)
    index = (Index.of(row), Index.of(column))
    loops, buffers = [], {}
    for name, reads, write in kernels:
        value = None
        for read in reads:
            buffers.setdefault(read, Buffer(read, shape, float32, "input"))
            loaded = load(read, index, float32)
            value = loaded if value is None else make("add", (value, loaded), float32)
        buffers[write] = Buffer(write, shape, float32, "temp")
        loops.append(Loop(name, (row,), (Stage((column,), (), (), (Store(write, index, value, "store"),)),)))
    return Program("p", buffers, tuple(loops), tuple(n for n, b in buffers.items() if b.role == "input"), ())


def _kernels(program: Program, rows: dict[str, int], foreign: dict[str, set[str]]) -> list[EmittedKernel]:
    made = []
    for loop in program.loops:
        names = loop.reads() + loop.writes()
        local = frozenset(n for n, name in enumerate(names) if name not in foreign.get(loop.name, set()))
        extent = rows.get(loop.name, 2048)
        made.append(EmittedKernel(loop.name, names, 0, True, RowSplit(extent, extent, local) if extent else None))
    return made


CHAIN = (("a", ("x",), "y"), ("b", ("y",), "z"), ("c", ("x", "z"), "w"))


@pytest.mark.parametrize(
    ("rows", "foreign", "expected"),
    [
        ({}, {}, (Stretch(0, 3, 256),)),
        ({"b": 64}, {}, (Stretch(0, 3, 64),)),  # blocks that all can be cut into
        ({"b": 0}, {}, ()),  # one in the middle is split in another way
        ({"c": 0}, {}, (Stretch(0, 2, 256),)),
        ({"b": 2049}, {}, ()),  # nothing in common
        ({}, {"b": {"y"}}, ()),  # b reads rows that another block of a writes; c nothing that b has not
        ({}, {"c": {"x"}}, (Stretch(0, 3, 256),)),  # what all only read may be read anywhere
        ({}, {"c": {"z"}}, (Stretch(0, 2, 256),)),
        ({}, {"a": {"y"}}, ()),
    ],
)
def test_stretches_of_a_chain(rows, foreign, expected):
    program = _program(*CHAIN)
    found = find_stretches(program, _kernels(program, rows, foreign))
    if foreign == {"b": {"y"}} or foreign == {"a": {"y"}}:  # b and c share z by rows
        expected = (Stretch(1, 3, 256),)
    assert found == expected


def test_a_write_of_what_an_earlier_kernel_reads_elsewhere_is_refused():
    program = _program(("a", ("x",), "y"), ("b", ("y",), "x"))
    assert find_stretches(program, _kernels(program, {}, {})) == (Stretch(0, 2, 256),)
    assert find_stretches(program, _kernels(program, {}, {"a": {"x"}})) == ()


def test_kernels_that_share_little_stay_apart():
    program = _program(("a", ("x",), "y"), ("b", ("z",), "w"))
    assert find_stretches(program, _kernels(program, {}, {})) == ()


def test_what_a_stretch_touches_is_alive_during_all_of_it():
    program = _program(("a", ("x",), "y"), ("b", ("y",), "z"), ("c", ("z",), "w"), ("d", ("w",), "v"))
    alone = plan_memory(program, in_place=lambda loop: False)
    together = plan_memory(program, in_place=lambda loop: False, together=[range(0, 3)])
    assert alone.arena["y"] == alone.arena["w"]  # y is dead when w is written
    assert len({together.arena[name] for name in "yzw"}) == 3
    assert together.arena["v"] in {together.arena["y"], together.arena["z"]}


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
