"""Reads what a run has written: ``predictions.csv``, and the regions in ``predictions.json`` if there are any."""

import csv
import io
import json
import math
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from anovl_plugin.components.images.file_names import with_suffix
from anovl_plugin.components.results.prediction_table import COCO, LINES, TABLE
from anovl_plugin.components.results.predictions import ABNORMAL, COLUMNS, NORMAL, UNREADABLE
from anovl_plugin.report.gallery.items import Item, Region
from anovl_plugin.report.results import ReportError

_LABELS = {NORMAL, ABNORMAL, UNREADABLE, ""}
_WHERE = "give the folder of a run, such as results/AnoVL/latest"


class Found(NamedTuple):
    """An image in the COCO file.

    Attributes:
        name: Its name there.
        size: Height and width.
        regions: Its regions.
    """

    name: str
    size: tuple[int, int]
    regions: tuple[Region, ...]


def read_run(folder: Path) -> list[Item]:
    """Return the images of a run, in the order of its table.

    Args:
        folder: Folder of the run.

    Raises:
        ReportError: If there is no such folder, no table in it, or one of its files is damaged.
    """
    if not folder.exists():
        msg = f"{folder}: no such folder; {_WHERE}"
        raise ReportError(msg)
    if not folder.is_dir():
        msg = f"{folder}: is not a folder; {_WHERE}"
        raise ReportError(msg)
    rows = read_table(folder / TABLE)
    entries, image_folder = read_found(folder)
    found = FoundImages(entries)
    names = short_names([row["image_path"] for row in rows])
    items = [_make_item(row, name, found.of(row["image_path"]), folder) for row, name in zip(rows, names, strict=True)]
    return [item._replace(source=_source_of(item, image_folder)) for item in items]


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table of predictions.

    Raises:
        ReportError: If it is missing, cut off, has no images, or is another kind of file.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except FileNotFoundError as error:
        msg = f"{path.parent}: no {path.name} in it; {_WHERE}"
        raise ReportError(msg) from error
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise ReportError(msg) from error
    except (UnicodeDecodeError, csv.Error) as error:
        msg = f"{path}: is not a CSV file, or cut off; copy it again from the run"
        raise ReportError(msg) from error
    _check_table(path, text, rows)
    return rows


def _check_table(path: Path, text: str, rows: list[dict[str, str]]) -> None:
    header = next(csv.reader(io.StringIO(text, newline="")), [])
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        msg = f"{path}: is not a table of predictions: no column {missing[0]}"
        raise ReportError(msg)
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values() or (number == len(rows) and not text.endswith("\n")):
            msg = f"{path}: image {number} is cut off; copy the table again from the run, or remove that line"
            raise ReportError(msg)
        if row["label"] not in _LABELS:
            msg = f"{path}: image {number} has the label {row['label']!r}; known are normal, abnormal and unreadable"
            raise ReportError(msg)
        for column in ("score", "threshold", "peak_x", "peak_y"):
            _check_number(path, number, column, row[column])
    if not rows:
        msg = f"{path}: has no images"
        raise ReportError(msg)


def _check_number(path: Path, number: int, column: str, value: str) -> None:
    try:
        float(value or 0)
    except ValueError as error:
        msg = f"{path}: image {number} has the {column} {value!r}, which is not a number"
        raise ReportError(msg) from error


def read_found(folder: Path) -> tuple[list[Found], Path | None]:
    """Return what the COCO file of a run holds, or its lines after a kill, and the folder of the images.

    Args:
        folder: Folder of the run.

    Returns:
        The entries, none if there is neither file; and the folder that their names are relative to, ``None`` if it is
        not known.

    Raises:
        ReportError: If the file is damaged.
    """
    path = folder / COCO if (folder / COCO).exists() else folder / LINES
    try:
        text = path.read_text(encoding="utf-8")
        if path.name == LINES:
            return list(_parse_lines(text)), None
        data = json.loads(text)
        image_folder = data["info"].get("image_folder")
        return list(_parse_coco(data)), Path(image_folder) if image_folder else None
    except FileNotFoundError:
        return [], None
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise ReportError(msg) from error
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{path}: is damaged or cut off; copy it again from the run, or remove it to do without regions"
        raise ReportError(msg) from error


