"""The report of a compiled program: its form, that its figures agree, that it survives the disk cache and changes nothing."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim
from fusegraph.build import Artifact
from fusegraph.inspect.explain import Explanation, bytes_text
from fusegraph.inspect.explain_markdown import escaped
from fusegraph.inspect.report import decode, encode
from fusegraph.inspect.texts import kernel_texts
from fusegraph.runtime import calibration
from fusegraph.runtime.cache import DiskCache
from fusegraph.runtime.calibration import Calibration, Roofline

PROGRAM_KEYS = {"name", "phase", "backend", "signature", "graph", "optimised", "passes", "rewrites", "kernels", "edges",
                "memory", "refusals", "totals", "seconds", "from_cache", "in_place"}  # fmt: skip
KERNEL_KEYS = {"id", "name", "schedule", "space", "operations", "nodes", "lines", "reads", "writes", "bytes_read",
               "bytes_written", "flops", "unfused_bytes", "floor_ns", "recomputed", "threads", "together", "time_ns", "idle_ns",
               "gb_s", "gflop_s", "share_of_roofline"}  # fmt: skip
TIMES = {"seconds", "from_cache", "passes", "floor_ns"}


def make_step(**options: Any) -> Any:
    fg.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 5))
    opt = optim.SGD(model.parameters(), lr=0.1)

    @fg.compile(**options)
    def step(x: Any, y: Any) -> Any:
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        return loss

    return step


def batch() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((4, 1, 8, 8)).astype(np.float32), rng.integers(0, 5, 4)


@pytest.fixture(scope="module")
def report() -> Any:
    return make_step().explain(*batch()).to_dict()


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


# -- the form -------------------------------------------------------------------------------------------------------------


def test_a_report_is_plain_data_of_a_fixed_form(report: Any) -> None:
    assert json.loads(json.dumps(report)) == report
    assert set(report) == {"fusegraph", "name", "backend", "programs"}
    (program,) = report["programs"]
    assert set(program) == PROGRAM_KEYS
    assert all(set(kernel) == KERNEL_KEYS for kernel in program["kernels"])
    assert program["phase"] == "step" and program["backend"] == "cpu"
    assert program["signature"][0] == {"name": "x", "shape": [4, 1, 8, 8], "dtype": "float32"}
    assert {run["name"] for run in program["passes"]} >= {"simplify", "cse"}
    assert all(rule["count"] > 0 and rule["text"] for rule in program["rewrites"])


def test_kernels_and_nodes_name_each_other(report: Any) -> None:
    (program,) = report["programs"]
    nodes = program["optimised"]["nodes"]
    for kernel in program["kernels"]:
        assert kernel["operations"] == [nodes[number]["op"] for number in kernel["nodes"]]
        assert all(kernel["id"] in nodes[number]["kernels"] for number in kernel["nodes"])
        again = [n for n in kernel["nodes"] if nodes[n]["kernels"][0] < kernel["id"]]
        assert kernel["recomputed"] == again
    for node in nodes:
        assert all(node["id"] in program["kernels"][kernel]["nodes"] for kernel in node["kernels"])


def test_every_traced_operation_is_found_in_a_kernel(report: Any) -> None:
    from fusegraph.ir.primitives import PRIMITIVES

    (program,) = report["programs"]
    for node in program["graph"]["nodes"]:
        computes = node["op"] not in ("input", "constant", "check_index") and PRIMITIVES[node["op"]].kind != "view"
        assert bool(node["kernels"]) == computes or node["op"] == "check_index", node
    conv = next(node for node in program["graph"]["nodes"] if node["op"] == "conv")
    assert Path(conv["file"]).name == "test_inspect_report.py" and conv["module"] == "Sequential.0"
    assert "conv" in program["kernels"][conv["kernels"][0]]["operations"]


def test_figures_add_up(report: Any) -> None:
    (program,) = report["programs"]
    for name in ("bytes_read", "bytes_written", "flops"):
        assert program["totals"][name] == sum(kernel[name] for kernel in program["kernels"]) > 0
    for kernel in program["kernels"]:
        assert kernel["bytes_read"] == sum(part["bytes"] for part in kernel["reads"])
        assert kernel["bytes_written"] == sum(part["bytes"] for part in kernel["writes"])
    for edge in program["edges"]:
        assert edge["from"] < edge["to"]
        assert edge["buffer"] in {part["buffer"] for part in program["kernels"][edge["from"]]["writes"]}
        assert edge["buffer"] in {part["buffer"] for part in program["kernels"][edge["to"]]["reads"]}
    assert [r["bytes"] for r in program["refusals"]] == sorted((r["bytes"] for r in program["refusals"]), reverse=True)
    assert all(isinstance(r["producer_node"], int) and isinstance(r["consumer_node"], int) for r in program["refusals"])


def test_buffers_alive_together_do_not_share_bytes(report: Any) -> None:
    memory = report["programs"][0]["memory"]
    temps = [buffer for buffer in memory["buffers"] if buffer["role"] == "temp"]
    assert temps and all(0 <= b["offset"] <= memory["arena_bytes"] - b["bytes"] for b in temps)
    for a in temps:
        for b in temps:
            apart = a["offset"] + a["bytes"] <= b["offset"] or b["offset"] + b["bytes"] <= a["offset"]
            assert a is b or apart or a["last"] <= b["first"] or b["last"] <= a["first"]


def test_the_peak_of_one_operation_at_a_time_is_counted() -> None:
    def function(x: Any) -> Any:
        return ((x * 2.0).exp() + 1.0).sum()

    memory = fg.compile(function).explain(np.ones(1000, np.float32)).programs[0]["memory"]
    assert memory["unfused_peak_bytes"] == 2 * 4000  # an operation's operand and its result
    assert memory["arena_bytes"] == 0


def test_forward_and_backward_are_two_programs() -> None:
    explanation = fg.compile(nn.Linear(3, 2)).explain(np.ones((4, 3), np.float32))
    assert [program["phase"] for program in explanation.programs] == ["forward", "backward"]
    assert explanation.kernels == sum(len(program["kernels"]) for program in explanation.programs)


def test_a_models_traced_graph_holds_forward_and_gradients() -> None:
    model = fg.compile(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    forward, backward = model.explain(np.ones((5, 3), np.float32)).programs
    assert forward["graph"]["nodes"][0] == backward["graph"]["nodes"][0] | {"kernels": []}
    assert [n["op"] for n in forward["graph"]["nodes"]] == [n["op"] for n in backward["graph"]["nodes"]]
    tanh = next(n["id"] for n in forward["graph"]["nodes"] if n["op"] == "tanh")
    assert forward["graph"]["nodes"][tanh]["kernels"] and not backward["graph"]["nodes"][tanh]["kernels"]
    for program in (forward, backward):  # each product is in one of the two programs, or in both
        assert any(node["op"] == "matmul" and node["kernels"] for node in program["graph"]["nodes"])
    pairs = zip(forward["graph"]["nodes"], backward["graph"]["nodes"], strict=True)
    assert all(a["kernels"] or b["kernels"] for a, b in pairs if a["op"] == "matmul")
    assert forward["passes"][0]["nodes_before"] == len(forward["graph"]["nodes"])


@pytest.mark.parametrize("backend", ["numba", "python", "reference", "cuda"])
def test_every_backend_has_a_report(backend: str) -> None:
    explanation = fg.compile(lambda x: F.softmax(x, 1), backend=backend).explain(np.ones((4, 3), np.float32))
    assert set(explanation.programs[0]) == PROGRAM_KEYS
    assert explanation.to_dict()["backend"] == backend
    assert str(explanation)


# -- in the disk cache ------------------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys
sys.path.insert(0, {folder!r})
from test_inspect_report import batch, make_step
from fusegraph import cache_key
cache_key.generator_digest = lambda: "as it is"  # sources may be edited while the test runs
step = make_step()
if {run}:
    step(*batch())
print(json.dumps(step.explain(*batch()).to_dict()))
"""


