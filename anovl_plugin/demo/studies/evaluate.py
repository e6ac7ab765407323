"""Measure ``anovl-demo``: ``python -m anovl_plugin.demo.studies.evaluate``.

For each surface of the demo data: AUROC of images and of pixels and, for comparison, AUROC of pixels when the patch
tokens of the *original* path are scored instead of the value-wise ones. With ``--normal`` and ``--abnormal``, also the
AUROC of images over two folders.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from anomalib.data import PredictDataset
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import binary_auroc
from torchvision.transforms.v2.functional import normalize, resize

from anovl_plugin.demo.datamodule import PHOTOGRAPHS, Category, DemoSurfaces
from anovl_plugin.scoring.scores import abnormality_margin, margin_map
from anovl_plugin.torch_model import AnoVLModel
from anovl_plugin.vision.value_attention import original_forward


class Auroc(NamedTuple):
    """Results for one category, each in [0, 1].

    Attributes:
        image: AUROC of images, scored by the class token.
        pixel: AUROC of pixels, scored by the value-wise path's patch tokens.
        original: AUROC of pixels, scored by the original path's patch tokens.
    """

    image: float
    pixel: float
    original: float


def prepare(model: AnoVLModel, images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) with values in [0, 1], resized and normalized for the model."""
    return normalize(resize(images, list(model.image_size), antialias=True), list(model.mean), list(model.std))


class TestSet(NamedTuple):
    """The test images of a category, ready for a model.

    Attributes:
        images: Resized and normalized, shape (B, 3, H, W).
        labels: 1 for abnormal images, else 0, shape (B,).
        masks: 1 on defects, else 0, shape (B, H, W).
    """

    images: Tensor
    labels: Tensor
    masks: Tensor


def read_test_set(model: AnoVLModel, category: Category, root: Path | None = None) -> TestSet:
    """Return the test images of a category of the demo data, at the size of a model."""
    datamodule = DemoSurfaces(root=root, category=category)
    datamodule.setup()
    batches = list(datamodule.test_dataloader())
    masks = [resize(batch.gt_mask.float(), list(model.image_size)) > 0.5 for batch in batches]
    return TestSet(
        images=torch.cat([prepare(model, batch.image) for batch in batches]),
        labels=torch.cat([batch.gt_label for batch in batches]).int(),
        masks=torch.cat(masks).int(),
    )


@torch.inference_mode()
def evaluate_category(model: AnoVLModel, category: Category, root: Path | None = None) -> Auroc:
    """Return the AUROCs of one category of the demo data, which the prompts name as a texture."""
    model.build_text_bank(category, "texture")
    data = read_test_set(model, category, root)
    result = model(data.images)
    tokens = original_forward(model.image_tower.visual, data.images).patch_tokens
    original = abnormality_margin(tokens, model.text_bank.state_embeddings)
    original = margin_map(original, model.image_tower.visual.grid_size, model.image_size)
    return Auroc(
        image=binary_auroc(result.pred_score, data.labels).item(),
        pixel=binary_auroc(result.anomaly_map.squeeze(1), data.masks).item(),
        # Margins lie within (-0.5, 0.5); the metric expects probabilities.
        original=binary_auroc(original.squeeze(1) + 0.5, data.masks).item(),
    )


@torch.inference_mode()
def evaluate_folders(model: AnoVLModel, normal: Path, abnormal: Path, class_name: str) -> float:
    """Return the AUROC of images over two folders."""
    model.build_text_bank(class_name, "texture")

    def score(folder: Path) -> Tensor:
        dataset = PredictDataset(folder)
        batches: Iterable = DataLoader(dataset, collate_fn=dataset.collate_fn)
        return torch.cat([model(prepare(model, batch.image)).pred_score for batch in batches])

    normal_scores, abnormal_scores = score(normal), score(abnormal)
    target = torch.cat([torch.zeros(len(normal_scores)), torch.ones(len(abnormal_scores))]).int()
    return binary_auroc(torch.cat([normal_scores, abnormal_scores]), target).item()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="folder of the demo data; default: in anomalib's cache")
    parser.add_argument("--normal", type=Path, help="folder of normal images, used with --abnormal")
    parser.add_argument("--abnormal", type=Path, help="folder of abnormal images, used with --normal")
    parser.add_argument("--class-name", default="textile", help="what both folders show; default: textile")
    args = parser.parse_args()
    model = AnoVLModel("anovl-demo")
    results: dict[str, Auroc] = {category: evaluate_category(model, category, args.root) for category in PHOTOGRAPHS}
    results["mean"] = Auroc(*torch.tensor(list(results.values())).mean(0).tolist())
    table = Table("surface", "image AUROC", "pixel AUROC", "pixel AUROC, original path")
    for category, auroc in results.items():
        table.add_row(category, *(f"{value:.3f}" for value in auroc))
    console = Console()
    console.print(table)
    if args.normal and args.abnormal:
        area = evaluate_folders(model, args.normal, args.abnormal, args.class_name)
        console.print(f"{args.class_name}, {args.normal.name} against {args.abnormal.name}: image AUROC {area:.3f}")


if __name__ == "__main__":
    main()
