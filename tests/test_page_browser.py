"""The page in a real browser: headless Chromium, driven by selenium; skipped where one of the two is not installed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusegraph.inspect.page import render
from tests.page_tools import made_up, real, real_page

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: no browser can be driven")
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium with its chromedriver is installed: the page is not opened"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium of 1440 x 900."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--incognito"):
        options.add_argument(argument)
    options.add_argument("--window-size=1440,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pages."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "real.html").write_text(real_page(), encoding="utf-8")
    (folder / "large.html").write_text(render(made_up(500), None, {}), encoding="utf-8")
    return folder


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator[Any]:
    """The page of a real compile; what its console says is an error."""
    open_page(browser, folder / "real.html")
    yield browser
    assert complaints(browser) == []


def open_page(browser: Any, path: Path) -> None:
    """Open a page and wait until it has drawn everything."""
    browser.get("about:blank")
    browser.get(path.as_uri())
    WebDriverWait(browser, 20).until(lambda b: b.execute_script("return document.documentElement.dataset.ready"))


def complaints(browser: Any) -> list[str]:
    """Errors and warnings of the console since the last call."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def detail(browser: Any) -> str:
    return find(browser, "#detail").text


def press(browser: Any, *keys: str) -> None:
    """Keys into what has the focus."""
    ActionChains(browser).send_keys(*keys).perform()


def kernel_of(op: str) -> dict[str, Any]:
    return next(kernel for kernel in real()[0]["programs"][0]["kernels"] if op in kernel["operations"])


def test_a_large_page_is_drawn_without_complaints(browser, folder, record_property):
    open_page(browser, folder / "large.html")
    record_property("milliseconds until drawn", browser.execute_script("return document.documentElement.dataset.ready"))
    assert complaints(browser) == []
    assert len(browser.find_elements("css selector", "#fused-canvas [data-kernel]")) == 63
    browser.execute_script("FG.setOpen(true)")
    assert len(browser.find_elements("css selector", "#op-canvas [data-node]")) >= 499
    assert complaints(browser) == []


def test_nothing_is_asked_of_the_network(page):
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith(("file:", "about:", "blob:", "data:")) for url in asked), asked


def test_a_click_on_a_kernel_shows_its_code_and_its_lines(page):
    kernel = kernel_of("conv")
    find(page, f'#fused-canvas [data-kernel="{kernel["id"]}"]').click()
    text = detail(page)
    assert kernel["name"] in text and "the line of the convolution" in text and "page_tools.py" in text
    WebDriverWait(page, 10).until(lambda b: "def k" in find(b, "#detail .code:last-of-type, #detail").text)
    texts = real()[1][0][kernel["id"]]
    for label, form in (("Loop program", "loop"), ("Python", "python"), ("LLVM IR", "llvm"), ("Assembly", "asm")):
        (tab,) = [button for button in page.find_elements("css selector", "#detail [role=tab]") if button.text == label]
        tab.click()
        shown = page.execute_script("return [...document.querySelectorAll('#detail .code')].at(-1).textContent")
        assert "".join(shown.split()) == "".join(texts[form].split()), label
    assert page.find_elements("css selector", "#op-canvas .node.hit"), "its operations are marked in the other graph"
    assert page.find_elements("css selector", f'#dock tr.hit[data-kernel="{kernel["id"]}"]')


def test_a_click_on_an_operation_marks_its_kernel(page):
    kernel = kernel_of("conv")
    node = next(n for n in real()[0]["programs"][0]["optimised"]["nodes"] if n["op"] == "conv")
    page.execute_script("FG.setOpen(true)")
    element = find(page, f'#op-canvas [data-node="{node["id"]}"]')
    page.execute_script("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", element)
    assert "operation #" in detail(page) and f"k{kernel['id']}" in detail(page)
    (hit,) = page.find_elements("css selector", "#fused-canvas .node.hit")
    assert hit.get_attribute("data-kernel") == str(kernel["id"])


def test_search_finds_a_line_and_shows_its_kernels(page):
    press(page, "/")
    assert page.switch_to.active_element.get_attribute("id") == "search"
    press(page, "self.conv(x).relu")
    hits = page.find_elements("css selector", "#results li")
    assert len(hits) == 1 and "line" in hits[0].text
    press(page, Keys.ENTER)
    assert "source line" in detail(page) and f"k{kernel_of('conv')['id']}" in detail(page)
    assert not find(page, "#results").is_displayed()
    press(page, "/", "conv")
    kinds = [hit.text for hit in page.find_elements("css selector", "#results .kind")]
    assert kinds == sorted(kinds, key=["line", "kernel", "op", "input", "buffer"].index) and {"line", "input"} <= set(
        kinds
    )
    press(page, Keys.ESCAPE)
    press(page, "/", "there is no such thing")
    assert "Nothing found" in find(page, "#results").text
    press(page, Keys.ESCAPE)
    assert not find(page, "#results").is_displayed()


def test_a_graph_can_be_walked_with_the_keyboard(page):
    page.execute_script("document.querySelector('#fused-canvas svg').focus()")
    press(page, Keys.ARROW_DOWN)
    first = page.switch_to.active_element.get_attribute("data-kernel")
    press(page, Keys.ARROW_DOWN)
    second = page.switch_to.active_element.get_attribute("data-kernel")
    assert first is not None and second is not None and first != second
    press(page, Keys.ENTER)
    assert f"k{second}" in detail(page) and "kernel over" in detail(page)
    press(page, Keys.ESCAPE)
    assert "Where to begin".lower() in detail(page).lower()


