"""Images of more than 8 bits a channel, which anomalib reads as white."""

import warnings
from collections.abc import Sequence

from PIL import Image
from torch import Tensor


def warn_of_deep_images(images: Tensor, paths: Sequence[str] | None) -> None:
    """Warn if an image came out white because its file has more than 8 bits.

    anomalib 2.7 reads files through Pillow's conversion to RGB, which cuts all values above 255.

    Args:
        images: as they were read, or resized and normalised since, shape (B, 3, H, W).
        paths: their files, if there are any.
    """
    for image, path in zip(images, paths or (), strict=False):
        # Files are only opened where most of the image is of its brightest value.
        if (image[0] >= image[0].max() - 1e-3).float().mean() < 0.5:
            continue
        with Image.open(path) as file:
            mode = file.mode
        if mode.startswith(("I", "F")):
            msg = (
                f"{path} has more than 8 bits a channel (mode {mode}), which anomalib reads as white, so its result "
                "means nothing; convert it to 8 bits"
            )
            warnings.warn(msg, UserWarning, stacklevel=2)
