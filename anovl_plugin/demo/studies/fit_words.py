"""Teach a small CLIP's text tower words for defects that it has never seen, for a study only.

``anovl-demo`` was trained on captions without words for kinds of defects, so it encodes all such words alike. Here, the
embeddings of their tokens alone are fitted, and all other weights stay: CLIP's own loss on synthetic surfaces with one
painted defect each tells which word names the region of the defect.

Shapes: B images, N patches, G families of surfaces, D words, C joint embedding width.
"""

import multiprocessing
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator, default_rng
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.transforms.v2.functional import normalize
from tqdm import tqdm

from anovl_plugin.demo.defects import DEFECT_KINDS, paint_defect
from anovl_plugin.demo.studies.surfaces import FAMILIES, draw_surface
from anovl_plugin.demo.studies.train import FAMILY_NAMES, SCALE, TEMPLATES
from anovl_plugin.text.text_tower import TextTower
from anovl_plugin.torch_model import AnoVLModel

LEARNING_RATE = 0.03
BATCH = 256


class Defects(NamedTuple):
    """Synthetic images with one painted defect each.

    Attributes:
        images: uint8, shape (B, 3, S, S).
        masks: 1 on defects, else 0, shape (B, S, S).
        families: Indices into the families, shape (B,).
        kinds: Indices into the kinds of defects, shape (B,).
    """

    images: Tensor
    masks: Tensor
    families: Tensor
    kinds: Tensor


class NewRows(nn.Module):
    """A token embedding of which some rows are learned.

    Args:
        weight: The whole embedding, shape (vocabulary, width).
        ids: Rows to learn; they start from small noise.
    """

    def __init__(self, weight: Tensor, ids: Tensor) -> None:
        super().__init__()
        self.weight, self.ids = weight, ids
        noise = torch.randn(len(ids), weight.shape[1], generator=torch.Generator().manual_seed(0))
        self.rows = nn.Parameter(0.05 * noise)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings (K, L, width) of token ids (K, L)."""
        return F.embedding(tokens, self.whole())

    def whole(self) -> Tensor:
        """Return the whole embedding, with the learned rows in it."""
        return self.weight.index_copy(0, self.ids, self.rows)


def draw_image(seed: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Return an image, its mask, and the indices of its family and of its kind of defect."""
    rng = default_rng(seed)
    weights = np.array([family.weight for family in FAMILIES.values()])
    family, kind = int(rng.choice(len(FAMILIES), p=weights / weights.sum())), seed[1] % len(DEFECT_KINDS)
    image, mask = paint_defect(draw_surface(FAMILY_NAMES[family], 96, rng), DEFECT_KINDS[kind], rng)
    return (image * 255).round().astype(np.uint8), mask, family, kind


def draw_defects(count: int, seed: int) -> Defects:
    """Return ``count`` images, drawn on all cores; they depend on the seed, not on the number of cores."""
    with multiprocessing.get_context("spawn").Pool() as pool:
        jobs = pool.imap(draw_image, [(seed, index) for index in range(count)], chunksize=64)
        images, masks, families, kinds = zip(*tqdm(jobs, total=count, desc="surfaces"), strict=True)
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Defects(stacked, torch.from_numpy(np.stack(masks)), torch.tensor(families), torch.tensor(kinds))


@torch.no_grad()
def mean_tokens(model: AnoVLModel, defects: Defects) -> Tensor:
    """Return the mean of the unit patch tokens in each image's defect, by overlap, shape (B, C)."""
    weights = F.avg_pool2d(defects.masks[:, None].float(), 8).flatten(1)
    means = []
    for images, weight in zip(defects.images.split(100), weights.split(100), strict=True):
        ready = normalize(images.float() / 255, list(model.mean), list(model.std))
        tokens = F.normalize(model.encode(ready[:, None]).patch_tokens[:, 0], dim=-1)
        means.append(torch.einsum("bn,bnc->bc", weight / weight.sum(1, keepdim=True), tokens))
    return torch.cat(means)


def draw_captions(words: Sequence[str], rng: Generator) -> list[str]:
    """Draw a noun for each family, and a sentence with it for each word: G × D sentences."""
    nouns = [family.nouns[rng.integers(len(family.nouns))] for family in FAMILIES.values()]
    return [TEMPLATES[rng.integers(len(TEMPLATES))].format(f"{noun} with {word}") for noun in nouns for word in words]


def fit_words(
    model: AnoVLModel, tower: TextTower, words: Sequence[str], *, count: int = 4000, steps: int = 600, seed: int = 0
) -> None:
    """Fit the embeddings of the words' tokens, in place.

    Args:
        model: The image side of the CLIP, which stays as it is.
        tower: The text side; only rows of its token embedding that are zero change.
        words: A word for each kind of defect, in the order of ``DEFECT_KINDS``.
        count: Number of synthetic images. Default: 4000.
        steps: Steps of AdamW, with up to 256 images each. Default: 600.
        seed: Seed of images and order. Default: 0.
    """
    defects = draw_defects(count, seed)
    regions, clip = mean_tokens(model, defects), tower.clip.requires_grad_(requires_grad=False)
    embedding: Any = clip.token_embedding
    ids = tower.tokenize(list(words)).unique()
    unknown = ids[embedding.weight[ids].norm(dim=1) == 0]
    rng, rows = default_rng([seed, 1]), NewRows(embedding.weight.detach(), unknown[unknown != 0])
    optimizer = torch.optim.AdamW(rows.parameters(), lr=LEARNING_RATE)
    scheduler = OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    clip.token_embedding = rows
    for _ in tqdm(range(steps), desc="words"):
        text = F.normalize(tower.encode(draw_captions(words, rng)), dim=-1).unflatten(0, (len(FAMILIES), len(words)))
        index = torch.from_numpy(rng.choice(count, min(count, BATCH), replace=False))
        logits = SCALE * torch.einsum("bc,bkc->bk", regions[index], text[defects.families[index]])
        loss = F.cross_entropy(logits, defects.kinds[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        embedding.weight.copy_(rows.whole())
    clip.token_embedding = embedding
