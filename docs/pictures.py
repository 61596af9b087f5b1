"""Take the pictures of the documentation: the page of a dump of the network in docs/tour.md, in a headless Chromium.

    python docs/pictures.py            needs chromium, chromedriver and selenium; writes docs/images/*.png

Run it by hand when the page looks different; look at the pictures before they are committed.
"""

from __future__ import annotations

import re
import runpy
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
IMAGES = ROOT / "docs" / "images"

# name -> (width, height, dark, what is done before the picture is taken, the element that is taken; "" is the page)
PICTURES: dict[str, tuple[int, int, bool, str, str]] = {
    "page": (1500, 940, False, "FG.select({kind: 'kernel', id: 0})", ""),
    "dark": (1500, 940, True, "FG.chooseLeft('source'); FG.state.dock = 'memory'; FG.showDock(); FG.select(LINE)", ""),
    "why": (1500, 940, False, "FG.state.dock = 'refused'; FG.showDock(); FG.select({kind: 'why', refusal: 0})", ""),
    "op-graph": (2300, 1500, False, "FG.select(null); FG.opCanvas.fit()", "#op-canvas"),
    "fused-graph": (1900, 1300, False, "FG.select(null); FG.kernelCanvas.fit(true)", "#fused-canvas"),
    "memory": (1700, 940, False, "FG.state.dock = 'memory'; FG.showDock()", ".dock"),
    "code": (1500, 940, False, "FG.chooseLeft('source')", "#source-view"),
}
# The line of the convolution: selects it by its text.
LINE = "FG.matches('self.conv(x).relu')[0].selection"


def dumped(folder: Path) -> Path:
    """Run the code of the tour in `folder`, with measured times; gives its page."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "tour.md").read_text(encoding="utf-8"), re.M | re.S)
    script = folder / "tour.py"
    script.write_text("\n\n".join(blocks).replace("steps=3", "steps=50"), encoding="utf-8")
    names = runpy.run_path(str(script))
    names["step"].dump(folder / "out")
    return folder / "out" / "index.html"


def browser() -> Any:
    """A headless Chromium."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def take(driver: Any, page: Path, name: str) -> None:
    """One picture."""
    width, height, dark, script, element = PICTURES[name]
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get("about:blank")
    driver.get(page.as_uri())
    driver.execute_script(script.replace("LINE", LINE))
    time.sleep(0.5)  # texts are unpacked, colours have faded
    target = driver.find_element("css selector", element or "body")
    (IMAGES / f"{name}.png").write_bytes(target.screenshot_as_png if element else driver.get_screenshot_as_png())


def main() -> None:
    """Take all pictures."""
    IMAGES.mkdir(exist_ok=True)
    driver = browser()
    try:
        with tempfile.TemporaryDirectory() as folder:
            page = dumped(Path(folder))
            for name in sys.argv[1:] or PICTURES:
                take(driver, page, name)
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