def _report_of_a_process(cache: Path, run: bool) -> Any:
    import os

    script = SCRIPT.format(folder=str(Path(__file__).parent), run=run)
    environment = os.environ | {"FUSEGRAPH_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True, timeout=120
    )
    return json.loads(done.stdout)


def test_a_second_process_with_a_warm_cache_gives_the_same_report(tmp_path: Path) -> None:
    first, second = _report_of_a_process(tmp_path, False), _report_of_a_process(tmp_path, True)
    assert not first["programs"][0]["from_cache"] and second["programs"][0]["from_cache"]
    assert second["programs"][0]["seconds"].keys() >= {"passes", "fusion", "llvm", "load"}
    assert without_times(first) == without_times(second)


def _artifact(step: Any) -> Artifact:
    found = step.compiled_for(*batch()).artifact
    assert isinstance(found, Artifact)
    return found


def test_a_hit_reads_the_report_and_does_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEGRAPH_CACHE_DIR", str(tmp_path))
    expected = make_step().explain(*batch()).to_dict()
    again = make_step()
    artifact = _artifact(again)
    assert artifact.from_cache
    assert without_times(again.explain().to_dict()) == without_times(expected)
    assert "fused" not in vars(artifact) and "_optimised" not in vars(artifact)


def test_a_stored_report_of_other_lines_or_a_damaged_one_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEGRAPH_CACHE_DIR", str(tmp_path))

    def first(x: Any) -> Any:
        return x * 2.0 + 1.0

    def second(x: Any) -> Any:
        return x * 2.0 + 1.0

    second.__qualname__ = first.__qualname__
    arguments = np.ones(8, np.float32)
    old, new = (fg.compile(f).explain(arguments).programs[0] for f in (first, second))
    assert new["from_cache"] and not old["from_cache"]
    lines = [{node["line"] for node in program["graph"]["nodes"] if node["line"]} for program in (old, new)]
    assert lines[0] and lines[1] and lines[0] != lines[1]
    graph = _artifact(make_step()).source
    assert decode(b"{not json", graph) is None
    assert decode(b'{"places": 1}', graph) is None
    assert decode(encode({"kernels": "?"}, graph), graph) is None
    assert decode(encode({"kernels": []}, graph), graph) == {"kernels": []}


