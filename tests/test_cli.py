"""The command line: every command as a process once, and in process; errors of the user in one line, with the right exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusegraph.cli import main
from fusegraph.cli.errors import UserError
from fusegraph.cli.inputs import make_inputs
from fusegraph.runtime import calibration
from fusegraph.runtime.calibration import Calibration, Roofline

MODELS = """
import numpy as np
import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        return self.linear(x).tanh()


class Wide(Net):
    def __init__(self, width):
        super().__init__()


model = Net()
opt = optim.SGD(model.parameters(), lr=0.1)


@fg.compile
def step(x, y):
    opt.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    opt.step()
    return loss


def function(x, scale):
    return x.exp() * scale


def make():
    return Net()


def broken():
    raise ValueError("no weights\\nat hand")


def fails(x):
    return x.nonsense()


number = 3
"""
STEP = ["small_models:step", "--input", "5x6:float32", "--input", "5:int64:0..2"]
NET = ["small_models:Net", "-i", "4x6"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A current folder with a module in it, and a machine that was measured."""
    (tmp_path / "small_models.py").write_text(MODELS)
    line = Roofline(1, 1e6, ((1, 1e6), (2, 1e6)))
    monkeypatch.setattr(calibration, "stored", lambda: Calibration(line, line))
    monkeypatch.setattr(calibration, "measure_again", lambda: Calibration(line, line))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("small_models", None)


def process(*arguments: str, program: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))}
    command = [*(program or [sys.executable, "-m", "fusegraph"]), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)


