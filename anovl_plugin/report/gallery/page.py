"""Writes the page of a gallery, which needs no other file and no network."""

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader
from tqdm import tqdm

from anovl_plugin.components.results.coco import CATEGORY
from anovl_plugin.components.results.predictions import ABNORMAL, NORMAL, UNREADABLE
from anovl_plugin.components.results.whole_file import whole_file
from anovl_plugin.components.runs.run_record import RECORD
from anovl_plugin.report.gallery.histogram import HEIGHT, WIDTH, draw_histogram
from anovl_plugin.report.gallery.items import (
    FALSE_ALARM,
    FOUND,
    MISSED,
    PASSED,
    UNDECIDED,
    Item,
    first_shown,
)
from anovl_plugin.report.gallery.run_results import read_run
from anovl_plugin.report.gallery.thumbnails import draw_item, encode, read_small

PAGE = "gallery.html"
# The longer sides in pixels, and WebP qualities.
_THUMBNAIL, _THUMBNAIL_QUALITY = 144, 45
_PICTURE, _PICTURE_QUALITY = 1600, 75
# Bytes of the element that holds a picture, rounded up.
_AROUND_PICTURE = 64
_MOST_CLASSES = 50
_HERE = Path(__file__).parent


class Written(NamedTuple):
    """What :func:`write_gallery` has written.

    Attributes:
        path: The page.
        size: Its size in bytes.
        images: Number of images on it.
        without_thumbnail: Number of images of which neither the file nor a picture could be read.
        embedded: Number of images whose large picture is in the page.
    """

    path: Path
    size: int
    images: int
    without_thumbnail: int
    embedded: int


def write_gallery(folder: str | Path, target: str | Path | None = None, megabytes: float = 20) -> Written:
    """Write the results of a run as one HTML page.

    Args:
        folder: Folder of the run, with ``predictions.csv``.
        target: File to write. Default: ``gallery.html`` in the folder of the run.
        megabytes: Size up to which large pictures are put into the page, mistakes and the highest scores first. All
            others are loaded from ``images`` in the folder of the run when they are opened. Thumbnails of all images
            are always in the page. Default: 20.

    Raises:
        ReportError: As :func:`~anovl_plugin.report.gallery.run_results.read_run`.
        OSError: If the page cannot be written.
    """
    folder = Path(folder)
    target = folder / PAGE if target is None else Path(target)
    items = sorted(read_run(folder), key=first_shown)
    thumbnails = list(tqdm(_encode_thumbnails(items), "thumbnails", len(items), disable=None, leave=False))
    context = describe_page(folder, target, items) | {"thumbnails": thumbnails, "pictures": {}}
    context["pictures"] = dict(_encode_pictures(items, round(megabytes * 1e6) - len(_to_bytes(context))))
    data = _to_bytes(context)
    with whole_file(target) as unfinished:
        unfinished.write_bytes(data)
    return Written(target, len(data), len(items), thumbnails.count(""), len(context["pictures"]))


def describe_page(folder: Path, target: Path, items: list[Item]) -> dict[str, Any]:
    """Return what a page says, without its images.

    Args:
        folder: Folder of the run.
        target: Page that is to be written, from which pictures are linked.
        items: Images of the run, in the order in which they are shown.
    """
    classes = sorted({item.class_name for item in items if item.class_name})
    with_truth = any(item.ground_truth for item in items)
    drawn = [draw_histogram(items), *(draw_histogram(items, name) for name in classes[:_MOST_CLASSES])]
    words = sorted({region.name for item in items for region in item.regions})
    return {
        "name": folder.resolve().name,
        "title": ", ".join(classes if len(classes) < 5 else [*classes[:3], f"and {len(classes) - 3} more"]),
        "rows": [describe_item(item, target) for item in items],
        "classes": classes,
        "outcomes": list_outcomes(items),
        # A single word for all regions is no choice.
        "defects": words if set(words) - {CATEGORY} else [],
        "folders": sorted({item.folder for item in items}),
        "columns": list_columns(items),
        "counts": list(count_outcomes(items, classes)),
        "with_truth": with_truth,
        "histograms": [each for each in drawn if each is not None],
        "size": (WIDTH, HEIGHT),
        "record": _read_record(folder),
    }


def list_columns(items: list[Item]) -> list[str]:
    """Return the outcomes that are counted: those of a test, or of a prediction, and all others that there are."""
    outcomes = {item.outcome for item in items}
    decided = (MISSED, FALSE_ALARM, FOUND, PASSED) if any(item.ground_truth for item in items) else (ABNORMAL, NORMAL)
    rest = (ABNORMAL, NORMAL, UNREADABLE, UNDECIDED)
    return [*decided, *(name for name in rest if name in outcomes and name not in decided)]


