"""Pre-processing that gives an exported model the pixels that the engine gives."""

import torch
from anomalib.pre_processing import PreProcessor
from anomalib.pre_processing.utils.transform import get_exportable_transform
from torch import Tensor, nn
from torchvision.transforms.v2 import Compose, InterpolationMode, Resize, Transform


class AntialiasedPreProcessor(PreProcessor):
    """anomalib's pre-processor, whose exported graph resizes with antialiasing, too.

    anomalib switches antialiasing off for export, as not every runtime has it, so that an exported model sees other
    pixels than ``anomalib test`` did. Antialiased bilinear resizing is a matrix product along each side, which every
    runtime has.

    Args:
        transform: What is done to images; ``None`` for nothing.
    """

    def __init__(self, transform: Transform | None = None) -> None:
        super().__init__(transform)
        self.export_transform = exportable(transform)

    def set_transform(self, transform: Transform | None) -> None:
        """Replace the transform, and what is exported for it."""
        self.transform = transform
        self.export_transform = exportable(transform)

    def load_checkpoint_config(self, config: dict) -> None:
        """Take the transform of a checkpoint."""
        super().load_checkpoint_config(config)
        self.export_transform = exportable(self.transform)


class MatrixResize(nn.Module):
    """Antialiased bilinear resizing as two matrix products.

    Args:
        resize: what it stands for; to a height and width, or of the short side.
    """

    def __init__(self, resize: Resize) -> None:
        super().__init__()
        self.size = list(resize.size)

    def forward(self, images: Tensor) -> Tensor:
        """Resize images.

        Args:
            images: shape (B, C, H, W).

        Returns:
            Shape (B, C, H', W').
        """
        height, width = images.shape[-2:]
        rows, columns = self._target(height, width)
        # Channels are folded away meanwhile: OpenVINO takes what is then done to each channel, such as normalising,
        # for a part of a product that it stands right behind, and does it to columns.
        channels = images.flatten(0, 1)
        channels = resize_matrix(height, rows, images) @ channels @ resize_matrix(width, columns, images).T
        return channels.unflatten(0, images.shape[:2])

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if len(self.size) == 2:
            return self.size[0], self.size[1]
        # One number is that of the short side; torchvision rounds the other down.
        (short,) = self.size
        return (short, int(short * width / height)) if height <= width else (int(short * height / width), short)


def resize_matrix(length: int, target: int, like: Tensor) -> Tensor:
    """Weights of antialiased linear resizing: a triangle about each new pixel's centre, as wide as the step.

    Args:
        length: pixels along a side, n.
        target: pixels wanted, m.
        like: a tensor of the device and dtype to use.

    Returns:
        w_ij ∝ max(0, 1 − |j − c_i| / max(s, 1)), s = n/m, c_i = (i + ½) s − ½, each row adding up to 1; shape (m, n).

    Example:
        >>> resize_matrix(4, 2, torch.empty(0))
        tensor([[0.4286, 0.4286, 0.1429, 0.0000],
                [0.0000, 0.1429, 0.4286, 0.4286]])
    """
    old, new = (torch.arange(count, device=like.device, dtype=torch.float32) for count in (length, target))
    step = torch.scalar_tensor(length, device=like.device) / target
    centres = (new + 0.5) * step - 0.5
    weights = (1 - (old - centres[:, None]).abs() / step.clamp(min=1)).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).to(like.dtype)


def exportable(transform: Transform | None) -> nn.Module | None:
    """Give a transform whose graph can be exported and does the same.

    Args:
        transform: what is done to images.

    Returns:
        anomalib's exportable version of it, with antialiased bilinear resizing kept.
    """
    if isinstance(transform, Compose):
        return Compose([exportable(part) for part in transform.transforms])
    # The mode is a number, a word or a constant, whichever was given.
    bilinear = (InterpolationMode.BILINEAR, InterpolationMode.BILINEAR.value, 2)
    usual = isinstance(transform, Resize) and transform.interpolation in bilinear
    if usual and transform.antialias and transform.size is not None and transform.max_size is None:
        return MatrixResize(transform)
    return get_exportable_transform(transform)
