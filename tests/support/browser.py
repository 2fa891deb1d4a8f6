"""A real browser without a window, where the machine has one."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

WAIT_SECONDS = 30.0
DESKTOP, PHONE = (1360, 900), (390, 844)
BINARIES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

BINARY = next((path for name in BINARIES if (path := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")
AXE = Path(__file__).parents[1] / "assets/axe-core/axe.min.js"
STANDARDS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]

needs_browser = pytest.mark.skipif(
    BINARY is None or DRIVER is None,
    reason="no browser: neither pip nor this suite brings one; needs chromium or google-chrome, "
    "and chromedriver, on PATH (Debian: apt-get install chromium chromium-driver)",
)


class Browser:
    """One tab. Elements are named by CSS selectors."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def run(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(script, *args)

    def until(self, happened: Callable[[], Any], what: str) -> Any:
        """What `happened` gives once it is true."""
        return WebDriverWait(self.driver, WAIT_SECONDS, 0.05).until(lambda _: happened(), what)

    def violations(self) -> list[str]:
        """What axe-core finds against WCAG 2.2 AA: rule, element, and why."""
        if self.run("return !window.axe"):
            self.run(AXE.read_text())
        script = """
            const [tags, done] = arguments;
            axe.run({runOnly: {type: "tag", values: tags}}).then((found) => done(
                found.violations.flatMap(({id, nodes}) =>
                    nodes.map((node) => `${id}: ${node.target} ${node.failureSummary}`))))"""
        return list(self.driver.execute_async_script(script, STANDARDS))

    def complaints(self) -> list[str]:
        """What the console said since the last call: script errors, failed loads, and whatever the
        Content-Security-Policy refused."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def resize(self, size: tuple[int, int], pixel_ratio: float = 1.0) -> None:
        """The visible page; narrow as a phone's if need be, which no window can be."""
        width, height = size
        phone = width < 500
        metrics = {"width": width, "height": height, "deviceScaleFactor": pixel_ratio}
        metrics["mobile"] = phone
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str) -> None:
        """dark or light"""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@contextmanager
def browsing(size: tuple[int, int] = DESKTOP) -> Iterator[Browser]:
    """A browser of its own, with an empty profile, that ends with the block."""
    assert BINARY is not None
    options = ChromeOptions()
    options.binary_location = BINARY
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    driver = Chrome(options, Service(DRIVER))
    try:
        browser = Browser(driver)
        browser.resize(size)
        yield browser
    finally:
        driver.quit()
