"""Chromium without a window, and what tests and screenshots do with it."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.helpers.chromium import CHROMIUM, DRIVER

NARROW, WIDE = (360, 740), (1280, 800)


@contextmanager
def open_browser(*, with_requests: bool = False) -> Iterator[Chrome]:
    """Start a browser that keeps nothing, has no network, and logs what a page complains about.

    Args:
        with_requests: Whether it also logs what pages ask for, see :func:`requested_addresses`. Default: no.
    """
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    # Continuous integration runs as root in containers with little shared memory.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--lang=en"):
        options.add_argument(argument)
    # Pages that were left would keep their connections to a server, of which there are six.
    options.add_argument("--disable-features=BackForwardCache")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL" if with_requests else "OFF"})
    browser = Chrome(options, ChromeService(str(DRIVER)))
    try:
        yield browser
    finally:
        browser.quit()


def resize(browser: Chrome, size: tuple[int, int]) -> None:
    """Show pages on a screen of a width and height in pixels; narrower than 500, on that of a phone."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def requested_addresses(browser: Chrome) -> set[str]:
    """Return the addresses that pages asked for, or opened a connection to, since this was called last."""
    found = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            found.add(message["params"]["request"]["url"])
        elif message["method"] == "Network.webSocketCreated":
            found.add(message["params"]["url"])
    return found


def take_screenshot(browser: Chrome, path: Path) -> None:
    """Write what is on the screen as a JPEG file."""
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "jpeg", "quality": 85})
    path.write_bytes(base64.b64decode(taken["data"]))


class Page:
    """A gallery on the screen.

    Args:
        browser: Browser to show it in.
        path: The page.
        size: Width and height of the screen in pixels.
    """

    def __init__(self, browser, path, size=WIDE):
        self.browser = browser
        resize(browser, size)
        browser.get_log("browser")
        browser.get(path.resolve().as_uri())

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        (element,) = self.all(selector)
        return element

    def choose(self, name, text):
        Select(self.one(f"#{name}")).select_by_visible_text(text)

    def press(self, *names):
        for name in names:
            ActionChains(self.browser).send_keys(getattr(Keys, name, name)).perform()

    def wait(self, condition):
        return WebDriverWait(self.browser, 20).until(lambda _: condition())

    @property
    def names(self):
        return [element.text for element in self.all(".card .name")]

    @property
    def status(self):
        return self.one("#status").text

    @property
    def focused(self):
        return self.browser.switch_to.active_element

    @property
    def open_name(self):
        return self.one("#viewer-name").text

    def picture_width(self):
        """Wait for the picture that is open, and return the width of its file in pixels."""
        script = "const p = document.getElementById('picture'); return p.complete ? p.naturalWidth : 0"
        return self.wait(lambda: self.browser.execute_script(script))

    def complaints(self):
        return [entry["message"] for entry in self.browser.get_log("browser")]
