"""The script for real GPUs: its code runs here on an emulated one, at tiny sizes. No times are asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu, gpu_checks, gpu_speed
from benchmarks.gpu_report import Section, page
from fusegraph.runtime.cuda import unavailable
from tests.cuda_runtime_tools import StoredModule, emulated, needs_wheels


@pytest.fixture(autouse=True)
def _stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusegraph.runtime.cuda.plan.CudaModule", StoredModule)
    monkeypatch.setenv("FUSEGRAPH_CACHE_SIZE_MB", "0")


@needs_wheels
def test_the_whole_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "out" / "gpu.md"
    monkeypatch.setenv("PATH", str(tmp_path))  # without a compute-sanitizer
    assert gpu.main(["--emulate", "--write", str(file)]) == 0
    text = file.read_text()
    assert text.startswith("# fusegraph on emulated GPU\n") and "Everything that was compared agrees." in text
    for title in ("Primitives", "Training steps against the numpy reference", "Products of matrices", "Bandwidth",
                  "Fused kernels", "Training steps"):  # fmt: skip
        assert f"## {title}\n\n|" in text
    assert "- emulated: the times below mean nothing\n" in text
    assert text.count("Not run: ") == 2 and "compute-sanitizer is not installed" in text
    assert "| one a primitive |" in text and "| 24 x 20 x 12 | tf32 |" in text
    mlp = next(line for line in text.splitlines() if line.startswith("| mlp | 2 |") and line.count("|") == 8)
    kernels, launches = mlp.split("|")[3:5]
    assert int(kernels) > 1 and float(launches) == 1


@needs_wheels
def test_whole_trainings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The examples are called as they are; here their networks do not train."""
    mnist = pytest.importorskip("examples.mnist", reason="packages of the examples are not installed")
    from examples import sentiment

    calls: list[Any] = []

    def example(arguments: list[str]) -> Any:
        calls.append(arguments)
        return SimpleNamespace(accuracy=0.5, step_seconds=[0.25, 0.5, 0.125])

    monkeypatch.setattr(mnist, "main", example)
    monkeypatch.setattr(sentiment, "main", example)
    section = gpu_checks.trainings()
    assert [row[:4] for row in section.rows] == [
        ("mnist", "minitorch", 3, 250.0),
        ("mnist", "lenet", 3, 250.0),
        ("sentiment", "cnn", 3, 250.0),
        ("sentiment", "bag", 3, 250.0),
    ]
    assert len(section.failures) == 4 and "accuracy 50.00%, expected at least 94%" in section.failures[0]
    assert calls[0][:4] == ["--backend", "cuda", "--model", "minitorch"] and "--limit" not in calls[0]
    assert gpu_checks.trainings(limit=60, epochs=1).failures == []
    for arguments in calls:
        program = mnist if arguments[3] in mnist.RECIPES else sentiment
        options = program.options() if hasattr(program, "options") else program.common.parser("", program.RECIPES, "")
        assert options.parse_args(arguments).backend == "cuda"


@needs_wheels
def test_an_example_trains_on_the_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mnist = pytest.importorskip("examples.mnist", reason="packages of the examples are not installed")
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (4, 28, 28)).astype(np.uint8), np.arange(4)
    digits = mnist.data.Digits(images, labels, images, labels, "noise")
    monkeypatch.setattr(mnist.data, "load_mnist", lambda folder: digits)
    losses = []
    for backend in ("cpu", "cuda"):
        with emulated():
            history = mnist.main(
                ["--backend", backend, "--epochs", "1", "--batch-size", "2", "--out", str(tmp_path / backend)]
            )
        losses.append(history.losses)
    assert len(losses[0]) == 2
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_compute_sanitizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "compute-sanitizer is not installed" in gpu_checks.sanitizer([]).markdown()
    program = tmp_path / "compute-sanitizer"
    program.write_text(f"#!{sys.executable}\n" + _SANITIZER)
    program.chmod(0o755)
    section = gpu_checks.sanitizer(["--quick"])
    assert section.rows == [("memcheck", 0), ("racecheck", 2), ("initcheck", 0), ("synccheck", None)]
    assert [failure.split(":")[0] for failure in section.failures] == ["racecheck", "synccheck"]


_SANITIZER = """
import sys
tool, program = sys.argv[2], sys.argv[3:]
assert program[1:] == ["-m", "benchmarks.gpu", "--only", "numerics", "--quick"], program
if tool != "synccheck":
    print(f"========= ERROR SUMMARY: {2 if tool == 'racecheck' else 0} errors")
"""


def test_what_is_wrong_is_said_and_sets_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Section("Products", ("a", "b"), [(1.5, None), (12345.678, "x")], failures=["64 x 64: wrong by 0.5"])
    monkeypatch.setattr(gpu, "parts", lambda sizes, options: {"products": lambda: [wrong]})
    assert gpu.main(["--emulate", "--only", "products"]) == 1
    text = page([wrong], "a card", {"torch": "2"})
    assert "| 1.5 | - |\n| 12,346 | x |" in text and "- 64 x 64: wrong by 0.5" in text
    assert "**1 comparisons are wrong.**" in text and "- torch: 2" in text
    with pytest.raises(SystemExit, match="there is no part 'speed'"):
        gpu.main(["--only", "speed"])


def test_a_wrong_product_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    result = SimpleNamespace(numpy=lambda: np.zeros((8, 8), np.float32))
    monkeypatch.setattr(gpu_speed, "ours_ms", lambda *_, **__: (1.0, result))
    section = gpu_speed.products([(8, 8, 8)], SimpleNamespace(module=None, missing="no torch"), 1)  # type: ignore[arg-type]
    assert len(section.failures) == 2 and "Nothing beside it: no torch." in section.notes


def test_without_a_gpu_it_says_so() -> None:
    if not unavailable():
        pytest.skip("this machine has a GPU")
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "cannot run here" in done.stderr and "--emulate" in done.stderr
