"""The table of fused programs beside unfused ones (benchmarks/choices.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import fusegraph as fg
from benchmarks import choices
from benchmarks.systems.cases import CASES


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    from fusegraph.runtime.threads import ThreadSetting

    before = ThreadSetting.count
    yield
    ThreadSetting.count = before
    ThreadSetting.version += 1


def test_ratios_are_those_to_the_default() -> None:
    rows = [
        choices.Row("one", 2e-6, {"unfused": 3e-6}),
        choices.Row("two", 1e-3, {"unfused": 9e-4, "without blocks": 2e-3}),
    ]
    assert rows[1].ratios == pytest.approx({"unfused": 0.9, "without blocks": 2.0})
    assert choices.table(rows, 2).splitlines()[2:] == [
        "| one | 2.0 | 1.50 |  |",
        "| two | 1,000.0 | 0.90 | 2.00 |",
    ]


def test_programs_that_differ_are_timed_and_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEGRAPH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setitem(CASES, "softmax-grad", replace(CASES["softmax-grad"], shape=(16, 8)))
    written = tmp_path / "rows.json"
    choices.main(
        ["--cases", "softmax-grad", "--threads", "1", "--rounds", "1", "--seconds", "0", "--json", str(written)]
    )
    (row,) = json.loads(written.read_text())
    assert row["case"] == "softmax-grad" and row["default"] > 0 and row["others"]["unfused"] > 0
    assert "without winners" not in row["others"], "it has the same machine code"
    assert fg.get_num_threads() == 1
