"""How the cost of an image grows with batch size, image size, tiles, prompts and number of images.

Each point is a process of its own, in which it takes turns with the baseline, so that a ratio compares what ran
side by side. The memory is the point's own: it is taken before the baseline is first run.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from anomalib.data import ImageBatch, ImageItem
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from anovl_plugin import AnoVL, AnoVLModel, TextAdapter, TextBank
from anovl_plugin.scoring.adaptation import adapt_tokens
from anovl_plugin.text.text_bank import TextTower
from anovl_plugin.vision.backbone import DEFAULT_BACKBONE, load_backbone
from anovl_plugin.vision.tiles import short_side
from tests.benchmarks.measuring import Line, in_process, in_turns, most_megabytes
from tests.helpers.engine_runs import quiet_engine

BASELINE_BATCH, BASELINE_PROMPTS, BASELINE_IMAGES = 8, 924, 100


class Pair(NamedTuple):
    """A point and the baseline, and how many images (or prompts) each works through.

    Attributes:
        point: runs the point once.
        baseline: runs the baseline once.
        point_count: images of the point.
        baseline_count: images of the baseline.
    """

    point: Callable[[], object]
    baseline: Callable[[], object]
    point_count: int
    baseline_count: int


class Noise(Dataset):
    """Images of noise, all the same.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self.count, self.image = count, torch.rand(3, 128, 128)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> ImageItem:
        return ImageItem(image=self.image, image_path=f"{index}.png")


def noisy_bank(width: int, count: int) -> TextBank:
    """Return a text bank of noise, which costs as much as a real one."""
    bank = TextBank()
    bank.prompt_embeddings = F.normalize(torch.randn(count, width), dim=-1)
    bank.state_embeddings = F.normalize(torch.randn(2, width), dim=-1)
    bank.class_name = "noise"
    return bank


def make_model(weights: str, **options: object) -> AnoVLModel:
    """Return a model with a text bank of noise."""
    model = AnoVLModel(pretrained=weights, **options).eval()
    model.image_tower.load()
    model.text_banks.replace([noisy_bank(model.image_tower.visual.output_dim, BASELINE_PROMPTS)])
    return model


def of_batch(weights: str, count: int) -> Pair:
    """Compare batches of a given size with batches of 8."""
    model = make_model(weights)
    images, baseline = torch.rand(count, 3, 240, 240), torch.rand(BASELINE_BATCH, 3, 240, 240)
    return Pair(lambda: model(images), lambda: model(baseline), count, BASELINE_BATCH)


def of_size(weights: str, side: int) -> Pair:
    """Compare images of a given side in pixels with 240."""
    model, baseline = make_model(weights, image_size=side), make_model(weights)
    return Pair(lambda: model(torch.rand(1, 3, side, side)), lambda: baseline(torch.rand(1, 3, 240, 240)), 1, 1)


def of_tiles(weights: str, count: int) -> Pair:
    """Compare a 4:3 image in tiles with an image without tiles."""
    model, baseline, side = make_model(weights, tiles_per_side=count), make_model(weights), short_side(240, count)
    image = torch.rand(1, 3, side, side * 4 // 3)
    return Pair(lambda: model(image), lambda: baseline(torch.rand(1, 3, 240, 240)), 1, 1)


def of_prompts(weights: str, count: int) -> Pair:
    """Compare encoding a given number of prompts with encoding 924."""
    loaded = load_backbone(DEFAULT_BACKBONE, weights)
    tower = TextTower(loaded.clip, loaded.tokenizer)
    # Different ones of one length: four digits are four tokens.
    numbers = range(1000, 1000 + max(count, BASELINE_PROMPTS))
    prompts = [f"a close-up industrial photo of damaged bottle {number}" for number in numbers]
    return Pair(
        lambda: tower.encode(prompts[:count]), lambda: tower.encode(prompts[:BASELINE_PROMPTS]), count, BASELINE_PROMPTS
    )


def of_adapter(_: str, count: int) -> Pair:
    """Compare adapting the 225 tokens of 8 images with a given number of prompts and with 924."""
    tokens, width = torch.randn(BASELINE_BATCH, 225, 640), 640
    bank, baseline = noisy_bank(width, count), noisy_bank(width, BASELINE_PROMPTS)
    return Pair(
        lambda: adapt_tokens(TextAdapter(), tokens, bank),
        lambda: adapt_tokens(TextAdapter(), tokens, baseline),
        BASELINE_BATCH,
        BASELINE_BATCH,
    )


def of_images(_: str, count: int) -> Pair:
    """Compare predicting a given number of images with predicting 100, with anomalib's engine and the small CLIP."""
    model, folder = AnoVL("anovl-demo", class_name="brick", visualizer=False), Path(tempfile.mkdtemp())

    def predict(number: int) -> None:
        loader = DataLoader(Noise(number), batch_size=32, collate_fn=ImageBatch.collate)
        quiet_engine(folder).predict(model, dataloaders=loader, return_predictions=False)

    predict(1)
    return Pair(lambda: predict(count), lambda: predict(BASELINE_IMAGES), count, BASELINE_IMAGES)


class Kind(NamedTuple):
    """What grows.

    Attributes:
        make: makes a pair of the weights and a point.
        points: what to measure.
        title: what to call a point against the baseline.
        rounds: how often they take turns.
    """

    make: Callable[[str, int], Pair]
    points: tuple[int, ...]
    title: str
    rounds: int


KINDS = {
    "batch": Kind(of_batch, (1, 4, 16, 64), "batch {} ÷ batch 8", 1),
    "size": Kind(of_size, (240, 480, 720, 960), "image size {0} × {0} ÷ 240 × 240", 2),
    "tiles": Kind(of_tiles, (1, 2, 4), "a 4:3 image with tiles_per_side {} ÷ without", 2),
    "prompts": Kind(of_prompts, (10, 100, 1000, 4000), "encoding {} prompts ÷ 924, each", 1),
    "adapter": Kind(of_adapter, (10, 100, 1000, 4000), "text adapter, {} prompts ÷ 924", 3),
    "images": Kind(of_images, (100, 1000, 10_000), "anovl-demo, predict {} images ÷ 100", 1),
}


def growth(weights: str) -> Iterator[Line]:
    """Measure all points, each in a process of its own."""
    for name, kind in KINDS.items():
        for value in kind.points:
            point, baseline, memory = in_process("tests.benchmarks.growth", name, value, weights)
            note = f"{point:.4g} s against {baseline:.4g} s, {memory:.0f} MB"
            yield Line(kind.title.format(value), point / baseline, "", note)


def main() -> None:
    """Measure one point and print the seconds of it and of the baseline, and the point's memory in MB."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("value", type=int)
    parser.add_argument("weights")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    kind = KINDS[args.kind]
    with torch.inference_mode():
        pair = kind.make(args.weights, args.value)
        memory = most_megabytes(pair.point)
        times = in_turns(pair.point, pair.baseline, kind.rounds)
    print(times.first / pair.point_count, times.second / pair.baseline_count, memory)  # noqa: T201 - the parent reads it


if __name__ == "__main__":
    main()
