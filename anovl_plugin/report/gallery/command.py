"""The command ``python -m anovl_plugin.report gallery``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from anovl_plugin.report.gallery.page import Written, write_gallery
from anovl_plugin.report.results import ReportError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 2 if the results cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m anovl_plugin.report gallery",
        description="Write the results of a run as one HTML page, to look at in any browser.",
    )
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder of a run, such as results/AnoVL/latest")
    parser.add_argument("--out", type=Path, metavar="FILE", help="page to write; default: RESULTS/gallery.html")
    parser.add_argument(
        "--megabytes",
        type=_megabytes,
        default=20,
        metavar="SIZE",
        help="size up to which large pictures are put into the page, mistakes and the highest scores first; "
        "default: %(default)s",
    )
    options = parser.parse_args(arguments)
    try:
        written = write_gallery(options.results, options.out, options.megabytes)
    except (ReportError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(describe(written))  # noqa: T201
    return 0


def describe(written: Written) -> str:
    """Return what was written in a few lines."""
    images = f"{written.images} image{'' if written.images == 1 else 's'}"
    size = f"{written.size / 1e6:.1f} MB" if written.size >= 1e5 else f"{written.size / 1e3:.0f} kB"
    lines = [f"{images}, {size}: {written.path}"]
    if written.embedded < written.images - written.without_thumbnail:
        lines.append(
            f"large pictures in the page: {written.embedded}; the others are loaded from the folder of the run, "
            "so keep the page where it is, or give a larger --megabytes"
        )
    if written.without_thumbnail:
        lines.append(f"neither image nor picture could be read: {written.without_thumbnail}")
    return "\n".join(lines)


def _megabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 10000:
        msg = f"{text!r} is not a size from 0 to 10000"
        raise argparse.ArgumentTypeError(msg)
    return value
