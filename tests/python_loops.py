"""Hand-built loop programs, and ways to run them: for the tests of the Python printer and of what it prints."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusegraph.dtypes import DType, bool_, float32, int64, uint32
from fusegraph.ir import scalar
from fusegraph.ir.graph import Node
from fusegraph.ir.index import Axis, Index, Indirect, flatten_index, unflatten_index
from fusegraph.ir.location import Location
from fusegraph.ir.loops import Buffer, Loop, Program, Reduce, Stage, Store
from fusegraph.ir.scalar import Bound, Divides, Expr, Mask

Array = np.ndarray[Any, Any]
Of = Index.of


def axes(**extents: int) -> tuple[Axis, ...]:
    """Axes by name: axes(m=3, n=4)."""
    return tuple(Axis(name, extent) for name, extent in extents.items())


def program(loops: Loop | Sequence[Loop], *buffers: Buffer, name: str = "example") -> Program:
    """A program of `loops` over `buffers`."""
    inputs = tuple(buffer.name for buffer in buffers if buffer.role in ("input", "state"))
    outputs = tuple(buffer.name for buffer in buffers if buffer.role == "output")
    found = (loops,) if isinstance(loops, Loop) else tuple(loops)
    return Program(name, {buffer.name: buffer for buffer in buffers}, found, inputs, outputs)


def run(executable: Any, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Run on copies of `arrays` (outputs start as rubbish); gives every input, state and output, in shape."""
    buffers = [b for b in executable.program.buffers.values() if b.role not in ("temp", "local")]
    memory = {b.name: np.array(arrays[b.name]) if b.name in arrays else rubbish(b) for b in buffers}
    for buffer in buffers:
        assert memory[buffer.name].shape == buffer.shape
        assert memory[buffer.name].dtype == buffer.dtype
    executable.run(memory)
    return memory


def rubbish(buffer: Buffer) -> Array:
    """Memory that was never written."""
    return np.full(buffer.shape, 77).astype(buffer.dtype)


def indirect(value: Expr, extent: int) -> Index:
    """The index that `value` holds at run time."""
    return Index(0, ((Indirect(value, extent), 1),))


def ruff_complains(path: Path, *rules: str) -> str:
    """What `ruff format` would change in a file or folder, and what `ruff check` says (by its default rules)."""
    pytest.importorskip("ruff")
    options = ["--isolated", "--line-length", "100", "--no-cache", str(path)]
    check = ["check", "--quiet", *(["--select", ",".join(rules)] if rules else [])]
    commands = [[sys.executable, "-m", "ruff", *command, *options] for command in (["format", "--diff"], check)]
    return "".join(subprocess.run(command, capture_output=True, text=True).stdout for command in commands)


def node(op: str, shape: tuple[int, ...], dtype: DType = float32, line: int = 0, module: str = "") -> Node:
    """A graph node, for the comments in printed kernels."""
    return Node(op, (), {}, shape, dtype, Location("model.py", line, module))


# -- kernels --------------------------------------------------------------------------------------------------------


def softmax(rows: int, columns: int) -> Program:
    """out = softmax of x over its rows."""
    r, c = axes(r0=rows, c1=columns)
    x = scalar.load("x", (Of(r), Of(c)), float32)
    largest, total = scalar.acc("acc0", float32), scalar.acc("acc1", float32)
    exponential = scalar.op("exp", scalar.op("sub", x, largest))
    ratio = scalar.op("div", exponential, total)
    stages = (
        Stage(reduce_axes=(c,), reduces=(Reduce("acc0", "max", x, float32),)),
        Stage(reduce_axes=(c,), reduces=(Reduce("acc1", "sum", exponential, float32),)),
        Stage(axes=(c,), stores=(Store("out", (Of(r), Of(c)), ratio),)),
    )
    nodes = tuple(
        node(op, (rows, columns), line=12, module="Net.attention") for op in ("max", "sub", "exp", "sum", "div")
    )
    shape = (rows, columns)
    return program(
        Loop("softmax", (r,), stages, nodes=nodes),
        Buffer("x", shape, float32, "input"),
        Buffer("out", shape, float32, "output"),
    )


def linear_relu(m: int, n: int, k: int) -> Program:
    """out = relu(x @ w.T + b)."""
    i, j, c = axes(m0=m, n1=n, k2=k)
    product = scalar.op(
        "mul", scalar.load("x", (Of(i), Of(c)), float32), scalar.load("fc.weight", (Of(j), Of(c)), float32)
    )
    out = scalar.op("relu", scalar.op("add", scalar.acc("acc0", float32), scalar.load("fc.bias", (Of(j),), float32)))
    stages = (
        Stage(reduce_axes=(c,), reduces=(Reduce("acc0", "sum", product, float32),)),
        Stage(stores=(Store("out", (Of(i), Of(j)), out),)),
    )
    nodes = tuple(node(op, (m, n), line=7 + (op == "relu"), module="Net.fc") for op in ("matmul", "add", "relu"))
    return program(
        Loop("linear_relu", (i, j), stages, "contract", nodes),
        Buffer("x", (m, k), float32, "input"),
        Buffer("fc.weight", (n, k), float32, "state"),
        Buffer("fc.bias", (n,), float32, "state"),
        Buffer("out", (m, n), float32, "output"),
    )


