"""The documentation is true: its code runs, its blocks are those of today's compiler, its links lead somewhere, its site builds."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
CODE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Shown, not to be run: docs/generate.py, docs/cuda_matmul.py and docs/cuda_kernels.py make them.
GENERATED = re.compile(r"<!-- (block|figures|kernel) \w+ -->\n.*?<!-- end( figures| kernel)? -->", re.DOTALL)


def blocks(page: Path) -> str:
    """All code of a page as one module, on the lines on which it stands in the page."""
    text = GENERATED.sub(lambda match: "\n" * match[0].count("\n"), page.read_text(encoding="utf-8"))
    lines = [""] * text.count("\n")
    for match in CODE.finditer(text):
        first = text[: match.start(1)].count("\n")
        code = match[1].splitlines()
        lines[first : first + len(code)] = code
    return "\n".join(lines).rstrip() + "\n"


WITH_CODE = [page for page in PAGES if blocks(page).strip()]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_runs(page, tmp_path):
    """In a process of its own (a page may add to the table of primitives), in an empty folder. README: test_examples_readme."""
    script = tmp_path / f"{page.stem}.py"
    script.write_text(blocks(page), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FUSEGRAPH_CACHE_DIR": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, f"{name_of(page)} (the line is the page's):\n{result.stderr}"


def test_many_pages_have_code():
    assert len(WITH_CODE) >= 9
    assert {"tutorial", "tour", "install", "speed-up", "debug", "add-a-pass"} <= {page.stem for page in WITH_CODE}


def test_blocks_are_up_to_date():
    result = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, f"run `python docs/generate.py`:\n{result.stdout}{result.stderr}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=name_of)
def test_links_lead_somewhere(page):
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w./-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES}
    assert listed == pages - {"benchmarks.md"}, "docs/site.py adds the page of benchmarks where it has been made"


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert pictures and all(picture.stat().st_size < 300_000 for picture in pictures)


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed (the extra `docs`): the site is not built")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    page = (tmp_path / "site" / "api" / "compile.html").read_text(encoding="utf-8")
    assert "fusegraph.compiler.compile" in page and "names of passes to leave out" in page
