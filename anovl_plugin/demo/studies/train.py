"""Train ``anovl-demo``, the package's small CLIP: ``python -m anovl_plugin.demo.studies.train``.

All training data are synthetic: surfaces and objects (:mod:`anovl_plugin.demo.studies.surfaces`) with painted defects
(:mod:`anovl_plugin.demo.defects`), and captions from the prompt ensemble (:mod:`anovl_plugin.text.prompts`). Three
losses act on cosines × 30:

- patches: whether a patch is abnormal, by the patch tokens of the *value-wise* path against the two states;
- images: whether an image is abnormal, by the class token against the two states;
- classes: which of the nouns drawn for this step the image shows, by the class token.

Shapes: B images, N patches, G families of surfaces, C joint embedding width.
"""

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
from numpy.random import Generator, default_rng
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.transforms.v2.functional import adjust_brightness, adjust_contrast, normalize
from tqdm import tqdm

from anovl_plugin.demo.defects import DEFECT_KINDS, paint_defect
from anovl_plugin.demo.studies.surfaces import FAMILIES, GENERIC_NOUNS, draw_surface
from anovl_plugin.text.prompts import Prompts
from anovl_plugin.text.text_bank import state_embedding
from anovl_plugin.text.text_tower import TextTower
from anovl_plugin.vision.backbone import DEMO_BACKBONE, register_demo_architecture
from anovl_plugin.vision.value_attention import VisionTokens, value_wise_forward

SCALE = 30.0
ABNORMAL_SHARE = 0.6
PROMPTS = Prompts.load()
STATES = (PROMPTS.normal_states, PROMPTS.abnormal_states)
TEMPLATES = [template for domain in PROMPTS.domains for template in PROMPTS.templates_of(domain)]
FAMILY_NAMES = tuple(FAMILIES)


class Surfaces(NamedTuple):
    """A set of synthetic images.

    Attributes:
        images: uint8, shape (B, 3, S, S).
        masks: uint8, 1 on defects, else 0, shape (B, S, S).
        families: Indices into the families, shape (B,).
    """

    images: Tensor
    masks: Tensor
    families: Tensor


def make_image(seed: tuple[int, int], size: int = 96) -> tuple[np.ndarray, np.ndarray, int]:
    """Return one image, abnormal with probability 0.6, its mask, and the index of its family."""
    rng = default_rng(seed)
    weights = np.array([family.weight for family in FAMILIES.values()])
    family = int(rng.choice(len(FAMILIES), p=weights / weights.sum()))
    image, mask = draw_surface(FAMILY_NAMES[family], size, rng), np.zeros((size, size), bool)
    for _ in range(rng.integers(1, 4) if rng.random() < ABNORMAL_SHARE else 0):
        image, part = paint_defect(image, DEFECT_KINDS[rng.integers(len(DEFECT_KINDS))], rng)
        mask |= part
    return (image * 255).round().astype(np.uint8), mask.astype(np.uint8), family


def make_surfaces(count: int, seed: int) -> Surfaces:
    """Return ``count`` images, drawn on all cores; they depend on the seed, not on the number of cores."""
    with multiprocessing.get_context("spawn").Pool() as pool:
        jobs = pool.imap(make_image, [(seed, index) for index in range(count)], chunksize=64)
        images, masks, families = zip(*tqdm(jobs, total=count, desc="surfaces"), strict=True)
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Surfaces(stacked, torch.from_numpy(np.stack(masks)), torch.tensor(families))


