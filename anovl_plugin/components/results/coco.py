"""Predictions in COCO's layout, which labeling tools open."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from anovl_plugin.components.results.file_regions import FileRegion
from anovl_plugin.components.results.whole_file import whole_file

CATEGORY = "anomaly"


def encode_runs(mask: np.ndarray, x: int, y: int, size: tuple[int, int]) -> list[int]:
    """Return COCO's run lengths of a mask: pixels outside and inside by turns, column by column, from outside on.

    Args:
        mask: Part of the mask, bool, shape (h, w); all else is outside.
        x: Left column of the part.
        y: Upper row of the part.
        size: Height and width of the whole mask.
    """
    height, width = size
    columns = np.pad(mask.T.astype(np.int8), ((0, 0), (1, 1)))
    changes = np.diff(columns, axis=1)
    starts = np.argwhere(changes == 1) @ [height, 1]
    stops = np.argwhere(changes == -1) @ [height, 1]
    # A run that reaches the lower edge goes on at the top of the next column.
    goes_on = stops[:-1] == starts[1:]
    starts, stops = starts[np.concatenate([[True], ~goes_on])], stops[np.concatenate([~goes_on, [True]])]
    bounds = np.stack([starts, stops], axis=1).ravel() + x * height + y
    runs = [int(run) for run in np.diff(bounds, prepend=0, append=height * width)]
    return runs if runs[-1] else runs[:-1]


def describe_region(region: FileRegion, size: tuple[int, int], category: str) -> dict[str, Any]:
    """Return a region as an annotation, without its numbers.

    Args:
        region: Region of an image.
        size: Height and width of the image.
        category: What it is called.
    """
    return {
        "category": category,
        "bbox": list(region.box),
        "area": region.area,
        "segmentation": {"size": list(size), "counts": encode_runs(region.mask, region.x, region.y, size)},
        # COCO keeps masks with this flag, and polygons without.
        "iscrowd": 1,
        "score": round(region.peak.value, 6),
    }


def assemble(lines: Path, target: Path, info: dict[str, Any]) -> None:
    """Write one COCO file from the lines of a run, one an image, without holding them all in memory.

    Args:
        lines: File of JSON objects with ``image`` and ``annotations``, one a line.
        target: File to write; it appears when it is whole.
        info: What to say about the run.
    """
    categories = sorted({CATEGORY, *(note["category"] for line in _read(lines) for note in line["annotations"])})
    numbers = {name: number for number, name in enumerate(categories, 1)}
    with whole_file(target) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        listed = [{"id": number, "name": name} for name, number in numbers.items()]
        file.write(f'{{"info": {json.dumps(info)},\n"categories": {json.dumps(listed)},\n"images": [')
        for number, line in enumerate(_read(lines), 1):
            file.write(f"{',' if number > 1 else ''}\n{json.dumps({'id': number} | line['image'])}")
        file.write('],\n"annotations": [')
        count = 0
        for image, line in enumerate(_read(lines), 1):
            for note in line["annotations"]:
                count += 1
                numbered = {"id": count, "image_id": image, "category_id": numbers[note["category"]]}
                rest = {name: value for name, value in note.items() if name != "category"}
                file.write(f"{',' if count > 1 else ''}\n{json.dumps(numbered | rest)}")
        file.write("]}\n")


def _read(lines: Path) -> Iterator[dict[str, Any]]:
    seen = set()
    with lines.open(encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            # Processes that share images out may get some of them twice.
            name = line["image"]["file_name"]
            if not name or name not in seen:
                seen.add(name)
                yield line
