"""Random numbers and images that are the same in every run."""

import torch
from torch import Tensor


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return normally distributed numbers of a shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images_for(model: object, number: int, seed: int = 0) -> Tensor:
    """Return normalized images of noise, (number, 3, H, W), of a model's or an image tower's own size."""
    return noise(number, 3, *model.image_size, seed=seed)
