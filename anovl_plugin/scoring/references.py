"""Reference images: how far each patch of an image is from those of a few images of normal items.

A :class:`References` is fitted to the tokens of the reference images and returns the distance of any other token.
Distances and text margins have different scales. The reference images set both, without any test image:

    r = μ_t + σ_t (d − μ_d) / σ_d

where μ_t, σ_t are mean and standard deviation of the text margins of the reference patches, and μ_d, σ_d those of the
distances of reference patches that the fit has not seen: each reference image in turn (at most eight) against all
others, or, of a single image, one half against the other. An ordinary normal patch thus has the same margin from either
source, and a patch that is as unusual for its distance as for its text, too.

Shapes: R reference images, P patches of each (of all its tiles and views), B images, N patches, D width of a token.
"""

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from anovl_plugin.config import check_flag, number, shown, to_int
from anovl_plugin.scoring.scores import check_fraction
from anovl_plugin.vision.value_attention import VisionTokens
from anovl_plugin.vision.views import View, Views, parse_views

# Reference images that are scored against the others to find the scale of distances. More change it little.
_MAX_HELD_OUT = 8
# Copies of one image have no spread; a distance or margin this small is noise of half precision.
_LEAST_SPREAD = 1e-4
# Settings that say how results are averaged, not what is kept.
_AFTERWARDS = {"weight", "top_fraction"}

Fitted = dict[str, Tensor]


class Scale(NamedTuple):
    """Where distances of normal patches lie, and where their text margins do.

    Attributes:
        distance_mean: Mean distance of reference patches that the fit has not seen.
        distance_std: Its standard deviation, at least 1e-4.
        margin_mean: Mean text margin of the reference patches.
        margin_std: Its standard deviation, at least 1e-4.
    """

    distance_mean: Tensor
    distance_std: Tensor
    margin_mean: Tensor
    margin_std: Tensor

    def to_margins(self, distances: Tensor) -> Tensor:
        """Return distances of any shape as margins: μ_t + σ_t (d − μ_d) / σ_d."""
        return self.margin_mean + self.margin_std * (distances - self.distance_mean) / self.distance_std


