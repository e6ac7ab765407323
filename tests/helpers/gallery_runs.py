"""Folders of runs for galleries, with images of their own, written by the code that writes those of real runs."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from anovl_plugin.components.images.file_names import with_suffix
from anovl_plugin.components.results.coco import assemble
from anovl_plugin.components.results.file_regions import FileRegion, Peak
from anovl_plugin.components.results.predictions import Prediction, to_csv

SIZE = (24, 32)


def predict(name, score=0.1, truth="", *, words=(), class_name="nut", threshold=0.5, **more) -> Prediction:
    """Return what a run finds on an image: a region for each word, below each other."""
    label = "" if None in (score, threshold) else "abnormal" if score > threshold else "normal"
    regions = [
        FileRegion(4, 2 + 6 * row, np.ones((4, 10), bool), Peak(6, 3 + 6 * row, score)) for row in range(len(words))
    ]
    values = {
        "image_path": name,
        "class_name": class_name,
        "score": score,
        "threshold": threshold,
        "label": label,
        "regions": regions,
        "peak": Peak(20, 12, score),
        "ground_truth": truth,
        "milliseconds": 7.5,
        "size": SIZE,
        "words": list(words),
    }
    return Prediction(**{**values, **more})


def write_run(folder: Path, predictions: Sequence[Prediction], *, with_images=True, with_pictures=True) -> Path:
    """Write a run whose images lie in ``photos`` beside its folder, and return its folder.

    Args:
        folder: Folder for the run and the images.
        predictions: What was found; paths are below ``photos``.
        with_images: Whether the images are still there.
        with_pictures: Whether the run made pictures.
    """
    run, photos = folder / "run", folder / "photos"
    run.mkdir(parents=True)
    lines = []
    for index, prediction in enumerate(predictions):
        name = Path(prediction.image_path)
        if with_images and not prediction.error:
            write_image(photos / name, SIZE, index)
        if with_pictures and not prediction.error:
            write_image(run / "images" / with_suffix(name, ".png"), (60, 160), index)
        if not prediction.error:
            lines.append(json.dumps(prediction.to_coco(name.as_posix())))
        prediction.image_path = str(photos / name)
    (run / "predictions.csv").write_text(to_csv([each.to_row() for each in predictions], header=True), encoding="utf-8")
    (run / "lines").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    assemble(run / "lines", run / "predictions.json", {"image_folder": str(photos)})
    (run / "lines").unlink()
    (run / "run.yaml").write_text("run: test\n", encoding="utf-8")
    return run


def write_image(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Smooth, as photographs are.
    small = np.random.default_rng(seed).integers(60, 200, (4, 5, 3), np.uint8)
    Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC).save(path)


def mixed_test() -> list[Prediction]:
    """Return a test of two products with each kind of verdict, in an order that no sorting gives."""
    return [
        predict("nut/good/10.png", 0.2, "normal"),
        predict("nut/bent/2.png", 0.9, "abnormal", words=("scratch", "dent")),
        predict("nut/good/2.png", 0.7, "normal", words=("scratch",)),
        predict("bolt/bent/0.png", 0.8, "abnormal", words=("dent",), class_name="bolt", threshold=0.6),
        predict("bolt/bent/1.png", 0.1, "abnormal", class_name="bolt", threshold=0.6),
        predict("bolt/good/0.png", 0.4, "normal", class_name="bolt", threshold=0.6),
        predict("nut/bent/3.png", 0.45, "abnormal"),
        predict("nut/bent/cut.png", None, threshold=None, class_name="", label="unreadable", regions=None, peak=None,
                milliseconds=None, error="nut/bent/cut.png cannot be read (it is cut off)"),
    ]  # fmt: skip
