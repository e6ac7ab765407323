"""Takes the screenshots of docs/gallery.md: ``python -m tests.helpers.gallery_screenshots``.

Tests the demo's four materials with a threshold that none of them has asked for, so that there are mistakes, and shows
the gallery of this run at two widths.
"""

import tempfile
from pathlib import Path

from anomalib.engine import Engine

from anovl_plugin import AnoVL, MultiCategory, ZeroShotPostProcessor
from anovl_plugin.demo import DemoSurfaces
from anovl_plugin.report.gallery import write_gallery
from tests.helpers.browser import NARROW, WIDE, Page, open_browser, take_screenshot

IMAGES = Path(__file__).parents[2] / "docs" / "images"
MATERIALS = ["brick", "grass", "gravel", "wood"]