def count_outcomes(items: list[Item], classes: list[str]) -> Iterator[tuple[str, int, dict[str, int]]]:
    """Yield the number of images and of each outcome: of all images, then of each class if there are several.

    Args:
        items: Images of a run.
        classes: Their classes.
    """
    for name in ["", *(classes if len(classes) > 1 else [])]:
        chosen = [item for item in items if not name or item.class_name == name]
        yield name, len(chosen), Counter(item.outcome for item in chosen)


def list_outcomes(items: list[Item]) -> list[tuple[str, str]]:
    """Return value and text of the choices of verdicts that there are."""
    outcomes, labels = {item.outcome for item in items}, {item.label for item in items}
    choices = [("mistakes", "mistakes")] if {MISSED, FALSE_ALARM} & outcomes else []
    choices += [(name, name) for name in (MISSED, FALSE_ALARM, FOUND, PASSED) if name in outcomes]
    choices += [(name, f"all {name}" if choices else name) for name in (ABNORMAL, NORMAL) if name in labels]
    return choices + [(name, name) for name in (UNREADABLE, UNDECIDED) if name in outcomes]


def describe_item(item: Item, target: Path) -> dict[str, Any]:
    """Return what the script of the page knows of an image.

    Args:
        item: The image.
        target: Page from which its picture is linked.
    """
    regions = [
        [region.name, f"{region.score:.3f}", region.area, "{}, {}, {} × {}".format(*region.box)]
        for region in item.regions
    ]
    return {
        "name": item.name,
        "path": item.path,
        "folder": item.folder,
        "class": item.class_name,
        "score": item.score,
        "scoreText": item.score_text,
        "thresholdText": item.threshold_text,
        "label": item.label,
        "truth": item.ground_truth,
        "outcome": item.outcome,
        "mistake": item.is_mistake,
        "defects": sorted({region.name for region in item.regions}),
        "regions": regions,
        "explanation": item.explanation,
        "milliseconds": item.milliseconds,
        "error": item.error,
        "link": _link(item.picture, target),
    }


def render(context: dict[str, Any]) -> str:
    """Return the page.

    Args:
        context: What :func:`describe_page` returns, with ``thumbnails`` and ``pictures``.
    """
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    script, style = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    # Only this script and this style may run, whatever is in the names of files and classes.
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "img-src data: 'self' file:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    template = environment.get_template("page.html.jinja")
    return template.render(context, zip=zip, script=script, style=style, policy=policy)


def _to_bytes(context: dict[str, Any]) -> bytes:
    return render(context).encode("utf-8", "replace")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _encode_thumbnails(items: list[Item]) -> Iterator[str]:
    """Yield the thumbnail of each image in base 64; an empty text if nothing of it can be read."""
    with ThreadPoolExecutor(4) as pool:
        yield from pool.map(_encode_thumbnail, items)


def _encode_thumbnail(item: Item) -> str:
    image = draw_item(item, _THUMBNAIL)
    return "" if image is None else base64.b64encode(encode(image, _THUMBNAIL_QUALITY)).decode()


def _encode_pictures(items: list[Item], room: int) -> Iterator[tuple[int, str]]:
    """Yield the numbers of the first images and their pictures in base 64, until there is no more room.

    Args:
        items: Images in the order of their importance.
        room: Number of characters that may be used.
    """
    rest = iter(enumerate(items))
    with ThreadPoolExecutor(4) as pool:
        while room > 0 and (part := list(islice(rest, 16))):
            for (number, _), text in zip(part, pool.map(_encode_picture, [item for _, item in part]), strict=True):
                room -= len(text) + _AROUND_PICTURE
                if room < 0:
                    return
                if text:
                    yield number, text


def _encode_picture(item: Item) -> str:
    picture = None if item.picture is None else read_small(item.picture, _PICTURE)
    picture = draw_item(item, _PICTURE) if picture is None else picture
    return "" if picture is None else base64.b64encode(encode(picture, _PICTURE_QUALITY)).decode()


def _link(picture: Path | None, target: Path) -> str:
    """Return the address of a picture as seen from the page; empty if there is no such picture."""
    if picture is None or not picture.exists():
        return ""
    try:
        path = os.path.relpath(picture.absolute(), target.absolute().parent)
    except ValueError:
        # On another drive of Windows.
        return picture.absolute().as_uri()
    return quote(Path(path).as_posix())


def _read_record(folder: Path) -> str:
    try:
        return (folder / RECORD).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
