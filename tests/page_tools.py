"""Reports for the tests of the page: one of a real compile, and made-up ones of any size."""

from __future__ import annotations

import re
from functools import lru_cache
from html.parser import HTMLParser
from typing import Any

import numpy as np

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim
from fusegraph.inspect.dump import sources_of
from fusegraph.inspect.page import render
from fusegraph.inspect.texts import kernel_texts
from tests.compile_tools import training_step

Report = dict[str, Any]


class Small(nn.Module):
    """A convolution, a pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4 * 3 * 3, 10)

    def forward(self, x: fg.Tensor) -> fg.Tensor:
        """Images (N, 1, 8, 8) to scores (N, 10)."""
        y = self.conv(x).relu()  # the line of the convolution
        return self.fc(F.max_pool2d(y, 2).flatten(1))


def compiled_step() -> tuple[Any, tuple[np.ndarray, np.ndarray]]:
    """A compiled training step and arguments for it."""
    fg.manual_seed(0)
    model = Small()
    opt = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = fg.compile(training_step(model, opt))

    return step, (np.zeros((4, 1, 8, 8), np.float32), np.zeros(4, np.int64))


@lru_cache(maxsize=1)
def real() -> tuple[Report, list[Any], dict[str, list[str]]]:
    """(report, texts, sources) of `compiled_step`."""
    step, arguments = compiled_step()
    artifact = step.compiled_for(*arguments).artifact
    report = step.explain(*arguments).to_dict()
    return report, [kernel_texts(artifact)], sources_of(report)


@lru_cache(maxsize=1)
def real_page() -> str:
    """The page of `real`."""
    return render(*real())


def made_up(nodes: int, per_kernel: int = 8, per_module: int = 10, name: str = "made_up") -> Report:
    """A report with a graph of so many nodes: a chain with side branches, in nested modules, a refusal at each kernel's end."""
    rows = []
    for i in range(nodes):
        inputs = [] if i == 0 else sorted({i - 1, max(0, i - 1 - i % 7)})
        rows.append(
            {
                "id": i,
                "op": "input" if i == 0 else ("matmul", "add", "relu", "sum", "exp")[i % 5],
                "inputs": inputs,
                "shape": [16, 1 + i % 9],
                "dtype": "float32",
                "file": "" if i == 0 else "/models/net.py",
                "line": 0 if i == 0 else 10 + i // per_module,
                "module": "" if i == 0 else f"Net.blocks.{i // (4 * per_module)}.layer{i // per_module % 4}",
                "attributes": {"name": "x"} if i == 0 else {},
                "kernels": [] if i == 0 else [i // per_kernel],
            }
        )
    graph = {"nodes": rows, "inputs": [0], "outputs": [nodes - 1], "updates": []}
    kernels = [_kernel(number, rows) for number in range((nodes - 1) // per_kernel + 1)]
    edges = [{"from": k["id"], "to": k["id"] + 1, "buffer": f"b{k['id']}", "bytes": 4096} for k in kernels[:-1]]
    return {
        "fusegraph": "0.1.0",
        "name": name,
        "backend": "cpu",
        "programs": [_program(name, graph, kernels, edges, per_kernel)],
    }


def _kernel(number: int, rows: list[Report]) -> Report:
    inside = [row for row in rows if number in row["kernels"]]
    return {
        "id": number,
        "name": f"k{number}_made_up",
        "schedule": "nest",
        "space": [16, 8],
        "operations": [row["op"] for row in inside],
        "nodes": [row["id"] for row in inside],
        "lines": [f"net.py:{row['line']}" for row in inside[:1]],
        "reads": [{"buffer": f"b{number - 1}" if number else "x", "bytes": 4096}],
        "writes": [{"buffer": f"b{number}", "bytes": 4096}],
        "bytes_read": 4096,
        "bytes_written": 4096,
        "flops": 1000 * (number + 1),
        "unfused_bytes": 65536,
        "floor_ns": 100.0 + number,
        "recomputed": [],
        "threads": "all",
        "together": None,
        "time_ns": 200.0 + 3 * number,
        "gb_s": 8.0,
        "gflop_s": 1.5,
        "share_of_roofline": 0.4,
    }


def _program(name: str, graph: Report, kernels: list[Report], edges: list[Report], per_kernel: int) -> Report:
    last = len(kernels) - 1
    buffers = [
        {"name": f"b{i}", "role": "temp", "bytes": 4096, "offset": 4096 * (i % 3), "first": i, "last": min(last, i + 2)}
        for i in range(len(kernels))
    ]
    refusals = [
        {
            "rule": "two contractions do not share a register tile",
            "producer": "matmul",
            "consumer": "sum",
            "producer_node": per_kernel * (i + 1) - 1,
            "consumer_node": per_kernel * (i + 1),
            "bytes": 8192,
        }
        for i in range(last)
        if per_kernel * (i + 1) < len(graph["nodes"])
    ]
    return {
        "name": name,
        "phase": "step",
        "backend": "cpu",
        "signature": [{"name": "x", "shape": [16, 1], "dtype": "float32"}],
        "graph": graph,
        "optimised": graph,
        "passes": [{"name": "cse", "nodes_before": 20, "nodes_after": 18, "seconds": 0.001, "changed": True}],
        "rewrites": [{"rule": "double_neg", "count": 2, "text": "-(-x) -> x"}],
        "kernels": kernels,
        "edges": edges,
        "memory": {"arena_bytes": 12288, "unshared_bytes": 40960, "unfused_peak_bytes": 16384, "buffers": buffers},
        "refusals": refusals,
        "totals": {
            "bytes_read": 4096 * len(kernels),
            "bytes_written": 4096 * len(kernels),
            "flops": 1_000_000,
            "unfused_bytes": 65536 * len(kernels),
            "operations": len(graph["nodes"]) - 1,
            "kernels": len(kernels),
        },
        "seconds": {"passes": 0.01, "llvm": 0.2},
        "from_cache": False,
        "in_place": [],
    }


class Elements(HTMLParser):
    """The elements of a page: (tag, attributes, text inside of script and style), and whether all of them are closed."""

    VOID = frozenset({"meta", "input", "br", "link", "img", "hr"})
    SELF_CLOSED = frozenset({"circle", "path", "rect", "line"})  # the drawing of the page's mark

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, dict[str, str | None], str]] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.unbalanced: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element begins."""
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element without an inside."""
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """An element ends: it must be the innermost."""
        if not self.open or self.open[-1][0] != tag:
            self.unbalanced.append(f"</{tag}> at {self.getpos()}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        """Text: kept for elements whose text is data or code."""
        if self.open and self.open[-1][0] in ("script", "style"):
            self.texts.append((*self.open[-1], data))


def script_text(page: str, identity: str) -> str:
    """What stands in the script element called `identity`."""
    found = re.search(rf'<script type="[^"]*" id="{identity}">(.*?)</script>', page, re.DOTALL)
    assert found is not None, f"no script element {identity}"
    return found[1]
