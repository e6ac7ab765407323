"""Measure what each part of the method does on ``anovl-demo``: ``python -m anovl_plugin.demo.studies.ablation``.

For each seed, the demo data are created with other crops and other defects, and adaptations use the same seed. Each
figure is a mean over the four surfaces; the table shows its mean and standard deviation over the seeds.
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

from anovl_plugin.demo.datamodule import PHOTOGRAPHS, Category, make_category
from anovl_plugin.demo.studies.evaluate import TestSet, read_test_set
from anovl_plugin.scoring.adaptation import LinearAdapter, TextAdapter, adapt_tokens
from anovl_plugin.scoring.image_score import CombinedScore, GlobalScore, ImageScore
from anovl_plugin.scoring.scores import abnormality_margin, margin_map
from anovl_plugin.torch_model import AnoVLModel
from anovl_plugin.vision.value_attention import original_forward, value_wise_forward

Tokens = Callable[[Tensor], Tensor]


def pixel_auroc(model: AnoVLModel, data: TestSet, tokens: Tokens) -> float:
    """Return the AUROC of pixels, scored from the patch tokens that a function returns for a batch of images."""
    margins = [abnormality_margin(tokens(images), model.text_bank.state_embeddings) for images in data.images.split(32)]
    maps = margin_map(torch.cat(margins), model.image_tower.visual.grid_size, model.image_size)
    # Margins lie within (-0.5, 0.5); the metric expects probabilities.
    return binary_auroc(maps.squeeze(1) + 0.5, data.masks).item()


def image_auroc(model: AnoVLModel, data: TestSet) -> float:
    """Return the AUROC of a model's image scores."""
    scores = torch.cat([model(images).pred_score for images in data.images.split(32)])
    return binary_auroc(scores, data.labels).item()


@torch.inference_mode()
def measure(models: dict[str, AnoVLModel], category: Category, root: Path, seed: int) -> dict[str, float]:
    """Return the AUROCs of one category in one seed's data, each in [0, 1], by the name of their row."""
    for model in models.values():
        model.build_text_bank(category, "texture")
    model = models["single view"]
    data, bank = read_test_set(model, category, root), model.text_bank

    def value_wise(images: Tensor) -> Tensor:
        return value_wise_forward(model.image_tower.visual, images).patch_tokens

    rows: dict[str, Tokens] = {
        "original path": lambda images: original_forward(model.image_tower.visual, images).patch_tokens,
        "value-wise path": value_wise,
        "value-wise path, text adapter": lambda x: adapt_tokens(TextAdapter(seed=seed), value_wise(x), bank),
        "value-wise path, linear adapter": lambda x: adapt_tokens(LinearAdapter(seed=seed), value_wise(x), bank),
    }
    results = {f"pixel, {name}": pixel_auroc(model, data, tokens) for name, tokens in rows.items()}
    return results | {f"image, {name}": image_auroc(each, data) for name, each in models.items()}


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, counting from 0; default: 5")
    args = parser.parse_args()
    image_scores: dict[str, ImageScore] = {
        "single view": GlobalScore(),
        "paper's views": GlobalScore("paper"),
        "single view and map": CombinedScore(top_fraction=0.01),
    }
    models = {name: AnoVLModel("anovl-demo", image_score=score) for name, score in image_scores.items()}
    by_seed: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            root = Path(folder) / str(seed)
            for category in PHOTOGRAPHS:
                make_category(root, category, seed)
            results = [measure(models, category, root, seed) for category in PHOTOGRAPHS]
            by_seed.append({row: mean(result[row] for result in results) for row in results[0]})
    console = Console(width=100)
    console.print("| AUROC | mean | standard deviation |", "|---|---|---|", sep="\n")
    for row in by_seed[0]:
        values = [result[row] for result in by_seed]
        console.print(f"| {row} | {mean(values):.3f} | {stdev(values) if len(values) > 1 else 0:.3f} |")


if __name__ == "__main__":
    main()
