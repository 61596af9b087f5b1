"""Log topics: one line an event, through `logging`; what importing the package costs."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import events

SCRIPT = """
import numpy as np
import fusegraph as fg
fg.set_num_threads(1)
f = fg.compile(lambda x: (x - x.max(1, keepdim=True)[0]).exp().sum(1) @ np.ones(4, np.float32))
f(np.ones((4, 6), np.float32))
f(np.ones((4, 7), np.float32))
"""


def lines_of(topics: str, cache: Path, script: str = SCRIPT) -> list[str]:
    """What a process with FUSEGRAPH_LOG=topics prints on stderr."""
    environment = os.environ | {"FUSEGRAPH_LOG": topics, "FUSEGRAPH_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0 and done.stdout == "", done.stderr
    return done.stderr.splitlines()


def test_nothing_is_printed_unless_asked_for(tmp_path: Path) -> None:
    assert lines_of("", tmp_path) == []


def test_topics_print_one_line_an_event(tmp_path: Path) -> None:
    lines = lines_of("recompile, fusion,passes,kernels,cache", tmp_path)
    topics = [line.split("[")[1].split("]")[0] for line in lines]
    assert all(line.startswith("fusegraph: [") for line in lines)
    assert set(topics) == {"recompile", "fusion", "passes", "kernels", "cache"}
    assert topics.count("recompile") == 2 and topics.count("cache") == 2
    assert any("axis 1 was 6, now 7" in line for line in lines)
    assert any("merged 1: " in line and "saves" in line for line in lines)
    assert any("refused: " in line and "costs" in line for line in lines)
    assert any("nodes ->" in line for line in lines)


def test_a_topic_can_be_had_alone_and_all_is_every_one(tmp_path: Path) -> None:
    assert {line.split("]")[0] for line in lines_of("recompile", tmp_path)} == {"fusegraph: [recompile"}
    assert any("loaded from the disk cache" in line for line in lines_of("all", tmp_path))


def test_an_unknown_topic_is_a_warning_that_lists_them(tmp_path: Path) -> None:
    first, *rest = lines_of("recompile,fusoin", tmp_path)
    assert "no topic fusoin" in first and all(topic in first for topic in events.TOPICS)
    assert len(rest) == 2


def test_a_program_that_sets_up_logging_gets_events_once(tmp_path: Path) -> None:
    setup = "import logging; logging.basicConfig(level=logging.INFO, format='mine %(name)s')\n"
    assert lines_of("", tmp_path, setup + SCRIPT) == []
    assert len(lines_of("recompile", tmp_path, setup + SCRIPT)) == 2
    debug = "import logging; logging.basicConfig(level=logging.DEBUG, format='mine %(name)s')\n"
    assert "mine fusegraph.recompile" in lines_of("", tmp_path, debug + SCRIPT)


def test_events_are_records_of_logging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="fusegraph"):
        fg.compile(lambda x: F.softmax(x, 1))(np.ones((3, 5), np.float32))
    found = {record.name for record in caplog.records}
    assert {"fusegraph.recompile", "fusegraph.cache"} <= found
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_the_thread_count_that_a_step_settles_on_is_an_event(caplog: pytest.LogCaptureFixture) -> None:
    from fusegraph.runtime.threads_choice import ThreadChoice

    def step(table: int, threads: int) -> None:
        """A step that takes no time."""

    choice = ThreadChoice(step, 2)
    if choice.fixed:
        pytest.skip("the number of threads is settled here")
    with caplog.at_level(logging.DEBUG, logger="fusegraph.threads"):
        for _ in range(100):
            choice.call(0)
    assert "settles on" in caplog.text


def test_events_that_nobody_reads_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not events.wanted("fusion")
    monkeypatch.setattr(events, "_topics", frozenset({"fusion"}))
    assert events.wanted("fusion") and not events.wanted("cache")


# -- importing ---------------------------------------------------------------------------------------------------------------

HEAVY = ("numba", "networkx", "rich", "matplotlib", "torch", "cuda", "argparse", "logging.handlers", "logging.config",
         "fusegraph.cli", "fusegraph.inspect.explain", "fusegraph.inspect.profile", "fusegraph.inspect.page",
         "fusegraph.inspect.diff", "fusegraph.inspect.html_repr", "fusegraph.runtime.calibration")  # fmt: skip


def test_importing_is_light() -> None:
    script = f"""
import sys, logging, fusegraph
print([m for m in {HEAVY!r} if m in sys.modules])
print(logging.getLogger('fusegraph').handlers, logging.root.handlers)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[] []"]


def test_a_call_does_not_import_what_looks_inside() -> None:
    script = f"""
import sys, numpy as np, fusegraph as fg
fg.compile(lambda x: x.exp())(np.ones(4, np.float32))
wanted = [m for m in {HEAVY!r} if m in sys.modules]
print(wanted)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_names_for_looking_inside() -> None:
    names: Any = fg.__all__
    assert {"diff", "region", "compile", "Compiled"} <= set(names)
    assert all(hasattr(fg, name) for name in names)
