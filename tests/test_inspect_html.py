"""What notebooks show: well-formed, self-contained, escaped."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
from fusegraph import nn
from fusegraph.ir.text import parse
from fusegraph.runtime import calibration
from fusegraph.runtime.calibration import Calibration, Roofline

X = np.ones((4, 6), np.float32)


def tree_of(text: str) -> Any:
    """The elements of a piece of HTML (which is well-formed as XML too)."""
    for part in ("<script", "http://", "https://", "src=", "onclick"):
        assert part not in text.replace("http://www.w3.org/2000/svg", ""), part
    return ElementTree.fromstring(f"<div>{text.replace('<br>', '<br/>')}</div>")


def texts(text: str) -> str:
    return " ".join(tree_of(text).itertext())


def test_an_explanation_is_a_table_of_kernels() -> None:
    model = fg.compile(nn.Sequential(nn.Linear(6, 3), nn.Tanh()))
    explanation = model.explain(X)
    page = explanation._repr_html_()
    rows = tree_of(page).findall(".//tbody/tr")
    assert len(rows) == explanation.kernels
    assert "(forward)" in texts(page) and "(backward)" in texts(page) and "Sequential.0" in texts(page)


def test_measured_times_have_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Roofline(1, 1e6, ((1, 1e6), (2, 1e6)))
    monkeypatch.setattr(calibration, "stored", lambda: Calibration(line, line))
    monkeypatch.setattr(calibration, "measure_again", lambda: Calibration(line, line))
    profile = fg.compile(lambda x: x.exp()).profile(X, steps=1)
    assert "measured" in texts(profile._repr_html_()) and "of the roofline" in texts(profile._repr_html_())


def test_a_compiled_function_lists_its_versions() -> None:
    function = fg.compile(lambda x: x.exp())
    assert "not called yet" in function._repr_html_()
    function(X)
    function(X[:2])
    page = function._repr_html_()
    assert len(tree_of(page).findall(".//tbody/tr")) == 2
    assert "x float32[4, 6]" in texts(page)
    assert "argument `x` axis 0 was 4, now 2; axis 0 at run time, up to 4" in texts(page)


def test_a_small_graph_is_drawn_and_a_large_one_counted() -> None:
    graph = fg.compile(lambda x: (x.exp() + 1.0).sum(1)).compiled_for(X).artifact.source
    page = graph._repr_html_()
    drawn = tree_of(page)
    boxes = drawn.findall(".//{http://www.w3.org/2000/svg}rect")
    assert len(boxes) == sum(node.op != "constant" for node in graph.nodes)
    places = {(box.get("x"), box.get("y")) for box in boxes}
    assert len(places) == len(boxes)

    def long(x: Any) -> Any:
        for _ in range(70):
            x = x.exp().tanh()
        return x

    large = fg.compile(long).compiled_for(X).artifact.source
    assert "svg" not in large._repr_html_() and "tanh 70" in texts(large._repr_html_()).replace("  ", " ")


def test_an_empty_graph_is_shown() -> None:
    assert "0 nodes" in texts(parse("graph g() {\n  return\n}")._repr_html_())


def test_texts_are_escaped() -> None:
    function = fg.compile(lambda x: x.exp())
    function(X)
    report = function.explain().to_dict()
    report["programs"][0]["name"] = "<script>alert(1)</script>"
    report["programs"][0]["kernels"][0]["lines"] = ["<b>&"]
    page = function.explain()._repr_html_().replace("&lt;script&gt;", "")
    from fusegraph.inspect.html_repr import explanation_html

    assert "<script" not in explanation_html(report) and "&lt;b&gt;&amp;" in explanation_html(report)
    assert page


def test_a_difference_is_shown() -> None:
    a, b = (fg.compile(f).explain(X) for f in (lambda x: x.exp().sum(1), lambda x: x.exp().sum(1).tanh() @ np.ones(4, np.float32)))  # fmt: skip
    shown = texts(fg.diff(a, b)._repr_html_())
    assert "kernels" in shown and ("gained" in shown or "changed" in shown)
    assert "the same kernels" in texts(fg.diff(a, a)._repr_html_())
