"""How costs grow with the number of images, classes, prompts, reference images and tiles, and with the image size.

Each subject is a process of its own, in which its points take turns. The memory of a point is the most that the process
held when the point was first run, from the smallest to the largest.
"""

import argparse
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from anomalib.data import ImageBatch, ImageItem
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from anovl_plugin import AnoVL, AnoVLModel, PatchMemory, PatchSubspace, References, TextAdapter, TextBank
from anovl_plugin.demo import DemoSurfaces
from anovl_plugin.scoring.adaptation import adapt_tokens
from anovl_plugin.text.text_bank import TextTower
from anovl_plugin.vision.backbone import DEFAULT_BACKBONE, load_backbone
from anovl_plugin.vision.tiles import short_side
from tests.benchmarks.measuring import in_process, most_megabytes, take_turns
from tests.benchmarks.plots import Curve, draw_growth
from tests.benchmarks.table import Growth
from tests.helpers.engine_runs import quiet_engine

# Width of ViT-B-16-plus-240's blocks, of its joint space, and side of a patch.
WIDTH, JOINT, PATCH = 896, 640, 16
BATCH = 8
# As many as the paper's prompts for one class.
PROMPTS = 924

Call = Callable[[], object]


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


def noisy_bank(count: int, name: str = "noise", width: int = JOINT) -> TextBank:
    """Return a text bank of noise, which costs as much as a real one."""
    bank = TextBank()
    bank.prompt_embeddings = F.normalize(torch.randn(count, width), dim=-1)
    bank.state_embeddings = F.normalize(torch.randn(2, width), dim=-1)
    bank.class_name = name
    return bank


def make_model(weights: str, **options: object) -> AnoVLModel:
    """Return a model with a text bank of noise."""
    model = AnoVLModel(pretrained=weights, **options).eval()
    model.image_tower.load()
    model.text_banks.replace([noisy_bank(PROMPTS)])
    return model


def of_images(_: str) -> Callable[[int], Call]:
    """Predict images of noise with anomalib's engine and the small CLIP."""
    model, folder = AnoVL("anovl-demo", class_name="brick", visualizer=False), TemporaryDirectory()

    def predict(count: int) -> None:
        loader = DataLoader(Noise(count), batch_size=32, collate_fn=ImageBatch.collate)
        quiet_engine(Path(folder.name)).predict(model, dataloaders=loader, return_predictions=False)

    predict(1)
    return lambda count: lambda: predict(count)


def of_batch(weights: str) -> Callable[[int], Call]:
    """Score a batch of images."""
    model = make_model(weights)

    def make(count: int) -> Call:
        images = torch.rand(count, 3, 240, 240)
        return lambda: model(images)

    return make


def of_new_classes(_: str) -> Callable[[int], Call]:
    """Build the text banks of classes with the small CLIP."""
    model, numbers = AnoVLModel("anovl-demo", cache=False).eval(), itertools.count(1000)

    def build(count: int) -> None:
        # Always others: the model keeps the banks that it has.
        model.build_text_banks([f"part {number}" for number in islice(numbers, count)])

    build(1)
    return lambda count: lambda: build(count)


def of_classes(weights: str) -> Callable[[int], Call]:
    """Score a batch of 8 images with a model of several classes."""

    model, images = make_model(weights), torch.rand(BATCH, 3, 240, 240)

    def make(count: int) -> Call:
        banks = [noisy_bank(PROMPTS, f"class {each}") for each in range(count)]

        def score() -> None:
            model.text_banks.replace(banks)
            model(images, torch.arange(BATCH) % count)

        return score

    return make


def of_prompts(weights: str) -> Callable[[int], Call]:
    """Encode prompts, all different and of one length: four digits are four tokens."""
    loaded = load_backbone(DEFAULT_BACKBONE, weights)
    tower = TextTower(loaded.clip, loaded.tokenizer)
    prompts = [f"a close-up industrial photo of damaged bottle {number}" for number in range(1000, 10_000)]
    return lambda count: lambda: tower.encode(prompts[:count])


def of_adapter(_: str) -> Callable[[int], Call]:
    """Tune the text adapter of a number of prompts on the 225 tokens of 8 images."""
    tokens = torch.randn(BATCH, 225, JOINT)

    def make(count: int) -> Call:
        bank = noisy_bank(count)
        return lambda: adapt_tokens(TextAdapter(), tokens, bank)

    return make


def of_references(part: References) -> Callable[[str], Callable[[int], Call]]:
    """Compare the patches of 8 photographs with those of reference images, the encoding left out."""

    def prepare(weights: str) -> Callable[[int], Call]:
        model, shots = AnoVL(pretrained=weights, class_name="brick"), photographs(40)
        model.model.image_tower.load()
        model.set_default_transform()
        tower = model.model.image_tower
        depths = part.depths_of(tower.num_blocks)
        tokens = part.select(tower(model.pre_processor(shots), depths))
        seen, unseen = [each[:32] for each in tokens], [each[32:] for each in tokens]

        def make(count: int) -> Call:
            fitted = part.fit([each[:count] for each in seen])
            return lambda: part.distances(unseen, fitted)

        return make

    return prepare


def photographs(count: int) -> torch.Tensor:
    """Return normal photographs of bricks, (count, 3, 128, 128)."""
    with TemporaryDirectory() as root:
        data = DemoSurfaces(root)
        data.setup()
        items = (item.image for part in (data.train_data, data.test_data) for item in part if not item.gt_label)
        return torch.stack([*islice(items, count)])


