"""The documentation is true: its code runs, and the blocks that show a compile are those of today's compiler."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_tutorial_runs(capsys):
    namespace: dict[str, object] = {}
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = list(CODE.finditer(text))
    assert len(blocks) > 10
    for block in blocks:
        line = text[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block[1], "docs/tutorial.md", "exec"), namespace)
    assert "kernels" in capsys.readouterr().out


def test_blocks_are_up_to_date():
    result = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, f"run `python docs/generate.py`:\n{result.stdout}{result.stderr}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"
