"""The code in README.md runs as it stands, and its three ways of running a model agree."""

import re
from pathlib import Path
from typing import Any

import numpy as np

import fusegraph as fg

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
MODEL, EAGER, COMPILED_MODEL, COMPILED_STEP, INSPECTION = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def run(training: str, steps: int) -> tuple[list[float], dict[str, Any]]:
    """Losses of a few steps of one way of training, and the names that the code defined."""
    rng = np.random.default_rng(0)
    names: dict[str, Any] = {
        "x": fg.from_numpy(rng.standard_normal((16, 1, 28, 28)).astype(np.float32)),
        "y": fg.from_numpy(rng.integers(0, 10, 16)),
    }
    fg.manual_seed(0)
    exec(MODEL, names)
    losses = []
    for _ in range(steps):
        if "def step" in training:
            if "step" not in names:
                exec(training, names)
            losses.append(float(names["step"](names["x"], names["y"])))
        else:
            names["opt"].zero_grad()
            exec(training, names)
            losses.append(float(names["loss"]))
    return losses, names


def test_three_ways_of_running_a_model_agree(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    eager, _ = run(EAGER, 10)
    assert eager[-1] < eager[0] / 2
    np.testing.assert_allclose(run(COMPILED_MODEL, 10)[0], eager, rtol=1e-5)
    compiled, names = run(COMPILED_STEP, 10)
    np.testing.assert_allclose(compiled, eager, rtol=1e-5)
    exec(INSPECTION, names)
    assert "kernels" in capsys.readouterr().out
    assert any((tmp_path / "out").iterdir())