@dataclass
class References(ABC):
    """Base class of what compares an image with reference images; subclass it to add your own.

    A subclass is a dataclass whose fields are its settings, so that the command line, YAML and checkpoints can hold
    them. The result for an image must not depend on other images than the references.

    Args:
        weight: Share of the references in the map and in the image score, from 0, the text alone, to 1, the references
            alone. Default: 0.3.
        depths: Blocks of CLIP's original path whose patch tokens are compared, counted from 1. Default: the ends of the
            tower's four quarters, or what was measured for the CLIP.
        value_wise: Whether the value-wise path's patch tokens are compared as well. Default: no.
        views: Views of each reference image that count as part of it: ``single``, the image alone; ``paper``, the 22
            views of the image score; or a list such as ``[image, "rotate 90", flip]``. Default: ``single``.
        top_fraction: Share of the map whose mean enters the image score, in [0, 1]: 0 is the highest pixel, 1 the whole
            map. Default: 0.005.

    Attributes:
        measured_depths: Depths that served a CLIP best where they were measured (docs/references.md), by backbone.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or there are neither depths nor value-wise tokens.
    """

    measured_depths: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    weight: float = 0.3
    depths: list[int] | None = None
    value_wise: bool = False
    views: Views = "single"
    top_fraction: float = 0.005

    def __post_init__(self) -> None:
        """Check the settings and convert NumPy numbers."""
        self.weight = number(self, "weight", least=0, most=1)
        given, self.depths = self.depths, _check_depths(self)
        check_flag("value_wise", self.value_wise)
        parse_views(self.views)
        check_fraction(self.top_fraction)
        self.top_fraction = float(self.top_fraction)
        if self.depths == [] and not self.value_wise:
            msg = (
                f"depths of {type(self).__name__} is {given!r}, and value_wise is false, so there is nothing to "
                "compare; set one of them"
            )
            raise ValueError(msg)

    @property
    def image_views(self) -> tuple[View, ...]:
        """The views of a reference image, as functions of images."""
        return parse_views(self.views)

    @property
    def least_images(self) -> int:
        """How many reference images it takes at least."""
        return 1

    def caution(self, count: int) -> str | None:
        """Return a warning about a number of reference images that is possible, but too small for the settings.

        Args:
            count: Number of reference images, at least :attr:`least_images`.
        """
        del count
        return None

    def depths_of(self, num_blocks: int, backbone: str | None = None) -> tuple[int, ...]:
        """Return the blocks whose tokens are compared.

        They are the setting, else what was measured for the backbone (:attr:`measured_depths`), else the ends of the
        four quarters of the tower, 3, 6, 9 and 12 of 12 blocks, as MuSc (arXiv 2401.16753) has it for every CLIP.

        Args:
            num_blocks: Number of blocks of the image tower.
            backbone: The CLIP. Default: none that was measured.

        Raises:
            ValueError: If the tower does not have one of the blocks.
        """
        if self.depths is None:
            quarters = (-(-num_blocks * quarter // 4) for quarter in range(1, 5))
            return self.measured_depths.get(backbone or "") or tuple(dict.fromkeys(quarters))
        if any(depth > num_blocks for depth in self.depths):
            msg = (
                f"depths of {type(self).__name__} is {shown(self.depths)}, but the image tower has {num_blocks} "
                f"blocks; use numbers from 1 to {num_blocks}"
            )
            raise ValueError(msg)
        return tuple(self.depths)

    def select(self, tokens: VisionTokens) -> list[Tensor]:
        """Return the unit tokens to compare, float32, one tensor (..., N, D) for each depth and the value-wise path.

        Args:
            tokens: Tokens of images or tiles, with those of the blocks of :meth:`depths_of`.
        """
        blocks = [] if tokens.block_tokens is None else list(tokens.block_tokens.unbind(-3))
        chosen = [*blocks, *([tokens.patch_tokens] if self.value_wise else [])]
        return [F.normalize(each.float(), dim=-1) for each in chosen]

    @abstractmethod
    def fit(self, tokens: Sequence[Tensor]) -> Fitted:
        """Return what is to be kept of reference images, as float32 tensors by name.

        Args:
            tokens: Unit tokens of the images, as :meth:`select` returns them, each of shape (R, P, D).
        """

    @abstractmethod
    def distances(self, tokens: Sequence[Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        """Return the distance of each patch from the references, at least 0, shape (B, N).

        Args:
            tokens: Unit tokens of images, as :meth:`select` returns them, each of shape (B, N, D).
            fitted: What :meth:`fit` returned.
        """


def bank_config(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the settings of references as plain data, without those that a bank does not depend on.

    Args:
        config: The settings, as :func:`anovl_plugin.config.to_config` returns them; ``None`` for no references.

    Example:
        >>> bank_config({"class_path": "PatchSubspace", "init_args": {"weight": 0.2, "variance": 0.9}})
        {'class_path': 'PatchSubspace', 'init_args': {'variance': 0.9}}
    """
    if config is None:
        return None
    used = {name: value for name, value in config["init_args"].items() if name not in _AFTERWARDS}
    return {**config, "init_args": used}


def find_scale(references: References, tokens: Sequence[Tensor], margins: Tensor) -> Scale:
    """Return the scale of distances and that of text margins, from reference images alone.

    Args:
        references: What compares images with references.
        tokens: Unit tokens of the reference images, each of shape (R, P, D).
        margins: Text margins of reference patches, of any shape.

    Raises:
        ValueError: If there is a single patch.
    """
    distances = torch.cat(
        [
            references.distances(unseen, references.fit(seen)).flatten()
            for unseen, seen in held_out(tokens, len(references.image_views))
        ]
    )
    return Scale(distances.mean(), _spread(distances), margins.float().mean(), _spread(margins.float()))


def held_out(tokens: Sequence[Tensor], views: int = 1) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Iterate over pairs of what is left out and what is left: images, or the two halves of a single image.

    Args:
        tokens: Tokens of reference images, each of shape (R, P, D).
        views: Number of views that the patches of each image come from, one view after the other. Default: 1.

    Yields:
        Tokens of one image (1, P, D) and of all others (R − 1, P, D), for at most eight images, evenly spaced. Of a
        single image: those of its first half, and of its second; then the other way round. Only its first view counts,
        because another view of the other half would show the same.

    Raises:
        ValueError: If there is a single patch.
    """
    count, patches = tokens[0].shape[:2]
    if count == 1:
        if patches < 2:
            msg = "the only reference image has a single patch, which cannot be compared with others; use two images"
            raise ValueError(msg)
        end = max(2, patches // views)
        halves = [[each[:, part] for each in tokens] for part in (slice(end // 2), slice(end // 2, end))]
        yield halves[0], halves[1]
        yield halves[1], halves[0]
        return
    number_held_out = min(count, _MAX_HELD_OUT)
    for place in range(number_held_out):
        index = place * count // number_held_out
        rest = [at for at in range(count) if at != index]
        yield [each[index : index + 1] for each in tokens], [each[rest] for each in tokens]


def _spread(values: Tensor) -> Tensor:
    return values.std(correction=0).clamp(min=_LEAST_SPREAD)


def _check_depths(part: References) -> list[int] | None:
    depths = part.depths
    msg = (
        f"depths of {type(part).__name__} is {shown(depths)}, but must be a list of different block numbers, each at "
        "least 1, or none (null) for the default"
    )
    if depths is None:
        return None
    if not isinstance(depths, list | tuple):
        raise TypeError(msg)
    numbers = [to_int(depth, 1, 2**63 - 1, msg, msg) for depth in depths]
    if len(set(numbers)) != len(numbers):
        raise ValueError(msg)
    return numbers


def without_copies(images: Sequence[Tensor]) -> list[Tensor]:
    """Return the images that differ from all before them; a warning says how many do not.

    Args:
        images: R tensors, each of shape (3, H, W).

    Example:
        >>> len(without_copies([torch.zeros(3, 1, 1), torch.ones(3, 1, 1)]))
        2
    """
    distinct: dict[str, Tensor] = {}
    for image in images:
        pixels = hashlib.sha256(f"{tuple(image.shape)}".encode())
        pixels.update(image.detach().float().cpu().numpy().tobytes())
        distinct.setdefault(pixels.hexdigest(), image)
    copies = len(images) - len(distinct)
    if copies:
        msg = (
            f"{copies} of {len(images)} reference images are copies of others, which say nothing new; they are left out"
        )
        warnings.warn(msg, UserWarning, stacklevel=3)
    return list(distinct.values())


def same_number_of_patches(images: Sequence[Tensor]) -> Tensor:
    """Return tokens of images as one tensor; images with fewer patches, because they have fewer tiles, repeat theirs.

    Repeated patches change no distance to the nearest patch.

    Args:
        images: R tensors, each of shape (P_r, D).

    Returns:
        Shape (R, max P_r, D).

    Example:
        >>> same_number_of_patches([torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]])]).squeeze(-1)
        tensor([[1., 2.],
                [3., 3.]])
    """
    most = max(len(image) for image in images)
    return torch.stack([image[torch.arange(most, device=image.device) % len(image)] for image in images])
