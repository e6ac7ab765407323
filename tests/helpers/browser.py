"""Chromium without a window, and what tests and screenshots do with it."""

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
NARROW, WIDE = (360, 740), (1280, 800)


@contextmanager
def open_browser() -> Iterator[Chrome]:
    """Start a browser that keeps nothing, has no network, and logs what a page complains about."""
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    # Continuous integration runs as root in containers with little shared memory.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--lang=en"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options, ChromeService(str(DRIVER)))
    try:
        yield browser
    finally:
        browser.quit()


def resize(browser: Chrome, size: tuple[int, int]) -> None:
    """Show pages on a screen of a width and height in pixels; narrower than 500, on that of a phone."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def take_screenshot(browser: Chrome, path: Path) -> None:
    """Write what is on the screen as a JPEG file."""
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "jpeg", "quality": 85})
    path.write_bytes(base64.b64decode(taken["data"]))
