"""Measure how often defects get their right name: ``python -m anovl_plugin.demo.studies.defect_names``.

Regions of ``DemoSurfaces``, whose kinds of defects are known, and with ``--boards`` those of circuit boards from
DeepPCB: a folder of groups, each with images ``*_test.jpg`` and a line ``x1 y1 x2 y2 kind`` for each defect in
``*.txt``. Regions are the true ones, and those of predicted masks that touch a true one and so have its kind. A name is
right if it has the largest share. ``anovl-demo`` has never seen the words for the kinds; with ``--fit`` they are fitted
to synthetic images (:mod:`anovl_plugin.demo.studies.fit_words`), and other formulas for the share are compared.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from anomalib.data.utils import read_image
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import normalize, resize

from anovl_plugin.demo.datamodule import PHOTOGRAPHS, DemoSurfaces, make_category
from anovl_plugin.demo.defects import DEFECT_KINDS
from anovl_plugin.demo.studies.evaluate import prepare
from anovl_plugin.demo.studies.fit_words import fit_words
from anovl_plugin.scoring.defect_names import region_weights
from anovl_plugin.scoring.regions import find_regions
from anovl_plugin.scoring.scores import abnormality_margin, margin_map
from anovl_plugin.text.prompts import Prompts
from anovl_plugin.text.text_bank import TextBank, build_text_banks
from anovl_plugin.text.text_tower import TextTower, Tokenizer
from anovl_plugin.torch_model import AnoVLModel
from anovl_plugin.vision.backbone import load_backbone
from anovl_plugin.vision.tiles import short_side, split_into_tiles

# A word for each kind, in the order of the kinds.
SURFACE_WORDS = tuple(kind if kind != "foreign" else "foreign piece" for kind in DEFECT_KINDS)
BOARD_WORDS = ("open", "short", "mousebite", "spur", "copper", "pin-hole")
BOARD_TILES = 8


class Scene(NamedTuple):
    """Regions of one image.

    Attributes:
        tokens: Unit patch tokens of all tiles, shape (T·N, C).
        weights: How much each patch counts in each region, shape (R, T·N).
        kinds: The kind of each region.
        class_name: What the image shows.
    """

    tokens: Tensor
    weights: Tensor
    kinds: list[int]
    class_name: str


# The true and the predicted regions of an image, if there are any.
Pair = tuple[Scene | None, Scene | None]
# The score of each word from tokens, weights, words (D, C) and the embedding of "normal" (C); shape (R, D).
Formula = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def rest(tokens: Tensor, weights: Tensor) -> Tensor:
    """Return the mean token (C,) of the patches in none of the regions."""
    outside = (weights.sum(0) == 0).float()
    return outside @ tokens / outside.sum().clamp(min=1)


def unit(vectors: Tensor) -> Tensor:
    """Return unit vectors."""
    return F.normalize(vectors, dim=-1)


def formulas(temperature: float) -> dict[str, Formula]:
    """Return formulas that put the words in the order of their shares; the first is the package's."""
    return {
        "mean token": lambda t, w, d, _: w @ t @ d.T,
        "votes of patches": lambda t, w, d, _: w @ (t @ d.T / temperature).softmax(-1),
        "patches half covered": lambda t, w, d, _: (w * (w >= w.amax(1, keepdim=True) / 2)) @ t @ d.T,
        "less half the rest of the image": lambda t, w, d, _: (w @ t - rest(t, w) / 2) @ d.T,
        "less the rest of the image": lambda t, w, d, _: (w @ t - rest(t, w)) @ d.T,
        "words less normal, normalized": lambda t, w, d, n: w @ t @ unit(d - n).T,
        "words less their mean, normalized": lambda t, w, d, _: w @ t @ unit(d - d.mean(0)).T,
    }


