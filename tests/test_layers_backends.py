"""Compiled layers and functions, values and gradients, beside torch, in float32.

Many cases share one compiled function, which returns the results and, by `autograd.grad`, the gradients of their
weighted sum. "cpu" and "python" run all cases and shapes. "numba" compiles the source that "python" runs, at a quarter
of a second a kernel: it takes the first shape of the plain cases (those whose name has one word).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn
from tests.layer_cases import FUNCTIONS, LAYERS, FunctionCase, LayerCase, Shape
from tests.oracles import Array, flat_outputs

torch = pytest.importorskip("torch", reason="torch is not installed: its results are what these are compared with")
pytestmark = pytest.mark.torch
BACKENDS = ["cpu", "numba", "python"]
TOLERANCE = 1e-5


@dataclass
class Work:
    """One case to run: `ours` and `theirs` map tensors to results; parameters also get gradients."""

    label: str
    arrays: list[Array]
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    parameters: Sequence[fg.Tensor] = ()
    their_parameters: Sequence[Any] = ()


def weight(shape: Shape, number: int) -> Array:
    """What the elements of a result count in the sum that is differentiated."""
    return np.random.default_rng(number).uniform(0.5, 1.5, shape).astype(np.float32)


def differentiated(x: Array) -> bool:
    """Whether a gradient is asked for: of floating point inputs."""
    return x.dtype.kind == "f"


def torch_results(work: Work) -> list[Array]:
    """Results, then gradients of inputs, then of parameters (0 where there is none)."""
    inputs = [torch.tensor(x, requires_grad=differentiated(x)) for x in work.arrays]
    outs = [out for out in flat_outputs(work.theirs(*inputs)) if out is not None]
    loss = sum(
        (out * torch.tensor(weight(tuple(out.shape), i))).sum() for i, out in enumerate(outs) if out.is_floating_point()
    )
    wanted = [x for x in inputs if x.requires_grad] + list(work.their_parameters)
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [out.detach().numpy() for out in outs] + [
        np.zeros(x.shape, np.float32) if g is None else g.numpy() for x, g in zip(wanted, grads, strict=True)
    ]


def fusegraph_results(works: Sequence[Work], backend: str) -> list[list[Array]]:
    """The same, from one compiled function for all cases."""

    def everything(operands: list[list[fg.Tensor]]) -> list[list[fg.Tensor]]:
        rows = []
        for work, tensors in zip(works, operands, strict=True):
            inputs = [x.detach().requires_grad_() if x.dtype.kind == "f" else x for x in tensors]
            outs = flat_outputs(work.ours(*inputs))
            floats = [(i, out) for i, out in enumerate(outs) if out.dtype.kind == "f"]
            loss: Any = sum((out * fg.from_numpy(weight(out.shape, i))).sum() for i, out in floats)
            wanted = [x for x in inputs if x.requires_grad] + list(work.parameters)
            grads = fg.autograd.grad(loss, wanted, allow_unused=True)
            rows.append(outs + [fg.zeros(x.shape) if g is None else g for x, g in zip(wanted, grads, strict=True)])
        return rows

    made = fg.compile(everything, backend=backend)([work.arrays for work in works])
    return [[np.asarray(part.detach()) for part in row] for row in made]


def differences(got: Sequence[Array], wanted: Sequence[Array], label: str) -> list[str]:
    """What differs, relative to the largest magnitude of each array (at least 0.1)."""
    if len(got) != len(wanted):
        return [f"{label}: {len(got)} results, wanted {len(wanted)}"]
    found = []
    for number, (a, b) in enumerate(zip(got, wanted, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            found.append(f"{label}, result {number}: {a.dtype}{a.shape}, wanted {b.dtype}{b.shape}")
        elif a.dtype.kind != "f":
            found += [f"{label}, result {number}"] * (not np.array_equal(a, b))
        else:
            scale = max(float(np.abs(b).max(initial=0.0)), 0.1)
            error = float(np.abs(a - b).max(initial=0.0)) / scale
            if not error <= TOLERANCE:
                found.append(f"{label}, result {number}: {error:.2g} of {scale:.3g}")
    return found


def run(works: Sequence[Work], backend: str) -> None:
    """Compare all cases."""
    problems = []
    for work, got in zip(works, fusegraph_results(works, backend), strict=True):
        problems += differences(got, torch_results(work), work.label)
    assert problems == []


def chosen(cases: Sequence[Any], group: str, backend: str) -> list[Any]:
    """The cases of a group that a backend runs."""
    of_group = [case for case in cases if case.group == group]
    if backend != "numba":
        return of_group
    covered = ("MultiheadAttention", "TransformerEncoder")  # by TransformerEncoderLayer
    return [case for case in of_group if " " not in case.name and case.name not in covered]


# -- functions --------------------------------------------------------------------------------------------------------


def function_works(cases: Sequence[FunctionCase], all_shapes: bool) -> list[Work]:
    """Cases times shapes."""
    found = []
    for case in cases:
        for number, arrays in enumerate(case.inputs(np.random.default_rng(11))):
            if number == 0 or all_shapes:
                label = f"{case.name}({', '.join(f'{a.dtype}{list(a.shape)}' for a in arrays)})"
                found.append(
                    Work(
                        label,
                        arrays,
                        lambda *xs, f=case.function: f(F, *xs),
                        lambda *xs, f=case.function: f(torch.nn.functional, *xs),
                    )
                )
    return found


def test_every_function_has_a_case() -> None:
    named = {name for case in FUNCTIONS for name in case.covers}
    assert set(F.__all__) - named - {"pad", "one_hot", "masked_max", "masked_mean", "dropout"} == set()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("group", sorted({case.group for case in FUNCTIONS}))
def test_functions(group: str, backend: str) -> None:
    run(function_works(chosen(FUNCTIONS, group, backend), backend != "numba"), backend)


# -- layers -----------------------------------------------------------------------------------------------------------


def layer_works(cases: Sequence[LayerCase], all_shapes: bool) -> list[Work]:
    """Our layer and torch's with the same parameters, on each shape of inputs."""
    found = []
    for case in cases:
        for number, arrays in enumerate(case.inputs(np.random.default_rng(12))):
            if number and not all_shapes:
                continue
            torch.manual_seed(0)
            ours, theirs = case.make(nn), case.make(torch.nn)
            ours.load_state_dict(
                {name: fg.tensor(value.detach().numpy()) for name, value in theirs.state_dict().items()}
            )
            ours.train(case.train)
            theirs.train(case.train)
            pairs = {name: (p, dict(theirs.named_parameters())[name]) for name, p in ours.named_parameters()}
            assert len(pairs) == len(list(theirs.parameters()))
            label = f"{case.name}({', '.join(str(list(a.shape)) for a in arrays)})"
            found.append(
                Work(
                    label,
                    arrays,
                    lambda *xs, m=ours, c=case: c.call(m, *xs),
                    lambda *xs, m=theirs, c=case: c.call(m, *xs),
                    [p for p, _ in pairs.values()],
                    [p for _, p in pairs.values()],
                )
            )
    return found


