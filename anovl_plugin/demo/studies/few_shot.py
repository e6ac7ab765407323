"""What the studies of reference images share: categories, test images, references, figures and their table."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple, cast

import torch
from anomalib.data import AnomalibDataModule, Batch, MVTecAD
from anomalib.metrics import AUPRO
from anomalib.models import AnomalibModule
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc
from torchvision.transforms.v2.functional import resize

from anovl_plugin.components.references.reference_images import choose, read_references, training_files
from anovl_plugin.demo.datamodule import PHOTOGRAPHS, DemoSurfaces
from anovl_plugin.scoring.scores import to_unit_range


class Figures(NamedTuple):
    """What is measured.

    Attributes:
        image: AUROC of images.
        pixel: AUROC of pixels.
        aupro: AUPRO, up to a false positive rate of 0.3.
    """

    image: float
    pixel: float
    aupro: float


class Measured(NamedTuple):
    """What is measured on the P abnormal and N normal test images of a category.

    Attributes:
        figures: The figures.
        wins: How often an abnormal image scores higher than a normal one: 1, ½ if they score the same, 0; (P, N).
    """

    figures: Figures
    wins: Tensor


# A name, and what was measured, by seed and category.
Row = tuple[str, list[list[Measured]]]


class TestImage(NamedTuple):
    """A test image.

    Attributes:
        pixels: Resized and normalized, shape (1, 3, H, W).
        mask: Whether a pixel is on a defect, at the size of the image, shape (H, W).
        path: Its file.
    """

    pixels: Tensor
    mask: Tensor
    path: str


class Pixels(NamedTuple):
    """Maps and masks of several images, each (B, H, W)."""

    anomaly_map: Tensor
    gt_mask: Tensor


class Category(NamedTuple):
    """A category to measure.

    Attributes:
        name: Its name.
        class_name: What the prompts call it.
        datamodule: Its data, set up.
    """

    name: str
    class_name: str
    datamodule: AnomalibDataModule


def demo_categories(root: Path | None) -> Iterator[Category]:
    """Iterate over the surfaces of the demo data."""
    for name in PHOTOGRAPHS:
        datamodule = DemoSurfaces(root, name)
        datamodule.setup()
        yield Category(name, name, datamodule)


def folder_categories(folder: Path, class_name: str, names: list[str] | None) -> Iterator[Category]:
    """Iterate over the categories of a folder in the layout of MVTec AD, or over those with the given names.

    Raises:
        SystemExit: If there is none, or none of a given name.
    """
    found = sorted(each.parent.name for each in folder.glob("*/test"))
    missing = sorted(set(names or []) - set(found))
    if missing or not found:
        what = f"no category {', '.join(map(repr, missing))}" if missing else "no category, a folder that holds test/"
        sys.exit(f"error: {folder} has {what}; give a folder in the layout of MVTec AD")
    for name in names or found:
        datamodule = MVTecAD(folder, name, num_workers=0, eval_batch_size=1)
        datamodule.setup()
        yield Category(name, class_name, datamodule)


def transform_of(model: AnomalibModule) -> nn.Module:
    """Return what resizes and normalizes a model's images."""
    return cast("nn.Module", getattr(model.pre_processor, "transform", None))