def output(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(list(arguments)) == code
    return capsys.readouterr().out


# -- as a process ---------------------------------------------------------------------------------------------------------


def test_explain_of_an_example_as_a_process() -> None:
    pytest.importorskip("rich")
    pytest.importorskip("safetensors")
    done = process("explain", "examples.mnist:step", "--input", "2x1x28x28:float32", "--input", "2:int64:0..9", "--backend", "reference")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Net.conv1" in done.stdout and "not fused (dearest first)" in done.stdout


def test_explain_of_the_other_example_as_a_process() -> None:
    pytest.importorskip("rich")
    pytest.importorskip("safetensors")
    inputs = ["--input", "3x20:int64:0..4999", "--input", "3:int64:5..20", "--input", "3:int64:0..1"]
    done = process("explain", "examples.sentiment:step", *inputs, "--backend", "reference", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["programs"][0]["kernels"]


def test_an_error_of_a_process_is_one_line_without_traceback() -> None:
    done = process("explain", "small_models:stop", "--input", "3")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "did you mean step" in done.stderr
    usage = process("explain")
    assert usage.returncode == 2 and "usage: fusegraph explain" in usage.stderr
    assert "Traceback" not in done.stderr + usage.stderr


def test_the_installed_script_is_the_same_program() -> None:
    script = Path(sys.executable).with_name("fusegraph")
    if not script.exists():
        pytest.skip("the script is not installed in this environment")
    assert process("--version", program=[str(script)]).stdout == process("--version").stdout != ""


def test_doctor_and_cache_as_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEGRAPH_CACHE_DIR", str(tmp_path / "cache"))
    done = process("doctor")
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == ["fusegraph", "packages", "cpu", "threads", "limits", "cuda", "cache"]
    assert "not measured yet" in done.stdout and str(tmp_path / "cache") in done.stdout


def test_output_that_is_cut_off_is_no_error() -> None:
    command = f"{sys.executable} -m fusegraph explain small_models:step -i 5x6 -i 5:int64:0..2 --json | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, timeout=240, check=False)  # fmt: skip
    assert done.stdout == "{\n" and done.stderr == "" and done.returncode == 0


# -- commands -----------------------------------------------------------------------------------------------------------------


def test_explain_has_three_forms(capsys: pytest.CaptureFixture[str]) -> None:
    assert "step: " in output(capsys, "explain", *STEP)
    report = json.loads(output(capsys, "explain", *STEP, "--json"))
    assert report["name"] == "step" and report["backend"] == "cpu"
    assert output(capsys, "explain", *STEP, "--markdown").startswith("## step")


@pytest.mark.parametrize("target", ["small_models:Net", "small_models:model", "small_models:model.linear"])
def test_classes_instances_and_parts_are_targets(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(output(capsys, "explain", target, "-i", "4x6", "--json"))
    assert [program["phase"] for program in report["programs"]] == ["forward", "backward"]


def test_a_function_that_makes_the_target_is_called_if_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Net" in output(capsys, "explain", "small_models:make", "-i", "4x6", "--call")
    assert main(["explain", "small_models:broken", "--call"]) == 1
    error = capsys.readouterr().err
    assert (
        "calling small_models:broken failed: ValueError: no weights at hand at" in error and "small_models.py:" in error
    )


def test_options_reach_the_compiler(capsys: pytest.CaptureFixture[str]) -> None:
    def kernels(*options: str) -> int:
        return len(json.loads(output(capsys, "explain", *STEP, "--json", *options))["programs"][0]["kernels"])

    assert kernels() < kernels("--fuse-limit", "1") < kernels("--fuse-limit", "0") == kernels("--no-fuse")
    report = json.loads(output(capsys, "explain", *STEP, "--json", "--backend", "python", "--exact", "--disable", "simplify"))  # fmt: skip
    assert report["backend"] == "python"
    assert "simplify" not in {run["name"] for run in report["programs"][0]["passes"]}


def test_a_compiled_target_keeps_its_own_options(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "small_models.py").write_text(MODELS.replace("@fg.compile", "@fg.compile(backend='python')"))
    assert json.loads(output(capsys, "explain", *STEP, "--json"))["backend"] == "python"
    assert json.loads(output(capsys, "explain", *STEP, "--json", "--exact"))["backend"] == "python"


def test_dump_writes_a_folder(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    text = output(capsys, "dump", *STEP, "--out", "stages", "--profile")
    assert f"{Path('stages') / 'index.html'}" in text and (folder / "stages" / "index.html").stat().st_size > 1000
    report = json.loads((folder / "stages" / "report.json").read_text())
    assert all(kernel["time_ns"] is not None for kernel in report["programs"][0]["kernels"])


def test_profile_prints_a_table_and_writes_a_trace(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    text = output(capsys, "profile", *STEP, "--steps", "2", "--trace", "trace.json")
    assert "GFLOP/s" in text and "us a call on" in text and "perfetto" in text
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]
    report = json.loads(output(capsys, "profile", *STEP, "--steps", "1", "--json", "--backend", "python"))
    assert report["programs"][0]["profile"]["steps"] == 1


def test_bench_times_ways_in_turns(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(output(capsys, "bench", *NET, "--calls", "3", "--against", "eager", "--against", "unfused",
                             "--against", "reference", "--json"))  # fmt: skip
    assert [row["way"] for row in rows] == ["compiled", "eager", "unfused", "reference"]
    assert all(row["calls"] == 3 and 0 < row["fastest_us"] <= row["median_us"] for row in rows)
    assert "the time of compiled" in output(capsys, "bench", *NET, "--calls", "2", "--against", "python")


def test_bisect_of_a_right_program_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert "changes a result" in output(capsys, "bisect", *STEP)


def test_bisect_has_a_code_of_its_own_for_a_find(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_regions import planted

    planted(monkeypatch, "exp")
    text = output(capsys, "bisect", *STEP, code=3)
    assert "fuse_limit=" in text and "small_models.py" in text


def test_cache_info_and_clear(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEGRAPH_CACHE_DIR", str(tmp_path / "cache"))
    assert "0 entries" in output(capsys, "cache", "info")
    output(capsys, "explain", *NET)
    assert "0 entries" not in output(capsys, "cache", "info")
    assert "removed " in output(capsys, "cache", "clear")
    assert "0 entries" in output(capsys, "cache", "info")
    monkeypatch.setenv("FUSEGRAPH_CACHE_SIZE_MB", "0")
    assert "turned off" in output(capsys, "cache", "info")


def test_doctor_measures_when_asked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(calibration, "measure_again", lambda: asked.append(1))
    assert "GFLOP/s" in output(capsys, "doctor", "--calibrate") and asked == [1]


# -- what the user got wrong ---------------------------------------------------------------------------------------------------

WRONG = [
    (["explain", "small_models"], "a target is MODULE:NAME"),
    (["explain", "no_such_module:step"], "no module 'no_such_module'"),
    (["explain", "small_models:number"], "is int, not a function"),
    (["explain", "small_models:Wide"], "needs arguments (width)"),
    (["explain", "small_models:step", "-i", "5x6"], "missing 1 required positional argument: 'y'"),
    (["explain", "small_models:fails", "-i", "5"], "AttributeError"),
    (["explain", "small_models:Net", "-i", "4x7"], "linear"),
    (["explain", "small_models:Net", "-i", "axb"], "'axb' is not a shape"),
    (["explain", "small_models:Net", "-i", "4x6:float99"], "float99"),
    (["explain", "small_models:Net", "-i", "4x6:int64:9..0"], "is empty"),
    (["explain", "small_models:Net", "-i", "4x6:uint8:0..300"], "no range of uint8"),
    (["explain", "small_models:Net", "-i", "4x6:int64:low"], "not a range"),
    (["explain", *NET, "--disable", "nothing"], "no pass is called 'nothing'"),
    (["explain", *NET, "--threads", "0"], "number of threads"),
    (["explain", *NET, "--target", "sm_90"], "backend='cuda'"),
    (["explain", *NET, "--fuse-limit", "-1"], "0 or more"),
    (["profile", *NET, "--steps", "0"], "at least 1 step"),
    (["bench", *NET, "--calls", "0"], "at least 1"),
    (["dump", *NET, "--out", "small_models.py/out"], "cannot write a dump"),
    (["bisect", *NET, "--backend", "reference"], "fuses nothing"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_errors_are_one_line_and_code_1(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert shown.err.startswith("fusegraph: error: ") and words.lower() in shown.err.lower()


@pytest.mark.parametrize("arguments", [[], ["explode"], ["explain", *NET, "--backend", "tpu"], ["cache", "burn"]])
def test_wrong_usage_is_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and "usage: fusegraph" in capsys.readouterr().err


def test_a_broken_module_says_where_it_breaks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken_module.py").write_text("x = 1\ny = 1 / 0\n")
    assert main(["explain", "broken_module:x"]) == 1
    assert (
        "ZeroDivisionError: division by zero at" in (error := capsys.readouterr().err) and "broken_module.py:2" in error
    )
    (folder / "needs_more.py").write_text("import a_missing_package\n")
    assert main(["explain", "needs_more:x"]) == 1
    assert "needs 'a_missing_package', which is not installed" in capsys.readouterr().err


def test_traceback_shows_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as caught:
        main(["explain", "small_models:fails", "-i", "5", "--traceback"])
    assert isinstance(caught.value.__cause__, AttributeError)


@pytest.mark.parametrize("command", ["explain", "dump", "profile", "bench", "bisect", "cache", "doctor"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and f"usage: fusegraph {command}" in text
    assert ("64x1x28x28:float32" in text) == (command not in ("cache", "doctor"))


# -- inputs ---------------------------------------------------------------------------------------------------------------


def test_inputs_have_shape_dtype_and_range() -> None:
    given, named = make_inputs(["64x1x28x28:float32", "64:int64:0..9", "scalar:float64", "3:bool", "scale=2x2:float32:5..6"], 0)  # fmt: skip
    assert [(a.shape, a.dtype.name) for a in given] == [
        ((64, 1, 28, 28), "float32"), ((64,), "int64"), ((), "float64"), ((3,), "bool"),
    ]  # fmt: skip
    assert set(given[1]) == set(range(10)) and abs(float(given[0].mean())) < 0.05
    assert named["scale"].shape == (2, 2) and ((named["scale"] >= 5) & (named["scale"] <= 6)).all()
    again, _ = make_inputs(["64x1x28x28:float32"], 0)
    other, _ = make_inputs(["64x1x28x28:float32"], 1)
    np.testing.assert_array_equal(again[0], given[0])
    assert not np.array_equal(other[0], given[0])


def test_arguments_by_keyword_reach_the_function(capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(output(capsys, "explain", "small_models:function", "-i", "4", "-i", "scale=scalar", "--json"))
    assert [part["name"] for part in report["programs"][0]["signature"]] == ["x", "scale"]
