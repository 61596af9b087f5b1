"""What all tests share: seeded generators, and torch where it is installed."""

from __future__ import annotations

import gc
import os
from typing import Any

import numpy as np
import pytest

import fusegraph as fg


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test begins with the same random numbers."""
    fg.manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    """A numpy generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture(autouse=True, scope="module")
def _settled() -> None:
    """What the files before have left (modules, caches: millions of objects late in a run) is not walked through again by
    every collection: it took a tenth of the time. Garbage among it is removed first.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def torch() -> Any:
    """torch, the oracle for what PyTorch does."""
    return pytest.importorskip("torch", reason="torch is not installed: its results are what these are compared with")


def pytest_configure(config: pytest.Config) -> None:
    """PTX (see tests/cuda_ptx.py) and object code that did not change are kept between runs, beside what pytest keeps."""
    from tests.cuda_ptx import STORE

    if getattr(config, "cache", None) is not None:
        STORE.use(config.cache.mkdir("fusegraph-ptx"))
        os.environ.setdefault("FUSEGRAPH_CACHE_DIR", str(config.cache.mkdir("fusegraph-objects")))  # not the user's own
    # A worker comes to hold millions of objects. By default it would look for garbage after each 700 new ones.
    gc.set_threshold(20_000, 20, 20)


def pytest_addoption(parser: pytest.Parser) -> None:
    """--update-golden writes the texts in tests/golden anew; read them with git diff."""
    parser.addoption("--update-golden", action="store_true", help="write the texts in tests/golden anew")