class UsedTokens(nn.Module):
    """The rows of a token embedding that captions use, so that the other 49,000 are not optimized.

    Args:
        embedding: The whole token embedding.
        used: Ids of the tokens that captions use.
    """

    row_of: Tensor

    def __init__(self, embedding: nn.Embedding, used: Tensor) -> None:
        super().__init__()
        self.used = used
        self.size = embedding.weight.shape
        self.rows = nn.Embedding.from_pretrained(embedding.weight[used].detach().clone(), freeze=False)
        self.register_buffer("row_of", torch.zeros(len(embedding.weight), dtype=torch.long))
        self.row_of[used] = torch.arange(len(used))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings (K, L, D) of token ids (K, L)."""
        return self.rows(self.row_of[tokens])

    def full_weight(self) -> Tensor:
        """Return the embedding of the whole vocabulary; unused rows are zero."""
        weight = torch.zeros(self.size)
        weight[self.used] = self.rows.weight.detach()
        return weight


def build_clip(seed: int) -> tuple[Any, TextTower]:
    """Return the untrained CLIP, and a text tower that shares its weights."""
    torch.manual_seed(seed)
    register_demo_architecture()
    clip = open_clip.create_model(DEMO_BACKBONE)
    tower = TextTower(clip, open_clip.get_tokenizer(DEMO_BACKBONE))
    nouns = {noun for family in FAMILIES.values() for noun in family.nouns} | set(GENERIC_NOUNS)
    sentences = [*(s.format(n) for n in nouns for states in STATES for s in states), *TEMPLATES]
    used = tower.tokenize([sentence.replace("{}", "") for sentence in sentences]).unique()
    clip.token_embedding = UsedTokens(clip.token_embedding, used)
    return clip, tower


def draw_captions(rng: Generator, per_state: int = 3) -> tuple[list[str], Tensor]:
    """Draw a noun for each family, and sentences about it in both states.

    Returns:
        G × 2 × ``per_state`` sentences, and a mask (G,) that is true where the noun is the family's own, not a generic
        word such as "object".
    """
    sentences, own = [], []
    for family in FAMILIES.values():
        own.append(rng.random() > 0.2)
        nouns = family.nouns if own[-1] else GENERIC_NOUNS
        noun = nouns[rng.integers(len(nouns))]
        for states in STATES:
            for state in rng.choice(states, per_state):
                sentences.append(TEMPLATES[rng.integers(len(TEMPLATES))].format(str(state).format(noun)))  # noqa: PERF401
    return sentences, torch.tensor(own)


def augment(surfaces: Surfaces, index: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, S, S), flipped, rotated, with other colors and normalized, and their masks (B, S, S)."""
    images, masks = surfaces.images[index].float() / 255, surfaces.masks[index]
    turns, flip = int(rng.integers(4)), rng.random() < 0.5
    images, masks = images.rot90(turns, (-2, -1)), masks.rot90(turns, (-2, -1))
    if flip:
        images, masks = images.flip(-1), masks.flip(-1)
    half = len(images) // 2
    images = torch.cat([images[:half], images[half:].mean(1, keepdim=True).expand(-1, 3, -1, -1)])
    images = adjust_contrast(adjust_brightness(images, rng.uniform(0.7, 1.3)), rng.uniform(0.6, 1.4))
    images = images * torch.from_numpy(rng.uniform(0.85, 1.15, (len(images), 3, 1, 1))).float()
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return normalize(images.clamp(0, 1), mean, std), masks


def state_loss(features: Tensor, states: Tensor, target: Tensor, positive_weight: float) -> Tensor:
    """Return the binary cross-entropy on 30 × (cos to abnormal − cos to normal).

    Args:
        features: Tokens (B, N, C), not normalized.
        states: Unit vectors of the two states for each image, shape (B, 2, C).
        target: 1 for abnormal, 0 for normal, −1 for ignored, shape (B, N).
        positive_weight: Weight of abnormal tokens; normal ones have 1.
    """
    cosines = F.normalize(features, dim=-1) @ states.mT
    logits = SCALE * (cosines[..., 1] - cosines[..., 0])
    weight = (target >= 0).float() * torch.where(target > 0, positive_weight, 1.0)
    losses = F.binary_cross_entropy_with_logits(logits, target.clamp(min=0), reduction="none")
    return (losses * weight).sum() / weight.sum()


def class_loss(class_token: Tensor, states: Tensor, families: Tensor, own: Tensor) -> Tensor:
    """Return the cross-entropy of class tokens (B, C) over the G nouns, both states of a noun averaged."""
    nouns = F.normalize(states.mean(1), dim=-1)
    logits = SCALE * F.normalize(class_token, dim=-1) @ nouns.T
    named = own[families]
    return F.cross_entropy(logits.masked_fill(~own, -1e4)[named], families[named]) if named.any() else logits.sum() * 0


def patch_targets(masks: Tensor, patch: int) -> Tensor:
    """Return the targets of patches (B, N): 1 if at least a sixth is defective, 0 if nothing is, else −1."""
    share = F.avg_pool2d(masks[:, None].float(), patch).flatten(1)
    return torch.where(share >= 1 / 6, 1.0, torch.where(share > 0, -1.0, 0.0))


