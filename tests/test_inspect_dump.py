"""What `dump` writes: a file for each stage and pass that changed something, the texts of every kernel, the report, the page."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim
from fusegraph.errors import OptionError
from fusegraph.inspect.dump import sources_of
from fusegraph.ir.text import parse
from tests.cuda_runtime_tools import needs_wheels


def make_step(backend: str = "cpu") -> Any:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    opt = optim.SGD(model.parameters(), lr=0.1)

    @fg.compile(backend=backend)
    def step(x: Any, y: Any) -> Any:
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        return loss

    return step


BATCH = (np.ones((5, 6), np.float32), np.array([0, 1, 2, 0, 1]))


def names_of(paths: list[Path], folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in paths]


@pytest.mark.parametrize("backend", ["cpu", "numba", "python", "reference"])
def test_every_stage_is_a_numbered_file(backend: str, tmp_path: Path) -> None:
    step = make_step(backend)
    paths = step.dump(tmp_path, *BATCH)
    assert all(path.exists() for path in paths) and len(set(paths)) == len(paths)
    names = names_of(paths, tmp_path)
    numbered = [name for name in names if name[:2].isdigit()]
    assert [int(name[:2]) for name in numbered] == list(range(len(numbered)))
    artifact = step.compiled_for(*BATCH).artifact
    passes = [name[9:-4] for name in numbered if "-after-" in name]
    assert passes == [name for name, _ in artifact.stages] and "simplify" in passes
    endings = {name.partition("-")[2] for name in numbered}
    assert {"op-graph.txt", "op-graph.dot", "optimised.dot", "fused.dot", "loops.txt", "source.py"} <= endings
    assert ({"step.ll", "step.s"} <= endings) == (backend == "cpu")


def test_the_files_hold_what_their_names_say(tmp_path: Path) -> None:
    step = make_step()
    texts = {name: (tmp_path / name).read_text() for name in names_of(step.dump(tmp_path, *BATCH), tmp_path)}
    artifact = step.compiled_for(*BATCH).artifact
    assert parse(texts["00-op-graph.txt"]) == artifact.source
    last = [name for name in texts if "-after-" in name][-1]
    assert parse(texts[last]) == artifact.graph
    ast.parse(next(text for name, text in texts.items() if name.endswith("source.py")))
    assert "define void @step(" in next(text for name, text in texts.items() if name.endswith("step.ll"))
    assert texts["explain.txt"].strip() == str(step.explain())
    report = json.loads(texts["report.json"])
    assert report == step.explain().to_dict()
    for kernel in report["programs"][0]["kernels"]:
        assert kernel["name"] in texts[f"kernels/{kernel['name']}.txt"]
        ast.parse(texts[f"kernels/{kernel['name']}.py"])
        assert texts[f"kernels/{kernel['name']}.ll"].startswith("define ")
        assert "ret" in texts[f"kernels/{kernel['name']}.s"]


def test_the_page_holds_the_report_and_the_users_lines(tmp_path: Path) -> None:
    step = make_step()
    step.dump(tmp_path, *BATCH)
    text = (tmp_path / "index.html").read_text()
    assert "F.cross_entropy(model(x), y)" in text
    sources = sources_of(step.explain().to_dict())
    assert list(sources) == [__file__] and "import fusegraph as fg" in sources[__file__]


def test_a_model_has_files_for_forward_and_backward(tmp_path: Path) -> None:
    model = fg.compile(nn.Linear(3, 2))
    names = names_of(model.dump(tmp_path, np.ones((4, 3), np.float32)), tmp_path)
    for phase in ("forward", "backward"):
        assert f"{phase}-00-op-graph.txt" in names
        assert any(name.startswith(f"kernels/{phase}-k0_") for name in names)
    assert "joint-00-op-graph.txt" in names and any(name.startswith("joint-02-after-") for name in names)
    traced = parse((tmp_path / "joint-00-op-graph.txt").read_text())
    assert {"grad_output_0"} <= {node.name for node in traced.inputs}


def test_a_dump_leaves_other_files_alone_and_writes_the_same_twice(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    step = make_step()
    first = {path: path.read_bytes() for path in step.dump(tmp_path, *BATCH)}
    again = {path: path.read_bytes() for path in step.dump(tmp_path, *BATCH)}
    assert first == again
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_an_error_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot write a dump to .*name another folder"):
        make_step().dump(tmp_path / "file" / "out", *BATCH)


@needs_wheels
def test_ptx_is_for_the_target_that_was_asked_for(tmp_path: Path) -> None:
    function = fg.compile(lambda x: x.exp().sum(1), backend="cuda", target="sm_80")
    names = names_of(function.dump(tmp_path, np.ones((40, 50), np.float32)), tmp_path)
    (ptx,) = [name for name in names if name.endswith(".ptx")]
    assert ".target sm_80" in (tmp_path / ptx).read_text()
    assert any(name.endswith("-cuda.py") for name in names) and f"{ptx[:-4]}.cuda.py" in names
