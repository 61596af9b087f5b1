"""The figures of docs/cuda-matmul.md are those of the kernels as they are emitted now."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.test_cuda_sass import pytestmark  # noqa: F401  (skipped where kernels cannot be disassembled)

SCRIPT = Path(__file__).parent.parent / "docs" / "cuda_matmul.py"


def test_the_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("docs_cuda_matmul", SCRIPT)
    assert spec is not None and spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # dataclasses look their module up there
        patch.setitem(sys.modules, "docs_cuda_matmul", page)
        spec.loader.exec_module(page)
        text = page.PAGE.read_text(encoding="utf-8")
        assert page.filled(text) == text, "run python docs/cuda_matmul.py"
        for name in ("readable", "register", "async"):
            counters, _ = page.measured(name)
            assert counters.sectors == counters.ideal_sectors and counters.bank_conflicts == 0, name
        tensor, _ = page.measured("tf32")
        assert tensor.load.sectors == tensor.load.ideal and tensor.bank_conflicts == 0
        assert tensor.store.sectors == 2 * tensor.store.ideal  # halves of sectors: see the page