def _parse_coco(data: dict[str, Any]) -> Iterator[Found]:
    names = {category["id"]: str(category["name"]) for category in data["categories"]}
    regions = defaultdict(list)
    for note in data["annotations"]:
        regions[note["image_id"]].append(_make_region(note, names[note["category_id"]]))
    for image in data["images"]:
        yield _make_found(image, regions[image["id"]])


def _parse_lines(text: str) -> Iterator[Found]:
    seen = set()
    for line in text.splitlines():
        entry = json.loads(line)
        if entry["image"]["file_name"] not in seen:
            seen.add(entry["image"]["file_name"])
            regions = [_make_region(note, str(note["category"])) for note in entry["annotations"]]
            yield _make_found(entry["image"], regions)


def _make_found(image: dict[str, Any], regions: list[Region]) -> Found:
    size = int(image["height"]), int(image["width"])
    if any(sum(region.runs) != size[0] * size[1] for region in regions):
        msg = f"the mask of {image['file_name']} has another size than the image"
        raise ValueError(msg)
    return Found(str(image["file_name"]), size, tuple(regions))


def _make_region(note: dict[str, Any], name: str) -> Region:
    x, y, width, height = (int(value) for value in note["bbox"])
    runs = [int(run) for run in note["segmentation"]["counts"]]
    return Region(name, float(note["score"]), int(note["area"]), (x, y, width, height), runs)


class FoundImages:
    """Finds the entry of the COCO file that belongs to a row of the table.

    The table has the paths as they were given, which may be relative to a folder that is not known any more; the COCO
    file has names below the common folder. Of two names that end alike, the longer one that fits counts.

    Args:
        found: Entries of the COCO file.
    """

    def __init__(self, found: list[Found]) -> None:
        self._by_name: dict[str, list[tuple[list[str], Found]]] = defaultdict(list)
        for entry in found:
            parts = _parts_of(entry.name)
            self._by_name[parts[-1]].append((parts, entry))

    def of(self, path: str) -> Found | None:
        """Return the entry of an image; ``None`` if there is none, or two fit alike."""
        parts = _parts_of(path)
        lengths = defaultdict(list)
        for other, entry in self._by_name.get(parts[-1], ()):
            shared = min(len(parts), len(other))
            if parts[-shared:] == other[-shared:]:
                lengths[shared].append(entry)
        longest = lengths[max(lengths)] if lengths else []
        return longest[0] if len(longest) == 1 else None


def short_names(paths: list[str]) -> list[str]:
    """Return the paths below the folder that all have in common, with slashes.

    Example:
        >>> short_names(["/data/good/0.png", "/data/hole/0.png"])
        ['good/0.png', 'hole/0.png']
        >>> short_names(["photos/0.png"])
        ['photos/0.png']
    """
    folders = {tuple(_parts_of(path)[:-1]) for path in paths}
    shared = 0
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    if len(folders) == 1:
        shared = max(0, shared - 1)
    return ["/".join(_parts_of(path)[shared:]) for path in paths]


def _parts_of(path: str) -> list[str]:
    # A run may have been made on Windows.
    return [part for part in posixpath.normpath(re.sub(r"\\", "/", path)).split("/") if part] or [""]


def _make_item(row: dict[str, str], name: str, found: Found | None, folder: Path) -> Item:
    return Item(
        path=row["image_path"],
        name=found.name if found else name,
        class_name=row["class"],
        score=_number(row["score"]),
        threshold=_number(row["threshold"]),
        label=row["label"],
        ground_truth=row["ground_truth"],
        regions=found.regions if found else (),
        size=found.size if found else None,
        peak=(int(row["peak_x"]), int(row["peak_y"])) if row["peak_x"] and row["peak_y"] else None,
        explanation=row["explanation"],
        milliseconds=row["milliseconds"],
        error=row["error"],
        picture=folder / "images" / with_suffix(PurePosixPath(found.name), ".png") if found else None,
    )


def _source_of(item: Item, image_folder: Path | None) -> Path | None:
    """Return where the file of an image is; ``None`` if that is not known."""
    if item.size is None:
        return Path(item.path)
    if image_folder is not None:
        return image_folder / item.name
    # A relative path may lead to another image of the same name. The picture shows the right one.
    return Path(item.path) if Path(item.path).is_absolute() else None


def _number(value: str) -> float | None:
    return float(value) if value and math.isfinite(float(value)) else None
