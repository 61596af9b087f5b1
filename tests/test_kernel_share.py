"""Loops that differ only in names share one function; nothing else may share."""

from dataclasses import replace

import numpy as np
import pytest

import fusegraph as fg
from fusegraph import nn
from fusegraph.build import step_code
from fusegraph.codegen.cpu.irtext import Module
from fusegraph.codegen.cpu.kernel_share import kernel_key
from fusegraph.dtypes import float32
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Loop, Program, Reduce, Stage, Store
from fusegraph.ir.scalar import acc, const, load, op


def functions(compiled):
    """Names of the kernels' functions in the IR text of a compiled function's last version."""
    code = step_code(compiled.compiled_for().artifact)
    return [kernel.name for kernel in code.kernels], code.text


def test_equal_layers_share_their_kernels():
    fg.manual_seed(0)
    layers = [nn.Linear(16, 16) for _ in range(6)]
    model = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())])
    x = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    compiled = fg.compile(model)
    with fg.no_grad():
        got = compiled(x)
    names, text = functions(compiled)
    assert len(names) == 6 and len(set(names)) == 3  # the first reads an argument, the last writes an output
    assert text.count(f"call void @{names[1]}(") == 4 and text.count(f"define internal void @{names[1]}(") == 1
    np.testing.assert_allclose(got.detach().numpy(), model(fg.as_tensor(x)).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_other_shapes_and_constants_do_not_share():
    def f(x, y):
        return (x * 2.0).sum(), (x * 3.0).sum(), (y * 2.0).sum(), (x + 2.0).sum()

    compiled = fg.compile(f)
    x, y = np.arange(8, dtype=np.float32), np.arange(9, dtype=np.float32)
    for got, expected in zip(compiled(x, y), f(fg.as_tensor(x), fg.as_tensor(y)), strict=True):
        assert got.item() == expected.item()


def scaled_sum(tag="", extent=6, factor=2.0, source="x", target="y", combine="sum"):
    """target[i] = sum over j of source[i, j] * factor, with names that end in `tag`."""
    i, j = Axis(f"i{tag}", extent), Axis(f"j{tag}", 5)
    value = op("mul", load(source, (Index.of(i), Index.of(j)), float32), const(factor, float32))
    stages = (
        Stage(reduce_axes=(j,), reduces=(Reduce(f"acc{tag}", combine, value, float32),)),
        Stage(stores=(Store(target, (Index.of(i),), acc(f"acc{tag}", float32)),)),
    )
    return Loop(f"k{tag}", (i,), stages)


PROGRAM = Program("p", {
    **{name: Buffer(name, (6, 5), float32, "input") for name in ("x", "u")},
    **{name: Buffer(name, (6,), float32, "output") for name in ("y", "v")},
    "state": Buffer("state", (6, 5), float32, "state"),
}, (), ("x", "u"), ("y", "v"))  # fmt: skip


def test_a_key_holds_under_renaming():
    first = kernel_key(scaled_sum(), PROGRAM)
    assert kernel_key(scaled_sum("7", source="u", target="v"), PROGRAM) == first


@pytest.mark.parametrize("change", [
    {"extent": 5}, {"factor": 3.0}, {"factor": -2.0}, {"combine": "max"}, {"source": "state"},
])  # fmt: skip
def test_a_key_tells_apart_what_has_other_code(change):
    assert kernel_key(scaled_sum("7", **change), PROGRAM) != kernel_key(scaled_sum(), PROGRAM)


def test_a_key_tells_apart_who_reads_one_buffer_twice():
    def added(a, b, tag):
        i, j = Axis(f"i{tag}", 6), Axis(f"j{tag}", 5)
        at = (Index.of(i), Index.of(j))
        value = op("add", load(a, at, float32), op("mul", load(b, at, float32), const(2.0, float32)))
        return Loop(f"k{tag}", (i, j), (Stage(stores=(Store("state", at, value),)),))

    assert kernel_key(added("x", "u", 1), PROGRAM) == kernel_key(added("u", "x", 2), PROGRAM)
    assert kernel_key(added("x", "x", 3), PROGRAM) != kernel_key(added("x", "u", 1), PROGRAM)
    assert kernel_key(replace(added("x", "u", 1), schedule="scatter"), PROGRAM) != kernel_key(
        added("x", "u", 1), PROGRAM
    )


def test_equal_functions_of_a_module_are_merged():
    module = Module(128)
    for name, number in (("one", 1), ("two", 2), ("again", 1)):
        fn = module.function(name, ["ptr %p"])
        fn.comment(f"this is {name}")
        fn.store("i64", number, "%p")
    driver = module.function("main", ["ptr %p"], linkage="")
    for name in ("one", "two", "again"):
        driver.call("void", name, [("ptr", "%p")])
    assert module.merge_equal() == 1
    text = module.text()
    assert "@again" not in text and text.count("call void @one(") == 2 and text.count("call void @two(") == 1
