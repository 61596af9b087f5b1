"""The benchmark command: a minimal run of ours alone, its report, and the check of results. No times are asserted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import harness, report, roofline
from benchmarks.__main__ import main, parser, settings_of
from benchmarks.harness import Result, Settings, largest_difference, summary
from benchmarks.systems.cases import BATCHES, CASES


def test_a_quick_run_of_ours(tmp_path: Path) -> None:
    """One workload, one short round: the figures that a report needs are there, in JSON and in Markdown."""
    files = tmp_path / "out" / "result.json", tmp_path / "result.md"
    result = main(["--systems", "ours,torch-channels-last", "--workloads", "tiny-50", "--threads", "1", "--rounds", "1",
                   "--seconds", "0.01", "--no-roofline", "--json", str(files[0]), "--write", str(files[1])])  # fmt: skip
    assert json.loads(files[0].read_text()) == json.loads(json.dumps(result))
    (workload,) = result["workloads"]
    ours, other = workload["systems"]["ours"], workload["systems"]["torch-channels-last"]
    assert ours["note"] == "" and ours["error"] <= harness.TOLERANCE
    assert len(ours["rounds_s"]) == 1 and ours["step_s"] == ours["rounds_s"][0] > 0
    assert all(ours[name] > 0 for name in ("import_s", "cold_s", "warm_s", "warm_import_s"))
    assert other["step_s"] is None and other["note"] != "", "no images: shown as not measured"
    assert workload["best_rival"] is None and workload["ratio"] is None
    page = files[1].read_text()
    assert CASES["tiny-50"].title in page and other["note"] in page


@pytest.mark.parametrize("name", CASES)
def test_workload_inputs_are_the_same_each_time(name: str) -> None:
    """Systems in different processes start from the same weights and data."""
    case = CASES[name]
    if case.shape:
        case = dataclasses.replace(case, shape=(8, 16))
    first, again = case.batches(), case.batches()
    assert len(first) == BATCHES
    for a, b in zip(first, again, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(first[0][0], first[1][0]), "a run goes round different batches"
    weights = case.parameters()
    assert weights.keys() == case.parameters().keys() and (case.kind in ("train", "infer")) == bool(weights)
    assert all(np.array_equal(value, case.parameters()[key]) for key, value in weights.items())


def test_wrong_results_are_seen() -> None:
    """A value that is off, missing, not a number or of another shape."""
    exact = {"0/0": np.array([1.0, -2.0]), "weight/w": np.array([10.0, 10.5])}
    start = {"w": np.array([10.0, 10.0], np.float32)}
    good = {name: value.copy() for name, value in exact.items()}
    assert largest_difference(good, exact, start) == 0

    def with_change(name: str, value: Any) -> float:
        return largest_difference({**good, name: value}, exact, start)

    assert with_change("0/0", np.array([1.0, -2.02])) == pytest.approx(0.01)
    of_change = with_change("weight/w", np.array([10.0, 10.55]))
    assert of_change == pytest.approx(0.1, rel=1e-4), "relative to the change of the weight"
    assert with_change("weight/w", np.array([10.0, 10.5 + 1e-6])) == 0, "float32 cannot tell these apart"
    one_of_two = largest_difference({**good, "weight/w": np.array([10.0, 10.55])}, exact, start, adam=True)
    assert one_of_two == pytest.approx(0.1 / np.sqrt(2), rel=1e-4), "Adam: the root of the mean square"
    assert with_change("0/0", np.array([1.0, np.nan])) == float("inf")
    assert with_change("0/0", np.array([1.0])) == float("inf")
    assert largest_difference({"0/0": exact["0/0"]}, exact, start) == float("inf")


def test_ratio_to_the_best_rival() -> None:
    """Our other systems are no rivals, nor are those without a figure."""
    results = [Result("ours", step_s=2.0), Result("torch", step_s=6.0), Result("jax", step_s=3.0),
               Result("tinygrad", note="not installed"), Result("ours-eager", step_s=1.0)]  # fmt: skip
    assert summary(results) == {"best_rival": "jax", "ratio": 1.5}
    assert summary(results[:1]) == {"best_rival": None, "ratio": None}
    assert report.geometric_mean([1.0, 4.0]) == 2.0


def test_options() -> None:
    """Beginnings of names stand for all of them; wrong names are refused with the right ones."""
    settings = settings_of(
        parser().parse_args(["--workloads", "mlp,tiny-50", "--systems", "ours,jax", "--rounds", "2"])
    )
    assert settings.cases == (
        "mlp-16",
        "mlp-64",
        "mlp-256",
        "mlp-1024",
        "mlp-16-adam",
        "mlp-64-adam",
        "mlp-256-adam",
        "tiny-50",
    )
    assert settings.systems == ("ours", "jax") and settings.rounds == 2
    quick = settings_of(parser().parse_args(["--quick"]))
    assert all(CASES[name].quick for name in quick.cases) and len(quick.cases) < len(CASES)
    with pytest.raises(SystemExit, match="there is no system 'jux'; there are: ours"):
        settings_of(parser().parse_args(["--systems", "jux"]))
    with pytest.raises(SystemExit, match="there is no workload 'lanet'"):
        settings_of(parser().parse_args(["--workloads", "lanet"]))


def test_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings for one library do not reach the rivals."""
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Zen")
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "1024")
    environment = harness.environment(2, tmp_path)
    assert "OPENBLAS_CORETYPE" not in environment and "OPENBLAS_L2_SIZE" not in environment
    assert environment["OMP_NUM_THREADS"] == "2"


def test_missing_systems_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that is not installed gets a note; a run goes on without it."""
    monkeypatch.setattr(harness, "installed", lambda system: False)
    monkeypatch.setattr(harness, "_reference", lambda case, settings, folder: {})
    (result,) = harness.run_case(CASES["tiny-50"], Settings(("jax",), ("tiny-50",)))
    assert result.note == "not installed" and result.step_s is None
    assert harness.line(result).endswith("not installed")


def test_roofline_kernels_compute_what_they_say() -> None:
    """The triad's and the sum's numbers; the figures are positive."""
    lanes = roofline.llvm.target().float_lanes
    text = roofline.triad_ir("triad", lanes, "") + roofline.read_ir(lanes)
    code = roofline.llvm.load(roofline.llvm.compile_ir(text), ("triad", "read"))
    a, b, c = (roofline._aligned(256) for _ in range(3))
    b[:], c[:] = np.arange(256), np.arange(256) % 7
    roofline._function(code, "triad", 3)(a.ctypes.data, b.ctypes.data, c.ctypes.data, 256)
    assert np.array_equal(a, b + 3 * c)
    total = float(a.sum())
    roofline._function(code, "read", 1)(a.ctypes.data, 256)
    assert float(a[:lanes].sum()) == total
    measured = roofline.measure(2, length=1 << 12, steps=100, repeats=1)
    assert min(measured.gflops, measured.triad, measured.triad_streaming, measured.read) > 0
