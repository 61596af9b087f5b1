"""The page as text: valid, self-contained, complete, safe against what users call their things, always the same."""

import base64
import hashlib
import json
import re
import zlib
from importlib import resources
from pathlib import Path

import pytest

from fusegraph.inspect.page import render
from fusegraph.inspect.page.render import COMPRESS_FROM, SCRIPTS
from tests.page_tools import Elements, compiled_step, made_up, real, real_page, script_text

ROOT = Path(__file__).resolve().parent.parent


def test_elements_are_closed_and_named_once():
    elements = Elements(real_page())
    assert elements.unbalanced == [] and elements.open == []
    names = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(names) == len(set(names)) > 10
    assert real_page().startswith("<!doctype html>")


def test_nothing_is_fetched():
    elements = Elements(real_page())
    for tag, attributes in elements.found:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
        assert "src" not in attributes and "srcset" not in attributes, (tag, attributes)
        assert attributes.get("href", "#").startswith("#"), (tag, attributes)
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
    code = "\n".join(text for tag, attributes, text in elements.texts if tag == "style" or "type" not in attributes)
    assert not re.search(
        r"\bfetch\(|XMLHttpRequest|\bimport[ (]|WebSocket|sendBeacon|@import|url\(\s*[\"']?(?!#)h", code
    )
    assert set(re.findall(r"https?://[^\"'`\s)]+", code)) <= {"http://www.w3.org/2000/svg"}
    assert "sourceMappingURL" not in code


def test_policy_allows_these_scripts_and_nothing_else():
    elements = Elements(real_page())
    (policy,) = (a["content"] for tag, a in elements.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")
    scripts = [text for tag, attributes, text in elements.texts if tag == "script" and "type" not in attributes]
    assert len(scripts) == len(SCRIPTS)
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_the_report_is_in_the_page_whole():
    report, _, _ = real()
    inside = json.loads(script_text(real_page(), "report"))
    sources = inside.pop("sources")
    assert inside == json.loads(json.dumps(report))
    (file,) = (name for name in sources if name.endswith("page_tools.py"))
    assert any("the line of the convolution" in line for line in sources[file].values())
    assert len(sources[file]) < 120, "only lines near a node"


@pytest.mark.parametrize("count", [1, 9, 500])
def test_every_node_is_in_the_page(count):
    inside = json.loads(script_text(render(made_up(count + 1), None, {}), "report"))
    for name in ("graph", "optimised"):
        assert [node["id"] for node in inside["programs"][0][name]["nodes"]] == list(range(count + 1))
    assert script_text(render(made_up(count + 1), None, {}), "texts") == "[]"


def test_long_texts_are_compressed_and_come_back():
    report, texts, sources = real()
    packed = script_text(real_page(), "texts")
    plain = json.dumps(texts)
    assert len(plain) > COMPRESS_FROM and len(packed) < len(plain) / 2
    unpacked = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert unpacked == json.loads(plain)
    assert {"loop", "python", "llvm", "asm"} <= unpacked[0]["0"].keys()
    short = render(report, [{0: {"python": "def k0(): pass"}}], sources)
    assert json.loads(script_text(short, "texts")) == [{"0": {"python": "def k0(): pass"}}]


def test_what_users_write_cannot_leave_its_place():
    wicked = "</script><script>alert(1)</script><!--\u2028]]>&amp;'\"${x}@@REPORT@@"
    report = made_up(4, name=wicked)
    node = report["programs"][0]["optimised"]["nodes"][1]
    node["file"], node["line"], node["module"] = wicked, 1, wicked
    page = render(report, [{0: {"python": wicked}}], {wicked: [wicked]})
    elements = Elements(page)
    assert elements.unbalanced == [] and elements.open == []
    scripts = [text for tag, attributes, text in elements.texts if tag == "script"]
    assert len(scripts) == len(SCRIPTS) + 2
    inside = json.loads(script_text(page, "report"))
    assert inside["programs"][0]["optimised"]["nodes"][1]["module"] == wicked
    assert inside["sources"][wicked] == {"1": wicked} and inside["name"] == wicked
    assert json.loads(script_text(page, "texts"))[0]["0"]["python"] == wicked


def test_the_page_is_the_same_for_the_same_report():
    report, texts, sources = real()
    assert render(report, texts, sources) == real_page()
    again = render(json.loads(json.dumps(report)), json.loads(json.dumps(texts)), dict(reversed(sources.items())))
    assert again == real_page()


def test_dump_writes_this_page(tmp_path):
    step, arguments = compiled_step()
    files = step.dump(tmp_path, *arguments)
    assert tmp_path / "index.html" in files
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert len(page) < 2_000_000
    inside = json.loads(script_text(page, "report"))
    assert inside["programs"][0]["totals"]["kernels"] == len(real()[0]["programs"][0]["kernels"])


def test_every_rule_of_fusion_is_explained():
    """In words for those who do not know the compiler: hints.js, beside the rule itself."""
    source = (ROOT / "passes" / "groups.py").read_text(encoding="utf-8")
    rules = re.findall(r'Refused\(\s*f?"([^"]+)"', source)
    text = resources.files("fusegraph.inspect.page").joinpath("hints.js").read_text(encoding="utf-8")
    parts = re.findall(r'\[\s*"([^"]+)",\s*"', text)
    assert len(rules) > 12 and len(parts) > 12
    assert [rule for rule in rules if not any(part in rule for part in parts)] == []


def test_the_layout_library_carries_its_licence():
    folder = resources.files("fusegraph.inspect.page")
    licence = folder.joinpath("LICENSE-dagre.txt").read_text(encoding="utf-8")
    words = " ".join(licence.split())
    head = " ".join(
        folder.joinpath("dagre.min.js").read_text(encoding="utf-8").partition("*/")[0].replace("*", " ").split()
    )
    assert words in head
    assert "Copyright (c) 2012-2014 Chris Pettitt" in real_page()
