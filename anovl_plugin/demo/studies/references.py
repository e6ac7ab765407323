"""Measure reference images on ``anovl-demo``: ``python -m anovl_plugin.demo.studies.references``.

For each surface of the demo data, or, with ``--folder``, for each category of a folder in the layout of MVTec AD:
AUROC of images and of pixels, and AUPRO, with 0, 1, 2, 4 and 8 reference images. Figures are means over the categories.
Each seed chooses other references; the table shows the mean over the seeds, and their standard deviation in brackets.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple, cast

import torch
from anomalib.data import AnomalibDataModule, Batch, MVTecAD
from anomalib.metrics import AUPRO
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc
from torchvision.transforms.v2.functional import resize

from anovl_plugin.components.references.reference_images import choose, read_references, training_files
from anovl_plugin.demo.datamodule import PHOTOGRAPHS, DemoSurfaces
from anovl_plugin.lightning_model import AnoVL
from anovl_plugin.scoring.patch_memory import PatchMemory
from anovl_plugin.scoring.patch_subspace import PatchSubspace
from anovl_plugin.scoring.references import References
from anovl_plugin.scoring.scores import to_probability
from anovl_plugin.torch_model import AnoVLModel
from anovl_plugin.vision.tiles import split_into_tiles
from anovl_plugin.vision.value_attention import VisionTokens

PARTS: dict[str, References] = {
    "memory": PatchMemory(),
    "subspace": PatchSubspace(),
    "memory-unlabelled": PatchMemory(unlabelled=True),
}


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


class Encoded(NamedTuple):
    """A test image after the image tower.

    Attributes:
        tiles: Its tiles, shape (1, T, 3, t, t).
        join: Joins maps of tiles.
        tokens: Tokens of the tiles.
    """

    tiles: Tensor
    join: Callable[[Tensor], Tensor]
    tokens: VisionTokens


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
    """Iterate over the categories of a folder in the layout of MVTec AD, or over those with the given names."""
    for path in sorted(each.parent for each in folder.glob("*/test")):
        if names and path.name not in names:
            continue
        datamodule = MVTecAD(folder, path.name, num_workers=0, eval_batch_size=1)
        datamodule.setup()
        yield Category(path.name, class_name, datamodule)


def read_test_images(model: AnoVL, category: Category, count: int | None) -> list[TestImage]:
    """Return normal and abnormal test images, at most ``count`` of each, evenly spaced, ready for a model."""
    samples = category.datamodule.test_data.samples
    chosen: list[Any] = []
    for label in (0, 1):
        rows = [index for index, value in enumerate(samples["label_index"]) if value == label]
        number = min(count or len(rows), len(rows))
        chosen += [rows[at * len(rows) // number] for at in range(number)]
    transform: Any = getattr(model.pre_processor, "transform", None)
    images = []
    for index in chosen:
        item: Any = category.datamodule.test_data[index]
        pixels = transform(item.image[None])
        mask = torch.zeros(item.image.shape[-2:]) if item.gt_mask is None else item.gt_mask.float().squeeze()
        images.append(TestImage(pixels, resize(mask[None], list(pixels.shape[-2:]))[0] > 0.5, str(item.image_path)))
    return images


@torch.inference_mode()
def encode(model: AnoVLModel, image: TestImage, depths: tuple[int, ...]) -> Encoded:
    """Return the tokens of a test image, with those of some blocks."""
    tiles: Tensor = image.pixels.unsqueeze(1)
    join: Callable[[Tensor], Tensor] = partial(torch.squeeze, dim=1)
    if model.tiles_per_side is not None:
        tiles, join = split_into_tiles(image.pixels, model.image_size[0])
    return Encoded(tiles, join, model.encode(tiles, depths))


@torch.inference_mode()
def scores_of(model: AnoVLModel, image: Encoded) -> tuple[Tensor, Tensor]:
    """Return the score of a test image (1,) and its map (1, 1, H, W), as the model itself would."""
    bank = model.text_bank
    by_text = model.score(image.tokens.patch_tokens, bank.state_embeddings)
    by_both = model.refer(by_text, image.tokens, bank)
    margins = model.aggregate(by_both, image.tokens.class_token, image.tiles, image.join, bank.state_embeddings)
    score, anomaly_map = (to_probability(each, cast("float", model.image_tower.temperature)) for each in margins)
    return score, anomaly_map


def measure(model: AnoVLModel, images: list[TestImage], encoded: list[Encoded]) -> Figures:
    """Return the figures of one category."""
    scores, maps = (torch.cat(each) for each in zip(*(scores_of(model, each) for each in encoded), strict=True))
    labels = torch.tensor([bool(image.mask.any()) for image in images]).int()
    pixels = Pixels(
        anomaly_map=maps.squeeze(1),
        gt_mask=torch.stack([image.mask for image in images]).int(),
    )
    aupro = AUPRO(fields=Pixels._fields)
    aupro.update(cast("Batch", pixels))
    return Figures(
        image=binary_auroc(scores, labels).item(),
        pixel=binary_auroc(*pixels).item(),
        aupro=aupro.compute().item(),
    )


def references_for(model: AnoVL, category: Category, k_shot: int, seed: int) -> list[Tensor]:
    """Return reference images from a category's training data, chosen by a seed, ready for a model."""
    files = choose(training_files(category.datamodule), k_shot, category.name, seed)
    return read_references(files, getattr(model.pre_processor, "transform", None))


