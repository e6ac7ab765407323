"""Architectures of tiny CLIPs, as files for open_clip."""

from pathlib import Path

ARCHITECTURES = Path(__file__).parent
# Those that the package supports; the others are there to be rejected.
TINY = ("tiny-square", "tiny-wide", "tiny-quickgelu", "tiny-layerscale", "tiny-customtext")