def touching(truth: Sequence[Tensor], kinds: Sequence[int], labels: Tensor) -> dict[int, int]:
    """Return, for labels of predicted regions, the kind of the true region that each shares most pixels with."""
    found: dict[int, int] = {}
    for label in range(1, int(labels.max()) + 1):
        overlaps = [int((mask & (labels == label)).sum()) for mask in truth]
        if max(overlaps) > 0:
            found[label] = kinds[overlaps.index(max(overlaps))]
    return found


@torch.inference_mode()
def scenes_of(model: AnoVLModel, image: Tensor, truth: Sequence[Tensor], kinds: Sequence[int]) -> Pair:
    """Return the true regions of one image, and the predicted ones that touch them.

    Args:
        model: The model, with a text bank for what the image shows.
        image: Shape (1, 3, H, W), prepared for the model.
        truth: Masks of the true regions, shape (H, W) each.
        kinds: Their kinds.
    """
    side, grid_size = model.image_size[0], model.image_tower.visual.grid_size
    tiles, join = split_into_tiles(image, side)
    patch_tokens = model.encode(tiles).patch_tokens[0]
    tokens, class_name = unit(patch_tokens.flatten(0, 1)), str(model.text_bank.class_name)

    def weigh(masks: Sequence[Tensor], kinds: Sequence[int]) -> Scene | None:
        pairs = [(mask, kind) for mask, kind in zip(masks, kinds, strict=True) if mask.any()]
        if not pairs:
            return None
        cut = [split_into_tiles(mask[None, None].float(), side)[0][0, :, 0] for mask, _ in pairs]
        weights = torch.cat([region_weights(labels, 1, grid_size) for labels in cut])
        return Scene(tokens, weights, [kind for _, kind in pairs], class_name)

    margins = abnormality_margin(patch_tokens, model.text_bank.state_embeddings)
    anomaly_map = join(margin_map(margins, grid_size, model.image_size)[None])
    (found,) = find_regions(anomaly_map > 0, anomaly_map)
    matched = touching(truth, kinds, found.labels)
    return weigh(truth, kinds), weigh([found.labels == label for label in matched], list(matched.values()))


def surface_scenes(model: AnoVLModel, folder: Path, seed: int) -> Iterator[Pair]:
    """Iterate over the abnormal test images of one seed's demo data, which are created in a folder."""
    root = folder / str(seed)
    for category in PHOTOGRAPHS:
        make_category(root, category, seed)
        model.build_text_bank(category, "texture")
        datamodule = DemoSurfaces(root, category)
        datamodule.setup()
        for batch in datamodule.test_dataloader():
            masks = resize(batch.gt_mask.float(), list(model.image_size)) > 0.5
            for item, image, mask in zip(batch, prepare(model, batch.image).split(1), masks, strict=True):
                if mask.any():
                    (found,) = find_regions(mask[None], mask[None].float())
                    truth = [found.labels == index + 1 for index in range(len(found.regions))]
                    kind = DEFECT_KINDS.index(Path(str(item.image_path)).parent.name)
                    yield scenes_of(model, image, truth, [kind] * len(truth))


def board_scenes(model: AnoVLModel, folder: Path) -> Iterator[Pair]:
    """Iterate over the images of boards with defects; boxes are the true regions."""
    model.build_text_bank("circuit board", "object")
    for path in sorted(folder.glob("*/*_test.jpg")):
        pixels = torch.as_tensor(read_image(path, as_tensor=True))[None]
        length = short_side(model.image_size[0], BOARD_TILES)
        scale, truth, kinds = length / pixels.shape[-1], [], []
        for line in path.with_name(path.name.replace("_test.jpg", ".txt")).read_text().splitlines():
            *box, kind = map(int, line.split())
            left, top, right, bottom = (round(value * scale) for value in box)
            mask = torch.zeros(length, length, dtype=torch.bool)
            mask[top : bottom + 1, left : right + 1] = True
            truth.append(mask)
            kinds.append(kind - 1)
        image = normalize(resize(pixels, [length, length], antialias=True), list(model.mean), list(model.std))
        yield scenes_of(model, image, truth, kinds)