def make_model(args: argparse.Namespace, references: References | None) -> AnoVL:
    """Return a model with the settings of the command line."""
    domain = "object" if args.folder else "texture"
    shots: dict[str, Any] = {} if references is None else {"k_shot": 1, "references": references}
    return AnoVL(
        "anovl-demo", domain=domain, tiles_per_side=args.tiles, image_score=args.image_score, visualizer=False, **shots
    )


def rows(args: argparse.Namespace, categories: list[Category]) -> Iterator[tuple[str, list[Figures]]]:
    """Iterate over the rows of the table: a name, and the figures of each seed, means over the categories."""
    zero_shot = make_model(args, None)
    zero_shot.load()
    images = {category.name: read_test_images(zero_shot, category, args.count) for category in categories}
    # The image tower does not depend on the references, so each image goes through it once.
    encoded: dict[tuple[str, tuple[int, ...]], list[Encoded]] = {}

    def encoded_images(name: str, depths: tuple[int, ...]) -> list[Encoded]:
        if (name, depths) not in encoded:
            encoded[name, depths] = [encode(zero_shot.model, image, depths) for image in images[name]]
        return encoded[name, depths]

    def mean_over_categories(model: AnoVL, k_shot: int, seed: int) -> Figures:
        found = []
        for category in categories:
            model.model.build_text_bank(category.class_name, model.settings["domain"])
            if k_shot:
                model.model.build_reference_bank(references_for(model, category, k_shot, seed))
            banks = model.model.reference_banks
            depths = () if banks is None else banks.depths
            found.append(measure(model.model, images[category.name], encoded_images(category.name, depths)))
        return Figures(*torch.tensor(found).mean(0).tolist())

    yield "text alone", [mean_over_categories(zero_shot, 0, 0)]
    for name in args.parts:
        model = make_model(args, PARTS[name])
        model.load()
        for k_shot in args.shots:
            if k_shot >= PARTS[name].least_images:
                yield f"{name}, {k_shot}", [mean_over_categories(model, k_shot, seed) for seed in range(args.seeds)]


def shown(values: Iterable[float], digits: int = 3) -> str:
    """Return the mean of values and, if there are several, their standard deviation in brackets."""
    values = list(values)
    spread = f" ({stdev(values):.{digits}f})" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


@torch.inference_mode()
def draw(args: argparse.Namespace, category: Category, path: Path) -> None:
    """Draw the first abnormal test image of a category, its mask, and its maps without and with references."""
    maps = {}
    for title, k_shot in (("text alone", 0), (f"with {args.shots[-1]} reference images", args.shots[-1])):
        model = make_model(args, PARTS[args.parts[0]] if k_shot else None)
        model.load()
        model.model.build_text_bank(category.class_name, model.settings["domain"])
        image = next(each for each in read_test_images(model, category, 1) if each.mask.any())
        if k_shot:
            model.model.build_reference_bank(references_for(model, category, k_shot, 0))
        maps[title] = model.model(image.pixels).anomaly_map[0, 0]
    mean_, std = (torch.tensor(each).view(3, 1, 1) for each in (model.model.mean, model.model.std))
    shown_image = (image.pixels[0] * std + mean_).clamp(0, 1).permute(1, 2, 0)
    figure = Figure(figsize=(11, 3), dpi=70, layout="constrained")
    axes = figure.subplots(1, 4)
    axes[0].imshow(shown_image)
    axes[0].set_title("image")
    axes[1].imshow(image.mask, cmap="gray")
    axes[1].set_title("ground truth")
    for axis, (title, anomaly_map) in zip(axes[2:], maps.items(), strict=True):
        axis.imshow(anomaly_map, cmap="inferno")
        axis.set_title(title)
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(path)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="folder of the demo data; default: in anomalib's cache")
    parser.add_argument("--folder", type=Path, help="categories in the layout of MVTec AD; default: the demo data")
    parser.add_argument("--categories", nargs="+", help="which of the folder's categories; default: all")
    parser.add_argument("--class-name", default="circuit board", help="what the folder shows; default: circuit board")
    parser.add_argument("--tiles", type=int, help="tiles along the short side; default: none")
    parser.add_argument("--image-score", default="global", help="global, map or both; default: global")
    parser.add_argument("--count", type=int, help="most normal and abnormal test images; default: all")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, counting from 0; default: 3")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of references")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS), help="what to measure; default: all")
    parser.add_argument("--figure", type=Path, help="file to draw an image of the first category and its maps to")
    args = parser.parse_args()
    if args.folder:
        categories = list(folder_categories(args.folder, args.class_name, args.categories))
    else:
        categories = list(demo_categories(args.root))
    if args.figure:
        draw(args, categories[0], args.figure)
    console = Console(width=120)
    console.print("| references | image AUROC | pixel AUROC | AUPRO |", "|---|---|---|---|", sep="\n")
    for name, by_seed in rows(args, categories):
        cells = [shown(getattr(each, figure) for each in by_seed) for figure in Figures._fields]
        console.print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
