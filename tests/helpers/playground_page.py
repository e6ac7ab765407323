"""A playground that is being served, and its page on the screen."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.helpers.browser import WIDE, resize

PHONE = (390, 844)
# Runs the program, and ends it if it connects to anything but this machine.
GUARDED = """
import os, runpy, signal, sys

# Ignored in what a shell runs in the background, and so in all that this starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

def watch(event, arguments):
    host = None
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    if host not in {None, "", "127.0.0.1", "localhost"}:
        print("Traceback: connects to", host, file=sys.stderr, flush=True)
        os._exit(3)

sys.addaudithook(watch)
runpy.run_module("anovl_plugin.playground", run_name="__main__", alter_sys=True)
"""


@contextmanager
def serve_playground(folder: Path, *arguments: str) -> Iterator[str]:
    """Serve a playground that is started in a folder, and yield its address."""
    command = [sys.executable, "-c", GUARDED, "--port", "0", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    log = folder / "log.txt"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as server,
    ):
        try:
            line = server.stdout.readline()
            found = re.fullmatch(
                r"The playground is at (http://127\.0\.0\.1:\d+)/ \(to end it, press Ctrl\+C\)\n", line
            )
            assert found, log.read_text()[-2000:]
            yield found.group(1)
        finally:
            server.send_signal(signal.SIGINT)
            rest = server.stdout.read()
    # It ends as it should, and writes nothing else.
    assert (server.returncode, rest) == (0, "")
    assert "Traceback" not in log.read_text(), log.read_text()[-2000:]


class PlaygroundPage:
    """A playground on the screen.

    Args:
        browser: Browser to show it in.
        address: Where it is served.
        size: Width and height of the screen in pixels.
    """

    def __init__(self, browser: Chrome, address: str, size: tuple[int, int] = WIDE) -> None:
        self.browser = browser
        resize(browser, size)
        # What is cut short when a page is left is not a complaint of the next one.
        browser.get("about:blank")
        browser.get_log("browser")
        browser.get(address)
        self.wait(lambda: self.all("#result-a .result"))

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        (element,) = self.all(selector)
        return element

    def wait(self, condition):
        return WebDriverWait(self.browser, 20, poll_frequency=0.02).until(lambda _: condition())

    def write(self, field, text):
        """Replace what is in a field, such as ``class-a``; lines are separated by Shift and Enter."""
        element = self.one(f"#{field} input, #{field} textarea")
        element.send_keys(Keys.CONTROL, "a")
        element.send_keys(Keys.DELETE)
        element.send_keys(text)
        return element

    def choose(self, field, text):
        """Choose from a list, such as ``choice``."""
        element = self.one(f"#{field} input")
        element.click()
        element.send_keys(Keys.CONTROL, "a")
        element.send_keys(text, Keys.ENTER)

    def drop(self, field, *paths):
        """Give files to ``dropped`` or ``references``."""
        self.one(f"#{field} input[type=file]").send_keys("\n".join(map(str, paths)))

    def run(self):
        self.one("#run").click()

    def verdict(self, name="a"):
        """Return the verdict in words; the problem if there is one, and nothing if there is no result."""
        # In one step, because a result may be replaced at any time.
        script = "return (document.querySelector(arguments[0]) || {innerText: ''}).innerText"
        found = self.browser.execute_script(script, f"#result-{name} :is(.verdict, .problem)")
        return " ".join(found.split())

    def score(self, name="a"):
        found = re.search(r"score (\S+),", self.verdict(name))
        return float(found.group(1)) if found else None

    def wait_for(self, pattern, name="a"):
        """Wait until a result has a text that matches, and return its verdict."""
        script = "return (document.querySelector(arguments[0]) || {innerText: ''}).innerText"
        self.wait(lambda: re.search(pattern, self.browser.execute_script(script, f"#result-{name}")))
        return self.verdict(name)

    def complaints(self):
        return [entry["message"] for entry in self.browser.get_log("browser")]
