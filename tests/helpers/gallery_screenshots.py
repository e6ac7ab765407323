"""Takes the screenshots of docs/gallery.md: ``python -m tests.helpers.gallery_screenshots``.

The run is a test of the demo's four materials, with a fixed threshold so that there are mistakes to show.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anomalib.engine import Engine

from anovl_plugin import AnoVL, MultiCategory, ZeroShotPostProcessor
from anovl_plugin.demo import DemoSurfaces
from anovl_plugin.report.gallery import write_gallery
from tests.helpers.browser import NARROW, WIDE, Page, open_browser, take_screenshot

IMAGES = Path(__file__).parents[2] / "docs" / "images"
MATERIALS = ["brick", "grass", "gravel", "wood"]
THRESHOLD = 0.41


def run_materials(root: Path) -> Path:
    """Test the demo's model on all materials, and return the folder of the run, which is below a root."""
    model = AnoVL("anovl-demo", domain="texture", post_processor=ZeroShotPostProcessor(image_threshold=THRESHOLD))
    data = MultiCategory(DemoSurfaces("surfaces"), MATERIALS)
    Engine(accelerator="cpu", devices=1, default_root_dir=root, logger=False).test(model, datamodule=data)
    (table,) = root.rglob("v0/predictions.csv")
    return table.parent


def take_screenshots(gallery: Path, folder: Path) -> None:
    """Write the gallery and an image that is open, on a wide and on a narrow screen."""
    for name, size in (("wide", WIDE), ("narrow", NARROW)):
        # Chromium may still be changing screens when it should draw.
        with open_browser() as browser:
            page = Page(browser, gallery, size)
            take_screenshot(browser, folder / f"gallery_{name}.jpg")
            page.all(".card")[0].click()
            page.picture_width()
            take_screenshot(browser, folder / f"gallery_{name}_open.jpg")


@contextmanager
def chdir(folder: str) -> Iterator[None]:
    """Work in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def main() -> None:
    with tempfile.TemporaryDirectory() as root, chdir(root):
        run = run_materials(Path("results"))
        table = run / "predictions.csv"
        # Paths of images as they are if the data is given by a relative path.
        table.write_text(table.read_text(encoding="utf-8").replace(f"{Path.cwd()}{os.sep}", ""), encoding="utf-8")
        take_screenshots(write_gallery(run).path, IMAGES)


if __name__ == "__main__":
    main()
