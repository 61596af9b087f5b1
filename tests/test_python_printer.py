"""The printed Python of loop programs: its text, its names, the errors of its executables."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import python_loops as loops

from fusegraph.codegen.python import print_loop_source, print_program_source, step_parameters
from fusegraph.dtypes import SUPPORTED, float32, int64
from fusegraph.errors import CompilerError, IndexRangeError
from fusegraph.ir import scalar
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Guard, Loop, Program, Stage, Store
from fusegraph.runtime.guards import check_guards
from fusegraph.runtime.numba_backend import NumbaExecutable, PythonExecutable

GOLDEN = Path(__file__).parent / "golden"
Of = Index.of
rng = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    """Standard normal float32."""
    return rng.normal(size=shape).astype(np.float32)


# -- names, errors, guards ------------------------------------------------------------------------------------------


def test_awkward_names() -> None:
    """Buffers and axes named by keywords, builtins, helpers or no identifiers; some clash after cleaning."""
    names = ["for", "max", "np", "relu", "0.weight", "0_weight", "_0_weight", "step", "x y", "at", "total", "i"]
    (i,) = (Axis("i7", 3),)
    total = scalar.load(names[0], (Of(i),), float32)
    for name in names[1:]:
        total = scalar.op("add", total, scalar.op("relu", scalar.load(name, (Of(i),), float32)))
    buffers = [Buffer(name, (3,), float32, "input") for name in names] + [Buffer("out", (3,), float32, "output")]
    program = loops.program(Loop("class", (i,), (Stage(stores=(Store("out", (Of(i),), total),)),)), *buffers)
    arrays = {name: normal(3) for name in names}
    found = loops.run(PythonExecutable(program), arrays)["out"]
    wanted = arrays["for"] + sum(np.maximum(arrays[name], 0) for name in names[1:])
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_an_axis_outside_of_its_loop_is_refused() -> None:
    i, j = loops.axes(i0=3, j1=4)
    program = loops.program(
        Loop("wrong", (i,), (Stage(stores=(Store("out", (Of(i),), scalar.load("x", (Of(j),), float32)),)),)),
        Buffer("x", (4,), float32, "input"),
        Buffer("out", (3,), float32, "output"),
    )
    with pytest.raises(CompilerError, match="kernel wrong: index j1 uses axis j1 outside of its loop"):
        print_program_source(program)


def test_two_kernels_of_one_name_are_refused() -> None:
    example = loops.softmax(2, 2)
    with pytest.raises(CompilerError, match="two kernels are called 'softmax'"):
        print_program_source(example.with_loops((*example.loops, *example.loops)))


def test_arrays_that_do_not_fit_are_refused() -> None:
    executable = PythonExecutable(loops.softmax(2, 3))
    good = {"x": np.zeros((2, 3), np.float32), "out": np.zeros((2, 3), np.float32)}
    for name, bad in (
        ("x", np.zeros((2, 3))),
        ("out", np.zeros((2, 4), np.float32)),
        ("x", np.zeros((3, 2), np.float32).T),
    ):
        with pytest.raises(CompilerError, match=f"'{name}' must be C-contiguous float32"):
            executable.run({**good, name: bad})
    with pytest.raises(CompilerError, match="no array was given for output 'out'"):
        executable.run({"x": good["x"]})


def guarded(allow: int | None) -> Program:
    """A program with a guard on `ids`, and a state that it changes."""
    example = loops.embedding_gradient(4, 5, 2)
    guard = Guard("ids", 0, 5, allow, "token id", "model.py:44 Net.embedding")
    return Program(example.name, example.buffers, example.loops, example.inputs, example.outputs, (guard,))


def test_guards_name_the_value_its_place_and_the_line() -> None:
    program = guarded(None)
    table = normal(5, 2)
    arrays = {"ids": np.array([1, 4, 7, 9]), "gradient": normal(4, 2), "table": table.copy()}
    with pytest.raises(IndexRangeError) as caught:
        PythonExecutable(program).run(arrays)
    message = str(caught.value)
    for part in (
        "token id 7 at [2] of 'ids', int64[4]",
        "outside of [0, 5)",
        "model.py:44 Net.embedding",
        "Nothing was changed",
    ):
        assert part in message
    np.testing.assert_array_equal(arrays["table"], table)


def test_guards_allow_one_value_and_pass_good_ones() -> None:
    program = guarded(-100)
    check_guards(program, {"ids": np.array([0, 4, -100, 2])})
    check_guards(guarded(None), {"ids": np.array([0, 4, 3, 2])})
    with pytest.raises(IndexRangeError, match=r"token id -1 at \[1\].*\(or be -100\)"):
        check_guards(program, {"ids": np.array([0, -1, -100, 2])})


def test_guards_of_shaped_and_unsigned_arrays() -> None:
    program = Program(
        "p",
        {"x": Buffer("x", (2, 3), SUPPORTED["uint8"], "input")},
        (),
        ("x",),
        (),
        (Guard("x", -1, 200, -7, "label", ""),),
    )
    check_guards(program, {"x": np.full((2, 3), 199, np.uint8)})
    with pytest.raises(IndexRangeError, match=r"label 201 at \[1, 2\] of 'x'"):
        check_guards(program, {"x": np.array([[0, 1, 2], [3, 4, 201]], np.uint8)})
    empty = Program(
        "p", {"x": Buffer("x", (0,), int64, "input")}, (), ("x",), (), (Guard("x", 0, 1, None, "label", ""),)
    )
    check_guards(empty, {"x": np.zeros(0, np.int64)})


def test_read_only_inputs_run() -> None:
    x = normal(2, 3)
    x.flags.writeable = False
    out = np.empty((2, 3), np.float32)
    NumbaExecutable(loops.softmax(2, 3)).run({"x": x, "out": out})
    np.testing.assert_allclose(out.sum(1), 1, rtol=1e-6)


# -- text -----------------------------------------------------------------------------------------------------------


EXAMPLES = {
    "softmax": lambda: loops.softmax(64, 10),
    "linear_relu": lambda: loops.linear_relu(64, 120, 400),
    "conv": lambda: loops.conv(16, 4, 8, 28, 3, 1),
    "embedding_gradient": lambda: loops.embedding_gradient(128, 1000, 50),
    "dropout": lambda: loops.dropout(64, 120),
    "layer_norm": lambda: loops.normalise(32, 256),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_golden_text(name: str, request: pytest.FixtureRequest) -> None:
    """The printed module, letter by letter. After a wanted change: pytest --update-golden, then read the diff."""
    path, text = GOLDEN / f"{name}.py.txt", print_program_source(EXAMPLES[name]())
    if request.config.getoption("--update-golden", default=False):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", EXAMPLES)
def test_text_is_formatted(name: str, tmp_path: Path) -> None:
    """As black and ruff format it, at 100 columns."""
    path = tmp_path / "printed.py"
    path.write_text(print_program_source(EXAMPLES[name]()))
    assert loops.ruff_complains(path) == ""


def test_a_kernel_alone_and_in_its_program() -> None:
    """print_loop_source gives the function that stands in the module; its parameters: buffers read, then written."""
    program = loops.linear_relu(2, 3, 4)
    source = print_loop_source(program.loops[0], program)
    assert source in print_program_source(program)
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    assert [argument.arg for argument in function.args.args] == ["x", "fc_weight", "fc_bias", "out"]
    assert "matmul, add, relu." in source and "model.py:7 (Net.fc), model.py:8 (Net.fc)" in source
    assert step_parameters(program) == ("x", "fc.weight", "fc.bias", "out")


# -- how values are placed ------------------------------------------------------------------------------------------


def test_axes_of_one_element_have_no_loop() -> None:
    source = print_program_source(loops.softmax(1, 5))
    assert "for r in" not in source
    assert "for c in range(5):" in source


def deep_program(length: int) -> Program:
    """A chain of `length` additions at one point."""
    value = scalar.load("x", (), float32)
    for _ in range(length):
        value = scalar.op("add", scalar.op("tanh", value), scalar.const(0.5, float32))
    return loops.program(
        Loop("deep", (), (Stage(stores=(Store("out", (), value),)),)),
        Buffer("x", (), float32, "input"),
        Buffer("out", (), float32, "output"),
    )


def test_long_chains_are_broken_into_variables() -> None:
    """No recursion limit, no endless lines."""
    program = deep_program(1500)
    source = print_program_source(program)
    assert max(map(len, source.splitlines())) <= 100
    found = loops.run(PythonExecutable(program), {"x": np.float32(0.5)})["out"]
    value = np.float32(0.5)
    for _ in range(1500):
        value = np.tanh(value) + np.float32(0.5)
    np.testing.assert_allclose(found, value, rtol=1e-5)


def test_shared_values_are_computed_once() -> None:
    """exp(x - max) is read twice in one stage: one call."""
    (i,) = loops.axes(e0=4)
    e = scalar.op("exp", scalar.load("x", (Of(i),), float32))
    outputs = {"a": scalar.op("add", e, scalar.const(1, float32)), "b": scalar.op("mul", e, e)}
    source = print_program_source(loops.operation_program("shared", outputs, {"x": normal(4)}, 4))
    assert source.count("np.exp(") == 1


def test_invariant_values_leave_the_loop() -> None:
    """sqrt(s[r]) does not depend on the inner axis."""
    r, c = loops.axes(r0=3, c1=4)
    value = scalar.op(
        "mul", scalar.load("x", (Of(r), Of(c)), float32), scalar.op("sqrt", scalar.load("s", (Of(r),), float32))
    )
    program = loops.program(
        Loop("scaled", (r, c), (Stage(stores=(Store("out", (Of(r), Of(c)), value),)),)),
        Buffer("x", (3, 4), float32, "input"),
        Buffer("s", (3,), float32, "input"),
        Buffer("out", (3, 4), float32, "output"),
    )
    lines = print_program_source(program).splitlines()
    assert lines.index("        root = np.sqrt(s[r])") == lines.index("    for r in range(3):") + 1
    x, s = normal(3, 4), np.abs(normal(3))
    np.testing.assert_allclose(
        loops.run(PythonExecutable(program), {"x": x, "s": s})["out"], x * np.sqrt(s)[:, None], rtol=1e-6
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: loops.softmax(4, 9),
        lambda: loops.conv(1, 2, 2, 4, 3, 1),
        lambda: loops.dropout(4, 5),
        lambda: loops.normalise(3, 4),
        lambda: loops.momentum_step(4),
    ],
    ids=["softmax", "conv", "dropout", "norm", "sgd"],
)
def test_float32_stays_float32(make: Any) -> None:
    """No variable of a kernel over float32 has another floating point type (literals inside of np.float32(...) do)."""
    executable = NumbaExecutable(make())
    for kernel in executable.kernels.values():
        for overload in kernel.overloads.values():
            types = overload.type_annotation.typemap
            literals = ("const", "load_attr", "unary_negative")  # 0.5, np.inf, -np.inf
            wide = [
                name
                for name, kind in types.items()
                if "float64" in str(kind) and not any(part in name for part in literals)
            ]
            assert "float32" in map(str, types.values())
            assert not wide, wide


def test_infinities_survive_printing() -> None:
    """np.inf, -np.inf and np.nan as constants; math is imported where erf is used, and only there."""
    (i,) = loops.axes(e0=2)
    x = scalar.load("x", (Of(i),), float32)
    source = print_program_source(loops.operation_program("e", {"out": scalar.op("erf", x)}, {"x": normal(2)}, 2))
    assert "import math\n" in source and "math.erf(" in source
    assert "import math" not in print_program_source(loops.softmax(2, 2))
    found = loops.run(
        PythonExecutable(loops.operation_program("e", {"out": scalar.op("erf", x)}, {"x": np.float32([0.5, -1])}, 2)),
        {"x": np.float32([0.5, -1])},
    )["out"]
    np.testing.assert_allclose(found, [math.erf(0.5), math.erf(-1)], rtol=1e-6)
