"""Pre-processing that gives an exported model the same pixels as the engine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from anomalib.data import Batch
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchvision.transforms.v2 import Compose, InterpolationMode, Normalize, Resize, Transform

from anovl_plugin.config import shown
from anovl_plugin.hosts.anomalib import can_be_saved, get_exportable_transform, set_transforms
from anovl_plugin.torch_model import AnoVLModel
from anovl_plugin.vision.tiles import short_side

_UNSAVED = "unsaved"
# Pixels of a resized image: 1.6 GB as float32. The largest square image that 64 tiles of 240 pixels per side need.
MAX_PIXELS = 2**27


class ImageTooLargeError(ValueError):
    """An image would become too large when it is resized, because it is long and narrow."""


class AntialiasedPreProcessor(PreProcessor):
    """anomalib's pre-processor, with antialiased resizing in exported graphs, too.

    anomalib switches antialiasing off for export, because not every runtime has it. An exported model then sees other
    pixels than ``anomalib test``. Antialiased bilinear resizing is a matrix product along each side, which every
    runtime has.

    Args:
        transform: Transform of images. Default: ``None``, identity until :meth:`set_transform` sets another.

    Attributes:
        is_given: Whether the transform was passed at construction.

    Raises:
        TypeError: If the transform is neither one of torchvision's nor another module.
    """

    def __init__(self, transform: Transform | None = None) -> None:
        super().__init__()
        self.is_given = transform is not None
        self.set_transform(transform)

    def set_transform(self, transform: Transform | None) -> None:
        """Set the transform of engine runs, and with it the one of exported graphs and inferencers.

        Args:
            transform: Transform of images; ``None`` for identity.

        Raises:
            TypeError: If it is neither one of torchvision's transforms nor another module.
        """
        if not isinstance(transform, nn.Module | None):
            msg = f"transform is {shown(transform)}, but must be a transform of torchvision.transforms.v2 or None"
            raise TypeError(msg)
        bound_resizing(transform)
        set_transforms(self, transform, exportable(transform))

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, *indices: int
    ) -> None:
        """Apply the transform to a batch.

        Raises:
            ImageTooLargeError: If its images would become too large; names the first file.
        """
        with naming(batch["image_path"]):
            super().on_validation_batch_start(trainer, pl_module, batch, *indices)

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, *indices: int) -> None:
        """Apply the transform to a batch, as in validation."""
        with naming(batch["image_path"]):
            super().on_test_batch_start(trainer, pl_module, batch, *indices)

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, *indices: int) -> None:
        """Apply the transform to a batch, as in validation."""
        with naming(batch["image_path"]):
            super().on_predict_batch_start(trainer, pl_module, batch, *indices)

    def checkpoint_config(self) -> dict[str, Any]:
        """Return the transform as plain data, or the name of a part that cannot be saved, such as a random one."""
        config = super().checkpoint_config()
        unsaved = unsaved_part(self.transform)
        return config if unsaved is None else config | {_UNSAVED: unsaved}

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Use the transform of a checkpoint.

        If it could not be saved, the transform that was passed at construction stays.

        Raises:
            ValueError: If it could not be saved, and no transform was passed at construction.
        """
        unsaved = config.get(_UNSAVED)
        if unsaved is None:
            super().load_checkpoint_config(config)
            self.set_transform(self.transform)
        elif not self.is_given:
            msg = (
                f"the checkpoint was made with a pre_processor whose transform cannot be saved ({unsaved}); "
                "pass the same pre_processor again"
            )
            raise ValueError(msg)


def unsaved_part(transform: Transform | None) -> str | None:
    """Return the name of the first part of a transform that a checkpoint cannot hold, or ``None`` if it holds all."""
    if transform is None or can_be_saved(transform):
        return None
    parts = transform.transforms if isinstance(transform, Compose) else []
    return next((name for name in map(unsaved_part, parts) if name is not None), type(transform).__name__)


def default_transform(model: AnoVLModel, image_size: tuple[int, int] | None = None) -> Compose:
    """Return bilinear resizing to a model's size (with tiles: of the short side, to hold them) and its normalization.

    Args:
        model: The model.
        image_size: Height and width in pixels to resize to instead. Default: the model's own.
    """
    size = list(image_size or model.image_size)
    if image_size is None and model.tiles_per_side is not None:
        size = [short_side(size[0], model.tiles_per_side)]
    return Compose([Resize(size, antialias=True), Normalize(list(model.mean), list(model.std))])


class MatrixResize(nn.Module):
    """Antialiased bilinear resizing as two matrix products.

    Args:
        resize: Transform to replace; to a height and width, or of the short side.
    """

    def __init__(self, resize: Resize) -> None:
        super().__init__()
        self.size = list(resize.size)

    def forward(self, images: Tensor) -> Tensor:
        """Resize images.

        Args:
            images: Shape (B, C, H, W).

        Returns:
            Shape (B, C, H', W').

        Raises:
            ImageTooLargeError: If H' × W' is above 2²⁷; not checked in graphs.
        """
        height, width = images.shape[-2:]
        rows, columns = resized(self.size, height, width)
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            check_resized(self.size, height, width)
        # OpenVINO would fuse a following per-channel operation, such as normalization, into the product and apply it
        # per column, so channels are folded into the batch.
        channels = images.flatten(0, 1)
        channels = resize_matrix(height, rows, images) @ channels @ resize_matrix(width, columns, images).T
        return channels.unflatten(0, images.shape[:2])