def accuracy(scenes: Sequence[Scene], banks: dict[str, TextBank], formula: Formula) -> float:
    """Return the share of regions whose kind has the highest score."""
    right = total = 0
    for scene in scenes:
        bank = banks[scene.class_name]
        scores = formula(scene.tokens, scene.weights, bank.defect_embeddings, bank.state_embeddings[0])
        right += int((scores.argmax(1) == torch.tensor(scene.kinds)).sum())
        total += len(scene.kinds)
    return right / total


def show(console: Console, name: str, scenes: Sequence[Scene], banks: dict[str, TextBank], formula: Formula) -> None:
    """Print a row: regions, chance, the commonest kind, and the accuracy."""
    counts = Counter(kind for scene in scenes for kind in scene.kinds)
    total, words = sum(counts.values()), len(next(iter(banks.values())).defect_words)
    row = (1 / words, max(counts.values()) / total, accuracy(scenes, banks, formula))
    console.print(f"| {name} | {total} | {' | '.join(f'{value:.3f}' for value in row)} |")


def split(pairs: Iterable[Pair]) -> dict[str, list[Scene]]:
    """Return the scenes of true and of predicted regions, where there are any."""
    columns = zip(*pairs, strict=True)
    return {
        name: [scene for scene in column if scene is not None]
        for name, column in zip(("true regions", "predicted regions"), columns, strict=True)
    }


def prompts_with(words: Sequence[str]) -> Prompts:
    """Return the paper's prompts, with words for defects."""
    return Prompts.load({"extends": "paper", "defects": list(words)})


def banks_of(tower: TextTower, classes: Iterable[str], domain: str, prompts: Prompts) -> dict[str, TextBank]:
    """Return text banks by class."""
    return {str(bank.class_name): bank for bank in build_text_banks(tower, list(classes), domain, prompts)}


def main() -> None:
    """Measure and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4, help="number of seeds of the demo data; default: 4")
    parser.add_argument("--boards", type=Path, help="folder of DeepPCB's groups")
    parser.add_argument("--fit", action="store_true", help="also fit the words first, and compare formulas")
    args = parser.parse_args()
    loaded = load_backbone("anovl-demo")
    tower, prompts = TextTower(loaded.clip, cast("Tokenizer", loaded.tokenizer)), prompts_with(SURFACE_WORDS)
    model = AnoVLModel("anovl-demo", prompts=prompts)
    model.load()
    console, named = Console(width=120), formulas(cast("float", model.image_tower.temperature))
    ours = named["mean token"]
    console.print("| | regions | chance | commonest | accuracy |", "|---|---|---|---|---|", sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        surfaces = split(pair for seed in range(args.seeds) for pair in surface_scenes(model, Path(folder), seed))
    banks = banks_of(tower, PHOTOGRAPHS, "texture", prompts)
    for name, scenes in surfaces.items():
        show(console, f"surfaces, {name}", scenes, banks, ours)
    if args.boards:
        tiled = AnoVLModel("anovl-demo", tiles_per_side=BOARD_TILES, prompts=prompts_with(BOARD_WORDS))
        bank = banks_of(tower, ["circuit board"], "object", tiled.prompts)
        for name, scenes in split(board_scenes(tiled, args.boards)).items():
            show(console, f"boards, {name}", scenes, bank, ours)
    if args.fit:
        fit_words(model, tower, SURFACE_WORDS)
        banks = banks_of(tower, PHOTOGRAPHS, "texture", prompts)
        for name, scenes in surfaces.items():
            show(console, f"surfaces, {name}, words fitted", scenes, banks, ours)
        console.print("\n| words fitted | true regions | predicted regions |", "|---|---|---|", sep="\n")
        for title, formula in named.items():
            values = [accuracy(scenes, banks, formula) for scenes in surfaces.values()]
            console.print(f"| {title} | {' | '.join(f'{value:.3f}' for value in values)} |")


if __name__ == "__main__":
    main()
