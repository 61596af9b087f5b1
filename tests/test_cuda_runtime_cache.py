"""Compiled kernels in the disk cache: what is part of the key, damage is a miss, and a process that finds them needs no compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph.runtime.cuda import plan as plans
from fusegraph.runtime.cuda.plan import CudaPlan
from tests.cuda_runtime_tools import emulated, needs_wheels

pytestmark = needs_wheels
X = np.arange(12, dtype=np.float32).reshape(3, 4)


def run(folder: Path, **options: Any) -> bool:
    """Run a function on the GPU; whether its code came from the disk."""
    capability = options.pop("capability", (9, 0))
    with emulated(cache=folder, capability=capability):
        compiled = fg.compile(lambda x: (x * 3).exp().sum(1), backend="cuda", **options)
        np.testing.assert_allclose(compiled(X).numpy(), np.exp(X * 3).sum(1), rtol=1e-5)
        return bool(compiled.compiled_for().artifact.from_cache)


def test_what_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [run(tmp_path), run(tmp_path), run(tmp_path, target="sm_90")] == [False, True, True]
    assert [run(tmp_path, target="sm_80"), run(tmp_path, precision="tf32")] == [False, False]
    assert [run(tmp_path, capability=(8, 0)), run(tmp_path, exact=True)] == [True, False]
    assert [run(tmp_path, fuse=False), run(tmp_path, verify=True)] == [False, True]
    monkeypatch.setattr("fusegraph.runtime.cuda.executable.toolchain", lambda: "another ptxas")
    assert not run(tmp_path)


def test_a_damaged_file_is_a_miss(tmp_path: Path) -> None:
    run(tmp_path)
    (entry,) = tmp_path.glob("*/*.fgc")
    data = bytearray(entry.read_bytes())
    for place in (len(data) // 2, len(data) - 3, 3):
        damaged = bytearray(data)
        damaged[place] ^= 1
        entry.write_bytes(damaged)
        assert [run(tmp_path), run(tmp_path)] == [False, True]
    entry.write_bytes(data[:100])
    assert not run(tmp_path)


def test_plans_survive_being_stored() -> None:
    made: list[CudaPlan] = []
    with emulated(), pytest.MonkeyPatch.context() as patch:
        make = plans.make_plan

        def kept(*arguments: Any) -> CudaPlan:
            made.append(make(*arguments))
            return made[-1]

        patch.setattr("fusegraph.runtime.cuda.executable.make_plan", kept)
        fg.compile(lambda x, i: F.embedding(i, x) + 1, backend="cuda")(X, np.array([2, 0]))
    from fusegraph.runtime.cache import Entry

    blobs = made[0].to_blobs()
    assert CudaPlan.from_entry(Entry("key", blobs)) == made[0]
    assert made[0].layout.guards
    for broken in ({**blobs, "plan.json": b"{}"}, {"plan.json": blobs["plan.json"]}, {**blobs, "plan.json": b"["}):
        assert CudaPlan.from_entry(Entry("key", broken)) is None


SECOND = """
import sys
import numpy as np
import fusegraph as fg, fusegraph.functional as F
from fusegraph import nn, optim
from fusegraph.runtime.cuda import using_driver
from tests.emulated_driver import EmulatedDriver

fg.manual_seed(0)
model = nn.Linear(6, 3)
optimizer = optim.SGD(model.parameters(), lr=0.1)

@fg.compile(backend="cuda")
def step(x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss

fg.manual_seed(0)
rng = np.random.default_rng(0)
with using_driver(EmulatedDriver()):
    for _ in range(2):
        print(step(rng.standard_normal((4, 6)).astype(np.float32), rng.integers(0, 3, 4)).item())
    print(step.compiled_for().artifact.from_cache, "numba" in sys.modules, "fusegraph.codegen.cuda.step" in sys.modules)
"""


def test_a_second_process_has_no_need_of_a_compiler(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    environment = {**os.environ, "FUSEGRAPH_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    environment.pop("FUSEGRAPH_CACHE_SIZE_MB", None)
    lines = [
        subprocess.run(
            [sys.executable, "-c", SECOND], env=environment, cwd=root, capture_output=True, text=True, check=True
        ).stdout.split("\n")
        for _ in range(2)
    ]
    assert lines[0][2] == "False True True"
    assert lines[1][2] == "True False False"
    assert lines[0][:2] == lines[1][:2]
