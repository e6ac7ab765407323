"""Takes the screenshots of docs/playground.md: ``python -m tests.helpers.playground_screenshots``.

They show the demo's own photographs and its small CLIP.
"""

import tempfile
from pathlib import Path

from selenium.webdriver import Chrome

from tests.helpers.browser import open_browser, resize, take_screenshot
from tests.helpers.playground_page import PHONE, PlaygroundPage, serve_playground

IMAGES = Path(__file__).parents[2] / "docs" / "images"
WIDTHS = {"wide": 1280, "narrow": PHONE[0]}
# A surface, and words that the small CLIP knows.
IMAGE, CLASS_NAME, DEFECTS = "wood, stain", "wood", "paint, plastic"


def open_on(browser: Chrome, address: str, width: int) -> PlaygroundPage:
    """Open the page on a screen of a width that is as tall as the page turns out to be."""
    page = PlaygroundPage(browser, address, (width, 900))
    page.choose("choice", IMAGE)
    page.wait(lambda: page.one("#image figcaption").text.startswith(IMAGE))
    page.write("class-a", CLASS_NAME)
    page.write("defects-a", f"{DEFECTS}\n")
    page.wait_for(f"about “{CLASS_NAME}”")
    return page


def take(page: PlaygroundPage, width: int, path: Path) -> None:
    """Write the whole page as a JPEG file."""
    page.browser.execute_script("document.activeElement.blur()")
    resize(page.browser, (width, page.browser.execute_script("return document.documentElement.scrollHeight")))
    page.browser.execute_script("scrollTo(0, 0); document.documentElement.style.overflow = 'hidden'")
    page.browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    take_screenshot(page.browser, path)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, serve_playground(Path(folder), "--device", "cpu") as address:
        for name, width in WIDTHS.items():
            # Chromium may still be changing screens when it should draw.
            with open_browser() as browser:
                page = open_on(browser, address, width)
                if name == "wide":
                    page.one("#compare input").click()
                    page.wait_for("score", "b")
                    page.write("class-b", "surface")
                    page.write("normal-b", "flawless {}\n{} without damage")
                    page.write("abnormal-b", "damaged {}\n{} with damage")
                    page.write("defects-b", "\n")
                    page.wait_for("about “surface”", "b")
                take(page, width, IMAGES / f"playground_{name}.jpg")


if __name__ == "__main__":
    main()