def conv(batch: int, channels: int, maps: int, size: int, kernel: int, padding: int) -> Program:
    """out = conv2d(image, weight) with zero padding, by masked loads."""
    n, o, y, x, c, i, j = axes(n0=batch, o1=maps, y2=size, x3=size, c4=channels, i5=kernel, j6=kernel)
    row, column = Of(y) + i - padding, Of(x) + j - padding
    mask = (Bound(row, 0, size), Bound(column, 0, size))
    image = scalar.load("image", (Of(n), Of(c), row, column), float32, mask)
    weight = scalar.load("weight", (Of(o), Of(c), Of(i), Of(j)), float32)
    stages = (
        Stage(reduce_axes=(c, i, j), reduces=(Reduce("acc0", "sum", scalar.op("mul", image, weight), float32),)),
        Stage(stores=(Store("out", (Of(n), Of(o), Of(y), Of(x)), scalar.acc("acc0", float32)),)),
    )
    nodes = (node("conv", (batch, maps, size, size), line=30, module="Net.conv"),)
    return program(
        Loop("conv", (n, o, y, x), stages, "contract", nodes),
        Buffer("image", (batch, channels, size, size), float32, "input"),
        Buffer("weight", (maps, channels, kernel, kernel), float32, "state"),
        Buffer("out", (batch, maps, size, size), float32, "output"),
    )


def embedding_gradient(tokens: int, words: int, width: int) -> Program:
    """table[ids[t]] += gradient[t]: a scatter."""
    t, d = axes(t0=tokens, d1=width)
    word = indirect(scalar.load("ids", (Of(t),), int64), words)
    gradient = scalar.load("gradient", (Of(t), Of(d)), float32)
    stage = Stage(axes=(t, d), stores=(Store("table", (word, Of(d)), gradient, "add"),))
    nodes = (node("put_add", (words, width), line=44, module="Net.embedding"),)
    return program(
        Loop("put_add", (), (stage,), "scatter", nodes),
        Buffer("ids", (tokens,), int64, "input"),
        Buffer("gradient", (tokens, width), float32, "input"),
        Buffer("table", (words, width), float32, "state"),
    )


def dropout(rows: int, columns: int) -> Program:
    """out = x with elements dropped, by random bits."""
    r, c = axes(r0=rows, c1=columns)
    bits = scalar.philox(
        scalar.load("key", (), uint32),
        scalar.load("counter", (), uint32),
        flatten_index((Of(r), Of(c)), (rows, columns)),
    )
    share = scalar.op(
        "mul",
        scalar.op("cast", scalar.op("shift_right", bits, scalar.const(8, uint32)), dtype=float32),
        scalar.const(2**-24, float32),
    )
    kept = scalar.op("lt", share, scalar.const(0.9, float32), dtype=bool_)
    x = scalar.load("x", (Of(r), Of(c)), float32)
    out = scalar.op("where", kept, scalar.op("div", x, scalar.const(0.9, float32)), scalar.const(0, float32))
    stores = (
        Store("kept", (Of(r), Of(c)), kept),
        Store("out", (Of(r), Of(c)), out),
        Store("bits", (Of(r), Of(c)), bits),
    )
    shape = (rows, columns)
    return program(
        Loop("dropout", (r, c), (Stage(stores=stores),)),
        Buffer("key", (), uint32, "input"),
        Buffer("counter", (), uint32, "input"),
        Buffer("x", shape, float32, "input"),
        Buffer("kept", shape, bool_, "output"),
        Buffer("out", shape, float32, "output"),
        Buffer("bits", shape, uint32, "output"),
    )


def momentum_step(size: int) -> Program:
    """weight and velocity in place: both stores read what was there before."""
    (i,) = axes(i0=size)
    weight, velocity, gradient = (scalar.load(name, (Of(i),), float32) for name in ("weight", "velocity", "gradient"))
    lr = scalar.load("lr", (), float32)
    faster = scalar.op("add", scalar.op("mul", velocity, scalar.const(0.9, float32)), gradient)
    stores = (
        Store("velocity", (Of(i),), faster),
        Store("weight", (Of(i),), scalar.op("sub", weight, scalar.op("mul", lr, scalar.op("add", velocity, faster)))),
    )
    return program(
        Loop("momentum", (i,), (Stage(stores=stores),)),
        Buffer("lr", (), float32, "input"),
        Buffer("gradient", (size,), float32, "input"),
        Buffer("weight", (size,), float32, "state"),
        Buffer("velocity", (size,), float32, "state"),
    )


