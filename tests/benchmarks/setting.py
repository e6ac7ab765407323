"""What is measured: a CLIP, a device, a precision, and how large batches are."""

from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import open_clip
import torch
from anomalib.models.image.winclip.torch_model import WinClipModel
from safetensors.torch import save_file
from torch import Tensor

from anovl_plugin import AnoVL, AnoVLModel
from anovl_plugin.vision.backbone import DEFAULT_BACKBONE

CLASS_NAME = "bottle"


class Setting(NamedTuple):
    """Device, precision and CLIP to measure on.

    Attributes:
        folder: where weights and results of runs may be written.
        rounds: how often each pair takes turns; slow pairs less often.
        backbone: the CLIP.
        weights: file of its weights; ``None`` if it brings its own.
        batch: images of a batch.
        device: where to compute.
        dtype: precision of towers and images.
        is_small: whether the aim is to try everything rather than to measure.
    """

    folder: Path
    rounds: int
    backbone: str = DEFAULT_BACKBONE
    weights: str | None = None
    batch: int = 8
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    is_small: bool = False

    def model(self, **options: object) -> AnoVLModel:
        """Return a model with a text bank."""
        model = AnoVLModel(self.backbone, pretrained=self.weights, class_name=CLASS_NAME, **options)
        model = model.eval().to(self.device)
        model.image_tower.to(self.dtype)
        return model

    def lightning_model(self, **options: object) -> AnoVL:
        """Return a model for anomalib's engine."""
        return AnoVL(self.backbone, pretrained=self.weights, class_name=CLASS_NAME, **options)

    def images(self, count: int, size: int | None = None) -> Tensor:
        """Return images of noise, of the CLIP's own size unless another is given."""
        size = size or (96 if self.is_small else 240)
        return torch.rand(count, 3, size, size, device=self.device, dtype=self.dtype)

    @property
    def few_images(self) -> int:
        """Images of what takes a CPU many seconds an image."""
        return self.batch if self.device == "cuda" else 2

    def few(self, share: int) -> int:
        """Return a part of the rounds, at least one."""
        return max(1, self.rounds // share)


def write_weights(folder: Path) -> str:
    """Write random weights for the paper's CLIP, which cost what trained ones cost, and return the file's path."""
    path = folder / "random.safetensors"
    clip = open_clip.create_model(DEFAULT_BACKBONE)
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, path)
    return str(path)


def make_winclip() -> WinClipModel:
    """Return anomalib's WinClip with random weights instead of downloaded ones."""
    create = open_clip.create_model_and_transforms

    def without_weights(name: str, **_: object) -> tuple:
        return create(name)

    with patch.object(open_clip, "create_model_and_transforms", without_weights):
        return WinClipModel(CLASS_NAME).eval()