def resized(size: Sequence[int], height: int, width: int) -> tuple[int, int]:
    """Return the height and width in pixels that an image is resized to.

    Args:
        size: Height and width of the result, or the length of its short side alone.
        height: Height of the image.
        width: Width of the image.
    """
    if len(size) == 2:
        return size[0], size[1]
    # torchvision rounds the long side down.
    (short,) = size
    return (short, int(short * width / height)) if height <= width else (int(short * height / width), short)


def check_resized(size: Sequence[int], height: int, width: int) -> None:
    """Raise an error if an image would become too large.

    Args:
        size: As in :func:`resized`.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Raises:
        ImageTooLargeError: If it would have more than 2²⁷ pixels.
    """
    rows, columns = resized(size, height, width)
    if rows * columns > MAX_PIXELS:
        msg = (
            f"an image of {height} × {width} pixels would be resized to {rows} × {columns}, which is more than "
            f"{MAX_PIXELS} pixels; crop it, cut it up, or use fewer tiles_per_side"
        )
        raise ImageTooLargeError(msg)


def bound_resizing(transform: nn.Module | None) -> None:
    """Make every resizing in a transform check the size of its result first.

    anomalib's data modules resize with the same object in the workers of the data loader, before any callback runs.

    Args:
        transform: Transform of images; ``None`` for identity.
    """
    for part in getattr(transform, "transforms", ()):
        bound_resizing(part)
    if not isinstance(transform, Resize) or getattr(transform, "_checks_result", False):
        return
    # A bound on the long side bounds the result, too.
    if transform.size is not None and transform.max_size is None:
        transform.register_forward_pre_hook(_check_inputs)
        transform._checks_result = True  # noqa: SLF001 - our own mark, which torchvision does not print


def check_before_resizing(transform: nn.Module | None, image: Tensor) -> bool:
    """Raise an error if an image would become too large in the first resizing of a transform.

    Args:
        transform: Transform of images; ``None`` for identity.
        image: Image, shape (..., H, W).

    Returns:
        Whether the transform resizes.

    Raises:
        ImageTooLargeError: If so.
    """
    if isinstance(transform, Resize):
        if getattr(transform, "_checks_result", False):
            _check_inputs(transform, (image,))
        return True
    return any(check_before_resizing(part, image) for part in getattr(transform, "transforms", ()))


@contextmanager
def naming(paths: Sequence[str] | None) -> Iterator[None]:
    """Prefix an error about an image's size with the first of these files, if there are any."""
    try:
        yield
    except ImageTooLargeError as error:
        if not paths:
            raise
        msg = f"{paths[0]}: {error}"
        raise ImageTooLargeError(msg) from None


def _check_inputs(resize: Resize, inputs: tuple) -> None:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    for value in inputs:
        if isinstance(value, Tensor):
            check_resized(resize.size, *value.shape[-2:])


def resize_matrix(length: int, target: int, like: Tensor) -> Tensor:
    """Return the weights of antialiased linear resizing: a triangle around each pixel's center, as wide as the step.

    Args:
        length: Pixels along a side, n.
        target: Pixels of the result along that side, m.
        like: Tensor of the device and dtype to use.

    Returns:
        w_ij ∝ max(0, 1 − |j − c_i| / max(s, 1)), s = n/m, c_i = (i + ½) s − ½, each row adding up to 1; shape (m, n).

    Example:
        >>> resize_matrix(4, 2, torch.empty(0))
        tensor([[0.4286, 0.4286, 0.1429, 0.0000],
                [0.0000, 0.1429, 0.4286, 0.4286]])
    """
    # Times 2m, all of it is whole numbers, which graphs compute exactly. Runtimes may use bfloat16 for floats, in which
    # positions would be wrong by a quarter of a pixel.
    old, new = (2 * torch.arange(count, device=like.device) + 1 for count in (length, target))
    widest = torch.scalar_tensor(length, dtype=torch.long, device=like.device).clamp(min=target)
    weights = (2 * widest - (target * old - length * new[:, None]).abs()).clamp(min=0).float()
    return (weights / weights.sum(1, keepdim=True)).to(like.dtype)


def exportable(transform: Transform | None) -> nn.Module | None:
    """Return an equivalent transform whose graph can be exported.

    Args:
        transform: Transform of images; ``None`` for identity.

    Returns:
        anomalib's exportable version of it, with antialiased bilinear resizing kept.
    """
    if isinstance(transform, Compose):
        return Compose([exportable(part) for part in transform.transforms])
    # The mode is an int, a str or an enum, as it was passed.
    bilinear = (InterpolationMode.BILINEAR, InterpolationMode.BILINEAR.value, 2)
    if (
        isinstance(transform, Resize)
        and transform.interpolation in bilinear
        and transform.antialias
        and transform.size is not None
        and transform.max_size is None
    ):
        return MatrixResize(transform)
    return get_exportable_transform(transform)