def total_loss(tokens: VisionTokens, text: Tensor, own: Tensor, masks: Tensor, families: Tensor) -> Tensor:
    """Return the sum of the three losses; ``text`` holds caption embeddings of shape (G, 2, captions, C)."""
    states = state_embedding(text)
    patch = round((masks.shape[-1] ** 2 / tokens.patch_tokens.shape[1]) ** 0.5)
    abnormal = masks.flatten(1).any(1).float()
    patch_loss = state_loss(tokens.patch_tokens, states[families], patch_targets(masks, patch), 3.0)
    image_loss = state_loss(tokens.class_token[:, None], states[families], abnormal[:, None], 1.0)
    return patch_loss + image_loss + 0.1 * class_loss(tokens.class_token, states, families, own)


def training_step(clip: nn.Module, tower: TextTower, surfaces: Surfaces, seed: tuple[int, int], batch: int) -> Tensor:
    """Return the loss of one step; all randomness comes from ``seed``, so that a resumed run equals an unbroken one."""
    rng = default_rng(seed)
    index = torch.from_numpy(rng.choice(len(surfaces.images), batch, replace=False))
    images, masks = augment(surfaces, index, rng)
    sentences, own = draw_captions(rng)
    text = tower.encode(sentences).unflatten(0, (len(FAMILIES), 2, -1))
    tokens = value_wise_forward(clip.visual, images)
    return total_loss(tokens, text, own, masks, surfaces.families[index])


def export_weights(clip: Any, path: Path, metadata: dict[str, str]) -> None:
    """Write the CLIP's weights as float16 safetensors for open_clip."""
    state = {name: value.detach() for name, value in clip.state_dict().items() if not name.startswith("token_emb")}
    state["token_embedding.weight"] = clip.token_embedding.full_weight()
    state["logit_scale"] = torch.tensor(np.log(SCALE))
    save_file({name: value.half().contiguous() for name, value in state.items()}, path, metadata=metadata)


def train(
    out: Path,
    work: Path,
    *,
    steps: int,
    images: int,
    batch: int,
    learning_rate: float,
    seed: int,
    save_every: int = 250,
) -> None:
    """Train from the start, or from the last checkpoint in ``work``, and write the weights to ``out``.

    Args:
        out: Weights file to write.
        work: Folder for the images and the checkpoint; an interrupted run resumes from it.
        steps: Total number of optimization steps.
        images: Number of images to create beforehand.
        batch: Images per step.
        learning_rate: Highest learning rate of the one-cycle schedule.
        seed: Seed of data, weights and order.
        save_every: Steps between checkpoints. Default: 250.

    Raises:
        ValueError: If the checkpoint in ``work`` is from a run with other settings.
    """
    work.mkdir(parents=True, exist_ok=True)
    cache, checkpoint = work / f"surfaces-{images}-{seed}.pt", work / "checkpoint.pt"
    if not cache.exists():
        torch.save(tuple(make_surfaces(images, seed)), cache)
    surfaces = Surfaces(*torch.load(cache))
    clip, tower = build_clip(seed)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=learning_rate, weight_decay=0.01)
    scheduler = OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    parts: dict[str, Any] = {"clip": clip, "optimizer": optimizer, "scheduler": scheduler}
    settings = {"steps": steps, "images": images, "batch": batch, "learning_rate": learning_rate, "seed": seed}
    first, seconds = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        if saved["settings"] != settings:
            msg = f"{checkpoint} is from a run with {saved['settings']}; use the same settings, or another work folder"
            raise ValueError(msg)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        first, seconds = saved["step"], saved["seconds"]
    started = time.monotonic() - seconds
    bar = tqdm(range(first, steps), initial=first, total=steps, desc="training")
    for step in bar:
        loss = training_step(clip, tower, surfaces, (seed, step), batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % save_every == 0 or step + 1 == steps:
            states = {name: part.state_dict() for name, part in parts.items()} | {"settings": settings}
            seconds = time.monotonic() - started
            torch.save({**states, "step": step + 1, "seconds": seconds}, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
    export_weights(clip, out, {name: str(value) for name, value in settings.items()})
    tqdm.write(f"wrote {out} after {steps} steps, {seconds / 60:.0f} minutes of training")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("anovl-demo.safetensors"), help="weights file to write")
    parser.add_argument("--work", type=Path, default=Path("anovl-demo-training"), help="folder for data and checkpoint")
    parser.add_argument("--steps", type=int, default=3600, help="optimization steps; default: 3600")
    parser.add_argument(
        "--images", type=int, default=16000, help="number of images to create beforehand; default: 16000"
    )
    parser.add_argument("--batch", type=int, default=64, help="images per step; default: 64")
    parser.add_argument("--learning-rate", type=float, default=1.2e-3, help="highest learning rate; default: 0.0012")
    parser.add_argument("--seed", type=int, default=0, help="seed of data, weights and order; default: 0")
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