def _entries(folder: Path) -> dict[str, list[bytes]]:
    """The machine code of steps in a cache, by key."""
    keys = [path.stem for path in folder.glob("*/*.fgc")]
    entries = {key: DiskCache(folder).get(key) for key in keys}
    return {
        key: [blob for name, blob in entry.blobs.items() if name.startswith("object")]
        for key, entry in entries.items()
        if entry is not None and "layout.json" in entry.blobs
    }


def test_machine_code_is_the_same_with_and_without_looking_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Roofline(1, 1e6, ((1, 1e6), (2, 1e6)))  # of a machine that need not be measured
    monkeypatch.setattr(calibration, "stored", lambda: Calibration(line, line))
    codes = []
    for look in (False, True):
        monkeypatch.setenv("FUSEGRAPH_CACHE_DIR", str(tmp_path / str(look)))
        step = make_step()
        if look:
            step.explain(*batch())
            step.dump(tmp_path / "dump", *batch())
            step.profile(*batch(), steps=1)
            step._repr_html_()
        step(*batch())
        codes.append(_entries(tmp_path / str(look)))
    assert codes[0] == codes[1] and len(codes[0]) >= 1


# -- its texts ----------------------------------------------------------------------------------------------------------------


def test_the_text_names_what_was_fused_moved_refused_and_timed() -> None:
    explanation = make_step().explain(*batch())
    text = str(explanation)
    for words in ("kernels, one call (cpu)", "one operation at a time", "arena", "written in place", "not fused (dearest",
                  "test_inspect_report.py:", "Sequential.0", "compiled:", "passes that changed the graph", "again rather"):  # fmt: skip
        assert words in text
    assert len([line for line in text.splitlines() if " Mflop" in line]) == explanation.kernels + 1
    assert repr(explanation) == text


def test_the_markdown_has_a_row_for_every_kernel() -> None:
    explanation = make_step().explain(*batch())
    rows = [line for line in explanation.to_markdown().splitlines() if line.startswith("| ")]
    refusals = len(explanation.programs[0]["refusals"][:8])
    assert len(rows) == explanation.kernels + 1 + refusals + 1
    assert escaped("a|b <i> _x_") == "a\\|b \\<i> \\_x\\_"


def test_rich_prints_tables_and_show_falls_back_to_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = pytest.importorskip("rich.console")
    explanation = make_step().explain(*batch())
    stream = io.StringIO()
    console.Console(file=stream, width=200, force_terminal=True).print(explanation)
    assert "\x1b[" in stream.getvalue() and "Sequential.0" in stream.getvalue()
    explanation.show()
    assert capsys.readouterr().out.strip() == str(explanation).strip()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    explanation.show()
    assert capsys.readouterr().out.strip() == str(explanation).strip()


def test_sizes_have_units() -> None:
    assert [bytes_text(n) for n in (7, 1500, 2.5e6, 3e9)] == ["7 B", "1.5 kB", "2.5 MB", "3.00 GB"]


def test_texts_of_every_kernel() -> None:
    artifact = _artifact(make_step())
    texts = kernel_texts(artifact)
    names = [loop.name for loop in artifact.fused[0].loops]
    assert list(texts) == list(range(len(names)))
    for number, parts in texts.items():
        assert set(parts) == {"loop", "python", "llvm", "asm"}
        assert names[number] in parts["loop"] and f"def {names[number]}(" in parts["python"]
        assert parts["llvm"].startswith("define ") and "ret" in parts["asm"]


def test_an_explanation_can_be_made_of_artifacts() -> None:
    artifact = _artifact(make_step())
    report = {
        "fusegraph": fg.__version__,
        "name": artifact.source.name,
        "backend": "cpu",
        "programs": [artifact.report],
    }
    assert without_times(Explanation([artifact]).to_dict()) == without_times(report)
