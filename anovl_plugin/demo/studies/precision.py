"""Measure precisions and exports on ``anovl-demo``: ``python -m anovl_plugin.demo.studies.precision``.

For each surface of the demo data: what the engine in bfloat16, and the model exported to OpenVINO with each type of
compression, change of the engine's results in float32. The table shows the size of the exported weights, the AUROCs,
means over the surfaces, how much of them the worst surface loses, and the largest change of a score and of a map.
OpenVINO computes in float32 or in bfloat16, which is its own choice on processors with units for it. ``int8_ptq`` is
calibrated with the validation images, which are the test images here. With ``--references``, models compare images with
four reference images as well.
"""

import argparse
import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from anomalib.deploy import CompressionType
from rich.console import Console
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc
from torchvision.transforms.v2.functional import resize

from anovl_plugin.demo.datamodule import PHOTOGRAPHS, Category, DemoSurfaces
from anovl_plugin.lightning_model import AnoVL

COMPRESSIONS = {
    "none": None,
    "fp16": CompressionType.FP16,
    "int8": CompressionType.INT8,
    "int8_ptq": CompressionType.INT8_PTQ,
}
HINTS = {"float32": "f32", "bfloat16": "bf16"}


class Results(NamedTuple):
    """What a model says of the test images of a surface.

    Attributes:
        scores: Image scores, shape (B,).
        maps: Anomaly maps, shape (B, 1, H, W).
        megabytes: Size of the weights on the disk; NaN if they were not exported.
    """

    scores: Tensor
    maps: Tensor
    megabytes: float = math.nan


class Figures(NamedTuple):
    """What is measured on a surface.

    Attributes:
        megabytes: Size of the weights on the disk; NaN if they were not exported.
        image: AUROC of images.
        pixel: AUROC of pixels.
        lost: The larger of the losses of the two AUROCs.
        score: Largest change of a score.
        map: Largest change of a pixel of a map.
    """

    megabytes: float
    image: float
    pixel: float
    lost: float
    score: float
    map: float


@torch.inference_mode()
def of_engine(model: AnoVL, images: Tensor, precision: torch.dtype, *, mixed: bool = False) -> Results:
    """Return the results of the engine's model, cast as trainers do; ``mixed`` casts single operations."""
    with torch.autocast("cpu", precision, enabled=mixed):
        kind = torch.float32 if mixed else precision
        found: Any = deepcopy(model).to(kind)(images.to(kind))
    return Results(found.pred_score.float(), found.anomaly_map.float())


def of_openvino(path: Path, images: Tensor, hint: str) -> Results:
    """Return the results of an exported graph in a precision."""
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    found = compiled({"input": images.numpy()})
    size = path.with_suffix(".bin").stat().st_size / 1e6
    return Results(torch.from_numpy(found["pred_score"]).flatten(), torch.from_numpy(found["anomaly_map"]), size)


def compare(found: Results, expected: Results, labels: Tensor, masks: Tensor) -> Figures:
    """Return the figures of a surface.

    Args:
        found: Results to measure.
        expected: The engine's results in float32.
        labels: 1 for abnormal images, else 0, shape (B,).
        masks: 1 on defects, else 0, shape (B, H, W) of the maps.
    """

    def aurocs(results: Results) -> tuple[float, float]:
        return (
            binary_auroc(results.scores, labels).item(),
            binary_auroc(results.maps.flatten(), masks.flatten()).item(),
        )

    image, pixel = aurocs(found)
    lost = max(before - after for before, after in zip(aurocs(expected), (image, pixel), strict=True))
    score, pixels = (found.scores - expected.scores).abs().max(), (found.maps - expected.maps).abs().max()
    return Figures(found.megabytes, image, pixel, lost, score.item(), pixels.item())


def measure(
    category: Category, root: Path | None, folder: Path, references: str | None = None
) -> Iterator[tuple[str, Figures]]:
    """Iterate over the rows of a surface: a name and its figures.

    Args:
        category: The surface.
        root: Folder of the demo data; ``None`` for the default.
        folder: Folder for exported models.
        references: How images are compared with four reference images. Default: none, zero-shot.
    """
    data: Any = DemoSurfaces(root, category, eval_batch_size=1000)
    data.setup()
    (batch,) = data.test_dataloader()
    shots: dict[str, Any] = {}
    if references is not None:
        shots = {"references": references, "few_shot_source": Path(data.root, category, "train", "good"), "k_shot": 4}
    model = AnoVL("anovl-demo", class_name=category, domain="texture", visualizer=False, **shots).eval()
    model.build_text_bank()
    expected = of_engine(model, batch.image, torch.float32)
    labels = batch.gt_label.int()
    masks = (resize(batch.gt_mask.float(), list(model.model.image_size)) > 0.5).int()
    engine: dict[str, Callable[[], Results]] = {
        "32-true": lambda: expected,
        "bf16-mixed": lambda: of_engine(model, batch.image, torch.bfloat16, mixed=True),
        "bf16-true": lambda: of_engine(model, batch.image, torch.bfloat16),
    }
    for name, results in engine.items():
        yield f"engine, {name}", compare(results(), expected, labels, masks)
    size = (batch.image.shape[-2], batch.image.shape[-1])
    for name, compression in COMPRESSIONS.items():
        path = model.to_openvino(folder / category / name, "model", size, compression, data)
        for precision, hint in HINTS.items():
            found = of_openvino(path, batch.image, hint)
            yield f"OpenVINO, {name}, {precision}", compare(found, expected, labels, masks)


def over_surfaces(each: list[Figures]) -> list[str]:
    """Return the cells of a row from the figures of each surface."""
    megabytes, image, pixel, lost, score, pixels = zip(*each, strict=True)
    figures = (mean(image), mean(pixel), max(lost), max(score), max(pixels))
    return ["" if math.isnan(megabytes[0]) else f"{megabytes[0]:.1f}", *(f"{figure:.4f}" for figure in figures)]


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="folder of the demo data; default: in anomalib's cache")
    parser.add_argument("--references", help="PatchMemory or PatchSubspace; default: none, zero-shot")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    rows: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for category in PHOTOGRAPHS:
            for name, figures in measure(category, args.root, Path(folder), args.references):
                rows.setdefault(name, []).append(figures)
    console = Console(width=160)
    console.print(
        "| | MB | image AUROC | pixel AUROC | most AUROC lost | score changes by | map changes by |",
        "|---|---|---|---|---|---|---|",
        sep="\n",
    )
    for name, each in rows.items():
        console.print(f"| {name} | {' | '.join(over_surfaces(each))} |")


if __name__ == "__main__":
    main()