def test_every_layer_has_a_case() -> None:
    modules = {
        name for name in nn.__all__ if isinstance(getattr(nn, name), type) and issubclass(getattr(nn, name), nn.Module)
    }
    holders = {"Module", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict", "Dropout"}
    assert modules - holders - {case.name.partition(" ")[0] for case in LAYERS} == set()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("group", sorted({case.group for case in LAYERS}))
def test_layers(group: str, backend: str) -> None:
    if backend == "numba" and group != "norm":
        pytest.skip("numba: these classes call the functions that are tested above; python runs the same source")
    run(layer_works(chosen(LAYERS, group, backend), backend != "numba"), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics(momentum: float | None, backend: str) -> None:
    """Training updates them in place, several calls long; evaluation reads them."""
    rng = np.random.default_rng(13)
    ours, theirs = nn.BatchNorm2d(3, momentum=momentum), torch.nn.BatchNorm2d(3, momentum=momentum)
    compiled = fg.compile(ours, backend=backend)
    for training in (True, True, True, False):
        ours.train(training)
        theirs.train(training)
        x = rng.uniform(-1, 3, (5, 3, 4, 7)).astype(np.float32)
        with fg.no_grad():
            got = np.asarray(compiled(x))
        assert differences([got], [theirs(torch.tensor(x)).detach().numpy()], "output") == []
        for name, wanted in theirs.named_buffers():
            assert differences([np.asarray(dict(ours.named_buffers())[name])], [wanted.numpy()], name) == []
    assert [reason.partition(" ")[0] for reason in compiled.reasons][0] == "first"
    assert len(compiled.reasons) == 2, compiled.reasons


# -- what torch does not have, or not with the same numbers -----------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_draws_the_same_numbers_eager_and_compiled(backend: str) -> None:
    layer, x = nn.Dropout(0.3), np.random.default_rng(14).uniform(1, 2, (33, 7)).astype(np.float32)

    def function(x: fg.Tensor) -> tuple[fg.Tensor, ...]:
        x = x.detach().requires_grad_()
        out = F.dropout(layer(x), 0.5) * x
        return out, fg.autograd.grad(out.sum(), x)[0]

    compiled = fg.compile(function, backend=backend)
    fg.manual_seed(5)
    first = [[np.asarray(part.detach()) for part in function(fg.from_numpy(x))] for _ in range(3)]
    fg.manual_seed(5)
    for wanted in first:
        got = [np.asarray(part) for part in compiled(x)]
        assert differences(got, wanted, "dropout") == []
        np.testing.assert_array_equal(got[0] == 0, wanted[0] == 0)
    assert not np.array_equal(first[0][0] == 0, first[1][0] == 0), "each call draws new numbers"
    assert 0.25 < (first[0][0] != 0).mean() < 0.45
    layer.eval()
    assert differences([np.asarray(fg.compile(layer, backend=backend)(x))], [x], "evaluation") == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_mean_and_max(backend: str) -> None:
    rng = np.random.default_rng(15)
    x, lengths = rng.uniform(-1, 1, (5, 7, 3)).astype(np.float32), np.array([7, 1, 4, 0, 3])
    mask = np.arange(7) < lengths[:, None]

    def function(x: fg.Tensor, given: fg.Tensor) -> tuple[fg.Tensor, ...]:
        x = x.detach().requires_grad_()
        mean, largest = F.masked_mean(x, given, 1), F.masked_max(x, given, 1)
        return mean, largest, *fg.autograd.grad(mean.sum(), x), *fg.autograd.grad(largest.sum(), x)

    rows = [row[:n] if n else np.zeros((1, 3), np.float32) for row, n in zip(x, lengths, strict=True)]
    shares = np.where(mask, 1 / np.maximum(lengths, 1)[:, None], 0)[:, :, None] * np.ones(3)
    at = np.where(mask[:, :, None], x, -9)
    first = (np.arange(7)[:, None] == at.argmax(1)[:, None]) & mask[:, :, None]
    wanted = [np.stack([r.mean(0) for r in rows]), np.stack([r.max(0) for r in rows]), shares, first]
    for given in (lengths, mask):
        filled = np.where(mask[:, :, None], x, np.nan).astype(np.float32)
        got = [np.asarray(part) for part in fg.compile(function, backend=backend)(filled, given)]
        assert differences(got, [w.astype(np.float32) for w in wanted], "masked") == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_pad_and_one_hot(backend: str) -> None:
    x, ids = np.random.default_rng(16).uniform(-1, 1, (3, 5)).astype(np.float32), np.array([[0, 4], [2, 2]])
    got = fg.compile(lambda x, ids: (F.pad(x, (1, 2, 0, 3), value=0.5), F.one_hot(ids, 5)), backend=backend)(x, ids)
    wanted = (
        torch.nn.functional.pad(torch.tensor(x), (1, 2, 0, 3), value=0.5),
        torch.nn.functional.one_hot(torch.tensor(ids), 5),
    )
    assert differences([np.asarray(g) for g in got], [w.numpy() for w in wanted], "pad, one_hot") == []
