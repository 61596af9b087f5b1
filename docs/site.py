"""A hook of mkdocs: the page of benchmarks is made by `make bench`, and is in the navigation where it has been made."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Called by mkdocs with its configuration."""
    if (Path(config["docs_dir"]) / "benchmarks.md").exists():
        config["nav"].append({"Benchmarks": "benchmarks.md"})
    return config