def test_every_control_is_reached_with_tab(page):
    seen = []
    page.execute_script("document.activeElement.blur()")
    for _ in range(45):
        press(page, Keys.TAB)
        active = page.switch_to.active_element
        seen.append(active.get_attribute("id") or active.get_attribute("aria-label") or active.text)
    order = [
        next(i for i, text in enumerate(seen) if part in (text or ""))
        for part in ("search", "theme", "Operations", "Kernels")
    ]
    assert order == sorted(order), seen


def test_groups_open_and_close(page):
    page.execute_script("FG.setOpen(false)")
    closed = page.find_elements("css selector", "#op-canvas [data-group]")
    assert closed and all(group.get_attribute("aria-expanded") == "false" for group in closed)
    count = len(page.find_elements("css selector", "#op-canvas .node"))
    page.execute_script("arguments[0].focus()", closed[0])
    press(page, Keys.ENTER)
    assert len(page.find_elements("css selector", "#op-canvas .node")) > count
    press(page, Keys.ENTER)
    assert len(page.find_elements("css selector", "#op-canvas .node")) == count


def test_why_two_operations_were_not_merged(page):
    program = real()[0]["programs"][0]
    refusal = next(r for r in program["refusals"] if r["producer_node"] is not None and r["consumer_node"] is not None)
    page.execute_script(
        "FG.askBoth({kind: 'op', id: arguments[0], graph: 'optimised'}, {kind: 'op', id: arguments[1], graph: 'optimised'})",
        refusal["producer_node"],
        refusal["consumer_node"],
    )
    answer = find(page, "#detail .answer").text
    assert refusal["rule"][1:] in answer or "They were merged" in answer
    kernel = max(program["kernels"], key=lambda kernel: len(kernel["nodes"]))
    press(page, Keys.ESCAPE)
    page.execute_script("FG.ask({kind: 'kernel', id: arguments[0]})", kernel["id"])
    field = find(page, "#ask-1")
    field.send_keys(f"#{kernel['nodes'][0]}", Keys.TAB)
    assert "They were merged" in find(page, "#detail .answer.good").text


def test_search_asks_with_shift(page):
    first, second = (k for k in real()[0]["programs"][0]["kernels"][:2])
    press(page, "/", f"k{first['id']} ", Keys.ENTER)
    press(page, "/", f"k{second['id']} ")
    ActionChains(page).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
    assert f"k{first['id']}" in detail(page) and f"k{second['id']}" in detail(page)
    assert find(page, "#detail .answer").text


def test_lines_tell_forward_kernels_from_gradients(page):
    press(page, "3")
    row = next(row for row in page.find_elements("css selector", "[data-line]") if "the line of the conv" in row.text)
    badges = [
        (badge.text, "back" in badge.get_attribute("class")) for badge in row.find_elements("css selector", ".badge")
    ]
    assert badges[0] == (f"k{kernel_of('conv')['id']}", False)
    assert any(back for _, back in badges) and badges == sorted(badges, key=lambda badge: badge[1])
    row.click()
    assert "FORWARD: RUNS IN" in detail(page) and "BACKWARD AND UPDATE" in detail(page)


def test_refused_fusions_are_dashed_and_ranked(page):
    program = real()[0]["programs"][0]
    assert page.find_elements("css selector", "#fused-canvas .edge.refused")
    press(page, "n")
    rows = page.find_elements("css selector", "#dock tr[data-refusal]")
    assert len(rows) == len(program["refusals"]) > 0
    rows[0].click()
    assert program["refusals"][0]["rule"][1:] in find(page, "#detail .answer").text
    dash = find(page, "#fused-canvas .edge.refused").value_of_css_property("stroke-dasharray")
    assert dash not in ("none", "")


def test_memory_and_passes(page):
    program = real()[0]["programs"][0]
    press(page, "m")
    placed = [buffer for buffer in program["memory"]["buffers"] if buffer["offset"] is not None]
    assert len(page.find_elements("css selector", "#dock rect[data-buffer]")) == len(placed)
    page.execute_script("arguments[0].focus()", find(page, "#dock rect[data-buffer]"))
    press(page, Keys.ENTER)
    assert "offset in the arena" in detail(page)
    press(page, "p")
    text = find(page, "#dock").text
    assert all(entry["name"] in text for entry in program["passes"])
    assert all(entry["rule"] in text for entry in program["rewrites"])


def test_dark_and_light(page):
    def background() -> str:
        return find(page, "body").value_of_css_property("background-color")

    def prefer(scheme: str) -> None:
        page.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )

    light = background()
    prefer("dark")
    WebDriverWait(page, 5).until(lambda _: background() != light)
    dark = background()
    prefer("light")
    WebDriverWait(page, 5).until(lambda _: background() == light)
    press(page, "t")
    assert background() == dark
    press(page, "t")
    assert background() == light
    page.execute_script("localStorage.clear()")


def test_help_opens_and_closes(page):
    press(page, "?")
    assert "Keys and mouse" in find(page, "#help-box").text and "dagre" in find(page, "#help-box").text
    press(page, Keys.ESCAPE)
    assert not find(page, "#help-box").is_displayed()


def test_an_address_selects(browser, folder):
    kernel = kernel_of("conv")
    browser.get("about:blank")
    browser.get((folder / "real.html").as_uri() + f"#kernel-{kernel['id']}")
    WebDriverWait(browser, 20).until(lambda b: kernel["name"] in detail(b))
    assert complaints(browser) == []