def of_tiles(weights: str) -> Callable[[int], Call]:
    """Score a 4:3 image in tiles."""

    def make(tiles_per_side: int) -> Call:
        model, side = make_model(weights, tiles_per_side=tiles_per_side), short_side(240, tiles_per_side)
        image = torch.rand(1, 3, side, side * 4 // 3)
        return lambda: model(image)

    return make


def of_size(weights: str) -> Callable[[int], Call]:
    """Score an image of a given side."""

    def make(side: int) -> Call:
        model, image = make_model(weights, image_size=side), torch.rand(1, 3, side, side)
        return lambda: model(image)

    return make


def linear(value: float) -> float:
    """Cost that grows with the value."""
    return value


def constant(_: float) -> float:
    """Cost that does not grow."""
    return 1


def operations(pixels: float) -> float:
    """Operations of a block with both paths: 13 N d² in linear layers, 4 N² d in attention; N patches of width d."""
    patches = pixels / PATCH**2
    return 13 * patches * WIDTH**2 + 4 * patches**2 * WIDTH


def number_of_tiles(tiles_per_side: int) -> int:
    """Return how many tiles a 4:3 image has."""
    return {1: 2, 2: 6, 4: 24, 8: 88}[tiles_per_side]


class Kind(NamedTuple):
    """What grows.

    Attributes:
        subject: panel of the plot that it belongs to.
        what: what costs.
        make: makes, of the CLIP's weights, a function from a point to what is timed.
        points: what to measure.
        rounds: how often the points take turns; the first run of each, for the memory, is not timed unless this is 0.
        expected: cost that is expected at a value, but for a factor.
        value: value on the axis of a point.
    """

    subject: str
    what: str
    make: Callable[[str], Callable[[int], Call]]
    points: tuple[int, ...]
    rounds: int = 2
    expected: Callable[[float], float] = linear
    value: Callable[[int], float] = float


KINDS = {
    "images": Kind("images", "`predict`, `anovl-demo`", of_images, (100, 300, 1000, 3000, 10_000), 0),
    "batch": Kind("images", "one batch", of_batch, (1, 2, 4, 8, 16, 32), 1),
    "new-classes": Kind("classes", "building text banks, `anovl-demo`", of_new_classes, (1, 2, 5, 10, 20, 50), 1),
    "classes": Kind("classes", "scoring 8 images", of_classes, (1, 2, 5, 10, 20, 50), expected=constant),
    "prompts": Kind("prompts", "encoding prompts", of_prompts, (10, 30, 100, 300, 1000), 1),
    "adapter": Kind("prompts", "text adapter, 8 images", of_adapter, (10, 100, 300, 1000, 4000)),
    "memory": Kind("reference images", "`PatchMemory`, 8 images", of_references(PatchMemory()), (1, 2, 4, 8, 16, 32)),
    "subspace": Kind(
        "reference images",
        "`PatchSubspace`, 8 images",
        of_references(PatchSubspace()),
        (1, 2, 4, 8, 16, 32),
        expected=constant,
    ),
    "tiles": Kind("tiles", "one 4:3 image in tiles", of_tiles, (1, 2, 4), 1, value=number_of_tiles),
    "size": Kind(
        "pixels", "one image in one piece", of_size, (240, 480, 720, 960), 1, operations, lambda side: float(side**2)
    ),
}


def order_of(values: Sequence[float], costs: Sequence[float]) -> float:
    """Return the order of growth: the slope of a straight line through the logarithms of values and costs."""
    slope, _ = np.polyfit(np.log(values), np.log(costs), 1)
    return float(slope)


def bench_growth(weights: str, plot: Path | None, kinds: Sequence[str] = tuple(KINDS)) -> Iterator[Growth]:
    """Measure how costs grow, and draw the plot of all that could be measured.

    Args:
        weights: file of the CLIP's weights.
        plot: file of the plot; none if ``None``.
        kinds: what to measure.

    Raises:
        RuntimeError: If some could not be measured; once all others have been.
    """
    curves, errors = [], []
    for name in kinds:
        kind = KINDS[name]
        try:
            row = row_of(kind, **in_process("tests.benchmarks.growth", name, weights))
        except (RuntimeError, TimeoutError) as error:
            errors.append(f"{name}: {error}")
            continue
        yield row
        curves.append(Curve(kind.subject, kind.what, row.values, row.seconds, [*map(kind.expected, row.values)]))
    if plot is not None and curves:
        draw_growth(curves, plot)
    if errors:
        raise RuntimeError("; ".join(errors))


def row_of(kind: Kind, seconds: list[float], megabytes: list[float]) -> Growth:
    """Return the row of a kind from what its process printed."""
    values = [kind.value(point) for point in kind.points]
    expected = [kind.expected(value) for value in values]
    return Growth(
        f"{kind.what}, by {kind.subject}",
        values,
        seconds,
        megabytes,
        order_of(values, expected),
        order_of(values, seconds),
        order_of(values[-2:], seconds[-2:]),
    )


@torch.inference_mode()
def measure(kind: Kind, weights: str) -> dict[str, list[float]]:
    """Return the seconds and the memory in MB of each point."""
    make = kind.make(weights)
    calls, megabytes, first = [], [], []
    for point in kind.points:
        calls.append(make(point))
        megabytes.append(most_megabytes(lambda: first.extend(take_turns(calls[-1:], 1, warm_up=False)[0])))
    turns = take_turns(calls, kind.rounds, warm_up=False) or [first]
    return {"seconds": [median(times) for times in zip(*turns, strict=True)], "megabytes": megabytes}


def main() -> None:
    """Measure one kind and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("weights")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    print(json.dumps(measure(KINDS[args.kind], args.weights)))  # noqa: T201 - the parent process reads it


if __name__ == "__main__":
    main()