def read_test_images(category: Category, transform: nn.Module, count: int | None = None) -> list[TestImage]:
    """Return normal and abnormal test images, at most ``count`` of each, evenly spaced, ready for a model.

    Args:
        category: The category.
        transform: What resizes and normalizes images.
        count: At most so many of either. Default: all.
    """
    samples = category.datamodule.test_data.samples
    chosen: list[Any] = []
    for label in (0, 1):
        rows = [index for index, value in enumerate(samples["label_index"]) if value == label]
        number = min(count or len(rows), len(rows))
        chosen += [rows[at * len(rows) // number] for at in range(number)]
    images = []
    for index in chosen:
        item: Any = category.datamodule.test_data[index]
        pixels = transform(item.image[None])
        mask = torch.zeros(item.image.shape[-2:]) if item.gt_mask is None else item.gt_mask.float().squeeze()
        images.append(TestImage(pixels, resize(mask[None], list(pixels.shape[-2:]))[0] > 0.5, str(item.image_path)))
    return images


def measure(images: list[TestImage], scores: Tensor, maps: Tensor) -> Measured:
    """Return what is measured on one category.

    Args:
        images: The B test images.
        scores: Their scores on any scale, shape (B,).
        maps: Their anomaly maps on any scale, shape (B, 1, H, W).
    """
    abnormal = torch.tensor([bool(image.mask.any()) for image in images])
    differences = scores[abnormal, None] - scores[~abnormal]
    wins = (differences.sign() + 1) / 2
    pixels = Pixels(
        anomaly_map=to_unit_range(maps.squeeze(1)),
        gt_mask=torch.stack([image.mask for image in images]).int(),
    )
    aupro = AUPRO(fields=Pixels._fields)
    aupro.update(cast("Batch", pixels))
    figures = Figures(image=wins.mean().item(), pixel=binary_auroc(*pixels).item(), aupro=aupro.compute().item())
    return Measured(figures, wins)


def mean_figures(categories: Iterable[Measured]) -> Figures:
    """Return the means over categories."""
    return Figures(*map(mean, zip(*(each.figures for each in categories), strict=True)))


def spread_over_images(wins: Sequence[Tensor], samples: int = 2000) -> float:
    """Return the standard deviation of a mean over categories of AUROCs, or of differences, over the test images.

    It is that of bootstrap samples, which draw the normal and the abnormal images apart.

    Args:
        wins: What the categories' means are taken of, each of shape (P, N).
        samples: Number of samples. Default: 2,000.
    """
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(samples)
    for each in wins:
        drawn = [torch.randint(number, (samples, number), generator=generator) for number in each.shape]
        rows, columns = (F.one_hot(chosen, chosen.shape[1]).float().mean(1) for chosen in drawn)
        total += ((rows @ each) * columns).sum(1)
    return (total / len(wins)).std().item()


def references_for(category: Category, transform: nn.Module, k_shot: int, seed: int) -> list[Tensor]:
    """Return reference images from a category's training data, chosen by a seed, ready for a model."""
    files = choose(training_files(category.datamodule), k_shot, category.name, seed)
    return read_references(files, transform)


def shown(values: Iterable[float], digits: int = 3) -> str:
    """Return the mean of values and, if there are several, their standard deviation in brackets."""
    values = list(values)
    spread = f" ({stdev(values):.{digits}f})" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the arguments that the studies share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--root", type=Path, help="folder of the demo data; default: in anomalib's cache")
    parser.add_argument("--folder", type=Path, help="categories in the layout of MVTec AD; default: the demo data")
    parser.add_argument("--categories", nargs="+", help="which of the folder's categories; default: all")
    parser.add_argument("--count", type=int, help="most normal and abnormal test images; default: all")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, counting from 0; default: 3")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of references")
    return parser


def categories_of(args: argparse.Namespace, class_name: str = "object") -> list[Category]:
    """Return the categories that the command line names.

    Args:
        args: The command line.
        class_name: What a folder shows.
    """
    if args.folder:
        return list(folder_categories(args.folder, class_name, args.categories))
    return list(demo_categories(args.root))


def print_table(rows: Iterable[Row], *, with_changes: bool = False) -> None:
    """Print rows as a table in Markdown: means over the seeds and, in brackets, their standard deviation.

    Args:
        rows: The rows.
        with_changes: Whether to show the change of the image AUROC from the first row and, in brackets, its standard
            deviation over the test images. Default: no.
    """
    console = Console(width=120)
    titles = ["references", "image AUROC", "pixel AUROC", "AUPRO", *(["change of image AUROC"] if with_changes else [])]
    console.print(f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", sep="\n")
    first: list[Tensor] | None = None
    for name, by_seed in rows:
        figures = [mean_figures(categories) for categories in by_seed]
        cells = [shown(getattr(each, figure) for each in figures) for figure in Figures._fields]
        wins = [torch.stack([each.wins for each in seeds]).mean(0) for seeds in zip(*by_seed, strict=True)]
        if with_changes and first is not None:
            changes = [new - old for new, old in zip(wins, first, strict=True)]
            change = mean(each.mean().item() for each in changes)
            cells.append(f"{change:+.3f} ({spread_over_images(changes):.3f})")
        elif with_changes:
            first = wins
            cells.append("")
        console.print(f"| {name} | {' | '.join(cells)} |")
