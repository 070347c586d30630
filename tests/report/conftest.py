"""A real browser for the report: headless Chromium through selenium; skipped with a message where it is absent."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Browser:
    """Opens files as a reader would and tells what went wrong."""

    def __init__(self, driver: Any):
        self.driver = driver

    def open(self, path: Path, *, width: int, scheme: str = "light") -> None:
        """Load a file in a viewport of that width, in light or dark."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get_log("performance")
        self.driver.get(path.as_uri())
        self.driver.execute_script("document.querySelectorAll('details').forEach(item => item.open = true)")

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def overflowing(self) -> list[str]:
        """The page itself and elements that stick out of the viewport, but for what scrolls in a region of its own."""
        return self.run("""
            const width = document.documentElement.clientWidth;
            const found = document.documentElement.scrollWidth > width ? ['page'] : [];
            for (const item of document.body.querySelectorAll('*')) {
                const box = item.getBoundingClientRect();
                const isHidden = item.closest('.skip, .scroll table, defs');
                if (!isHidden && box.width && (box.right > width + 1 || box.left < -1))
                    found.push(item.tagName + '.' + item.className);
            }
            return found;""")

    def console_errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        """URLs that the page asked for since it was opened, itself and data: URIs left out."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith("data:") and url != self.driver.current_url]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    binary, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not chromedriver:
        pytest.skip("no chromium and chromedriver: `apt-get install chromium chromium-driver`")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
