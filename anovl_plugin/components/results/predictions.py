"""What a run found on each image, as a row of a table and as an entry of a COCO file."""

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from anomalib.data import ImageBatch
from torch import Tensor

from anovl_plugin.components.images.image_file import read_size
from anovl_plugin.components.results.coco import CATEGORY, describe_region
from anovl_plugin.components.results.explanation import describe
from anovl_plugin.components.results.file_regions import FileRegion, Peak, find_peak, place_regions
from anovl_plugin.scoring.regions import find_regions

NORMAL, ABNORMAL, UNREADABLE = "normal", "abnormal", "unreadable"
COLUMNS = (
    "image_path",
    "class",
    "score",
    "threshold",
    "label",
    "regions",
    "largest_area",
    "box_x",
    "box_y",
    "box_width",
    "box_height",
    "peak_x",
    "peak_y",
    "peak",
    "explanation",
    "ground_truth",
    "milliseconds",
    "error",
)


class RunFacts(NamedTuple):
    """What a batch does not hold.

    Attributes:
        class_names: Class that each image was asked for.
        thresholds: Score above which each image is abnormal; ``None`` if nothing is.
        milliseconds: Time per image that scoring took, without reading and drawing; ``None`` if scores were taken over
            from a validation.
    """

    class_names: list[str]
    thresholds: list[float | None]
    milliseconds: float | None


@dataclass
class Prediction:
    """What a run found on one image. Positions are in the pixels of the image file.

    Attributes:
        image_path: The image.
        class_name: Class that was asked for.
        score: Image score; ``None`` if there is none.
        threshold: Score above which the image is abnormal.
        label: ``normal``, ``abnormal``, ``unreadable``, or empty if nothing was decided.
        regions: Regions of the mask, the highest peak first; ``None`` if there is no mask.
        peak: Highest pixel of the anomaly map.
        explanation: Why the image is abnormal, in words.
        ground_truth: ``normal``, ``abnormal``, or empty if it is not known.
        milliseconds: Time that scoring took.
        size: Height and width of the image file.
        error: Why the image could not be read.
        words: What each region is called; empty if regions have no names.
    """

    image_path: str
    class_name: str = ""
    score: float | None = None
    threshold: float | None = None
    label: str = ""
    regions: list[FileRegion] | None = None
    peak: Peak | None = None
    explanation: str = ""
    ground_truth: str = ""
    milliseconds: float | None = None
    size: tuple[int, int] = (0, 0)
    error: str = ""
    words: list[str] = field(default_factory=list)

    def to_row(self) -> dict[str, object]:
        """Return the values of :data:`COLUMNS`."""
        largest = max(self.regions or [], key=lambda region: region.area, default=None)
        boxes = dict(zip(("box_x", "box_y", "box_width", "box_height"), largest.box, strict=True)) if largest else {}
        peak = {"peak_x": self.peak.x, "peak_y": self.peak.y, "peak": _rounded(self.peak.value)} if self.peak else {}
        return {
            "image_path": self.image_path,
            "class": self.class_name,
            "score": _rounded(self.score),
            "threshold": _rounded(self.threshold),
            "label": self.label,
            "regions": "" if self.regions is None else len(self.regions),
            "largest_area": largest.area if largest else "",
            **boxes,
            **peak,
            "explanation": self.explanation,
            "ground_truth": self.ground_truth,
            "milliseconds": "" if self.milliseconds is None else f"{self.milliseconds:.1f}",
            "error": self.error,
        }

    def to_coco(self, name: str) -> dict[str, Any]:
        """Return the image and its regions for a COCO file.

        Args:
            name: Name of the image in that file.
        """
        image: dict[str, Any] = {"file_name": name, "height": self.size[0], "width": self.size[1]}
        image |= {"score": self.score, "threshold": self.threshold, "label": self.label}
        regions = self.regions or []
        words = self.words or [CATEGORY] * len(regions)
        notes = [describe_region(region, self.size, word) for region, word in zip(regions, words, strict=True)]
        return {"image": image, "annotations": notes}


def predictions_of(batch: ImageBatch, facts: RunFacts) -> list[Prediction]:
    """Return what was found on each image of a batch.

    Args:
        batch: Batch with scores; labels, masks and all else are optional.
        facts: What the batch does not hold.
    """
    count = len(batch)
    scores, labels, truths = (_values(getattr(batch, name)) for name in ("pred_score", "pred_label", "gt_label"))
    maps = _planes(batch.anomaly_map)
    regions = None
    if batch.pred_mask is not None and maps is not None:
        regions = find_regions(batch.pred_mask, torch.from_numpy(maps))
    texts, paths = batch.explanation or [""] * count, batch.image_path or [""] * count
    words = _words_of(batch) if batch.explanation and regions is not None else [[] for _ in range(count)]
    found = []
    for index in range(count):
        size = read_size(paths[index]) or _size_of(batch)
        anomaly_map, label = None if maps is None else maps[index], _state(labels, index)
        found.append(
            Prediction(
                image_path=str(paths[index]),
                class_name=facts.class_names[index],
                score=None if scores is None else float(scores[index]),
                threshold=facts.thresholds[index],
                label=label,
                regions=None if regions is None else place_regions(regions[index], size),
                peak=None if anomaly_map is None else find_peak(anomaly_map, size),
                # Of a normal image there is nothing to explain.
                explanation="" if label == NORMAL else str(texts[index] or ""),
                ground_truth=_state(truths, index),
                milliseconds=facts.milliseconds,
                size=size,
                words=words[index],
            )
        )
    return found


class AppendedFile:
    """A file to which several processes append whole lines, each at once, so that it is whole after a kill.

    Args:
        path: File; made if there is none.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)

    def append(self, text: str) -> None:
        """Append a text that ends with a line, in one piece."""
        data = text.encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(self._descriptor, data) :]

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def to_csv(rows: list[dict[str, object]], *, header: bool = False) -> str:
    """Return rows as lines of a CSV file.

    Args:
        rows: Rows with the keys of :data:`COLUMNS`, or some of them.
        header: Whether the names of the columns come first. Default: no.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    """Iterate over the rows of a table."""
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _words_of(batch: ImageBatch) -> list[list[str]]:
    """Return what each region of each image is called: a word that matches it better than all others together."""
    described = [description.regions for description in describe(batch)]
    return [[_word_of(region.shares) for region in regions] for regions in described]


def _word_of(shares: dict[str, float]) -> str:
    word = max(shares, key=shares.__getitem__, default=CATEGORY)
    return word if shares.get(word, 0) > 0.5 else CATEGORY


def _size_of(batch: ImageBatch) -> tuple[int, int]:
    height, width = cast("Tensor", batch.image).shape[-2:]
    return height, width


def _values(values: Tensor | None) -> np.ndarray | None:
    return None if values is None else values.detach().float().cpu().flatten().numpy()


def _planes(planes: Tensor | None) -> np.ndarray | None:
    """Return maps as an array, shape (B, H, W)."""
    if planes is None:
        return None
    planes = planes.detach().as_subclass(Tensor).float().cpu()
    return planes.flatten(0, -3).numpy() if planes.ndim > 3 else planes.numpy()


def _state(values: np.ndarray | None, index: int) -> str:
    return "" if values is None else (ABNORMAL if values[index] else NORMAL)


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