def dilated(size: int, step: int) -> Program:
    """out[i * step] = x[i], zero elsewhere: a divisibility mask, and the same element looked up through a 3-d view."""
    (i,) = axes(i0=size * step)
    mask: Mask = (Divides(Of(i), step),)
    x = scalar.load("x", (Of(i) // step,), float32, mask)
    parts = unflatten_index(Of(i), (size, step))
    other = scalar.load("y", parts, float32)
    stores = (Store("out", (Of(i),), x), Store("back", (Of(i) % step, Of(i) // step), other))
    return program(
        Loop("dilated", (i,), (Stage(stores=stores),)),
        Buffer("x", (size,), float32, "input"),
        Buffer("y", (size, step), float32, "input"),
        Buffer("out", (size * step,), float32, "output"),
        Buffer("back", (step, size), float32, "output"),
    )


def normalise(rows: int, columns: int) -> Program:
    """out = (x - mean) * rsqrt(variance + eps) * scale + shift, the differences kept in local memory."""
    r, c, c2 = axes(r0=rows, c1=columns, c2=columns)
    x = scalar.load("x", (Of(r), Of(c)), float32)
    count = scalar.const(columns, float32)
    mean = scalar.op("div", scalar.acc("acc0", float32), count)
    deviation = scalar.op(
        "rsqrt", scalar.op("add", scalar.op("div", scalar.acc("acc1", float32), count), scalar.const(1e-5, float32))
    )
    kept = scalar.load("centred", (Of(c),), float32)
    again = scalar.load("centred", (Of(c2),), float32)
    scaled = scalar.op("mul", scalar.op("mul", again, deviation), scalar.load("scale", (Of(c2),), float32))
    out = scalar.op("add", scaled, scalar.load("shift", (Of(c2),), float32))
    stages = (
        Stage(reduce_axes=(c,), reduces=(Reduce("acc0", "sum", x, float32),)),
        Stage(axes=(c,), stores=(Store("centred", (Of(c),), scalar.op("sub", x, mean)),)),
        Stage(reduce_axes=(c,), reduces=(Reduce("acc1", "sum", scalar.op("mul", kept, kept), float32),)),
        Stage(axes=(c2,), stores=(Store("out", (Of(r), Of(c2)), out),)),
    )
    nodes = tuple(
        node(op, (rows, columns), line=52, module="Net.norm")
        for op in ("sum", "div", "sub", "mul", "sum", "rsqrt", "add")
    )
    shape = (rows, columns)
    return program(
        Loop("layer_norm", (r,), stages, nodes=nodes),
        Buffer("x", shape, float32, "input"),
        Buffer("scale", (columns,), float32, "state"),
        Buffer("shift", (columns,), float32, "state"),
        Buffer("centred", (columns,), float32, "local"),
        Buffer("out", shape, float32, "output"),
    )


# -- every scalar operation -----------------------------------------------------------------------------------------


def operation_program(name: str, outputs: Mapping[str, Expr], inputs: Mapping[str, Array], count: int) -> Program:
    """One kernel that stores each of `outputs` (over axis `e0` of `count` elements) in a buffer of its name."""
    (e,) = axes(e0=count)
    stores = tuple(Store(buffer, (Of(e),), value) for buffer, value in outputs.items())
    loop = Loop(name, (e,), (Stage(stores=stores),))
    memory = [Buffer(buffer, array.shape, array.dtype, "input") for buffer, array in inputs.items()]
    memory += [Buffer(buffer, (count,), value.dtype, "output") for buffer, value in outputs.items()]
    return program(loop, *memory, name=name)


def reduce_program(op: str, dtype: DType, shape: tuple[int, ...], reduced: tuple[int, ...]) -> Program:
    """out = `op` of x over axes `reduced`."""
    every = tuple(Axis(f"i{number}", extent) for number, extent in enumerate(shape))
    kept = tuple(axis for number, axis in enumerate(every) if number not in reduced)
    value = scalar.load("x", [Of(axis) for axis in every], dtype)
    result = int64 if op.startswith("arg") else dtype
    stages = (
        Stage(reduce_axes=tuple(every[number] for number in reduced), reduces=(Reduce("acc0", op, value, result),)),
        Stage(stores=(Store("out", tuple(Of(axis) for axis in kept), scalar.acc("acc0", result)),)),
    )
    return program(
        Loop(op, kept, stages),
        Buffer("x", shape, dtype, "input"),
        Buffer("out", tuple(axis.extent for axis in kept), result, "output"),
    )
