"""Stages, local buffers and updates in place as explicit-vector code, against the numpy interpreter; what the text tells."""

from __future__ import annotations

import re

import pytest
from loop_tools import one_loop_program
from nest_cases import (
    BITS,
    THREADS,
    Case,
    I,
    axes_of,
    indices,
    multiply_add,
    softmax,
    text_of,
)

from fusegraph.codegen.cpu.irtext import Module
from fusegraph.codegen.cpu.nest import emit_nest
from fusegraph.dtypes import float32, int64
from fusegraph.ir import scalar
from fusegraph.ir.index import Index, Indirect
from fusegraph.ir.loops import Loop, Reduce, Stage, Store
from fusegraph.ir.scalar import const, op

# -- memory: empty, in place, local, several stages --------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)])
def test_empty_spaces_and_reductions(shape):
    case, axes = Case(), axes_of(*shape)
    value = multiply_add(case, axes)
    case.check(Loop("empty", axes, (Stage(stores=(Store(case.output("o", shape), indices(axes), value),)),)), bits=BITS)
    first, rest = axes[:1], axes[1:]
    totals = (Reduce("s", "sum", value, float32), Reduce("p", "prod", value, float32))
    results = tuple(
        Store(case.output(name, (shape[0],)), indices(first), scalar.acc(name, float32)) for name in ("s", "p")
    )
    case.check(Loop("empty_rows", first, (Stage(reduce_axes=rest, reduces=totals), Stage(stores=results))), bits=BITS)


def test_update_in_place():
    case, (i,) = Case(), axes_of(1003)
    for name in ("p", "m"):
        case.input(name, (1003,), role="state")
    case.input("g", (1003,))
    momentum = op("add", op("mul", case.load("m", (i,)), const(0.9, float32)), case.load("g", (i,)))
    step = op("sub", case.load("p", (i,)), op("mul", momentum, const(0.1, float32)))
    loop = Loop("sgd", (i,), (Stage(stores=(Store("m", (I(i),), momentum), Store("p", (I(i),), step))),))
    case.check(loop, bits=BITS, threads=THREADS)


@pytest.mark.parametrize("width", [5, 48, 700])
def test_later_stages_see_what_earlier_ones_stored(width):
    """In place and through a temp; the last stage reads the row backwards."""
    case, (r, c) = Case(), axes_of(7, width, names="rc")
    case.input("s", (7, width), role="state")
    case.output("t", (7, width), role="temp")
    s = case.load("s", (r, c))
    loop = Loop(
        "chain",
        (r,),
        (
            Stage(axes=(c,), stores=(Store("s", (I(r), I(c)), op("add", s, const(1.0, float32))),)),
            Stage(axes=(c,), stores=(Store("t", (I(r), I(c)), op("mul", s, const(2.0, float32))),)),
            Stage(reduce_axes=(c,), reduces=(Reduce("a", "sum", case.load("t", (r, c)), float32),)),
            Stage(
                axes=(c,),
                stores=(
                    Store(
                        case.output("o", (7, width)),
                        (I(r), I(c)),
                        op("sub", case.load("t", (r, I(width - 1) - c)), scalar.acc("a", float32)),
                    ),
                ),
            ),
        ),
    )
    case.check(loop, rtol=1e-5, atol=1e-3, bits=BITS)


@pytest.mark.parametrize("width", [6, 200])
def test_local_buffers(width):
    case, (r, c, k) = Case(), axes_of(9, width, width, names="rck")
    case.input("x", (9, width))
    case.output("l", (width,), role="local")
    square = op("mul", case.load("x", (r, c)), case.load("x", (r, c)))
    loop = Loop(
        "local",
        (r,),
        (
            Stage(axes=(c,), stores=(Store("l", (I(c),), square),)),
            Stage(reduce_axes=(k,), reduces=(Reduce("a", "max", case.load("l", (k,)), float32),)),
            Stage(
                axes=(c,),
                stores=(
                    Store(
                        case.output("o", (9, width)),
                        (I(r), I(c)),
                        op("div", case.load("l", (I(width - 1) - c,)), scalar.acc("a", float32)),
                    ),
                ),
            ),
        ),
    )
    case.check(loop, bits=BITS, threads=[1])


def test_stage_that_depends_on_earlier_accumulators_in_an_index():
    """The element at the largest element's place (a run-time index that a stage computed)."""
    case, (r, c) = Case(), axes_of(12, 41, names="rc")
    case.input("x", (12, 41))
    case.input("y", (12, 41))
    place = Index(0, ((Indirect(scalar.acc("at", int64), 41), 1),))
    loop = Loop(
        "pick",
        (r,),
        (
            Stage(reduce_axes=(c,), reduces=(Reduce("at", "argmax", case.load("x", (r, c)), int64),)),
            Stage(stores=(Store(case.output("o", (12,)), (I(r),), case.load("y", (r, place))),)),
        ),
    )
    case.check(loop, rtol=0, bits=BITS, threads=THREADS)


# -- the text ----------------------------------------------------------------------------------------------------------


def test_text_is_the_same_every_time_and_tells_what_it_is():
    texts = set()
    for _ in range(3):
        case = Case()
        texts.add(text_of(softmax(case, 64, 100), case.buffers))
        scalar.clear_interned()
    (text,) = texts
    assert "; nest softmax(r < 64)" in text
    assert "; %p0 = x: float32[64, 100] (input)" in text
    assert "; largest = max over (j0 < 100)" in text


def test_small_rows_stay_in_registers():
    """Softmax over 10 classes: x is read once, exp is computed once, there is no inner loop.

    Two rows at a time, and one that may be left over: the text has three.
    """
    case = Case()
    kernel = text_of(softmax(case, 64, 10), case.buffers).split("}")[0]
    assert kernel.count("@fg_exp") == 3 * 2  # 8 + 2 lanes
    assert len(re.findall(r"^loop\d+:", kernel, re.M)) == 2
    assert len(re.findall(r"= (load|call) <8 x float>.*(load|ptr)", kernel)) == 3 * 2


def test_small_kernels_run_on_one_thread():
    for size, expected in ((64, False), (100_000, True)):
        case, axes = Case(), axes_of(size)
        value = multiply_add(case, axes)
        loop = Loop("map", axes, (Stage(stores=(Store(case.output("o", (size,)), indices(axes), value),)),))
        module = Module(vector_bits=256)
        assert emit_nest(module, loop, one_loop_program(loop, case.buffers), 256).parallel is expected


def test_long_rows_compute_exp_once():
    """Softmax over 1000 classes: the sum and the division read exp(x - max) from the thread's scratch row."""
    case = Case()
    loop = softmax(case, 8, 1000)
    module = Module(vector_bits=256)
    kernel = emit_nest(module, loop, one_loop_program(loop, case.buffers), 256)
    assert kernel.scratch_bytes == 4032  # 1000 floats, in whole cache lines
    dividing = module.text().split("; store o")[1]
    assert "@fg_exp" not in dividing.split("}")[0]
