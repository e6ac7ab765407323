"""Measure reference images on ``anovl-demo``: ``python -m anovl_plugin.demo.studies.references``.

For each surface of the demo data, or, with ``--folder``, for each category of a folder in the layout of MVTec AD:
AUROC of images and of pixels, and AUPRO, with 0, 1, 2, 4 and 8 reference images. Figures are means over the categories.
Each seed chooses other references; the table shows the mean over the seeds, and their standard deviation in brackets.
The last column shows what references change in the image AUROC and, in brackets, how much that would vary with other
test images: the standard deviation over bootstrap samples of them.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from matplotlib.figure import Figure
from torch import Tensor

from anovl_plugin.demo.studies.few_shot import (
    Category,
    Measured,
    Row,
    TestImage,
    categories_of,
    make_parser,
    measure,
    print_table,
    read_test_images,
    references_for,
    transform_of,
)
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


def results_of(model: AnoVLModel, images: list[Encoded]) -> tuple[Tensor, Tensor]:
    """Return the scores of test images (B,) and their maps (B, 1, H, W)."""
    scores, maps = (torch.cat(each) for each in zip(*(scores_of(model, each) for each in images), strict=True))
    return scores, maps


def make_model(args: argparse.Namespace, references: References | None) -> AnoVL:
    """Return a model with the settings of the command line."""
    domain = "object" if args.folder else "texture"
    shots: dict[str, Any] = {} if references is None else {"k_shot": 1, "references": references}
    return AnoVL(
        "anovl-demo", domain=domain, tiles_per_side=args.tiles, image_score=args.image_score, visualizer=False, **shots
    )


def rows(args: argparse.Namespace, categories: list[Category]) -> Iterator[Row]:
    """Iterate over the rows of the table."""
    zero_shot = make_model(args, None)
    zero_shot.load()
    images = {category.name: read_test_images(category, transform_of(zero_shot), args.count) for category in categories}
    # The image tower does not depend on the references, so each image goes through it once.
    encoded: dict[tuple[str, tuple[int, ...]], list[Encoded]] = {}

    def encoded_images(name: str, depths: tuple[int, ...]) -> list[Encoded]:
        if (name, depths) not in encoded:
            encoded[name, depths] = [encode(zero_shot.model, image, depths) for image in images[name]]
        return encoded[name, depths]

    def measure_all(model: AnoVL, k_shot: int, seed: int) -> list[Measured]:
        found = []
        for category in categories:
            model.model.build_text_bank(category.class_name, model.settings["domain"])
            if k_shot:
                model.model.build_reference_bank(references_for(category, transform_of(model), k_shot, seed))
            banks = model.model.reference_banks
            depths = () if banks is None else banks.depths
            results = results_of(model.model, encoded_images(category.name, depths))
            found.append(measure(images[category.name], *results))
        return found

    yield "text alone", [measure_all(zero_shot, 0, 0)]
    for name in args.parts:
        model = make_model(args, PARTS[name])
        model.load()
        for k_shot in args.shots:
            if k_shot >= PARTS[name].least_images:
                yield f"{name}, {k_shot}", [measure_all(model, k_shot, seed) for seed in range(args.seeds)]


@torch.inference_mode()
def draw(args: argparse.Namespace, category: Category, path: Path) -> None:
    """Draw the first abnormal test image of a category, its mask, and its maps without and with references."""
    maps = {}
    for title, k_shot in (("text alone", 0), (f"with {args.shots[-1]} reference images", args.shots[-1])):
        model = make_model(args, PARTS[args.parts[0]] if k_shot else None)
        model.load()
        model.model.build_text_bank(category.class_name, model.settings["domain"])
        image = next(each for each in read_test_images(category, transform_of(model), 1) if each.mask.any())
        if k_shot:
            model.model.build_reference_bank(references_for(category, transform_of(model), k_shot, 0))
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
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--class-name", default="circuit board", help="what the folder shows; default: circuit board")
    parser.add_argument("--tiles", type=int, help="tiles along the short side; default: none")
    parser.add_argument("--image-score", default="global", help="global, map or both; default: global")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS), help="what to measure; default: all")
    parser.add_argument("--figure", type=Path, help="file to draw an image of the first category and its maps to")
    args = parser.parse_args()
    categories = categories_of(args, args.class_name)
    if args.figure:
        draw(args, categories[0], args.figure)
    print_table(rows(args, categories), with_changes=True)


if __name__ == "__main__":
    main()
