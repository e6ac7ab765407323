"""Run commands as a user does, and read anomalib's command lines without creating anything."""

import os
import subprocess
import sys
from pathlib import Path

from anomalib.cli.cli import AnomalibCLI

ROOT = Path(__file__).parents[2]
# tests/integration/test_guide.py runs this page as a whole.
GUIDE = ROOT / "docs" / "first_prediction.md"


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Run a command of this environment in a folder, offline and with a cache of its own."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    scripts = Path(sys.executable).parent
    words = [str(scripts / words[0]), *words[1:]] if words[0] in {"anomalib", "python"} else words
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


class ReadingCLI(AnomalibCLI):
    """Reads a command line and creates neither model nor data."""

    def before_instantiate_classes(self):
        """Keep the configuration unchanged."""

    def instantiate_classes(self):
        """Create nothing."""
