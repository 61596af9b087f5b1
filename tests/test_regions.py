"""Regions that must be one kernel, fusions one by one, the one that changes a result, what differs between two compiles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn
from fusegraph.errors import FusionError, OptionError
from fusegraph.inspect.bisect import bisect
from fusegraph.ir import scalar
from fusegraph.passes import merge

X = np.random.default_rng(3).standard_normal((6, 10)).astype(np.float32)


def softmax_in_a_region(x: Any) -> Any:
    with fg.region("softmax"):
        top = x.max(1, keepdim=True)
        top = top[0] if isinstance(top, tuple) else top
        e = (x - top).exp()
        y = e / e.sum(1, keepdim=True)
    return y


def two_products(x: Any) -> Any:
    with fg.region("products"):
        y = x @ x.T  # the first
        return y @ x  # the second


# -- fuse="require" -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "python", "reference"])
def test_a_region_that_fuses_compiles_as_any(backend: str) -> None:
    got = fg.compile(softmax_in_a_region, fuse="require", backend=backend)(X)
    np.testing.assert_allclose(np.asarray(got), np.asarray(F.softmax(fg.tensor(X), 1)), rtol=1e-5)


def test_a_region_that_does_not_fuse_names_rule_and_lines() -> None:
    first = two_products.__code__.co_firstlineno + 2
    with pytest.raises(FusionError) as caught:
        fg.compile(two_products, fuse="require")(X)
    message = str(caught.value)
    assert "'products' of two_products is 2 kernels" in message
    assert f"matmul at {__file__}:{first} into matmul at {__file__}:{first + 1}" in message
    assert "two contractions do not share a register tile" in message and "fuse=True" in message


def test_a_refused_region_changes_nothing() -> None:
    model = nn.Linear(3, 3)
    opt = fg.optim.SGD(model.parameters(), lr=0.1)

    @fg.compile(fuse="require")
    def step(x: Any) -> Any:
        opt.zero_grad()
        with fg.region("all"):
            loss = model(x).square().sum()
            loss.backward()
            opt.step()
        return loss

    before = [p.detach().numpy().copy() for p in model.parameters()]
    with pytest.raises(FusionError, match="'all'"):
        step(np.ones((2, 3), np.float32))
    for a, b in zip(before, model.parameters(), strict=True):
        np.testing.assert_array_equal(a, b.detach().numpy())
        assert b.grad is None


def test_gradients_are_in_a_region_only_if_backward_is_called_there() -> None:
    def loss_of(x: Any) -> Any:
        with fg.region("forward"):
            return (x.exp() * 2.0).sum()

    def gradient(x: Any) -> Any:
        return fg.grad(loss_of)(x)

    program = fg.compile(gradient).explain(X).programs[0]
    regions = {node["op"]: node["region"] for node in program["graph"]["nodes"] if node["kernels"]}
    assert regions["exp"] == "forward" and "" in regions.values()


def test_require_without_a_region_says_how_to_name_one() -> None:
    with pytest.raises(OptionError, match=r"with fusegraph.region\(\"name\"\)"):
        fg.compile(lambda x: x.exp(), fuse="require")(X)


def test_regions_nest_and_end() -> None:
    def function(x: Any) -> Any:
        with fg.region("outer"):
            y = x.exp()
            with fg.region("inner"):
                z = y.tanh()
            w = z + y
        return w.sqrt()

    compiled = fg.compile(function, fuse="require")
    nodes = compiled.explain(X).programs[0]["graph"]["nodes"]
    assert {node["op"]: node["region"] for node in nodes if node["op"] in ("exp", "tanh", "add", "sqrt")} == {
        "exp": "outer", "tanh": "outer/inner", "add": "outer", "sqrt": "",
    }  # fmt: skip
    for name in ("", "a/b", 3):
        with pytest.raises(OptionError, match="region's name"), fg.region(name):  # type: ignore[arg-type]
            pass


def test_a_region_is_checked_after_a_hit_of_the_cache_too(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEGRAPH_CACHE_DIR", str(tmp_path))
    fg.compile(two_products)(X)
    with pytest.raises(FusionError):
        fg.compile(two_products, fuse="require")(X)
    assert fg.compile(two_products).explain(X).programs[0]["from_cache"]


def test_wrong_values_of_fuse_are_refused() -> None:
    with pytest.raises(OptionError, match="'require', not 'always'"):
        fg.compile(lambda x: x, fuse="always")
    for limit in (-1, 1.5, True):
        with pytest.raises(OptionError, match="0 or more"):
            fg.compile(lambda x: x, fuse_limit=limit)  # type: ignore[arg-type]


# -- one fusion after the other ----------------------------------------------------------------------------------------------


def layers(x: Any) -> Any:
    y = F.layer_norm(x, (10,))
    return (F.softmax(y @ y.T, 1) @ y).tanh().sum(0)


def test_each_fusion_makes_one_kernel_of_two() -> None:
    merges = fg.compile(layers).compiled_for(X).artifact.fused[1].merges
    assert len(merges) > 3
    unfused = fg.compile(layers, fuse=False).explain(X).kernels
    expected = np.asarray(layers(fg.tensor(X)))
    for limit in range(len(merges) + 2):
        compiled = fg.compile(layers, fuse_limit=limit)
        assert compiled.explain(X).kernels == unfused - min(limit, len(merges))
        np.testing.assert_allclose(np.asarray(compiled(X)), expected, rtol=2e-4, atol=1e-5)
        done = compiled.compiled_for(X).artifact.fused[1].merges
        assert done == merges[: len(done)]


def planted(monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    """A bug in fusion: what computes `op` in a kernel that a producer is merged into gives its values + 1."""
    right = merge.merge_vertical

    def has_it(root: Any) -> bool:
        return any(part.op == op for part in scalar.walk([root.value]))

    def wrong(a: Any, b: Any) -> Any:
        joined = right(a, b)
        one = {root.buffer: scalar.const(1.0, root.value.dtype) for root in b.roots if has_it(root)}
        roots = [
            replace(root, value=scalar.op("add", root.value, one[root.buffer])) if root.buffer in one else root
            for root in joined.roots
        ]
        return replace(joined, roots=tuple(roots))

    monkeypatch.setattr(merge, "merge_vertical", wrong)
    monkeypatch.setenv("FUSEGRAPH_CACHE_SIZE_MB", "0")


@pytest.mark.parametrize("backend", ["cpu", "python"])
def test_bisect_names_the_fusion_that_changes_a_result(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bisect(fg.compile(layers, backend=backend), X).culprit is None
    planted(monkeypatch, "exp")
    found = bisect(fg.compile(layers, backend=backend), X)
    assert found.culprit is not None and found.number is not None
    assert "exp" in found.culprit.consumer
    assert (found.result, found.unfused) == ("output 0", "")
    assert f"fusion {found.number} of {found.fusions} changes output 0" in str(found)
    assert f"{__file__}:{layers.__code__.co_firstlineno + 2}" in str(found)
    right = fg.compile(layers, backend=backend, fuse_limit=found.number - 1)(X)
    wrong = fg.compile(layers, backend=backend, fuse_limit=found.number)(X)
    expected = np.asarray(layers(fg.tensor(X)))
    np.testing.assert_allclose(np.asarray(right), expected, rtol=2e-4, atol=1e-5)
    assert np.abs(np.asarray(wrong) - expected).max() > 0.01


def test_bisect_leaves_states_alone_and_looks_at_them(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = fg.tensor(np.ones(10, np.float32))

    def step(x: Any) -> Any:
        weight.copy_((x.sum(0) * 0.5).tanh())
        return x.max()

    planted(monkeypatch, "tanh")
    compiled = fg.compile(step)
    before = weight.numpy().copy()
    found = bisect(compiled, X)
    np.testing.assert_array_equal(weight.numpy(), before)
    assert found.culprit is not None and found.result == "captured"


def test_bisect_of_what_is_wrong_without_fusion_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusegraph.ir import interpret

    right = interpret.run
    monkeypatch.setattr(interpret, "run", lambda graph, arrays: ([a + 1 for a in right(graph, arrays)[0]], []))
    found = bisect(fg.compile(layers), X)
    assert found.culprit is None and found.unfused and "wrong without any fusion" in str(found)
    with pytest.raises(OptionError, match="fuses nothing"):
        bisect(fg.compile(layers, backend="reference"), X)


def test_bisect_goes_on_to_the_backward_program(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fg.compile(nn.Sequential(nn.Linear(10, 4), nn.Tanh(), nn.Linear(4, 2)))
    assert bisect(model, X).culprit is None
    assert bisect(model, X).name.endswith("_backward")
    assert bisect(model, X, tolerance=1e-12).culprit is not None or bisect(model, X, tolerance=1e-12).unfused


# -- diff --------------------------------------------------------------------------------------------------------------------


def test_diff_of_a_fused_and_an_unfused_compile() -> None:
    fused, unfused = fg.compile(layers), fg.compile(layers, fuse=False)
    fused(X), unfused(X)
    found = fg.diff(unfused, fused)
    assert found and found.totals["kernels"] == (unfused.explain().kernels, fused.explain().kernels)
    a, b = (explanation.programs[0]["totals"] for explanation in (unfused.explain(), fused.explain()))
    assert found.totals["bytes_read"] == (a["bytes_read"], b["bytes_read"])
    assert found.same + len(found.lost) + len(found.changed) == unfused.explain().kernels
    assert found.same + len(found.gained) + len(found.changed) == fused.explain().kernels
    text = str(found)
    assert "kernels" in text and "->" in text and " - " in text
    assert found.to_dict()["totals"]["kernels"] == list(found.totals["kernels"])


def test_diff_of_equals_is_empty() -> None:
    explanations = [fg.compile(layers).explain(X) for _ in range(2)]
    found = fg.diff(*explanations)
    assert not found and found.same == explanations[0].kernels
    assert not fg.diff(explanations[0].to_dict(), explanations[1])


def test_diff_pairs_kernels_that_gained_an_operation() -> None:
    def before(x: Any) -> Any:
        return (x.exp() * 2.0).tanh()

    def after(x: Any) -> Any:
        return ((x.exp() * 2.0).tanh() + 1.0).sqrt()

    found = fg.diff(fg.compile(before).explain(X), fg.compile(after).explain(X))
    assert len(found.changed) == 1 and not found.lost and not found.gained
    assert "(+add +sqrt)" in str(found)


def test_diff_refuses_what_was_not_compiled() -> None:
    with pytest.raises(OptionError, match="call the function first"):
        fg.diff(fg.compile(layers), fg.compile(layers))
    with pytest.raises(OptionError, match="not int"):
        fg.diff(1, 2)
