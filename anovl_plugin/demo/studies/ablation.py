"""Measure what each part of the method does on ``anovl-demo``: ``python -m anovl_plugin.demo.studies.ablation``.

For each of some seeds the demo data are made anew, with other crops and other defects, and adaptations draw from the
same seed. Each figure is the mean over the four surfaces; the table gives its mean and spread over the seeds.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import torch
from rich.console import Console
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from anovl_plugin.demo.datamodule import PHOTOGRAPHS, make_category
from anovl_plugin.demo.studies.evaluate import TestSet, ordinary_tokens, read_test_set
from anovl_plugin.scoring.adaptation import LinearAdapter, TextAdapter, adapt_tokens
from anovl_plugin.scoring.scores import abnormality_margin, margin_map
from anovl_plugin.torch_model import AnoVLModel
from anovl_plugin.vision.value_attention import value_wise_forward

Tokens = Callable[[Tensor], Tensor]


def pixel_auroc(model: AnoVLModel, data: TestSet, tokens: Tokens) -> float:
    """Score patch tokens that a function makes of a batch of images, and give the AUROC of pixels."""
    margins = [abnormality_margin(tokens(images), model.text_bank.state_embeddings) for images in data.images.split(32)]
    maps = margin_map(torch.cat(margins), model.visual.grid_size, model.image_size)
    # A margin is below a half in size; the metric wants probabilities.
    return binary_auroc(maps.squeeze(1) + 0.5, data.masks).item()


def image_auroc(model: AnoVLModel, data: TestSet) -> float:
    """Give the AUROC of the image scores of a model."""
    scores = torch.cat([model(images).pred_score for images in data.images.split(32)])
    return binary_auroc(scores, data.labels).item()


@torch.inference_mode()
def measure(models: dict[str, AnoVLModel], category: str, root: Path, seed: int) -> dict[str, float]:
    """Measure one category of one seed's data; AUROCs in [0, 1] by the name of the row."""
    for model in models.values():
        model.setup(category, "texture")
    model = models["single view"]
    data, bank = read_test_set(model, category, root), model.text_bank

    def local(images: Tensor) -> Tensor:
        return value_wise_forward(model.visual, images).local

    rows: dict[str, Tokens] = {
        "ordinary path": lambda images: ordinary_tokens(model, images),
        "value-wise path": local,
        "value-wise path, text adapter": lambda x: adapt_tokens(TextAdapter(seed=seed), local(x), bank),
        "value-wise path, linear adapter": lambda x: adapt_tokens(LinearAdapter(seed=seed), local(x), bank),
    }
    results = {f"pixel, {name}": pixel_auroc(model, data, tokens) for name, tokens in rows.items()}
    return results | {f"image, {name}": image_auroc(each, data) for name, each in models.items()}


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0 on")
    args = parser.parse_args()
    settings = {
        "single view": {},
        "paper's views": {"image_views": "paper"},
        "single view and map": {"image_score": "both", "top_fraction": 0.01},
    }
    models = {name: AnoVLModel("anovl-demo", **options) for name, options in settings.items()}
    by_seed: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            root = Path(folder) / str(seed)
            for category in PHOTOGRAPHS:
                make_category(root, category, seed)
            results = [measure(models, category, root, seed) for category in PHOTOGRAPHS]
            by_seed.append({row: mean(result[row] for result in results) for row in results[0]})
    console = Console(width=100)
    console.print("| AUROC | mean | spread |", "|---|---|---|", sep="\n")
    for row in by_seed[0]:
        values = [result[row] for result in by_seed]
        console.print(f"| {row} | {mean(values):.3f} | {stdev(values) if len(values) > 1 else 0:.3f} |")


if __name__ == "__main__":
    main()
